"""What each layer of a converted network lost, why, and which option would mend it."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..graph.fuse import unfused
from ..graph.readout import ReadOut
from ..modules.neuron import BurstIFNode
from ..network import SpikingNetwork, check_converted
from ..options import Options
from ..simulation.operations import Operations
from ..simulation.spikes import count_spikes
from ..simulation.synops import count_operations
from ..simulation.values import values_of
from ..simulation.walk import pool_units
from ..utils import distributed
from ..utils.loader import first_samples
from ..utils.table import format_table
from .advice import Advice, OutputError, advise
from .layer_report import PARTS, LayerReport, LayerTotals
from .layers import layer_means

__all__ = ["Report", "report"]


@dataclass(frozen=True)
class Report:
    """What :func:`report` found; ``print`` it for the table.

    Attributes:
        layers: in order of execution.
        options: of the recipe.
        notes: what is worth knowing beyond the table.
        time_steps: T of the measurement; ``None`` without data.
        samples: how many were measured.
        output_error: root of the relative squared error of the network's answer.
        output_levels: share of that squared error that the quantised ANN has too, by too few levels; the
            rest is unevenness.
        advice: what to change, the most important first.
        operations: SynOps and energy.

    Example:
        >>> import sj_burst
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> x = torch.rand(32, 3)
        >>> snn = sj_burst.convert(ann, [x], time_steps=1, max_spikes=1, progress=False)
        >>> found = sj_burst.report(snn, ann, [x])
        >>> [layer.name for layer in found.layers], found.samples
        (['1'], 32)
    """

    layers: list[LayerReport]
    options: Options
    notes: list[str]
    time_steps: int | None = None
    samples: int = 0
    output_error: float | None = None
    output_levels: float | None = None
    advice: list[Advice] = field(default_factory=list)
    operations: Operations | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values for JSON; an infinite Γ becomes ``"inf"``."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["layers"] = [dataclasses.asdict(layer) for layer in self.layers]
        values["options"] = dataclasses.asdict(self.options)
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
            levels = 100 * (self.output_levels or 0)
            lines.append(
                f"output: root of the relative squared error {error:.2f} %; of its square, {levels:.0f} "
                f"% are of levels (the ANN with ΓT levels has them), {100 - levels:.0f} % of unevenness"
            )
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
    *,
    time_dim: int | None = None,
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
    Beside its causes stands where an error comes from. With q the output of the same layer in the
    quantised ANN (:func:`~sj_burst.graph.quantised.quantised`: the same levels, no time),

    .. math::
        \varphi - a = \underbrace{q - a}_\text{levels} + \underbrace{\varphi - q}_\text{unevenness},

    as shares likewise. ``advice`` treats causes from the largest on, and what is propagated last,
    because mending the causes shrinks it; then the larger part of the error of the output.
    Options that cost spikes or steps (Γ, T) come after those that cost none. Under ``torchrun`` every
    process measures its own batches, and all return the report over all of them.

    Args:
        snn: a converted network; its state is reset before and after.
        ann: the network it was converted from; without it, only the static part is reported.
        loader: batches of inputs, or (input, target); without it, likewise.
        time_steps: T; ``None`` for the T that the network was fitted for.
        time_dim: for inputs that change from step to step, as for :func:`sj_burst.simulate`; errors
            are those against the ANN on the mean frame.

    Returns:
        A :class:`Report`.

    Raises:
        TypeError: for a network that ``BurstRecipe`` did not convert, or a loader that cannot be read.
        ValueError: if only one of ``ann`` and ``loader`` is given, T < 1, the loader is empty, the
            ANN is of another architecture, or a value is NaN or infinite.

    Example:
        >>> from sj_burst import convert
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> data = [torch.rand(64, 3)]
        >>> snn = convert(ann, data, max_spikes=1, potential="zero", progress=False)
        >>> found = report(snn, ann, data)
        >>> layer = found.layers[0]
        >>> abs(sum(layer.parts.values()) - layer.error) < 1e-6
        True
        >>> found.advice[0].option
        'potential'
    """
    check_converted(snn, "report")
    if (ann is None) != (loader is None):
        raise ValueError(
            "report measures errors with both ann and loader, and got only one; pass both, or "
            "neither for the static part"
        )
    layers = [_static(name, node) for name, node in snn.neurons().items()]
    if ann is not None and loader is not None:
        steps = snn.options.time_steps if time_steps is None else time_steps
        return _measured(snn, ann, loader, steps, time_dim)
    for name, value in {"time_steps": time_steps, "time_dim": time_dim}.items():
        if value is not None:
            raise ValueError(f"{name}={value!r} needs data; pass ann and loader too")
    return Report(layers, snn.options, _notes(snn, layers))


def _measured(
    snn: SpikingNetwork, ann: nn.Module, loader: Iterable[Any], time_steps: int, time_dim: int | None
) -> Report:
    """The report with data."""
    nodes = snn.neurons()
    totals: dict[str, LayerTotals] = {}
    sums = torch.zeros(4, dtype=torch.float64)  # samples; of the output's error, the ANN's, of levels
    layers_of = layer_means(snn, ann, loader, time_steps, time_dim)
    example = first_samples(loader, 1, "loader", time_dim)[0].to(snn.device)
    values = values_of(snn, example)
    units = pool_units(snn.graph, values)
    with count_spikes(snn, time_steps, units) as counter, closing(layers_of) as found:
        for means, (out, wanted, with_levels) in found:
            counter.restart()  # the next batch begins with its first step
            off, of_levels = (value.double() - wanted.double() for value in (out, with_levels))
            shares = (off * off, wanted.double().square(), off * of_levels)
            sums += torch.tensor(
                [len(out), *(share.sum().item() for share in shares)], dtype=torch.float64
            )
            for name, mean in means.items():
                totals.setdefault(name, LayerTotals(nodes.get(name), time_steps)).add(mean)
    samples, error, reference, levels = distributed.total(sums).tolist()
    output = OutputError(_ratio(error, reference), levels / error if error else 0.0)
    spikes = counter.totals()
    layers = []
    for name, total in totals.items():
        static = _static(name, snn.graph.get_submodule(name))
        net = None
        if name in counter.net:
            net = distributed.total(counter.net[name].sum()).item()
        total.share()
        layers.append(dataclasses.replace(static, **total.result(spikes.get(name), net)))
    return Report(
        layers,
        snn.options,
        _notes(snn, layers),
        time_steps,
        int(samples),
        math.sqrt(output.error),
        output.levels,
        advise(layers, snn.options, time_steps, output),
        count_operations(snn, values, spikes, int(samples), time_steps, example.sequence),
    )


def _ratio(error: float, reference: float) -> float:
    return error / reference if reference else float(error > 0)


def _static(name: str, node: nn.Module) -> LayerReport:
    """What is known of a layer without data."""
    if not isinstance(node, BurstIFNode):
        return LayerReport(name, type(node).__name__)
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
    if isinstance(snn.readout, ReadOut):
        notes.append(f"of the mean output: {snn.readout!r}; no neuron comes after it")
    for name, count in snn.dead.items():
        notes.append(
            f"{name}: {count} channel(s) never fired in calibration and have the layer's median "
            "threshold; more varied calibration images may help"
        )
    silent = {layer.name: layer for layer in layers if layer.silent}
    for name, layer in silent.items():
        notes.append(f"{name}: {layer.silent} channel(s) are active in the ANN but never spiked here")
    return notes


def _table(layers: list[LayerReport]) -> str:
    head = ["layer", "Γ", "θ (min … max)", "v(0)/θ"]
    measured = any(layer.error is not None for layer in layers)
    if measured:
        head += ["rate", "churn%", "silent", "dead", "clipped%", "SIN%", "error%", *PARTS]
        head += ["levels", "uneven"]
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
            churn = None if layer.churn is None else 100 * layer.churn
            row += [_number(layer.rate, ".3f"), _number(churn, ".1f")]
            row += [_number(layer.silent, "d"), _number(layer.dead, "d")]
            shares = [layer.clipped, layer.inactivated, layer.error]
            shares += [*(layer.parts.get(part) for part in PARTS), layer.levels, layer.unevenness]
            row += [_number(None if share is None else 100 * share, ".2f") for share in shares]
        rows.append(row)
    return format_table(rows)


def _number(value: float | None, style: str) -> str:
    return "-" if value is None else format(value, style)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return "inf" if isinstance(value, float) and math.isinf(value) else value
