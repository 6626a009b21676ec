"""Trace a forward beside an example, whose sizes decide the ways that depend on sizes."""

import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor, fx, nn

from ..modules.bounded import BoundedActivation
from .evaluate import follows_values

__all__ = ["DoesNotRun", "ExampleTracer", "isinstance_by_example"]

_ATTRIBUTES = ("shape", "dtype", "device", "layout", "is_cuda", "T", "mT", "requires_grad")


class DoesNotRun(Exception):
    """The network fails on the example itself, traced or not."""


class ExampleTracer(fx.Tracer):
    """A tracer that knows every value for one example input.

    Sizes stay symbols: ``x.view(x.size(0), -1)`` is recorded as it is written. Where Python wants to
    know one, in ``if``, ``assert``, ``range`` or ``int``, the example answers, and ``decided`` says
    that the graph may be that of these sizes only. Values of tensors decide nothing.

    Args:
        examples: an example ``[N, ...]`` of every input by the name of its argument; a tensor is that of
            the first.

    Attributes:
        decided: whether a size decided something.

    Example:
        >>> class Net(nn.Module):
        ...     def forward(self, x):
        ...         assert x.shape[1] == 3
        ...         for part in x.chunk(3, dim=1):
        ...             x = x + part
        ...         return x
        >>> tracer = ExampleTracer(torch.rand(2, 3))
        >>> [n.op for n in tracer.trace(Net()).nodes].count("call_function"), tracer.decided
        (9, True)
    """

    record_stack_traces = True

    def __init__(self, examples: Tensor | Mapping[str, Tensor]) -> None:
        super().__init__()
        given = {"": examples} if isinstance(examples, Tensor) else examples
        # The forward may write into its input.
        self.examples = {name: x.detach().clone() for name, x in given.items()}
        self.values: dict[fx.Node, Any] = {}
        self.decided = False
        self._following: set[fx.Node] = set()  # the values of the input, not its sizes alone
        self._evaluating = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Also activations with a bound, which stay whole."""
        return isinstance(m, BoundedActivation) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Record the call, but not while the example is computed.

        A container made in forward, as a slice of a ``Sequential`` is, is no module of the network;
        those in it are.
        """
        made = isinstance(m, nn.Sequential) and not self._is_installed(m)
        if self._evaluating or made:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def _is_installed(self, module: nn.Module) -> bool:
        return any(module is other for other in self.root.modules())

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Parameters are recorded where they are read, but not while the example is computed."""
        return attr_val if self._evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A proxy that has an example."""
        return _Proxy(node, self)

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any
    ) -> Any:
        """Record a call, and compute it for the example; a call that fails leaves no trace."""
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        if kind == "placeholder":
            name = "" if "" in self.examples and not self.values else target
            self.values[proxy.node] = self.examples.get(name, (args or (None,))[0])
        elif kind not in ("output", "get_attr"):
            try:
                self.values[proxy.node] = self._value(proxy.node)
            except DoesNotRun:
                self.graph.erase_node(proxy.node)
                raise
        if proxy.node in self.values and follows_values(proxy.node, self.values, self._following):
            self._following.add(proxy.node)
        return proxy

    def _value(self, node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.value_of)
        before, self._evaluating = self._evaluating, True
        try:
            with torch.no_grad():
                if node.op == "call_module":
                    return self.root.get_submodule(str(node.target))(*args, **kwargs)
                if node.op == "call_method":
                    return getattr(args[0], str(node.target))(*args[1:], **kwargs)
                return node.target(*args, **kwargs)  # type: ignore[operator]
        except Exception as error:
            raise DoesNotRun(str(error).partition("\n")[0]) from error
        finally:
            self._evaluating = before

    def value_of(self, node: fx.Node) -> Any:
        """The value of a node for the example."""
        if node.op != "get_attr":
            return self.values[node]
        before, self._evaluating = self._evaluating, True  # else a parameter is recorded anew
        try:
            value: Any = self.root
            for name in str(node.target).split("."):
                value = getattr(value, name)
            return value
        finally:
            self._evaluating = before

    def create_arg(self, a: Any) -> Any:
        """Also numbers of NumPy, as plain ones."""
        return super().create_arg(a.item() if isinstance(a, numpy.generic) else a)

    def number(self, proxy: fx.Proxy) -> Any:
        """What a proxy stands for, which Python wants to know, if sizes alone decide it."""
        value = self.value_of(proxy.node)
        if proxy.node in self._following:
            raise fx.proxy.TraceError("the value of a tensor decides what is done")
        self.decided = True
        return value

    def to_bool(self, obj: fx.Proxy) -> bool:
        """In ``if``, ``assert``, ``and``, ``or`` and ``while``."""
        return bool(self.number(obj))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """In ``for`` and ``*args``; the items of a tuple or list are proxies, too."""
        value = self.value_of(obj.node)
        if isinstance(value, Tensor):
            raise fx.proxy.TraceError("a loop goes over the samples of a tensor")
        return iter([obj[i] for i in range(len(value))])  # type: ignore[index]


@contextmanager
def isinstance_by_example(model: nn.Module) -> Iterator[None]:
    """While open, ``isinstance(x, Tensor)`` in the files of a network's modules asks the example.

    Not by a class of proxies that passes for a tensor: torch's own code would take it for one.
    """
    files = {type(m).__module__ for m in model.modules()} & sys.modules.keys()
    spaces = [vars(sys.modules[f]) for f in files if not f.startswith("torch.")]
    spaces = [space for space in spaces if "isinstance" not in space]

    def ask(value: Any, kinds: Any) -> bool:
        if isinstance(value, _Proxy) and isinstance(value.tracer.value_of(value.node), kinds):
            return True
        return isinstance(value, kinds)

    try:
        for space in spaces:
            space["isinstance"] = ask
        yield
    finally:
        for space in spaces:
            del space["isinstance"]


class _Proxy(fx.Proxy):
    """A proxy that lets Python look at numbers."""

    tracer: Any  # an ExampleTracer

    def __getattr__(self, k: str) -> Any:
        value = self.tracer.values.get(self.node)
        if k == "ndim" and isinstance(value, Tensor):
            return value.ndim  # the same for any input
        if k in _ATTRIBUTES and hasattr(value, k):
            return self.tracer.create_proxy("call_function", getattr, (self, k), {})
        return super().__getattr__(k)

    def dim(self) -> int:
        """How many dimensions, which are the same for any input."""
        return self.tracer.value_of(self.node).dim()

    def __len__(self) -> int:
        value = self.tracer.value_of(self.node)
        return self.tracer.number(self.size(0)) if isinstance(value, Tensor) else len(value)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __int__(self) -> int:
        return int(self.tracer.number(self))

    def __float__(self) -> float:
        return float(self.tracer.number(self))

    def __index__(self) -> int:
        return self.tracer.number(self).__index__()

    def __round__(self, digits: int | None = None) -> Any:
        return round(self.tracer.number(self), digits)
