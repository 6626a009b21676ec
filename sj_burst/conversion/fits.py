"""What calibration fits in one layer: biases, potentials and thresholds."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ..utils.inputs import batches_with
from .layer import Layer, add_bias, channel_sum
from .ridge import refit_weights

__all__ = ["FITS"]


def correct_bias(layer: Layer, rounds: int = 3, on_all: bool = True) -> None:
    r"""Light calibration: remove the mean error of every channel.

    .. math::
        b_c \leftarrow b_c + \mathbb{E}[a]_c - \mathbb{E}[\phi]_c

    repeated, because a neuron answers a change of its bias only in part: on the first images, as
    :func:`refit_threshold` looks at them, and the last time on all, unless told otherwise. The bias
    is carried by the neuron's ``shift``, a constant current, which exists for residual sums and
    shared layers too; the last affine module takes it itself, and so does one that maps the features
    of tokens. (Where a ReLU of the read-out follows, φ and a are its values.)

    Source: Li et al., "A free lunch from ANN: towards efficient, accurate spiking neural networks
    calibration", ICML 2021.
    """
    linear = isinstance(layer.affine, nn.Linear)
    tokens = linear and layer.targets[0].dim() > 2  # [N, L, C]
    for left in reversed(range(rounds)):
        images = math.inf if on_all and left == 0 else _telling(layer)
        if layer.neuron is not None and not tokens:
            shift, correction = layer.neuron.shift, layer.mean_error(images=images)
            if shift is not None and shift.dim() != 1:
                shift = shift.expand_as(correction)
            layer.neuron.shift = correction if shift is None else shift + correction
        elif layer.affine is not None:
            if layer.neuron is None and not layer.clipped:  # affine: one round is exact
                add_bias(layer.affine, layer.mean_error(-1 if linear else 1))
                return
            add_bias(layer.affine, layer.mean_error(-1 if linear else 1, images))


def correct_potential(layer: Layer, rounds: int = 3) -> None:
    r"""Fit the initial membrane potential on the spiking prefix, per channel.

    .. math::
        v(0)_c \leftarrow v(0)_c + T\,(\mathbb{E}[a]_c - \mathbb{E}[\phi]_c)

    Derived here from the error equation of the IC-SNN article (φ = mean z − (v(T) − v(0))/T), whose
    Algorithm 2 ("based on training set") is printed as a figure.

    Source: after Li et al., "IC-SNN", 2023; potential calibration of Li et al., ICML 2021.
    """
    if layer.neuron is None:
        return
    for _ in range(rounds):
        correction = layer.time_steps * layer.mean_error()
        layer.neuron.v_init = layer.neuron.v_init + correction


def refit_threshold(layer: Layer) -> None:
    r"""Scale threshold and initial potential of each channel to the least error on real spikes.

    .. math::
        f^* = \arg\min_f \| \phi(f\theta, f v_0) - a \|^2

    The threshold rules assume a constant current of the ANN's distribution; this looks at the
    current that the calibrated prefix really sends, on the first 64 images; on fewer, but 16, if
    these show a channel 16,384 values. Bounded activations keep their thresholds. Our own addition.
    """
    neuron = layer.neuron
    if neuron is None or layer.bounded:
        return
    threshold, v_init = neuron.threshold, neuron.v_init
    costs: Any = 0.0
    for i in range(batches_with(_telling(layer), map(len, layer.targets))):
        current = layer.evaluate()[i : i + 1]
        batch = replace(layer, evaluate=partial(list, current), targets=[layer.targets[i]])
        found = []
        for factor in _FACTORS:
            neuron.threshold, neuron.v_init = factor * threshold, factor * v_init
            (squares,) = ((phi - a).square_() for phi, a in batch.rates())
            by_channel = channel_sum(squares)
            found.append(by_channel if threshold.dim() == 1 else by_channel.sum())
        costs = costs + torch.stack(found)
    best = torch.tensor(_FACTORS, device=costs.device, dtype=threshold.dtype)[costs.argmin(0)]
    neuron.threshold, neuron.v_init = best * threshold, best * v_init


def _telling(layer: Layer) -> int:
    """How many images tell what a neuron sends, of each channel."""
    return min(_MOST, max(_LEAST, math.ceil(_VALUES / layer.targets[0].shape[2:].numel())))


_FACTORS = (1.0, 0.7, 0.8, 0.9, 1.1, 1.2, 1.35)  # of the threshold, that are tried
_LEAST, _MOST, _VALUES = 16, 64, 2**14  # images, and values of a channel


FITS: dict[str, Callable[[Layer], None]] = {
    "weights": refit_weights,
    "mean": partial(correct_bias, rounds=1, on_all=False),
    "threshold": refit_threshold,
    "potential": correct_potential,
    "bias": correct_bias,
}
