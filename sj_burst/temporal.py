"""The one thing stateful modules share: they know that time may be folded into the batch."""

from typing import NamedTuple

from spikingjelly.activation_based import base
from torch import Tensor

from .backends import check_backend

__all__ = ["TemporalModule", "Window"]


class Window(NamedTuple):
    """How many time steps and samples the rows of a folded batch hold (row = step·batch + sample)."""

    steps: int
    batch: int


class TemporalModule(base.MemoryModule):
    """A stateful module that can run inside a network whose time axis is folded into the batch.

    While ``window`` is set (by :class:`sj_burst.graph.network.SpikingNetwork`), a multi-step forward
    receives ``[T·N, ...]``, or ``[N, ...]`` if its input is the same at every step, and unfolds the
    time axis itself. Otherwise it follows SpikingJelly's convention, ``[T, N, ...]``.
    """

    keeps_constant = False  # whether a constant input gives a constant output

    def __init__(self, step_mode: str = "s") -> None:
        super().__init__()
        self.window: Window | None = None
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
        """Whether ``x`` is one set of rows that stands for every step of the window."""
        return self.window is not None and self.window.steps > 1 and len(x) == self.window.batch

    def unfold(self, x: Tensor) -> Tensor:
        """Give ``x`` its time axis ``[T, N, ...]``; a constant input is expanded, not copied."""
        assert self.window is not None
        if self.is_constant(x):
            return x.expand(self.window.steps, *x.shape)
        if len(x) != self.window.steps * self.window.batch:
            raise ValueError(
                f"{type(self).__name__} got {len(x)} rows for {self.window.steps} time steps of "
                f"{self.window.batch} samples; an operator before it changed the batch dimension"
            )
        return x.unflatten(0, self.window)

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        """Run all steps; ``[T, N, ...]``, or the folded batch while ``window`` is set."""
        if self.window is None:
            return super().multi_step_forward(x_seq)
        return super().multi_step_forward(self.unfold(x_seq)).flatten(0, 1)
