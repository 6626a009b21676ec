"""What each operator is: the one table that every pass reads."""

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..modules.bounded import BoundedActivation
from ..modules.pooling import MAX_POOLS

__all__ = [
    "ACTIVATIONS",
    "AFFINE_FUNCTIONS",
    "AFFINE_METHODS",
    "AFFINE_MODULES",
    "ARITHMETIC",
    "AVERAGE_POOLS",
    "BATCH_NORMS",
    "COMPOUND",
    "CONVOLUTIONS",
    "DIVISIONS",
    "DROPOUTS",
    "ELEMENTWISE",
    "FIRING",
    "HELD_ARGUMENTS",
    "OUT_OF_PLACE",
    "PRODUCTS",
    "PRODUCT_METHODS",
    "SUMS",
    "SUMS_OF_PRODUCTS",
    "TRANSPOSED_CONVOLUTIONS",
    "WEIGHTED",
    "WEIGHTED_CALLS",
    "assigned",
    "recorded",
    "same_size",
    "samples_apart",
    "samples_together",
]

Kinds = tuple[type[nn.Module], ...]


def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let any tracer record calls of a function of ours, as it does those of torch's."""

    @functools.wraps(function)
    def call(x: Any, *args: Any) -> Any:
        if isinstance(x, fx.Proxy):
            return x.tracer.create_proxy("call_function", call, (x, *args), {})
        return function(x, *args)

    return call


@recorded
def assigned(x: Tensor, index: Any, value: Any) -> Tensor:
    """A copy of ``x`` in which ``x[index]`` is ``value``: what ``x[index] = value`` makes of it.

    Example:
        >>> assigned(torch.zeros(3), 1, 5.0).tolist()
        [0.0, 5.0, 0.0]
    """
    x = x.clone()
    x[index] = value
    return x


@recorded
def same_size(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """``x`` as it is, if its last dimensions have the sizes for which an argument was computed.

    It stands in a graph before a call whose arguments were computed from the input's size, and whose
    values were fixed when the network was converted.

    Raises:
        ValueError: names both sizes.

    Example:
        >>> same_size(torch.zeros(1, 2, 4, 4), (8, 8))
        Traceback (most recent call last):
        ValueError: the network computes something from the size [8, 8] that it was ... got [4, 4]; ...
    """
    if tuple(x.shape[-len(size) :]) != tuple(size):
        raise ValueError(
            f"the network computes something from the size {list(size)} that it was converted for, and "
            f"got {list(x.shape[-len(size) :])}; convert it with inputs of this size, or use adaptive "
            "pooling"
        )
    return x


@recorded
def samples_apart(x: Tensor, samples: int, merge: bool) -> Tensor:
    """``[N·k, C, ...]`` as ``[N, C, k, ...]``, or, merged, as ``[N, k·C, ...]``.

    Example:
        >>> samples_apart(torch.zeros(6, 4, 5), 2, False).shape
        torch.Size([2, 4, 3, 5])
        >>> samples_apart(torch.zeros(6, 4, 5), 2, True).shape
        torch.Size([2, 12, 5])
    """
    x = x.unflatten(0, (samples, len(x) // samples))
    return x.flatten(1, 2) if merge else x.transpose(1, 2)


@recorded
def samples_together(x: Tensor, channels: int, merged: bool) -> Tensor:
    """The inverse of :func:`samples_apart`, for so many channels C.

    Example:
        >>> samples_together(torch.zeros(2, 12, 5), 4, True).shape
        torch.Size([6, 4, 5])
    """
    x = x.unflatten(1, (-1, channels)) if merged else x.transpose(1, 2)
    return x.flatten(0, 1)


# Activations that neurons take the place of, and what carries state from step to step.
ACTIVATIONS: Kinds = (nn.ReLU, nn.Hardtanh, nn.LeakyReLU, nn.PReLU, BoundedActivation)
FIRING: Kinds = (*ACTIVATIONS, *MAX_POOLS)

CONVOLUTIONS: Kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED_CONVOLUTIONS: Kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHTED: Kinds = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS)
# Layers that hold weights and activations of their own.
COMPOUND: Kinds = (
    *(nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention),
    *(nn.Transformer, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer),
)
BATCH_NORMS: Kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
AVERAGE_POOLS: Kinds = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
# Without effect in eval mode.
DROPOUTS: Kinds = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)

# A firing rate passes exactly through an affine map: the mean of its outputs over time is its
# output for the mean. These are affine in eval mode.
AFFINE_MODULES: Kinds = (
    *(*WEIGHTED, *BATCH_NORMS, *AVERAGE_POOLS),
    *(nn.Identity, nn.Flatten, nn.Unflatten, nn.ChannelShuffle),
    *(nn.PixelShuffle, nn.PixelUnshuffle, nn.Upsample, nn.Fold, nn.Unfold),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
    *(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    *(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
)
AFFINE_FUNCTIONS = {
    *(operator.add, operator.iadd, operator.sub, operator.isub, operator.neg, operator.getitem),
    *(torch.add, torch.sub, torch.neg, torch.cat, torch.concat, torch.stack, torch.chunk),
    *(torch.split, torch.flatten, torch.unflatten, torch.reshape, torch.permute, torch.transpose),
    *(torch.squeeze, torch.unsqueeze, torch.mean, torch.sum, torch.narrow, torch.select),
    *(torch.flip, torch.roll, torch.movedim, torch.clone, torch.index_select, torch.tile),
    *(F.pad, F.interpolate, F.upsample, F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle),
    *(F.fold, F.unfold, torch.channel_shuffle, same_size, assigned),
    *(samples_apart, samples_together),
    *(torch.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, getattr, torch.zeros_like),
    *(operator.pos, torch.positive, torch.negative, torch.subtract, torch.rsub, torch.concatenate),
    *(torch.cumsum, torch.diff, torch.diagonal, torch.diag_embed, torch.trace, torch.tril, torch.triu),
    *(torch.broadcast_to, torch.broadcast_tensors, torch.ravel, torch.repeat_interleave),
    *(torch.unbind, torch.tensor_split, torch.hsplit, torch.vsplit, torch.dsplit, torch.unsafe_chunk),
    *(torch.hstack, torch.vstack, torch.dstack, torch.column_stack, torch.atleast_2d, torch.atleast_3d),
    *(torch.fliplr, torch.flipud, torch.rot90, torch.moveaxis, torch.swapaxes, torch.swapdims),
    # Of elements: which ones, is no matter of spikes.
    *(torch.where, torch.masked_fill, torch.gather, torch.take_along_dim, torch.index_add),
    *(torch.index_copy, torch.index_fill, torch.scatter, torch.scatter_add, torch.index_put),
    # Complex numbers are pairs of real ones.
    *(torch.view_as_real, torch.view_as_complex, torch.complex, torch.real, torch.imag, torch.conj),
    *(
        getattr(torch.fft, f"{kind}fft{dims}")
        for kind in ("", "i", "r", "ir")
        for dims in ("", "2", "n")
    ),
    *(torch.fft.fftshift, torch.fft.ifftshift),
}
AFFINE_METHODS = {
    *("add", "add_", "sub", "sub_", "neg", "view", "reshape", "flatten", "unflatten", "permute"),
    *("transpose", "squeeze", "unsqueeze", "mean", "sum", "chunk", "split", "contiguous", "clone"),
    *("expand", "expand_as", "repeat", "narrow", "select", "flip", "roll", "movedim", "detach"),
    *("to", "float", "size", "dim", "t", "view_as", "reshape_as", "index_select", "tile", "new_zeros"),
    *("new_ones", "double", "half", "bfloat16", "type", "type_as", "positive", "negative", "subtract"),
    *("cumsum", "diff", "diagonal", "diag_embed", "trace", "tril", "triu", "broadcast_to", "ravel"),
    *("repeat_interleave", "unbind", "tensor_split", "hsplit", "vsplit", "dsplit", "unfold", "fliplr"),
    *("flipud", "rot90", "moveaxis", "swapaxes", "swapdims", "where", "masked_fill", "gather"),
    *("take_along_dim", "index_add", "index_copy", "index_fill", "scatter", "scatter_add", "index_put"),
    *("view_as_real", "view_as_complex", "conj"),
}
# Linear in one operand when the others do not depend on the input.
PRODUCTS = {
    *(operator.mul, operator.imul, operator.truediv, operator.itruediv, operator.matmul),
    *(torch.mul, torch.div, torch.matmul, torch.bmm, torch.einsum, F.linear),
    *(F.conv1d, F.conv2d, F.conv3d),
    *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    *(torch.multiply, torch.divide, torch.true_divide, torch.mm, torch.mv, torch.tensordot, torch.kron),
    *(torch.inner, torch.outer, torch.dot, F.bilinear),
}
PRODUCT_METHODS = {
    *("mul", "mul_", "div", "div_", "matmul", "bmm", "true_divide", "multiply", "divide", "mm", "mv"),
    *("inner", "outer", "dot", "kron"),
}
# Sums of the first argument and the product of the next two.
SUMS_OF_PRODUCTS = {
    *(torch.addmm, torch.addmv, torch.addbmm, torch.baddbmm, torch.addcmul),
    *("addmm", "addmv", "addbmm", "baddbmm", "addcmul"),
}
# Linear in the others if the argument at this place does not depend on the spikes.
HELD_ARGUMENTS = {F.grid_sample: 1, torch.lerp: 2, "lerp": 2}
DIVISIONS = {
    *(operator.truediv, operator.itruediv, torch.div, torch.divide, torch.true_divide),
    *("div", "div_", "divide", "true_divide"),
}
# Products whose other operand is a weight.
WEIGHTED_CALLS = {
    *(F.linear, F.conv1d, F.conv2d, F.conv3d, "matmul", "bmm"),
    *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    *(operator.matmul, torch.matmul, torch.bmm, torch.einsum),
}
SUMS = {operator.add, operator.iadd, torch.add, "add"}
# Sums let the spikes of both operands pass; constant offsets and factors merge into the weights.
ELEMENTWISE = {
    *(operator.add, operator.iadd, operator.sub, operator.isub, operator.neg, operator.mul),
    *(operator.imul, operator.truediv, operator.itruediv),
    *(torch.add, torch.sub, torch.neg, torch.mul, torch.div),
    *("add", "add_", "sub", "sub_", "neg", "mul", "mul_", "div", "div_", "true_divide"),
}
# Arithmetic by other names, and what it is called in a graph.
ARITHMETIC = {
    "add": operator.add,
    "sub": operator.sub,
    "subtract": operator.sub,
    "rsub": operator.sub,
    "mul": operator.mul,
    "multiply": operator.mul,
    "div": operator.truediv,
    "divide": operator.truediv,
    "true_divide": operator.truediv,
    "neg": operator.neg,
    "negative": operator.neg,
}
OUT_OF_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.setitem: assigned,
}
