"""Pick the cheapest setting that keeps a network's accuracy."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..conversion.recipe import convert
from ..options import Options
from ..simulation.simulate import simulate
from ..utils.checks import check_count, check_network, check_range
from ..utils.inference import device_of, evaluate
from ..utils.inputs import Inputs, join, rows
from ..utils.labels import check_labels, correct_share, is_label
from ..utils.loader import batches, check_loader
from ..utils.table import format_table

__all__ = ["SETTINGS", "Recommendation", "Trial", "recommend"]

# (T, Γ), in the order of the spikes that they spend on the networks of the tutorials.
SETTINGS: tuple[tuple[int, int], ...] = (
    *((2, 1), (4, 1), (2, 4), (8, 1), (4, 4), (16, 1)),
    *((2, 15), (8, 4), (32, 1), (4, 15), (16, 4), (8, 15)),
)


@dataclass(frozen=True)
class Trial:
    """One setting that was tried: T, Γ, accuracy points lost, spikes per image."""

    time_steps: int
    max_spikes: int
    drop: float
    spikes: float


@dataclass(frozen=True)
class Recommendation:
    """What :func:`recommend` found; ``print`` it for the table of what was tried.

    Attributes:
        options: the recommended setting, for :func:`sj_burst.convert`.
        trials: every setting that was tried, in order.
        chosen: the recommended one.
        met: whether it stays within ``max_drop``; if none did, the one with the smallest drop is
            recommended.
    """

    options: Options
    trials: list[Trial]
    chosen: Trial
    met: bool

    def __str__(self) -> str:
        rows = [["T", "Γ", "drop (points)", "spikes/image"]]
        for t in self.trials:
            rows.append([str(t.time_steps), str(t.max_spikes), f"{t.drop:.2f}", f"{t.spikes:.0f}"])
        lines = format_table(rows).split("\n")
        lines[1 + self.trials.index(self.chosen)] += "  <- recommended"
        if not self.met:
            further = max(t.time_steps for t in self.trials) < max(t for t, _ in SETTINGS)
            more = " or max_time_steps" if further else ""
            lines.append(f"no setting stays within max_drop; raise max_drop{more}")
        return "\n".join(lines)


def recommend(
    ann: nn.Module,
    loader: Iterable[Any],
    max_drop: float = 0.5,
    max_time_steps: int = 32,
    *,
    images: int = 1024,
    progress: bool = True,
    **options: Any,
) -> Recommendation:
    """Try a small set of settings on held-back training data, cheapest first.

    The settings are ``SETTINGS`` with T ≤ ``max_time_steps``, all other options at their defaults.
    Half of the images calibrate, the other half measure; the search stops at the first setting within
    ``max_drop``, because the later ones spend more spikes.
    Without targets, the drop is the share of samples that the ANN and the SNN classify differently.

    Args:
        ann: a trained network.
        loader: training batches, ``(input, target)`` or inputs.
        max_drop: accuracy points that may be lost.
        max_time_steps: largest T; no setting has more than 32.
        images: how many images are used in all.
        progress: show progress bars.
        **options: of :class:`~sj_burst.Options`, but T and Γ.

    Returns:
        A :class:`Recommendation`.

    Raises:
        ValueError: if the loader has fewer than two images, an argument is out of range, or the
            network is no classifier.
        TypeError: for an unknown option, or a loader that cannot be read.

    Example:
        >>> ann = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> found = recommend(ann, [torch.rand(32, 3)], max_drop=50, progress=False)
        >>> found.met, found.chosen.time_steps
        (True, 2)
    """
    check_network(ann=ann)
    check_range(0, math.inf, max_drop=max_drop)
    check_count(2, max_time_steps=max_time_steps, images=images)
    settings = [(t, g) for t, g in SETTINGS if t <= max_time_steps]
    if overlap := {"time_steps", "max_spikes"} & set(options):
        raise ValueError(f"recommend chooses {sorted(overlap)}; leave it out, see max_time_steps")
    given = Options().changed(**options)
    check_loader(loader)
    calibration, held_back = _split(ann, loader, images)
    answers = [correct_share(evaluate(ann, x), y) for x, y in held_back]
    counted = sum(int(known.sum()) for _, known in answers)
    if counted == 0:
        raise ValueError("loader yields no label of a class to measure with; leave targets out")
    ann_accuracy = sum(right.double().sum().item() for right, _ in answers) / counted
    trials: list[Trial] = []
    for time_steps, max_spikes in settings:
        setting = given.changed(time_steps=time_steps, max_spikes=max_spikes)
        snn = convert(ann, calibration, setting, progress=progress)
        result = simulate(snn, held_back, time_steps, progress=progress)
        assert result.accuracy is not None
        lost = 100 * (ann_accuracy - result.accuracy[-1].item())
        drop = round(lost, 4) + 0.0  # accuracy is in float32; no −0
        trials.append(Trial(time_steps, max_spikes, drop, result.total_spikes[-1].item()))
        if drop <= max_drop:
            break
    met = trials[-1].drop <= max_drop
    chosen = trials[-1] if met else min(trials, key=lambda trial: trial.drop)
    best = given.changed(time_steps=chosen.time_steps, max_spikes=chosen.max_spikes)
    return Recommendation(best, trials, chosen, met)


def _describe(target: Any) -> str:
    if isinstance(target, Tensor):
        return f"targets {list(target.shape)} of {target.dtype}"
    return f"targets of type {type(target).__name__}"


def _split(
    ann: nn.Module, loader: Iterable[Any], images: int
) -> tuple[list[tuple[Any]], list[tuple[Any, Tensor]]]:
    """Batches (input,) that calibrate, and batches (input, target) that measure."""
    inputs: list[Any] = []
    targets: list[Tensor] = []
    device = device_of(ann)
    for x, y in batches(loader):
        x = x.to(device).value
        out = evaluate(ann, x)
        if not isinstance(out, Tensor) or out.dim() < 2:
            raise ValueError(
                "recommend compares the answers of classifiers with outputs [N, classes, ...]; for "
                "others look at simulate(..., reference=ann).error"
            )
        answers = out.argmax(1)
        if y is not None and not is_label(y, answers.shape):
            raise ValueError(
                f"recommend compares class labels {list(answers.shape)}, and loader yields "
                f"{_describe(y)}; leave other targets out"
            )
        if y is not None:
            check_labels(y, out.shape[1])
        inputs.append(x)
        targets.append(answers if y is None else y.to(device))
        if sum(map(rows, inputs)) >= images:
            break
    x, y = Inputs(join(inputs))[:images], torch.cat(targets)[:images]
    if len(x) < 2:
        raise ValueError(f"loader has {len(x)} image(s); recommend needs at least two")
    half = len(x) // 2
    calibration = [(x[i : min(i + 100, half)].value,) for i in range(0, half, 100)]
    return calibration, [(x[i : i + 100].value, y[i : i + 100]) for i in range(half, len(x), 100)]
