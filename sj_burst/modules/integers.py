"""Layers of integer weights, and the mean of counts: the same bits on every machine."""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from ..backends.integers import Packed, digits, has_kernel
from ..functional import needs_grad, per_channel
from ..utils.layout import channels_last

__all__ = [
    "AffineScale",
    "CountPool",
    "IntegerLayer",
    "OfBytes",
    "check_no_gradient",
    "fixed_point",
    "plain_window",
]


_BITS = 30  # of what is no count
_FEW = 1024  # inputs over which float32 holds the sums of its digits


class IntegerLayer(nn.Module):
    """A linear or convolutional layer of integer weights, whose sums are exact.

    Counts in int8 meet a kernel that adds in 32 bits, where the machine has one; other inputs are
    rounded to 30 bits (see :func:`fixed_point`) and added digit by digit, or in float64, which is exact
    for them, too. Either way the sum is rounded once, to float32: neither the number of threads nor the
    machine tells.

    Args:
        layer: the geometry, a linear or convolutional layer.
        weight: integers in int8 or int16, shaped as the layer's weight.
        signed: whether there may be counts below zero.

    Example:
        >>> weight = torch.tensor([[3, -100]], dtype=torch.int8)
        >>> layer = IntegerLayer(nn.Linear(2, 1), weight, signed=True)
        >>> layer(torch.tensor([[5, -1]], dtype=torch.int8))
        tensor([[115.]])
    """

    weight: Tensor

    def __init__(self, layer: Any, weight: Tensor, signed: bool) -> None:
        super().__init__()
        self.signed = signed
        self.register_buffer("weight", weight)
        geometry = copy.deepcopy(layer).to("meta")
        geometry.bias = None
        self._geometry = [geometry]  # hidden: it has no numbers
        self._packed: tuple[Any, Packed] | None = None
        self._proven: dict[tuple[int, ...], bool] = {}

    @property
    def geometry(self) -> Any:
        """A layer of the same geometry without weights, on the meta device."""
        return self._geometry[0]

    def forward(self, x: Tensor, *sizes: Any, **named: Any) -> Tensor:
        """``[N, ...]`` to sums ``[N, ...]`` in float32; further arguments are those of the layer."""
        check_no_gradient(x)
        if x.dtype == torch.int8:
            if (out := self._fast(x, self.signed)) is None:
                out = self._slowly(x.double(), *sizes, **named).float()
            return channels_last(out)
        q, step = fixed_point(x)
        sums = None
        if self.weight[0].numel() <= _FEW:
            sums = self._fast(torch.cat(digits(q)), True)
        if sums is None:
            out = self._slowly(q, *sizes, **named)
        else:
            first, *lower = reversed(sums.split(len(x)))
            out = first.double()
            for digit in lower:
                torch.add(digit, out, alpha=256, out=out)
        return channels_last(torch.mul(out, per_sample(step, out.dim()), out=out).float())

    def _slowly(self, x: Tensor, *sizes: Any, **named: Any) -> Tensor:
        """Sums of integers in float64, which holds them all."""
        weight = {"weight": self.weight.double()}
        return torch.func.functional_call(self.geometry, weight, (x, *sizes), named)

    def _fast(self, x: Tensor, signed: bool) -> Tensor | None:
        """Sums of counts in int8 by the kernel; ``None`` if there is none that is right.

        It has to prove itself once on every shape: the library is wrong for some.
        """
        if not has_kernel(self.geometry, self.weight):
            return None
        kernel = self._kernel(signed)
        shape = (*x.shape, signed)
        if self._proven.get(shape, True) is False or not kernel.takes(x):
            return None
        out = kernel.sums(x)
        if shape not in self._proven:
            ends = [0, len(x) - 1]
            self._proven[shape] = torch.equal(out[ends], self._slowly(x[ends].double()).float())
        return out if self._proven[shape] else None

    def _kernel(self, signed: bool) -> Packed:
        weight = self.weight
        key = (weight.data_ptr(), None if weight.is_inference() else weight._version, signed)
        if self._packed is None or self._packed[0] != key:
            self._packed, self._proven = (key, Packed(self.geometry, weight, signed)), {}
        return self._packed[1]

    def __getstate__(self) -> dict[str, Any]:
        """Without what was packed for this process."""
        return self.__dict__ | {"_packed": None, "_proven": {}}

    def extra_repr(self) -> str:
        """Options in one line."""
        return f"{self.geometry}, {self.weight.dtype}, signed={self.signed}"


def check_no_gradient(*x: Tensor) -> None:
    """Raise if an input asks for a gradient, which integers have not.

    Raises:
        ValueError: names the remedy.
    """
    if needs_grad(*x):
        raise ValueError(
            "counts carry no gradient; train the network before to_integers, or run it under "
            "torch.no_grad()"
        )


def per_sample(value: Tensor, dim: int) -> Tensor:
    """One value a sample ``[N]``, to meet a tensor of ``dim`` dimensions."""
    return value.view(-1, *[1] * (dim - 1))


def fixed_point(x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Round every sample to integers of 30 bits times a power of two, by its largest number.

    .. math::
        x \approx 2^{e - 30} q, \qquad 2^{e-1} \le \max |x| < 2^e

    Args:
        x: real numbers ``[N, ...]``.

    Returns:
        The integers q in float64, |q| ≤ 2^30, and 2^(e − 30) of every sample ``[N]``.

    Raises:
        ValueError: for NaN and infinite numbers.

    Example:
        >>> q, step = fixed_point(torch.tensor([[0.75, -0.5]]))
        >>> (q * step).tolist(), q.tolist() == [[0.75 * 2**30, -0.5 * 2**30]]
        ([[0.75, -0.5]], True)
    """
    x = x.double()
    largest = x.flatten(1).abs().amax(1) if x.numel() else x.new_ones(len(x))
    if wrong := int((~largest.isfinite()).sum()):
        raise ValueError(
            f"{wrong} of {len(x)} samples hold NaN or infinite numbers, which no integer stands for; "
            "mend the input"
        )
    exponent = torch.frexp(largest).exponent
    step = torch.ldexp(torch.ones_like(largest), exponent - _BITS)
    return (x / per_sample(step, x.dim())).round(), step


class AffineScale(nn.Module):
    """Sums of integers in the ANN's units: s·x + b for every channel.

    Args:
        scale: a scalar, one value per channel (dimension 1), or one per number of a sample.
        offset: likewise; ``None`` for none.

    Example:
        >>> AffineScale(torch.tensor(0.5), torch.tensor([1.0, 2.0]))(torch.tensor([[4, 6]]))
        tensor([[3., 5.]])
    """

    scale: Tensor
    offset: Tensor | None

    def __init__(self, scale: Tensor, offset: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("scale", scale.detach().clone())
        self.register_buffer("offset", None if offset is None else offset.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """``[N, ...]`` to ``[N, ...]``."""
        x = x.float() * per_channel(self.scale, x.dim())
        return x if self.offset is None else x + per_channel(self.offset, x.dim())


class OfBytes(nn.Module):
    """A module that moves numbers and does not look at them, for counts in int8.

    Example:
        >>> OfBytes(nn.Upsample(scale_factor=2))(torch.tensor([[[1, -2]]], dtype=torch.int8))
        tensor([[[ 1,  1, -2, -2]]], dtype=torch.int8)
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """``[N, ...]`` in int8 to ``[N, ...]``."""
        return self.module(x.view(torch.uint8)).view(torch.int8)


class CountPool(nn.Module):
    """Average pooling of counts: their sums in int8 where these fit, else exact means in float32.

    Args:
        pool: an average-pooling module.
        window: what its means divide by, to return sums; ``None`` for means.

    Example:
        >>> CountPool(nn.AvgPool1d(2), window=2)(torch.tensor([[[1, 2]]], dtype=torch.int8))
        tensor([[[3]]], dtype=torch.int8)
    """

    def __init__(self, pool: Any, window: int | None) -> None:
        super().__init__()
        self.pool, self.window = pool, window

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, ...]`` in int8 to ``[N, C, ...]``."""
        if self.window is None:
            return self.pool(x.double()).float()  # a sum of integers, rounded once
        return (self.pool(x.float()) * self.window).round_().to(torch.int8)


def plain_window(pool: Any) -> int | None:
    """What all means of an average-pooling module divide by; ``None`` where that varies.

    Example:
        >>> plain_window(nn.AvgPool2d((2, 3))), plain_window(nn.AvgPool2d(2, ceil_mode=True))
        (6, None)
    """
    dimensions = next((d for kind, d in _AVERAGES if isinstance(pool, kind)), 0)
    if not dimensions or pool.ceil_mode or getattr(pool, "divisor_override", None) is not None:
        return None
    several = (tuple, list)
    padding = pool.padding if isinstance(pool.padding, several) else (pool.padding,)
    if any(padding) and not pool.count_include_pad:
        return None
    kernel = pool.kernel_size
    return math.prod(kernel) if isinstance(kernel, several) else kernel**dimensions


_AVERAGES: tuple[tuple[type[nn.Module], int], ...] = (
    *((nn.AvgPool1d, 1), (nn.AvgPool2d, 2), (nn.AvgPool3d, 3)),
)
