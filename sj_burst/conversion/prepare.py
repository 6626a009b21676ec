"""From a network to a checked and fused graph of plain modules."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from ..graph.check import (
    check_batch_independent,
    check_equal,
    check_equal_elsewhere,
    check_same,
    check_supported,
    doubled,
    find_readout,
    in_double,
)
from ..graph.fuse import fuse
from ..graph.readout import ReadOut, split_readout
from ..graph.standardize import rewrite
from ..graph.trace import activation_names, copy_with_plain_weights, unwrapped
from ..modules.bounded import BoundedActivation
from ..modules.neuron import BurstIFNode
from ..network import SpikingNetwork
from ..utils.copying import copied
from ..utils.inference import evaluate
from ..utils.inputs import join, map_floats
from ..utils.outputs import map_tensors, tensors_of

__all__ = ["Prepared", "prepare"]


class Prepared(NamedTuple):
    """A network that is ready for neurons.

    Attributes:
        graph: of plain modules, up to the read-out.
        readout: what is applied to the mean output.
        replaced: the bounded activations that ``Hardtanh`` modules took the place of, by name.
    """

    graph: fx.GraphModule
    readout: ReadOut | nn.Identity
    replaced: dict[str, nn.Module]


def prepare(
    ann: nn.Module, x: Any, compare: bool = True, direct: bool = True, potential: bool = False
) -> Prepared:
    """Standardize, check and fuse a copy of a network, and split its read-out off.

    Args:
        ann: a trained network; stays as it is.
        x: example input ``[2, ...]``, or a tuple or dict of several, on the device where the graph is
            to be.
        compare: check that the graph computes what the network computes, and that it does not mix
            samples; not where the weights do not matter, as in loading.
        direct: the input is held as it is, not coded in spikes nor different from step to step.
        potential: the last activation belongs to the read-out, see
            :func:`~sj_burst.graph.check.find_readout`.

    Raises:
        TypeError: for a network that is converted already.
        ValueError: for a network that cannot be converted.
    """
    ann = unwrapped(ann)
    if any(isinstance(module, SpikingNetwork | BurstIFNode) for module in ann.modules()):
        raise TypeError("the network is converted already; pass the one it was converted from")
    tensors = list(tensors_of(x).values())
    gm, problems = rewrite(copy_with_plain_weights(ann).to(tensors[0].device), x)
    check_supported(gm, x, problems, direct)
    dtypes = {name: tensor.dtype for name, tensor in gm.state_dict().items()}
    gm, precise = in_double(gm, x)  # once for all checks, and for folding
    if compare:
        ann = _in_double(copied(ann).to(tensors[0].device), x)  # with its hooks
        check_batch_independent(gm, precise)
        check_equal(
            gm, ann, join([x, map_tensors(lambda t: t[:1], x)])
        )  # at another batch size than that of the tracing
        check_equal_elsewhere(gm, ann, x)
    fuse(gm, precise)
    if compare:
        check_equal(gm, ann, x)
    gm, readout = _split(gm, find_readout(gm, precise, direct, potential), precise, compare)
    default = next((t.dtype for t in tensors if t.is_floating_point()), tensors[0].dtype)
    _round(gm, dtypes, default)
    if isinstance(readout, ReadOut):
        _round(readout.graph, dtypes, default)
    if not activation_names(gm):
        raise ValueError(
            "the network has no ReLU, LeakyReLU, Hardtanh, clamp, RateNorm or QCFS to convert"
        )
    replaced = clip_bounded(gm)
    ordered = fx.GraphModule(gm, gm.graph).eval()  # with its modules in the order of execution
    return Prepared(ordered, readout, replaced)


def _in_double(ann: nn.Module, x: Any) -> nn.Module:
    """The network in double precision, if it runs in it."""
    try:
        wide = doubled(ann)
        evaluate(wide, map_floats(Tensor.double, x))
    except (RuntimeError, TypeError):  # a type that is written down, or a device without float64
        return ann
    return wide


def _split(
    gm: fx.GraphModule, nodes: set[fx.Node], x: Any, compare: bool
) -> tuple[fx.GraphModule, ReadOut | nn.Identity]:
    """Split the read-out off, in place; checked at another batch size than that of the tracing."""
    more = join([x, map_tensors(lambda t: t[:1], x)])
    wanted = evaluate(gm, more) if nodes and compare else None
    gm, readout = split_readout(gm, x, nodes)
    if wanted is not None:
        check_same(readout(evaluate(gm, more)), wanted)
    return gm, readout


def _round(gm: fx.GraphModule, dtypes: Mapping[str, torch.dtype], default: torch.dtype) -> None:
    """Give parameters and buffers back their precision."""
    dtype = next((d for d in dtypes.values() if d.is_floating_point), default)
    for name, tensor in (*gm.named_parameters(), *gm.named_buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtypes.get(name, dtype))  # a bias may be new


def clip_bounded(gm: fx.GraphModule) -> dict[str, nn.Module]:
    """Put ``Hardtanh(0, bound)`` in the place of bounded activations; returns what it replaced.

    Raises:
        ValueError: if a bound is not one positive, finite number.
    """
    replaced: dict[str, nn.Module] = {}
    for name in activation_names(gm):
        module = gm.get_submodule(name)
        if isinstance(module, BoundedActivation):
            bound = torch.as_tensor(module.bound)
            if bound.numel() != 1 or not 0 < bound.item() < math.inf:
                raise ValueError(
                    f"activation {name!r}: its bound is {bound.tolist()}, and must be one positive "
                    "number; train the network again"
                )
            replaced[name] = module
            gm.set_submodule(name, nn.Hardtanh(0.0, bound.item()))
    return replaced
