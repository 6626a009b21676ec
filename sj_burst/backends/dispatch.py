"""The choice of a backend: for a network by its user, and for every tensor that arrives."""

import functools
import importlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from spikingjelly.logger import logger
from torch import Tensor, nn

from .. import functional
from ..utils.checks import check_network
from . import events
from .cuda import operators
from .events import SpikeCounts
from .layout import pool_dim
from .result import BurstResult

__all__ = [
    "BACKENDS",
    "POOLS_WITH_KERNELS",
    "backend_for",
    "burst_mean",
    "burst_multi_step",
    "check_backend",
    "count_multi_step",
    "count_outputs",
    "is_installed",
    "li_pool_multi_step",
    "set_backend",
]

BACKENDS = ("torch", "numba", "cupy", "auto")
POOLS_WITH_KERNELS = (nn.MaxPool1d, nn.MaxPool2d)  # of [T, N, C, L] and [T, N, C, H, W]
_FASTEST = {"cuda": "cupy", "cpu": "numba"}  # by kind of device
_DEVICES = {backend: device for device, backend in _FASTEST.items()}
_REMEDIES = {
    "cupy": "pip install 'sj_burst[cuda13]' (or 'sj_burst[cuda12]' for a CUDA 12 driver)",
    "numba": "pip install 'sj_burst[cpu]'",
}
_HAS_PACKAGE = {name: importlib.util.find_spec(name) is not None for name in _REMEDIES}


def is_installed(backend: str) -> bool:
    """Whether the package of a backend's name is there; ``"torch"`` and ``"auto"`` need none.

    Example:
        >>> is_installed("torch")
        True
    """
    return _HAS_PACKAGE.get(backend, True)


def check_backend(backend: str) -> str:
    """Return a backend's name, or say what is wrong with it.

    Raises:
        ValueError: for an unknown name.
        ImportError: if the backend's package is missing.

    Example:
        >>> check_backend("torch")
        'torch'
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {list(BACKENDS)}, got {backend!r}")
    if not is_installed(backend):
        raise ImportError(f'backend="{backend}" needs {backend}: {_REMEDIES[backend]}')
    return backend


def set_backend(snn: nn.Module, backend: str) -> None:
    """Choose what runs the neurons and the pooling of a network in multi-step mode.

    Modules that have no such backend (adaptive pooling, say) keep theirs, with a warning in
    SpikingJelly's log. SpikingJelly's own nodes follow where they have backends (2.0.0rc1).

    Args:
        snn: any network with stateful modules.
        backend: ``"torch"``; ``"numba"`` (CPU tensors, ``pip install 'sj_burst[cpu]'``);
            ``"cupy"`` (CUDA tensors, ``pip install 'sj_burst[cuda13]'``); or ``"auto"``: for every
            tensor the fastest of them that is installed and runs, which converted networks have.

    Raises:
        ValueError: for an unknown name.
        ImportError: if the backend's package is missing.

    Source: SpikingJelly 2.0.0rc1 has a function of this name for its own modules.

    Example:
        >>> from sj_burst import BurstIFNode
        >>> net = nn.Sequential(nn.Linear(2, 2), BurstIFNode())
        >>> set_backend(net, "auto")
        >>> net[1].backend
        'auto'
    """
    check_network(snn=snn)
    check_backend(backend)
    for name, module in snn.named_modules():
        supported = getattr(module, "supported_backends", ())
        if backend in supported:
            module.backend = backend
        elif supported and backend != "auto":
            logger.warning(
                f"{name} ({type(module).__name__}) has no backend {backend!r} and keeps its own"
            )


def _runs_here(backend: str) -> bool:
    """Whether an installed backend runs on this machine; tried once, where trying does no harm."""
    if torch.compiler.is_compiling():
        return True
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return True
    return _passes_trial(backend)


@functools.cache
def _passes_trial(backend: str) -> bool:
    """Import numba, or fire a few neurons with CuPy; a warning tells what goes wrong."""
    z_seq, v, threshold = torch.ones(2, 1, 8), torch.zeros(1, 8), torch.tensor(0.75)
    try:
        if backend == "numba":
            importlib.import_module("sj_burst.backends.cpu")
        if backend == "cupy":
            y_seq = operators.burst_multi_step(z_seq.cuda(), v.cuda(), threshold.cuda(), 2).y_seq
            if not torch.equal(y_seq.cpu(), functional.burst_multi_step(z_seq, v, threshold, 2)[0]):
                raise RuntimeError("its neurons fire differently")
    except Exception as error:
        logger.warning(f"backend {backend!r} does not run here, torch does its work: {error!r}")
        return False
    return True


def backend_for(backend: str, x: Tensor) -> str:
    """What runs a module of this ``backend`` on the tensor ``x``: torch, numba or CuPy.

    Raises:
        ValueError: if ``x`` is not on the backend's kind of device.

    Example:
        >>> backend_for("auto", torch.ones(2, 0))
        'torch'
    """
    if x.numel() == 0:  # the loops want something to do
        return "torch"
    if backend == "auto":
        fastest = _FASTEST.get(x.device.type, "torch")
        return fastest if is_installed(fastest) and _runs_here(fastest) else "torch"
    needed = _DEVICES.get(backend, x.device.type)
    if x.device.type != needed:
        raise ValueError(
            f'backend="{backend}" computes on {needed} tensors and got one on {x.device}; move network '
            f'and input with .to("{needed}"), or choose sj_burst.set_backend(snn, "auto")'
            + (f"; CUDA needs {_REMEDIES['cupy']}" if backend == "cupy" else "")
        )
    return backend


def _numba_takes(*tensors: Tensor | None) -> bool:
    """Whether the numba loops take these tensors."""
    given = [t for t in tensors if t is not None]
    dtype = given[0].dtype
    known = dtype in (torch.float32, torch.float64) and all(t.dtype == dtype for t in given)
    return known and not functional.needs_grad(*given) and not torch.compiler.is_compiling()


def _numba_pools(x_seq: Tensor, total: Tensor, pooled: Tensor) -> bool:
    """Whether the loops pool these tensors: counts in int8, of which the totals are in float32, too."""
    if x_seq.dtype == torch.int8:
        return _numba_takes(total, pooled) and total.dtype == torch.float32
    return _numba_takes(x_seq, total, pooled)


def _cupy_takes(dtype: torch.dtype, parameter: torch.dtype) -> bool:
    """Whether the kernels keep what type promotion would: float64 parameters need float64 input."""
    return dtype in operators.STORAGE and (parameter != torch.float64 or dtype == torch.float64)


def burst_multi_step(
    backend: str,
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
    """Run :func:`sj_burst.functional.burst_multi_step` on a backend.

    Args:
        backend: one of ``BACKENDS``.
        z_seq: input current ``[T, N, ...]``.
        v: membrane potential before the first step.
        threshold: θ; broadcasts to one step.
        max_spikes: Γ.
        shift: constant input current; broadcasts to one step.
        sent: spike count so far, ``None`` for unsigned spikes.
        negative_slope: weight of the total of spikes below zero; broadcasts to one step. Such neurons
            train on the torch backend.
        surrogate: surrogate function, where a gradient is needed.
        count: ask for the number of spikes; the torch backend does not count, nor do the others at
            a very large Γ. With a ``negative_slope``, which outputs do not tell it by, it is always
            counted, by step and by neuron.

    Returns:
        Outputs, state after the last step, and the spikes if they were counted.

    Raises:
        ValueError: if the tensors are not on the backend's kind of device.

    Example:
        >>> result = burst_multi_step("torch", torch.ones(2, 1), torch.zeros(1), torch.tensor(1.0))
        >>> result.y_seq.flatten().tolist()
        [1.0, 1.0]
    """
    chosen = backend_for(backend, z_seq)
    options: dict[str, Any] = {"shift": shift, "sent": sent, "negative_slope": negative_slope}
    leaky = negative_slope is not None
    counted = count and leaky  # whatever it costs
    if chosen == "cupy" and _cupy_takes(z_seq.dtype, threshold.dtype):
        has_gradient = not leaky and operators.surrogate_code(surrogate) is not None
        lacks_count = counted and not operators.counts_spikes(len(z_seq), max_spikes)
        if (surrogate is None or has_gradient) and not lacks_count:
            return operators.burst_multi_step(
                z_seq, v, threshold, max_spikes, **options, surrogate=surrogate, count=count
            )
    elif chosen == "numba" and _numba_takes(z_seq, v, threshold, shift, sent, negative_slope):
        from . import cpu, cpu_events

        count = count and cpu_events.counts_spikes(max_spikes, len(z_seq))
        if count or not counted:
            return cpu.burst_multi_step(z_seq, v, threshold, max_spikes, **options, count=count)
    if counted:
        return _counting_steps(z_seq, v, threshold, max_spikes, **options, surrogate=surrogate)
    y_seq, v, sent = functional.burst_multi_step(
        z_seq, v, threshold, max_spikes, **options, surrogate=surrogate
    )
    return BurstResult(y_seq.to(z_seq.dtype), v, sent)  # the state of half precision is float32


def burst_mean(
    backend: str,
    z_seq: Tensor,
    v: Tensor,
    threshold: Tensor,
    max_spikes: float = 1,
    *,
    shift: Tensor | None = None,
    sent: Tensor | None = None,
    negative_slope: Tensor | None = None,
) -> Tensor:
    """Mean over the steps of what :func:`burst_multi_step` returns, to which the arguments belong.

    On a CPU with numba the steps are added up as they are made, and never written.

    Raises:
        ValueError: if the tensors are not on the backend's kind of device.

    Example:
        >>> burst_mean("torch", torch.ones(2, 1), torch.zeros(1), torch.tensor(2.0)).tolist()
        [1.0]
    """
    options: dict[str, Any] = {"shift": shift, "sent": sent, "negative_slope": negative_slope}
    steps = len(z_seq)
    if backend_for(backend, z_seq) == "numba" and _numba_takes(z_seq, v, threshold, *options.values()):
        from . import cpu

        result = cpu.burst_multi_step(z_seq, v, threshold, max_spikes, **options, summed=True)
        return result.y_seq[0].div_(steps)
    y_seq = burst_multi_step(backend, z_seq, v, threshold, max_spikes, **options).y_seq
    total = y_seq[0].clone()
    for y in y_seq[1:]:  # several times faster than a sum over the leading dimension
        total += y
    return total.div_(steps)


def count_multi_step(
    backend: str,
    terms: Sequence[Tensor],
    v: Tensor,
    scales: Sequence[Tensor],
    max_spikes: int,
    shift: Tensor,
    sent: Tensor | None = None,
    count: bool = False,
) -> BurstResult:
    """T steps of :func:`sj_burst.functional.count_step` on a backend; numba takes up to two terms.

    Args:
        backend: one of ``BACKENDS``.
        terms: parts of the input current ``[T, N, ...]``: counts in int8, or float32.
        v: membrane potential before the first step.
        scales: what a unit of each term weighs; broadcast to one step.
        max_spikes: Γ.
        shift: constant input current; broadcasts to one step.
        sent: spike count so far, ``None`` for unsigned spikes.
        count: ask for the number of spikes, which the torch backend does not count; where a potential
            is NaN it says that they are.

    Returns:
        Counts in int8 ``[T, N, ...]``, state after the last step, and the spikes if they were counted.

    Raises:
        ValueError: if the tensors are not on the backend's kind of device.

    Example:
        >>> x, one = torch.ones(2, 1, dtype=torch.int8), torch.tensor(1.0)
        >>> count_multi_step("torch", [x], torch.zeros(1), [one], 4, 0 * one).y_seq.flatten().tolist()
        [1, 1]
    """
    known = {x.dtype for x in terms} <= {torch.float32, torch.int8} and len(terms) < 3
    if backend_for(backend, terms[0]) == "numba" and known and not torch.compiler.is_compiling():
        from . import cpu_counts

        return cpu_counts.count_multi_step(terms, v, scales, max_spikes, shift, sent, count)
    outputs = []
    for step in zip(*terms, strict=True):
        n, v, sent = functional.count_step(step, v, scales, max_spikes, shift, sent)
        outputs.append(n)
    y_seq, spikes = torch.stack(outputs), None
    if count and not torch.compiler.is_compiling() and v.isnan().any():  # of which no count tells
        lost = torch.full(y_seq.shape, math.nan, device=y_seq.device)
        spikes = events.count_outputs(lost, None, whole=True)
    return BurstResult(y_seq, v, sent, spikes)


def _counting_steps(
    z_seq: Tensor, v: Tensor, threshold: Tensor, max_spikes: float, *, sent: Tensor, **options: Any
) -> BurstResult:
    """Single steps of a neuron whose spikes are the differences of its totals."""
    outputs, totals = [], [sent]
    for z in z_seq:
        y, v, after = functional.burst_step(z, v, threshold, max_spikes, sent=totals[-1], **options)
        assert after is not None
        outputs.append(y.to(z_seq.dtype))
        totals.append(after)
    counts = SpikeCounts.of_totals([total.detach() for total in totals])
    return BurstResult(torch.stack(outputs), v, totals[-1], counts)


def count_outputs(backend: str, y_seq: Tensor, unit: Tensor | None, whole: bool) -> SpikeCounts:
    """Run :func:`sj_burst.backends.events.count_outputs` on a backend.

    Args:
        backend: one of ``BACKENDS``; CuPy leaves it to torch.
        y_seq: outputs of a layer ``[T, N, ...]``.
        unit: what a spike weighs; broadcasts to a step of one sample. ``None`` for 1.
        whole: outputs stand for whole spikes.

    Raises:
        ValueError: if the tensors are not on the backend's kind of device.

    Example:
        >>> count_outputs("torch", torch.ones(2, 1, 3), None, True).per_step.tolist()
        [3.0, 3.0]
    """
    known = y_seq.dtype in (torch.float32, torch.float64, torch.int8)
    if backend_for(backend, y_seq) == "numba" and known and not torch.compiler.is_compiling():
        from . import cpu_events

        return cpu_events.count_outputs(y_seq, unit, whole)
    return events.count_outputs(y_seq, unit, whole)


def li_pool_multi_step(
    backend: str, x_seq: Tensor, total: Tensor, pooled: Tensor, pool: nn.Module
) -> tuple[Tensor, Tensor, Tensor]:
    """Run :func:`sj_burst.functional.li_pool_multi_step` on a backend.

    Args:
        backend: one of ``BACKENDS``.
        x_seq: weighted spikes ``[T, N, C, ...]``.
        total: Σ x before the first step.
        pooled: maxpool(total), or zeros before the first step.
        pool: a max-pooling module.

    Returns:
        Outputs, total and pooled total after the last step.

    Raises:
        ValueError: if the tensors are not on the backend's kind of device.

    Example:
        >>> x_seq = torch.tensor([[[[1.0, 0.0]]], [[[0.0, 2.0]]]])
        >>> out, *_ = li_pool_multi_step(
        ...     "torch", x_seq, torch.zeros(1, 1, 2), torch.zeros(1, 1, 1), nn.MaxPool1d(2))
        >>> out.flatten().tolist()
        [1.0, 1.0]
    """
    chosen = backend_for(backend, x_seq)
    has_kernel = type(pool) in POOLS_WITH_KERNELS and x_seq.dim() == pool_dim(pool)
    if chosen == "cupy" and has_kernel and operators.pools(x_seq, pool):
        if not functional.needs_grad(x_seq, total, pooled):
            return operators.li_pool_multi_step(x_seq, total, pooled, pool)
    elif chosen == "numba" and has_kernel and _numba_pools(x_seq, total, pooled):
        from . import cpu

        return cpu.li_pool_multi_step(x_seq, total, pooled, pool)
    out, total, pooled = functional.li_pool_multi_step(x_seq, total, pooled, pool)
    return out.to(x_seq.dtype), total, pooled
