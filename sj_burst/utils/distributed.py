"""What the processes of a ``torchrun`` share: sums, maxima and calibration images.

Every function does nothing in a single process. Results are the same on every process.
"""

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["any_of", "equal", "gather_samples", "maximum", "running", "total", "total_of"]


def running() -> bool:
    """Whether a default ``torch.distributed`` group of several processes exists.

    Example:
        >>> running()
        False
    """
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _reduce(x: Tensor, op: dist.ReduceOp.RedOpType) -> Tensor:
    if not running():
        return x
    # NCCL communicates CUDA tensors only.
    device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
    shared = x.detach().to(device, copy=True)
    dist.all_reduce(shared, op)
    return shared.to(x.device)


def total(x: Tensor) -> Tensor:
    """Sum over all processes.

    Example:
        >>> total(torch.tensor(2.0))
        tensor(2.)
    """
    return _reduce(x, dist.ReduceOp.SUM) if dist.is_available() else x


def total_of(number: int) -> int:
    """Sum of a number over all processes.

    Example:
        >>> total_of(2)
        2
    """
    return int(total(torch.tensor(number)))


def maximum(x: Tensor) -> Tensor:
    """Largest value over all processes.

    Example:
        >>> maximum(torch.tensor(2.0))
        tensor(2.)
    """
    return _reduce(x, dist.ReduceOp.MAX) if dist.is_available() else x


def any_of(flag: bool) -> bool:
    """Whether it is true in some process.

    Example:
        >>> any_of(True), any_of(False)
        (True, False)
    """
    return bool(maximum(torch.tensor(float(flag))))


def equal(number: int) -> bool:
    """Whether it is the same in all processes.

    Example:
        >>> equal(3)
        True
    """
    value = torch.tensor(float(number), dtype=torch.float64)
    return bool(maximum(value) == -maximum(-value))


def gather_samples(x: Tensor) -> Tensor:
    """The samples ``[N, ...]`` of all processes, in the order of a ``DistributedSampler``'s data set.

    Processes may hold different numbers of samples; all of them come.

    Example:
        >>> gather_samples(torch.tensor([1, 2]))
        tensor([1, 2])
    """
    if not running():
        return x
    longest = int(maximum(torch.tensor(len(x))))
    world, rank = dist.get_world_size(), dist.get_rank()
    gathered = x.new_zeros(longest, world, *x.shape[1:])  # sample i of rank r is sample i·world + r
    present = torch.zeros(longest, world, device=x.device)
    gathered[: len(x), rank] = x
    present[: len(x), rank] = 1
    return total(gathered).flatten(0, 1)[total(present).flatten() > 0]
