"""Rewrite a network to a graph in which every activation and pooling is a module of its own."""

import copy
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..modules.bounded import BoundedActivation
from ..modules.pooling import MAX_POOLS
from .check import check_equal
from .evaluate import depends_on_input, record
from .trace import TAKE_SIZES, call_sites, describe, trace, unsupported_message

__all__ = ["Unsupported", "rewrite", "rewrite_all", "standardize"]


class Unsupported(Exception):
    """An operator that has no spiking counterpart with these arguments; the text is the remedy."""


# Builders: called with a call site's arguments (the input is unused), they return the module that
# stands for it, or None to leave the call as it is. Python binds the arguments for us.


def _relu(_: object, inplace: bool = False) -> nn.Module:
    return nn.ReLU()


def _clamp(_: object, min: float | None = None, max: float | None = None) -> nn.Module:
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        raise Unsupported("clamp needs plain numbers as bounds")
    if min is None or min != 0:
        raise Unsupported("only clamp(0, k) and clamp(min=0) act like a ReLU; use one of them")
    return nn.ReLU() if max is None else _bounded(max)


def _hardtanh(
    _: object, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> nn.Module:
    return _clamp(_, min_val, max_val)


def _relu6(_: object, inplace: bool = False) -> nn.Module:
    return _bounded(6.0)


def _bounded(max_value: float) -> nn.Module:
    if not max_value > 0:
        raise Unsupported(f"an upper bound of {max_value} leaves nothing to transmit")
    return nn.Hardtanh(0.0, float(max_value))


def _threshold(_: object, threshold: float, value: float, inplace: bool = False) -> nn.Module:
    if threshold != 0 or value != 0:
        raise Unsupported("only Threshold(0, 0) is a ReLU; retrain with ReLU")
    return nn.ReLU()


def _max_pool(module: type[nn.Module]) -> Callable[..., nn.Module]:
    def build(
        _: object,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> nn.Module:
        if return_indices:
            raise Unsupported("indices of a max-pooling cannot be used by a spiking network")
        return module(kernel_size, stride or None, padding, dilation, ceil_mode=ceil_mode)

    return build


def _adaptive_max_pool(module: type[nn.Module]) -> Callable[..., nn.Module]:
    def build(_: object, output_size: Any, return_indices: bool = False) -> nn.Module:
        if return_indices:
            raise Unsupported("indices of a max-pooling cannot be used by a spiking network")
        return module(output_size)

    return build


def _avg_pool(module: type[nn.Module]) -> Callable[..., nn.Module]:
    def build(_: object, kernel_size: Any, stride: Any = None, *args: Any, **kw: Any) -> nn.Module:
        return module(kernel_size, stride or None, *args, **kw)

    return build


def _follow_size(pool: Any, x: Tensor) -> nn.Module:
    """A pooling whose window was computed from the input: over the whole map, at any resolution."""
    if type(pool) not in _ADAPTIVE:
        return pool
    dims = int(type(pool).__name__[-2])
    window = (pool.kernel_size,) * dims if isinstance(pool.kernel_size, int) else tuple(pool.kernel_size)
    whole = window == tuple(x.shape[-dims:])
    return _ADAPTIVE[type(pool)](1) if whole and pool.padding in (0, (0,) * dims) else pool


_ADAPTIVE: dict[type[nn.Module], Callable[[int], nn.Module]] = {
    nn.AvgPool1d: nn.AdaptiveAvgPool1d,
    nn.AvgPool2d: nn.AdaptiveAvgPool2d,
    nn.AvgPool3d: nn.AdaptiveAvgPool3d,
    nn.MaxPool1d: nn.AdaptiveMaxPool1d,
    nn.MaxPool2d: nn.AdaptiveMaxPool2d,
    nn.MaxPool3d: nn.AdaptiveMaxPool3d,
}


def _adaptive_avg_pool(module: type[nn.Module]) -> Callable[..., nn.Module]:
    return lambda _, output_size: module(output_size)


def _mean(x: Tensor, dim: Any = None, keepdim: bool = False, **options: Any) -> nn.Module | None:
    dims = {dim} if isinstance(dim, int) else set(dim or ())
    if x.dim() != 4 or {d % 4 for d in dims} != {2, 3} or options:
        return None  # linear as it is; what it does to the batch is checked on real data
    pool = nn.AdaptiveAvgPool2d(1)
    return pool if keepdim else nn.Sequential(pool, nn.Flatten())


def _dropout(_: object, p: float = 0.5, training: bool = True, inplace: bool = False) -> nn.Module:
    if training:
        raise Unsupported("dropout with training=True is random at inference; pass self.training")
    return nn.Identity()


FUNCTIONS: dict[Any, Callable[..., nn.Module | None]] = {
    F.relu: _relu,
    F.relu_: _relu,
    torch.relu: _relu,
    torch.relu_: _relu,
    F.relu6: _relu6,
    F.hardtanh: _hardtanh,
    F.hardtanh_: _hardtanh,
    F.threshold: _threshold,
    torch.clamp: _clamp,
    torch.clamp_: _clamp,
    torch.clip: _clamp,
    torch.clamp_min: _clamp,
    F.max_pool1d: _max_pool(nn.MaxPool1d),
    F.max_pool2d: _max_pool(nn.MaxPool2d),
    F.max_pool3d: _max_pool(nn.MaxPool3d),
    torch.max_pool1d: _max_pool(nn.MaxPool1d),
    torch.max_pool2d: _max_pool(nn.MaxPool2d),
    torch.max_pool3d: _max_pool(nn.MaxPool3d),
    F.adaptive_max_pool1d: _adaptive_max_pool(nn.AdaptiveMaxPool1d),
    F.adaptive_max_pool2d: _adaptive_max_pool(nn.AdaptiveMaxPool2d),
    F.adaptive_max_pool3d: _adaptive_max_pool(nn.AdaptiveMaxPool3d),
    F.avg_pool1d: _avg_pool(nn.AvgPool1d),
    F.avg_pool2d: _avg_pool(nn.AvgPool2d),
    F.avg_pool3d: _avg_pool(nn.AvgPool3d),
    F.adaptive_avg_pool1d: _adaptive_avg_pool(nn.AdaptiveAvgPool1d),
    F.adaptive_avg_pool2d: _adaptive_avg_pool(nn.AdaptiveAvgPool2d),
    F.adaptive_avg_pool3d: _adaptive_avg_pool(nn.AdaptiveAvgPool3d),
    torch.mean: _mean,
    F.dropout: _dropout,
    F.dropout1d: _dropout,
    F.dropout2d: _dropout,
    F.dropout3d: _dropout,
    torch.dropout: _dropout,
}

METHODS: dict[str, Callable[..., nn.Module | None]] = {
    "relu": _relu,
    "relu_": _relu,
    "clamp": _clamp,
    "clamp_": _clamp,
    "clip": _clamp,
    "clamp_min": _clamp,
    "clamp_min_": _clamp,
    "mean": _mean,
}

OUT_OF_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}

# Modules that change the tensor they are given when their ``inplace`` is set.
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def _module_for(module: nn.Module) -> nn.Module | None:
    """The standard form of a module, or None to keep it."""
    if isinstance(module, nn.ReLU6):  # before Hardtanh, its base class
        return _relu6(None)
    if type(module) is nn.ReLU:
        return nn.ReLU()
    if type(module) is nn.Hardtanh:
        return _hardtanh(None, module.min_val, module.max_val)
    if type(module) is nn.Threshold:
        return _threshold(None, module.threshold, module.value)
    if isinstance(module, BoundedActivation):
        return copy.deepcopy(module)
    if isinstance(module, MAX_POOLS):
        if module.return_indices:
            raise Unsupported("indices of a max-pooling cannot be used by a spiking network")
        return copy.deepcopy(module)
    if isinstance(module, _DROPOUTS):
        return nn.Identity()
    return None


def standardize(model: nn.Module, x: Tensor) -> fx.GraphModule:
    """Trace a network and give every activation and pooling call a module of its own.

    Functional ReLUs, bounded ReLUs, poolings and means become modules named after the module whose
    forward calls them; sizes computed from ``x.size()`` are resolved on the example; ``view`` becomes
    ``reshape``, and ``squeeze()`` names its dimensions, so that layout and batch are free; Dropout is
    dropped; an activation or max-pooling module that is called k times becomes k modules; sums and
    products in place become new tensors. The model itself and ``x`` are left as they were. The
    result is a plain graph that any converter accepts.

    Args:
        model: a network with one input.
        x: example input ``[N, ...]``; two samples are enough.

    Returns:
        A graph module with ``model``'s values in eval mode, with its own copies of the parameters.

    Raises:
        ValueError: if the forward cannot be traced, or does not run on ``x``, or a call has no
            spiking counterpart, or the graph computes something else.

    Example:
        >>> class Net(nn.Module):
        ...     def forward(self, x):
        ...         return F.avg_pool2d(F.relu(x), x.size()[3])
        >>> [str(n.target) for n in standardize(Net(), torch.rand(2, 1, 4, 4)).graph.nodes]
        ['x', 'relu', 'avg_pool2d', 'output']
    """
    gm = rewrite_all(model, x)
    check_equal(gm, model, x)
    return gm


def rewrite_all(model: nn.Module, x: Tensor) -> fx.GraphModule:
    """As :func:`standardize`, whatever the weights of ``model`` are: nothing is compared.

    Raises:
        ValueError: as :func:`standardize`.
    """
    gm, problems = rewrite(model, x)
    if problems:
        raise ValueError(unsupported_message(list(problems.values())))
    return gm


def rewrite(model: nn.Module, x: Tensor) -> tuple[fx.GraphModule, dict[fx.Node, str]]:
    """As :func:`standardize`, with what is wrong at the calls that were left as they are.

    Raises:
        ValueError: if the forward cannot be traced, or does not run on ``x``.
        TypeError: if ``model`` is no module, or ``x`` no tensor.
    """
    if not isinstance(model, nn.Module) or not isinstance(x, Tensor):
        raise TypeError(
            f"a network and an example input [N, ...] are needed, got {type(model).__name__} and "
            f"{type(x).__name__}"
        )
    gm = trace(model)
    try:
        values = record(gm, x)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{type(model).__name__} does not run on inputs {list(x.shape)} ({x.dtype}, {x.device}): "
            f"{reason}; the loader must yield what the network was trained on"
        ) from error
    problems: dict[fx.Node, str] = {}
    moving = depends_on_input(gm)
    for node in list(gm.graph.nodes):
        replacement = None
        try:
            replacement = _replacement(gm, node, values)
        except Unsupported as error:
            if node in moving:  # of parameters anything may be computed
                problems[node] = f"{node.name} ({describe(gm, node)}): {error}"
                continue
        if replacement is not None:
            _replace(gm, node, replacement, values)
        else:
            _write_out_of_place(gm, node)
            _write_as_method(gm, node, values)
            _write_for_any_layout(node)
            _write_for_any_batch(node, values)
    _drop_identities(gm)
    gm.graph.eliminate_dead_code()
    gm.delete_all_unused_submodules()
    gm.graph.lint()
    gm.recompile()
    return gm.eval(), problems


def _replacement(gm: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]) -> nn.Module | None:
    if node.op == "call_module":
        return _module_for(gm.get_submodule(str(node.target)))
    table: dict[Any, Any] = {"call_function": FUNCTIONS, "call_method": METHODS}.get(node.op, {})
    builder = table.get(node.target)
    if builder is None or not isinstance(values[node], Tensor):
        return None
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
    kwargs = dict(kwargs)
    if not args:  # called as relu(input=x)
        args = (kwargs.pop("input"),)
    try:
        module = builder(*args, **kwargs)
        computed = len(node.all_input_nodes) > 1
        return _follow_size(module, args[0]) if computed else module  # type: ignore[arg-type]
    except TypeError as error:
        raise Unsupported(f"called with unexpected arguments ({error})") from error


def _replace(gm: fx.GraphModule, node: fx.Node, module: nn.Module, values: dict[fx.Node, Any]) -> None:
    source = node.args[0] if node.args else node.kwargs["input"]
    assert isinstance(source, fx.Node)
    overwrites = _is_in_place(gm, node)
    name = _new_name(gm, node)
    gm.add_submodule(name, module)
    with gm.graph.inserting_after(node):
        new = gm.graph.call_module(name, (source,))
    new.meta = dict(node.meta)
    values[new] = values[node]
    node.replace_all_uses_with(new)
    gm.graph.erase_node(node)
    if overwrites:
        _read_instead(gm, source, new)


def _write_out_of_place(gm: fx.GraphModule, node: fx.Node) -> None:
    """``x += y`` and ``x.add_(y)`` as ``x = x + y``, which leaves the network's input alone."""
    target: Any = OUT_OF_PLACE.get(node.target) if node.op == "call_function" else None
    if node.op == "call_method" and _is_in_place(gm, node) and hasattr(Tensor, str(node.target)[:-1]):
        target = str(node.target)[:-1]
    if target is not None and node.args and isinstance(node.args[0], fx.Node):
        node.target = target
        _read_instead(gm, node.args[0], node)


def _write_as_method(gm: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]) -> None:
    """``torch.reshape(x, (x.size(0), -1))`` as ``x.reshape(...)``, which any tracer can read."""
    name = getattr(node.target, "__name__", "")
    sized = any(not isinstance(values[n], Tensor) for n in node.all_input_nodes)
    if node.op != "call_function" or name not in TAKE_SIZES or not sized:
        return
    if name == "zeros":
        x = next(n for n in gm.graph.nodes if n.op == "placeholder")
        size, dtype = node.args or (node.kwargs["size"],), node.kwargs.get("dtype")
        if not isinstance(dtype, fx.Node) and values[node].dtype != values[x].dtype:
            dtype = values[node].dtype
        node.args, node.kwargs, name = (x, *size), {"dtype": dtype}, "new_zeros"
    elif not node.args:  # called as reshape(input=x, ...)
        kwargs = dict(node.kwargs)
        node.args, node.kwargs = (kwargs.pop("input"),), kwargs
    node.op, node.target = "call_method", name


_VIEWS = {"view": "reshape", "view_as": "reshape_as"}


def _write_for_any_layout(node: fx.Node) -> None:
    """``x.view(...)`` as ``x.reshape(...)``, which takes pictures whose channels come last too."""
    retyped = any(isinstance(argument, torch.dtype) for argument in (*node.args, *node.kwargs.values()))
    if node.op == "call_method" and node.target in _VIEWS and not retyped:
        node.target = _VIEWS[str(node.target)]


def _write_for_any_batch(node: fx.Node, values: dict[fx.Node, Any]) -> None:
    """``x.squeeze()`` with its dimensions, which leaves a batch of one sample a batch."""
    squeezes = node.target is torch.squeeze or (node.op == "call_method" and node.target == "squeeze")
    if not squeezes or len(node.args) != 1 or node.kwargs:
        return
    shape = values[node.args[0]].shape  # type: ignore[index]
    if shape[:1] != (1,):  # else it is no batch: a parameter, say
        single = tuple(d for d in range(1, len(shape)) if shape[d] == 1)
        node.args = (*node.args, single)


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


def _drop_identities(gm: fx.GraphModule) -> None:
    for node in list(gm.graph.nodes):
        if node.op == "call_module" and type(gm.get_submodule(str(node.target))) is nn.Identity:
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)
