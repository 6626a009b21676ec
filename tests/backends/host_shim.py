"""Runs the CUDA kernels on the CPU: compiles the very sources with a host compiler."""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from sj_burst.backends.cuda.launch import kernel_source
from sj_burst.backends.cuda.operators import MAX_COUNTED_STEPS

COMPILER = shutil.which("g++")
BLOCKS = 3  # fewer threads than neurons, so that the kernels have to loop


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="kernels")


@functools.cache
def library(kernel: str, macros: tuple[tuple[str, int], ...]) -> ctypes.CDLL:
    folder = Path(_folder().name)
    stem = "-".join([kernel, *(f"{name}{value}" for name, value in macros)])
    source = (Path(__file__).parent / "host_shim.h").read_text() + kernel_source(kernel)
    if dict(macros).get("COUNT"):
        source += f"\nPartial block_tally[{2 * MAX_COUNTED_STEPS}];\n"
    (folder / f"{stem}.cpp").write_text(source)
    defined = [f"-D{name}={value}" for name, value in macros]
    options = [
        "-std=c++17",
        "-shared",
        "-fPIC",
        "-w",
        "-O0",
        "-ffp-contract=off",
        "-fno-strict-aliasing",
    ]
    command = [str(COMPILER), *options, *defined, f"{stem}.cpp", "-o", f"{stem}.so"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return ctypes.CDLL(str(folder / f"{stem}.so"))


def _argument(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if value is None:
        return ctypes.c_void_p(0)
    return ctypes.c_double(value) if isinstance(value, float) else ctypes.c_longlong(value)


def launch_kernel(kernel, macros, work, args, device, shared=0) -> None:
    """Stands for :func:`sj_burst.backends.cuda.launch.launch_kernel`."""
    module = library(kernel, tuple(sorted(macros.items())))
    arguments = [_argument(arg) for arg in args]
    threads = 1 if macros.get("COUNT") else 2
    for block in range(BLOCKS):
        for thread in range(threads):
            numbers = (block, thread, BLOCKS, threads)
            module.set_thread(*(ctypes.c_longlong(n) for n in numbers))
            getattr(module, kernel)(*arguments)
