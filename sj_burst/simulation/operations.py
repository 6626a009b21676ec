"""Synaptic operations, and the energy they cost."""

from dataclasses import dataclass
from typing import Any

__all__ = ["LayerOperations", "Operations"]


# 32-bit floating point in 45 nm CMOS: Horowitz, "Computing's energy problem", ISSCC 2014.
MAC_PICOJOULES = 4.6  # a multiplication (3.7) and an addition (0.9)


AC_PICOJOULES = 0.9  # an addition


@dataclass(frozen=True)
class LayerOperations:
    """Operations of one weighted layer per sample, over all T steps.

    Attributes:
        synops: accumulations that spikes cause.
        macs: multiply-accumulates on values that are no spikes.
        ann_macs: what the layer costs in the ANN.
    """

    synops: float
    macs: float
    ann_macs: float


@dataclass(frozen=True)
class Operations:
    """What :func:`synops` counted; totals are sums over ``layers``, per sample.

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
    def ann_energy(self) -> float:
        """Picojoules per sample of the ANN."""
        return MAC_PICOJOULES * self.ann_macs

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        totals = {k: getattr(self, k) for k in ("synops", "macs", "ann_macs", "energy", "ann_energy")}
        layers = {name: dict(vars(layer)) for name, layer in self.layers.items()}
        return {"time_steps": self.time_steps, **totals, "layers": layers}

    def __str__(self) -> str:
        return (
            f"per sample in {self.time_steps} steps: {self.synops:.4g} SynOps and {self.macs:.4g} MACs, "
            f"{self.energy / 1e6:.4g} µJ; ANN {self.ann_macs:.4g} MACs, {self.ann_energy / 1e6:.4g} µJ "
            f"({AC_PICOJOULES} pJ per SynOp, {MAC_PICOJOULES} pJ per MAC, 45 nm)"
        )
