"""Tracing a network, and evaluating a traced graph node by node."""

import copy
import functools
import inspect
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from ..modules.bounded import BoundedActivation
from .evaluate import depends_on_input

__all__ = [
    "TAKE_SIZES",
    "activation_names",
    "call_sites",
    "copy_with_plain_weights",
    "describe",
    "is_module",
    "source_line",
    "trace",
    "unsupported_message",
]


class _Tracer(fx.Tracer):
    record_stack_traces = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, BoundedActivation) or super().is_leaf_module(m, module_qualified_name)


def copy_with_plain_weights(model: nn.Module) -> nn.Module:
    """A deep copy in eval mode whose weights are plain parameters, without parametrizations.

    Raises:
        ValueError: if the network cannot be copied, or computes weights in hooks; names all layers.
    """
    remedy = (
        "make such weights plain first, with torch.nn.utils.prune.remove(module, 'weight'), "
        "torch.nn.utils.remove_weight_norm(module) or remove_spectral_norm(module)"
    )
    if hooked := [name or "the network" for name, m in model.named_modules() if _computes_weights(m)]:
        raise ValueError(f"{', '.join(hooked)}: weights are computed in a hook; {remedy}")
    try:
        model = copy.deepcopy(model).eval()
    except Exception as error:
        raise ValueError(f"{type(model).__name__} cannot be copied ({error}); {remedy}") from error
    for module in model.modules():
        if parametrize.is_parametrized(module):
            _drop_parametrizations(module)
    return model


def _computes_weights(module: nn.Module) -> bool:
    """Whether a hook makes a tensor of the module from parameters: pruning and the older norms."""
    made = {name for name, value in vars(module).items() if isinstance(value, Tensor)}
    sources = (name + suffix for name in made for suffix in ("_orig", "_g"))
    return "weight" in made or any(source in module._parameters for source in sources)


def _drop_parametrizations(module: Any) -> None:
    """Keep the values that parametrizations compute.

    Not ``remove_parametrizations``: it changes the class, which a copy shares with its original.
    """
    values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value))


def trace(model: nn.Module) -> fx.GraphModule:
    """Trace a deep copy of ``model`` in eval mode; arguments with defaults keep their defaults.

    What hooks of containers do is traced. The modules of the graph have none: those that only look on
    stay with the model, and :func:`~sj_burst.graph.check.check_equal` finds those that change a value.

    Raises:
        ValueError: if the forward cannot be traced, or takes more than one input.
    """
    model = copy_with_plain_weights(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("a TorchScript module cannot be traced; pass the network it was made from")
    parameters = list(inspect.signature(model.forward).parameters.values())
    required = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if len(required) != 1:
        raise ValueError(
            f"{type(model).__name__}.forward must take exactly one input without a default, it "
            f"takes {required}; wrap the network in a module whose forward takes one tensor, and "
            "pass the network itself instead of its DataParallel or torch.compile wrapper"
        )
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    tracer = _Tracer()
    try:
        with _sizes_as_arguments():
            graph = tracer.trace(model, concrete_args=defaults or None)
    except Exception as error:
        raise ValueError(
            f"{type(model).__name__} cannot be traced ({error}); its forward must not branch on "
            "tensor values: move such code out of forward, or convert the part after it"
        ) from error
    for module in tracer.root.modules():
        for kind in _HOOKS:
            getattr(module, kind).clear()
    for placeholder in [n for n in graph.nodes if n.op == "placeholder"][1:]:
        _erase_with_users(graph, placeholder)  # a default, and the assertion that it is kept
    return fx.GraphModule(tracer.root, graph)


# Built-in functions that refuse a traced number where they want an int, as in avg_pool2d(x, x.size(3)):
# `zeros` in any version of torch, the others in its older ones.
TAKE_SIZES = {
    *("avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "reshape", "chunk", "narrow"),
    *("roll", "mean", "sum", "select", "tile", "zeros"),
}


@contextmanager
def _sizes_as_arguments() -> Iterator[None]:
    """Record calls of such functions, like any other, while a network is traced."""
    found = [(module, name) for module in (torch, F) for name in TAKE_SIZES & vars(module).keys()]
    originals = [getattr(module, name) for module, name in found]
    try:
        for (module, name), function in zip(found, originals, strict=True):
            setattr(module, name, _recorded(function))
        yield
    finally:
        for (module, name), function in zip(found, originals, strict=True):
            setattr(module, name, function)


def _recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        leaves: list[Any] = []
        fx.node.map_aggregate((args, kwargs), leaves.append)
        traced = next((leaf for leaf in leaves if isinstance(leaf, fx.Proxy)), None)
        if traced is None:
            return function(*args, **kwargs)
        return traced.tracer.create_proxy("call_function", function, args, kwargs)

    return call


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _erase_with_users(graph: fx.Graph, node: fx.Node) -> None:
    for user in list(node.users):
        _erase_with_users(graph, user)
    graph.erase_node(node)


def source_line(node: fx.Node) -> str:
    """Where the user's code made this node, as ``file:line``, or an empty string."""
    frames = re.findall(r'File "(.+?)", line (\d+)', node.stack_trace or "")
    frames = [f for f in frames if "/torch/" not in f[0].replace(os.sep, "/") and f[0] != __file__]
    return f"{os.path.basename(frames[-1][0])}:{frames[-1][1]}" if frames else ""


def is_module(gm: fx.GraphModule, node: fx.Node, kinds: Any) -> bool:
    """Whether ``node`` calls a module of one of these types."""
    return node.op == "call_module" and isinstance(gm.get_submodule(str(node.target)), kinds)


def call_sites(gm: fx.GraphModule, target: object) -> int:
    """How often a module is called in the graph."""
    return sum(node.op == "call_module" and node.target == target for node in gm.graph.nodes)


def activation_names(gm: fx.GraphModule) -> list[str]:
    """Names of the activation modules of a standardized graph, in order of execution."""
    kinds = (nn.ReLU, nn.Hardtanh, BoundedActivation)
    moving = depends_on_input(gm)
    return [str(n.target) for n in gm.graph.nodes if n in moving and is_module(gm, n, kinds)]


def describe(gm: fx.GraphModule, node: fx.Node) -> str:
    """What a node calls, in the user's terms."""
    if node.op == "call_module":
        return f"{type(gm.get_submodule(str(node.target))).__name__} module"
    if node.op == "call_method":
        return f"Tensor.{node.target}"
    return getattr(node.target, "__name__", str(node.target))


def unsupported_message(problems: list[str]) -> str:
    """One text for all the problems of a network."""
    lines = "\n".join(f"  - {problem}" for problem in problems)
    return f"{len(problems)} operation(s) cannot be converted to spikes:\n{lines}"
