"""Compiling a kernel with NVRTC and launching it on torch's device and stream, by CuPy.

The sources lie beside this file: ``common.cu``, and one file of the same name for each kernel.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

__all__ = ["Macros", "compile_options", "kernel_source", "launch_kernel"]

THREADS = 256
BLOCKS_PER_PROCESSOR = 32

Macros = dict[str, int]


@functools.cache
def kernel_source(kernel: str) -> str:
    """CUDA source of a kernel: ``burst_forward``, ``burst_backward`` or ``li_pool``.

    Example:
        >>> " li_pool(" in kernel_source("li_pool")
        True
    """
    folder = Path(__file__).parent
    return "\n".join((folder / f"{name}.cu").read_text(encoding="utf-8") for name in ("common", kernel))


def compile_options(macros: Macros, architecture: str) -> tuple[str, ...]:
    """NVRTC options of one kernel variant; IEEE arithmetic, so that results equal torch's.

    Args:
        macros: the macros that the sources name, ``{"WIDTH": 4, ...}``.
        architecture: compute capability without the dot, ``"90"``.

    Example:
        >>> compile_options({"WIDTH": 4}, "90")[-2:]
        ('-arch=sm_90', '-DWIDTH=4')
    """
    exact = ("-fmad=false", "-ftz=false", "-prec-div=true")
    defined = (f"-D{name}={value}" for name, value in sorted(macros.items()))
    return ("-std=c++17", *exact, f"-arch=sm_{architecture}", *defined)


@functools.cache
def _compiled(kernel: str, macros: tuple[tuple[str, int], ...], device: int) -> Any:
    """A kernel variant as a function that is loaded on a device."""
    # Not cupy.RawKernel: it appends -ftz=true, and subnormal numbers would differ from torch's.
    import cupy
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(kernel_source(kernel), f"{kernel}.cu", (), ())
    try:
        architecture = cupy.cuda.Device(device).compute_capability
        nvrtc.compileProgram(program, compile_options(dict(macros), architecture))
        module = cupy.cuda.function.Module()
        module.load(nvrtc.getCUBIN(program))
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(program)
        raise RuntimeError(f"{kernel} does not compile with {dict(macros)}:\n{log}") from error
    finally:
        nvrtc.destroyProgram(program)
    return module.get_function(kernel)


def launch_kernel(
    kernel: str, macros: Macros, work: int, args: Sequence[Any], device: torch.device, shared: int = 0
) -> None:
    """Run a kernel on torch's current stream of ``device``.

    Args:
        kernel: name of the kernel.
        macros: its variant.
        work: threads that have something to do; the kernels loop if there are fewer.
        args: tensors, ``None``, integers and floats, as the kernel takes them.
        device: a CUDA device.
        shared: bytes of shared memory.
    """
    if work == 0:
        return
    assert device.index is not None
    with torch.cuda.device(device):
        function = _compiled(kernel, tuple(sorted(macros.items())), device.index)
        processors = torch.cuda.get_device_properties(device).multi_processor_count
        blocks = min(-(-work // THREADS), BLOCKS_PER_PROCESSOR * processors)
        # Of a stream CuPy reads the pointer only; its ExternalStream is deprecated since CuPy 14.
        stream = SimpleNamespace(ptr=torch.cuda.current_stream(device).cuda_stream)
        function((blocks,), (THREADS,), [_plain(arg) for arg in args], shared, stream)


def _plain(arg: Any) -> int | float:
    """A kernel argument as a pointer or number of eight bytes."""
    if isinstance(arg, Tensor):
        return arg.data_ptr()
    return 0 if arg is None else arg
