"""Work side by side, on the threads that torch has already.

Between its operations torch's threads wait busily. Threads of another pool would have to share their
cores with them, and a loop on two cores would take as long as on one. Where torch comes with GNU's
OpenMP, as its packages for Linux do, its own team does the work; elsewhere a pool of Python's.
"""

import ctypes
import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

__all__ = ["side_by_side", "threads_here"]

_BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True  # a forked process does not inherit the threads, and cannot start others


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def threads_here() -> int:
    """How many threads may work side by side: as many as torch's operations use.

    Example:
        >>> threads_here() >= 1
        True
    """
    return 1 if _forked else torch.get_num_threads()


def side_by_side(work: Callable[[int], object], parts: int) -> None:
    """Call ``work(0)``, …, ``work(parts − 1)``, which should let go of the interpreter, side by side.

    Args:
        work: does one part.
        parts: how many there are.

    Raises:
        Exception: the first one that ``work`` raised.

    Example:
        >>> found = [0] * 3
        >>> side_by_side(lambda part: found.__setitem__(part, part + 1), 3)
        >>> found
        [1, 2, 3]
    """
    threads = min(parts, threads_here())
    if threads == 1:
        for part in range(parts):
            work(part)
        return
    claims, errors = itertools.count(), []

    def claim(_: object) -> None:
        try:
            while (part := next(claims)) < parts:
                work(part)
        except BaseException as error:  # a C function called this
            errors.append(error)

    if (team := _team()) is not None:
        # All of torch's threads: a smaller team would end the others.
        team.GOMP_parallel(_BODY(claim), None, threads_here(), 0)
    else:
        list(_pool(threads).map(claim, range(threads)))
    if errors:
        raise errors[0]


@functools.cache
def _team() -> Any:
    """GNU's OpenMP library that torch has loaded; ``None`` if it uses another."""
    for file in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        try:
            library = ctypes.CDLL(str(file), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
            library.GOMP_parallel.argtypes = [_BODY, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            library.GOMP_parallel.restype = None
        except (OSError, AttributeError):
            continue
        return library
    return None


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)
