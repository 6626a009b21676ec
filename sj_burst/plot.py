"""Figures. Every function takes ``ax=None`` and returns ``(fig, ax)``; matplotlib is imported late."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from .simulate import SimulationResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["accuracy_vs_time"]

# Okabe-Ito: distinct for colour-blind readers; line styles keep them apart in black and white.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
STYLES = ["-", "--", "-.", ":"]


def _axes(ax: "Axes | None") -> "tuple[Figure, Axes]":
    if ax is not None:
        return ax.figure, ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")


def _look(index: int) -> dict[str, Any]:
    """Line style of the index-th curve."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": STYLES[index // len(COLOURS) % len(STYLES)],
        "marker": "osD^v<>"[index % 7],
        "markersize": 3.5,
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
    if not results:
        raise ValueError("results is empty; give at least one {label: result}")
    fig, ax = _axes(ax)
    longest = 1
    for index, (label, result) in enumerate(results.items()):
        accuracy = result.accuracy if isinstance(result, SimulationResult) else result
        if accuracy is None:
            raise ValueError(f"result {label!r} has no accuracy; simulate with (input, target) batches")
        longest = max(longest, len(accuracy))
        steps = range(1, len(accuracy) + 1)
        ax.plot(steps, 100 * accuracy.cpu(), label=label, **_look(index))
    if ann_accuracy is not None:
        ax.axhline(100 * ann_accuracy, color="0.35", linewidth=1.0, linestyle=(0, (6, 2)))
        ax.annotate(
            f"ANN {100 * ann_accuracy:.1f}",
            (1, 100 * ann_accuracy),
            xytext=(0, 3),
            textcoords="offset points",
            fontsize="small",
            color="0.25",
        )
    _log_time_axis(ax, longest)
    ax.set_ylabel("accuracy (%)")
    ax.legend(fontsize="small", frameon=False)
    return fig, ax


def _log_time_axis(ax: "Axes", longest: int) -> None:
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlim(0.95, max(longest, 2) * 1.05)
    ax.set_xlabel("time steps T")
    ax.grid(True, alpha=0.25, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
