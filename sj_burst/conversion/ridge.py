"""Advanced calibration: the affine map before a neuron refitted by ridge regression."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import grad

from .gram import cholesky, gram, padding_of
from .layer import Layer, add_bias, channel_sum

__all__ = ["has_patches", "input_gram", "refit_weights"]


def refit_weights(layer: Layer, ridge: float = 0.15, iterations: int = 3) -> None:
    r"""Advanced calibration: refit the affine map before the neuron by ridge regression.

    .. math::
        \min_{W, b} \sum \| \mathrm{ReLU}(W \bar y + b + \bar s) - a \|^2
        + \lambda \| W - W_0 \|^2

    with the mean spike input ȳ of the calibrated prefix, the ANN's activation a, the mean s̄ of a
    residual branch, and λ = ``ridge`` · mean of the diagonal of Σ ȳȳᵀ. The first iteration fits the
    ANN's pre-activation; the following ones ask of inactive neurons only that they stay below zero, and
    go 1.8 times as far as least squares would (up to twice, no such step can raise the loss); where a
    leaky activation follows, the first is all. A last layer that a ReLU of the read-out clips is fitted
    likewise, with a λ of 10/3 that size: few images activate each of its outputs. The published method
    runs Adam on the activation; this closed form is our own variant. Other layers (transposed,
    three-dimensional, ``padding_mode`` other than zeros, ``padding="same"`` of an even kernel, more than
    8192 inputs per output) keep their weights, and so do layers before a neuron whose current is right
    already: to 30 dB, a squared error of a thousandth of its variance.

    Source: after Li et al., ICML 2021, and "Parameter calibration", IJCV 2024.
    """
    module = layer.affine
    if module is None or not has_patches(module) or _is_right(layer):
        return
    groups = getattr(module, "groups", 1)
    gram = input_gram(layer, groups)
    ridge = _CLIPPED_RIDGE * ridge if layer.clipped else ridge
    penalty = gram.diagonal(dim1=1, dim2=2).clone()
    penalty[:, :-1] = ridge * penalty[:, :-1].mean(1, keepdim=True)
    penalty[:, -1] *= 1e-6  # the bias is not penalised
    penalty += 1e-12 * penalty.max()
    factor = cholesky(gram + torch.diag_embed(penalty))
    if factor is None:  # nothing to go by
        return
    original = _grouped(module.weight, groups).double()  # [G, outputs, inputs]
    for iteration in range(iterations if layer.one_sided else 1):
        moment = _moment(layer, groups, one_sided=iteration > 0)
        # The penalty pulls to the original weights, not to those of the last iteration.
        weight = _grouped(module.weight, groups).double()
        moment[:, :, :-1] -= penalty[:, None, :-1] * (weight - original)
        update = torch.cholesky_solve(moment.mT, factor) * (_RELAXED if iteration > 0 else 1)
        if not update.isfinite().all():  # infinite activations
            return
        new = weight + update[:, :-1].mT
        # New parameters, not in place: another module may be tied to the old ones.
        dtype, shape = module.weight.dtype, module.weight.shape
        module.weight = nn.Parameter(new.reshape(shape).to(dtype))
        add_bias(module, update[:, -1].flatten().to(dtype))


def _is_right(layer: Layer) -> bool:
    """Whether the current of a neuron is that of the ANN already, on the first images."""
    if layer.neuron is None:
        return False
    module: Any = layer.affine
    dim, dtype = _channel_dim(module), torch.promote_types(module.weight.dtype, torch.float32)
    errors: Any = 0.0
    squares: Any = 0.0
    total: Any = 0.0
    samples = images = 0
    for y, wanted, residual in zip(layer.inputs, layer.wanted, layer.residuals, strict=True):
        z = wanted.to(layer.device, dtype)
        errors += (z - module(y.to(layer.device))).square_().sum().double()
        z = z + residual.to(layer.device, dtype)
        total = total + channel_sum(z, dim).double()
        squares = squares + channel_sum(z.square_(), dim).double()
        samples += z.numel() // len(squares)
        images += len(wanted)
        if images >= _IMAGES:
            break
    variance = squares - total.square() / samples
    return bool(errors <= _RIGHT * variance.sum())


def input_gram(layer: Layer, groups: int) -> Tensor:
    """Σ x xᵀ per group, of what each output sees; summed once for a layer."""
    if layer.gram is None:
        total: Any = 0.0
        for (y,) in _chunks(layer.affine.weight[0].numel() ** 2, layer.inputs):
            y = y.to(layer.device, torch.promote_types(y.dtype, torch.float32))
            total = total + gram(layer.affine, y, groups)
        layer.gram = total
    assert layer.gram is not None
    return layer.gram


def _chunks(summed: int, *values: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Batches, several in one where they are small beside the matrices that are summed over them.

    Args:
        summed: elements of such a matrix.
        *values: of every batch, that of the inputs first.
    """
    least = min(_CHUNK, summed)
    held: list[tuple[Tensor, ...]] = []
    for i, batch in enumerate(zip(*values, strict=True)):
        held.append(batch)
        size = sum(one[0].numel() for one in held)
        if size >= least or i == len(values[0]) - 1:
            # A zero stands for every sample.
            alone = len(held) == 1
            yield [
                part[0] if alone or part[0].dim() == 0 else torch.cat(part)
                for part in zip(*held, strict=True)
            ]
            held = []


def _moment(layer: Layer, groups: int, one_sided: bool) -> Tensor:
    r"""Σ of what is missing in the output times the input and a one ``[G, outputs, inputs + 1]``.

    Where all of the output counts, :math:`\sum (z - W \bar y) \bar y^\top = \sum z \bar y^\top - W G`.
    """
    module = _wide(layer.affine)
    device, dtype = layer.device, module.weight.dtype
    moment: Any = 0.0
    total: Any = 0.0
    values = (layer.inputs, layer.wanted, layer.targets, layer.residuals)
    for y, wanted, a, residual in _chunks(module.weight.numel(), *values):
        y, missing = y.to(device, dtype), wanted.to(device, dtype)
        if one_sided:
            out = module(y)
            missing = missing - out
            # −excess where inactive; torch.where takes several times as long.
            active = a.to(device, dtype).clamp_min(0).sign_()
            excess = out.add_(residual.to(device, dtype)).clamp_min_(0)
            missing = missing.add_(excess).mul_(active).sub_(excess)
        moment = moment + _grouped(_weight_gradient(module, y, missing), groups).double()
        total = total + channel_sum(missing, _channel_dim(module)).double()
    moment = torch.cat([moment, total.view(groups, -1, 1)], 2)
    return moment if one_sided else moment - _with_bias(module, groups) @ input_gram(layer, groups)


def _with_bias(module: Any, groups: int) -> Tensor:
    """Weights, and the bias as that of a one ``[G, outputs, inputs + 1]``, in double precision."""
    weight = _grouped(module.weight, groups).double()
    bias = weight.new_zeros(weight[..., 0].shape) if module.bias is None else module.bias.detach()
    return torch.cat([weight, bias.double().view(groups, -1, 1)], 2)


def _wide(module: Any) -> Any:
    """The module, or of one in half precision, which holds no sums, a copy in single precision."""
    wide = torch.promote_types(module.weight.dtype, torch.float32)
    return module if module.weight.dtype == wide else copy.deepcopy(module).to(wide)


def _weight_gradient(module: Any, x: Tensor, rows: Tensor) -> Tensor:
    """Σ rows xᵀ over all places where the module's weights meet the input ``x``."""
    if isinstance(module, nn.Linear):
        return rows.flatten(0, -2).mT @ x.flatten(0, -2)
    gradient = grad.conv1d_weight if isinstance(module, nn.Conv1d) else grad.conv2d_weight
    options = (module.stride, padding_of(module), module.dilation, module.groups)
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        return gradient(x, module.weight.shape, rows, *options)


_RELAXED = 1.8  # times a step
_CLIPPED_RIDGE = 10 / 3  # times λ
_RIGHT = 1e-3  # of the variance
_IMAGES = 64  # that tell whether a layer is
_CHUNK = 2**22  # inputs at once


def has_patches(module: Any) -> bool:
    """Whether the inputs of a layer have a Gram matrix here."""
    if isinstance(module, nn.Linear):
        return module.in_features <= 8192
    if not isinstance(module, nn.Conv1d | nn.Conv2d) or padding_of(module) is None:
        return False
    return module.padding_mode == "zeros" and module.weight[0].numel() <= 8192


def _grouped(weight: Tensor, groups: int) -> Tensor:
    return weight.detach().flatten(1).unflatten(0, (groups, -1))


def _channel_dim(module: nn.Module) -> int:
    return -1 if isinstance(module, nn.Linear) else 1
