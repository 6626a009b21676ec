"""Fold batch normalisation into the layer before it, or the layer after it, where that is exact."""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import fusion

from .evaluate import record
from .operators import BATCH_NORMS, TRANSPOSED_CONVOLUTIONS, WEIGHTED
from .trace import call_sites, is_module

__all__ = ["fuse", "unfused"]


def fuse(gm: fx.GraphModule, x: Any) -> fx.GraphModule:
    r"""Fold each BatchNorm into its Conv/Linear/ConvTranspose neighbour, in place.

    .. math::
        \text{BN}(Wx + b) = (sW)x + s(b - \mu) + \beta, \qquad
        W\,\text{BN}(x) + b = (W s) x + W(\beta - s\mu) + b, \qquad s = \gamma/\sqrt{\sigma^2+\epsilon}

    Backward only if both modules have one call site, the layer has one user, and running statistics
    exist; forward only into a layer without padding (padded zeros are not normalised). Otherwise the
    BatchNorm stays: an affine map at every step is correct too, and :func:`unfused` names it.

    Args:
        gm: a standardized graph in eval mode, with parameters of its own.
        x: example input ``[N, ...]``.

    Returns:
        The same graph module.

    Example:
        >>> from sj_burst import standardize
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
        >>> x = torch.rand(2, 1, 5, 5)
        >>> [name for name, _ in fuse(standardize(net, x), x).named_children()]
        ['0', '2']
    """
    dims = {node: v.dim() for node, v in record(gm, x).items() if isinstance(v, Tensor)}
    for node in list(gm.graph.nodes):
        if not _foldable(gm, node):
            continue
        if _fold_backward(gm, node, dims) or _fold_forward(gm, node, dims):
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)
    gm.delete_all_unused_submodules()
    gm.graph.lint()
    gm.recompile()
    return gm


def unfused(gm: fx.GraphModule) -> list[str]:
    """Names of the BatchNorm modules that stayed."""
    return [str(node.target) for node in gm.graph.nodes if is_module(gm, node, BATCH_NORMS)]


def _foldable(gm: fx.GraphModule, node: fx.Node) -> bool:
    if not is_module(gm, node, BATCH_NORMS) or call_sites(gm, node.target) > 1:
        return False
    return gm.get_submodule(str(node.target)).running_mean is not None


def _layer(gm: fx.GraphModule, node: object, dims: dict[fx.Node, int]) -> Any:
    """The affine layer that ``node`` calls, if nothing else calls it and channels are dimension 1."""
    if not isinstance(node, fx.Node) or not is_module(gm, node, WEIGHTED):
        return None
    layer = gm.get_submodule(str(node.target))
    if isinstance(layer, nn.Linear) and dims[node] != 2:
        return None
    if isinstance(layer, TRANSPOSED_CONVOLUTIONS) and layer.groups != 1:
        return None  # torch cannot fold into these
    return layer if call_sites(gm, node.target) == 1 else None


def _fold_backward(gm: fx.GraphModule, node: fx.Node, dims: dict[fx.Node, int]) -> bool:
    source = node.args[0]
    layer = _layer(gm, source, dims)
    if layer is None or not isinstance(source, fx.Node) or len(source.users) > 1:
        return False
    # In double precision the folded weights are as exact as the given ones.
    bn: Any = copy.deepcopy(gm.get_submodule(str(node.target))).double()
    dtype, layer = layer.weight.dtype, copy.deepcopy(layer).double()
    if isinstance(layer, nn.Linear):
        fused: nn.Module = fusion.fuse_linear_bn_eval(layer, bn)
    else:
        fused = fusion.fuse_conv_bn_eval(layer, bn, transpose=isinstance(layer, TRANSPOSED_CONVOLUTIONS))
    gm.set_submodule(str(source.target), fused.to(dtype))
    return True


def _fold_forward(gm: fx.GraphModule, node: fx.Node, dims: dict[fx.Node, int]) -> bool:
    user = next(iter(node.users))
    layer = _layer(gm, user, dims)
    if len(node.users) > 1 or layer is None or isinstance(layer, TRANSPOSED_CONVOLUTIONS):
        return False
    if not isinstance(layer, nn.Linear) and _is_padded(layer):
        return False
    gm.set_submodule(str(user.target), _absorb(layer, gm.get_submodule(str(node.target))))
    return True


def _is_padded(layer: Any) -> bool:
    return layer.padding != "valid" and any(p != 0 for p in layer.padding)


def _absorb(layer: Any, bn: Any) -> nn.Module:
    """A copy of ``layer`` that computes layer(BN(x))."""
    dtype, layer, bn = layer.weight.dtype, copy.deepcopy(layer), copy.deepcopy(bn).double()
    scale = torch.rsqrt(bn.running_var + bn.eps)
    scale = scale if bn.weight is None else scale * bn.weight
    offset = -bn.running_mean * scale
    offset = offset if bn.bias is None else offset + bn.bias
    groups = getattr(layer, "groups", 1)
    # [groups, outputs per group, inputs per group, kernel]
    weight = layer.weight.detach().double()
    weight = weight.view(groups, -1, weight.shape[1], weight[0, 0].numel())
    bias = torch.einsum("goik,gi->go", weight, offset.view(groups, -1)).flatten()
    if layer.bias is not None:
        bias = bias + layer.bias
    scaled = (weight * scale.view(groups, 1, -1, 1)).view(layer.weight.shape)
    layer.weight = nn.Parameter(scaled.to(dtype))
    layer.bias = nn.Parameter(bias.to(dtype))
    return layer
