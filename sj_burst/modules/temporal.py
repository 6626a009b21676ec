"""The one thing stateful modules share: they know that time may be folded into the batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from spikingjelly.activation_based import base
from torch import Tensor, nn

from ..backends.dispatch import check_backend

__all__ = [
    "TemporalModule",
    "TimeFold",
    "check_state_shape",
    "first_step",
    "run_temporal",
    "temporal_modules",
    "time_folded",
    "time_mean",
    "time_sum",
]


class TimeFold(NamedTuple):
    """How many time steps and samples the rows of a folded batch hold (row = step·batch + sample)."""

    steps: int
    batch: int


class TemporalModule(base.MemoryModule):
    """A stateful module that can run inside a network whose time axis is folded into the batch.

    While ``time_fold`` is set (see :func:`time_folded`), a multi-step forward receives ``[T·N, ...]``,
    or ``[N, ...]`` if its input is the same at every step, and unfolds the time axis itself.
    Otherwise it follows SpikingJelly's convention, ``[T, N, ...]``.
    """

    keeps_constant = False  # whether a constant input gives a constant output

    def __init__(self, step_mode: str = "s") -> None:
        super().__init__()
        self.time_fold: TimeFold | None = None
        self.step_mode = step_mode
        self._backend = "torch"

    # SpikingJelly 2.0.0rc1 has these two properties, 2.0.0 has not.

    @property
    def supported_backends(self) -> tuple[str, ...]:
        """What ``backend`` may be."""
        return ("torch",)

    @property
    def backend(self) -> str:
        """What runs the multi-step forward; see :func:`sj_burst.set_backend`."""
        return self._backend

    @backend.setter
    def backend(self, value: str) -> None:
        if check_backend(value) not in self.supported_backends:
            raise NotImplementedError(
                f"{type(self).__name__} has no backend {value!r}, only {list(self.supported_backends)}"
            )
        self._backend = value

    def is_constant(self, x: Tensor) -> bool:
        """Whether ``x`` is one set of rows that stands for every step of the fold."""
        return self.time_fold is not None and self.time_fold.steps > 1 and len(x) == self.time_fold.batch

    def unfold(self, x: Tensor) -> Tensor:
        """Give ``x`` its time axis ``[T, N, ...]``; a constant input is expanded, not copied."""
        assert self.time_fold is not None
        if self.is_constant(x):
            return x.expand(self.time_fold.steps, *x.shape)
        if len(x) != self.time_fold.steps * self.time_fold.batch:
            raise ValueError(
                f"{type(self).__name__} got {len(x)} rows for {self.time_fold.steps} time steps of "
                f"{self.time_fold.batch} samples; an operator before it changed the batch dimension"
            )
        return x.unflatten(0, self.time_fold)

    def multi_step_forward(self, x_seq: Tensor, *more: Tensor) -> Tensor:
        """Run all steps; ``[T, N, ...]``, or the folded batch while ``time_fold`` is set."""
        if self.time_fold is None:
            return super().multi_step_forward(x_seq, *more)
        return super().multi_step_forward(*map(self.unfold, (x_seq, *more))).flatten(0, 1)


def first_step(inputs: tuple[object, ...], step_mode: str) -> Tensor:
    """The input ``[N, ...]`` that a fresh state has to fit: of a single step, or the first of many."""
    x = inputs[0] if step_mode == "s" else inputs[0][0]  # type: ignore[index]
    assert isinstance(x, Tensor)
    return x


def check_state_shape(module: nn.Module, state: object, x: Tensor, what: str) -> None:
    """Raise if a module still holds the state of an input of another shape.

    Raises:
        ValueError: names both shapes and the remedy.
    """
    if isinstance(state, Tensor) and state.shape != x.shape:
        raise ValueError(
            f"{type(module).__name__} holds the {what} of an input of shape {tuple(state.shape)} "
            f"but got {tuple(x.shape)}; call functional.reset_net(net) between batches"
        )


def temporal_modules(net: nn.Module) -> list[TemporalModule]:
    """The modules of a network that carry state from step to step."""
    return [m for m in net.modules() if isinstance(m, TemporalModule)]


@contextmanager
def time_folded(net: nn.Module, fold: TimeFold) -> Iterator[None]:
    """While open, the stateful modules of ``net`` unfold ``fold`` from the batch they are given."""
    modules = temporal_modules(net)
    modes = [module.step_mode for module in modules]
    try:
        for module in modules:
            module.time_fold, module.step_mode = fold, "m"
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.time_fold, module.step_mode = None, mode


def run_temporal(module: TemporalModule, x: Tensor, fold: TimeFold) -> Tensor:
    """All T steps of a stateful module on a folded batch, from a fresh state; leaves a fresh one."""
    module.reset()
    try:
        with time_folded(module, fold):
            return module(x)
    finally:
        module.reset()


def time_sum(x: Tensor, fold: TimeFold) -> Tensor:
    """Sum over the steps of a folded batch, or of rows that stand for every step; of integers in int32.

    Example:
        >>> x = torch.tensor([[1.0], [2.0]])
        >>> time_sum(x, TimeFold(steps=2, batch=1)), time_sum(x, TimeFold(steps=3, batch=2))
        (tensor([[3.]]), tensor([[3.], [6.]]))
    """
    first, *others = x.split(fold.batch)
    if not others:
        return x * fold.steps
    total = first.clone() if x.is_floating_point() else first.to(torch.int32)
    for step in others:  # several times faster than a sum over the leading dimension
        total += step
    return total


def time_mean(x: Tensor, fold: TimeFold) -> Tensor:
    """Mean over the steps of a folded batch; what is constant in time is its own mean."""
    return x if len(x) == fold.batch else time_sum(x, fold) / fold.steps
