"""Pick the cheapest setting that keeps a network's accuracy."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..conversion.recipe import convert
from ..options import Options
from ..simulation.fan_out import fan_out
from ..simulation.result import SimulationResult
from ..simulation.simulate import simulate
from ..utils import distributed
from ..utils.checks import check_count, check_network, check_range
from ..utils.inference import device_of, evaluate
from ..utils.inputs import Inputs, join, rows
from ..utils.labels import check_labels, correct_share, is_label
from ..utils.loader import batches, check_loader, check_one_size
from ..utils.table import format_table

__all__ = ["BUDGETS", "ENERGY_SETTINGS", "SETTINGS", "Recommendation", "Trial", "recommend"]

# (T, Γ), in the order of the spikes that they spend on the networks of the tutorials.
SETTINGS: tuple[tuple[int, int], ...] = (
    *((2, 1), (4, 1), (2, 4), (8, 1), (4, 4), (16, 1)),
    *((2, 15), (8, 4), (32, 1), (4, 15), (16, 4), (8, 15)),
)
# (T, Γ) for the least energy: bursts in few steps leave little to take back; many classes want levels.
ENERGY_SETTINGS: tuple[tuple[int, int], ...] = ((1, 15), (1, 63), (2, 8), (4, 4))
BUDGETS = (0.1, 0.14, 0.2, 0.28, 0.4, 0.56, 0.8, 1.1)  # shares of the ANN's energy
OBJECTIVES = ("spikes", "time_steps", "energy")


@dataclass(frozen=True)
class Trial:
    """One setting that was tried.

    Attributes:
        time_steps: T.
        max_spikes: Γ.
        drop: accuracy points lost.
        spikes: per image.
        energy: share of the ANN's energy, bursts in unary; ``None`` if images differ in size.
        energy_budget: the option, if it was tried.

    Example:
        >>> Trial(time_steps=1, max_spikes=15, drop=0.4, spikes=2e5, energy_budget=0.2).options()
        {'time_steps': 1, 'max_spikes': 15, 'threshold': 'rate_distortion', 'energy_budget': 0.2}
    """

    time_steps: int
    max_spikes: int
    drop: float
    spikes: float
    energy: float | None = None
    energy_budget: float | None = None

    def options(self) -> dict[str, Any]:
        """What was tried, as options of a conversion."""
        found: dict[str, Any] = {"time_steps": self.time_steps, "max_spikes": self.max_spikes}
        if self.energy_budget is not None:
            found |= {"threshold": "rate_distortion", "energy_budget": self.energy_budget}
        return found


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
        rows = [["T", "Γ", "budget", "drop (points)", "spikes/image", "energy/ANN"]]
        for t in self.trials:
            shares = ["-" if x is None else f"{x:.3f}" for x in (t.energy_budget, t.energy)]
            cells = [str(t.time_steps), str(t.max_spikes), shares[0]]
            rows.append([*cells, f"{t.drop:.2f}", f"{t.spikes:.0f}", shares[1]])
        if all(trial.energy_budget is None for trial in self.trials):
            rows = [row[:2] + row[3:] for row in rows]
        lines = format_table(rows).split("\n")
        lines[1 + self.trials.index(self.chosen)] += "  <- recommended"
        if not self.met:
            by_energy = any(trial.energy_budget is not None for trial in self.trials)
            tried = ENERGY_SETTINGS if by_energy else SETTINGS
            further = max(t.time_steps for t in self.trials) < max(t for t, _ in tried)
            more = " or max_time_steps" if further else ""
            lines.append(f"no setting stays within max_drop; raise max_drop{more}")
        return "\n".join(lines)


def recommend(
    ann: nn.Module,
    loader: Iterable[Any],
    max_drop: float = 0.5,
    max_time_steps: int = 32,
    *,
    objective: str = "spikes",
    images: int = 1024,
    progress: bool = True,
    **options: Any,
) -> Recommendation:
    """Try a small set of settings on held-back training data, cheapest first.

    Half of the images calibrate, the other half measure, and the cheapest setting within ``max_drop``
    is recommended; T is at most ``max_time_steps``, and other options have their defaults.

    - ``objective="spikes"``: ``SETTINGS``, in the order of the spikes that they spend.
    - ``"time_steps"``: the same in the order of T, then Γ.
    - ``"energy"``: ``ENERGY_SETTINGS``, each with thresholds by rate and distortion at the budgets of
      ``BUDGETS`` that leave something for spikes, from the least on; what is no cheaper than a setting
      that was found is not tried.

    Without targets, the drop is the share of samples that the ANN and the SNN classify differently.

    Args:
        ann: a trained network.
        loader: training batches, ``(input, target)`` or inputs.
        max_drop: accuracy points that may be lost.
        max_time_steps: largest T, at least 2, and 1 for ``"energy"``; no setting has more than 32.
        objective: what shall be least.
        images: how many images are used in all.
        progress: show progress bars.
        **options: of :class:`~sj_burst.Options`, but T and Γ, and with ``"energy"`` but ``threshold``.

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
    check_count(2, images=images)
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {list(OBJECTIVES)}, got {objective!r}")
    check_count(1 if objective == "energy" else 2, max_time_steps=max_time_steps)
    chosen_here = {"time_steps", "max_spikes", "energy_budget"}
    chosen_here |= {"threshold"} if objective == "energy" else set()
    if overlap := chosen_here & set(options):
        raise ValueError(f"recommend chooses {sorted(overlap)}; leave it out, see max_time_steps")
    if options.get("threshold") == "rate_distortion":
        raise ValueError("threshold='rate_distortion' is what objective='energy' tries; pass that")
    given = Options().changed(**options)
    check_loader(loader)
    calibration, held_back = _split(ann, loader, images)
    answers = [correct_share(evaluate(ann, x), y) for x, y in held_back]
    sums = torch.tensor([[right.double().sum(), known.sum()] for right, known in answers])
    right, counted = distributed.total(sums.double().sum(0)).tolist()
    if counted == 0:
        raise ValueError("loader yields no label of a class to measure with; leave targets out")
    ann_accuracy = right / counted

    def lost(snn: nn.Module, time_steps: int) -> tuple[float, SimulationResult]:
        result = simulate(snn, held_back, time_steps, progress=progress)
        assert result.accuracy is not None
        drop = 100 * (ann_accuracy - result.accuracy[-1].item())
        return round(drop, 4) + 0.0, result  # accuracy is in float32; no −0

    trials: list[Trial] = []
    least = _least_budget(ann, calibration, given) if objective == "energy" else _nothing
    for time_steps, max_spikes, budget in _settings(objective, max_time_steps, max_drop, trials, least):
        trial = Trial(time_steps, max_spikes, 0.0, 0.0, energy_budget=budget)
        snn = convert(ann, calibration, _tried(given, trial), progress=progress)
        drop, result = lost(snn, time_steps)
        spikes, operations = result.total_spikes[-1].item(), result.operations
        energy = None if operations is None else operations.energy / operations.ann_energy
        trials.append(replace(trial, drop=drop, spikes=spikes, energy=energy))
    if not trials:
        raise ValueError(
            f"the layers that no spike reaches cost {least(1):.2f} of the ANN's energy in one step, and "
            f"budgets of up to {BUDGETS[-1]} are tried; use objective='spikes'"
        )
    within = [trial for trial in trials if trial.drop <= max_drop]
    # The last one within is the cheapest: nothing is tried that is not cheaper than what was found.
    chosen = within[-1] if within else min(trials, key=lambda trial: trial.drop)
    return Recommendation(_tried(given, chosen), trials, chosen, bool(within))


def _tried(given: Options, trial: Trial) -> Options:
    """The given options as a trial changes them; at one spike a step there is nothing to allocate."""
    allocation = "uniform" if trial.max_spikes == 1 else given.burst_allocation
    return given.changed(burst_allocation=allocation, **trial.options())


def _settings(
    objective: str,
    max_time_steps: int,
    max_drop: float,
    trials: list[Trial],
    least: Callable[[int], float],
) -> Iterator[tuple[int, int, float | None]]:
    """What to try next: T, Γ and a budget above the least at T; ``trials`` are those so far."""
    if objective != "energy":
        settings = SETTINGS if objective == "spikes" else tuple(sorted(SETTINGS))
        for time_steps, max_spikes in settings:
            if time_steps <= max_time_steps and not (trials and trials[-1].drop <= max_drop):
                yield time_steps, max_spikes, None
        return
    found = math.inf
    for time_steps, max_spikes in ENERGY_SETTINGS:
        for budget in (b for b in BUDGETS if b > least(time_steps)):
            if time_steps > max_time_steps or budget >= found:
                break
            yield time_steps, max_spikes, budget
            if trials[-1].drop <= max_drop:
                found = budget


def _least_budget(
    ann: nn.Module, calibration: list[tuple[Any]], given: Options
) -> Callable[[int], float]:
    """What the layers that no spike reaches cost in T steps, as a share of the ANN's energy."""
    quick = given.changed(calibration="none", burst_allocation="uniform")
    snn = convert(ann, calibration[:1], quick, progress=False)
    return fan_out(snn, Inputs(calibration[0][0])[:1]).share


def _nothing(time_steps: int) -> float:
    return 0.0


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
    first: Inputs | None = None
    for x, y in batches(loader):
        x = x.to(device)
        first = x if first is None else first
        check_one_size(first, x, "loader")
        out = evaluate(ann, x.value)
        if not isinstance(out, Tensor) or out.dim() < 2 or not out.is_floating_point():
            raise ValueError(
                "recommend compares the answers of classifiers with scores [N, classes, ...]; for "
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
        inputs.append(x.value)
        targets.append(answers if y is None else y.to(device))
        if sum(map(rows, inputs)) >= images:
            break
    x, y = Inputs(join(inputs))[:images], torch.cat(targets)[:images]
    if len(x) < 2:
        raise ValueError(f"loader has {len(x)} image(s); recommend needs at least two")
    half = len(x) // 2
    calibration = [(x[i : min(i + 100, half)].value,) for i in range(0, half, 100)]
    return calibration, [(x[i : i + 100].value, y[i : i + 100]) for i in range(half, len(x), 100)]
