"""The options of a conversion, and published settings by name."""

import dataclasses
import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral
from typing import Any

from .modules.encoding import ENCODERS
from .modules.neuron import check_max_spikes
from .modules.pooling import POOLING_RULES
from .rules.potential import POTENTIAL_RULES
from .rules.threshold import THRESHOLD_RULES, parse_percentile
from .utils.checks import check_count

__all__ = ["CHOICES", "PRESETS", "Options", "check_energy_budget"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Everything that a conversion may vary; see README for the table.

    Args:
        time_steps: T that thresholds and potentials are fitted for; the network runs any number.
        max_spikes: Γ, most spikes per step; an integer, ``math.inf``, or a mapping of layer name
            patterns (``fnmatch``) to such values, of which the first match counts.
        burst_allocation: ``"uniform"`` gives every layer ``max_spikes``. ``"sensitivity"`` gives each
            its own Γ, of which ``max_spikes`` is the mean over all neurons, at most: more to layers of
            few neurons on which the answer depends, whose spikes cost more; needs one backward pass over
            the calibration images. ``"adafire"`` spreads as many spikes as ``max_spikes`` everywhere
            would send (see :func:`~sj_burst.conversion.adafire.measure_bursts`), by what each layer's Γ
            does to the answer of the spiking network, which runs for each Γ of each layer.
        threshold: ``"max"``, a percentile such as ``"99.9%"``, ``"mse"``, ``"gaussian"``, or
            ``"trained"`` for bounded activations (``RateNorm``, ``QCFS``, ReLU6, …): θ = bound/Γ,
            and nothing is observed. ``"rate_distortion"`` chooses those of all channels together, fine
            where the answer depends on them and spikes are cheap, within ``energy_budget``; needs one
            backward pass over the calibration images.
        energy_budget: for ``threshold="rate_distortion"``, and only there: what a sample may cost, as a
            share of the ANN's energy (bursts in unary, see :func:`sj_burst.synops`), as measured on
            calibration images. What Γ leaves no use for is not spent.
        channel_wise: a threshold for each channel, else one for the layer.
        potential: initial membrane potential: ``"zero"``, ``"half"`` (θ/2), ``"ann"`` (per channel,
            from the ANN's activations) or ``"data"`` (per channel, on the spiking prefix); ``"shift"``
            adds θ/(2T) to the input current at every step instead (Deng & Gu, ICLR 2021).
        max_pool: ``"lateral_inhibition"``, ``"gated"``, ``"spike"`` or ``"average"``.
        coding: of the input: ``"direct"``, ``"rate"``, ``"poisson"`` or ``"compensated"``.
        output: ``"spikes"``, or ``"potential"``: an activation that no weights follow, as ReLU before
            the mean in SqueezeNet, is applied to the mean current of its layer, which sends no spikes.
        inactivated_spikes: ``"signed"`` lets a neuron take spikes back at once,
            ``"spike_calibration"`` after unusual silence, ``"allow"`` never.
        expected_spikes: ``"none"``, or ``"median"``: the layers behind a channel expect the median r of
            its spikes in a step, and its neurons send the n − r that differ: the same answers for fewer
            unary spikes, where most neurons of a channel fire (bursts that travel as one number may be
            more). Neurons must be able to send negative spikes, and to hold a constant current, which
            zero padding makes differ at borders; see :func:`sj_burst.export.expected_currents`.
        allowance: A, steps of silence that ``"spike_calibration"`` allows beyond the mean interval; it
            acts from T = A + 2 on.
        calibration: ``"none"``, ``"light"`` (biases) or ``"advanced"`` (weights, biases and the
            scale of thresholds).
        weight_bits: ``None``, or 2 to 16: the weights by which counts of spikes are multiplied are
            integers of so many bits times a scale per output channel (the thresholds of the neurons
            before them are in it, channel by channel). They are rounded as calibration comes to their
            layer, so that biases and thresholds make up for it. Or a mapping of patterns of the names
            of linear and convolutional layers to bits, of which the first match counts: the first and
            the last layer are often given 8 where the others have 4.
        calibration_images: how many images of the loader ``calibration``, ``potential="data"``,
            ``expected_spikes``, ``burst_allocation`` and ``threshold="rate_distortion"`` use at most;
            fewer, with a warning, only if memory and the temporary folder cannot hold what is recorded.
            Layers with large maps are fitted on the first of them, at least 64 and a quarter.

    Raises:
        ValueError: names the option, the value received and what is allowed.
        TypeError: for a value of the wrong type.

    Example:
        >>> Options(threshold="median")
        Traceback (most recent call last):
        ValueError: threshold must be one of ['max', 'mse', 'gaussian', 'trained', ...
    """

    time_steps: int = 8
    max_spikes: float | Mapping[str, float] = 4
    burst_allocation: str = "uniform"
    threshold: str = "mse"
    energy_budget: float | None = None
    channel_wise: bool = True
    potential: str = "half"
    max_pool: str = "lateral_inhibition"
    coding: str = "direct"
    output: str = "spikes"
    inactivated_spikes: str = "signed"
    expected_spikes: str = "none"
    allowance: int = 64
    calibration: str = "advanced"
    weight_bits: int | Mapping[str, int] | None = None
    calibration_images: int = 256

    def __post_init__(self) -> None:
        for name, least in (("time_steps", 1), ("calibration_images", 1), ("allowance", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise TypeError(f"{name} must be an integer ≥ {least}, got {value!r}")
            check_count(least, **{name: value})
            object.__setattr__(self, name, int(value))
        gammas = _checked("max_spikes", self.max_spikes, check_max_spikes, "{'*': 1}")
        object.__setattr__(self, "max_spikes", gammas)
        if self.weight_bits is not None:
            bits = _checked("weight_bits", self.weight_bits, _checked_bits, "{'*': 8}")
            object.__setattr__(self, "weight_bits", bits)
        rules = [*THRESHOLD_RULES, "rate_distortion"]
        if not isinstance(self.threshold, str) or (
            self.threshold not in rules and parse_percentile(self.threshold) is None
        ):
            raise ValueError(
                f"threshold must be one of {rules} or a percentile such as "
                f"'99.9%', got {self.threshold!r}"
            )
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        if not isinstance(self.channel_wise, bool):
            raise TypeError(f"channel_wise must be True or False, got {self.channel_wise!r}")
        if self.expected_spikes != "none" and self.inactivated_spikes == "allow":
            raise ValueError(
                f"expected_spikes={self.expected_spikes!r}: a neuron that fires less than expected "
                "sends negative spikes, which inactivated_spikes='allow' rules out; use 'signed'"
            )
        _check_energy_budget(self.energy_budget, self.threshold)
        _check_allocation(self.burst_allocation, self.max_spikes)
        by_levels = ("mse", "gaussian", "trained", "rate_distortion")
        if self.threshold in by_levels and math.inf in self.all_max_spikes():
            raise ValueError(
                f"threshold={self.threshold!r} divides by max_spikes, which is infinite; give a "
                "finite max_spikes, or use threshold='max' or a percentile"
            )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "Options":
        """A published setting by its name, with any option changed.

        Args:
            name: a key of ``PRESETS``.
            **changes: options that differ from the published ones.

        Raises:
            ValueError: for an unknown name; lists the known ones.
            TypeError: for an unknown option.

        Example:
            >>> Options.preset("burst", time_steps=16).threshold
            '99.9%'
        """
        if name not in PRESETS:
            raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {name!r}")
        return PRESETS[name].changed(**changes)

    def changed(self, **changes: Any) -> "Options":
        """A copy with some options changed.

        Raises:
            TypeError: for an unknown option; lists the known ones.

        Example:
            >>> Options(time_steps=4).changed(max_spikes=1).time_steps
            4
        """
        known = [field.name for field in dataclasses.fields(self)]
        if unknown := sorted(set(changes) - set(known)):
            raise TypeError(f"unknown option {', '.join(unknown)}; the options are {known}")
        return dataclasses.replace(self, **changes)

    def all_max_spikes(self) -> list[float]:
        """Every Γ that a layer may get."""
        gamma = self.max_spikes
        return list(gamma.values()) if isinstance(gamma, Mapping) else [gamma]

    def max_spikes_of(self, layers: Iterable[str]) -> dict[str, float]:
        """Γ for each layer.

        Raises:
            ValueError: if a pattern matches no layer, or a layer no pattern.
        """
        return _by_layer("max_spikes", self.max_spikes, list(layers), "'*': 1")

    def weight_bits_of(self, layers: Iterable[str]) -> dict[str, int] | None:
        """Bits for the weights of each layer; ``None`` if they are as they are.

        Raises:
            ValueError: if a pattern matches no layer, or a layer no pattern.

        Example:
            >>> Options(weight_bits={"head": 8, "*": 4}).weight_bits_of(["conv", "head"])
            {'conv': 4, 'head': 8}
        """
        if self.weight_bits is None:
            return None
        return _by_layer("weight_bits", self.weight_bits, list(layers), "'*': 8")


def _by_layer(option: str, value: Any, layers: list[str], rest: str) -> dict[str, Any]:
    """The value of an option for each layer, by the first of its patterns that matches."""
    if not isinstance(value, Mapping):
        return dict.fromkeys(layers, value)
    found: dict[str, Any] = {}
    for pattern, one in value.items():
        matches = [name for name in layers if fnmatch.fnmatchcase(name, pattern)]
        if not matches:
            raise ValueError(f"{option}: {pattern!r} matches none of the layers {layers}")
        for name in matches:
            found.setdefault(name, one)
    if missing := [name for name in layers if name not in found]:
        raise ValueError(f"{option}: no pattern matches {missing}; add {rest} as the last one")
    return {name: found[name] for name in layers}


def _checked_bits(bits: Any) -> int:
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise TypeError(f"weight_bits must be an integer from 2 to 16, or None, got {bits!r}")
    if not 2 <= bits <= 16:
        raise ValueError(f"weight_bits must be from 2 to 16, or None, got {bits}; chips hold 8 or 4")
    return bits


def _check_energy_budget(budget: Any, threshold: str) -> None:
    if (budget is None) == (threshold == "rate_distortion"):
        raise ValueError(
            f"energy_budget={budget} with threshold={threshold!r}: a budget is spent by "
            "threshold='rate_distortion', which needs one, such as energy_budget=0.3; set both"
        )
    if budget is not None:
        check_energy_budget(budget)


def _check_allocation(allocation: str, max_spikes: float | Mapping[str, float]) -> None:
    if allocation == "uniform":
        return
    if isinstance(max_spikes, Mapping) or not 1 < max_spikes < math.inf:
        raise ValueError(
            f"burst_allocation={allocation!r} finds Γ for every layer around max_spikes, which must be "
            f"one finite number above 1, got {max_spikes}; or take burst_allocation='uniform'"
        )


def check_energy_budget(budget: Any) -> None:
    """Raise unless it is a share of the ANN's energy.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is not positive.
    """
    if isinstance(budget, bool) or not isinstance(budget, int | float):
        raise TypeError(f"energy_budget must be a share of the ANN's energy, or None, got {budget!r}")
    if not 0 < budget <= 1e6:
        raise ValueError(
            f"energy_budget must be positive, a share of the ANN's energy such as 0.2, got {budget}"
        )


def _checked(option: str, value: Any, check: Callable[[Any], Any], example: str) -> Any:
    """A value, or a mapping of patterns to values, if they are sound."""
    if not isinstance(value, Mapping):
        return check(value)
    if not value:
        raise ValueError(f"{option} is an empty mapping; give a number, or {example}")
    if wrong := [name for name in value if not isinstance(name, str)]:
        raise TypeError(f"{option} maps names of layers to numbers, got {wrong[0]!r} as a name")
    return {name: check(one) for name, one in value.items()}


CHOICES: dict[str, list[str]] = {
    "burst_allocation": ["uniform", "sensitivity", "adafire"],
    "potential": list(POTENTIAL_RULES),
    "max_pool": list(POOLING_RULES),
    "coding": ["direct", *ENCODERS],
    "output": ["spikes", "potential"],
    "inactivated_spikes": ["allow", "signed", "spike_calibration"],
    "expected_spikes": ["none", "median"],
    "calibration": ["none", "light", "advanced"],
}


# Published settings: options that differ from the defaults, by the paper they come from.
_PLAIN: dict[str, Any] = dict(
    max_spikes=1,
    channel_wise=False,
    potential="zero",
    inactivated_spikes="allow",
    calibration="none",
)
PRESETS: dict[str, Options] = {
    # Diehl et al., IJCNN 2015: normalisation by the maximum activation.
    "diehl2015": Options(**_PLAIN | dict(threshold="max", max_pool="spike")),
    # Li & Zeng, IJCAI 2022: burst spikes and lateral-inhibition pooling.
    "burst": Options(**_PLAIN | dict(threshold="99.9%", max_spikes=5)),
    # Li, He, Dong, Kong & Zeng, 2022: burst, and spike calibration of inactivated neurons.
    "spicalib": Options(
        **_PLAIN | dict(threshold="99.9%", max_spikes=5, inactivated_spikes="spike_calibration")
    ),
    # Bu et al., AAAI 2022: optimized potential initialization.
    "opi": Options(**_PLAIN | dict(threshold="99.9%", potential="half")),
    # Li et al., 2023 (IC-SNN): initial potential from the training set, coding compensation.
    "ic_snn": Options(**_PLAIN | dict(threshold="99.9%", potential="data", coding="compensated")),
    # Deng & Gu, ICLR 2021: threshold balancing and the shift by half a quantum.
    "rts": Options(**_PLAIN | dict(threshold="max", potential="shift")),
    # Ding et al., IJCAI 2021 (RNL): thresholds that training has fitted, as activation bounds.
    "rnl": Options(**_PLAIN | dict(threshold="trained")),
    # Li et al., ICML 2021: thresholds of least squared error, then biases layer by layer.
    "calibration_light": Options(
        **_PLAIN | dict(threshold="mse", channel_wise=True, calibration="light")
    ),
    # Wang et al., AAAI 2025 (AdaFire): thresholds and biases as in calibration_light, Γ by layer.
    "adafire": Options(
        **_PLAIN
        | dict(
            max_spikes=4,
            burst_allocation="adafire",
            potential="shift",
            threshold="mse",
            channel_wise=True,
            calibration="light",
        )
    ),
    # Li et al., ICML 2021: the same with weights; the fit is our closed form.
    "calibration_advanced": Options(
        **_PLAIN | dict(threshold="mse", channel_wise=True, potential="data", calibration="advanced")
    ),
}
