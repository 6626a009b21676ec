"""Present an input for T steps, to converted networks and to those of others alike."""

from collections.abc import Iterator
from typing import Any

import torch
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, nn

from ..network import Presentation, SpikingNetwork
from ..utils.inputs import as_inputs, call

__all__ = ["StepByStep", "at_least_single", "present"]


def present(snn: nn.Module, x: Any) -> "Presentation | StepByStep":
    """Hold ``x``, or show its frames, from a fresh state; as a context manager it leaves a fresh one."""
    return snn.present(x) if isinstance(snn, SpikingNetwork) else StepByStep(snn, x)


class StepByStep:
    """The same input at every step, or a frame at each, for a single-step network of others.

    Example:
        >>> from spikingjelly.activation_based import neuron
        >>> with present(nn.Sequential(neuron.IFNode(v_reset=None)), torch.tensor([[0.5]])) as shown:
        ...     [out.flatten().tolist() for out in shown.chunks(3, chunk=2)]
        [[0.0, 1.0], [0.0]]
    """

    def __init__(self, net: nn.Module, x: Any) -> None:
        self.net, self.x = net, as_inputs(x)
        reset_net(net)

    def __enter__(self) -> "StepByStep":
        return self

    def __exit__(self, *_: object) -> None:
        reset_net(self.net)

    def chunks(self, time_steps: int, chunk: int) -> Iterator[Any]:
        """Outputs ``[T, N, ...]`` of T steps in parts of at most ``chunk``."""
        for first in range(0, time_steps, chunk):
            steps = range(first, min(first + chunk, time_steps))
            yield torch.stack([call(self.net, self._shown(t)) for t in steps])

    def _shown(self, step: int) -> Any:
        return self.x.frames(step, 1) if self.x.sequence else self.x.value


def at_least_single(x: Tensor) -> Tensor:
    """``x`` in a precision to sum in: half precision loses more in the sum than in the network.

    Example:
        >>> at_least_single(torch.ones(1, dtype=torch.float16)).dtype
        torch.float32
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))
