"""Weights of few bits: symmetric, one scale per output channel."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, fx, nn

from ..graph.evaluate import record
from ..graph.operators import TRANSPOSED_CONVOLUTIONS, WEIGHTED
from ..graph.trace import call_sites, is_module
from ..graph.units import Shapes, count_units, meets_channels, scale_inputs

__all__ = [
    "by_count",
    "integer_weights",
    "round_all",
    "round_weights",
    "unit_met",
    "weight_scale",
    "weighted_layers",
]


def weight_scale(layer: Any, bits: int) -> Tensor:
    r"""The scale of every output channel, shaped to divide the weights.

    .. math::
        s_o = \max_{c} |W_{oc}| / (2^{b-1} - 1)

    Args:
        layer: a linear or convolutional layer.
        bits: b ≥ 2.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> layer.weight.data = torch.tensor([[0.5, -1.27]])
        >>> weight_scale(layer, 8)
        tensor([[0.0100]])
    """
    weight = layer.weight.detach()
    most = 2 ** (bits - 1) - 1
    if isinstance(layer, TRANSPOSED_CONVOLUTIONS):  # [inputs, outputs/groups, ...]
        parts = weight.unflatten(0, (layer.groups, -1)).abs()
        dims = [1, *range(3, parts.dim())]
        largest = parts.amax(dims, keepdim=True).expand(-1, parts.shape[1], *parts.shape[2:])
        largest = largest.flatten(0, 1)[:, :, *[slice(0, 1)] * (weight.dim() - 2)]
    else:
        largest = weight.abs().amax(list(range(1, weight.dim())), keepdim=True)
    return (largest / most).clamp_min(torch.finfo(weight.dtype).tiny)


@torch.no_grad()
def integer_weights(layer: Any, bits: int, unit: Tensor | None = None) -> tuple[Tensor, Tensor, float]:
    r"""The integers that :func:`round_weights` rounds to, or has rounded to.

    .. math::
        q_{oc} = \mathrm{round}(W_{oc} u_c / s_o)

    Args:
        layer: a linear or convolutional layer.
        bits: b, from 2 to 16.
        unit: u, a scalar or ``[inputs]``; ``None`` for 1.

    Returns:
        q in int8, or int16 above 8 bits; s of every output channel; and how far the weights are from
        q s, in units of s, at most.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> layer.weight.data = torch.tensor([[0.5, -1.27]])
        >>> q, scale, rest = integer_weights(layer, 8)
        >>> q.tolist(), scale, rest < 1e-4
        ([[50, -127]], tensor([0.0100]), True)
    """
    counted = by_count(layer, unit)
    scale = weight_scale(counted, bits)
    levels = counted.weight.detach() / scale
    q = levels.round()
    if isinstance(layer, TRANSPOSED_CONVOLUTIONS):  # [inputs, outputs/groups, ...], by group the same
        scale = scale.unflatten(0, (layer.groups, -1))[:, 0]
    return (
        q.to(torch.int8 if bits <= 8 else torch.int16),
        scale.flatten().to(layer.weight.dtype),
        (levels - q).abs().max().item(),
    )


@torch.no_grad()
def round_weights(layer: Any, bits: int, unit: Tensor | None = None) -> None:
    r"""Round the weights of a layer to integers of b bits times the scale of their output channel.

    .. math::
        W_{oc} \leftarrow s_o q_{oc} / u_c, \qquad q_{oc} = \mathrm{round}(W_{oc} u_c / s_o)

    with what a count of input c weighs, u: so that counts meet integers, whatever the thresholds.

    Args:
        layer: a linear or convolutional layer, which gets a new parameter.
        bits: b ≥ 2; integers from −(2^{b−1} − 1) to 2^{b−1} − 1.
        unit: u, a scalar or ``[inputs]``; ``None`` for an input that is not made of counts.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> layer.weight.data = torch.tensor([[0.5, -1.0]])
        >>> round_weights(layer, 3)
        >>> layer.weight.tolist()
        [[0.6666666865348816, -1.0]]
    """
    counted = by_count(layer, unit)
    scale = weight_scale(counted, bits)
    counted.weight = nn.Parameter((counted.weight.detach() / scale).round() * scale)
    if unit is not None:
        scale_inputs(counted, 1 / unit.double())
    layer.weight = nn.Parameter(counted.weight.detach().to(layer.weight.dtype))


def by_count(layer: Any, unit: Tensor | None) -> Any:
    """A copy of a layer whose weights are those that a count meets, in double precision.

    1/u may be more than half precision holds.

    Args:
        layer: a linear or convolutional layer.
        unit: u, a scalar or ``[inputs]``; ``None`` for 1.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> layer.weight.data = torch.tensor([[0.5]])
        >>> by_count(layer, torch.tensor(4.0)).weight.item()
        2.0
    """
    copied = copy.deepcopy(layer).double()
    if unit is not None:
        scale_inputs(copied, unit.double())
    return copied


def weighted_layers(gm: fx.GraphModule) -> list[str]:
    """The names of the linear and convolutional layers that a graph calls, in order."""
    return list(dict.fromkeys(str(n.target) for n in gm.graph.nodes if is_module(gm, n, WEIGHTED)))


def round_all(gm: fx.GraphModule, bits: Mapping[str, int], x: Any) -> None:
    """Round the weights of all layers, those that several calls share without regard to their inputs.

    Args:
        gm: a converted graph; its layers are changed.
        bits: b ≥ 2 of each of :func:`weighted_layers`.
        x: an example input.
    """
    shapes = {n: v.shape for n, v in record(gm, x).items() if isinstance(v, Tensor)}
    reset_net(gm)
    units = count_units(gm, shapes)
    done = set()
    for node in gm.graph.nodes:
        if is_module(gm, node, WEIGHTED) and node.target not in done:
            done.add(node.target)
            layer = gm.get_submodule(str(node.target))
            round_weights(layer, bits[str(node.target)], unit_met(gm, node, shapes, units))


def unit_met(
    gm: fx.GraphModule, node: fx.Node, shapes: Shapes, units: Mapping[fx.Node, Tensor]
) -> Tensor | None:
    """The unit of the counts that a layer reads; ``None`` if it has no counts to itself."""
    unit = units.get(node.all_input_nodes[0])
    alone = call_sites(gm, node.target) == 1
    return unit if unit is not None and alone and meets_channels(gm, node, shapes, unit) else None
