"""Exact sums of counts times integer weights: by oneDNN's int8 kernels on a CPU, else in float64.

Sums of integers are the same in whatever order they are added, as long as none is rounded: the kernels
add in 32 bits, and float64 holds integers up to 2^53. Of CUDA's int8 matrix product nothing is used:
there, too, the sums are made in float64.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Packed", "digits", "has_kernel", "kernels_are_exact"]

_LARGEST_SUM = 2**31 - 1


class Packed:
    """Weights in the layout of a kernel, for counts that are signed or not.

    Args:
        layer: the geometry.
        weight: integers in int8, as the layer's weight is shaped.
        signed: whether there may be counts below zero.
    """

    def __init__(self, layer: Any, weight: Tensor, signed: bool) -> None:
        # The kernels read bytes without a sign.
        self.zero_point = 128 if signed else 0
        self.linear = isinstance(layer, nn.Linear)
        self.line = isinstance(layer, nn.Conv1d)  # a picture of height 1
        outputs = len(weight)
        self.scales = torch.ones(outputs, dtype=torch.float32)
        self.zeros = torch.zeros(outputs, dtype=torch.int64)
        if self.linear:
            self.weight = torch.ops.onednn.qlinear_prepack(weight, None)
            return
        one, none = ((1,), (0,)) if self.line else ((), ())
        self.stride, self.padding, self.dilation = (
            [*fill, *given]
            for fill, given in ((one, layer.stride), (none, layer.padding), (one, layer.dilation))
        )
        self.groups, self.taps = layer.groups, weight.shape[-1]
        weight = weight.unsqueeze(2) if self.line else weight
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        self.weight = torch.ops.onednn.qconv_prepack(
            weight, self.scales, 1.0, self.zero_point, *geometry, None
        )

    def takes(self, x: Tensor) -> bool:
        """Whether the kernel takes an input: oneDNN is wrong where it returns a single column."""
        if not x.numel() or self.linear or self.line:
            return x.numel() > 0
        reach = self.dilation[1] * (self.taps - 1) + 1
        return (x.shape[-1] + 2 * self.padding[1] - reach) // self.stride[1] > 0

    def sums(self, x: Tensor) -> Tensor:
        """What the layer returns for counts ``[N, ...]`` in int8, without a bias, in float32.

        Raises:
            ValueError: for an input that the kernel does not take.
        """
        if not self.takes(x):
            raise ValueError(f"no kernel for an input {list(x.shape)}")
        x = x.view(torch.uint8)
        if self.zero_point:
            x = x ^ self.zero_point  # n + 128
        weights = (x, 1.0, self.zero_point, self.weight, self.scales, self.zeros, None)
        result: tuple[Any, ...] = (1.0, 0, torch.float32, "none", [], "")
        if self.linear:
            flat = torch.ops.onednn.qlinear_pointwise(x.flatten(0, -2), *weights[1:], *result)
            return flat.unflatten(0, x.shape[:-1])
        x = x.unsqueeze(2) if self.line else x
        x = x.contiguous(memory_format=torch.channels_last)
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        out = torch.ops.onednn.qconv2d_pointwise(x, *weights[1:], *geometry, *result)
        return out.squeeze(2) if self.line else out


def digits(q: Tensor) -> list[Tensor]:
    r"""Integers up to 2^30 as four digits in int8.

    .. math::
        q = d_0 + 2^8 d_1 + 2^{16} d_2 + 2^{24} d_3

    Example:
        >>> [d.item() for d in digits(torch.tensor(300.0, dtype=torch.float64))]
        [44, 1, 0, 0]
    """
    found = []
    for _ in range(3):
        higher = ((q + 128) / 256).floor()
        found.append(q - 256 * higher)
        q = higher
    return [d.to(torch.int8) for d in (*found, q)]


def has_kernel(layer: Any, weight: Tensor) -> bool:
    """Whether there is a kernel for a layer whose weights are these integers.

    Example:
        >>> has_kernel(nn.ConvTranspose2d(1, 1, 2), torch.ones(1, 1, 2, 2, dtype=torch.int8))
        False
    """
    if weight.dtype != torch.int8 or weight.device.type != "cpu":
        return False
    if 255 * 127 * weight[0].numel() > _LARGEST_SUM or not weight.numel():
        return False
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            return False
        sides = zip(layer.padding, layer.kernel_size, layer.dilation, strict=True)
        if any(zeros > gap * (taps - 1) for zeros, taps, gap in sides):
            return False  # oneDNN is wrong where a window holds nothing but padding
    elif not isinstance(layer, nn.Linear):
        return False
    return kernels_are_exact()


@functools.cache
def kernels_are_exact() -> bool:
    """Whether this machine's kernels add the largest numbers without an error; tried once.

    Without VNNI the products of pairs are added in 16 bits, where they saturate.
    """
    try:
        return all(map(_is_exact, (False, True)))
    except (RuntimeError, AttributeError, NotImplementedError):
        return False


def _is_exact(signed: bool) -> bool:
    """Convolution and matrix product of extreme and of random numbers, beside float64."""
    least, most = (-128, 127) if signed else (0, 127)
    numbers = torch.Generator().manual_seed(0)
    layers: list[Any] = [
        nn.Conv2d(64, 32, 3, padding=1, bias=False, device="meta"),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False, device="meta"),
        nn.Linear(513, 32, bias=False, device="meta"),
    ]
    for layer in layers:
        shape = (4, 513) if isinstance(layer, nn.Linear) else (4, layer.in_channels, 6, 6)
        x = torch.randint(least, most + 1, shape, dtype=torch.int8, generator=numbers)
        x[0], x[1] = least, most
        size = layer.weight.shape
        weight = torch.randint(-127, 128, size, dtype=torch.int8, generator=numbers)
        weight[0], weight[1] = 127, -127
        got = Packed(layer, weight, signed).sums(x)
        wanted = torch.func.functional_call(layer, {"weight": weight.double()}, (x.double(),))
        if not torch.equal(got.double(), wanted):
            return False
    return True
