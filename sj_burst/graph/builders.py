"""What module stands for a call: the tables of calls that are rewritten, and their builders."""

import copy
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..modules.bounded import BoundedActivation
from ..modules.pooling import MAX_POOLS, MaxOver
from .composites import Absolute, AtLeast, AtMost, Between, HardSigmoid
from .operators import DROPOUTS

__all__ = ["FUNCTIONS", "METHODS", "Unsupported", "over_whole_map", "standard_module"]


class Unsupported(Exception):
    """An operator that has no spiking counterpart with these arguments; the text is the remedy."""


# Builders: called with a call site's arguments (the input is unused), they return the module that
# stands for it, or None to leave the call as it is. Python binds the arguments for us.


def _relu(_: object, inplace: bool = False) -> nn.Module:
    return nn.ReLU()


def _clamp(_: object, min: float | None = None, max: float | None = None) -> nn.Module:
    low, high = (v.item() if isinstance(v, Tensor) and v.numel() == 1 else v for v in (min, max))
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        raise Unsupported("clamp needs plain numbers as bounds")
    low = None if low == -math.inf else low
    high = None if high == math.inf else high
    if low is None:
        return nn.Identity() if high is None else AtMost(high)
    if high is None:
        return nn.ReLU() if low == 0 else AtLeast(low)
    return _bounded(high) if low == 0 else _between(low, high)


def _between(low: float, high: float) -> nn.Module:
    if not high > low:
        raise Unsupported(f"bounds of {low} and {high} leave nothing to transmit")
    return Between(low, high)


def _clamp_min(_: object, min: float) -> nn.Module:
    return _clamp(_, min)


def _clamp_max(_: object, max: float) -> nn.Module:
    return _clamp(_, None, max)


def _abs(_: object) -> nn.Module:
    return Absolute()


def _hardsigmoid(_: object, inplace: bool = False) -> nn.Module:
    return HardSigmoid()


def _hardtanh(
    _: object, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> nn.Module:
    return _clamp(_, min_val, max_val)


def _relu6(_: object, inplace: bool = False) -> nn.Module:
    return _bounded(6.0)


def _bounded(max_value: float) -> nn.Module:
    if not max_value > 0:
        raise Unsupported(f"an upper bound of {max_value} leaves nothing to transmit")
    return nn.Hardtanh(0.0, float(max_value))


def _leaky_relu(_: object, negative_slope: float = 0.01, inplace: bool = False) -> nn.Module:
    return nn.ReLU() if negative_slope == 0 else nn.LeakyReLU(negative_slope)


def _prelu(x: Tensor, weight: Tensor) -> nn.Module:
    if weight.numel() not in (1, x.shape[1]):
        raise Unsupported(
            f"{weight.numel()} slopes do not belong to {x.shape[1]} channels (dimension 1)"
        )
    module = nn.PReLU(weight.numel(), device=weight.device, dtype=weight.dtype)
    module.load_state_dict({"weight": weight.detach().flatten()})
    return module


def _rrelu(
    _: object,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    inplace: bool = False,
) -> nn.Module:
    if training:
        raise Unsupported("rrelu with training=True is random at inference; pass self.training")
    return _leaky_relu(_, (lower + upper) / 2)


def _threshold(_: object, threshold: float, value: float, inplace: bool = False) -> nn.Module:
    if threshold != 0 or value != 0:
        raise Unsupported("only Threshold(0, 0) is a ReLU; retrain with ReLU")
    return nn.ReLU()


def _max_pool(module: type[nn.Module]) -> Callable[..., nn.Module]:
    def build(
        _: object,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> nn.Module:
        if return_indices:
            raise Unsupported("indices of a max-pooling cannot be used by a spiking network")
        return module(kernel_size, stride or None, padding, dilation, ceil_mode=ceil_mode)

    return build


def _adaptive_max_pool(module: type[nn.Module]) -> Callable[..., nn.Module]:
    def build(_: object, output_size: Any, return_indices: bool = False) -> nn.Module:
        if return_indices:
            raise Unsupported("indices of a max-pooling cannot be used by a spiking network")
        return module(output_size)

    return build


def _avg_pool(module: type[nn.Module]) -> Callable[..., nn.Module]:
    def build(_: object, kernel_size: Any, stride: Any = None, *args: Any, **kw: Any) -> nn.Module:
        return module(kernel_size, stride or None, *args, **kw)

    return build


def over_whole_map(pool: Any, x: Tensor) -> nn.Module | None:
    """The adaptive module of a pooling whose window is the whole map ``x``, at any resolution."""
    if type(pool) not in _ADAPTIVE:
        return None
    dims = int(type(pool).__name__[-2])
    window = (pool.kernel_size,) * dims if isinstance(pool.kernel_size, int) else tuple(pool.kernel_size)
    whole = window == tuple(x.shape[-dims:]) and pool.padding in (0, (0,) * dims)
    return _ADAPTIVE[type(pool)](1) if whole else None


_ADAPTIVE: dict[type[nn.Module], Callable[[int], nn.Module]] = {
    nn.AvgPool1d: nn.AdaptiveAvgPool1d,
    nn.AvgPool2d: nn.AdaptiveAvgPool2d,
    nn.AvgPool3d: nn.AdaptiveAvgPool3d,
    nn.MaxPool1d: nn.AdaptiveMaxPool1d,
    nn.MaxPool2d: nn.AdaptiveMaxPool2d,
    nn.MaxPool3d: nn.AdaptiveMaxPool3d,
}


def _adaptive_avg_pool(module: type[nn.Module]) -> Callable[..., nn.Module]:
    return lambda _, output_size: module(output_size)


def _mean(x: Tensor, dim: Any = None, keepdim: bool = False, **options: Any) -> nn.Module | None:
    dims = {dim} if isinstance(dim, int) else set(dim or ())
    if x.dim() != 4 or {d % 4 for d in dims} != {2, 3} or options:
        return None  # linear as it is; what it does to the batch is checked on real data
    pool = nn.AdaptiveAvgPool2d(1)
    return pool if keepdim else nn.Sequential(pool, nn.Flatten())


def _amax(x: Tensor, dim: Any = (), keepdim: bool = False) -> nn.Module:
    dims = (dim,) if isinstance(dim, int) else tuple(dim) or tuple(range(x.dim()))
    dims = tuple(sorted(d % x.dim() for d in dims))
    if 0 in dims:
        raise Unsupported("a maximum over the batch mixes its samples; leave dimension 0 out")
    return MaxOver(dims, keepdim)


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> nn.Module:
    if training or running_mean is None or running_var is None:
        raise Unsupported(
            "it normalises by the batch, so it mixes its samples; train running statistics"
        )
    kind: Any = {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(x.dim(), nn.BatchNorm1d)
    module = kind(len(running_mean), eps, momentum, affine=weight is not None or bias is not None)
    module.to(running_mean.device, running_mean.dtype)
    given = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    with torch.no_grad():
        for name, value in given.items():
            if value is not None:
                getattr(module, name).copy_(value)
    return module.eval()


def _dropout(_: object, p: float = 0.5, training: bool = True, inplace: bool = False) -> nn.Module:
    if training:
        raise Unsupported("dropout with training=True is random at inference; pass self.training")
    return nn.Identity()


FUNCTIONS: dict[Any, Callable[..., nn.Module | None]] = {
    F.relu: _relu,
    F.relu_: _relu,
    torch.relu: _relu,
    torch.relu_: _relu,
    F.relu6: _relu6,
    F.hardtanh: _hardtanh,
    F.hardtanh_: _hardtanh,
    F.leaky_relu: _leaky_relu,
    F.leaky_relu_: _leaky_relu,
    torch.prelu: _prelu,
    F.rrelu: _rrelu,
    F.rrelu_: _rrelu,
    torch.rrelu: _rrelu,
    torch.rrelu_: _rrelu,
    F.threshold: _threshold,
    torch.clamp: _clamp,
    torch.clamp_: _clamp,
    torch.clip: _clamp,
    torch.clamp_min: _clamp_min,
    torch.clamp_max: _clamp_max,
    torch.abs: _abs,
    operator.abs: _abs,
    F.hardsigmoid: _hardsigmoid,
    F.max_pool1d: _max_pool(nn.MaxPool1d),
    F.max_pool2d: _max_pool(nn.MaxPool2d),
    F.max_pool3d: _max_pool(nn.MaxPool3d),
    torch.max_pool1d: _max_pool(nn.MaxPool1d),
    torch.max_pool2d: _max_pool(nn.MaxPool2d),
    torch.max_pool3d: _max_pool(nn.MaxPool3d),
    F.adaptive_max_pool1d: _adaptive_max_pool(nn.AdaptiveMaxPool1d),
    F.adaptive_max_pool2d: _adaptive_max_pool(nn.AdaptiveMaxPool2d),
    F.adaptive_max_pool3d: _adaptive_max_pool(nn.AdaptiveMaxPool3d),
    F.avg_pool1d: _avg_pool(nn.AvgPool1d),
    F.avg_pool2d: _avg_pool(nn.AvgPool2d),
    F.avg_pool3d: _avg_pool(nn.AvgPool3d),
    F.adaptive_avg_pool1d: _adaptive_avg_pool(nn.AdaptiveAvgPool1d),
    F.adaptive_avg_pool2d: _adaptive_avg_pool(nn.AdaptiveAvgPool2d),
    F.adaptive_avg_pool3d: _adaptive_avg_pool(nn.AdaptiveAvgPool3d),
    torch.mean: _mean,
    torch.amax: _amax,
    F.batch_norm: _batch_norm,
    F.dropout: _dropout,
    F.dropout1d: _dropout,
    F.dropout2d: _dropout,
    F.dropout3d: _dropout,
    torch.dropout: _dropout,
}

METHODS: dict[str, Callable[..., nn.Module | None]] = {
    "relu": _relu,
    "relu_": _relu,
    "prelu": _prelu,
    "clamp": _clamp,
    "clamp_": _clamp,
    "clip": _clamp,
    "clip_": _clamp,
    "clamp_min": _clamp_min,
    "clamp_min_": _clamp_min,
    "clamp_max": _clamp_max,
    "clamp_max_": _clamp_max,
    "abs": _abs,
    "abs_": _abs,
    "amax": _amax,
    "mean": _mean,
}


# Those of bounds, which a function of the input may have too, as in log(x.clamp(min=ε)).
BOUNDS = (_clamp, _clamp_min, _clamp_max, _abs)

_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def _batch_norm_of(module: Any) -> nn.Module:
    """BatchNorm with the running statistics of an InstanceNorm, which it uses in eval mode."""
    kind: Any = getattr(nn, type(module).__name__.replace("Instance", "Batch"))
    norm = kind(module.num_features, module.eps, affine=module.affine)
    norm.load_state_dict(module.state_dict())
    return norm.to(module.running_mean.device, module.running_mean.dtype).eval()


def standard_module(module: nn.Module) -> nn.Module | None:
    """The standard form of a module, or None to keep it."""
    if isinstance(module, nn.ReLU6):  # before Hardtanh, its base class
        return _relu6(None)
    if type(module) is nn.ReLU:
        return nn.ReLU()
    if type(module) is nn.Hardtanh:
        return _hardtanh(None, module.min_val, module.max_val)
    if type(module) is nn.Threshold:
        return _threshold(None, module.threshold, module.value)
    if type(module) is nn.LeakyReLU:
        return _leaky_relu(None, module.negative_slope)
    if type(module) is nn.RReLU:
        return _rrelu(None, module.lower, module.upper)
    if type(module) is nn.PReLU:
        return copy.deepcopy(module)
    if type(module) is nn.Hardsigmoid:
        return HardSigmoid()
    if isinstance(module, _INSTANCE_NORMS) and module.running_mean is not None:
        return _batch_norm_of(module)
    if isinstance(module, BoundedActivation):
        return copy.deepcopy(module)
    if isinstance(module, MAX_POOLS):
        if module.return_indices:
            raise Unsupported("indices of a max-pooling cannot be used by a spiking network")
        return copy.deepcopy(module)
    if isinstance(module, DROPOUTS):
        return nn.Identity()
    return None
