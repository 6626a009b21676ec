"""What a count weighs: scales of values and weights, channel by channel."""

import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..functional import per_channel
from ..modules.neuron import BurstIFNode
from ..modules.pooling import GatedPool, LIPool, MaxOver
from .operators import AVERAGE_POOLS, TRANSPOSED_CONVOLUTIONS, WEIGHTED
from .trace import is_module

__all__ = [
    "FLATTENING",
    "Shapes",
    "count_units",
    "meets_channels",
    "passed_on",
    "scale_inputs",
    "scale_outputs",
    "sends_counts",
]

Shapes = Mapping[fx.Node, torch.Size]


def count_units(gm: fx.GraphModule, shapes: Shapes) -> dict[fx.Node, Tensor]:
    """What one count weighs, for every value that is made of counts of neurons; others are left out.

    Args:
        gm: a converted graph.
        shapes: of the values of its nodes.

    Returns:
        Scalars, or one value per channel (dimension 1).

    Example:
        >>> import sj_burst
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> options = {"max_spikes": 2, "threshold": "max", "calibration": "none"}
        >>> snn = sj_burst.convert(ann, [torch.eye(3)], **options, channel_wise=False, progress=False)
        >>> [(str(node.target), unit.dim()) for node, unit in count_units(snn.graph, {}).items()]
        [('1', 0)]
    """
    units: dict[fx.Node, Tensor] = {}
    for node in gm.graph.nodes:
        unit: Tensor | None
        if is_module(gm, node, BurstIFNode):
            neuron: Any = gm.get_submodule(str(node.target))
            unit = neuron.threshold.detach() if sends_counts(neuron) else None
        else:
            unit = passed_on(gm, node, shapes, units)
        if unit is not None and unit.dim() <= 1:
            units[node] = unit
    return units


def sends_counts(module: nn.Module) -> bool:
    """Whether a neuron sends θ times integers; a spike of a leaky one weighs less below zero.

    Example:
        >>> sends_counts(BurstIFNode()), sends_counts(BurstIFNode(negative_slope=0.1))
        (True, False)
    """
    return type(module) is BurstIFNode and module.negative_slope is None


def passed_on(
    gm: fx.GraphModule, node: fx.Node, shapes: Shapes, units: Mapping[fx.Node, Tensor]
) -> Tensor | None:
    """The unit of what an operation returns that treats every channel for itself; ``None`` for others.

    A concatenation counts values without a unit as having one of 1.
    """
    known = [units[n] for n in node.all_input_nodes if n in units]
    if not known or any(unit.dim() > 1 for unit in known):
        return None
    if is_module(gm, node, _KEEP):
        pool = getattr(gm.get_submodule(str(node.target)), "pool", None)
        return None if isinstance(pool, MaxOver) else known[0]
    if node.target is torch.cat and (node.args[1:] == (1,) or node.kwargs == {"dim": 1}):
        one = torch.ones_like(known[0]).flatten()[0]
        joined: Any = node.args[0]  # a value may be there twice
        parts = [units.get(n, one).expand(shapes[n][1]) for n in joined]
        return torch.cat(parts)
    sources = [n for n in node.all_input_nodes if n in shapes]
    if len(sources) != 1 or node not in shapes:
        return None
    shape = shapes[sources[0]]
    if _flattens(gm, node, shape, shapes[node]):
        return per_channel(known[0], len(shape)).expand(1, *shape[1:]).flatten()
    if node.target is operator.getitem:
        return _of_part(known[0], node.args[1], len(shape))
    if node.target is F.pad:
        return _of_padded(known[0], node, len(shape))
    return None


def _of_part(unit: Tensor, index: Any, dim: int) -> Tensor | None:
    """The unit of a part that slices leave, of all samples."""
    whole = slice(None)
    if not isinstance(index, tuple) or not all(isinstance(i, slice) for i in index[:dim]):
        return None
    if index[0] != whole or len(index) > dim:
        return None
    if unit.dim() == 0 or len(index) < 2 or index[1] == whole:
        return unit
    numbers = (index[1].start, index[1].stop, index[1].step)
    return unit[index[1]] if all(n is None or isinstance(n, int) for n in numbers) else None


def _of_padded(unit: Tensor, node: fx.Node, dim: int) -> Tensor | None:
    """The unit of a value padded with zeros, which are zero in every unit."""
    names = dict(zip(("input", "pad", "mode", "value"), node.args, strict=False)) | node.kwargs
    pads: Any = names["pad"]
    if names.get("mode", "constant") != "constant" or names.get("value") not in (None, 0):
        return None
    if not all(isinstance(n, int) for n in pads) or len(pads) > 2 * (dim - 1):
        return None
    channels = tuple(pads[2 * (dim - 2) :])  # the last dimension comes first
    if unit.dim() == 0 or channels in ((), (0, 0)):
        return unit
    return F.pad(unit, channels, value=1.0)


# Modules that act on every channel for itself, and pass a positive factor on.
_KEEP = (LIPool, GatedPool, *AVERAGE_POOLS, nn.Upsample)


def _flattens(gm: fx.GraphModule, node: fx.Node, before: torch.Size, after: torch.Size) -> bool:
    flat = is_module(gm, node, nn.Flatten) or node.target in FLATTENING
    return flat and len(after) == 2 and after[0] == before[0]


FLATTENING = (torch.flatten, "flatten", torch.reshape, "reshape", "view")


def meets_channels(gm: fx.GraphModule, node: fx.Node, shapes: Shapes, unit: Tensor) -> bool:
    """Whether the inputs of a layer are dimension 1 of what it reads, as those of its unit are."""
    linear = is_module(gm, node, nn.Linear)
    by_channel = unit.dim() == 0 or not linear or len(shapes[node.all_input_nodes[0]]) == 2
    return is_module(gm, node, WEIGHTED) and by_channel


def scale_inputs(layer: Any, scale: Tensor) -> None:
    """Weights times the scale of what they meet, a scalar or ``[inputs]``.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> before = layer(torch.tensor([[3.0, 8.0]]))
        >>> scale_inputs(layer, torch.tensor([1.0, 4.0]))
        >>> torch.allclose(layer(torch.tensor([[3.0, 2.0]])), before)
        True
    """
    groups, dims = getattr(layer, "groups", 1), layer.weight.dim()
    if scale.dim() == 0:
        columns = scale
    elif isinstance(layer, TRANSPOSED_CONVOLUTIONS):  # [inputs, outputs/groups, ...]
        columns = scale.view(-1, *[1] * (dims - 1))
    else:  # [outputs, inputs/groups, ...]
        each = layer.weight.shape[0] // groups
        columns = scale.view(groups, -1, *[1] * (dims - 2)).repeat_interleave(each, 0)
    layer.weight = _product(layer.weight, columns)


def scale_outputs(layer: Any, scale: Tensor) -> None:
    """What a layer returns times a scale, a scalar or ``[outputs]``, by its weights and bias.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = layer(torch.ones(1, 2))
        >>> scale_outputs(layer, torch.tensor([1.0, 4.0]))
        >>> torch.allclose(layer(torch.ones(1, 2)), before * torch.tensor([1.0, 4.0]))
        True
    """
    weight: Tensor = layer.weight
    groups, dims = getattr(layer, "groups", 1), weight.dim()
    if scale.dim() == 0:
        rows = scale
    elif isinstance(layer, TRANSPOSED_CONVOLUTIONS):
        each = len(weight) // groups
        rows = scale.view(groups, -1, *[1] * (dims - 2)).repeat_interleave(each, 0)
    else:
        rows = scale.view(-1, *[1] * (dims - 1))
    layer.weight = _product(weight, rows)
    if layer.bias is not None:
        layer.bias = _product(layer.bias, scale)


def _product(parameter: Tensor, scale: Tensor) -> nn.Parameter:
    """Rounded once: 1/θ may be more than half precision holds."""
    return nn.Parameter((parameter.detach().double() * scale.double()).to(parameter.dtype))
