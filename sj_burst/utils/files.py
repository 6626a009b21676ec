"""Reading and writing files that are whole or not there."""

import hashlib
import os
import platform
import re
import secrets
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["digest", "read_whole", "write_atomically"]


def digest(value: Any) -> str:
    """SHA-256 of plain data: of types, names, shapes and every byte of its tensors.

    Example:
        >>> digest({"w": torch.zeros(2)}) == digest({"w": torch.zeros(2)})
        True
        >>> digest({"w": torch.zeros(2)}) == digest({"w": torch.tensor([0.0, -0.0])})
        False
    """
    found = hashlib.sha256()
    for part in _parts(value):
        found.update(f"{len(part)}:".encode())
        found.update(part)
    return found.hexdigest()


def _parts(value: Any) -> Iterator[Any]:
    """The bytes that make up a value; two values that differ have different ones."""
    if isinstance(value, Tensor):
        yield f"tensor {value.dtype} {list(value.shape)}".encode()
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    elif isinstance(value, Mapping | list | tuple):
        kind = "mapping" if isinstance(value, Mapping) else type(value).__name__
        yield f"{kind} {len(value)}".encode()
        for item in value.items() if isinstance(value, Mapping) else value:
            yield from _parts(item)
    else:
        yield f"{type(value).__name__} {value!r}".encode()


def write_atomically(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """``torch.save`` of plain data and its digest to a file beside ``path`` that then takes its place.

    A file that was there keeps its permissions. The file beside it, ``.NAME.HOST-PID-TOKEN.tmp``, stays
    only if the process is killed; the next one that writes to ``path`` on the same machine removes it.

    Raises:
        FileNotFoundError: if there is no such folder.
        IsADirectoryError: if ``path`` is one.
        ValueError: if ``path`` is a device or the like.
        OSError: if the file cannot be written, on a full disk say.
    """
    path = Path(os.path.realpath(path))  # a link goes on pointing to the file
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no ordinary file; give the name of one")
    _remove_stale(path)
    temporary = path.with_name(f".{_short(path.name)}.{_HOST}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with _clear_errors(path):
            _write({**content, "digest": digest(content)}, temporary, mode_of=path)
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


_HOST = f"{zlib.crc32(platform.node().encode()):08x}"  # process numbers are those of one machine


def _short(name: str) -> str:
    """A name to which more may be added: file systems take 255 bytes."""
    return name if len(os.fsencode(name)) <= 200 else f"{zlib.crc32(os.fsencode(name)):08x}"


def _remove_stale(path: Path) -> None:
    """Remove what processes that were killed left beside ``path``."""
    pattern = re.compile(rf"\.{re.escape(_short(path.name))}\.{_HOST}-(\d+)-[0-9a-f]+\.tmp")
    for beside in path.parent.iterdir():
        match = pattern.fullmatch(beside.name)
        if match and not _runs(int(match[1])):
            with suppress(OSError):
                beside.unlink()


def _runs(process: int) -> bool:
    """Whether there is a process of this number, as far as one can tell."""
    if os.name != "posix":  # signal 0 is a real one elsewhere
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    """Say why a file cannot be written: torch hides a full disk behind an error of its own."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause is None:
            raise
        raise OSError(
            cause.errno,
            f"{path} cannot be written ({cause.strerror or cause}); free some space or give another "
            "path. What was there is as it was",
        ) from error


def _write(content: dict[str, Any], temporary: Path, mode_of: Path) -> None:
    checksums = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(True)  # read_whole compares them
        with open(temporary, "xb") as file:
            if mode_of.exists():
                os.chmod(temporary, stat.S_IMODE(mode_of.stat().st_mode))
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    finally:
        torch.serialization.set_crc32_options(checksums)


def read_whole(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what :func:`write_atomically` wrote, with ``weights_only=True``, to the last bit.

    Checksums cover the parts of the file, the digest what torch made of them: a bit of the archive's
    directory decides whether torch reads a part at all.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, is another's, or a bit of it has changed.
    """
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()  # torch.load does not look
        content = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a checkpoint, or is damaged: {error}") from error
    if damaged is not None:
        raise ValueError(f"{path} is damaged, in its part {damaged!r}; save the network again")
    if not isinstance(content, dict) or "digest" not in content:
        raise ValueError(f"{path} was not written by this version of sj_burst; give one of its files")
    expected = content.pop("digest")
    if digest(content) != expected:
        raise ValueError(f"{path} is damaged: its contents are not what was saved; save them again")
    return content
