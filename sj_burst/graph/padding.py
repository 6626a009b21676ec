"""Fold a padding of −∞ into the max-pooling after it: neurons transmit nothing infinite."""

import math
import operator
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, fx, nn

from .trace import is_module, problem_text

__all__ = ["fold_padding"]

_POOLS: tuple[Any, ...] = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_REMEDY = (
    "it pads with −∞, which only a max-pooling after it could ignore, and none whose windows reach so "
    "far does; pad with zeros after a ReLU, or let the max-pooling pad"
)


def fold_padding(gm: fx.GraphModule, values: dict[fx.Node, Any]) -> dict[fx.Node, str]:
    """Let a max-pooling pad where the network pads with −∞ before it, in place.

    torch pads both sides alike, by half a window at most. Any other padding is a larger one, of which
    the first and last windows are left out; or, at the end, one with ``ceil_mode``.

    Args:
        gm: a graph whose max-poolings are modules.
        values: of its nodes for an example; new nodes are added.

    Returns:
        What is wrong with paddings that no max-pooling can take in.

    Example:
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.pool = nn.MaxPool1d(3, 2)
        ...     def forward(self, x):
        ...         return self.pool(F.pad(x, (0, 1), value=-math.inf))
        >>> from .trace import trace
        >>> from .evaluate import record
        >>> import torch
        >>> x = torch.rand(2, 1, 8)
        >>> gm, _ = trace(Net(), x)
        >>> fold_padding(gm, record(gm, x)), gm.pool
        ({}, MaxPool1d(kernel_size=3, stride=2, padding=(0,), dilation=1, ceil_mode=True))
    """
    problems: dict[fx.Node, str] = {}
    for node in list(gm.graph.nodes):
        pads = _pads_of_infinity(node, values)
        if pads is None:
            continue
        users = list(node.users)
        plans = [plan for user in users if (plan := _plan(gm, user, pads)) is not None]
        if len(plans) < len(users):
            problems[node] = problem_text(gm, node, _REMEDY)
            continue
        for user, (pool, crops) in zip(users, plans, strict=True):
            _fold(gm, user, node, pool, crops, values)
        gm.graph.erase_node(node)
    gm.recompile()
    return problems


def _pads_of_infinity(node: fx.Node, values: dict[fx.Node, Any]) -> list[int] | None:
    """What a call adds of −∞ before and after each dimension, from the last one on; else None."""
    if node.op != "call_function" or node.target is not F.pad:
        return None
    args: dict[str, Any] = dict(zip(("input", "pad", "mode", "value"), node.args, strict=False))
    given: Any = fx.node.map_arg(args | dict(node.kwargs), lambda n: values[n])
    value, pad = given.get("value"), given["pad"]
    value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    return [int(p) for p in pad] if value == -math.inf else None


def _each(value: Any, dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value)


Crop = tuple[int, int | None]  # first window and end of those that count


class _Window(NamedTuple):
    """A max-pooling along one dimension."""

    kernel: int
    stride: int
    dilation: int
    padding: int  # on both sides
    ceil: bool

    def count(self, size: int) -> int:
        """How many windows torch's pooling has; the last one begins in the input or before it."""
        room = size + 2 * self.padding - self.dilation * (self.kernel - 1) - 1
        count = (room + (self.stride - 1) * self.ceil) // self.stride + 1
        return count - (self.ceil and (count - 1) * self.stride >= size + self.padding)


def _plan(gm: fx.GraphModule, user: fx.Node, pads: list[int]) -> tuple[nn.Module, list[Crop]] | None:
    """The max-pooling that pads by itself, and which of its windows count."""
    if not is_module(gm, user, _POOLS):
        return None
    pool: Any = gm.get_submodule(str(user.target))
    dims = next(d for d, kind in enumerate(_POOLS, 1) if isinstance(pool, kind))
    if any(pads[2 * dims :]) or min(pads) < 0:
        return None
    pads = pads[: 2 * dims] + [0] * (2 * dims - len(pads))
    fields = (pool.kernel_size, pool.stride, pool.dilation, pool.padding)
    each = zip(*(_each(field, dims) for field in fields), strict=True)
    windows = [_Window(k, s, d, p, pool.ceil_mode) for k, s, d, p in each]
    sides = list(zip(pads[::2], pads[1::2], strict=True))[::-1]
    for ceil in (False, True):
        found = [_fit(w, *side, ceil) for w, side in zip(windows, sides, strict=True)]
        fits = [fit for fit in found if fit is not None]
        if len(fits) == dims:
            padding = tuple(p for p, _ in fits)
            kind = _POOLS[dims - 1]
            new = kind(pool.kernel_size, pool.stride, padding, pool.dilation, ceil_mode=ceil)
            return new, [crop for _, crop in fits]
    return None


def _fit(old: _Window, before: int, after: int, ceil: bool) -> tuple[int, Crop] | None:
    """The padding of both sides that has all windows of another, and those, for any size."""
    extent = old.dilation * (old.kernel - 1) + 1
    for skipped in range(extent):
        padding = before + old.padding + skipped * old.stride
        if padding > old.kernel // 2:
            return None
        new = old._replace(padding=padding, ceil=ceil)
        sizes = range(4 * extent, 4 * extent + old.stride)
        surplus = {new.count(s) - skipped - old.count(s + before + after) for s in sizes}
        if len(surplus) == 1 and min(surplus) >= 0:
            return padding, (skipped, -surplus.pop() or None)
    return None


def _fold(
    gm: fx.GraphModule,
    user: fx.Node,
    pad: fx.Node,
    pool: nn.Module,
    crops: list[Crop],
    values: dict[fx.Node, Any],
) -> None:
    gm.set_submodule(str(user.target), pool)
    user.args = (pad.args[0] if pad.args else pad.kwargs["input"],)
    user.kwargs = {}
    if any(crop != (0, None) for crop in crops):
        lead = values[user].dim() - len(crops)
        index = (*(slice(None),) * lead, *(slice(*crop) for crop in crops))
        with gm.graph.inserting_after(user):
            cut = gm.graph.call_function(operator.getitem, (user, index))
        cut.meta = dict(user.meta)
        values[cut] = values[user]
        user.replace_all_uses_with(cut, delete_user_cb=lambda reader: reader is not cut)
