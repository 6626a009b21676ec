"""Gram matrices of what the outputs of an affine module see."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["gram", "padding_of", "patches"]

_PATCH_BYTES = 2**27  # of unfolded patches at a time


def gram(module: Any, x: Tensor, groups: int) -> Tensor:
    r"""Σ u uᵀ over samples and places, u what an output sees and a one for the bias, in float64.

    .. math::
        G_{ab} = \sum_q x_{q+a} x_{q+b}^\top, \qquad
        G_{a+1,b+1} = G_{ab} + \sum_{q = L} x_{q+a} x_{q+b}^\top - \sum_{q = 0} x_{q+a} x_{q+b}^\top

    for offsets a, b of a kernel of stride 1 that stands at q = 0 … L − 1: only b = 0 or a = 0 take sums
    over all places. That is exact, borders included, and takes a fifth of the multiplications of the
    unfolded patches for 3 × 3, a hundredth for hundreds of taps. Other modules unfold.

    Args:
        module: Linear, Conv1d or Conv2d.
        x: its input ``[N, ...]``.
        groups: its groups.

    Returns:
        ``[groups, inputs + 1, inputs + 1]`` with the inputs in the order of the weights.

    Source: derived here; matrices of this kind are said to have a small displacement rank.

    Example:
        >>> gram(nn.Linear(2, 1), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), groups=1)[0].tolist()
        [[10.0, 14.0, 4.0], [14.0, 20.0, 6.0], [4.0, 6.0, 2.0]]
    """
    if not isinstance(module, nn.Linear) and module.weight[0, 0].numel() > 1 and set(module.stride) == {1}:
        return _gram_of_windows(module, x, groups)
    total: Any = 0.0
    size = 4 * module.weight[0].numel() * groups * max(1, x[0].numel() // x.shape[1])
    for part in x.split(max(1, _PATCH_BYTES // size)):
        u = patches(module, part, groups)
        total = total + (u.mT @ u).double()
    return total


def patches(module: Any, x: Tensor, groups: int) -> Tensor:
    """What each output sees, and a one for the bias: ``[groups, rows, inputs per group + 1]``."""
    if isinstance(module, nn.Linear):
        rows = x.reshape(1, -1, x.shape[-1])
    elif module.weight[0, 0].numel() == 1 and set(padding_of(module) or ()) == {0}:  # no windows
        steps = [slice(None, None, stride) for stride in module.stride]
        rows = x[(..., *steps)].movedim(1, -1).flatten(0, -2).unflatten(1, (groups, -1)).movedim(1, 0)
    else:
        options = [module.kernel_size, module.dilation, padding_of(module), module.stride]
        if isinstance(module, nn.Conv1d):  # a picture of height 1
            x = x.unsqueeze(2)
            options = [(fill, *o) for o, fill in zip(options, (1, 1, 0, 1), strict=True)]
        columns = F.unfold(x, *options)  # [N, C·k, positions]
        rows = columns.unflatten(1, (groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
    return torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], dim=2)


def padding_of(module: Any) -> tuple[int, ...] | None:
    """Zeros on either side of each dimension; ``None`` if the sides differ."""
    if not isinstance(module.padding, str):
        return tuple(module.padding)
    if module.padding == "valid":
        return (0,) * len(module.kernel_size)
    both = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    return None if any(zeros % 2 for zeros in both) else tuple(zeros // 2 for zeros in both)


def _gram_of_windows(module: Any, x: Tensor, groups: int) -> Tensor:
    """Of a convolution of stride 1."""
    zeros = padding_of(module)
    assert zeros is not None
    kernel, gaps = list(module.kernel_size), list(module.dilation)
    x = F.pad(x, [z for zero in reversed(zeros) for z in (zero, zero)])
    if isinstance(module, nn.Conv1d):
        x, kernel, gaps = x.unsqueeze(2), [1, *kernel], [1, *gaps]
    x = x.unflatten(1, (groups, -1)).permute(1, 0, 3, 4, 2).contiguous()  # [G, N, H, W, C]
    (high, wide), (gap, step) = kernel, gaps
    places = x.shape[2] - gap * (high - 1), x.shape[3] - step * (wide - 1)

    def between(first: int, second: int, count: int) -> Tensor:
        one, other = (x[:, :, row : row + count].flatten(1, 2) for row in (first, second))
        return _between_rows(one, other, wide, step, places[1])

    g = x.new_empty(groups, high, high, wide, x.shape[-1], wide, x.shape[-1], dtype=torch.float64)
    for b in range(high):
        g[:, 0, b] = between(0, gap * b, places[0])
        for a in range(high - b - 1):
            enters = between(places[0] + gap * a, places[0] + gap * (a + b), gap)
            leaves = between(gap * a, gap * (a + b), gap)
            g[:, a + 1, a + b + 1] = g[:, a, a + b] + enters - leaves
        if b:
            for a in range(high - b):
                g[:, a + b, a] = g[:, a, a + b].permute(0, 3, 4, 1, 2)
    inputs = module.weight[0].numel()
    g = g.permute(0, 4, 1, 3, 6, 2, 5).reshape(groups, inputs, inputs)
    windows = x.sum(1, dtype=torch.float64).unfold(1, places[0], gap).unfold(2, places[1], step)
    sums = windows.sum((-2, -1)).permute(0, 3, 1, 2).reshape(groups, inputs, 1)
    ones = sums.new_full((groups, 1, 1), x.shape[1] * places[0] * places[1])
    return torch.cat([torch.cat([g, sums], 2), torch.cat([sums.mT, ones], 2)], 1)


def _between_rows(x: Tensor, y: Tensor, taps: int, step: int, places: int) -> Tensor:
    """Σ x_{q+a} y_{q+b}ᵀ over rows and places q ``[G, a, C, b, C]``, of rows ``[G, rows, length, C]``."""
    channels = x.shape[-1]

    def windows(z: Tensor) -> Tensor:
        return z.unfold(2, places, step).permute(0, 1, 4, 2, 3).flatten(3).flatten(1, 2)

    def strip(z: Tensor, first: int) -> Tensor:
        z = z[:, :, first : first + step * (taps - 1)].unflatten(2, (taps - 1, step))
        return z.transpose(2, 3).flatten(3).flatten(1, 2)

    g = x.new_empty(len(x), taps, channels, taps, channels, dtype=torch.float64)
    x_first, y_first = (z[:, :, :places].flatten(1, 2) for z in (x, y))
    g[:, 0] = (x_first.mT @ windows(y)).unflatten(2, (taps, channels))
    g[:, :, :, 0] = (windows(x).mT @ y_first).unflatten(1, (taps, channels))
    if taps == 1:
        return g
    enters = strip(x, places).mT @ strip(y, places)
    leaves = strip(x, 0).mT @ strip(y, 0)
    change = (enters.double() - leaves.double()).view(
        len(x), taps - 1, channels, taps - 1, channels
    )
    for a in range(1, taps):
        g[:, a, :, 1:] = g[:, a - 1, :, :-1] + change[:, a - 1]
    return g
