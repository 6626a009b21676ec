"""Copy networks that keep tensors they have computed."""

import copy
from typing import TypeVar

from torch import Tensor, nn

__all__ = ["copied"]

Net = TypeVar("Net", bound=nn.Module)


def copied(net: Net) -> Net:
    """A deep copy, also of a network that keeps what it has computed, as the older weight norm does.

    Raises:
        ValueError: if something else in it cannot be copied.

    Example:
        >>> import torch
        >>> net = nn.Linear(2, 1)
        >>> net.last = net(torch.ones(1, 2))
        >>> copied(net).last.is_leaf
        True
    """
    found = [t for module in net.modules() for t in vars(module).values() if isinstance(t, Tensor)]
    made = {id(t): t.detach().clone() for t in found if not t.is_leaf}
    try:
        return copy.deepcopy(net, made)
    except Exception as error:
        raise ValueError(
            f"{type(net).__name__} cannot be copied ({error}); a module that keeps a tensor it has "
            "computed should keep its detach()"
        ) from error
