"""Tensors that are kept in memory up to a budget, and in temporary files beyond it."""

import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .layout import is_dense

__all__ = ["Kept", "Spill", "free_memory", "free_room", "memory_budget"]

_CGROUPS = Path("/sys/fs/cgroup")
_MEMORY_FILES = (  # limit and use of a control group, versions 2 and 1
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
_UNKNOWN = 4 * 2**30  # where the system does not tell
# What waits has memory of its own: among short-lived tensors it would leave holes in the heap. It is
# used again: new memory the system gives page by page, which is slow.
_ARENA = 2**26  # bytes of the first; each of the next as many as all before
_ALIGNED = 64
_FILE = 2**29  # bytes after which the next file begins: one gives its room back when all of it is freed


def free_memory() -> int:
    """Bytes that this process may still take: of the machine, and of its control group (a container).

    Example:
        >>> free_memory() > 0
        True
    """
    return max(0, int(min(_free_of_machine(), _free_of_group())))


def memory_budget() -> int:
    """Bytes for tensors that wait: an eighth of what is free, shared by the processes of ``torchrun``.

    The rest is for batches at work, and for the system's cache of what was spilled.

    Example:
        >>> 0 < memory_budget() <= free_memory()
        True
    """
    return free_memory() // (8 * _processes())


def free_room() -> int:
    """Bytes that a :class:`Spill` may keep, in memory and in its folder; of the disk a tenth stays free.

    Example:
        >>> free_room() > memory_budget()
        True
    """
    disk = shutil.disk_usage(tempfile.gettempdir()).free
    return memory_budget() + int(0.9 * disk) // _processes()


def _processes() -> int:
    """Processes of ``torchrun`` on this machine."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _free_of_machine() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # no such name on this system
        return _UNKNOWN


def _free_of_group() -> float:
    free = math.inf
    for folder in _groups():
        for limit, used in _MEMORY_FILES:
            try:
                free = min(free, int((folder / limit).read_text()) - int((folder / used).read_text()))
            except (OSError, ValueError):  # no such file, or the limit "max"
                continue
    return free


def _groups() -> list[Path]:
    """The control group of this process as a container sees it, and as its host does."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    own = [line.removeprefix("0::/") for line in lines if line.startswith("0::/")]
    return [_CGROUPS, *(_CGROUPS / name for name in own if name)]


class Spill:
    """Keeps tensors: in memory while they fit into a budget, in temporary files beyond it.

    The files have no name, so that nothing is left of them, whatever ends the process; ``TMPDIR`` says
    on which disk they are. What comes back is equal bit for bit, and has the layout that it had.

    Args:
        budget: bytes of memory.

    Attributes:
        in_memory: bytes kept in memory now.
        on_disk: bytes kept in files now.

    Example:
        >>> with Spill(budget=8) as spill:
        ...     first, second = spill.keep(torch.ones(2)), spill.keep(torch.zeros(2))
        ...     (spill.in_memory, spill.on_disk), second.get()
        ((8, 8), tensor([0., 0.]))
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.in_memory = self.on_disk = 0
        self._arenas: list[_Arena] = []
        self._files: list[_File] = []  # that are in use

    def __enter__(self) -> "Spill":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.stream.close()

    def keep(self, tensor: Tensor) -> "Kept":
        """Keep a copy of a tensor of the CPU until its ``free()`` is called.

        Raises:
            OSError: if there is no room on the disk either.
        """
        tensor = tensor.detach() if is_dense(tensor) else tensor.detach().contiguous()
        size = tensor.numel() * tensor.element_size()
        place = self._place(size)
        if place is not None:
            self.in_memory += size
            return _InMemory(self, size, tensor, *place)
        with _told(size):
            kept = _OnDisk(self, size, tensor, self._file())
        self.on_disk += size
        return kept

    def _place(self, size: int) -> "tuple[_Arena, int] | None":
        """Room in memory, if there is enough in one piece."""
        if self.in_memory + size > self.budget:
            return None
        for arena in self._arenas:
            start = arena.take(size)
            if start is not None:
                return arena, start
        taken = sum(len(arena.memory) for arena in self._arenas)
        if size > self.budget - taken:
            return None
        self._arenas.append(_Arena(min(self.budget - taken, max(size, taken, _ARENA))))
        return self._place(size)

    def _file(self) -> "_File":
        """The newest file, while it is not full."""
        if not self._files or self._files[-1].end >= _FILE:
            self._files.append(_File())
        return self._files[-1]

    def _release(self, file: "_File") -> None:
        """A file that holds nothing gives its room back."""
        file.tensors -= 1
        if file.tensors == 0:
            file.stream.close()
            self._files.remove(file)


class _Arena:
    """Memory of which pieces are taken and given back."""

    def __init__(self, size: int) -> None:
        self.memory = torch.empty(_aligned(size), dtype=torch.uint8)
        self._free = [(0, len(self.memory))]  # from where to where

    def take(self, size: int) -> int | None:
        """Where the first piece of that size begins; ``None`` if there is none."""
        for i, (start, stop) in enumerate(self._free):
            if size <= stop - start:
                self._free[i] = start + _aligned(size), stop
                return start
        return None

    def give(self, start: int, size: int) -> None:
        """A piece that was taken is free again, together with what is free on either side."""
        free = sorted([*self._free, (start, start + _aligned(size))])
        self._free = free[:1]
        for begin, end in free[1:]:
            first, last = self._free[-1]
            if begin == last:
                self._free[-1] = first, end
            else:
                self._free.append((begin, end))


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


class _File:
    def __init__(self) -> None:
        self.stream: Any = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (the Spill closes it)
        self.end = 0
        self.tensors = 0


@contextmanager
def _told(size: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        raise OSError(
            error.errno,
            f"{size / 2**20:.0f} MiB of activations do not fit into memory, nor into {folder} "
            f"({free / 2**20:.0f} MiB free): {error.strerror}; set TMPDIR to a folder with more room, "
            "or ask for fewer calibration_images",
        ) from error


class Kept:
    """A tensor in the keeping of a :class:`Spill`."""

    def __init__(self, spill: Spill, size: int) -> None:
        self._spill, self._size = spill, size

    def get(self) -> Tensor:
        """The tensor; not to be written to, nor used once it was let go."""
        raise NotImplementedError

    def free(self) -> None:
        """Let it go."""
        raise NotImplementedError


class _InMemory(Kept):
    def __init__(self, spill: Spill, size: int, tensor: Tensor, arena: _Arena, start: int) -> None:
        super().__init__(spill, size)
        piece = arena.memory[start : start + size].view(tensor.dtype)
        first = start // tensor.element_size()
        self._tensor: Tensor | None = piece.as_strided(tensor.shape, tensor.stride(), first).copy_(
            tensor
        )
        self._arena, self._start = arena, start

    def get(self) -> Tensor:
        assert self._tensor is not None, "it was let go"
        return self._tensor

    def free(self) -> None:
        self._tensor = None
        self._spill.in_memory -= self._size
        self._arena.give(self._start, self._size)


class _OnDisk(Kept):
    """Read and written as a stream: mapped pages would count as memory of this process."""

    def __init__(self, spill: Spill, size: int, tensor: Tensor, file: _File) -> None:
        super().__init__(spill, size)
        self._file, self._start, self._dtype = file, file.end, tensor.dtype
        self._shape, self._strides = tensor.shape, tensor.stride()
        file.stream.seek(self._start)
        view = _bytes(tensor).numpy().data
        while view:
            view = view[file.stream.write(view) :]
        file.end += size
        file.tensors += 1

    def get(self) -> Tensor:
        tensor = torch.empty_strided(self._shape, self._strides, dtype=self._dtype)
        view = _bytes(tensor).numpy().data
        self._file.stream.seek(self._start)
        while view:
            read = self._file.stream.readinto(view)
            if not read:
                raise OSError("a temporary file was cut short while it was in use")
            view = view[read:]
        return tensor

    def free(self) -> None:
        self._spill.on_disk -= self._size
        self._spill._release(self._file)


def _bytes(tensor: Tensor) -> Tensor:
    """The elements of a dense tensor in memory order."""
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)
