"""Weights rounded one input after the other, each making up for the errors of those before it."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .gram import cholesky
from .layer import Layer, add_bias
from .ridge import has_patches, input_gram
from .weights import by_count, round_weights, weight_scale

__all__ = ["round_layer"]

_DAMPING = 0.01  # of the mean diagonal, for inputs that hardly vary
_LEAST_SCALE = 0.2  # of the one that clips nothing
_SCALES = 41  # that are tried
_FEW = 6  # bits, up to which scales are tried
_AROUND = (0.6, 0.7, 0.8, 0.87, 0.93, 1.0, 1.07, 1.15, 1.25, 1.4)  # times the scale
_AT_ONCE = 2**23  # weights with all their scales
_BLOCK = 128  # inputs whose corrections reach the others at once


@torch.no_grad()
def round_layer(layer: Layer, bits: int) -> None:
    r"""Round the weights before a neuron to integers of b bits times a scale per output channel.

    Inputs i are taken one after the other, those with the most energy first. What rounding one of them
    does to the output, the inputs j that are left make up for in the least-squares sense,

    .. math::
        w_j \leftarrow w_j - \frac{w_i - s q_i}{[H^{-1}]_{ii}} [H^{-1}]_{ij}, \qquad
        H = \sum \bar y \bar y^\top,

    with the mean spike input ȳ of the calibrated prefix; the bias comes last. The scale s of an output
    is, of fractions of the one that clips nothing, that with the least
    :math:`\sum_i H_{ii} (w_i - s q_i)^2`: for few bits it pays to clip the largest weights. Of few bits,
    scales around it are tried, and the one is taken that leaves the least
    :math:`(w - s q)^\top H (w - s q)` after all is rounded; s is then fitted to its integers (our own
    addition). The largest weight of an output stays the largest integer, so that s can be read off them.
    Layers whose inputs have no Gram matrix (see :func:`~sj_burst.conversion.ridge.refit_weights`) are
    rounded to the nearest.

    Source: Frantar et al., "GPTQ: accurate post-training quantization for generative pre-trained
    transformers", ICLR 2023, after Hassibi & Stork, 1993.
    """
    module: Any = layer.affine
    if module is None:
        return
    if not has_patches(module):
        round_weights(module, bits, layer.unit)
        return
    groups = getattr(module, "groups", 1)
    dtype, shape = module.weight.dtype, module.weight.shape
    unit = _columns(module, layer.unit, groups)  # what a count of every input weighs [G, inputs]
    weight = module.weight.detach().double().flatten(1).unflatten(0, (groups, -1)) * unit.unsqueeze(1)
    scale = weight_scale(by_count(module, layer.unit), bits).flatten().unflatten(0, (groups, -1))
    gram = input_gram(layer, groups)
    ones = unit.new_ones(groups, 1)
    units = torch.cat([unit, ones], 1)
    gram = gram / (units.unsqueeze(1) * units.unsqueeze(2))
    rounded, bias = [], []
    for w, s, h in zip(weight, scale, gram, strict=True):
        most = 2 ** (bits - 1) - 1
        s = _clipped(w, s, h.diagonal()[:-1], most)
        left = _Left.of(h)
        if left is None:  # inputs that are next to nothing
            round_weights(module, bits, layer.unit)
            return
        q, s, b = _search(w, s, h, left, most) if bits <= _FEW else _round(w, s, left, most)
        rounded.append(q * s.unsqueeze(1))
        bias.append(b)
    new = torch.stack(rounded) / unit.unsqueeze(1)
    module.weight = nn.Parameter(new.reshape(shape).to(dtype))
    add_bias(module, torch.cat(bias).to(dtype))


def _clipped(weight: Tensor, scale: Tensor, energy: Tensor, most: int) -> Tensor:
    """The scale of each output that loses least, of fractions of the one that clips nothing."""
    best, least = scale, torch.full_like(scale, math.inf)
    for fraction in torch.linspace(1.0, _LEAST_SCALE, _SCALES).tolist():
        tried = (fraction * scale).unsqueeze(1)
        error = ((weight / tried).round().clamp(-most, most) * tried - weight).square() @ energy
        best = torch.where(error < least, tried.squeeze(1), best)
        least = torch.minimum(error, least)
    return best


class _Left(NamedTuple):
    """What is left of the inverse of H after the inputs that are rounded before others."""

    order: Tensor  # of the inputs, and the bias last
    factor: Tensor  # whose rows that is

    @classmethod
    def of(cls, gram: Tensor) -> "_Left | None":
        """For H of counts and a one ``[inputs + 1, inputs + 1]``; ``None`` if it has no factor."""
        energy = gram.diagonal()[:-1]
        order = torch.cat([energy.argsort(descending=True), energy.new_tensor([len(energy)]).long()])
        h = gram[order][:, order]
        damping = _DAMPING * energy.mean().clamp_min(1e-30)
        h = h + torch.diag(torch.full_like(h.diagonal(), float(damping)))
        lower = cholesky(h)
        lower = None if lower is None else cholesky(torch.cholesky_inverse(lower))
        return None if lower is None else cls(order, lower.mT)


def _search(
    weight: Tensor, scale: Tensor, gram: Tensor, left: _Left, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`_round`, with the scale around the given one that leaves the least error."""
    samples = gram[-1, -1]
    mean = gram[-1, :-1] / samples
    centred = gram[:-1, :-1] - samples * mean.outer(mean)  # what the bias leaves

    def product(a: Tensor, b: Tensor) -> Tensor:
        return ((a @ centred) * b).sum(-1)

    found = []
    around = torch.tensor(_AROUND, dtype=scale.dtype, device=scale.device).unsqueeze(1)
    at_once = max(1, _AT_ONCE // (len(around) * weight.shape[1]))
    for w, s in zip(weight.split(at_once), scale.split(at_once), strict=True):
        tried = around * s
        q = _round(w.repeat(len(around), 1), tried.flatten(), left, most)[0].unflatten(0, tried.shape)
        fitted = product(q, w) / product(q, q).clamp_min(1e-30)
        fitted = torch.where(fitted > 0, fitted, tried)
        error = w - q * fitted.unsqueeze(-1)
        best = product(error, error).argmin(0), torch.arange(len(w), device=w.device)
        found.append((q[best], fitted[best], error[best] @ mean))
    q, scale, bias = (torch.cat(parts) for parts in zip(*found, strict=True))
    return q, scale, bias


def _round(weight: Tensor, scale: Tensor, left: _Left, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Integers ``[outputs, inputs]``, their scale, and what the bias has to make up for ``[outputs]``.

    Args:
        weight: in units of counts ``[outputs, inputs]``.
        scale: s ``[outputs]``.
        left: of H.
        most: the largest integer.
    """
    (order, factor), inputs = left, weight.shape[1]
    largest = weight.abs().argmax(1)
    rest = torch.cat([weight, weight.new_zeros(len(weight), 1)], 1)[:, order]
    anchored = order == largest.unsqueeze(1)
    sign = weight.gather(1, largest.unsqueeze(1)).squeeze(1).sign()
    q = torch.zeros_like(rest)
    for start in range(0, inputs, _BLOCK):
        stop = min(start + _BLOCK, inputs)
        errors = rest.new_empty(len(rest), stop - start)
        for i in range(start, stop):
            level = (rest[:, i] / scale).round().clamp(-most, most)
            q[:, i] = torch.where(anchored[:, i], sign * most, level)
            errors[:, i - start] = (rest[:, i] - q[:, i] * scale) / factor[i, i]
            rest[:, i:stop] -= errors[:, i - start, None] * factor[i, i:stop]
        rest[:, stop:] -= errors @ factor[start:stop, stop:]
    return q[:, :-1][:, order[:-1].argsort()], scale, rest[:, -1]


def _columns(module: Any, unit: Tensor | None, groups: int) -> Tensor:
    """What a count of every input weighs, in the order of the weights ``[groups, inputs]``."""
    inputs = module.weight[0].numel()
    if unit is None:
        return module.weight.new_ones(groups, inputs, dtype=torch.float64)
    unit = unit.to(module.weight.device).double()
    if unit.dim() == 0:
        return unit.expand(groups, inputs)
    taps = module.weight[0, 0].numel()
    return unit.view(groups, -1).repeat_interleave(taps, 1)
