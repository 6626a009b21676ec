"""How, and where, tensors lie in memory."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["channels_last", "is_dense", "move"]


def channels_last(value: Any) -> Any:
    """Pictures on a CPU with the channels last, in which convolutions and pooling are faster."""
    if isinstance(value, Tensor) and value.dim() == 4 and value.device.type == "cpu":
        return value.contiguous(memory_format=torch.channels_last)
    return value


def move(value: Any, device: torch.device | str) -> Any:
    """A tensor, or the tensors in a tuple, list or dict, on ``device``; anything else as it is.

    Example:
        >>> move((torch.ones(1), [3]), "meta")
        (tensor(..., device='meta', size=(1,)), [3])
    """
    if isinstance(value, tuple | list):
        return type(value)(move(v, device) for v in value)
    if isinstance(value, dict):
        return {key: move(v, device) for key, v in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value


def is_dense(tensor: Tensor) -> bool:
    """Whether each place in memory from the first to the last holds one element.

    Example:
        >>> x = torch.ones(2, 3)
        >>> is_dense(x.mT), is_dense(x[:, :2]), is_dense(x[:1].expand(2, 3))
        (True, False, False)
    """
    order = sorted(range(tensor.dim()), key=lambda d: (-tensor.stride()[d], -tensor.shape[d]))
    return tensor.permute(order).is_contiguous()
