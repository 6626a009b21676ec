import errno
import os
import tempfile

import pytest
import torch

from sj_burst.utils import spill
from sj_burst.utils.spill import Spill, free_memory, free_room, memory_budget

IMAGES = torch.rand(2, 3, 4, 5)
TENSORS = {
    "contiguous": IMAGES,
    "channels last": IMAGES.to(memory_format=torch.channels_last),
    "transposed": IMAGES.transpose(0, 3),
    "with holes": IMAGES[..., ::2],
    "expanded": torch.rand(1, 3).expand(4, 3),
    "a part": IMAGES[1:],
    "counts": torch.arange(-3, 4, dtype=torch.int8),
    "half precision": torch.rand(5).bfloat16(),
    "truth": torch.tensor([True, False]),
    "a number": torch.tensor(2.5),
    "empty": torch.empty(0, 3),
}


@pytest.fixture
def files(monkeypatch):
    """All temporary files that are opened."""
    opened, make = [], tempfile.TemporaryFile

    def recording(*args, **kwargs):
        opened.append(make(*args, **kwargs))
        return opened[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", recording)
    return opened


@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.parametrize("budget", [0, 2**20])
def test_round_trip(files, kind, budget):
    tensor = TENSORS[kind]
    with Spill(budget) as kept:
        handles = [kept.keep(t) for t in (torch.ones(3), tensor, torch.ones(3))]
        back = handles[1].get()
        assert bool(files) == (budget == 0)
    assert back.dtype == tensor.dtype
    assert torch.equal(back, tensor)
    if kind in ("contiguous", "channels last", "transposed"):
        assert back.stride() == tensor.stride()
    assert all(file.closed for file in files)


def test_a_copy_is_kept():
    with Spill(2**20) as kept:
        tensor = torch.zeros(2)
        handle = kept.keep(tensor)
        tensor.fill_(1)
        assert torch.equal(handle.get(), torch.zeros(2))


def test_accounts(files):
    with Spill(100) as kept:
        first, second, third = (kept.keep(torch.zeros(15)) for _ in range(3))
        assert (kept.in_memory, kept.on_disk) == (60, 120)
        assert [os.fstat(file.fileno()).st_size for file in files] == [120]
        first.free()
        assert (kept.in_memory, kept.on_disk) == (0, 120)
        kept.keep(torch.zeros(25))  # exactly the budget
        second.free()
        assert not files[0].closed
        third.free()
        assert (kept.in_memory, kept.on_disk) == (100, 0)
        assert files[0].closed


def test_files_give_their_room_back_one_by_one(files, monkeypatch):
    monkeypatch.setattr(spill, "_FILE", 100)
    with Spill(0) as kept:
        handles = [kept.keep(torch.full((15,), float(i))) for i in range(5)]
        for i in (0, 1):
            handles[i].free()
        assert [file.closed for file in files] == [True, False, False]
        assert [handles[i].get()[0].item() for i in (2, 3, 4)] == [2, 3, 4]
    assert all(file.closed for file in files)


def test_memory_is_used_again(monkeypatch):
    """At no time is there more of it than the budget, nor do two tensors lie in one place."""
    monkeypatch.setattr(spill, "_ARENA", 1024)
    numbers = torch.Generator().manual_seed(0)
    with Spill(4096) as kept:
        held, places = [], set()
        for i in range(500):
            size = int(torch.randint(0, 120, (), generator=numbers))
            held.append((kept.keep(torch.full((size,), float(i))), torch.full((size,), float(i))))
            assert kept.in_memory <= sum(len(arena.memory) for arena in kept._arenas) <= 4096
            if len(held) > 12:
                held.pop(int(torch.randint(0, 12, (), generator=numbers)))[0].free()
            assert all(torch.equal(handle.get(), tensor) for handle, tensor in held)
            places |= {id(arena) for arena in kept._arenas}
        assert len(places) == 3
        assert kept.on_disk < 2000
        for handle, _ in held:
            handle.free()
        assert (kept.in_memory, kept.on_disk) == (0, 0)
        free = [arena._free for arena in kept._arenas]
        assert free == [[(0, 1024)], [(0, 1024)], [(0, 2048)]]  # in one piece again


def test_a_budget_of_any_size_is_filled():
    """What is empty, too, lies where its type may begin."""
    with Spill(4) as kept:
        handles = [kept.keep(torch.ones(1)), kept.keep(torch.ones(0).double())]
        assert [handle.get().numel() for handle in handles] == [1, 0]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_files_go_when_the_work_breaks_off(files, error):
    with pytest.raises(error), Spill(0) as kept:
        kept.keep(torch.zeros(8))
        raise error
    assert [file.closed for file in files] == [True]


@pytest.mark.skipif(os.name != "posix", reason="elsewhere files have names until they are closed")
def test_files_have_no_names(monkeypatch, tmp_path):
    """Nothing is left even of a process that is killed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Spill(0) as kept:
        kept.keep(torch.zeros(8))
        assert not list(tmp_path.iterdir())


def test_a_full_disk_names_the_remedy(monkeypatch):
    class Full:
        def seek(self, _):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self):
            pass

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())
    with Spill(0) as kept, pytest.raises(OSError, match=r"set TMPDIR .* fewer") as error:
        kept.keep(torch.zeros(8))
    assert error.value.errno == errno.ENOSPC


def test_free_memory_of_a_container(monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    monkeypatch.setattr(spill, "_CGROUPS", tmp_path)
    assert free_memory() == 2000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory_budget() == 125
    (tmp_path / "memory.current").write_text("4000\n")
    assert free_memory() == 0
    assert free_room() > 0  # the disk is left
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory() > 2**20


def test_free_memory_where_the_system_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(spill, "Path", lambda name: tmp_path / "missing")
    monkeypatch.setattr(spill, "_groups", list)
    monkeypatch.delattr(os, "sysconf")
    assert free_memory() == 4 * 2**30
