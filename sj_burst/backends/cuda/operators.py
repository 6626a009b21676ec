"""The CuPy backend: multi-step CUDA kernels behind ``torch.library`` operators.

The kernels (``*.cu`` beside this file) take one thread through all time steps with the state in
registers, so that memory sees one read of the input and one write of the output. Storage may be
float32, float16, bfloat16 or float64; state is float32 (float64 for float64 storage), also between
two calls. CuPy compiles and launches; tensors, streams and memory are torch's.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Sequence  # noqa: UP035 -- the one that torch 2.6 finds in a signature

import torch
from spikingjelly.activation_based import surrogate as sj_surrogate
from torch import Tensor, nn

from ...functional import needs_grad
from ..layout import (
    check_pool_input,
    flat_parameters,
    flat_state,
    image_order,
    memory_order,
    pool_geometry,
    restore,
    state_dtype,
)

__all__ = [
    "burst_li_pool_multi_step",
    "burst_multi_step",
    "compile_options",
    "kernel_source",
    "li_pool_multi_step",
    "state_dtype",
    "surrogate_code",
]

STORAGE = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}
SURROGATES: tuple[type[nn.Module], ...] = (sj_surrogate.Sigmoid, sj_surrogate.ATan)

THREADS = 256
BLOCKS_PER_PROCESSOR = 32
WIDE_FROM = 1 << 17  # packs of neurons below which a thread takes one neuron, to have more threads
MAX_COUNTED_STEPS = 4096  # spike counters of a block have to fit into shared memory
MAX_COUNTED_SPIKES = 1024  # Γ for which they cannot overflow

Macros = dict[str, int]
Launcher = Callable[[str, Macros, int, Sequence[Any], torch.device, int], None]


def surrogate_code(surrogate: Callable[[Tensor], Tensor] | None) -> int | None:
    """Number of the surrogate's gradient kernel; ``None`` if it has none and torch has to do it.

    Example:
        >>> surrogate_code(sj_surrogate.ATan()), surrogate_code(torch.sigmoid)
        (1, None)
    """
    if type(surrogate) not in SURROGATES or not surrogate.spiking:  # type: ignore[union-attr]
        return None
    return SURROGATES.index(type(surrogate))


# ---------------------------------------------------------------------------------------------
# Compiling and launching


@functools.cache
def kernel_source(kernel: str) -> str:
    """CUDA source of a kernel: ``burst_forward``, ``burst_backward`` or ``li_pool_forward``.

    Example:
        >>> "burst_forward" in kernel_source("burst_forward")
        True
    """
    name = "li_pool" if kernel.startswith("li_pool") else "burst"
    folder = Path(__file__).parent
    return "".join((folder / f"{part}.cu").read_text(encoding="utf-8") for part in ("common", name))


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
def _function(kernel: str, macros: tuple[tuple[str, int], ...], device: int) -> Any:
    """Compile a kernel and load it on a device."""
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


def launch(
    kernel: str, macros: Macros, work: int, args: Sequence[Any], device: torch.device, shared: int
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
        function = _function(kernel, tuple(sorted(macros.items())), device.index)
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


# ---------------------------------------------------------------------------------------------
# Operators. They take a step as one flat row of neurons in memory order; a parameter is a flat
# tensor with the number of neighbouring neurons that share each of its values ("inner").


def _parameter(values: Tensor | None, inner: int) -> tuple[Tensor | None, int, int]:
    return values, inner, 1 if values is None else values.numel()


def _width(z: Tensor) -> int:
    """Neurons per thread: vectors of 16 bytes where alignment and size allow."""
    width = 16 // z.element_size()
    neurons = z.shape[1]
    aligned = z.data_ptr() % 16 == 0 and z.stride(0) % width == 0 and neurons % width == 0
    return width if aligned and neurons // width >= WIDE_FROM else 1


def _state(z: Tensor, wanted: bool = True, steps: int | None = None) -> Tensor:
    """Room for one state value per neuron (and step); empty if not wanted."""
    shape = (z.shape[1],) if steps is None else (steps, z.shape[1])
    return z.new_empty(shape if wanted else (0,), dtype=state_dtype(z.dtype))


def _countable(steps: int, max_spikes: float) -> bool:
    return steps <= MAX_COUNTED_STEPS and max_spikes <= MAX_COUNTED_SPIKES


def _counts(z: Tensor, count: bool) -> Tensor:
    return z.new_zeros(z.shape[0] if count else 0, dtype=torch.int64)


@torch.library.custom_op("sj_burst::burst", mutates_args=())
def _burst(
    z: Tensor,
    v: Tensor,
    threshold: Tensor,
    shift: Tensor | None,
    sent: Tensor | None,
    inner: Sequence[int],
    max_spikes: float,
    count: bool,
    surrogate: int,
    alpha: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Burst neurons ``z [T, M]`` -> y, v, sent, spikes per step, membrane before the spikes."""
    steps, neurons = z.shape
    save = surrogate >= 0
    y, v_out = z.new_empty(z.shape), _state(z)
    sent_out, counts = _state(z, sent is not None), _counts(z, count)
    membrane = _state(z, save, steps)
    width = _width(z)
    macros = _macros(z, width, shift, sent, count) | {"SAVE": int(save)}
    args: list[Any] = [z, z.stride(0), steps, neurons, max_spikes]
    args += [*_parameter(v, inner[0]), *_parameter(threshold, inner[1]), *_parameter(shift, inner[2])]
    args += [sent, y, v_out, sent_out, counts, membrane]
    launch("burst_forward", macros, neurons // width, args, z.device, 4 * len(counts))
    return y, v_out, sent_out, counts, membrane


def _macros(z: Tensor, width: int, shift: Tensor | None, sent: Tensor | None, count: bool) -> Macros:
    options = {"SHIFT": shift is not None, "SIGNED": sent is not None, "COUNT": count}
    return {"STORAGE": STORAGE[z.dtype], "WIDTH": width} | {k: int(v) for k, v in options.items()}


@_burst.register_fake
def _(z, v, threshold, shift, sent, inner, max_spikes, count, surrogate, alpha):  # type: ignore[no-untyped-def]
    membrane = _state(z, surrogate >= 0, z.shape[0])
    return z.new_empty(z.shape), _state(z), _state(z, sent is not None), _counts(z, count), membrane


@torch.library.custom_op("sj_burst::burst_backward", mutates_args=())
def _burst_backward(
    grad_y: Tensor,
    grad_v: Tensor,
    grad_sent: Tensor,
    membrane: Tensor,
    y: Tensor,
    sent: Tensor,
    threshold: Tensor,
    inner: int,
    max_spikes: float,
    surrogate: int,
    alpha: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients with respect to z, v, sent and (per neuron) the threshold."""
    steps, neurons = y.shape
    signed = len(sent) > 0
    grad_z, grad_v_init = y.new_empty(y.shape), _state(y)
    grad_sent_init, grad_threshold = _state(y, signed), _state(y)
    macros = _macros(y, 1, None, sent if signed else None, False) | {"SURROGATE": surrogate}
    args: list[Any] = [grad_y, grad_v, grad_sent, membrane, y, sent, *_parameter(threshold, inner)]
    args += [steps, neurons, max_spikes, alpha, grad_z, grad_v_init, grad_sent_init, grad_threshold]
    launch("burst_backward", macros, neurons, args, y.device, 0)
    return grad_z, grad_v_init, grad_sent_init, grad_threshold


@_burst_backward.register_fake
def _(grad_y, grad_v, grad_sent, membrane, y, sent, *rest):  # type: ignore[no-untyped-def]
    return y.new_empty(y.shape), _state(y), _state(y, len(sent) > 0), _state(y)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    threshold, inner, max_spikes, surrogate, alpha = (inputs[i] for i in (2, 5, 6, 8, 9))
    y, _, sent, _, membrane = output
    ctx.save_for_backward(membrane, y, sent, threshold)
    ctx.options = (inner[1], max_spikes, surrogate, alpha)


def _differentiate(ctx: Any, grad_y: Tensor, grad_v: Tensor, grad_sent: Tensor, *_: Any) -> Any:
    membrane, y, sent, threshold = ctx.saved_tensors
    grads = _burst_backward(
        grad_y.contiguous(),
        grad_v.contiguous(),
        grad_sent.contiguous(),
        membrane,
        y,
        sent,
        threshold,
        *ctx.options,
    )
    grad_z, grad_v, grad_sent, grad_threshold = grads
    _, needs_v, needs_threshold, needs_shift, needs_sent = ctx.needs_input_grad[:5]
    return (
        grad_z,
        grad_v if needs_v else None,
        grad_threshold if needs_threshold else None,
        grad_z.to(grad_v.dtype).sum(0) if needs_shift else None,
        grad_sent if needs_sent else None,
        *[None] * 5,
    )


torch.library.register_autograd("sj_burst::burst", _differentiate, setup_context=_remember)


@torch.library.custom_op("sj_burst::li_pool", mutates_args=())
def _li_pool(
    x: Tensor,
    total: Tensor,
    pooled: Tensor,
    sizes: Sequence[int],
    geometry: Sequence[int],
    v: Tensor | None,
    threshold: Tensor | None,
    shift: Tensor | None,
    sent: Tensor | None,
    inner: Sequence[int],
    max_spikes: float,
    count: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Pooling ``x [T, M]`` -> out, total, pooled, and v, sent, spikes per step of fused neurons.

    ``sizes`` are outer, inner, height, width, out_height, out_width; ``geometry`` kernel, stride,
    padding and dilation, each in two dimensions.
    """
    kernel, (steps, _) = geometry[:2], x.shape
    out = x.new_empty(steps, pooled.numel())
    total_out, pooled_out = torch.empty_like(total), torch.empty_like(pooled)
    fused = threshold is not None
    v_out, sent_out, counts = _state(x, fused), _state(x, sent is not None), _counts(x, count)
    macros = _macros(x, 1, shift, sent, count)
    macros |= {"FUSED": int(fused), "KERNEL_H": kernel[0], "KERNEL_W": kernel[1]}
    gaps = _has_gaps(tuple(sizes[2:]), tuple(geometry))
    args: list[Any] = [
        x,
        x.stride(0),
        steps,
        *sizes,
        *geometry[2:],
        int(gaps),
        total,
        pooled,
        max_spikes,
    ]
    args += [*_parameter(v, inner[0]), *_parameter(threshold, inner[1]), *_parameter(shift, inner[2])]
    args += [sent, out, total_out, pooled_out, v_out, sent_out, counts]
    launch("li_pool_forward", macros, pooled.numel(), args, x.device, 4 * len(counts))
    return out, total_out, pooled_out, v_out, sent_out, counts


@_li_pool.register_fake
def _(x, total, pooled, sizes, geometry, v, threshold, shift, sent, inner, max_spikes, count):  # type: ignore[no-untyped-def]
    out = x.new_empty(x.shape[0], pooled.numel())
    states = _state(x, threshold is not None), _state(x, sent is not None), _counts(x, count)
    return out, torch.empty_like(total), torch.empty_like(pooled), *states


@functools.cache
def _has_gaps(sizes: tuple[int, ...], geometry: tuple[int, ...]) -> bool:
    """Whether some input belongs to no window."""
    for size, outs, kernel, stride, padding, dilation in zip(
        sizes[:2], sizes[2:], *(geometry[i : i + 2] for i in (0, 2, 4, 6)), strict=True
    ):
        reached = {o * stride - padding + k * dilation for o in range(outs) for k in range(kernel)}
        if not reached.issuperset(range(size)):
            return True
    return False


# ---------------------------------------------------------------------------------------------
# The functions of functional.py


def burst_multi_step(
    z_seq: Tensor,
    v: Tensor,
    threshold: Tensor,
    max_spikes: float = 1,
    *,
    shift: Tensor | None = None,
    sent: Tensor | None = None,
    surrogate: Callable[[Tensor], Tensor] | None = None,
    count: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """T steps of the burst neuron in one kernel; see :func:`sj_burst.functional.burst_multi_step`.

    Args:
        z_seq: input current ``[T, N, ...]`` on a CUDA device, any layout; a time axis of stride 0
            (an input that is the same at every step) is read once.
        v: membrane potential before the first step.
        threshold: θ; broadcasts to one step.
        max_spikes: Γ.
        shift: constant input current; broadcasts to one step.
        sent: spike count so far, ``None`` for unsigned spikes.
        surrogate: a ``Sigmoid`` or ``ATan`` of SpikingJelly, where a gradient is needed.
        count: whether to count spikes while they are emitted (not where a gradient is needed).

    Returns:
        Outputs in the type of ``z_seq``, membrane potential and spike count in the type of the state,
        and the number of spikes in every step (``[T]``, a burst of n counts n) if asked for.

    Source: as :func:`sj_burst.functional.burst_step`.
    """
    z_seq, order = memory_order(z_seq)
    shape, dtype = v.shape, state_dtype(z_seq.dtype)
    (v_flat, theta, shift_flat), inner = flat_parameters(shape, order, dtype, v, threshold, shift)
    code = surrogate_code(surrogate) if needs_grad(z_seq, v, threshold, shift, sent) else -1
    assert v_flat is not None and theta is not None and code is not None
    count = count and code < 0 and _countable(len(z_seq), max_spikes)  # training does not count
    y, v_out, sent_out, counts, _ = _burst(
        z_seq.flatten(1),
        v_flat,
        theta,
        shift_flat,
        None if sent is None else flat_state(sent, order, dtype),
        inner,
        float(max_spikes),
        count,
        code,
        float(getattr(surrogate, "alpha", 0.0)),
    )
    return (
        restore(y, shape, order),
        restore(v_out, shape, order),
        None if sent is None else restore(sent_out, shape, order),
        counts if count else None,
    )


def li_pool_multi_step(
    x_seq: Tensor, total: Tensor, pooled: Tensor, pool: nn.Module
) -> tuple[Tensor, Tensor, Tensor]:
    """T steps of lateral-inhibition pooling in one kernel; see ``functional.li_pool_multi_step``.

    Args:
        x_seq: weighted spikes ``[T, N, C, H, W]`` or ``[T, N, C, L]`` on a CUDA device.
        total: Σ x before the first step.
        pooled: maxpool(total), or zeros before the first step.
        pool: ``MaxPool2d`` or ``MaxPool1d`` of any geometry.

    Returns:
        Outputs, total and pooled total after the last step.

    Source: as :func:`sj_burst.functional.li_pool_step`.
    """
    out, total, pooled, *_ = _pool(x_seq, total, pooled, pool, None, None, None, None, 1, False)
    return out, total, pooled


def burst_li_pool_multi_step(
    z_seq: Tensor,
    v: Tensor,
    threshold: Tensor,
    max_spikes: float,
    total: Tensor,
    pooled: Tensor,
    pool: nn.Module,
    *,
    shift: Tensor | None = None,
    sent: Tensor | None = None,
    count: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Burst neurons and the pooling behind them in one kernel: the spikes never reach memory.

    Without gradient. Arguments as for :func:`burst_multi_step` and :func:`li_pool_multi_step`.

    Returns:
        Pooled outputs, total, pooled total, membrane potential, spike count, spikes per step.

    Source: as :func:`sj_burst.functional.burst_step` and ``li_pool_step``.
    """
    return _pool(z_seq, total, pooled, pool, v, threshold, shift, sent, max_spikes, count)


def _pool(
    x_seq: Tensor,
    total: Tensor,
    pooled: Tensor,
    pool: nn.Module,
    v: Tensor | None,
    threshold: Tensor | None,
    shift: Tensor | None,
    sent: Tensor | None,
    max_spikes: float,
    count: bool,
) -> tuple[Any, ...]:
    """Lateral-inhibition pooling, of burst neurons' spikes if there is a threshold."""
    check_pool_input(x_seq, pool)
    images = total.dim() == 4
    count = count and _countable(len(x_seq), max_spikes)
    if not images:  # rows of pixels are images of height 1
        x_seq, total, pooled = (t.unsqueeze(-2) for t in (x_seq, total, pooled))
        v, threshold, shift, sent = (_as_image(t) for t in (v, threshold, shift, sent))
    x_seq, order = image_order(x_seq)
    dtype = state_dtype(x_seq.dtype)
    outer = total.shape[:1] if order[-1] == 1 else total.shape[:2]
    channels = total.shape[1] if order[-1] == 1 else 1
    parameters, inner = flat_parameters(total.shape, order, dtype, v, threshold, shift)
    out, total_out, pooled_out, v_out, sent_out, counts = _li_pool(
        x_seq.flatten(1),
        flat_state(total, order, dtype),
        flat_state(pooled, order, dtype),
        [math.prod(outer), channels, *total.shape[2:], *pooled.shape[2:]],
        pool_geometry(pool),
        *parameters,
        None if sent is None else flat_state(sent, order, dtype),
        inner,
        float(max_spikes),
        count,
    )
    results = [
        restore(out, pooled.shape, order),
        restore(total_out, total.shape, order),
        restore(pooled_out, pooled.shape, order),
        None if threshold is None else restore(v_out, total.shape, order),
        None if sent is None else restore(sent_out, total.shape, order),
    ]
    if not images:
        results = [None if r is None else r.squeeze(-2) for r in results]
    return *results, counts if count else None


def _as_image(value: Tensor | None) -> Tensor | None:
    return value.unsqueeze(-2) if value is not None and value.dim() > 1 else value
