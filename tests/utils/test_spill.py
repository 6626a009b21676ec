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
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.parametrize("budget", [0, 2**20])
def test_round_trip(folder, kind, budget):
    tensor = TENSORS[kind]
    with Spill(budget) as kept:
        back = kept.keep(tensor).get()
        assert bool(list(folder.iterdir())) == bool(kept.on_disk)
    assert back.dtype == tensor.dtype
    assert torch.equal(back, tensor)
    if kind in ("contiguous", "channels last", "transposed"):
        assert back.stride() == tensor.stride()
    assert not list(folder.iterdir())


def test_accounts(folder):
    with Spill(100) as kept:
        first, second, third = (kept.keep(torch.zeros(15)) for _ in range(3))
        assert (kept.in_memory, kept.on_disk) == (60, 120)
        first.free()
        assert (kept.in_memory, kept.on_disk) == (0, 120)
        kept.keep(torch.zeros(25))  # exactly the budget
        second.free()
        third.free()
        assert (kept.in_memory, kept.on_disk) == (100, 0)
        assert not list(next(folder.iterdir()).iterdir())


def test_a_full_disk_names_the_remedy(folder, monkeypatch):
    def write(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", write)
    with (
        Spill(0) as kept,
        pytest.raises(OSError, match=r"set TMPDIR .* fewer") as error,
    ):
        kept.keep(torch.zeros(8))
    assert error.value.errno == errno.ENOSPC
    assert not list(folder.iterdir())


def test_free_memory_of_a_container(monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    monkeypatch.setattr(spill, "_CGROUPS", tmp_path)
    assert free_memory() == 2000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory_budget() == 250
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
