"""Outputs of any nesting: tuples, lists, dicts and dataclasses of tensors."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "RunningMean",
    "at_least_single",
    "map_tensors",
    "select_output",
    "side_by_side",
    "steps_of",
    "tensors_of",
]


def map_tensors(function: Callable[..., Any], value: Any, *others: Any) -> Any:
    """Apply a function to every tensor; the nesting stays, of plain dicts, lists and tuples.

    Args:
        function: of a tensor, and of those in its place in the others.
        value: a tensor, or a nesting of them.
        others: of the same nesting.

    Example:
        >>> map_tensors(lambda t: t + 1, {"a": torch.zeros(1), "b": [torch.ones(1)]})
        {'a': tensor([1.]), 'b': [tensor([2.])]}
    """
    if isinstance(value, Mapping):
        return {key: map_tensors(function, value[key], *(o[key] for o in others)) for key in value}
    if isinstance(value, list | tuple):
        parts = [map_tensors(function, *part) for part in zip(value, *others, strict=True)]
        return parts if isinstance(value, list) else tuple(parts)
    return function(value, *others) if isinstance(value, Tensor) else value


def steps_of(out_seq: Any) -> Iterator[Any]:
    """Each step ``[1, N, ...]`` of outputs ``[T, N, ...]``.

    Example:
        >>> [step["a"].tolist() for step in steps_of({"a": torch.tensor([[1.0], [2.0]])})]
        [[[1.0]], [[2.0]]]
    """
    for t in range(len(next(iter(tensors_of(out_seq).values())))):
        yield map_tensors(lambda value, t=t: value[t : t + 1], out_seq)


def at_least_single(x: Tensor) -> Tensor:
    """``x`` in a precision to sum in: half precision loses more in the sum than in the network.

    Example:
        >>> at_least_single(torch.ones(1, dtype=torch.float16)).dtype
        torch.float32
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


class RunningMean:
    """Mean over the steps so far of outputs of any nesting.

    Attributes:
        steps: how many were taken.

    Example:
        >>> mean = RunningMean()
        >>> mean.add({"a": torch.tensor([[0.0], [1.0]])})
        >>> mean.add({"a": torch.tensor([[2.0]])})
        >>> mean.value()
        {'a': tensor([1.])}
    """

    def __init__(self) -> None:
        self.steps = 0
        self._total: Any = None

    def add(self, out_seq: Any) -> None:
        """Take the outputs of some steps ``[T, N, ...]``."""
        part = map_tensors(lambda t: at_least_single(t).sum(0), out_seq)
        self._total = part if self.steps == 0 else map_tensors(torch.add, self._total, part)
        self.steps += len(next(iter(tensors_of(out_seq).values())))

    def value(self) -> Any:
        """The mean ``[N, ...]``."""
        return map_tensors(lambda t: t / self.steps, self._total)

    def keep(self, samples: Tensor) -> None:
        """Go on with these samples only, a boolean mask ``[N]``."""
        self._total = map_tensors(lambda t: t[samples], self._total)


def tensors_of(value: Any) -> dict[tuple[Any, ...], Tensor]:
    """The tensors of a value by the keys, indices and names of fields that lead to them, in order.

    Example:
        >>> list(tensors_of({"a": torch.zeros(1), "b": [torch.ones(1)]}))
        [('a',), ('b', 0)]
    """
    if isinstance(value, Tensor):
        return {(): value}
    if dataclasses.is_dataclass(value) and not isinstance(value, type | Mapping):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    return {(key, *rest): t for key, part in items for rest, t in tensors_of(part).items()}


def select_output(value: Any, output: Any = None) -> Tensor:
    """The tensor that is the answer.

    Args:
        value: what a network returned.
        output: its key or index, or a tuple of them; ``None`` if there is one tensor only.

    Raises:
        ValueError: names the outputs there are.

    Example:
        >>> select_output({"out": torch.zeros(2), "aux": torch.ones(2)}, "aux")
        tensor([1., 1.])
        >>> select_output((torch.zeros(2), torch.ones(2)))
        Traceback (most recent call last):
        ValueError: the network returns several tensors; say which is the answer, output=0 or output=1
    """
    found = tensors_of(value)
    if output is None:
        if len(found) == 1:
            return next(iter(found.values()))
        raise ValueError(
            f"the network returns several tensors; say which is the answer, {_named(found)}"
        )
    path = output if isinstance(output, tuple) else (output,)
    if path not in found:
        raise ValueError(f"output={output!r} is none of the network's; it has {_named(found) or 'one'}")
    return found[path]


def _named(found: Mapping[tuple[Any, ...], Tensor]) -> str:
    paths = [path[0] if len(path) == 1 else path for path in found if path]
    return " or ".join(f"output={path!r}" for path in paths)


def side_by_side(value: Any) -> Tensor:
    """All outputs in one tensor: the only one as it is, several as rows ``[N, ...]``.

    Example:
        >>> side_by_side((torch.zeros(2, 3), torch.zeros(2, 2, 2))).shape
        torch.Size([2, 7])
    """
    tensors = list(tensors_of(value).values())
    return tensors[0] if len(tensors) == 1 else torch.cat([t.reshape(len(t), -1) for t in tensors], 1)
