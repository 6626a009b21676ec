"""Refuse what would convert to a silently wrong network, with every reason at once."""

import operator
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..modules.bounded import BoundedActivation
from ..modules.pooling import MAX_POOLS
from ..utils.inference import evaluate
from .evaluate import depends_on_input, record
from .trace import describe, is_module, source_line, unsupported_message

__all__ = ["check_batch_independent", "check_equal", "check_supported"]

# A firing rate passes exactly through an affine map: the mean of its outputs over time is its
# output for the mean. These are affine in eval mode.
AFFINE_MODULES: tuple[type[nn.Module], ...] = (
    *(nn.Linear, nn.Identity, nn.Flatten, nn.Unflatten, nn.ChannelShuffle),
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.PixelShuffle, nn.PixelUnshuffle, nn.Upsample, nn.Fold, nn.Unfold),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
    *(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
)
ACTIVATIONS = (nn.ReLU, nn.Hardtanh, BoundedActivation)

AFFINE_FUNCTIONS = {
    *(operator.add, operator.iadd, operator.sub, operator.isub, operator.neg, operator.getitem),
    *(torch.add, torch.sub, torch.neg, torch.cat, torch.concat, torch.stack, torch.chunk),
    *(torch.split, torch.flatten, torch.unflatten, torch.reshape, torch.permute, torch.transpose),
    *(torch.squeeze, torch.unsqueeze, torch.mean, torch.sum, torch.narrow, torch.select),
    *(torch.flip, torch.roll, torch.movedim, torch.clone, torch.index_select, torch.tile),
    *(F.pad, F.interpolate, F.upsample, F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle),
    *(F.fold, F.unfold, torch.channel_shuffle),
    *(torch.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, getattr, torch.zeros_like),
}
# Linear in one operand when the others do not depend on the input.
PRODUCTS = {
    *(operator.mul, operator.imul, operator.truediv, operator.itruediv, operator.matmul),
    *(torch.mul, torch.div, torch.matmul, torch.bmm, torch.einsum, F.linear),
    *(F.conv1d, F.conv2d, F.conv3d),
    *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
}
AFFINE_METHODS = {
    *("add", "add_", "sub", "sub_", "neg", "view", "reshape", "flatten", "unflatten", "permute"),
    *("transpose", "squeeze", "unsqueeze", "mean", "sum", "chunk", "split", "contiguous", "clone"),
    *("expand", "expand_as", "repeat", "narrow", "select", "flip", "roll", "movedim", "detach"),
    *("to", "float", "size", "dim", "t", "view_as", "reshape_as", "index_select", "tile", "new_zeros"),
}
PRODUCT_METHODS = {"mul", "mul_", "div", "div_", "matmul", "bmm", "true_divide"}
_DIVISIONS = {operator.truediv, operator.itruediv, torch.div, "div", "div_", "true_divide"}

REMEDIES = {
    "softmax": "return the logits instead; the class of the maximum is the same",
    "logsigmoid": "return the logits instead",
    "sigmoid": "return the logits instead, or retrain a gate without it",
    "silu": "retrain with ReLU, which is the function a spiking neuron computes",
    "gelu": "retrain with ReLU, which is the function a spiking neuron computes",
    "elu": "retrain with ReLU, which is the function a spiking neuron computes",
    "leaky": "retrain with ReLU, which is the function a spiking neuron computes",
    "prelu": "retrain with ReLU, which is the function a spiking neuron computes",
    "hardswish": "retrain with ReLU or ReLU6",
    "tanh": "retrain with ReLU",
    "norm": "use BatchNorm with running statistics, which is affine in eval mode",
    "mul": "a product of two activations is not a rate; use a sum, or drop the gate",
    "dropout": "use nn.Dropout, which is dropped",
}
_DEFAULT_REMEDY = "replace it by ReLU, max-pooling or an affine operation, or move it after the SNN"


def _problem(
    gm: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any], dynamic: set[fx.Node]
) -> str | None:
    """What is wrong with one node, or None."""
    operands = [n for n in node.all_input_nodes if n in dynamic and isinstance(values[n], Tensor)]
    if node not in dynamic:
        return None  # constants may be computed in any way
    if node.op == "call_module":
        return _module_problem(gm.get_submodule(str(node.target))) or _shape_problem(gm, node, values)
    if node.op not in ("call_function", "call_method") or not _has_tensor(values[node]):
        return None
    if not operands and not any(n in dynamic and _has_tensor(values[n]) for n in node.all_input_nodes):
        return None  # of sizes alone
    if _rounds(node, operands, values):
        return "it rounds, which a rate does not pass; leave the rounding out"
    products = PRODUCTS if node.op == "call_function" else PRODUCT_METHODS
    if node.target in products:
        several = len(operands) > 1 or _occurrences(node, operands) > 1
        divisor = node.target in _DIVISIONS and (not node.args or node.args[0] not in operands)
        return REMEDIES["mul"] if several or divisor else None
    affine = AFFINE_FUNCTIONS if node.op == "call_function" else AFFINE_METHODS
    return None if node.target in affine else _remedy(str(describe(gm, node)))


def _rounds(node: fx.Node, operands: list[fx.Node], values: dict[fx.Node, Any]) -> bool:
    """Whether a node makes integers of real numbers, in their type or by division."""
    value = values[node]
    casts = isinstance(value, Tensor) and not value.is_floating_point()
    real = any(values[n].is_floating_point() for n in operands)
    return node.kwargs.get("rounding_mode") is not None or (casts and real)


def _module_problem(module: nn.Module) -> str | None:
    if isinstance(module, nn.Sequential):
        return next(filter(None, map(_module_problem, module)), None)
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
        return "it has no running statistics, so it mixes the samples of a batch; train with them"
    if isinstance(module, nn.Upsample) and module.mode not in _LINEAR_UPSAMPLING:
        return f"mode {module.mode!r} is not supported; use one of {sorted(_LINEAR_UPSAMPLING)}"
    allowed = (*AFFINE_MODULES, *ACTIVATIONS, *MAX_POOLS)
    return None if isinstance(module, allowed) else _remedy(type(module).__name__)


def _shape_problem(gm: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]) -> str | None:
    if is_module(gm, node, ACTIVATIONS) and values[node].dim() < 2:
        return "it acts on one number per sample; give it a channel dimension, as in x.unsqueeze(1)"
    return None


_LINEAR_UPSAMPLING = {"nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear"}


def _remedy(name: str) -> str:
    name = name.lower()
    return next((text for key, text in REMEDIES.items() if key in name), _DEFAULT_REMEDY)


def _has_tensor(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_has_tensor, value))
    return isinstance(value, Tensor)


def _occurrences(node: fx.Node, operands: list[fx.Node]) -> int:
    return sum(argument in operands for argument in (*node.args, *node.kwargs.values()))


def check_supported(
    gm: fx.GraphModule, x: Tensor, known: Mapping[fx.Node, str] = MappingProxyType({})
) -> None:
    """Raise one error that lists every node no spiking network can compute.

    A network that returns anything but one tensor is refused, too.

    Args:
        gm: a standardized graph.
        x: example input ``[N, ...]``.
        known: nodes that :func:`~sj_burst.graph.standardize.rewrite` has found wrong, and why.

    Raises:
        ValueError: names each node, its type, its source line and what to do instead.

    Example:
        >>> from sj_burst import standardize
        >>> x = torch.rand(2, 3)
        >>> check_supported(standardize(nn.Sequential(nn.Linear(3, 2), nn.Sigmoid()), x), x)
        Traceback (most recent call last):
        ValueError: 1 operation(s) cannot be converted to spikes:
          - 1 (Sigmoid module): return the logits instead, or retrain a gate without it
    """
    values = record(gm, x)
    dynamic = depends_on_input(gm)
    output = values[next(iter(reversed(gm.graph.nodes)))]
    if not isinstance(output, Tensor):
        raise ValueError(
            f"the network must return one tensor, it returned {type(output).__name__}; wrap it in "
            "a module that returns the output to be converted"
        )
    problems = list(known.values())
    for node in gm.graph.nodes:
        if node not in known and (problem := _problem(gm, node, values, dynamic)):
            where = source_line(node) if node.op != "call_module" else ""
            name = node.target if node.op == "call_module" else node.name
            at = f", {where}" if where else ""
            problems.append(f"{name} ({describe(gm, node)}{at}): {problem}")
    if problems:
        raise ValueError(unsupported_message(problems))


def check_batch_independent(gm: fx.GraphModule, x: Tensor) -> None:
    """Raise if an operator mixes the samples of a batch: time steps would mix with them.

    The graph runs on the batch, on other samples, and on both in one batch; the last must give the
    rows of the first two. What fires, and the output, must have one row a sample.

    Args:
        gm: a standardized graph.
        x: example input ``[N, ...]``, N ≥ 2.

    Raises:
        ValueError: names the first operator that fails.

    Example:
        >>> from sj_burst import standardize
        >>> class Centre(nn.Module):
        ...     def forward(self, x):
        ...         return x - x.mean(0)
        >>> x = torch.rand(2, 3)
        >>> check_batch_independent(standardize(Centre(), x), x)
        Traceback (most recent call last):
        ValueError: mean (Tensor.mean, ...) mixes the samples of a batch, which ...
    """
    others = x.flip(0) / 2 if x.is_floating_point() else x.flip(0)
    first, second = record(gm, x), record(gm, others)
    try:
        both = record(gm, torch.cat([x, others]))
    except RuntimeError as error:
        raise ValueError(
            "the network runs only at the batch size of its loader, but time steps are folded into "
            f"the batch; replace fixed batch sizes, as in view({len(x)}, -1), by x.size(0): {error}"
        ) from error
    dynamic = depends_on_input(gm)
    for node, value in first.items():
        if node not in dynamic or not isinstance(value, Tensor):
            continue
        fires = is_module(gm, node, (*ACTIVATIONS, *MAX_POOLS))
        if (fires or node.op == "output") and value.shape[:1] != x.shape[:1]:
            what = f"{node.target} ({describe(gm, node)})" if fires else "the network"
            raise ValueError(
                f"{what} returns {list(value.shape)} for a batch of {len(x)}: time steps are folded "
                "into the batch, so activations, max-pooling and the output need one row a sample; pass "
                "crops or frames as samples of their own, and combine the answers afterwards"
            )
        expected = torch.cat([value, second[node]]) if value.dim() else value
        got = both[node]
        if got.shape != expected.shape or not _close(got, expected, 1e-3):
            where = source_line(node)
            raise ValueError(
                f"{node.name} ({describe(gm, node)}{', ' + where if where else ''}) mixes the "
                "samples of a batch, which a folded time axis does not allow; make each sample's "
                "result depend on that sample alone"
            )


def check_equal(gm: fx.GraphModule, model: nn.Module, x: Tensor, tolerance: float = 1e-4) -> None:
    """Raise if a graph does not compute what the network computes.

    Args:
        gm: a rewritten graph.
        model: the network it came from; runs in eval mode, and its mode is put back.
        x: example input ``[N, ...]``.
        tolerance: largest difference, relative to the largest output; half precision is allowed
            its rounding.

    Raises:
        ValueError: with the relative difference.

    Example:
        >>> from sj_burst import standardize
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        >>> check_equal(standardize(model, torch.rand(2, 3)), model, torch.rand(2, 3))
    """
    for expected, got in zip(_tensors(evaluate(model, x)), _tensors(gm(x.clone())), strict=True):
        _check_same(got, expected, tolerance)


def _tensors(value: Any) -> list[Tensor]:
    """The tensors that a network returns, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in _tensors(part)]
    return [value] if isinstance(value, Tensor) else []


def _check_same(got: Tensor, expected: Tensor, tolerance: float) -> None:
    if not expected.isfinite().all():
        raise ValueError("the network's output has NaN or infinite values; check weights and input")
    if expected.shape != got.shape or not _close(got, expected, tolerance):
        difference = "shape" if expected.shape != got.shape else f"{_difference(got, expected):.2g}"
        raise ValueError(
            f"the traced graph differs from the network (relative difference: {difference}); usual "
            "causes are an in-place operation on a tensor that is read again (write x = x + y), and a "
            "hook that changes a value (move it into forward)"
        )


def _difference(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max().clamp_min(1e-12)).item()


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    if not a.is_floating_point():
        return torch.equal(a, b)
    rounding = 16 * torch.finfo(a.dtype).eps  # exceeds the tolerance in half precision only
    return a.numel() == 0 or _difference(a, b) <= max(tolerance, rounding)
