"""Outputs of any nesting: tuples, lists, dicts and dataclasses of tensors."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["map_tensors", "select_output", "side_by_side", "tensors_of"]


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Apply a function to every tensor; the nesting stays, of plain dicts, lists and tuples.

    Example:
        >>> map_tensors(lambda t: t + 1, {"a": torch.zeros(1), "b": [torch.ones(1)]})
        {'a': tensor([1.]), 'b': [tensor([2.])]}
    """
    if isinstance(value, Mapping):
        return {key: map_tensors(function, part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [map_tensors(function, part) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    return function(value) if isinstance(value, Tensor) else value


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
