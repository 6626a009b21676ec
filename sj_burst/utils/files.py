"""Reading and writing files that are whole or not there."""

import os
import secrets
import zipfile
from pathlib import Path
from typing import Any

import torch

__all__ = ["read_whole", "write_atomically"]


def write_atomically(content: Any, path: str | os.PathLike[str]) -> None:
    """``torch.save`` to a file beside ``path`` that then takes its place.

    Raises:
        FileNotFoundError: if there is no such folder.
        IsADirectoryError: if ``path`` is one.
        ValueError: if ``path`` is a device or the like.
    """
    path = Path(os.path.realpath(path))  # a link goes on pointing to the file
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no ordinary file; give the name of one")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    checksums = torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(True)  # read_whole compares them
        with open(temporary, "xb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        torch.serialization.set_crc32_options(checksums)


def read_whole(path: str | os.PathLike[str]) -> Any:
    """``torch.load`` of plain data, whose checksums are compared first.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, or a bit of it has changed.
    """
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()  # torch.load does not look
        if damaged is None:
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a checkpoint, or is damaged: {error}") from error
    raise ValueError(f"{path} is damaged, in its part {damaged!r}; save the network again")
