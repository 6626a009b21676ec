"""What samples answer after every step."""

import torch
from torch import Tensor

from ..utils import distributed
from ..utils.labels import check_labels, correct_share
from .early_exit import confidence_margin
from .result import SimulationResult
from .steps import Steps

__all__ = ["Totals"]


class Totals:
    """Sums over samples, for each step."""

    def __init__(self, time_steps: int, early_exit: float | None) -> None:
        self.time_steps, self.early_exit = time_steps, early_exit
        self.correct = torch.zeros(time_steps, dtype=torch.float64)
        self.counted = 0
        self.squares = torch.zeros(time_steps, dtype=torch.float64)
        self.reference = torch.zeros((), dtype=torch.float64)
        self.labelled: set[bool] = set()
        self.with_reference = False
        self.outputs: list[Tensor] = []
        self.exits: list[Tensor] = []
        self.seconds = 0.0

    def add(self, run: Steps, target: Tensor | None, wanted: Tensor | None) -> None:
        """Follow one batch through its steps."""
        batch = Answers(len(run.x), self.time_steps, target, wanted)
        for out_seq in run:
            for out in out_seq:
                batch.step(out)
            if self.early_exit is None or batch.steps == self.time_steps:
                continue
            stay = confidence_margin(batch.mean()) < self.early_exit
            if not stay.all():
                batch.keep(stay)
                if not stay.any():
                    break
                run.keep(stay)
        batch.keep(torch.zeros_like(batch.active, dtype=torch.bool))
        self.correct += batch.per_step(batch.hits)
        self.counted += batch.counted
        self.squares += batch.per_step(batch.errors)
        self.labelled.add(batch.classes)
        if wanted is not None:
            self.with_reference = True
            self.reference += wanted.float().square().sum().double().cpu()
        self.outputs.append(batch.output.cpu())
        self.exits.append(batch.exits.cpu())
        self.seconds += run.seconds

    def result(self, spikes: dict[str, Tensor]) -> SimulationResult:
        """The means, over all processes."""
        if len(self.labelled) > 1:
            raise ValueError("loader yields class labels in some batches only; give them to all or none")
        exits = torch.cat(self.exits)
        samples = int(distributed.total(torch.tensor(len(exits))))
        counted = distributed.total(torch.tensor(self.counted)).clamp_min(1)
        correct, squares = distributed.total(self.correct), distributed.total(self.squares)
        error = (squares / distributed.total(self.reference).clamp_min(1e-300)).sqrt()
        return SimulationResult(
            accuracy=(correct / counted).float() if True in self.labelled else None,
            error=error.float() if self.with_reference else None,
            output=torch.cat(self.outputs),
            spikes={
                name: (distributed.total(count) / samples).float() for name, count in spikes.items()
            },
            samples=samples,
            seconds=self.seconds,
            exit_steps=exits,
        )


class Answers:
    """What the samples of one batch answer after every step; who has left keeps the last answer."""

    def __init__(
        self, samples: int, time_steps: int, target: Tensor | None, wanted: Tensor | None
    ) -> None:
        self.time_steps, self.target, self.wanted = time_steps, target, wanted
        self.classes = target is not None and not target.is_floating_point()
        self.steps = 0
        self.samples = samples
        self.counted = 0  # those with a label of a class
        self.active = torch.arange(samples)
        self.exits = torch.full((samples,), time_steps)
        self.hits: list[Tensor] = []  # [samples] after every step
        self.errors: list[Tensor] = []
        self.total = self.output = torch.empty(0)

    def step(self, out: Tensor) -> None:
        """Take the output of the samples that are still there."""
        if self.steps == 0:
            self._check(out)
            # Half precision would lose more in the sum than in the network.
            dtype = torch.promote_types(out.dtype, torch.float32)
            self.total = torch.zeros_like(out, dtype=dtype)
            self.output = torch.zeros_like(out, dtype=dtype)
            self.active, self.exits = self.active.to(out.device), self.exits.to(out.device)
        self.total = self.total + out
        self.steps += 1
        if self.classes:
            assert self.target is not None
            right, known = correct_share(self.total, self.target[self.active])
            self._record(self.hits, right)
            if self.steps == 1:
                self.counted = int(known.sum())
        if self.wanted is not None:
            difference = (self.mean() - self.wanted[self.active]).float()
            self._record(self.errors, difference.flatten(1).square().sum(1))

    def _check(self, out: Tensor) -> None:
        """Raise where shapes would broadcast to a wrong result."""
        labels = out[:, 0].shape if out.dim() > 1 and out.shape[1] > 1 else None
        if self.classes and self.target is not None and self.target.shape != labels:
            raise ValueError(
                f"targets {list(self.target.shape)} do not fit the output {list(out.shape)}; accuracy "
                "needs class scores [N, classes ≥ 2, ...] and labels [N, ...]. Without accuracy: leave "
                "targets out, or make them floating-point"
            )
        if self.classes and self.target is not None:
            check_labels(self.target, out.shape[1])
        if self.wanted is not None and self.wanted.shape != out.shape:
            raise ValueError(
                f"reference returns {list(self.wanted.shape)}, the network {list(out.shape)}; pass the "
                "network that it was converted from"
            )

    def _record(self, history: list[Tensor], values: Tensor) -> None:
        now = history[-1].clone() if history else values.new_zeros(self.samples)
        now[self.active] = values
        history.append(now)

    def mean(self) -> Tensor:
        """The answer so far of the samples that are still there."""
        return self.total / self.steps

    def keep(self, stay: Tensor) -> None:
        """The others leave with their answer."""
        gone = self.active[~stay]
        self.output[gone] = self.mean()[~stay]
        self.exits[gone] = self.steps
        self.total, self.active = self.total[stay], self.active[stay]

    def per_step(self, history: list[Tensor]) -> Tensor:
        """Sum over the samples after every step ``[T]``."""
        if not history:
            return torch.zeros(self.time_steps, dtype=torch.float64)
        history = history + [history[-1]] * (self.time_steps - len(history))
        return torch.stack(history).sum(1).double().cpu()
