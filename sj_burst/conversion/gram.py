"""Gram matrices of what the outputs of an affine module see."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["cholesky", "gram", "padding_of", "patches"]

_PATCH_BYTES = 2**27  # of unfolded patches at a time


def gram(module: Any, x: Tensor, groups: int) -> Tensor:
    r"""Σ u uᵀ over samples and places, u what an output sees and a one for the bias, in float64.

    .. math::
        G_{ab} = \sum_q x_{q+a} x_{q+b}^\top, \qquad
        G_{a+1,b+1} = G_{ab} + \sum_{q = L} x_{q+a} x_{q+b}^\top - \sum_{q = 0} x_{q+a} x_{q+b}^\top

    for offsets a, b of a kernel of stride 1 that stands at q = 0 … L − 1: only a = 0 or b = 0 take sums
    over all places. That is exact, borders included, and takes a fifth of the multiplications of the
    unfolded patches for 3 × 3, a hundredth for hundreds of taps. With a stride the shift is by as many
    taps. Where windows hardly overlap, patches are unfolded.

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
    if _has_lags(module):
        return _gram_of_windows(module, x, groups)
    total: Any = 0.0
    size = 4 * module.weight[0].numel() * groups * max(1, x[0].numel() // x.shape[1])
    for part in x.split(max(1, _PATCH_BYTES // size)):
        u = patches(module, part, groups)
        total = total + _bordered((u.mT @ u).double(), u.sum(1).unsqueeze(2).double(), u.shape[1])
    return total


def _bordered(products: Tensor, sums: Tensor, rows: int) -> Tensor:
    """Σ u uᵀ ``[G, inputs, inputs]``, Σ u ``[G, inputs, 1]`` of so many rows, as if u ended in a one."""
    ones = sums.new_full((len(sums), 1, 1), rows)
    return torch.cat([torch.cat([products, sums], 2), torch.cat([sums.mT, ones], 2)], 1)


def cholesky(matrices: Tensor) -> Tensor | None:
    """Lower factors of positive definite matrices; ``None`` if one is not, by rounding errors say.

    Example:
        >>> cholesky(torch.tensor([[[4.0]]])).item(), cholesky(torch.tensor([[[-1.0]]]))
        (2.0, None)
    """
    factor, failed = torch.linalg.cholesky_ex(matrices)
    return None if bool(failed.any()) or not bool(factor.isfinite().all()) else factor


def patches(module: Any, x: Tensor, groups: int) -> Tensor:
    """What each output sees: ``[groups, rows, inputs per group]``."""
    if isinstance(module, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    if module.weight[0, 0].numel() == 1 and set(padding_of(module) or ()) == {0}:  # no windows
        x = x[:, :, :: module.stride[0]]
        x = x if isinstance(module, nn.Conv1d) else x[:, :, :, :: module.stride[1]]
        return x.movedim(1, -1).flatten(0, -2).unflatten(1, (groups, -1)).movedim(1, 0)
    options = [module.kernel_size, module.dilation, padding_of(module), module.stride]
    if isinstance(module, nn.Conv1d):  # a picture of height 1
        x = x.unsqueeze(2)
        options = [(fill, *o) for o, fill in zip(options, (1, 1, 0, 1), strict=True)]
    columns = F.unfold(x, *options)  # [N, C·k, positions]
    return columns.unflatten(1, (groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)


def padding_of(module: Any) -> tuple[int, ...] | None:
    """Zeros on either side of each dimension; ``None`` if the sides differ."""
    if not isinstance(module.padding, str):
        return tuple(module.padding)
    if module.padding == "valid":
        return (0,) * len(module.kernel_size)
    both = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    return None if any(zeros % 2 for zeros in both) else tuple(zeros // 2 for zeros in both)


class _Line:
    """How the windows of a convolution lie in its last dimension."""

    def __init__(self, module: Any) -> None:
        self.taps, self.stride, self.gap = (
            values[-1] for values in (module.kernel_size, module.stride, module.dilation)
        )
        # A shift by so many taps is one by so many places.
        self.shift = math.lcm(self.stride, self.gap) // self.gap
        self.steps = math.lcm(self.stride, self.gap) // self.stride

    def places(self, length: int) -> int:
        """How many windows there are."""
        return (length - self.gap * (self.taps - 1) - 1) // self.stride + 1

    def windows(self, z: Tensor, taps: range, places: range) -> Tensor:
        """What taps see at places ``[G, rows · places, taps · C]`` of rows ``[G, rows, length, C]``."""
        start = self.stride * places.start + self.gap * taps.start
        span = self.stride * (len(places) - 1) + 1
        z = z[:, :, start : start + span + self.gap * (len(taps) - 1)].unfold(2, span, self.gap)
        return z[..., :: self.stride].permute(0, 1, 4, 2, 3).flatten(3).flatten(1, 2)


def _has_lags(module: Any) -> bool:
    """Whether windows overlap so much that most sums over places follow from others."""
    if isinstance(module, nn.Linear) or module.weight[0, 0].numel() == 1:
        return False
    line = _Line(module)
    flat = set(module.kernel_size[:-1]) <= {1}
    return (flat or module.stride[0] == 1) and 2 * line.shift <= line.taps


def _gram_of_windows(module: Any, x: Tensor, groups: int) -> Tensor:
    """The recursion above along rows, and within them along places."""
    zeros = padding_of(module)
    assert zeros is not None
    x = F.pad(x, [z for zero in reversed(zeros) for z in (zero, zero)])
    high, gap = 1, 1
    if isinstance(module, nn.Conv1d):
        x = x.unsqueeze(2)
    else:
        high, gap, x = module.kernel_size[0], module.dilation[0], x[:, :, :: module.stride[0]]
    x = x.unflatten(1, (groups, -1)).permute(1, 0, 3, 4, 2).contiguous()  # [G, N, H, W, C]
    rows, line = x.shape[2] - gap * (high - 1), _Line(module)

    def between(first: int, second: int, count: int) -> Tensor:
        one, other = (x[:, :, row : row + count].flatten(1, 2) for row in (first, second))
        return _between_rows(one, other, line)

    taps, channels = line.taps, x.shape[-1]
    g = x.new_empty(groups, high, high, taps, channels, taps, channels, dtype=torch.float64)
    for b in range(high):
        g[:, 0, b] = between(0, gap * b, rows)
        for a in range(high - b - 1):
            enters = between(rows + gap * a, rows + gap * (a + b), gap)
            leaves = between(gap * a, gap * (a + b), gap)
            g[:, a + 1, a + b + 1] = g[:, a, a + b] + enters - leaves
        for a in range(high - b if b else 0):
            g[:, a + b, a] = g[:, a, a + b].permute(0, 3, 4, 1, 2)
    inputs = module.weight[0].numel()
    g = g.permute(0, 4, 1, 3, 6, 2, 5).reshape(groups, inputs, inputs)
    seen = x.sum(1, dtype=torch.float64).unfold(1, rows, gap).sum(-1)  # [G, high, W, C]
    places = line.places(x.shape[3])
    sums = line.windows(seen, range(taps), range(places)).unflatten(1, (high, -1)).sum(2)
    sums = sums.unflatten(2, (taps, channels)).permute(0, 3, 1, 2).reshape(groups, inputs, 1)
    return _bordered(g, sums, x.shape[1] * rows * places)


def _between_rows(x: Tensor, y: Tensor, line: _Line) -> Tensor:
    """Σ x_{q+a} y_{q+b}ᵀ over rows and places ``[G, a, C, b, C]``, of rows ``[G, rows, length, C]``."""
    channels, taps, places = x.shape[-1], range(line.taps), range(line.places(x.shape[2]))
    first, others = taps[: line.shift], taps[line.shift :]
    g = x.new_empty(len(x), len(taps), channels, len(taps), channels, dtype=torch.float64)
    x_first, y_first = (line.windows(z, first, places) for z in (x, y))
    at_once = max(1, _PATCH_BYTES * len(first) // (4 * x_first.numel()))
    for start in range(0, len(taps), at_once):
        some = taps[start : start + at_once]
        right = x_first.mT @ line.windows(y, some, places)
        left = line.windows(x, some, places).mT @ y_first
        shape = (len(x), len(first), channels, len(some), channels)
        g[:, : line.shift, :, some.start : some.stop] = right.view(shape)
        g[:, some.start : some.stop, :, : line.shift] = left.mT.view(shape).permute(0, 3, 4, 1, 2)
    if not others:
        return g
    enters, leaves = (
        line.windows(x, taps[: len(others)], where).mT @ line.windows(y, taps[: len(others)], where)
        for where in (range(len(places), len(places) + line.steps), range(line.steps))
    )
    change = enters.double() - leaves.double()
    change = change.view(len(x), len(others), channels, len(others), channels)
    for a in others:
        before = a - line.shift
        g[:, a, :, line.shift :] = g[:, before, :, : -line.shift] + change[:, before]
    return g
