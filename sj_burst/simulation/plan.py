"""How many samples and steps run at a time."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from ..utils.inputs import Inputs

__all__ = ["Plan", "plan_run", "steps_at_once"]


class Plan(NamedTuple):
    """How many samples run at a time, and how many steps."""

    samples: int
    chunk: int


# Rows are folded: steps × samples. On a CPU what an operator reads and writes stays near the caches,
# and below the size from which memory comes fresh from the system, page by page, at every allocation.
BYTES_ON_CPU = 32_000_000
ROWS_ON_CPU = 512
STEPS_ON_CPU = 8
ROWS_ON_GPU = 16384  # more rows are no faster
ROWS_OF_WHOLE_BATCHES = 256


def plan_run(
    x: Inputs,
    values: Mapping[fx.Node, Any],
    time_steps: int,
    chunk: int | None,
    early_exit: float | None,
) -> Plan:
    """How many samples and steps to run at a time, from what they take in memory.

    Args:
        x: a batch.
        values: of a converted network's nodes for one sample; none of a network of others, which runs
            step by step.
        time_steps: T.
        chunk: steps at a time, if they are given.
        early_exit: the margin at which samples leave, if they do.
    """
    if not values:
        return Plan(len(x), 1)
    chunk = 1 if chunk is None and early_exit is not None else chunk
    if x.device.type == "cpu":
        most = max(1, min(ROWS_ON_CPU, BYTES_ON_CPU // _read_and_written(values)))
        chunk = chunk or min(time_steps, STEPS_ON_CPU, most)
        parts = -(-len(x) * min(chunk, STEPS_ON_CPU) // most)
        return Plan(-(-len(x) // parts), chunk)
    most = ROWS_ON_GPU
    if x.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(x.device)
        most = min(most, int(free / 4 / _largest(values)))
    samples = max(1, min(len(x), most))
    return Plan(samples, chunk or max(1, min(time_steps, most // samples)))


def steps_at_once(samples: int) -> int:
    """How many steps to run at a time where a batch is not cut into parts.

    Example:
        >>> steps_at_once(100)
        2
    """
    return max(1, ROWS_OF_WHOLE_BATCHES // samples)


def _read_and_written(values: Mapping[fx.Node, Any]) -> int:
    """Most bytes of a value of one sample in one step, together with the largest that it is made of."""
    size = _sizes(values)
    inputs = {node: max((size.get(n, 0) for n in node.all_input_nodes), default=0) for node in size}
    return max(1, *(size[node] + inputs[node] for node in size))


def _largest(values: Mapping[fx.Node, Any]) -> int:
    """Bytes of the four largest values of one sample in one step, which may exist side by side."""
    return max(1, sum(sorted(_sizes(values).values())[-4:]))


def _sizes(values: Mapping[fx.Node, Any]) -> dict[fx.Node, int]:
    """Bytes of what there is of every sample; parameters are there once."""
    return {
        node: value.numel() * value.element_size() if isinstance(value, Tensor) else 0
        for node, value in values.items()
        if node.op != "get_attr"
    }
