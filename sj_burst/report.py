"""What each layer of a converted network lost, why, and which option would mend it."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .compare import LayerMeans, layer_means
from .energy import Operations, count_operations, count_outputs
from .functional import per_channel
from .graph.fuse import unfused
from .graph.network import SpikingNetwork
from .loader import take
from .neuron import BurstIFNode
from .recipe import Options

__all__ = ["PARTS", "Advice", "LayerReport", "Report", "report"]

PARTS = ("propagated", "clipping", "residual", "pooling", "inactivated")
_OWN = PARTS[1:]  # what a layer adds itself


@dataclass(frozen=True)
class LayerReport:
    r"""One neuron or max-pooling layer; measured values are ``None`` in a report without data.

    Attributes:
        name: as in the network.
        kind: class of the module.
        threshold: least, mean and largest θ over channels; ``None`` for pooling.
        max_spikes: Γ.
        potential: mean of v(0)/θ.
        rate: spikes per neuron and step (a burst of n counts n, a negative spike 1).
        channels: number of channels.
        silent: channels that are active in the ANN and never spiked.
        dead: channels that are never active in the ANN.
        clipped: share of active ANN neurons (a > 0) with a > Γθ.
        inactivated: share of inactive ANN neurons (a = 0) with a positive output (SIN).
        error: :math:`\sum e^2 / \sum a^2` of e = φ(T) − a.
        parts: what each of ``PARTS`` contributes to ``error``; they add up to it.
    """

    name: str
    kind: str
    threshold: tuple[float, float, float] | None = None
    max_spikes: float | None = None
    potential: float | None = None
    rate: float | None = None
    channels: int | None = None
    silent: int | None = None
    dead: int | None = None
    clipped: float | None = None
    inactivated: float | None = None
    error: float | None = None
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Advice:
    """An option to change, its new value, and why.

    Attributes:
        part: which of ``PARTS`` it addresses.
        layer: where that part is largest.
        option: name of an option of the recipe.
        value: what to set it to.
        reason: in words.
    """

    part: str
    layer: str
    option: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.option}={self.value!r}: {self.reason}"


@dataclass(frozen=True)
class Report:
    """What :func:`report` found; ``print`` it for the table.

    Attributes:
        layers: in order of execution.
        options: of the recipe.
        notes: what is worth knowing beyond the table.
        time_steps: T of the measurement; ``None`` without data.
        samples: how many were measured.
        output_error: root of the relative squared error of the network's mean output.
        advice: what to change, the most important first.
        operations: SynOps and energy.
    """

    layers: list[LayerReport]
    options: dict[str, Any]
    notes: list[str]
    time_steps: int | None = None
    samples: int = 0
    output_error: float | None = None
    advice: list[Advice] = field(default_factory=list)
    operations: Operations | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values for JSON; an infinite Γ becomes ``"inf"``."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["layers"] = [dataclasses.asdict(layer) for layer in self.layers]
        values["advice"] = [dataclasses.asdict(advice) for advice in self.advice]
        values["operations"] = None if self.operations is None else self.operations.to_dict()
        return _plain(values)

    def __str__(self) -> str:
        lines = [_table(self.layers)]
        if self.time_steps is not None:
            lines.append(
                f"T={self.time_steps}, {self.samples} samples. Errors in % of the layer's squared ANN "
                "activations; the parts add up."
            )
            error = 100 * (self.output_error or 0)
            lines.append(f"output: root of the relative squared error {error:.2f} %")
        if self.operations is not None:
            lines.append(str(self.operations))
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"advice: {advice}" for advice in self.advice]
        if self.time_steps is not None and not self.advice:
            lines.append("advice: none; no error stands out that an option would mend")
        return "\n".join(lines)


@torch.no_grad()
def report(
    snn: SpikingNetwork,
    ann: nn.Module | None = None,
    loader: Iterable[Any] | None = None,
    time_steps: int | None = None,
) -> Report:
    r"""Per layer: thresholds, firing, and the error against the ANN split by its causes.

    With z̄ the SNN's mean input current over T, f the ANN's activation function, a its value and
    φ the SNN's mean output, the error of a neuron is a telescoping sum

    .. math::
        \varphi - a = \underbrace{f(\bar z) - a}_\text{propagated}
        + \underbrace{\min(f(\bar z), \Gamma\theta) - f(\bar z)}_\text{clipping}
        + \underbrace{\varphi - \min(f(\bar z), \Gamma\theta)}_\text{residual or inactivated}

    The last term counts as *inactivated* (SIN) for neurons that an even current would leave silent
    (z̄ ≤ 0 and z̄T + v(0) < θ), else as *residual*: flooring, and charge left in the membrane. For
    max-pooling, *pooling* is φ − maxpool(x̄) with the mean input x̄, and *propagated* is
    maxpool(x̄) − a. Each part e_k is reported as its share of the squared error,

    .. math::
        \frac{\sum e\,e_k}{\sum a^2}, \qquad \sum_k \sum e\,e_k = \sum e^2,

    so parts add up to the layer's error; one is negative if it cancels others. Derived here.
    ``advice`` treats causes from the largest on, and what is propagated last, because mending the
    causes shrinks it; options that cost spikes or steps (Γ, T) come after those that cost none.

    Args:
        snn: a converted network; its state is reset before and after.
        ann: the network it was converted from; without it, only the static part is reported.
        loader: batches of inputs, or (input, target); without it, likewise.
        time_steps: T; ``None`` for the T that the network was fitted for.

    Returns:
        A :class:`Report`.

    Raises:
        TypeError: for a network that ``BurstRecipe`` did not convert, or a loader that cannot be read.
        ValueError: if only one of ``ann`` and ``loader`` is given, T < 1, the loader is empty, the
            ANN is of another architecture, or a value is NaN or infinite.

    Example:
        >>> from spikingjelly.activation_based import ann2snn
        >>> from sj_burst import BurstRecipe
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> data = [torch.rand(64, 3)]
        >>> recipe = BurstRecipe(data, max_spikes=1, potential="zero", progress=False)
        >>> snn = ann2snn.Converter(recipe).convert(ann)
        >>> found = report(snn, ann, data)
        >>> layer = found.layers[0]
        >>> abs(sum(layer.parts.values()) - layer.error) < 1e-6
        True
        >>> found.advice[0].option
        'potential'
    """
    if not isinstance(snn, SpikingNetwork):
        raise TypeError(f"report wants a network converted by BurstRecipe, got {type(snn).__name__}")
    if (ann is None) != (loader is None):
        raise ValueError(
            "report measures errors with both ann and loader, and got only one; pass both, or "
            "neither for the static part"
        )
    options = dataclasses.asdict(Options()) | snn.options
    static = {name: _static(name, node) for name, node in snn.neurons().items()}
    if ann is None or loader is None:
        if time_steps is not None:
            raise ValueError(f"time_steps={time_steps!r} needs data; pass ann and loader too")
        return Report(list(static.values()), options, _notes(snn, list(static.values())))
    time_steps = int(options["time_steps"]) if time_steps is None else time_steps
    totals: dict[str, _Totals] = {}
    samples, error, reference = 0, 0.0, 0.0
    with count_outputs(snn) as outputs:
        for layers, (out, wanted) in layer_means(snn, ann, loader, time_steps):
            samples += len(out)
            error += (out - wanted).double().square().sum().item()
            reference += wanted.double().square().sum().item()
            for name, means in layers.items():
                node = snn.neurons().get(name)
                totals.setdefault(name, _Totals()).add(means, node, time_steps)
    example = take(loader, 1)[0].to(wanted.device)
    measured = []
    for name, total in totals.items():
        module = snn.graph.get_submodule(name)
        base = static.get(name, LayerReport(name, type(module).__name__))
        measured.append(dataclasses.replace(base, **total.result()))
    return Report(
        measured,
        options,
        _notes(snn, measured),
        time_steps,
        samples,
        math.sqrt(_ratio(error, reference)),
        _advise(measured, options, time_steps),
        count_operations(snn, outputs, example, samples, time_steps),
    )


def split_error(means: LayerMeans, node: BurstIFNode | None, time_steps: int) -> dict[str, Tensor]:
    """Parts of the error of each neuron, ``[N, ...]``; they sum to φ − a. See :func:`report`."""
    arriving, zero = means.module(means.current), torch.zeros_like(means.rate)
    if node is None:
        parts = {"propagated": arriving - means.activation, "pooling": means.rate - arriving}
        return {part: parts.get(part, zero) for part in PARTS}
    dim = means.rate.dim()
    theta, v_init = per_channel(node.threshold, dim), per_channel(node.v_init, dim)
    current = means.current
    if node.shift is not None:
        current = current + per_channel(node.shift, dim)
        arriving = means.module(current)
    within = arriving.clamp(max=theta * node.max_spikes)
    quiet = (current <= 0) & (current * time_steps + v_init < theta)
    parts = {
        "propagated": arriving - means.activation,
        "clipping": within - arriving,
        "residual": torch.where(quiet, zero, means.rate - within),
        "inactivated": torch.where(quiet, means.rate - within, zero),
    }
    return {part: parts.get(part, zero) for part in PARTS}


class _Totals:
    """Sums over the samples of one layer."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.fired: Any = False
        self.active: Any = False
        self.is_neuron = True

    def add(self, means: LayerMeans, node: BurstIFNode | None, time_steps: int) -> None:
        a, rate = means.activation, means.rate
        parts = split_error(means, node, time_steps)
        error = (rate - a).double()
        values = {part: (error * value).sum() for part, value in parts.items()}
        values |= {"error": error.square().sum(), "reference": a.double().square().sum()}
        values |= {"output": rate.double().square().sum()}
        self.is_neuron = node is not None
        if node is not None:
            theta = per_channel(node.threshold, rate.dim())
            values["neurons"] = torch.tensor(rate.numel())
            values["spikes"] = (means.magnitude / theta).sum(dtype=torch.float64)
            values["active"], values["inactive"] = (a > 0).sum(), (a <= 0).sum()
            values["clipped"] = (a > theta * node.max_spikes).sum()
            # At least one spike: half a spike tells it from rounding.
            values["wrong"] = ((a <= 0) & (rate > theta / (2 * time_steps))).sum()
            self.fired = self.fired | _any_in_channel(means.magnitude > 0)
            self.active = self.active | _any_in_channel(a > 0)
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.item()

    def result(self) -> dict[str, Any]:
        s = self.sums
        # A layer that the ANN leaves silent has no scale of its own.
        scale = s["reference"] or s["output"] or 1.0
        found: dict[str, Any] = {
            "error": s["error"] / scale,
            "parts": {part: s[part] / scale for part in PARTS},
        }
        if self.is_neuron:
            found |= {
                "rate": s["spikes"] / s["neurons"],
                "channels": len(self.active),
                "silent": int((self.active & ~self.fired).sum()),
                "dead": int((~self.active).sum()),
                "clipped": s["clipped"] / max(s["active"], 1),
                "inactivated": s["wrong"] / max(s["inactive"], 1),
            }
        return found


def _any_in_channel(mask: Tensor) -> Tensor:
    return mask.movedim(1, 0).flatten(1).any(1) if mask.dim() > 1 else mask.any().view(1)


def _ratio(error: float, reference: float) -> float:
    return error / reference if reference else float(error > 0)


def _static(name: str, node: BurstIFNode) -> LayerReport:
    theta = node.threshold.double()
    potential = (node.v_init.double() / theta).mean().item()
    return LayerReport(
        name,
        type(node).__name__,
        (theta.min().item(), theta.mean().item(), theta.max().item()),
        node.max_spikes,
        potential,
    )


def _notes(snn: SpikingNetwork, layers: list[LayerReport]) -> list[str]:
    notes = []
    if names := unfused(snn.graph):
        notes.append(
            f"BatchNorm {', '.join(names)} could not be folded into a neighbour; it runs at every "
            "step, which is correct but costs time"
        )
    for name, count in snn.unseen.items():
        notes.append(
            f"{name}: {count} channel(s) never fired in calibration and have the layer's median "
            "threshold; more varied calibration images may help"
        )
    silent = {layer.name: layer for layer in layers if layer.silent}
    for name, layer in silent.items():
        notes.append(f"{name}: {layer.silent} channel(s) are active in the ANN but never spiked here")
    return notes


_LEAST_SHARE = 0.1  # of what all layers add themselves; smaller causes get no advice
_LEAST_ERROR = 1e-3  # mean over layers of the squared error below which nothing needs mending


def _advise(layers: list[LayerReport], options: dict[str, Any], time_steps: int) -> list[Advice]:
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
    return sorted(advice, key=lambda given: given.option in ("max_spikes", "time_steps"))


_Remedy = tuple[str, Any, str]


def _for_clipping(options: dict[str, Any], layer: LayerReport, time_steps: int) -> Iterator[_Remedy]:
    if options["threshold"] != "trained":
        yield from _fitted_threshold(options, "activations above Γθ are cut off")
    yield from _more_spikes(options, layer, "a larger Γ lifts the ceiling Γθ")
    yield from _more_steps(time_steps)


def _for_residual(options: dict[str, Any], layer: LayerReport, time_steps: int) -> Iterator[_Remedy]:
    if options["potential"] == "zero" and not options["shift"]:
        yield "potential", "half", "v(0)=θ/2 rounds where v(0)=0 always rounds down"
    yield from _fitted_threshold(options, "the threshold is coarser than these T and Γ need")
    if not options["channel_wise"]:
        yield "channel_wise", True, "a threshold per channel resolves small channels too"
    yield from _more_spikes(options, layer, "more levels ΓT leave less charge in the membrane")
    yield from _calibration(options, "fit what flooring takes away on average")
    yield from _more_steps(time_steps)


def _for_pooling(options: dict[str, Any], layer: LayerReport, time_steps: int) -> Iterator[_Remedy]:
    if options["max_pool"] != "lateral_inhibition":
        reason = f"max_pool={options['max_pool']!r} does not converge to the ANN's pooling"
        yield "max_pool", "lateral_inhibition", reason
    yield from _more_steps(time_steps)


def _for_inactivated(options: dict[str, Any], layer: LayerReport, time_steps: int) -> Iterator[_Remedy]:
    if options["inactivated_spikes"] != "signed":
        yield "inactivated_spikes", "signed", "let neurons take back spikes that came too early"
    yield from _more_steps(time_steps)
    yield from _calibration(options, "fit what spikes of inactive neurons add on average")


def _for_propagated(options: dict[str, Any], layer: LayerReport, time_steps: int) -> Iterator[_Remedy]:
    if options["coding"] in ("rate", "poisson"):
        yield "coding", "direct", f"coding={options['coding']!r} loses part of the input"
    yield from _calibration(options, "fit every layer to the errors of those before it")
    yield from _more_steps(time_steps)


def _fitted_threshold(options: dict[str, Any], reason: str) -> Iterator[_Remedy]:
    if options["threshold"] not in ("mse", "trained") and math.inf not in _gammas(options):
        yield "threshold", "mse", reason


def _gammas(options: dict[str, Any]) -> list[float]:
    gamma = options["max_spikes"]
    return list(gamma.values()) if isinstance(gamma, Mapping) else [gamma]


_MOST_SPIKES = 16  # beyond, more levels hardly help


def _more_spikes(options: dict[str, Any], layer: LayerReport, reason: str) -> Iterator[_Remedy]:
    gamma = layer.max_spikes
    if gamma is None or gamma >= _MOST_SPIKES:
        return
    larger = min(4 * int(gamma), _MOST_SPIKES)
    given = options["max_spikes"]
    rest = {k: v for k, v in given.items() if k != layer.name} if isinstance(given, Mapping) else {}
    yield "max_spikes", {layer.name: larger} | rest if isinstance(given, Mapping) else larger, reason


def _calibration(options: dict[str, Any], reason: str) -> Iterator[_Remedy]:
    if options["calibration"] != "advanced":
        yield "calibration", "advanced", reason


def _more_steps(time_steps: int) -> Iterator[_Remedy]:
    yield "time_steps", 2 * time_steps, "more steps shrink what none of the other options can"


_REMEDIES: dict[str, Callable[[dict[str, Any], LayerReport, int], Iterator[_Remedy]]] = {
    "propagated": _for_propagated,
    "clipping": _for_clipping,
    "residual": _for_residual,
    "pooling": _for_pooling,
    "inactivated": _for_inactivated,
}


def _table(layers: list[LayerReport]) -> str:
    head = ["layer", "Γ", "θ (min … max)", "v(0)/θ"]
    measured = any(layer.error is not None for layer in layers)
    if measured:
        head += ["rate", "silent", "dead", "clipped%", "SIN%", "error%", *PARTS]
    rows = [head]
    for layer in layers:
        theta = layer.threshold
        row = [
            layer.name,
            _number(layer.max_spikes, "g"),
            "-" if theta is None else f"{theta[0]:.3g} … {theta[2]:.3g}",
            _number(layer.potential, ".2f"),
        ]
        if measured:
            row += [_number(layer.rate, ".3f"), _number(layer.silent, "d"), _number(layer.dead, "d")]
            shares = [layer.clipped, layer.inactivated, layer.error]
            shares += [layer.parts.get(part) for part in PARTS]
            row += [_number(None if share is None else 100 * share, ".2f") for share in shares]
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    )


def _number(value: float | None, style: str) -> str:
    return "-" if value is None else format(value, style)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return "inf" if isinstance(value, float) and math.isinf(value) else value
