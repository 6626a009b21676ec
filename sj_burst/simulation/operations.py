"""Synaptic operations, and the energy they cost."""

import math
from dataclasses import dataclass
from typing import Any

from ..backends.events import ACCOUNTINGS

__all__ = ["ACCOUNTINGS", "LayerOperations", "Operations"]


# 32-bit floating point in 45 nm CMOS: Horowitz, "Computing's energy problem", ISSCC 2014.
MAC_PICOJOULES = 4.6  # a multiplication (3.7) and an addition (0.9)


AC_PICOJOULES = 0.9  # an addition


@dataclass(frozen=True)
class LayerOperations:
    """Operations of one weighted layer per sample, over all T steps.

    Attributes:
        synops: accumulations that spikes cause: a burst of n is n events.
        macs: multiply-accumulates on values that are no spikes.
        ann_macs: what the layer costs in the ANN.
        binary_synops: accumulations if a burst of n is popcount(n) events, of weights θ, 2θ, 4θ, ….
        graded_synops: multiply-accumulates if a burst is one event that carries its number.
    """

    synops: float
    macs: float
    ann_macs: float
    binary_synops: float = math.nan
    graded_synops: float = math.nan


@dataclass(frozen=True)
class Operations:
    r"""What :func:`synops` counted; totals are sums over ``layers``, per sample.

    What a burst of n spikes of one neuron in one step costs depends on how it travels, and each way
    of ``ACCOUNTINGS`` has its energy: ``"unary"``, n events (meant wherever nothing else is said);
    ``"binary"``, popcount(n) events of weights θ, 2θ, 4θ, …, as a cascade of thresholds sends them;
    ``"graded"``, one event that carries n, which costs a multiplication.

    Source: binary weights as in Zhang et al. (H-MT), AAAI 2026.

    Attributes:
        layers: name of every weighted layer to its operations.
        time_steps: T.

    Example:
        >>> counted = Operations({"0": LayerOperations(synops=10, macs=5, ann_macs=20)}, time_steps=4)
        >>> counted.energy, counted.ann_energy
        (32.0, 92.0)
    """

    layers: dict[str, LayerOperations]
    time_steps: int

    @property
    def synops(self) -> float:
        """Accumulations that spikes cause."""
        return sum(layer.synops for layer in self.layers.values())

    @property
    def binary_synops(self) -> float:
        """Accumulations that bursts in binary cause."""
        return sum(layer.binary_synops for layer in self.layers.values())

    @property
    def graded_synops(self) -> float:
        """Multiply-accumulates that graded bursts cause."""
        return sum(layer.graded_synops for layer in self.layers.values())

    @property
    def macs(self) -> float:
        """Multiply-accumulates of the spiking network."""
        return sum(layer.macs for layer in self.layers.values())

    @property
    def ann_macs(self) -> float:
        """Multiply-accumulates of the ANN."""
        return sum(layer.ann_macs for layer in self.layers.values())

    @property
    def energy(self) -> float:
        """Picojoules per sample of the spiking network: 0.9 per accumulation, 4.6 per MAC."""
        return AC_PICOJOULES * self.synops + MAC_PICOJOULES * self.macs

    @property
    def energies(self) -> dict[str, float]:
        """Picojoules per sample of the spiking network by each of ``ACCOUNTINGS``."""
        spikes = {
            "unary": AC_PICOJOULES * self.synops,
            "binary": AC_PICOJOULES * self.binary_synops,
            "graded": MAC_PICOJOULES * self.graded_synops,
        }
        return {name: spikes[name] + MAC_PICOJOULES * self.macs for name in ACCOUNTINGS}

    @property
    def ann_energy(self) -> float:
        """Picojoules per sample of the ANN."""
        return MAC_PICOJOULES * self.ann_macs

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        named = ("synops", "binary_synops", "graded_synops", "macs", "ann_macs", "energy", "energies")
        totals = {name: getattr(self, name) for name in (*named, "ann_energy")}
        layers = {name: dict(vars(layer)) for name, layer in self.layers.items()}
        return {"time_steps": self.time_steps, **totals, "layers": layers}

    def __str__(self) -> str:
        others = {name: value for name, value in self.energies.items() if name != "unary"}
        bursts = ", ".join(f"{value / 1e6:.4g} µJ {name}" for name, value in others.items())
        return (
            f"per sample in {self.time_steps} steps: {self.synops:.4g} SynOps and {self.macs:.4g} MACs, "
            f"{self.energy / 1e6:.4g} µJ (bursts {bursts}); ANN {self.ann_macs:.4g} MACs, "
            f"{self.ann_energy / 1e6:.4g} µJ "
            f"({AC_PICOJOULES} pJ per SynOp, {MAC_PICOJOULES} pJ per MAC, 45 nm)"
        )
