"""Tracing a network by an example, and what a traced graph is asked for."""

import functools
import inspect
import itertools
import os
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..utils.copying import copied
from ..utils.exclusive import CONVERTING
from ..utils.inference import evaluate
from ..utils.outputs import map_tensors
from .operators import ACTIVATIONS
from .tracer import DoesNotRun, ExampleTracer, isinstance_by_example

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


def copy_with_plain_weights(model: nn.Module) -> nn.Module:
    """A deep copy in eval mode whose weights are plain parameters: no parametrization, norm or pruning.

    Modules inside ``DataParallel`` and the like stand in their place, and BatchNorm in that of a
    ``FrozenBatchNorm2d``, which is one without a training mode.

    Raises:
        ValueError: if the network cannot be copied, or computes weights in hooks of its own; names all
            such layers.
    """
    model = copied(model).eval()
    for module in list(model.modules()):
        for name, child in module._modules.items():
            module._modules[name] = child and _unfrozen(unwrapped(child))
        if parametrize.is_parametrized(module):
            _drop_parametrizations(module)
        _drop_weight_hooks(module)
    if hooked := [name or "the network" for name, m in model.named_modules() if _computes_weights(m)]:
        raise ValueError(
            f"{', '.join(hooked)}: weights are computed in a hook; make such weights plain parameters "
            "first"
        )
    return model


def _unfrozen(module: nn.Module) -> nn.Module:
    """BatchNorm for the ``FrozenBatchNorm2d`` of torchvision and detectron2; others as they are."""
    if type(module).__name__ != "FrozenBatchNorm2d":
        return module
    state: Any = module.state_dict()
    norm = nn.BatchNorm2d(len(state["weight"]), getattr(module, "eps", 1e-5))
    norm.load_state_dict(state, strict=False)  # the count of batches is of training
    return norm.to(state["weight"].device, state["weight"].dtype).eval()


# How pruning, and the older weight and spectral norm, compute a weight before every call.
_WEIGHT_HOOKS = (prune.BasePruningMethod, WeightNorm, SpectralNorm)


@torch.no_grad()
def _drop_weight_hooks(module: Any) -> None:
    """Keep what such hooks compute, and nothing else of them."""
    for key, hook in list(module._forward_pre_hooks.items()):
        if not isinstance(hook, _WEIGHT_HOOKS):
            continue
        hook(module, ())  # of the parameters as they are now
        name = getattr(hook, "_tensor_name", None) or hook.name  # type: ignore[union-attr]
        value = getattr(module, name).detach().clone()
        del module._forward_pre_hooks[key]
        delattr(module, name)
        for made in [f"{name}{end}" for end in ("_orig", "_mask", "_g", "_v", "_u")]:
            module._parameters.pop(made, None)
            module._buffers.pop(made, None)
        module.register_parameter(name, nn.Parameter(value))


def _computes_weights(module: nn.Module) -> bool:
    """Whether a hook makes the weight of a module from something else."""
    return isinstance(vars(module).get("weight"), Tensor)


def _drop_parametrizations(module: Any) -> None:
    """Keep the values that parametrizations compute.

    Not ``remove_parametrizations``: it changes the class, which a copy shares with its original.
    """
    values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value))


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile``.

    Example:
        >>> type(unwrapped(nn.DataParallel(nn.Linear(2, 2)))).__name__
        'Linear'
    """
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):  # torch.compile
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def trace(model: nn.Module, x: Any) -> tuple[fx.GraphModule, bool]:
    """Trace a deep copy of ``model`` in eval mode; arguments with defaults keep their defaults.

    What hooks of containers do is traced. The modules of the graph have none: those that only look on
    stay with the model, and :func:`~sj_burst.graph.check.check_equal` finds those that change a value.

    Args:
        model: a network.
        x: example input ``[N, ...]``, a tuple of them or a dict by the names of arguments; their sizes
            decide where the forward asks for them.

    Returns:
        The graph, and whether a size decided something.

    Raises:
        ValueError: if the forward cannot be traced, or does not run on ``x``, or takes other
            inputs.
    """
    model = copy_with_plain_weights(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("a TorchScript module cannot be traced; pass the network it was made from")
    examples, defaults = _arguments(model, x)
    tracer, name = ExampleTracer(examples), type(model).__name__
    try:
        with CONVERTING, _sizes_as_arguments(), isinstance_by_example(model):
            graph = tracer.trace(model, concrete_args=defaults or None)
    except DoesNotRun as error:
        remedy = "the loader must yield what the network was trained on"
        if _runs(model, map_tensors(lambda t: t[:1], x)):
            remedy = (
                "it runs on one sample at a time, but time steps are folded into the batch; replace "
                "fixed batch sizes by x.size(0), or export it with a free one (dynamic_axes={'x': "
                "{0: 'n'}})"
            )
        raise ValueError(
            f"{name} does not run on inputs {_described(examples)}: {error}; {remedy}"
        ) from error
    except Exception as error:
        line = _line_of(error)
        raise ValueError(
            f"{name} cannot be traced ({error}{', ' + line if line else ''}); its forward must not "
            "branch on tensor values: move such code out of forward, or convert the part after it"
        ) from error
    if written := [key for key, value in tracer.root.named_buffers() if isinstance(value, fx.Proxy)]:
        raise ValueError(
            f"{name} writes what it computes into {', '.join(written)}; a converted network keeps "
            "nothing from call to call: leave that out of forward"
        )
    for module in tracer.root.modules():
        for kind in _HOOKS:
            getattr(module, kind).clear()
    for placeholder in [n for n in graph.nodes if n.op == "placeholder"]:
        if str(placeholder.target).lstrip("*") in examples:
            placeholder.args = ()  # a default that was not taken
        else:
            _erase_with_users(graph, placeholder)  # a default, and the assertion that it is kept
    plain = fx.Graph()  # of no tracer that has seen an example: pickle makes one without
    plain.output(plain.graph_copy(graph, {}))
    return fx.GraphModule(tracer.root, plain), tracer.decided


def _runs(model: nn.Module, x: Any) -> bool:
    try:
        evaluate(model, x)
    except Exception:
        return False
    return True


def _arguments(model: nn.Module, x: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Arguments of the forward by name: those that the input gives, and the defaults of the others.

    Raises:
        ValueError: unless the input gives what the forward takes.
    """
    signature = inspect.signature(model.forward)
    named = [p for p in signature.parameters.values() if p.kind not in _VARIADIC]
    tensors = dict(x) if isinstance(x, Mapping) else {}
    positional = [] if tensors else list(x) if isinstance(x, tuple) else [x]
    try:
        given = dict(signature.bind(*positional, **tensors).arguments)
    except TypeError:
        given = {}
    if not given or given.keys() - {p.name for p in named}:
        required = [p.name for p in named if p.default is p.empty]
        got = f"inputs named {sorted(tensors)}" if tensors else f"{len(positional)} input(s)"
        raise ValueError(
            f"{type(model).__name__}.forward takes {required or 'nothing'} without a default, and the "
            f"loader yields {got}; yield a tensor for one argument, or a tuple, list or dict of tensors "
            "for several, as in ((x1, x2), target), or wrap the network in a module whose forward takes "
            "tensors"
        )
    return given, {p.name: p.default for p in named if p.name not in given}


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _described(examples: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{list(x.shape)} ({x.dtype}, {x.device})" for x in examples.values())


def _line_of(error: BaseException) -> str:
    """The user's line that an error came from, as ``file:line``, or an empty string."""
    frames = traceback.extract_tb(error.__traceback__)
    users = [f for f in frames if not _is_foreign(f.filename)]
    return f"{os.path.basename(users[-1].filename)}:{users[-1].lineno}" if users else ""


def _is_foreign(file: str) -> bool:
    """Whether a file is torch's or ours."""
    package = os.path.dirname(os.path.dirname(__file__))
    return "/torch/" in file.replace(os.sep, "/") or file.startswith(package) or file.startswith("<")


# Built-in functions that refuse a traced number where they want an int, as in avg_pool2d(x, x.size(3)):
# `zeros` and `ones` in any version of torch, the others in its older ones.
TAKE_SIZES = {
    *("avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "reshape", "chunk", "narrow"),
    *("roll", "mean", "sum", "select", "tile", "zeros", "ones"),
}


_METHODS_OF_SIZES = ("expand", "repeat", "tile", "view", "reshape", "narrow", "new_zeros", "new_ones")


@contextmanager
def _sizes_as_arguments() -> Iterator[None]:
    """Record calls of such functions, like any other, while a network is traced."""
    found: list[tuple[Any, str]] = [(torch, name) for name in _OF_SIZES]
    found += [(module, name) for module in (torch, F) for name in TAKE_SIZES & vars(module).keys()]
    found.append((F, "interpolate"))  # of a parameter to the size of the input
    found += [(Tensor, name) for name in _METHODS_OF_SIZES]  # of a buffer, likewise
    originals = [getattr(module, name) for module, name in found]
    inherited = [name not in vars(module) for module, name in found]
    try:
        for (module, name), function in zip(found, originals, strict=True):
            call = _computed(function) if name in _OF_SIZES else _recorded(function, module is Tensor)
            setattr(module, name, call)
        yield
    finally:
        for (module, name), function, own in zip(found, originals, inherited, strict=True):
            delattr(module, name) if own else setattr(module, name, function)


def _recorded(function: Callable[..., Any], method: bool = False) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        leaves: list[Any] = []
        fx.node.map_aggregate((args, kwargs), leaves.append)
        traced = next((leaf for leaf in leaves if isinstance(leaf, fx.Proxy)), None)
        if traced is None:
            return function(*args, **kwargs)
        kind, target = ("call_method", function.__name__) if method else ("call_function", function)
        return traced.tracer.create_proxy(kind, target, args, kwargs)

    return call


# Functions of sizes alone, whose result Python goes on to compute with.
_OF_SIZES = ("tensor", "broadcast_shapes")


def _computed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Call with what sizes are for the example."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        numbers: Any = fx.node.map_aggregate((args, kwargs), _number)
        return function(*numbers[0], **numbers[1])

    return call


def _number(value: Any) -> Any:
    tracer: Any = getattr(value, "tracer", None)
    return tracer.number(value) if isinstance(value, fx.Proxy) else value


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _erase_with_users(graph: fx.Graph, node: fx.Node) -> None:
    for user in list(node.users):
        _erase_with_users(graph, user)
    graph.erase_node(node)


def source_line(node: fx.Node) -> str:
    """Where the user's code made this node, as ``file:line``, or an empty string."""
    frames = re.findall(r'File "(.+?)", line (\d+), in (\w+)', node.stack_trace or "")
    # Older versions of torch tell of the callers of the tracing, too.
    outer = [i for i, (file, _, name) in enumerate(frames) if (file, name) == (__file__, "trace")]
    inner = frames[outer[-1] + 1 :] if outer else frames
    users = [(file, line) for file, line, _ in inner if not _is_foreign(file)]
    return f"{os.path.basename(users[-1][0])}:{users[-1][1]}" if users else ""


def is_module(gm: fx.GraphModule, node: fx.Node, kinds: Any) -> bool:
    """Whether ``node`` calls a module of one of these types."""
    return node.op == "call_module" and isinstance(gm.get_submodule(str(node.target)), kinds)


def call_sites(gm: fx.GraphModule, target: object) -> int:
    """How often a module is called in the graph."""
    return sum(node.op == "call_module" and node.target == target for node in gm.graph.nodes)


def unused_name(gm: fx.GraphModule, name: str) -> str:
    """A name for a new module, after that of another.

    Example:
        >>> unused_name(fx.symbolic_trace(nn.Sequential(nn.ReLU())), "0")
        '0_1'
    """
    return next(f"{name}_{i}" for i in itertools.count(1) if not _is_taken(gm, f"{name}_{i}"))


def _is_taken(gm: fx.GraphModule, name: str) -> bool:
    try:
        gm.get_submodule(name)
    except AttributeError as error:
        return "is not an nn.Module" in str(error)
    return True


def activation_names(gm: fx.GraphModule) -> list[str]:
    """Names of the activation modules of a standardized graph, in order of execution."""
    return [str(n.target) for n in gm.graph.nodes if is_module(gm, n, ACTIVATIONS)]


def describe(gm: fx.GraphModule, node: fx.Node) -> str:
    """What a node calls, in the user's terms."""
    if node.op == "call_module":
        return f"{type(gm.get_submodule(str(node.target))).__name__} module"
    if node.op == "call_method":
        return f"Tensor.{node.target}"
    return getattr(node.target, "__name__", str(node.target))


def problem_text(gm: fx.GraphModule, node: fx.Node, problem: str) -> str:
    """A problem with its node's name, kind and line in the user's code."""
    return f"{place_of(gm, node)}: {problem}"


def place_of(gm: fx.GraphModule, node: fx.Node) -> str:
    """A node's name, kind and line in the user's code."""
    name = node.target if node.op == "call_module" else node.name
    where = source_line(node)
    return f"{name} ({describe(gm, node)}{', ' + where if where else ''})"


def unsupported_message(problems: list[str]) -> str:
    """One text for all the problems of a network."""
    lines = "\n".join(f"  - {problem}" for problem in problems)
    return f"{len(problems)} operation(s) cannot be converted to spikes:\n{lines}"
