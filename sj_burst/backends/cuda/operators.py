"""Burst neurons and pooling on CUDA devices: ``torch.library`` operators, and functional.py's functions.

The kernels (``*.cu`` beside this file) take one thread through all time steps with the state in
registers, so that memory sees one read of the input and one write of the output. Storage may be
float32, float16, bfloat16 or float64; state is float32 (float64 for float64 storage), also between
two calls.
"""

import functools
from collections.abc import Callable
from typing import Any, Sequence  # noqa: UP035 -- the one that torch 2.6 finds in a signature

import torch
from spikingjelly.activation_based import surrogate as sj_surrogate
from torch import Tensor, nn

from ...functional import needs_grad
from ..events import ACCOUNTINGS, SpikeCounts
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
from ..result import BurstResult
from .launch import launch_kernel

__all__ = [
    "STORAGE",
    "burst_multi_step",
    "counts_spikes",
    "li_pool_multi_step",
    "pools",
    "surrogate_code",
]

STORAGE = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}
SURROGATES: tuple[type[nn.Module], ...] = (sj_surrogate.Sigmoid, sj_surrogate.ATan)

WIDE_FROM = 1 << 17  # packs of neurons below which a thread takes one neuron, to have more threads
TOTALS_BYTES = 80  # of registers for totals of pooling, up to which all fit 64 registers (li_pool.cu)
MAX_TAPS = 25  # inputs of a window that one thread pools; code for more takes long to compile
MAX_COUNTED_STEPS = 4096  # spike counters of a block have to fit into shared memory
MAX_COUNTED_SPIKES = 1024  # Γ for which they cannot overflow


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
# Operators. They take a step as one flat row of neurons in memory order; a parameter is a flat
# tensor with the number of neighbouring neurons that share each of its values ("inner").


def _parameter(values: Tensor | None, inner: int) -> tuple[Tensor | None, int, int]:
    return values, inner, 1 if values is None else values.numel()


def _width(z: Tensor) -> int:
    """Neurons per thread: vectors of 16 bytes where alignment and size allow."""
    width = 16 // z.element_size()
    neurons = z.shape[1]
    aligned = _are_aligned(width, z) and neurons % width == 0 and z.stride(0) % width == 0
    return width if aligned and neurons // width >= WIDE_FROM else 1


def _are_aligned(width: int, *rows: Tensor) -> bool:
    """Whether vectors of so many neighbours lie where the device can read them."""
    return all(row.data_ptr() % (width * row.element_size()) == 0 for row in rows)


def _state(z: Tensor, wanted: bool = True, steps: int | None = None) -> Tensor:
    """Room for one state value per neuron (and step); empty if not wanted."""
    shape = (z.shape[1],) if steps is None else (steps, z.shape[1])
    return z.new_empty(shape if wanted else (0,), dtype=state_dtype(z.dtype))


def _counts(z: Tensor, count: bool) -> Tensor:
    """Room for the spikes of every step, and for those that are negative."""
    return z.new_zeros(2, z.shape[0] if count else 0, dtype=torch.int64)


@torch.library.custom_op("sj_burst::burst", mutates_args=())
def _burst(
    z: Tensor,
    v: Tensor,
    threshold: Tensor,
    shift: Tensor | None,
    sent: Tensor | None,
    slope: Tensor | None,
    inner: Sequence[int],
    max_spikes: float,
    count: bool,
    surrogate: int,
    alpha: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Burst neurons ``z [T, M]`` -> y, v, sent, spikes by step, by neuron, membrane before them."""
    steps, neurons = z.shape
    save = surrogate >= 0
    y, v_out = z.new_empty(z.shape), _state(z)
    sent_out, counts = _state(z, sent is not None), _counts(z, count)
    membrane = _state(z, save, steps)
    leaky, width = slope is not None, _width(z)
    fired = _state(z, count, len(ACCOUNTINGS))
    flags = {"SHIFT": shift is not None, "SIGNED": sent is not None, "COUNT": count, "SAVE": save}
    flags["LEAKY"] = leaky
    macros = {"STORAGE": STORAGE[z.dtype], "WIDTH": width} | {k: int(v) for k, v in flags.items()}
    args: list[Any] = [z, z.stride(0), steps, neurons, max_spikes]
    args += [*_parameter(v, inner[0]), *_parameter(threshold, inner[1]), *_parameter(shift, inner[2])]
    args += [*_parameter(slope, inner[3]), sent, y, v_out, sent_out, counts, fired, membrane]
    launch_kernel("burst_forward", macros, neurons // width, args, z.device, shared=4 * counts.numel())
    return y, v_out, sent_out, counts, fired, membrane


@_burst.register_fake
def _(z, v, threshold, shift, sent, slope, inner, max_spikes, count, surrogate, alpha):  # type: ignore[no-untyped-def]
    counts, fired = _counts(z, count), _state(z, count, len(ACCOUNTINGS))
    membrane = _state(z, surrogate >= 0, z.shape[0])
    return z.new_empty(z.shape), _state(z), _state(z, sent is not None), counts, fired, membrane


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
    macros = {"STORAGE": STORAGE[y.dtype], "SIGNED": int(signed), "SURROGATE": surrogate}
    args: list[Any] = [grad_y, grad_v, grad_sent, membrane, y, sent, *_parameter(threshold, inner)]
    args += [steps, neurons, max_spikes, alpha, grad_z, grad_v_init, grad_sent_init, grad_threshold]
    launch_kernel("burst_backward", macros, neurons, args, y.device)
    return grad_z, grad_v_init, grad_sent_init, grad_threshold


@_burst_backward.register_fake
def _(grad_y, grad_v, grad_sent, membrane, y, sent, *rest):  # type: ignore[no-untyped-def]
    return y.new_empty(y.shape), _state(y), _state(y, len(sent) > 0), _state(y)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    threshold, inner, max_spikes, surrogate, alpha = (inputs[i] for i in (2, 6, 7, 9, 10))
    y, _, sent, _, _, membrane = output
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
        *[None] * 6,
    )


torch.library.register_autograd("sj_burst::burst", _differentiate, setup_context=_remember)


@torch.library.custom_op("sj_burst::li_pool", mutates_args=())
def _li_pool(
    x: Tensor,
    total: Tensor,
    pooled: Tensor,
    sizes: Sequence[int],
    geometry: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Pooling ``x [T, M]`` -> out, total and pooled total.

    ``sizes`` are outer, inner, height, width, out_height, out_width; ``geometry`` kernel, stride,
    padding and dilation, each in two dimensions.
    """
    out = x.new_empty(len(x), pooled.numel())
    total_out, pooled_out = torch.empty_like(total), torch.empty_like(pooled)
    kernel_h, kernel_w, *others = geometry
    width = _pool_width(x, total, pooled, sizes[1], kernel_h * kernel_w)
    macros = {"STORAGE": STORAGE[x.dtype], "WIDTH": width, "KERNEL_H": kernel_h, "KERNEL_W": kernel_w}
    gaps = _has_gaps(tuple(sizes[2:]), tuple(geometry))
    args: list[Any] = [x, x.stride(0), len(x), total.numel(), pooled.numel(), *sizes[1:], *others]
    args += [int(gaps), total, pooled, out, total_out, pooled_out]
    launch_kernel("li_pool", macros, pooled.numel() // width, args, x.device)
    return out, total_out, pooled_out


def _pool_width(x: Tensor, total: Tensor, pooled: Tensor, inner: int, taps: int) -> int:
    """Outputs per thread, where alignment and size allow vectors."""
    width = pool_width(taps, total.element_size())
    aligned = _are_aligned(width, x, total, pooled) and x.stride(0) % width == 0
    wide = aligned and inner % width == 0 and pooled.numel() // width >= WIDE_FROM
    return width if wide else 1


def pool_width(taps: int, state_bytes: int) -> int:
    """Outputs per thread: vectors of up to 16 bytes of state, as long as the totals fit registers.

    Args:
        taps: inputs of a window.
        state_bytes: of a total.

    Example:
        >>> pool_width(2 * 2, 4), pool_width(3 * 3, 4), pool_width(5 * 5, 4)
        (4, 2, 1)
    """
    width = 16 // state_bytes
    while width > 1 and taps * width * state_bytes > TOTALS_BYTES:
        width //= 2
    return width


@_li_pool.register_fake
def _(x, total, pooled, sizes, geometry):  # type: ignore[no-untyped-def]
    return x.new_empty(len(x), pooled.numel()), torch.empty_like(total), torch.empty_like(pooled)


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


def counts_spikes(steps: int, max_spikes: float) -> bool:
    """Whether the kernel can count the spikes of this many steps of up to Γ each.

    Example:
        >>> counts_spikes(8, 4), counts_spikes(8, float("inf"))
        (True, False)
    """
    return steps <= MAX_COUNTED_STEPS and max_spikes <= MAX_COUNTED_SPIKES


def burst_multi_step(
    z_seq: Tensor,
    v: Tensor,
    threshold: Tensor,
    max_spikes: float = 1,
    *,
    shift: Tensor | None = None,
    sent: Tensor | None = None,
    negative_slope: Tensor | None = None,
    surrogate: Callable[[Tensor], Tensor] | None = None,
    count: bool = False,
) -> BurstResult:
    """T steps of the burst neuron in one kernel; see :func:`sj_burst.functional.burst_multi_step`.

    Args:
        z_seq: input current ``[T, N, ...]`` on a CUDA device, any layout; a time axis of stride 0
            (an input that is the same at every step) is read once.
        v: membrane potential before the first step.
        threshold: θ; broadcasts to one step.
        max_spikes: Γ.
        shift: constant input current; broadcasts to one step.
        sent: spike count so far, ``None`` for unsigned spikes.
        negative_slope: weight of the total below zero, where no gradient is needed; broadcasts to one
            step.
        surrogate: a ``Sigmoid`` or ``ATan`` of SpikingJelly, where a gradient is needed.
        count: whether to count spikes while they are emitted (not where a gradient is needed).

    Returns:
        Outputs in the type of ``z_seq``, state in its own type, and the spikes of every step and the
        events of every neuron if asked for.

    Source: as :func:`sj_burst.functional.burst_step`.
    """
    z_seq, order = memory_order(z_seq)
    shape, dtype = v.shape, state_dtype(z_seq.dtype)
    (v_flat, theta, shift_flat, slope), inner = flat_parameters(
        shape, order, dtype, v, threshold, shift, negative_slope
    )
    code = surrogate_code(surrogate) if needs_grad(z_seq, v, threshold, shift, sent) else -1
    assert v_flat is not None and theta is not None and code is not None
    assert slope is None or code < 0, "no kernel for this gradient"
    count = count and counts_spikes(len(z_seq), max_spikes) and code < 0  # training does not count
    y, v_out, sent_out, counts, fired, _ = _burst(
        z_seq.flatten(1),
        v_flat,
        theta,
        shift_flat,
        None if sent is None else flat_state(sent, order, dtype),
        slope,
        inner,
        float(max_spikes),
        count,
        code,
        float(getattr(surrogate, "alpha", 0.0)),
    )
    return BurstResult(
        restore(y, shape, order),
        restore(v_out, shape, order),
        None if sent is None else restore(sent_out, shape, order),
        _spikes(counts, restore(fired, shape, order), slope is not None) if count else None,
    )


def _spikes(counts: Tensor, per_neuron: Tensor, leaky: bool) -> SpikeCounts:
    per_step, negative = counts
    per_neuron = per_neuron.sum(1, dtype=torch.float64)  # over the samples
    return SpikeCounts(per_step, per_neuron, None if leaky else per_step - 2 * negative)


def pools(x_seq: Tensor, pool: nn.Module) -> bool:
    """Whether there is a kernel for a max-pooling of this type, size and window.

    The others go better over totals in memory: their windows do not fit the registers of a thread.

    Args:
        x_seq: weighted spikes ``[T, N, C, H, W]`` or ``[T, N, C, L]``.
        pool: ``MaxPool2d`` or ``MaxPool1d``.

    Example:
        >>> x_seq = torch.zeros(2, 1, 3, 16, 16)
        >>> pools(x_seq, nn.MaxPool2d(3, 2, 1)), pools(x_seq, nn.MaxPool2d(9, 1, 4))
        (True, False)
    """
    kernel_h, kernel_w, *_ = pool_geometry(pool)
    image = x_seq[0, 0].numel() if x_seq.numel() else 0  # a window spans no more
    return x_seq.dtype in STORAGE and kernel_h * kernel_w <= MAX_TAPS and image < 2**31


def li_pool_multi_step(
    x_seq: Tensor, total: Tensor, pooled: Tensor, pool: nn.Module
) -> tuple[Tensor, Tensor, Tensor]:
    """T steps of lateral-inhibition pooling in one kernel; see ``functional.li_pool_multi_step``.

    Args:
        x_seq: weighted spikes ``[T, N, C, H, W]`` or ``[T, N, C, L]`` on a CUDA device.
        total: Σ x before the first step.
        pooled: maxpool(total), or zeros before the first step.
        pool: ``MaxPool2d`` or ``MaxPool1d`` that :func:`pools` says yes to.

    Returns:
        Outputs, total and pooled total after the last step.

    Source: as :func:`sj_burst.functional.li_pool_step`.
    """
    check_pool_input(x_seq, pool)
    images = total.dim() == 4
    if not images:  # rows of pixels are images of height 1
        x_seq, total, pooled = (t.unsqueeze(-2) for t in (x_seq, total, pooled))
    x_seq, order = image_order(x_seq)
    dtype = state_dtype(x_seq.dtype)
    batch, channels = total.shape[:2]
    outer, inner = (batch, channels) if order[-1] == 1 else (batch * channels, 1)
    flat = _li_pool(
        x_seq.flatten(1),
        flat_state(total, order, dtype),
        flat_state(pooled, order, dtype),
        [outer, inner, *total.shape[2:], *pooled.shape[2:]],
        pool_geometry(pool),
    )
    shapes = (pooled.shape, total.shape, pooled.shape)
    results = [restore(r, shape, order) for r, shape in zip(flat, shapes, strict=True)]
    out, total, pooled = results if images else (r.squeeze(-2) for r in results)
    return out, total, pooled
