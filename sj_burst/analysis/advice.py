"""Which option would mend what a layer lost."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..options import Options
from .layer_report import PARTS, LayerReport

__all__ = ["Advice", "advise"]


@dataclass(frozen=True)
class Advice:
    """An option to change, its new value, and why.

    Attributes:
        part: which of ``PARTS`` it addresses, or ``"levels"`` or ``"unevenness"`` of the output.
        layer: where that part is largest.
        option: name of an option of the recipe.
        value: what to set it to.
        reason: in words.

    Example:
        >>> print(Advice("clipping", "1", "max_spikes", 4, "a larger Γ lifts the ceiling Γθ"))
        max_spikes=4: a larger Γ lifts the ceiling Γθ
    """

    part: str
    layer: str
    option: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.option}={self.value!r}: {self.reason}"


class OutputError(NamedTuple):
    """What the network's answer lost.

    Attributes:
        error: relative squared error.
        levels: share of it that the quantised ANN has too; the rest is unevenness.
    """

    error: float = 0.0
    levels: float = 0.0


_OWN = PARTS[1:]  # what a layer adds itself
_LEAST_SHARE = 0.1  # of what all layers add themselves; smaller causes get no advice
_COSTLY = ("burst_allocation", "max_spikes", "time_steps")
_LEAST_OUTPUT_ERROR = 1e-2  # relative squared error of the answer below which it needs no mending
_LEAST_ERROR = 1e-3  # mean over layers of the squared error below which nothing needs mending


def advise(
    layers: list[LayerReport],
    options: Options,
    time_steps: int,
    output: OutputError = OutputError(),  # noqa: B008  (immutable)
) -> list[Advice]:
    """One remedy for each cause that matters; what costs spikes or steps comes last."""
    sums = {part: sum(max(layer.parts[part], 0.0) for layer in layers) for part in PARTS}
    own = sum(sums[part] for part in _OWN)
    wanted = [part for part in _OWN if sums[part] >= _LEAST_SHARE * own and sums[part] > 0]
    wanted.sort(key=lambda part: -sums[part])
    if sums["propagated"] >= _LEAST_SHARE * (own + sums["propagated"]) > 0:
        wanted.append("propagated")
    advice: list[Advice] = []
    for part in wanted:
        if sums[part] < _LEAST_ERROR * len(layers):
            continue
        worst = max(layers, key=lambda layer: layer.parts[part])
        remedy = next(_REMEDIES[part](options, worst, time_steps), None)
        # An option that a larger cause asks for already helps this one too.
        if remedy is not None and remedy[0] not in [given.option for given in advice]:
            option, value, reason = remedy
            where = f"{reason} ({part} error, largest in {worst.name!r})"
            advice.append(Advice(part, worst.name, option, value, where))
    if output.error >= _LEAST_OUTPUT_ERROR:
        advice += _for_output(layers, options, time_steps, output, {given.option for given in advice})
    return sorted(advice, key=lambda given: given.option in _COSTLY)


def _for_output(
    layers: list[LayerReport], options: Options, time_steps: int, output: OutputError, given: set[str]
) -> list[Advice]:
    """What would mend the answer, by what most of its error is of."""
    neurons = [layer for layer in layers if layer.max_spikes is not None]
    if not neurons:
        return []
    part = "levels" if output.levels >= 0.5 else "unevenness"
    worst = max(neurons, key=lambda layer: getattr(layer, part) or 0.0)
    given = given | {"burst_allocation"} if len(neurons) == 1 else given  # there is nothing to share
    remedies = _for_levels if part == "levels" else _for_unevenness
    share = output.levels if part == "levels" else 1 - output.levels
    for option, value, reason in remedies(options, worst, time_steps):
        if option not in given:
            where = f"{reason} ({100 * share:.0f} % of the output's error is of {part})"
            return [Advice(part, worst.name, option, value, where)]
    return []


_Remedy = tuple[str, Any, str]


def _for_levels(options: Options, layer: LayerReport, time_steps: int) -> Iterator[_Remedy]:
    yield from _calibration(options, "weights that are fitted to the levels lose less by them")
    one = not isinstance(options.max_spikes, Mapping) and 1 < options.max_spikes < math.inf
    if one and options.burst_allocation == "uniform" and options.energy_budget is None:
        reason = "layers of few neurons that much depends on need longer bursts than others"
        yield "burst_allocation", "sensitivity", reason
    yield from _more_spikes(options, layer, "the ANN needs more than these ΓT levels")
    yield from _more_steps(time_steps)


def _for_unevenness(options: Options, layer: LayerReport, time_steps: int) -> Iterator[_Remedy]:
    if options.inactivated_spikes != "signed":
        yield "inactivated_spikes", "signed", "let neurons take back spikes that came too early"
    yield from _calibration(options, "fit every layer to the spikes of those before it")
    if time_steps > 1:
        yield from _more_spikes(options, layer, "the same levels in fewer steps are more even")
    yield from _more_steps(time_steps)


def _for_clipping(options: Options, layer: LayerReport, time_steps: int) -> Iterator[_Remedy]:
    if options.threshold != "trained":
        yield from _fitted_threshold(options, "activations above Γθ are cut off")
    yield from _more_spikes(options, layer, "a larger Γ lifts the ceiling Γθ")
    yield from _more_steps(time_steps)


def _for_residual(options: Options, layer: LayerReport, time_steps: int) -> Iterator[_Remedy]:
    if options.potential == "zero":
        yield "potential", "half", "v(0)=θ/2 rounds where v(0)=0 always rounds down"
    yield from _fitted_threshold(options, "the threshold is coarser than these T and Γ need")
    if not options.channel_wise:
        yield "channel_wise", True, "a threshold per channel resolves small channels too"
    yield from _more_spikes(options, layer, "more levels ΓT leave less charge in the membrane")
    yield from _calibration(options, "fit what flooring takes away on average")
    yield from _more_steps(time_steps)


def _for_pooling(options: Options, layer: LayerReport, time_steps: int) -> Iterator[_Remedy]:
    if options.max_pool != "lateral_inhibition":
        reason = f"max_pool={options.max_pool!r} does not converge to the ANN's pooling"
        yield "max_pool", "lateral_inhibition", reason
    yield from _more_steps(time_steps)


def _for_inactivated(options: Options, layer: LayerReport, time_steps: int) -> Iterator[_Remedy]:
    if options.inactivated_spikes != "signed":
        yield "inactivated_spikes", "signed", "let neurons take back spikes that came too early"
    yield from _more_steps(time_steps)
    yield from _calibration(options, "fit what spikes of inactive neurons add on average")


def _for_propagated(options: Options, layer: LayerReport, time_steps: int) -> Iterator[_Remedy]:
    if options.coding in ("rate", "poisson"):
        yield "coding", "direct", f"coding={options.coding!r} loses part of the input"
    yield from _calibration(options, "fit every layer to the errors of those before it")
    yield from _more_steps(time_steps)


def _fitted_threshold(options: Options, reason: str) -> Iterator[_Remedy]:
    if options.energy_budget is not None:
        yield "energy_budget", round(1.4 * options.energy_budget, 3), "finer thresholds cost more spikes"
    elif options.threshold not in ("mse", "trained") and math.inf not in options.all_max_spikes():
        yield "threshold", "mse", reason


_MOST_SPIKES = 16  # beyond, more levels hardly help


def _more_spikes(options: Options, layer: LayerReport, reason: str) -> Iterator[_Remedy]:
    if layer.max_spikes is None:
        return
    given = options.max_spikes
    gamma = layer.max_spikes if isinstance(given, Mapping) else given  # where Γ is allocated, the mean
    if options.energy_budget is not None:  # it decides how many there may be
        return
    if gamma >= _MOST_SPIKES:
        return
    larger = min(4 * int(gamma), _MOST_SPIKES)
    rest = {k: v for k, v in given.items() if k != layer.name} if isinstance(given, Mapping) else {}
    yield "max_spikes", {layer.name: larger} | rest if isinstance(given, Mapping) else larger, reason


def _calibration(options: Options, reason: str) -> Iterator[_Remedy]:
    if options.calibration != "advanced":
        yield "calibration", "advanced", reason


def _more_steps(time_steps: int) -> Iterator[_Remedy]:
    yield "time_steps", 2 * time_steps, "more steps shrink what none of the other options can"


_REMEDIES: dict[str, Callable[[Options, LayerReport, int], Iterator[_Remedy]]] = {
    "propagated": _for_propagated,
    "clipping": _for_clipping,
    "residual": _for_residual,
    "pooling": _for_pooling,
    "inactivated": _for_inactivated,
}
