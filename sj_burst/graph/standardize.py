"""Rewrite a network to a graph in which every activation and pooling is a module of its own."""

import dataclasses
import inspect
import operator
import re
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..modules.pooling import MaxOver
from ..utils.inference import evaluate
from ..utils.inputs import bind, join, rows
from ..utils.outputs import map_tensors, tensors_of
from . import composites
from .batch import follow_batch
from .builders import BOUNDS, FUNCTIONS, METHODS, Unsupported, over_whole_map, standard_module
from .channels import keep_channels_first
from .check import check_equal, check_same, problem_of, reached
from .composites import Largest, find_maxima, find_relus
from .constants import fold_constants
from .evaluate import evaluate_node, follows_values, record, run_with_types
from .operators import ACTIVATIONS, ARITHMETIC, FIRING, OUT_OF_PLACE, WEIGHTED, WEIGHTED_CALLS, same_size
from .padding import fold_padding
from .rows import one_row_a_sample
from .trace import TAKE_SIZES, call_sites, is_module, problem_text, trace, unsupported_message, unwrapped

__all__ = ["rewrite", "standardize"]

Values = dict[fx.Node, Any]


def standardize(model: nn.Module, x: Any) -> fx.GraphModule:
    """Trace a network and give every activation and pooling call a module of its own.

    Functional ReLUs, bounded ReLUs, poolings and means become modules named after the module whose
    forward calls them; what does not depend on the input is computed once; sizes computed from
    ``x.size()`` are resolved on the example; ``view`` becomes ``reshape``, and ``squeeze()`` names its
    dimensions, so that layout and batch are free; Dropout is dropped; an activation or max-pooling
    module that is called k times becomes k modules; sums and products in place become new tensors.
    The model itself and ``x`` are left as they were. The result is a plain graph that any converter
    accepts.

    Args:
        model: a network.
        x: example input ``[N, ...]``, two samples are enough; for a network that takes several, a tuple
            of them, or a dict by the names of its arguments.

    Returns:
        A graph module with ``model``'s values in eval mode, with its own copies of the parameters.

    Raises:
        TypeError: if ``model`` is no module, or ``x`` no tensor, nor tensors.
        ValueError: if the forward cannot be traced, or does not run on ``x``, or a call has no
            spiking counterpart, or the graph computes something else.

    Example:
        >>> import torch.nn.functional as F
        >>> class Net(nn.Module):
        ...     def forward(self, x):
        ...         return F.avg_pool2d(F.relu(x), x.size()[3])
        >>> [str(n.target) for n in standardize(Net(), torch.rand(2, 1, 4, 4)).graph.nodes]
        ['x', 'relu', 'avg_pool2d', 'output']
    """
    gm, problems = rewrite(model, x)
    if problems:
        raise ValueError(unsupported_message(list(problems.values())))
    check_equal(gm, model, x)
    return gm


def rewrite(model: nn.Module, x: Any) -> tuple[fx.GraphModule, dict[fx.Node, str]]:
    """As :func:`standardize`, unchecked, with what is wrong at the calls that were left as they are.

    Raises:
        ValueError: if the forward cannot be traced, or does not run on ``x``.
        TypeError: if ``model`` is no module, or ``x`` no tensor, nor tensors.
    """
    if not isinstance(model, nn.Module) or not tensors_of(x):
        raise TypeError(
            f"a network and an example input [N, ...] are needed, got {type(model).__name__} and "
            f"{type(x).__name__}"
        )
    model = unwrapped(model)
    gm, decided = trace(model, x)
    drop_assertions(gm)
    fold_constants(gm)
    name_arguments_by_place(gm)
    name_dimensions_as_torch(gm)
    if decided:
        follow_batch(gm, model, x)
        check_batch_sizes(gm, model, x)
        if not follows_size(gm, model, x):
            guard_input(gm, x)
    values = record(gm, x)
    find_relus(gm, values)
    find_maxima(gm, values)
    problems = calls_to_modules(gm, values)
    problems |= fold_padding(gm, values)
    maxima_fire(gm, values)
    one_row_a_sample(gm, record(gm, x), rows(x))
    values = record(gm, x)  # of the nodes that are new
    write_out_of_place(gm)
    write_one_spelling(gm, values)
    keep_channels_first(gm, values)
    write_as_methods(gm, values)
    free_the_layout(gm)
    free_the_batch(gm, values)
    drop_identities(gm, x)
    name_outputs(gm)
    gm.graph.eliminate_dead_code()
    gm.delete_all_unused_submodules()
    gm.graph.lint()
    gm.recompile()
    return gm.eval(), problems


@torch.no_grad()
def check_batch_sizes(gm: fx.GraphModule, model: nn.Module, x: Any) -> None:
    """Raise unless a graph, in whose tracing sizes decided something, is right for few and many samples.

    Raises:
        ValueError: if the network does with some numbers of samples what it does not do with others.
    """
    for samples in (map_tensors(lambda t: t[:1], x), join([x] * 16)):
        try:
            expected = evaluate(model, samples)
        except Exception:  # another check says so, if the graph does not run either
            continue
        if all(tensor.isfinite().all() for tensor in tensors_of(expected).values()):
            try:
                check_same(run_with_types(gm, samples)[0], expected)
            except Exception as error:
                raise ValueError(
                    f"the network does something else for {rows(samples)} sample(s) than for {rows(x)}; "
                    "time steps are folded into the batch, so its size must decide nothing"
                ) from error


@torch.no_grad()
def follows_size(gm: fx.GraphModule, model: nn.Module, x: Any) -> bool:
    """Whether a graph, in whose tracing sizes decided something, is right at other sizes too.

    It is compared with the network at every other size of :func:`_other_shapes` that this takes.
    """
    tried = 0
    tensors = tensors_of(x).values()
    for i in range(max(len(_other_shapes(t)) for t in tensors)):
        other = map_tensors(lambda t, i=i: _resized(t, _other_shapes(t)[i : i + 1]), x)
        try:
            expected = evaluate(model, other)
        except Exception:  # the network is of some sizes only
            continue
        try:
            check_same(run_with_types(gm, other)[0], expected)
        except Exception:
            return False
        tried += 1
    return tried > 0 or all(t.dim() == 2 for t in tensors)  # the number of features does not change


def _resized(x: Tensor, shapes: list[list[int]]) -> Tensor:
    """A tensor repeated, or cut, to a shape if there is one."""
    for shape in shapes:
        for d, size in enumerate(shape):
            x = torch.cat([x] * -(-size // x.shape[d]), d).narrow(d, 0, size)
    return x


def _other_shapes(x: Tensor) -> list[list[int]]:
    """Twice the size of the maps, and the next multiple of 32; of a sequence, twice either dimension."""
    fixed, sizes = list(x.shape[:2]), x.shape[2:]
    shapes = [[*fixed, *(2 * s for s in sizes)], [*fixed, *((s // 32 + 1) * 32 for s in sizes)]]
    if x.dim() == 3:
        shapes.append([x.shape[0], 2 * x.shape[1], x.shape[2]])
    return shapes if x.dim() > 2 else []


def guard_input(gm: fx.GraphModule, x: Any) -> None:
    """Refuse inputs of other sizes than that of ``x``."""
    for source, tensor in bind(gm, x).items():
        size = tuple(tensor.shape[1:] if tensor.dim() == 3 else tensor.shape[2:])
        if not size:
            continue  # the number of features does not change
        with gm.graph.inserting_after(source):
            guarded = gm.graph.call_function(same_size, (source, size))
        source.replace_all_uses_with(guarded, delete_user_cb=lambda user, new=guarded: user is not new)  # type: ignore[misc]
    gm.recompile()


def calls_to_modules(gm: fx.GraphModule, values: Values) -> dict[fx.Node, str]:
    """A module for every call in the tables of :mod:`.builders`; returns what is wrong with others."""
    problems: dict[fx.Node, str] = {}
    following: set[fx.Node] = set()  # the values of the input, not its sizes alone
    for node in gm.graph.nodes:
        if follows_values(node, values, following):
            following.add(node)
    for node in list(gm.graph.nodes):
        try:
            replacement = _replacement(gm, node, values)
            if replacement is not None and following.intersection(_arguments(node)):
                raise Unsupported("an argument follows the values of the input; use plain numbers")
        except Unsupported as error:
            problems[node] = problem_text(gm, node, str(error))
            continue
        if replacement is not None:
            following.add(_replace(gm, node, replacement, values))
    return problems


def maxima_fire(gm: fx.GraphModule, values: Values) -> None:
    """In a network whose only activations are maxima over a dimension, write them as sums of ReLUs."""
    maxima = [n for n in gm.graph.nodes if is_module(gm, n, MaxOver)]
    if any(is_module(gm, n, ACTIVATIONS) for n in gm.graph.nodes):
        return
    for node in maxima:
        pool: Any = gm.get_submodule(str(node.target))
        shape = values[node.args[0]].shape
        if len(pool.dims) == 1 and 1 < shape[pool.dims[0]] <= _FEW:
            _replace(gm, node, Largest(pool.dims[0], shape[pool.dims[0]], pool.keepdim), values)


_FEW = 8  # of which the maximum is taken; more would be a deep chain of neurons


def _source(node: fx.Node) -> Any:
    """What a call acts on."""
    return node.args[0] if node.args else node.kwargs["input"]


def _arguments(node: fx.Node) -> list[fx.Node]:
    """The nodes that a call reads beside what it acts on."""
    return [n for n in node.all_input_nodes if n is not _source(node)]


def _replacement(gm: fx.GraphModule, node: fx.Node, values: Values) -> nn.Module | None:
    if node.op == "call_module":
        return standard_module(gm.get_submodule(str(node.target)))
    table: dict[Any, Any] = {"call_function": FUNCTIONS, "call_method": METHODS}.get(node.op, {})
    builder = table.get(node.target)
    if builder is None or not isinstance(values[node], Tensor):
        return None
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
    kwargs = dict(kwargs)
    if not args:  # called as relu(input=x)
        args = (kwargs.pop("input"),)
    if isinstance(args[0], Tensor) and not args[0].is_floating_point():
        return None  # no activation: tokens, or what a Fourier transform returns
    if builder in BOUNDS and _serves_the_input(gm, node, values):
        return None
    try:
        return builder(*args, **kwargs)
    except TypeError as error:
        raise Unsupported(f"called with unexpected arguments ({error})") from error


def _serves_the_input(gm: fx.GraphModule, node: fx.Node, values: Values) -> bool:
    """Whether a bound before all layers belongs to a function of the input that no rate passes."""

    def computes(n: fx.Node) -> bool:
        return is_module(gm, n, (*WEIGHTED, *FIRING)) or n.target in WEIGHTED_CALLS

    before, behind = reached(gm, {node}, backward=True), {node}
    if any(map(computes, before)):
        return False
    for n in gm.graph.nodes:
        if not behind.isdisjoint(n.all_input_nodes) and n.op != "output" and not computes(n):
            behind.add(n)
    others = [n for n in before | behind if n.target not in FUNCTIONS and n.target not in METHODS]
    everything = set(gm.graph.nodes)
    return any(n in values and problem_of(gm, n, values, everything) is not None for n in others)


def _replace(gm: fx.GraphModule, node: fx.Node, module: nn.Module, values: Values) -> fx.Node:
    source = _source(node)
    assert isinstance(source, fx.Node)
    overwrites = _is_in_place(gm, node)
    x = source
    others = [n for n in _arguments(node) if n.op != "get_attr"]
    if node.op != "call_module" and others:  # computed from a size
        adaptive = over_whole_map(module, values[source])
        module = module if adaptive is None else adaptive
        if adaptive is None:
            x = _guard_size(gm, node, source, values)
    name = _new_name(gm, node)
    gm.add_submodule(name, module)
    new = _inline(gm, node, name, x)
    values[new] = values[node]
    node.replace_all_uses_with(new)
    gm.graph.erase_node(node)
    if overwrites:
        _read_instead(gm, source, new)
    return new


def _inline(gm: fx.GraphModule, node: fx.Node, name: str, x: fx.Node) -> fx.Node:
    """Call the module ``name`` before a node; what it consists of is called instead, if it is ours."""
    module = gm.get_submodule(name)
    before = set(gm.graph.nodes)
    with gm.graph.inserting_before(node):
        if isinstance(module, nn.Sequential) or type(module).__module__ == composites.__name__:
            inner = fx.symbolic_trace(module).graph
            placeholder = next(iter(inner.nodes))
            new: Any = gm.graph.graph_copy(inner, {placeholder: x})
        else:
            new = gm.graph.call_module(name, (x,))
    for made in set(gm.graph.nodes) - before:
        made.meta = dict(node.meta)
        if made.op == "call_module" and made.target != name:
            made.target = f"{name}.{made.target}"
    return new


def _guard_size(gm: fx.GraphModule, node: fx.Node, source: fx.Node, values: Values) -> fx.Node:
    """The source of a call whose arguments are those of one resolution, and refuse others."""
    with gm.graph.inserting_before(node):
        guarded = gm.graph.call_function(same_size, (source, tuple(values[source].shape[2:])))
    guarded.meta = dict(node.meta)
    values[guarded] = values[source]
    return guarded


def write_out_of_place(gm: fx.GraphModule) -> None:
    """``x += y`` and ``x.add_(y)`` as ``x = x + y``, which leaves the network's input alone."""
    for node in gm.graph.nodes:
        target: Any = OUT_OF_PLACE.get(node.target) if node.op == "call_function" else None
        if (
            node.op == "call_method"
            and _is_in_place(gm, node)
            and callable(getattr(Tensor, str(node.target)[:-1], None))
        ):
            target = str(node.target)[:-1]
        if target is not None and node.args and isinstance(node.args[0], fx.Node):
            node.target = target
            _read_instead(gm, node.args[0], node)


def write_one_spelling(gm: fx.GraphModule, values: Values) -> None:
    """``torch.subtract(a, other=b)``, ``a.sub(b)`` and their like as ``a - b``."""
    for node in list(gm.graph.nodes):
        name = getattr(node.target, "__name__", "") if node.op == "call_function" else node.target
        torchs = node.op == "call_method" or getattr(torch, str(name), None) is node.target
        if node.op not in ("call_function", "call_method") or name not in ARITHMETIC or not torchs:
            continue
        kwargs = {key: value for key, value in node.kwargs.items() if value is not None}
        operands = [*node.args, *(kwargs.pop(key) for key in ("input", "other") if key in kwargs)]
        alpha = kwargs.pop("alpha", 1)
        target = ARITHMETIC[str(name)]
        if kwargs or len(operands) != (1 if target is operator.neg else 2):
            continue  # it rounds, say
        if name == "rsub":
            operands.reverse()
        if alpha != 1:
            with gm.graph.inserting_before(node):
                factor = gm.graph.call_function(operator.mul, (operands[1], alpha))
            factor.meta = dict(node.meta)
            values[factor] = evaluate_node(gm, factor, values.__getitem__)
            operands[1] = factor
        node.op, node.target, node.args, node.kwargs = "call_function", target, tuple(operands), {}


def name_arguments_by_place(gm: fx.GraphModule) -> None:
    """``self.layer(input=x)`` as ``self.layer(x)``."""
    for node in gm.graph.nodes:
        if node.op == "call_module" and node.kwargs:
            forward = inspect.signature(gm.get_submodule(str(node.target)).forward)
            bound = forward.bind(*node.args, **node.kwargs)
            if not bound.kwargs:
                node.args, node.kwargs = bound.args, {}


_ALIASES = {"axis": "dim", "keepdims": "keepdim"}


def name_dimensions_as_torch(gm: fx.GraphModule) -> None:
    """``torch.max(x, axis=1, keepdims=True)`` as ``torch.max(x, dim=1, keepdim=True)``."""
    for node in gm.graph.nodes:
        is_torchs = node.op == "call_method" or getattr(torch, _called(node), None) is node.target
        if is_torchs and _ALIASES.keys() & node.kwargs:
            node.kwargs = {_ALIASES.get(key, key): value for key, value in node.kwargs.items()}


def _called(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def write_as_methods(gm: fx.GraphModule, values: Values) -> None:
    """``torch.reshape(x, (x.size(0), -1))`` as ``x.reshape(...)``, which any tracer can read."""
    for node in gm.graph.nodes:
        name = getattr(node.target, "__name__", "")
        sized = any(not isinstance(values[n], Tensor) for n in node.all_input_nodes)
        if node.op != "call_function" or name not in TAKE_SIZES or not sized:
            continue
        if name in ("zeros", "ones"):
            x = next(n for n in gm.graph.nodes if n.op == "placeholder")
            size, dtype = node.args or (node.kwargs["size"],), node.kwargs.get("dtype")
            if not isinstance(dtype, fx.Node) and values[node].dtype != values[x].dtype:
                dtype = values[node].dtype
            node.args, node.kwargs, name = (x, *size), {"dtype": dtype}, f"new_{name}"
        elif not node.args:  # called as reshape(input=x, ...)
            kwargs = dict(node.kwargs)
            node.args, node.kwargs = (kwargs.pop("input"),), kwargs
        node.op, node.target = "call_method", name


_VIEWS = {"view": "reshape", "view_as": "reshape_as"}


def free_the_layout(gm: fx.GraphModule) -> None:
    """``x.view(...)`` as ``x.reshape(...)``, which takes pictures whose channels come last too."""
    for node in gm.graph.nodes:
        arguments = (*node.args, *node.kwargs.values())
        retyped = any(isinstance(argument, torch.dtype) for argument in arguments)
        if node.op == "call_method" and node.target in _VIEWS and not retyped:
            node.target = _VIEWS[str(node.target)]
        if node.target is torch.kron:  # it views what it is given
            for source in node.all_input_nodes:
                with gm.graph.inserting_before(node):
                    node.replace_input_with(source, gm.graph.call_method("contiguous", (source,)))


def free_the_batch(gm: fx.GraphModule, values: Values) -> None:
    """``x.squeeze()`` with its dimensions, which leaves a batch of one sample a batch."""
    for node in gm.graph.nodes:
        squeezes = node.target is torch.squeeze or (node.op, node.target) == ("call_method", "squeeze")
        if squeezes and len(node.args) == 1 and not node.kwargs:
            shape = values[node.args[0]].shape
            single = tuple(d for d in range(1, len(shape)) if shape[d] == 1)
            node.args = (*node.args, single)


@torch.no_grad()
def drop_identities(gm: fx.GraphModule, x: Any) -> None:
    """Read an identity's input instead of it; so of functions of others that return what they are given.

    Such are stochastic depth and DropBlock, which do nothing in eval mode.
    """
    values: Values = {}
    for node in list(gm.graph.nodes):
        values[node] = evaluate_node(gm, node, values.__getitem__, map_tensors(torch.clone, x))
        first = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if node.op == "call_module":
            drop = type(gm.get_submodule(str(node.target))) is nn.Identity
        else:
            home = getattr(node.target, "__module__", None) or ""
            foreign = node.op == "call_function" and home.split(".")[0] not in _KNOWN_HOMES
            drop = foreign and first is not None and values[node] is values[first]
        if drop:
            node.replace_all_uses_with(first)
            gm.graph.erase_node(node)


def drop_assertions(gm: fx.GraphModule) -> None:
    """Leave ``torch._assert`` out: it returns nothing, and held when the network was traced."""
    for node in list(gm.graph.nodes):
        if node.target is torch._assert:
            gm.graph.erase_node(node)


def name_outputs(gm: fx.GraphModule) -> None:
    """A dataclass as a dict, and a named tuple as a tuple: what a converted network returns."""
    for node in list(gm.graph.nodes):
        kind: Any = node.target if node.op == "call_function" else None
        if not isinstance(kind, type):
            continue
        if dataclasses.is_dataclass(kind):
            names = [field.name for field in dataclasses.fields(kind)]
            value: Any = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        elif issubclass(kind, tuple) and hasattr(kind, "_fields"):
            given = dict(zip(kind._fields, node.args, strict=False)) | dict(node.kwargs)
            value = tuple(given.get(name) for name in kind._fields)
        else:
            continue
        for user in [user for user in node.users if user.op == "output"]:
            user.args = _put_in_place(user.args, node, value)
        if not node.users:
            gm.graph.erase_node(node)


def _put_in_place(argument: Any, node: fx.Node, value: Any) -> Any:
    """An argument of nested tuples, lists and dicts with a value in the place of a node."""
    if argument is node:
        return value
    if isinstance(argument, list | tuple):
        return type(argument)(_put_in_place(part, node, value) for part in argument)
    if isinstance(argument, dict):
        return {key: _put_in_place(part, node, value) for key, part in argument.items()}
    return argument


_KNOWN_HOMES = {"torch", "_operator", "operator", "builtins", "math", "sj_burst", ""}


def _read_instead(gm: fx.GraphModule, source: fx.Node, new: fx.Node) -> None:
    """Later readers of a tensor that was overwritten saw the new value."""
    later = list(gm.graph.nodes)[list(gm.graph.nodes).index(new) + 1 :]
    source.replace_all_uses_with(new, delete_user_cb=lambda user: user in later)


def _is_in_place(gm: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(gm.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_")
    name = getattr(node.target, "__name__", "")
    return name.endswith("_") or bool(node.kwargs.get("inplace", False))


def _new_name(gm: fx.GraphModule, node: fx.Node) -> str:
    """The user's own name for a module called once; else a numbered name beside the caller's."""
    if node.op == "call_module":
        target = str(node.target)
        if call_sites(gm, target) == 1:
            return target
        base = target
    else:
        stack = node.meta.get("nn_module_stack") or {}
        owner = next(reversed(stack.values()))[0] if stack else ""
        kind = re.sub(r"_\d+$", "", node.name).strip("_")
        base = f"{owner}.{kind}" if owner else kind
    taken = {name for name, _ in gm.named_modules()} | {str(n.target) for n in gm.graph.nodes}
    name, number = base, 1
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    return name
