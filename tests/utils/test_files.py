import errno
import os
import stat
import subprocess
import sys
import zipfile

import pytest
import torch

from sj_burst.utils.files import digest, read_whole, write_atomically

CONTENT = {"w": torch.tensor([1.5, -2.0]), "names": ["a", "b"], "rate": 0.1, "empty": torch.zeros(0)}


def same(one, other):
    """Equality to the last bit, written without the digest."""
    if isinstance(one, torch.Tensor):
        return (
            isinstance(other, torch.Tensor)
            and one.dtype == other.dtype
            and one.shape == other.shape
            and one.numpy().tobytes() == other.numpy().tobytes()
        )
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


def headers(path):
    """Offsets of all bytes of the archive that are not the contents of a part."""
    data = path.read_bytes()
    inside = set()
    with zipfile.ZipFile(path) as file:
        for info in file.infolist():
            name, extra = (data[info.header_offset + at] for at in (26, 28))
            extra += 256 * data[info.header_offset + 29]
            begin = info.header_offset + 30 + name + extra
            inside.update(range(begin, begin + info.compress_size))
    return [offset for offset in range(len(data)) if offset not in inside]


def is_padding(data, offset):
    return data[offset : offset + 4] == b"ZZZZ" or data[offset - 3 : offset + 1] == b"ZZZZ"


@pytest.mark.slow
def test_any_flipped_bit_outside_the_contents_is_noticed_or_harmless(tmp_path):
    path = tmp_path / "file.pt"
    content = {"w": torch.tensor([1.5, -2.0]), "names": ["a"]}  # small: each bit is a file to read
    write_atomically(content, path)
    data = path.read_bytes()
    offsets = [offset for offset in headers(path) if not is_padding(data, offset)]
    assert len(offsets) > 500
    refused = 0
    for offset in offsets:
        for bit in range(8):
            changed = bytearray(data)
            changed[offset] ^= 1 << bit
            path.write_bytes(changed)
            try:
                got = read_whole(path)
            except ValueError as error:
                assert str(path) in str(error)
                refused += 1
            else:
                assert same(content, got), (offset, bit)
    assert refused > len(offsets)


def test_every_part_that_is_marked_as_a_folder_is_noticed(tmp_path):
    path = tmp_path / "file.pt"
    write_atomically(CONTENT, path)
    data = path.read_bytes()
    at, entries = data.index(b"PK\x01\x02"), 0
    while at >= 0:
        changed = bytearray(data)
        changed[at + 38] ^= 0x10  # the external attributes of an entry of the central directory
        path.write_bytes(changed)
        try:
            assert same(CONTENT, read_whole(path))  # the part is one that nothing reads
        except ValueError:
            entries += 1
        at = data.find(b"PK\x01\x02", at + 1)
    assert entries >= 2


@pytest.mark.parametrize(
    "other",
    [
        {"w": torch.tensor([1.5, 2.0])},
        {"w": torch.tensor([1.5, -2.0], dtype=torch.float64)},
        {"w": torch.tensor([[1.5, -2.0]])},
        {"v": torch.tensor([1.5, -2.0])},
        {"w": [1.5, -2.0]},
        {"w": (1.5, -2.0)},
        {"w": [1.5, [-2.0]]},
        {"w": ["1.5, -2.0"]},
        {"w": [True]},
        {"w": [1]},
        {"w": [1.0]},
        {"w": {}},
        {"w": []},
    ],
)
def test_digests_tell_contents_apart(other):
    assert digest(other) != digest({"w": torch.tensor([1.5, -2.0])})
    assert digest(other) == digest(other)
    others = [[1.5, -2.0], (1.5, -2.0), [1.5, [-2.0]], ["1.5, -2.0"], [True], [1], [1.0], {}, []]
    assert len({digest(value) for value in others}) == len(others)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8, torch.bool])
def test_all_types_come_back(tmp_path, dtype):
    content = {"scalar": torch.ones((), dtype=dtype), "slice": torch.ones(4, 4).to(dtype)[:, ::2]}
    write_atomically(content, tmp_path / "file.pt")
    got = read_whole(tmp_path / "file.pt")
    assert all(torch.equal(got[name], content[name]) for name in content)


def test_the_mode_of_a_file_stays(tmp_path):
    path = tmp_path / "file.pt"
    write_atomically(CONTENT, path)
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    for mode in (0o600, 0o640, 0o444):
        path.chmod(mode)
        write_atomically(CONTENT, path)
        assert stat.S_IMODE(path.stat().st_mode) == mode


KILLED = """
import os, signal, sys, torch
from sj_burst.utils.files import write_atomically
def killed(content, file):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = killed
write_atomically({}, sys.argv[1])
"""


def test_what_a_killed_process_left_goes_at_the_next_save(tmp_path):
    path = tmp_path / "file[1].pt"
    for _ in range(2):
        result = subprocess.run([sys.executable, "-c", KILLED, str(path)])
        assert result.returncode == -9
        (left,) = tmp_path.iterdir()  # the second process has removed what the first one left
        assert left.name.startswith(".file[1].pt.")
        assert left.name.endswith(".tmp")
    # A process that runs, another file, another machine.
    number = int(left.name.split("-")[-2])
    others = [left.name.replace(f"-{number}-", f"-{os.getpid()}-")]
    others += [left.name.replace("file[1]", "file2"), f".{path.name}.00000000-{number}-abcd.tmp"]
    for name in others:
        (tmp_path / name).touch()
    write_atomically(CONTENT, path)
    assert {p.name for p in tmp_path.iterdir()} == {path.name, *others}


FULL = """
import resource, signal, sys, torch
from sj_burst.utils.files import write_atomically
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    write_atomically({"w": torch.rand(10000), "v": torch.rand(10000)}, sys.argv[1])
except OSError as error:
    print(error.errno, error)
"""


@pytest.mark.parametrize("limit", [10, 50_000, 80_500])
def test_a_full_disk_is_named(tmp_path, limit):
    path = tmp_path / "file.pt"
    write_atomically(CONTENT, path)
    before = path.read_bytes()
    command = [sys.executable, "-c", FULL, str(path), str(limit)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{errno.EFBIG} ")
    assert f"{path} cannot be written (File too large); free some space" in result.stdout
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["file.pt"]


def test_other_errors_of_torch_stay(tmp_path, monkeypatch):
    def broken(content, file):
        raise RuntimeError("of torch")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(RuntimeError, match="of torch"):
        write_atomically(CONTENT, tmp_path / "file.pt")
    assert not list(tmp_path.iterdir())


def test_foreign_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_whole(tmp_path / "none.pt")
    for content in ({"a": 1}, [1], torch.ones(1)):
        torch.save(content, tmp_path / "foreign.pt")
        with pytest.raises(ValueError, match=r"foreign.pt was not written by this version of sj_burst"):
            read_whole(tmp_path / "foreign.pt")


def test_names_as_long_as_they_may_be(tmp_path):
    path = tmp_path / ("x" * 252 + ".pt")
    write_atomically({"a": 1}, path)
    assert read_whole(path)["a"] == 1 and [p.name for p in tmp_path.iterdir()] == [path.name]
