"""What samples answer after every step."""

from typing import Any

import torch
from torch import Tensor

from ..utils import distributed
from ..utils.labels import check_labels, correct_share
from .result import SimulationResult
from .spikes import SpikeCounter
from .steps import RunningAnswer

__all__ = ["AnswerTotals", "Answers"]


class Answers:
    """What the samples of one batch answer after every step; who has left keeps the last answer.

    Args:
        samples: how many there are.
        time_steps: T.
        target: class labels ``[N, ...]``; others are not compared.
        wanted: the reference's output ``[N, ...]``.
        running: makes the answer of what it has seen so far.

    Attributes:
        running: its ``value`` and ``scores`` are of the samples that are still there.
        output: answer of those who have left.
        exits: the step after which each left.
    """

    def __init__(
        self,
        samples: int,
        time_steps: int,
        target: Tensor | None,
        wanted: Tensor | None,
        running: RunningAnswer,
    ) -> None:
        self.samples, self.time_steps, self.wanted = samples, time_steps, wanted
        if wanted is not None and wanted.dtype == torch.bool:  # which cannot be subtracted
            self.wanted = wanted.float()
        self.labels = None if target is None or target.is_floating_point() else target
        self.running = running
        self.labelled = 0  # samples with a label of a class
        self.active = torch.arange(samples)
        self.exits = torch.full((samples,), time_steps)
        self.hits: list[Tensor] = []  # [samples] after every step
        self.errors: list[Tensor] = []
        self.output = torch.empty(0)

    @property
    def steps(self) -> int:
        """How many were taken."""
        return self.running.steps

    def step(self, returned: Any) -> None:
        """Take what the network returned ``[1, N, ...]`` for the samples that are still there."""
        self.running.add(returned)
        answer = self.running.value
        if self.steps == 1:
            self._check(answer)
            self.output = torch.zeros_like(answer)
            self.active, self.exits = self.active.to(answer.device), self.exits.to(answer.device)
        if self.labels is not None:
            right, known = correct_share(answer, self.labels[self.active])
            self._record(self.hits, right)
            if self.steps == 1:
                self.labelled = int(known.sum())
        if self.wanted is not None:
            self._record(self.errors, _squares(answer - self.wanted[self.active]))

    def _check(self, out: Tensor) -> None:
        """Raise where shapes would broadcast to a wrong result."""
        labels = out[:, 0].shape if out.dim() > 1 and out.shape[1] > 1 else None
        if self.labels is not None and self.labels.shape != labels:
            raise ValueError(
                f"targets {list(self.labels.shape)} do not fit the output {list(out.shape)}; accuracy "
                "needs class scores [N, classes ≥ 2, ...] and labels [N, ...]. Without accuracy: leave "
                "targets out, or make them floating-point"
            )
        if self.labels is not None:
            check_labels(self.labels, out.shape[1])
        if self.wanted is not None and self.wanted.shape != out.shape:
            raise ValueError(
                f"reference returns {list(self.wanted.shape)}, the network {list(out.shape)}; pass the "
                "network that it was converted from"
            )

    def _record(self, history: list[Tensor], values: Tensor) -> None:
        now = history[-1].clone() if history else values.new_zeros(self.samples)
        now[self.active] = values
        history.append(now)

    def keep(self, stay: Tensor) -> None:
        """The others leave with their answer; ``stay`` is a mask of those that are still there."""
        gone = self.active[~stay]
        self.output[gone] = self.running.value[~stay]
        self.exits[gone] = self.steps
        self.running.keep(stay)
        self.active = self.active[stay]

    def finish(self) -> None:
        """The last leave."""
        self.keep(torch.zeros_like(self.active, dtype=torch.bool))

    def sum_per_step(self, history: list[Tensor]) -> Tensor:
        """Sum over the samples after every step ``[T]``."""
        if not history:
            return torch.zeros(self.time_steps, dtype=torch.float64)
        history = history + [history[-1]] * (self.time_steps - len(history))
        return torch.stack(history).sum(1).double().cpu()


class AnswerTotals:
    """Sums over the batches, for each step.

    Args:
        time_steps: T.
    """

    def __init__(self, time_steps: int) -> None:
        self.correct = torch.zeros(time_steps, dtype=torch.float64)
        self.squares = torch.zeros(time_steps, dtype=torch.float64)
        self.reference = torch.zeros((), dtype=torch.float64)
        self.labelled = 0
        self.has_labels: set[bool] = set()
        self.has_reference = False
        self.outputs: list[Tensor] = []
        self.exits: list[Tensor] = []

    def add(self, batch: Answers) -> None:
        """Take in a batch that has finished.

        Raises:
            ValueError: if its answers are of another size than those before.
        """
        shapes = [list(output.shape[1:]) for output in (*self.outputs[:1], batch.output)]
        if shapes[0] != shapes[-1]:
            raise ValueError(
                f"answers to inputs of different sizes are {shapes[0]} and {shapes[-1]}; simulate each "
                "size by itself"
            )
        self.correct += batch.sum_per_step(batch.hits)
        self.squares += batch.sum_per_step(batch.errors)
        self.labelled += batch.labelled
        self.has_labels.add(batch.labels is not None)
        if batch.wanted is not None:
            self.has_reference = True
            self.reference += _squares(batch.wanted).sum().double().cpu()
        self.outputs.append(batch.output.cpu())
        self.exits.append(batch.exits.cpu())

    def result(self, counter: SpikeCounter, seconds: float) -> SimulationResult:
        """The means, over all processes.

        Args:
            counter: of the spikes of this process.
            seconds: of this process.
        """
        if len(self.has_labels) > 1:
            raise ValueError("loader yields class labels in some batches only; give them to all or none")
        exits = distributed.gather_samples(torch.cat(self.exits))
        labelled = distributed.total(torch.tensor(self.labelled))
        correct, squares = distributed.total(self.correct), distributed.total(self.squares)
        error = (squares / distributed.total(self.reference).clamp_min(1e-300)).sqrt()

        def per_sample(spikes: dict[str, Tensor]) -> dict[str, Tensor]:
            totals = {name: distributed.total(count.cpu()) for name, count in spikes.items()}
            return {name: (count / len(exits)).float() for name, count in totals.items()}

        return SimulationResult(
            accuracy=(correct / labelled).float() if labelled else None,
            error=error.float() if self.has_reference else None,
            output=torch.cat(self.outputs),
            spikes=per_sample(counter.per_step),
            net_spikes=per_sample(counter.net),
            samples=len(exits),
            seconds=seconds,
            exit_steps=exits,
        )


def _squares(x: Tensor) -> Tensor:
    """Sum of squares of each sample ``[N]``, of ``[N]`` or ``[N, ...]``."""
    return x.reshape(len(x), -1).float().square().sum(1)
