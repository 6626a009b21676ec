"""What training of a converted network returns: sound, and fitted to what it was trained for."""

from collections.abc import Iterable
from typing import Any

from spikingjelly.activation_based.functional import reset_net

from ..conversion.expected import expect_spikes
from ..conversion.weights import round_all, weighted_layers
from ..network import SpikingNetwork
from ..utils.loader import first_samples

__all__ = ["adapted", "check_adaptable", "check_sound"]


def check_adaptable(snn: SpikingNetwork, loader: Iterable[Any], time_dim: int | None) -> None:
    """Raise before training for what :func:`adapted` could not use after it.

    Raises:
        ValueError: for images of several sizes, where the median of spikes is wanted.
    """
    if snn.options.expected_spikes != "none":
        first_samples(loader, 64, "loader", time_dim)


def check_sound(net: SpikingNetwork) -> None:
    """Raise if training has spoilt a network.

    Raises:
        ValueError: if weights or thresholds are NaN, infinite or, of thresholds, zero.
    """
    thetas = [node.threshold for node in net.neurons().values()]
    sound = all(bool((theta > 0).all()) for theta in thetas)
    if not sound or not all(bool(value.isfinite().all()) for value in (*net.parameters(), *thetas)):
        raise ValueError(
            "weights or thresholds have become NaN, infinite or zero; lower lr. The network that was "
            "passed in is as it was"
        )


def adapted(
    snn: SpikingNetwork, loader: Iterable[Any], time_steps: int, time_dim: int | None
) -> SpikingNetwork:
    """The same network, what its options ask for made anew.

    It is fitted for the T of its training, weights of few bits are rounded to the thresholds that they
    meet now, and spikes are expected that are sent now.
    """
    snn.options = snn.options.changed(time_steps=int(time_steps))
    bits = snn.options.weight_bits_of(weighted_layers(snn.graph))
    if bits is not None:
        round_all(snn.graph, bits, snn.example().value)
        reset_net(snn)
    if snn.options.expected_spikes != "none":
        expect_spikes(snn, loader, time_steps, time_dim=time_dim)
    return snn
