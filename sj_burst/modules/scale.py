"""Multiplication by a factor, where no weights can do it."""

from torch import Tensor, nn

from ..functional import per_channel

__all__ = ["Scale"]


class Scale(nn.Module):
    """Multiply every channel by a number.

    Args:
        factor: a scalar, one value per channel (dimension 1), or one per number of a sample.

    Example:
        >>> import torch
        >>> Scale(torch.tensor([1.0, 2.0]))(torch.ones(1, 2)).tolist()
        [[1.0, 2.0]]
    """

    factor: Tensor

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """``[N, ...]`` to ``[N, ...]``."""
        return x * per_channel(self.factor, x.dim())
