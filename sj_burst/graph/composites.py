"""Functions that are sums and shifts of ReLUs and bounded ReLUs, or maxima, exactly."""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .evaluate import evaluate_node

__all__ = [
    "Absolute",
    "AtLeast",
    "AtMost",
    "Between",
    "HardSigmoid",
    "Largest",
    "find_maxima",
    "find_relus",
]


class AtLeast(nn.Module):
    """max(x, low) = low + ReLU(x − low).

    Example:
        >>> AtLeast(-1.0)(torch.tensor([-3.0, 2.0])).tolist()
        [-1.0, 2.0]
    """

    def __init__(self, low: float) -> None:
        super().__init__()
        self.low, self.relu = low, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return self.relu(x - self.low) + self.low


class AtMost(nn.Module):
    """min(x, high) = high − ReLU(high − x).

    Example:
        >>> AtMost(1.0)(torch.tensor([-3.0, 2.0])).tolist()
        [-3.0, 1.0]
    """

    def __init__(self, high: float) -> None:
        super().__init__()
        self.high, self.relu = high, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return self.high - self.relu(self.high - x)


class Between(nn.Module):
    """clip(x, low, high) = low + clip(x − low, 0, high − low): Hardtanh of any bounds.

    Example:
        >>> Between(-1.0, 2.0)(torch.tensor([-3.0, 1.0, 5.0])).tolist()
        [-1.0, 1.0, 2.0]
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.bounded = low, nn.Hardtanh(0.0, high - low)

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return self.bounded(x - self.low) + self.low


class Absolute(nn.Module):
    """|x| = ReLU(x) + ReLU(−x).

    Example:
        >>> Absolute()(torch.tensor([-3.0, 2.0])).tolist()
        [3.0, 2.0]
    """

    def __init__(self) -> None:
        super().__init__()
        self.positive, self.negative = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return self.positive(x) + self.negative(-x)


class Largest(nn.Module):
    """The maximum over a dimension, by max(a, b) = a + ReLU(b − a).

    Example:
        >>> Largest(1, 3)(torch.tensor([[1.0, 3.0, 2.0]])).tolist()
        [3.0]
    """

    def __init__(self, dim: int, size: int, keepdim: bool = False) -> None:
        super().__init__()
        self.dim, self.size, self.keepdim = dim, size, keepdim
        self.relus = nn.ModuleList(nn.ReLU() for _ in range(1, size))

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape with this dimension."""
        largest = x.select(self.dim, 0)
        for i, relu in enumerate(self.relus, 1):
            largest = largest + relu(x.select(self.dim, i) - largest)
        return largest.unsqueeze(self.dim) if self.keepdim else largest


class HardSigmoid(nn.Module):
    """clip(x + 3, 0, 6) / 6.

    Example:
        >>> HardSigmoid()(torch.tensor([-4.0, 0.0, 9.0])).tolist()
        [0.0, 0.5, 1.0]
    """

    def __init__(self) -> None:
        super().__init__()
        self.bounded = nn.Hardtanh(0.0, 6.0)

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return self.bounded(x + 3) / 6


def find_relus(gm: fx.GraphModule, values: dict[fx.Node, Any]) -> None:
    """Write ReLUs that are spelt in other words as ``relu``, in place.

    These are ``where(x > 0, x, 0)``, ``x.masked_fill(x < 0, 0)``, ``maximum(x, 0)``, and
    ``x * (x > 0)``; ``where(x > 0, x, 0.1 * x)`` becomes ``leaky_relu``.

    Args:
        gm: a traced graph.
        values: of its nodes for an example; new nodes are added.

    Example:
        >>> gm = fx.symbolic_trace(lambda_module(lambda x: torch.where(x > 0, x, 0.0)))
        >>> find_relus(gm, {})
        >>> [node.name for node in gm.graph.nodes]
        ['x', 'gt', 'relu', 'output']
    """
    for node in list(gm.graph.nodes):
        source = next((s for s in (find(gm, node) for find in _SPELLINGS) if s is not None), None)
        slope: Any = None
        if source is None:
            source, slope = _leaky_where(gm, node)
        if source is None or _broadcast(values, source, node):
            continue
        with gm.graph.inserting_before(node):
            relu = gm.graph.call_function(torch.relu, (source,))
            if slope is not None:
                relu.target, relu.args = F.leaky_relu, (source, slope)
        relu.meta = dict(node.meta)
        if node in values:
            values[relu] = values[node]
        node.replace_all_uses_with(relu)
        gm.graph.erase_node(node)
    gm.recompile()


def _broadcast(values: dict[fx.Node, Any], source: fx.Node, node: fx.Node) -> bool:
    """Whether a zero of more dimensions or elements gives the result another shape."""
    shapes = [getattr(values.get(n), "shape", None) for n in (source, node)]
    return shapes[0] != shapes[1]


def lambda_module(function: Callable[[Tensor], Tensor]) -> nn.Module:
    """A module of one function, for examples."""

    class Lambda(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    return Lambda()


def _named(node: Any, *names: str) -> bool:
    """Whether a node calls a function or method of one of these names."""
    if not isinstance(node, fx.Node) or node.op not in ("call_function", "call_method"):
        return False
    return getattr(node.target, "__name__", node.target) in names and not node.kwargs


def _constant(value: Any) -> fx.Node | None:
    """The node that reads a constant which an argument is, if repeated."""
    while _named(value, "expand", "broadcast_to"):
        value = value.args[0]
    return value if isinstance(value, fx.Node) and value.op == "get_attr" else None


def _is_zero(gm: fx.GraphModule, value: Any) -> bool:
    """Whether an argument is zero, as a number or as a tensor."""
    if _named(value, "zeros_like", "new_zeros"):
        return True
    if (stored := _constant(value)) is not None:
        value = getattr(gm, str(stored.target), None)
        return isinstance(value, Tensor) and not value.any()
    return isinstance(value, int | float) and value == 0


def _compared(gm: fx.GraphModule, node: Any, *names: str) -> Any:
    """What a node compares with zero, or None."""
    while _named(node, "float", "to", "type_as"):
        node = node.args[0]
    if _named(node, *names) and len(node.args) == 2 and _is_zero(gm, node.args[1]):
        return node.args[0]
    return None


def _where(gm: fx.GraphModule, node: fx.Node) -> Any:
    if not _named(node, "where") or len(node.args) != 3 or not isinstance(node.args[0], fx.Node):
        return None
    condition, yes, no = node.args
    if _is_zero(gm, no) and _compared(gm, condition, "gt", "ge") is yes:
        return yes
    return no if _is_zero(gm, yes) and _compared(gm, condition, "lt", "le") is no else None


def _leaky_where(gm: fx.GraphModule, node: fx.Node) -> tuple[Any, Any]:
    """The source and slope of ``where(x > 0, x, slope * x)``."""
    if not _named(node, "where") or len(node.args) != 3:
        return None, None
    condition, yes, no = node.args
    if not _named(no, "mul") or _compared(gm, condition, "gt", "ge") is not yes:
        return None, None
    others = [factor for factor in no.args if factor is not yes]  # type: ignore[union-attr]
    if len(others) == 1 and isinstance(others[0], int | float):
        return yes, float(others[0])
    return None, None


def _masked_fill(gm: fx.GraphModule, node: fx.Node) -> Any:
    if not _named(node, "masked_fill") or len(node.args) != 3 or not _is_zero(gm, node.args[2]):
        return None
    return node.args[0] if _compared(gm, node.args[1], "lt", "le") is node.args[0] else None


def _maximum(gm: fx.GraphModule, node: fx.Node) -> Any:
    if not _named(node, "maximum", "max") or len(node.args) != 2:
        return None
    for x, other in (node.args, node.args[::-1]):
        if isinstance(x, fx.Node) and isinstance(other, fx.Node) and _is_zero(gm, other):
            return x
    return None


def _masked_product(gm: fx.GraphModule, node: fx.Node) -> Any:
    if not _named(node, "mul") or len(node.args) != 2:
        return None
    for x, mask in (node.args, node.args[::-1]):
        if isinstance(x, fx.Node) and _compared(gm, mask, "gt", "ge") is x:
            return x
    return None


def find_maxima(gm: fx.GraphModule, values: dict[fx.Node, Any]) -> None:
    """Write maxima and minima of every kind as ``amax`` over dimensions, in place.

    These are ``max(x, dim)[0]``, ``maximum(a, b)``, ``amin``, ``min(x, dim)[0]`` and ``minimum(a, b)``;
    min(x) = −max(−x). Those with a number are bounds; those over a stack of tensors, and its sum, are
    taken one by one.

    Args:
        gm: a traced graph.
        values: of its nodes for an example; new nodes are added.
    """
    for node in list(gm.graph.nodes):
        if _named_anyhow(node, "amax", "amin", "sum"):
            _of_stack(gm, node, values)
    for node in list(gm.graph.nodes):
        if _named_anyhow(node, "max", "min") and isinstance(values.get(node), tuple):
            _values_only(gm, node, values)
        elif _named(node, "maximum", "minimum", "max", "min") and len(node.args) == 2:
            rewritten = _of_constant(gm, node, values)
            if not rewritten:
                _of_two(gm, node, values)
    for node in list(gm.graph.nodes):
        if _named_anyhow(node, "amin"):
            _negated(gm, node, values)
    gm.recompile()


def _named_anyhow(node: Any, *names: str) -> bool:
    """As :func:`_named`, with keyword arguments too."""
    called = isinstance(node, fx.Node) and node.op in ("call_function", "call_method")
    return called and getattr(node.target, "__name__", node.target) in names


def _put(
    gm: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any], target: Any, *args: Any
) -> fx.Node:
    """A call before ``node``, which is evaluated for the example."""
    with gm.graph.inserting_before(node):
        new = gm.graph.call_function(target, args)
    new.meta = dict(node.meta)
    values[new] = evaluate_node(gm, new, values.__getitem__)
    return new


def _values_only(gm: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]) -> None:
    """``max(x, dim)[0]`` and ``.values``, if nothing else is read."""

    def is_value(user: fx.Node) -> bool:
        return (user.target, *user.args[1:]) in ((operator.getitem, 0), (getattr, "values"))

    unread = [user for user in node.users if user.op != "output" and not user.users]
    for user in unread:  # as in x, _ = x.max(1)
        gm.graph.erase_node(user)
    readers = list(node.users)
    if not all(map(is_value, readers)):
        return
    named = _arguments(node, "input", "dim", "keepdim")
    amax = torch.amax if getattr(node.target, "__name__", node.target) == "max" else torch.amin
    new = _put(gm, node, values, amax, named["input"], named["dim"], named.get("keepdim", False))
    for user in readers:
        user.replace_all_uses_with(new)
        gm.graph.erase_node(user)
    gm.graph.erase_node(node)


_OF_STACK = {"amax": torch.maximum, "amin": torch.minimum, "sum": torch.add}


def _of_stack(gm: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]) -> None:
    """``stack(tensors).amax(0)`` one by one: the samples keep the first dimension."""
    named = _arguments(node, "input", "dim", "keepdim")
    stack: Any = named.get("input")
    first = named.get("dim") in (0, (0,), [0])
    if not _named_anyhow(stack, "stack") or not first or named.get("keepdim") or "dtype" in named:
        return
    tensors, dim = (_arguments(stack, "tensors", "dim").get(key) for key in ("tensors", "dim"))
    if dim or not isinstance(tensors, list | tuple):
        return
    function = _OF_STACK[str(getattr(node.target, "__name__", node.target))]
    found = tensors[0]
    for tensor in tensors[1:]:
        found = _put(gm, node, values, function, found, tensor)
    node.replace_all_uses_with(found)
    gm.graph.erase_node(node)


def _arguments(node: fx.Node, *names: str) -> dict[str, Any]:
    """The arguments of a call, by name."""
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


def _of_constant(gm: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    """``maximum(x, 2)`` as ``clamp_min(x, 2)``; whether it is one."""
    for x, other in (node.args, node.args[::-1]):
        stored = _constant(other)
        bound = None if stored is None else values[stored]
        if not isinstance(bound, Tensor) or not bound.numel() or not isinstance(x, fx.Node):
            continue
        uniform = bool((bound == bound.flatten()[0]).all())
        if uniform and values[x].shape == values[node].shape and values[x].dtype == values[node].dtype:
            largest = str(getattr(node.target, "__name__", node.target)).startswith("max")
            clamp = torch.clamp_min if largest else torch.clamp_max
            new = _put(gm, node, values, clamp, x, bound.flatten()[0].item())
            node.replace_all_uses_with(new)
            gm.graph.erase_node(node)
            return True
    return False


def _of_two(gm: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]) -> None:
    """``maximum(a, b)`` as the maximum over a new dimension."""
    shapes = [getattr(values.get(n), "shape", None) for n in node.all_input_nodes]
    if len(shapes) != 2 or not shapes[0] or shapes[0] != shapes[1]:
        return
    name = str(getattr(node.target, "__name__", node.target))
    stacked = _put(gm, node, values, torch.stack, list(node.args), 1)
    amax = torch.amax if name.startswith("max") else torch.amin
    node.replace_all_uses_with(_put(gm, node, values, amax, stacked, 1))
    gm.graph.erase_node(node)


def _negated(gm: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]) -> None:
    """``amin(x)`` as ``−amax(−x)``."""
    named = _arguments(node, "input", "dim", "keepdim")
    x = _put(gm, node, values, operator.neg, named["input"])
    largest = _put(gm, node, values, torch.amax, x, named.get("dim", ()), named.get("keepdim", False))
    node.replace_all_uses_with(_put(gm, node, values, operator.neg, largest))
    gm.graph.erase_node(node)


_SPELLINGS = (_where, _masked_fill, _maximum, _masked_product)
