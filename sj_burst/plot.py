"""Figures. Every function takes ``ax=None`` and returns ``(fig, ax)``; matplotlib is imported late."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from .simulate import SimulationResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["accuracy_vs_spikes", "accuracy_vs_time"]

# Okabe-Ito: distinct for colour-blind readers; line styles keep them apart in black and white.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
STYLES = ["-", "--", "-.", ":"]


def _axes(ax: "Axes | None") -> "tuple[Figure, Axes]":
    if ax is not None:
        return ax.get_figure(root=True), ax  # type: ignore[return-value]
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")


def _look(index: int) -> dict[str, Any]:
    """Line style of the index-th curve."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": STYLES[index // len(COLOURS) % len(STYLES)],
        "marker": "osD^v<>"[index % 7],
        "markersize": 4.5,
        "linewidth": 1.6,
    }


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
        ValueError: if there is nothing to draw, or a result has no accuracy.

    Example:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> fig, ax = accuracy_vs_time({"a": torch.tensor([0.1, 0.8])}, ann_accuracy=0.9)
        >>> ax.get_ylabel()
        'accuracy (%)'
    """
    fig, ax = _axes(ax)
    longest = 1
    for index, (label, accuracy) in enumerate(_accuracies(results).items()):
        longest = max(longest, len(accuracy))
        steps = range(1, len(accuracy) + 1)
        # Markers at powers of two: more would run together at the right.
        at = [t - 1 for t in steps if t & (t - 1) == 0]
        ax.plot(steps, 100 * accuracy, label=label, markevery=at, **_look(index))
    _ann_line(ax, ann_accuracy)
    _log_axis(ax, 0.95, max(longest, 2) * 1.05)
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
        ValueError: if there is nothing to draw, or a result has no accuracy or no spikes.

    Example:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> result = SimulationResult(
        ...     torch.tensor([0.1, 0.8]), None, torch.empty(0), {"1": torch.tensor([10.0, 20.0])})
        >>> fig, ax = accuracy_vs_spikes({"a": result})
        >>> ax.get_xlabel()
        'spikes per image'
    """
    fig, ax = _axes(ax)
    most = 0.0
    for index, (label, accuracy) in enumerate(_accuracies(results).items()):
        spikes = results[label].total_spikes
        if not len(spikes):
            raise ValueError(f"result {label!r} has no spikes; simulate a network of burst neurons")
        at = [t - 1 for t in range(1, len(accuracy) + 1) if t & (t - 1) == 0]
        ax.plot(spikes, 100 * accuracy, label=label, markevery=at, **_look(index))
        most = max(most, spikes[-1].item())
    _ann_line(ax, ann_accuracy)
    ax.set_xscale("log")
    ax.set_xlim(left=most / 1000)  # the first steps of deep networks are nearly silent
    _tidy(ax)
    ax.set_xlabel("spikes per image")
    ax.set_ylabel("accuracy (%)")
    ax.legend(fontsize="small", frameon=False)
    return fig, ax


def _accuracies(results: Mapping[str, SimulationResult | torch.Tensor]) -> dict[str, torch.Tensor]:
    if not results:
        raise ValueError("results is empty; give at least one {label: result}")
    found = {}
    for label, result in results.items():
        accuracy = result.accuracy if isinstance(result, SimulationResult) else result
        if accuracy is None:
            raise ValueError(f"result {label!r} has no accuracy; simulate with (input, target) batches")
        found[label] = accuracy.cpu()
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
