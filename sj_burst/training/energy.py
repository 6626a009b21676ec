"""A price on spikes, which rises until a network keeps to its budget of energy."""

import warnings
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..functional import per_channel
from ..modules.encoding import CompensatedRateEncoder, PoissonEncoder, RateEncoder
from ..modules.rate import RateNeuron
from ..network import SpikingNetwork
from ..simulation.fan_out import fan_out
from ..utils.inputs import Inputs

__all__ = ["EnergyPenalty"]

_FIRST_PRICE = 0.05  # in units of the loss, for the whole budget
_LEAST_PRICE, _MOST_PRICE = 1e-4, 100.0
_GAIN = 100.0  # over all steps: how fast the price follows what is spent
_LEAST_GAIN, _MOST_GAIN = 0.05, 1.0
_AT_ONCE = 5  # power of what is spent by which the price answers at once, against swings
_MARGIN = 0.97  # of the budget that is aimed at: images differ


class EnergyPenalty:
    r"""What the spikes of a batch cost, times a price that follows the budget.

    .. math::
        \lambda \Big(\frac{E}{B}\Big)^p \frac{E}{B}, \quad
        E = \frac1N \sum_{n, i} F_i\, |n_i - r_i T|, \quad
        \lambda \leftarrow \lambda \Big(\frac{E}{B}\Big)^g

    with the net spikes :math:`n_i` of neuron i in all steps, whose gradients pass the floor, those that
    are expected in a step :math:`r_i`, its fan-out F, what the budget leaves for spikes B, a gain g of
    100 over all updates, and p = 5, of which no gradient is taken. Call it after a forward pass of
    ``rates``.

    Args:
        snn: a converted network; its state is reset.
        rates: the same as functions of rates, whose gradients are wanted.
        x: one sample, for the shapes.
        budget: what a sample may cost, as a share of the ANN's energy.
        time_steps: T.
        updates: how often it will be called: the fewer, the faster the price moves.

    Attributes:
        price: λ.
        spent: E/B of the last batch.

    Raises:
        ValueError: if what no spike reaches costs more than the budget.

    Source: derived here; a price of activations as in L1 regularisation, with that of each neuron.
    """

    def __init__(
        self,
        snn: SpikingNetwork,
        rates: fx.GraphModule,
        x: Inputs,
        budget: float,
        time_steps: int,
        updates: int,
    ) -> None:
        self.time_steps, self.price = time_steps, _FIRST_PRICE
        self.gain = min(max(_GAIN / updates, _LEAST_GAIN), _MOST_GAIN)
        self.budget, self.spent = budget, 0.0
        found = fan_out(snn, x)
        self.allowed = _MARGIN * found.spikes_within(budget, time_steps)
        self._fans = {name: fan.float() for name, fan in found.spikes.items()}
        # What a spike weighs in the mean outputs of poolings and encoders, which tell how many it were.
        units = found.pool_units | {
            name: module.threshold.detach()
            for name, module in snn.graph.named_modules()
            if isinstance(module, (CompensatedRateEncoder, PoissonEncoder, RateEncoder))
        }
        self._units = {name: unit.float() for name, unit in units.items()}
        self._neurons = {n: m for n, m in rates.named_modules() if isinstance(m, RateNeuron)}
        self._expected = {
            name: time_steps * expected
            for name in self._fans
            if (expected := getattr(snn.graph.get_submodule(name), "expected", None)) is not None
        }
        self._means: dict[str, Tensor] = {}
        for module in self._neurons.values():
            module.keep_count = True
        for name in self._units:
            rates.get_submodule(name).register_forward_hook(self._keep(name))

    def _keep(self, name: str) -> Any:
        def hook(_: nn.Module, __: Any, out: Tensor) -> None:
            self._means[name] = out

        return hook

    def __call__(self) -> Tensor:
        """The penalty of the last forward pass; the price goes on."""
        counts = {name: module.count for name, module in self._neurons.items()}
        for name, out in self._means.items():
            unit = per_channel(self._units[name], out.dim())
            some = unit > 0  # else no window is there
            counts[name] = torch.where(
                some, self.time_steps * out / unit.where(some, torch.ones(())), 0.0
            )
        for name, count in counts.items():
            if count is not None and count.shape[1:] != self._fans[name].shape[1:]:
                raise ValueError(
                    "energy_budget counts inputs of the size that calibrated, and the loader yields "
                    f"others: {name!r} has outputs {list(count.shape[1:])} in place of "
                    f"{list(self._fans[name].shape[1:])}"
                )
            if count is not None and name in self._expected:
                counts[name] = count - per_channel(self._expected[name], count.dim())
        costs = [
            (count.abs().mean(0, keepdim=True) * self._fans[name]).sum()
            for name, count in counts.items()
            if count is not None
        ]
        spent = sum(costs[1:], costs[0]) / self.allowed
        self.spent = spent.item()
        penalty = self.price * self.spent**_AT_ONCE * spent
        price = self.price * self.spent**self.gain
        self.price = min(max(price, _LEAST_PRICE), _MOST_PRICE)
        return penalty

    def warn_of_excess(self) -> None:
        """Say so if the last batch cost more than the budget allows."""
        over = self.spent * _MARGIN - 1
        if over > 0.03:
            warnings.warn(
                f"energy_budget={self.budget}: spikes still cost {100 * over:.0f} % more than it leaves "
                "for them; take more epochs, or start from a network converted with this budget",
                stacklevel=3,
            )
