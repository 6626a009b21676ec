"""Figures. Every function takes ``ax=None`` and returns ``(fig, ax)``; matplotlib is imported late."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..modules.neuron import BurstIFNode
from ..network import SpikingNetwork
from ..simulation.operations import ACCOUNTINGS
from ..simulation.result import SimulationResult
from ..simulation.spikes import spike_train
from ..utils.checks import check_count
from ..utils.inference import eval_mode, forward_hooks
from ..utils.inputs import Inputs, as_inputs
from .layer_report import PARTS
from .layers import layer_means
from .report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

__all__ = [
    "accuracy_vs_energy",
    "accuracy_vs_spikes",
    "accuracy_vs_time",
    "layer_errors",
    "membrane_trace",
    "rates_vs_activations",
    "spike_raster",
]

# Okabe-Ito: distinct for colour-blind readers; line styles keep them apart in black and white.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
STYLES = ["-", "--", "-.", ":"]


def _axes(ax: "Axes | None") -> "tuple[Figure, Axes]":
    if ax is not None:
        return ax.get_figure(root=True), ax  # type: ignore[return-value]
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")


def _look(index: int) -> dict[str, Any]:
    """Line style of the index-th curve; where colours come again, their markers differ."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": STYLES[index // len(COLOURS) % len(STYLES)],
        "marker": "osD^v<>"[(index + index // len(COLOURS)) % 7],
        "markersize": 4.5,
        "linewidth": 1.6,
    }


def _curves(ax: "Axes") -> "list[Line2D]":
    """Curves that are there already, of an earlier call."""
    return [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]


def _reach(ax: "Axes") -> float:
    """How far the curves go to the right."""
    return max((torch.as_tensor(line.get_xdata()).max().item() for line in _curves(ax)), default=0.0)


def accuracy_vs_time(
    results: Mapping[str, SimulationResult | torch.Tensor],
    *,
    ann_accuracy: float | None = None,
    ax: "Axes | None" = None,
) -> "tuple[Figure, Axes]":
    """Accuracy in percent after every time step, one curve per result.

    Args:
        results: label to result, or to an accuracy tensor ``[T]`` in [0, 1].
        ann_accuracy: drawn as a horizontal line, in [0, 1].
        ax: axes to draw into; a new figure without.

    Raises:
        ValueError: if there is nothing to draw, a result has no accuracy, or the ANN's is no share.

    Example:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> fig, ax = accuracy_vs_time({"a": torch.tensor([0.1, 0.8])}, ann_accuracy=0.9)
        >>> ax.get_ylabel()
        'accuracy (%)'
    """
    accuracies = _accuracies(results, ann_accuracy)
    fig, ax = _axes(ax)
    for index, (label, accuracy) in enumerate(accuracies.items(), len(_curves(ax))):
        steps = range(1, len(accuracy) + 1)
        # Markers at powers of two: more would run together at the right.
        at = [t - 1 for t in steps if t & (t - 1) == 0]
        ax.plot(steps, 100 * accuracy, label=label, markevery=at, **_look(index))
    _ann_line(ax, ann_accuracy)
    _log_axis(ax, 0.95, max(_reach(ax), 2) * 1.05)
    ax.set_xlabel("time steps T")
    ax.set_ylabel("accuracy (%)")
    ax.legend(fontsize="small", frameon=False)
    return fig, ax


def accuracy_vs_spikes(
    results: Mapping[str, SimulationResult],
    *,
    ann_accuracy: float | None = None,
    ax: "Axes | None" = None,
) -> "tuple[Figure, Axes]":
    """Accuracy in percent against spikes per image spent so far, one curve per result.

    Args:
        results: label to result.
        ann_accuracy: drawn as a horizontal line, in [0, 1].
        ax: axes to draw into; a new figure without.

    Raises:
        ValueError: if there is nothing to draw, a result has no accuracy or no spikes, or the ANN's
            accuracy is no share.

    Example:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> result = SimulationResult(
        ...     torch.tensor([0.1, 0.8]), None, torch.empty(0), {"1": torch.tensor([10.0, 20.0])})
        >>> fig, ax = accuracy_vs_spikes({"a": result})
        >>> ax.get_xlabel()
        'spikes per image'
    """
    accuracies = _accuracies(results, ann_accuracy)
    for label, result in results.items():
        if not isinstance(result, SimulationResult):
            raise TypeError(f"result {label!r} must be of simulate, got {type(result).__name__}")
        if not result.total_spikes.any():
            raise ValueError(f"result {label!r} has no spikes; simulate a spiking network that fires")
    fig, ax = _axes(ax)
    for index, (label, accuracy) in enumerate(accuracies.items(), len(_curves(ax))):
        spikes = results[label].total_spikes
        at = [t - 1 for t in range(1, len(accuracy) + 1) if t & (t - 1) == 0]
        ax.plot(spikes, 100 * accuracy, label=label, markevery=at, **_look(index))
    _ann_line(ax, ann_accuracy)
    ax.set_xscale("log")
    # The first steps of deep networks are nearly silent.
    ax.set_xlim(_reach(ax) / 1000, _reach(ax) * 1.4)
    _tidy(ax)
    ax.set_xlabel("spikes per image")
    ax.set_ylabel("accuracy (%)")
    ax.legend(fontsize="small", frameon=False)
    return fig, ax


def accuracy_vs_energy(
    results: Mapping[str, SimulationResult | Sequence[SimulationResult]],
    *,
    ann_accuracy: float | None = None,
    accounting: str = "unary",
    ax: "Axes | None" = None,
) -> "tuple[Figure, Axes]":
    """Accuracy in percent after all steps against the energy of an image, one point per result.

    A line joins those of a label that no other of its points beats in both.

    Args:
        results: label to the results of one method at several settings, or to one.
        ann_accuracy: of the ANN, in [0, 1]; drawn as a star at its energy.
        accounting: how a burst travels: ``"unary"``, ``"binary"`` or ``"graded"``, as in
            :class:`~sj_burst.simulation.operations.Operations`.
        ax: axes to draw into; a new figure without.

    Raises:
        ValueError: if there is nothing to draw, a result has no accuracy or no operations, or for
            another accounting.
        TypeError: for what are no results by label.

    Example:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> from sj_burst.simulation.operations import LayerOperations, Operations
        >>> operations = Operations({"1": LayerOperations(10.0, 5.0, 20.0, 8.0, 6.0)}, time_steps=1)
        >>> result = SimulationResult(
        ...     torch.tensor([0.8]), None, torch.empty(0), {}, operations=operations)
        >>> fig, ax = accuracy_vs_energy({"a": [result]}, ann_accuracy=0.9)
        >>> ax.get_ylabel()
        'accuracy (%)'
    """
    if accounting not in ACCOUNTINGS:
        raise ValueError(f"accounting must be one of {list(ACCOUNTINGS)}, got {accounting!r}")
    if not isinstance(results, Mapping):
        raise TypeError(f"results must map labels to results, got {type(results).__name__}")
    groups = {k: [v] if isinstance(v, SimulationResult) else list(v) for k, v in results.items()}
    for label, many in groups.items():
        if wrong := [one for one in many if not isinstance(one, SimulationResult)]:
            got = type(wrong[0]).__name__
            raise TypeError(f"results of {label!r} must be of simulate, got {got}")
    named = {f"{label}, {i}": r for label, many in groups.items() for i, r in enumerate(many)}
    last = {
        name: 100 * accuracy[-1].item() for name, accuracy in _accuracies(named, ann_accuracy).items()
    }
    for name, result in named.items():
        if result.operations is None:
            raise ValueError(f"result {name!r} has no operations; simulate inputs of one size")
    fig, ax = _axes(ax)
    for index, (label, many) in enumerate(groups.items(), len(_curves(ax))):
        found = [r.operations.energies[accounting] / 1e6 for r in many if r.operations is not None]
        points = sorted(zip(found, [last[f"{label}, {i}"] for i in range(len(many))], strict=True))
        look = _look(index)
        ax.plot(*zip(*points, strict=True), **look | {"linestyle": "none"}, label=label)
        best = [p for i, p in enumerate(points) if all(p[1] > q[1] for q in points[:i])]
        ax.plot(*zip(*best, strict=True), **look | {"marker": "none"})
    if ann_accuracy is not None:
        operations = next(iter(named.values())).operations
        assert operations is not None
        energy = operations.ann_energy / 1e6
        ax.plot([energy], [100 * ann_accuracy], "*", color="black", markersize=11, label="ANN")
    _tidy(ax)
    _decades(ax)
    ax.set_xlabel(f"energy per image (µJ, bursts {accounting})")
    ax.set_ylabel("accuracy (%)")
    ax.legend(fontsize="small", frameon=False)
    return fig, ax


def layer_errors(report: Report, *, ax: "Axes | None" = None) -> "tuple[Figure, Axes]":
    """Error of every layer against the ANN, stacked by cause; dots mark the totals.

    A part that cancels others is negative and hangs below zero.

    Args:
        report: of :func:`sj_burst.report` with data.
        ax: axes to draw into; a new figure without.

    Raises:
        ValueError: for a report without data.

    Example:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> from sj_burst import Options
        >>> from sj_burst.analysis.report import LayerReport
        >>> layer = LayerReport("1", "BurstIFNode", error=0.1, parts=dict.fromkeys(PARTS, 0.02))
        >>> fig, ax = layer_errors(Report([layer], Options(), []))
        >>> ax.get_ylabel()
        'squared error / squared activation (%)'
    """
    layers = report.layers
    if any(layer.error is None for layer in layers):
        raise ValueError("the report has no errors; make it with report(snn, ann, loader)")
    fig, ax = _axes(ax)
    at = range(len(layers))
    above, below = torch.zeros(len(layers)), torch.zeros(len(layers))
    for index, part in enumerate(PARTS):
        heights = 100 * torch.tensor([layer.parts[part] for layer in layers])
        bottom = torch.where(heights >= 0, above, below)
        colour = "0.8" if part == "propagated" else COLOURS[index - 1]
        ax.bar(at, heights, bottom=bottom, label=part, color=colour, width=0.75)
        above, below = above + heights.clamp(min=0), below + heights.clamp(max=0)
    totals = [100 * (layer.error or 0.0) for layer in layers]
    ax.plot(at, totals, "o", color="black", markersize=3.5, label="total")
    ax.axhline(0, color="0.35", linewidth=0.8)
    # Room above and below: bars stick to their ends.
    room = 0.05 * (above.max() - below.min()).clamp_min(1e-6).item()
    ax.set_ylim(below.min().item() - room * bool(below.min() < 0), above.max().item() + room)
    names = [layer.name for layer in layers]
    crowded = len(names) > 8 or sum(map(len, names)) > 60
    ax.set_xticks(list(at), names, rotation=90 if crowded else 0)
    _tidy(ax)
    ax.grid(False, axis="x")
    ax.set_axisbelow(True)
    ax.set_xlabel("layer")
    ax.set_ylabel("squared error / squared activation (%)")
    ax.legend(fontsize="small", frameon=False)
    return fig, ax


def rates_vs_activations(
    snn: SpikingNetwork,
    ann: nn.Module,
    x: Any,
    layer: str,
    time_steps: int,
    *,
    ax: "Axes | None" = None,
    points: int = 5000,
) -> "tuple[Figure, Axes]":
    """Mean output φ(T) of a layer's neurons against the ANN's activation a, one dot a neuron.

    A perfect conversion lies on the diagonal. Dots at a = 0 are spikes of inactivated neurons,
    rows of dots the levels that T steps can express, a flat end on the right is clipping.

    Args:
        snn: a converted network; its state is reset.
        ann: the network it was converted from.
        x: inputs ``[N, ...]``, or a tuple or dict of several.
        layer: name of a neuron or max-pooling layer.
        time_steps: T.
        ax: axes to draw into; a new figure without.
        points: most dots that are drawn, evenly picked.

    Raises:
        ValueError: for an unknown layer (lists the known ones), or a count below 1.

    Example:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> from sj_burst import convert
        >>> ann, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.rand(16, 3)
        >>> snn = convert(ann, [x], progress=False)
        >>> fig, ax = rates_vs_activations(snn, ann, x, "1", time_steps=4)
        >>> ax.get_xlabel()
        'ANN activation a'
    """
    check_count(points=points)
    with closing(layer_means(snn, ann, [(x,)], time_steps)) as found:
        layers, _ = next(found)
    if layer not in layers:
        raise ValueError(f"layer must be one of {list(layers)}, got {layer!r}")
    means = layers[layer]
    a, rate = (value.flatten().float().cpu() for value in (means.activation, means.rate))
    picked = torch.linspace(0, len(a) - 1, min(points, len(a))).long()
    fig, ax = _axes(ax)
    both = torch.cat([a, rate])
    ends = [min(0.0, both.min().item()), both.max().item()]
    ax.plot(ends, ends, color="0.35", linewidth=1.0, linestyle=(0, (6, 2)), label="φ = a")
    ax.scatter(a[picked], rate[picked], s=6, alpha=0.35, color=COLOURS[0], linewidths=0)
    _tidy(ax)
    ax.set_xlabel("ANN activation a")
    ax.set_ylabel(f"mean output φ after T={time_steps} steps")
    ax.legend(fontsize="small", frameon=False)
    return fig, ax


def spike_raster(
    snn: SpikingNetwork,
    x: Any,
    layer: str,
    time_steps: int,
    *,
    ax: "Axes | None" = None,
    neurons: int = 64,
) -> "tuple[Figure, Axes]":
    """Spikes of one layer for one input: larger dots are longer bursts, orange ones negative spikes.

    Spikes that are expected, and not sent, are drawn too.

    Args:
        snn: a converted network; its state is reset before and after.
        x: inputs ``[N, ...]``, or a tuple or dict of several, of which the first is shown.
        layer: name of a neuron layer.
        time_steps: T.
        ax: axes to draw into; a new figure without.
        neurons: most neurons that are drawn: those that spike most, in the layer's order.

    Raises:
        ValueError: for an unknown layer (lists the known ones), or a count below 1.

    Example:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> from sj_burst import convert
        >>> ann, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.rand(16, 3)
        >>> snn = convert(ann, [x], progress=False)
        >>> fig, ax = spike_raster(snn, x, "1", time_steps=4)
        >>> ax.get_xlabel()
        'time step'
    """
    check_count(neurons=neurons)
    count = _spike_train(snn, as_inputs(x)[:1], layer, time_steps)
    busiest = count.abs().sum(0).topk(min(neurons, count.shape[1])).indices.sort().values
    fig, ax = _axes(ax)
    for sign, colour, label in ((1, COLOURS[0], "spikes"), (-1, COLOURS[1], "negative spikes")):
        step, row = (sign * count[:, busiest] > 0).nonzero(as_tuple=True)
        if len(step):
            size = count[:, busiest][step, row].abs()
            ax.scatter(step + 1, row, s=5 * size, color=colour, label=label, linewidths=0)
    ax.set_xlim(0.5, time_steps + 0.5)
    ax.set_ylim(-0.5, len(busiest) - 0.5)
    _tidy(ax)
    ax.set_xlabel("time step")
    ax.set_ylabel(f"neuron of layer {layer} ({len(busiest)} of {count.shape[1]})")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize="small", frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return fig, ax


@torch.no_grad()
def _spike_train(snn: SpikingNetwork, x: Inputs, layer: str, time_steps: int) -> Tensor:
    """Spikes n(t) of a layer for one sample ``[T, neurons]``; negative ones are below zero."""
    nodes = snn.neurons()
    if layer not in nodes:
        raise ValueError(f"layer must be one of {list(nodes)}, got {layer!r}")
    train: list[Tensor] = []
    with (
        eval_mode(snn),
        forward_hooks(
            {layer: nodes[layer]}, lambda name, node, _, y: train.append(spike_train(node, y))
        ),
    ):
        snn.run(x.to(snn.device), time_steps)
    return train[0].flatten(1).cpu()


@torch.no_grad()
def membrane_trace(
    node: BurstIFNode, current: Tensor, *, channel: int = 0, ax: "Axes | None" = None
) -> "tuple[Figure, Axes]":
    """Membrane potential of one neuron after every step, and the spikes it emits.

    The thin line rises from v(t-1) to m(t), the potential before the reset.

    Args:
        node: a burst neuron; it is copied, its state stays as it is.
        current: input current at every step ``[T]``.
        channel: whose θ and v(0), if the node has one for each channel.
        ax: axes to draw into; a new figure without.

    Raises:
        ValueError: if ``current`` is not one-dimensional, or the node has no such channel.

    Example:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> fig, ax = membrane_trace(BurstIFNode(1.0, max_spikes=2), torch.full((6,), 0.7))
        >>> ax.get_ylabel()
        'membrane potential'
    """
    if current.dim() != 1 or len(current) == 0:
        raise ValueError(f"current must have shape [T], got {tuple(current.shape)}")
    node, current = _single_neuron(node, channel), current.detach().float().cpu()
    theta, start = node.threshold.item(), node.v_init.item()
    shift = 0.0 if node.shift is None else node.shift.item()
    outputs, potentials = [], []
    for z in current:
        outputs.append(node(z.view(1, 1)).item())
        potentials.append(node.v.item())
    count, after = spike_train(node, torch.tensor(outputs)), torch.tensor(potentials)
    before = torch.cat([torch.tensor([start]), after[:-1]]) + current + shift
    steps = torch.arange(1, len(current) + 1)
    # Up to m(t), and down to v(t) by the reset.
    trace = torch.stack([before, after], 1).flatten()
    fig, ax = _axes(ax)
    ax.plot(
        torch.cat([torch.zeros(1), steps.repeat_interleave(2)]),
        torch.cat([torch.tensor([start]), trace]),
        color="0.6",
        linewidth=1.0,
    )
    ax.plot(steps, after, "o", color=COLOURS[0], markersize=4.5, label="v(t)")
    ax.axhline(theta, color=COLOURS[1], linestyle="--", linewidth=1.2, label="θ")
    for t in (count != 0).nonzero().flatten().tolist():
        offset, side = ((0, 3), "bottom") if count[t] > 0 else ((0, -3), "top")
        ax.annotate(f"{int(count[t]):+d}", (t + 1, before[t]), offset, va=side, **_CENTRED)
    ax.margins(y=0.12)
    _tidy(ax)
    ax.set_xlabel("time step")
    ax.set_ylabel("membrane potential")
    ax.legend(fontsize="small", frameon=False)
    return fig, ax


_CENTRED: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": "small"}


_PER_CHANNEL = ("threshold", "v_init", "shift", "negative_slope", "expected")


def _single_neuron(node: BurstIFNode, channel: int) -> BurstIFNode:
    """A copy of the node for one channel, fresh and on the CPU."""
    values = [getattr(node, name) for name in _PER_CHANNEL]
    sizes = {value.numel() for value in values if value is not None} - {1}
    if not 0 <= channel < min(sizes, default=1):
        raise ValueError(f"channel must be in 0 … {min(sizes, default=1) - 1}, got {channel}")
    fold, node.time_fold = node.time_fold, None
    state = node.v, node.sent
    node.v = node.sent = None  # activations with a gradient cannot be copied
    try:
        single = copy.deepcopy(node)
    finally:
        node.time_fold, (node.v, node.sent) = fold, state
    for name in _PER_CHANNEL:
        value = getattr(single, name)
        if value is not None:
            value = value.flatten()[channel] if value.numel() > 1 else value.reshape(())
            setattr(single, name, value.float().cpu())
    single.reset()
    single.backend, single.step_mode = "torch", "s"
    return single


def _accuracies(
    results: Mapping[str, SimulationResult | torch.Tensor], ann_accuracy: float | None
) -> dict[str, torch.Tensor]:
    if ann_accuracy is not None and not 0 <= ann_accuracy <= 1:
        raise ValueError(f"ann_accuracy is a share in [0, 1], got {ann_accuracy}; divide percent by 100")
    if not isinstance(results, Mapping):
        raise TypeError(f"results must be {{label: result}}, got {type(results).__name__}")
    if not results:
        raise ValueError("results is empty; give at least one {label: result}")
    found = {}
    for label, result in results.items():
        accuracy = result.accuracy if isinstance(result, SimulationResult) else result
        if accuracy is None:
            raise ValueError(f"result {label!r} has no accuracy; simulate with (input, target) batches")
        found[label] = torch.as_tensor(accuracy).cpu()
    return found


def _ann_line(ax: "Axes", ann_accuracy: float | None) -> None:
    if ann_accuracy is None:
        return
    ax.axhline(100 * ann_accuracy, color="0.35", linewidth=1.0, linestyle=(0, (6, 2)))
    ax.annotate(
        f"ANN {100 * ann_accuracy:.1f}",
        (0.01, 100 * ann_accuracy),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        fontsize="small",
        color="0.25",
    )


def _decades(ax: "Axes") -> None:
    """A logarithmic axis, with 1, 2 and 5 of every decade as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _log_axis(ax: "Axes", low: float, high: float) -> None:
    """Powers of two, written as plain numbers."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlim(low, high)
    _tidy(ax)


def _tidy(ax: "Axes") -> None:
    ax.grid(True, alpha=0.25, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
