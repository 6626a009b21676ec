"""How many samples and steps run at a time."""

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, nn

from ..graph.evaluate import record
from ..modules.temporal import TimeFold, time_folded
from ..network import SpikingNetwork
from ..utils.inputs import Inputs, rows
from ..utils.outputs import tensors_of

__all__ = ["Plan", "plan_run", "steps_at_once"]


class Plan(NamedTuple):
    """How many samples run at a time, and how many steps."""

    samples: int
    chunk: int


# Rows are folded: steps × samples. On a CPU the largest activation of a chunk stays below the size
# from which memory comes fresh from the system, page by page, at every allocation.
BYTES_ON_CPU = 16_000_000
ROWS_ON_CPU = 512
STEPS_ON_CPU = 8
ROWS_ON_GPU = 16384  # more rows are no faster
ROWS_OF_WHOLE_BATCHES = 256


def plan_run(
    snn: nn.Module, x: Inputs, time_steps: int, chunk: int | None, early_exit: float | None
) -> Plan:
    """How many samples and steps to run at a time, from what they take in memory."""
    if not isinstance(snn, SpikingNetwork):
        return Plan(len(x), 1)
    snn.check_input(x.one_frame())
    chunk = 1 if chunk is None and early_exit is not None else chunk
    if x.device.type == "cpu":
        most = max(1, min(ROWS_ON_CPU, BYTES_ON_CPU // _largest_values(snn, x[:1].one_frame())[-1]))
        chunk = chunk or min(time_steps, STEPS_ON_CPU, most)
        parts = -(-len(x) * min(chunk, STEPS_ON_CPU) // most)
        return Plan(-(-len(x) // parts), chunk)
    most = ROWS_ON_GPU
    if x.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(x.device)
        most = min(most, int(free / 4 / sum(_largest_values(snn, x[:1].one_frame()))))
    samples = max(1, min(len(x), most))
    return Plan(samples, chunk or max(1, min(time_steps, most // samples)))


def steps_at_once(samples: int) -> int:
    """How many steps to run at a time where a batch is not cut into parts.

    Example:
        >>> steps_at_once(100)
        2
    """
    return max(1, ROWS_OF_WHOLE_BATCHES // samples)


def _largest_values(snn: SpikingNetwork, x: Any) -> list[int]:
    """Bytes of the largest values of one sample in one step, which may exist side by side."""
    kinds = str([(t.shape, t.dtype, t.device) for t in tensors_of(x).values()])
    known = _KNOWN.setdefault(snn.graph, {})
    if kinds not in known:
        known[kinds] = _measured_values(snn, x)
    return known[kinds]


_KNOWN: WeakKeyDictionary[nn.Module, dict[str, list[int]]] = WeakKeyDictionary()


def _measured_values(snn: SpikingNetwork, x: Any) -> list[int]:
    reset_net(snn)
    with time_folded(snn.graph, TimeFold(1, rows(x))):
        values = record(snn.graph, x).values()
    sizes = sorted(v.numel() * v.element_size() for v in values if isinstance(v, Tensor))
    return [max(1, size) for size in sizes[-4:]]
