"""Which networks no rate code can carry: an answer that does not come from the converter.

The network runs once, and every operation that torch performs is looked at. A tensor *fires* if it
comes from an activation or a maximum, and so from neurons. The mean over time of a spiking network
passes through affine operations only; what else is done to a tensor that fires is a reason to refuse.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Finding", "inquire"]

# What neurons and spiking max-pooling compute.
FIRING = {
    *("relu", "hardtanh", "leaky_relu", "prelu", "_prelu_kernel", "threshold", "rrelu", "relu6"),
    *("rrelu_with_noise", "clamp", "clamp_min", "clamp_max", "abs", "hardsigmoid"),
    *("max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool1d", "max_pool2d", "max_pool3d"),
    *("adaptive_max_pool2d", "adaptive_max_pool3d", "amax", "amin", "max", "min", "maximum", "minimum"),
    *("aminmax",),
}
# Activations that are no sum of ReLUs: the network has to be trained again, wherever they are.
RETRAIN = {
    *(
        "silu",
        "gelu",
        "elu",
        "celu",
        "selu",
        "mish",
        "hardswish",
        "softplus",
        "glu",
        "tanh",
        "log_sigmoid",
    ),
    *("softshrink", "hardshrink", "log_sigmoid_forward"),
}
# Not affine; a reason where something fires before it.
NONLINEAR = {
    *("sigmoid", "_softmax", "_log_softmax", "softmax", "native_layer_norm", "native_group_norm"),
    *("exp", "log", "log1p", "pow", "sqrt", "rsqrt", "square", "sin", "cos", "reciprocal", "sign"),
    *("linalg_vector_norm", "norm", "sort", "topk", "argmax", "std", "var", "var_mean", "std_mean"),
    *("logsumexp", "round", "floor", "erf", "mean_var", "_scaled_dot_product_flash_attention_for_cpu"),
    *("_scaled_dot_product_flash_attention", "_scaled_dot_product_attention_math", "mkldnn_rnn_layer"),
    *("_fused_rms_norm", "cumprod", "prod", "kthvalue", "median", "cdist", "_cdist_forward"),
    *("_native_multi_head_attention", "_transformer_encoder_layer_fwd", "expm1", "bernoulli", "atan"),
    *("native_dropout", "max_unpool2d", "gt", "lt", "ge", "le", "eq", "ne", "histc", "bincount"),
    *("_scaled_dot_product_fused_attention_overrideable", "sgn", "multinomial", "cumulative_trapezoid"),
    *("cummax", "argmin", "any", "all", "nonzero", "unique", "searchsorted", "atan2", "logcumsumexp"),
    *("_thnn_fused_lstm_cell", "_thnn_fused_gru_cell", "softmax_backward", "addcdiv", "angle"),
}
# Linear in each operand: a reason where two operands fire, or where one divides.
PRODUCTS = {
    *("mul", "div", "mm", "bmm", "addmm", "baddbmm", "convolution", "dot", "mv", "addmv", "matmul"),
    *("grid_sampler_2d", "grid_sampler_3d", "linear", "addcmul", "einsum", "_convolution", "lerp"),
    *("mkldnn_convolution", "floor_divide", "remainder", "fmod"),
}
AFFINE = {
    *("add", "sub", "neg", "rsub", "cat", "stack", "view", "_unsafe_view", "reshape", "permute"),
    *("transpose", "t", "squeeze", "unsqueeze", "expand", "clone", "copy", "_to_copy", "to", "slice"),
    *("select", "index", "index_select", "gather", "split", "split_with_sizes", "chunk", "unbind"),
    *("mean", "sum", "avg_pool2d", "avg_pool3d", "avg_pool1d", "_adaptive_avg_pool2d", "as_strided"),
    *("_adaptive_avg_pool3d", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "repeat"),
    *("reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d", "detach"),
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d", "alias"),
    *("upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d", "pixel_shuffle", "roll"),
    *("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "flip"),
    *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "pixel_unshuffle", "im2col", "col2im"),
    *("native_batch_norm", "_native_batch_norm_legit_no_training", "_batch_norm_with_update", "pad"),
    *("cudnn_batch_norm", "channel_shuffle", "native_channel_shuffle", "masked_fill", "embedding"),
    *("where", "zeros_like", "ones_like", "new_zeros", "new_ones", "empty_like", "full_like", "rot90"),
    *("index_put", "scatter", "scatter_add", "index_add", "cumsum", "diagonal", "unfold", "fill"),
    *("unfold_backward", "view_as_real", "view_as_complex", "_fft_r2c", "_fft_c2r", "_fft_c2c"),
    *("complex", "real", "imag", "_conj", "tril", "triu", "movedim", "new_empty", "slice_scatter"),
    *("select_scatter", "zero", "lift_fresh", "unsafe_split", "narrow", "_reshape_alias", "new_full"),
    *("_embedding_bag", "diag_embed", "new_empty_strided", "masked_scatter", "bitwise_not", "isnan"),
    *("_assert_async", "_local_scalar_dense", "is_same_size", "sym_size", "isinf", "unsafe_chunk"),
    *("resolve_conj", "resolve_neg", "mkldnn_reorder_conv2d_weight", "real", "_adaptive_avg_pool1d"),
    *("scatter_reduce", "repeat_interleave", "split_copy", "is_pinned", "equal", "conj", "trace"),
    *("logical_and", "logical_or", "logical_not", "bitwise_and", "bitwise_or"),
}
_DIVIDES = {"div", "floor_divide", "remainder", "fmod", "addcdiv"}


@dataclass
class Finding:
    """What a network does with its activations.

    Args:
        activations: how many fire.
        reasons: operations that no rate passes, between neurons; in order.
        read_out: the same after the last neuron, where they may act on the mean over time.
        unknown: operations that the tables do not know.
        other: how many activations of other kinds there are.
        macs: multiplications and additions of convolutions and matrices, of one sample.
    """

    activations: int = 0
    reasons: list[str] = field(default_factory=list)
    read_out: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    other: int = 0

    @property
    def verdict(self) -> str:
        """Why a converter has to refuse the network; empty if it need not."""
        if not self.activations:
            return "no activation that a neuron computes"
        return ", ".join(dict.fromkeys(self.reasons))


@dataclass
class _State:
    """Of a tensor: whether it fires, and what was done to it that no neuron has followed yet."""

    fires: bool = False
    pending: frozenset[str] = frozenset()


class _Following(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.finding = Finding()
        self.states: dict[Any, _State] = {}
        self.kept: list[Tensor] = []  # so that no storage is used again

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.rstrip("_")
        tensors = [t for t in tree_leaves((args, kwargs or {})) if isinstance(t, Tensor)]
        known = [s for t in tensors if (s := self.states.get(_storage(t))) is not None]
        if known:
            self._follow(name, args, known, out)
        return out

    def enter(self, x: Any) -> None:
        """The network's inputs, which do not fire."""
        for tensor in tree_leaves(x):
            self._set(tensor, _State())

    def _follow(self, name: str, args: Any, known: list[_State], out: Any) -> None:
        fires = any(s.fires for s in known)
        pending = frozenset[str]().union(*(s.pending for s in known))
        outs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        real = any(t.is_floating_point() or t.is_complex() for t in outs)
        guards = name in ("clamp_min", "clamp") and pending and args[1:] and abs(args[1] or 0) < 1e-4
        if name in FIRING and real and not guards:  # as in x / norm.clamp_min(1e-12)
            self.finding.activations += 1
            self.finding.reasons += sorted(pending)
            fires, pending = True, frozenset()
        elif name in RETRAIN:
            self.finding.other += 1
            self.finding.reasons += sorted(pending)
            fires, pending = True, frozenset({name})
        elif problem := self._problem(name, args, known, fires):
            pending |= {problem}
        for tensor in outs:
            before = self.states.get(_storage(tensor), _State())
            self._set(
                tensor, _State(fires or before.fires, pending | (before.pending if fires else pending))
            )

    def _problem(self, name: str, args: Any, known: list[_State], fires: bool) -> str:
        if not fires:
            return ""
        if (
            name in ("native_batch_norm", "_native_batch_norm_legit")
            and args[5 - (len(args) < 8)] is True
        ):
            return "statistics of the batch"
        if name in PRODUCTS:
            divisor = args[1] if name in _DIVIDES and len(args) > 1 else None
            divides = isinstance(divisor, Tensor) and self._fires(divisor)
            grid = name.startswith("grid_sampler") and self._fires(args[1])
            several = sum(s.fires for s in known) > 1
            return "product of activations" if several or divides or grid else ""
        if name in NONLINEAR:
            return name.strip("_")
        if name not in AFFINE and name not in FIRING:
            self.finding.unknown.append(name)
        return ""

    def _fires(self, tensor: Tensor) -> bool:
        return self.states.get(_storage(tensor), _State()).fires

    def _set(self, tensor: Tensor, state: _State) -> None:
        self.kept.append(tensor)
        self.states[_storage(tensor)] = state

    def leave(self, out: Any) -> None:
        """The network's outputs: what no neuron has followed is read-out."""
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                found = self.states.get(_storage(tensor), _State()).pending
                self.finding.read_out += sorted(found)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@torch.no_grad()
def inquire(net: Any, x: Any) -> Finding:
    """What a network does with its activations; ``x`` is a tensor, or a tuple of its inputs."""
    following = _Following()
    inputs = x if isinstance(x, tuple) else (x,)
    following.enter(inputs)
    with following:
        out = net(*inputs)
    following.leave(out)
    return following.finding
