"""Put neurons, spiking pooling and an encoder into a standardized graph."""

from collections.abc import Mapping
from typing import Any

from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, fx, nn

from ..backends.dispatch import set_backend
from ..graph.repeat import repeat_constants
from ..graph.trace import is_module
from ..modules.encoding import ENCODERS
from ..modules.neuron import BurstIFNode
from ..modules.pooling import MAX_POOLS, spiking_pool
from ..modules.spike_calibration import SpikeCalibratedNode
from ..options import Options

__all__ = ["assemble", "encoder_names", "new_neuron", "slope_below_zero"]


def assemble(
    gm: fx.GraphModule,
    neurons: Mapping[str, nn.Module],
    options: Options,
    largest: Mapping[str, Tensor],
    x: Any,
) -> dict[str, nn.Module]:
    """Turn a standardized graph into a spiking one, in place.

    Args:
        gm: the graph, with an activation module for each neuron.
        neurons: by the name of the activation that they take the place of.
        options: whose ``max_pool`` and ``coding`` count.
        largest: magnitude that the encoder of each input codes, by :func:`encoder_names`; empty for
            direct coding.
        x: example input ``[N, ...]``, or a tuple or dict of several.

    Returns:
        The activations and poolings that were replaced, by name.
    """
    replaced = insert_neurons(gm, neurons, options.max_pool)
    encode_inputs(gm, options, largest)
    repeat_constants(gm, x)
    reset_net(gm)
    return replaced


def new_neuron(
    options: Options,
    threshold: Tensor,
    max_spikes: float,
    v_init: float | Tensor = 0.0,
    shift: Tensor | None = None,
    negative_slope: float | Tensor | None = None,
) -> BurstIFNode:
    """The neuron that ``inactivated_spikes`` asks for, or a leaky one, which takes spikes back anyway.

    Raises:
        ValueError: for spike calibration of a leaky activation.
    """
    if negative_slope is not None:
        if options.inactivated_spikes == "spike_calibration":
            raise ValueError(
                "inactivated_spikes='spike_calibration' is for activations that are never below zero; "
                "LeakyReLU and PReLU are; use 'signed'"
            )
        return BurstIFNode(threshold, max_spikes, v_init, shift, negative_slope=negative_slope)
    if options.inactivated_spikes == "spike_calibration":
        return SpikeCalibratedNode(threshold, max_spikes, v_init, shift, options.allowance)
    signed = options.inactivated_spikes == "signed"
    return BurstIFNode(threshold, max_spikes, v_init, shift, signed)


def slope_below_zero(activation: nn.Module) -> float | Tensor | None:
    """The slope of an activation below zero; ``None`` for one that is zero there.

    Example:
        >>> slope_below_zero(nn.LeakyReLU(0.2)), slope_below_zero(nn.ReLU())
        (0.2, None)
    """
    if isinstance(activation, nn.LeakyReLU):
        return activation.negative_slope
    if isinstance(activation, nn.PReLU):
        weight = activation.weight.detach()
        return weight if weight.numel() > 1 else weight.squeeze()
    return None


def insert_neurons(
    gm: fx.GraphModule, neurons: Mapping[str, nn.Module], max_pool: str
) -> dict[str, nn.Module]:
    """Put neurons and spiking pooling into a graph; returns what they replaced.

    They run on the fastest backend that is installed.
    """
    replaced = {}
    for node in gm.graph.nodes:
        name = str(node.target)
        if is_module(gm, node, MAX_POOLS):
            replaced[name] = gm.get_submodule(name)
            gm.set_submodule(name, spiking_pool(replaced[name], max_pool))
        elif node.op == "call_module" and name in neurons:
            replaced[name] = gm.get_submodule(name)
            gm.set_submodule(name, neurons[name])
    set_backend(gm, "auto")
    return replaced


def encoder_names(gm: fx.GraphModule) -> dict[fx.Node, str]:
    """The name of each input's encoder."""
    sources = [node for node in gm.graph.nodes if node.op == "placeholder"]
    if len(sources) == 1:
        return {sources[0]: "encoder"}
    return {node: f"encoder_{node.target}" for node in sources}


def encode_inputs(gm: fx.GraphModule, options: Options, largest: Mapping[str, Tensor]) -> None:
    """Insert the encoders that ``coding`` asks for; ``largest`` is the largest |x| that each codes."""
    for source, name in encoder_names(gm).items() if options.coding != "direct" else ():
        encoder = ENCODERS[options.coding](largest[name], options.time_steps)
        gm.add_submodule(name, encoder.to(largest[name].device))
        with gm.graph.inserting_after(source):
            coded = gm.graph.call_module(name, (source,))
        source.replace_all_uses_with(coded, delete_user_cb=lambda user, new=coded: user is not new)  # type: ignore[misc]
    gm.recompile()
