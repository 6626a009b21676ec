"""The outputs of a batch, chunk after chunk."""

import time
from collections.abc import Iterator

import torch
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, nn

from ..network import Presentation, SpikingNetwork

__all__ = ["Steps"]


class Steps:
    """The outputs of one batch, chunk after chunk, from a fresh state."""

    def __init__(self, snn: nn.Module, x: Tensor, time_steps: int, chunk: int) -> None:
        self.snn, self.x, self.time_steps, self.chunk = snn, x, time_steps, chunk
        self.seconds = 0.0
        self.shown: Presentation | None = None

    def __iter__(self) -> Iterator[Tensor]:
        reset_net(self.snn)
        for first in range(0, self.time_steps, self.chunk):
            start = time.perf_counter()
            out_seq = self._run(min(self.chunk, self.time_steps - first))
            self.seconds += time.perf_counter() - start
            yield out_seq

    def _run(self, steps: int) -> Tensor:
        if not isinstance(self.snn, SpikingNetwork):
            return torch.stack([self.snn(self.x) for _ in range(steps)])
        if self.shown is None:
            self.shown = self.snn.present(self.x)
        return self.shown.run(steps)

    def keep(self, samples: Tensor) -> None:
        """Go on with these samples only."""
        assert self.shown is not None
        self.shown.keep(samples)
