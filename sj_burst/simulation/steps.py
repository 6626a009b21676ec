"""Present an input for T steps, to converted networks and to those of others alike."""

from collections.abc import Iterator
from typing import Any

import torch
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, nn

from ..graph.readout import ReadOut
from ..network import Presentation, SpikingNetwork
from ..utils.inputs import as_inputs, call
from ..utils.outputs import RunningMean, at_least_single, map_tensors, select_output, tensors_of

__all__ = ["RunningAnswer", "StepByStep", "present", "scores_of"]


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
            outputs = [call(self.net, self._shown(t)) for t in steps]
            yield map_tensors(lambda *step: torch.stack(step), *outputs)

    def _shown(self, step: int) -> Any:
        return self.x.frames(step, 1) if self.x.sequence else self.x.value


class RunningAnswer:
    """The answer to the input so far: of the mean outputs, what the read-out makes.

    Args:
        snn: any spiking network.
        output: which tensor is the answer; ``None`` if there is one only.

    Attributes:
        value: the answer ``[N, ...]``.
        scores: what class probabilities are the softmax of: the mean output before the read-out, of the
            shape of the answer; or else the answer.

    Example:
        >>> import sj_burst
        >>> ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Softmax(dim=1))
        >>> snn = sj_burst.convert(ann, [torch.rand(8, 3)], progress=False)
        >>> running = RunningAnswer(snn)
        >>> running.add(snn.run(torch.rand(5, 3), 4))
        >>> torch.equal(running.scores.softmax(1), running.value)
        True
    """

    def __init__(self, snn: nn.Module, output: Any = None) -> None:
        readout = getattr(snn, "readout", None)
        self._readout = readout if isinstance(readout, ReadOut) else None
        self._output = output
        self._mean = RunningMean()
        self.value = self.scores = torch.empty(0)

    @property
    def steps(self) -> int:
        """How many were taken."""
        return self._mean.steps

    def add(self, returned: Any) -> None:
        """Take what the network returned in some steps ``[T, N, ...]``."""
        if self._readout is None:
            self._mean.add(select_output(returned, self._output))
            self.value = self.scores = self._mean.value()
            return
        self._mean.add(returned)
        means = self._mean.value()
        self.value = at_least_single(select_output(self._readout(means), self._output))
        self.scores = scores_of(means, self.value, self._output)

    def keep(self, samples: Tensor) -> None:
        """Go on with these samples only, a boolean mask ``[N]``."""
        self._mean.keep(samples)
        self.value, self.scores = self.value[samples], self.scores[samples]


def scores_of(means: Any, answer: Tensor, output: Any) -> Tensor:
    """The output in the place of the answer, if it has its shape; else the answer.

    Args:
        means: outputs before the read-out ``[N, ...]``.
        answer: the one that the read-out makes of them.
        output: which one it is.

    Example:
        >>> scores_of({"a": torch.ones(1, 2)}, torch.tensor([[0.5, 0.5]]), "a")
        tensor([[1., 1.]])
    """
    found = tensors_of(means)
    path = output if isinstance(output, tuple) else () if output is None else (output,)
    scores = found.get(path, next(iter(found.values())) if output is None and len(found) == 1 else None)
    return answer if scores is None or scores.shape != answer.shape else scores
