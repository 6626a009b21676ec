"""Backends of the stateful modules: torch everywhere, numba on CPUs, CuPy on CUDA devices.

SpikingJelly shipped a CuPy multi-step backend for its neurons through 2.0.0rc1 and dropped it in
2.0.0. With 2.0.0rc1, SpikingJelly's ``functional.set_backend(snn, "cupy")`` drives SpikingJelly's
neurons and those of ``sj_burst`` alike. With 2.0.0, which has no backends, ``sj_burst.set_backend``
does it for the modules of ``sj_burst``, whose kernels need CuPy only
(``pip install 'sj_burst[cuda13]'``).

All backends compute the same numbers, bit for bit in float32. Where a backend has no kernel, the
torch backend takes over:

- adaptive and three-dimensional pooling, gated pooling, single-step mode and ``store_v_seq``;
- training through lateral-inhibition pooling, whose gradient is torch's own max-pooling's;
- training with a surrogate other than SpikingJelly's ``Sigmoid`` and ``ATan``: any other is a Python
  function, which a kernel cannot call;
- numba: anything that needs a gradient, half precision, and under ``torch.compile``.

:func:`sj_burst.backends.cupy.burst_li_pool_multi_step` runs a neuron layer and the pooling behind it
in one kernel. It is a function for those who write their own modules: a network's neurons and pooling
stay two modules, whose outputs hooks can see. numba compiles a loop when it is first used, which takes
some seconds, and keeps it on disk.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable

import torch
from spikingjelly.logger import logger
from torch import Tensor, nn

from .. import functional
from ..utils.checks import check_network
from .cuda import operators
from .layout import SpikeCounts, pool_dim

__all__ = [
    "BACKENDS",
    "INSTALLED",
    "POOLS_WITH_KERNELS",
    "burst_multi_step",
    "check_backend",
    "li_pool_multi_step",
    "set_backend",
]

BACKENDS = ("torch", "numba", "cupy", "auto")
POOLS_WITH_KERNELS = (nn.MaxPool1d, nn.MaxPool2d)  # of [T, N, C, L] and [T, N, C, H, W]
INSTALLED = {name: importlib.util.find_spec(name) is not None for name in ("cupy", "numba")}
_REMEDIES = {
    "cupy": "pip install 'sj_burst[cuda13]' (or 'sj_burst[cuda12]' for a CUDA 12 driver)",
    "numba": "pip install 'sj_burst[cpu]'",
}


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
    if not INSTALLED.get(backend, True):
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


def _works(backend: str) -> bool:
    """Whether an installed backend runs here; tried once, where trying does no harm."""
    if torch.compiler.is_compiling():
        return True
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return True
    return _tried(backend)


@functools.cache
def _tried(backend: str) -> bool:
    z_seq, v, threshold = torch.ones(2, 1, 8), torch.zeros(1, 8), torch.tensor(0.75)
    try:
        if backend == "numba":
            importlib.import_module("sj_burst.backends.cpu")
        if backend == "cupy":
            y_seq = operators.burst_multi_step(z_seq.cuda(), v.cuda(), threshold.cuda(), 2)[0]
            if not torch.equal(y_seq.cpu(), functional.burst_multi_step(z_seq, v, threshold, 2)[0]):
                raise RuntimeError("its neurons fire differently")
    except Exception as error:
        logger.warning(f"backend {backend!r} does not run here, torch does its work: {error!r}")
        return False
    return True


def _engine(backend: str, x: Tensor) -> str:
    """The backend for this tensor."""
    if x.numel() == 0:  # the loops want something to do
        return "torch"
    if backend == "auto":
        wanted = {"cuda": "cupy", "cpu": "numba"}.get(x.device.type, "torch")
        return wanted if INSTALLED.get(wanted, True) and _works(wanted) else "torch"
    needed = {"cupy": "cuda", "numba": "cpu"}.get(backend, x.device.type)
    if x.device.type != needed:
        raise ValueError(
            f'backend="{backend}" computes on {needed} tensors and got one on {x.device}; move network '
            f'and input with .to("{needed}"), or choose sj_burst.set_backend(snn, "auto")'
            + (f"; CUDA needs {_REMEDIES['cupy']}" if backend == "cupy" else "")
        )
    return backend


def _numba_can(*tensors: Tensor | None) -> bool:
    """Whether the numba loops take these tensors."""
    given = [t for t in tensors if t is not None]
    one_type = given[0].dtype in (torch.float32, torch.float64)
    one_type = one_type and all(t.dtype == given[0].dtype for t in given)
    return one_type and not functional.needs_grad(*given) and not torch.compiler.is_compiling()


def _cupy_can(dtype: torch.dtype, parameter: torch.dtype) -> bool:
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
    surrogate: Callable[[Tensor], Tensor] | None = None,
    count: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, SpikeCounts | None]:
    """Run :func:`sj_burst.functional.burst_multi_step` on a backend.

    Args:
        backend: one of ``BACKENDS``.
        z_seq: input current ``[T, N, ...]``.
        v: membrane potential before the first step.
        threshold: θ; broadcasts to one step.
        max_spikes: Γ.
        shift: constant input current; broadcasts to one step.
        sent: spike count so far, ``None`` for unsigned spikes.
        surrogate: surrogate function, where a gradient is needed.
        count: ask for the number of spikes; the torch backend does not count, nor do the others at
            a very large Γ.

    Returns:
        Outputs, membrane potential and spike count after the last step; and the spikes counted, or
        ``None``.

    Raises:
        ValueError: if the tensors are not on the backend's kind of device.

    Example:
        >>> y_seq, *_ = burst_multi_step("torch", torch.ones(2, 1), torch.zeros(1), torch.tensor(1.0))
        >>> y_seq.flatten().tolist()
        [1.0, 1.0]
    """
    engine = _engine(backend, z_seq)
    if engine == "cupy" and _cupy_can(z_seq.dtype, threshold.dtype):
        trainable = surrogate is None or operators.surrogate_code(surrogate) is not None
        if trainable:
            y_seq, v, sent, counts = operators.burst_multi_step(
                z_seq,
                v,
                threshold,
                max_spikes,
                shift=shift,
                sent=sent,
                surrogate=surrogate,
                count=count,
            )
            return y_seq, v, sent, None if counts is None else SpikeCounts(counts)
    if engine == "numba" and _numba_can(z_seq, v, threshold, shift, sent):
        from . import cpu

        return cpu.burst_multi_step(z_seq, v, threshold, max_spikes, shift=shift, sent=sent, count=count)
    y_seq, v, sent = functional.burst_multi_step(
        z_seq, v, threshold, max_spikes, shift=shift, sent=sent, surrogate=surrogate
    )
    return y_seq.to(z_seq.dtype), v, sent, None  # the state of half precision is float32


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
    engine = _engine(backend, x_seq)
    has_kernel = isinstance(pool, POOLS_WITH_KERNELS) and x_seq.dim() == pool_dim(pool)
    if engine == "cupy" and has_kernel and x_seq.dtype in operators.STORAGE:
        if not functional.needs_grad(x_seq, total, pooled):
            return operators.li_pool_multi_step(x_seq, total, pooled, pool)
    elif engine == "numba" and has_kernel and _numba_can(x_seq, total, pooled):
        from . import cpu

        return cpu.li_pool_multi_step(x_seq, total, pooled, pool)
    out, total, pooled = functional.li_pool_multi_step(x_seq, total, pooled, pool)
    return out.to(x_seq.dtype), total, pooled
