"""Weights rounded one input after the other, each making up for the errors of those before it."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .gram import cholesky, patches
from .layer import Layer, add_bias
from .ridge import has_patches, input_gram
from .weights import by_count, round_weights, weight_scale

__all__ = ["round_layer"]

_DAMPING = 0.01  # of the mean diagonal, for inputs that hardly vary
_LEAST_SCALE = 0.2  # of the one that clips nothing
_SCALES = 41  # that are tried
_BLOCK = 128  # inputs whose corrections reach the others at once
_FEW_BITS = 6  # with more there is nothing to gain
_EVERYWHERE = 0.02  # weight of the places where an output is not active
_ROWS = 2**16  # places that are looked at for every output, at most
_MOST_INPUTS = 1024  # of outputs with matrices of their own
_MATRIX_BYTES = 2**27  # of such matrices at a time


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
    :math:`\sum_i H_{ii} (w_i - s q_i)^2`: for few bits it pays to clip the largest weights. The largest
    of an output stays the largest integer, so that s can be read off them. Layers whose inputs have no
    Gram matrix (see :func:`~sj_burst.conversion.ridge.refit_weights`) are rounded to the nearest.

    Of a last layer that a ReLU of the read-out clips, what is below zero is as good as zero. There
    every output o has an H of its own, of where it is active (and a little of all places),

    .. math::
        H_o = \sum_{a_o > 0} \bar y \bar y^\top + 0.02 \sum \bar y \bar y^\top,

    if it has no windows, up to a thousand inputs, and six bits or fewer. That is derived here.

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
    outputs = len(module.weight) // groups
    alone = bits <= _FEW_BITS and _clips_places(layer)
    together = 1 if alone else outputs  # outputs that have the same matrix
    unit = _columns(module, layer.unit, groups)  # what a count of every input weighs [G, inputs]
    unit = torch.cat([unit, unit.new_ones(groups, 1)], 1).repeat_interleave(outputs // together, 0)
    weight = module.weight.detach().double().reshape(len(unit), together, -1) * unit[:, None, :-1]
    scale = weight_scale(by_count(module, layer.unit), bits).reshape(len(unit), together)
    matrices = _active_grams(layer, groups) if alone else [input_gram(layer, groups)]
    found = _round(weight, scale, unit, matrices, 2 ** (bits - 1) - 1)
    if found is None:  # inputs that are next to nothing
        round_weights(module, bits, layer.unit)
        return
    new, bias = found
    module.weight = nn.Parameter((new / unit[:, None, :-1]).reshape(shape).to(dtype))
    add_bias(module, bias.flatten().to(dtype))


def _clips_places(layer: Layer) -> bool:
    """Whether a ReLU of the read-out clips a layer whose outputs see one place each."""
    module: Any = layer.affine
    windows = not isinstance(module, nn.Linear) and module.weight[0, 0].numel() > 1
    return layer.clipped and not windows and module.weight[0].numel() <= _MOST_INPUTS


def _active_grams(layer: Layer, groups: int) -> Iterator[Tensor]:
    """H of one output after the other, of where it is active ``[some, inputs + 1, inputs + 1]``."""
    module: Any = layer.affine
    whole = input_gram(layer, groups)
    places = whole[0, -1, -1].item()
    step, seen, active = math.ceil(places / _ROWS), [], []
    for y, a in zip(layer.inputs, layer.targets, strict=True):
        y = y.to(layer.device, torch.promote_types(y.dtype, torch.float32))
        seen.append(patches(module, y, groups)[:, ::step].contiguous())  # no view of all
        a = a.movedim(-1 if isinstance(module, nn.Linear) else 1, 0).flatten(1)
        active.append(a[:, ::step].to(layer.device) > 0)
    rows, on = torch.cat(seen, 1), torch.cat(active, 1).unflatten(0, (groups, -1))
    some = max(1, _MATRIX_BYTES // (8 * whole[0].numel()))
    for group in range(groups):
        rest = _EVERYWHERE * rows.shape[1] / places * whole[group]
        for part in on[group].split(some):
            chosen = (rows[group, mask] for mask in part)
            yield torch.stack([(u.mT @ u).double() for u in chosen]) + rest


def _round(
    weight: Tensor, scale: Tensor, unit: Tensor, matrices: Iterable[Tensor], most: int
) -> tuple[Tensor, Tensor] | None:
    """Rounded weights by count ``[H, R, inputs]``, and what the bias has to make up for ``[H, R]``.

    ``None`` if a matrix has no factor.

    Args:
        weight: by count, of H matrices with R outputs each ``[H, R, inputs]``.
        scale: that clips nothing ``[H, R]``.
        unit: what a count of every input weighs, and a one ``[H, inputs + 1]``.
        matrices: all H of them, some at a time.
        most: the largest integer.
    """
    rounded, bias = [], []
    start = 0
    for gram in matrices:
        these = slice(start, start + len(gram))
        start = these.stop
        gram = gram / (unit[these].unsqueeze(1) * unit[these].unsqueeze(2))
        w = weight[these]
        s = _clipped(w, scale[these], gram.diagonal(dim1=1, dim2=2)[:, :-1], most)
        found = _round_some(w, s, gram, most)
        if found is None:
            return None
        q, left = found
        rounded.append(q * s.unsqueeze(2))
        bias.append(left)
    return torch.cat(rounded), torch.cat(bias)


def _clipped(weight: Tensor, scale: Tensor, energy: Tensor, most: int) -> Tensor:
    """The scale of each output that loses least, of fractions of the one that clips nothing."""
    best, least = scale, torch.full_like(scale, math.inf)
    for fraction in torch.linspace(1.0, _LEAST_SCALE, _SCALES).tolist():
        tried = (fraction * scale).unsqueeze(2)
        error = ((weight / tried).round().clamp(-most, most) * tried - weight).square()
        loss = (error @ energy.unsqueeze(2)).squeeze(2)
        best = torch.where(loss < least, tried.squeeze(2), best)
        least = torch.minimum(loss, least)
    return best


def _round_some(weight: Tensor, scale: Tensor, gram: Tensor, most: int) -> tuple[Tensor, Tensor] | None:
    """Integers ``[H, R, inputs]``, and what the bias has to make up for ``[H, R]``.

    ``None`` if a matrix has no factor.

    Args:
        weight: in units of counts ``[H, R, inputs]``.
        scale: s ``[H, R]``.
        gram: of counts and a one for the bias ``[H, inputs + 1, inputs + 1]``.
        most: the largest integer.
    """
    inputs = weight.shape[2]
    energy = gram.diagonal(dim1=1, dim2=2)[:, :-1]
    order = energy.argsort(1, descending=True)
    factor = _factor(gram, torch.cat([order, torch.full_like(order[:, :1], inputs)], 1))
    if factor is None:
        return None
    where = order.unsqueeze(1).expand_as(weight)
    largest = weight.abs().argmax(2, keepdim=True)
    anchored = where == largest
    sign = weight.gather(2, largest).squeeze(2).sign()
    left = torch.cat([weight.gather(2, where), weight.new_zeros(*weight.shape[:2], 1)], 2)
    q = torch.zeros_like(weight)
    for start in range(0, inputs, _BLOCK):
        stop = min(start + _BLOCK, inputs)
        errors = left.new_empty(*left.shape[:2], stop - start)
        for i in range(start, stop):
            level = (left[..., i] / scale).round().clamp(-most, most)
            q[..., i] = torch.where(anchored[..., i], sign * most, level)
            error = (left[..., i] - q[..., i] * scale) / factor[:, i, i, None]
            errors[..., i - start] = error
            left[..., i:stop] -= error.unsqueeze(2) * factor[:, i, None, i:stop]
        left[..., stop:] -= errors @ factor[:, start:stop, stop:]
    return torch.zeros_like(q).scatter_(2, where, q), left[..., -1]


def _factor(gram: Tensor, order: Tensor) -> Tensor | None:
    """Upper factors of the inverses of damped matrices, with their inputs in an order.

    Row i is what is left of the inverse after the inputs before i.
    """
    h = gram.gather(1, order.unsqueeze(2).expand_as(gram))
    h = h.gather(2, order.unsqueeze(1).expand_as(gram))
    energy = gram.diagonal(dim1=1, dim2=2)[:, :-1]
    damping = _DAMPING * energy.mean(1, keepdim=True).clamp_min(1e-30)
    lower = cholesky(h + torch.diag_embed(damping.expand(-1, h.shape[1])))
    lower = None if lower is None else cholesky(torch.cholesky_inverse(lower))
    return None if lower is None else lower.mT


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
