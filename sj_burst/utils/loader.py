"""Reading batches from whatever a user passes as a loader."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["batches", "check_loader", "first_samples", "split_batch"]


def check_loader(loader: Any, name: str = "loader") -> None:
    """Raise unless ``loader`` can be iterated, more than once, over batches.

    Raises:
        TypeError: naming the remedy.

    Example:
        >>> check_loader(iter([1, 2]), "calibration_loader")
        Traceback (most recent call last):
        TypeError: calibration_loader can be read only once (list_iterator); pass ...
    """
    if isinstance(loader, Tensor):
        raise TypeError(f"{name} is a tensor; pass a DataLoader, or a list of batches [tensor]")
    if not isinstance(loader, Iterable):
        raise TypeError(f"{name} must be a DataLoader or a list of batches, got {type(loader).__name__}")
    if isinstance(loader, Iterator):
        raise TypeError(
            f"{name} can be read only once ({type(loader).__name__}); pass a DataLoader or list(...)"
        )


def split_batch(batch: Any, name: str = "loader") -> tuple[Tensor, Any]:
    """Input and target (or None) of one batch: a tensor, or a tuple or list that starts with one.

    Raises:
        TypeError: for any other batch.
        ValueError: for an empty batch, or NaN or infinite inputs.

    Example:
        >>> split_batch((torch.zeros(2, 3), torch.tensor([0, 1])))[1]
        tensor([0, 1])
    """
    x, target = batch, None
    if isinstance(batch, tuple | list) and batch:
        x, target = batch[0], batch[1] if len(batch) > 1 else None
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name} yields {type(batch).__name__} batches; it must yield tensors or (input, target) "
            "tuples whose input is one tensor: adapt it with a collate_fn"
        )
    if x.layout != torch.strided:
        raise TypeError(f"{name} yields tensors of layout {x.layout}; make them dense with .to_dense()")
    if x.dim() == 0 or len(x) == 0:
        raise ValueError(f"{name} yields an empty batch; leave empty batches out")
    if x.is_floating_point() and not x.isfinite().all():
        raise ValueError(f"{name} yields NaN or infinite inputs; leave them out")
    return x, target


def batches(loader: Iterable[Any], name: str = "loader") -> Iterator[tuple[Tensor, Any]]:
    """Inputs and targets of all batches.

    Raises:
        ValueError: if there is no batch.

    Example:
        >>> next(batches([], "calibration_loader"))
        Traceback (most recent call last):
        ValueError: calibration_loader is empty; it must yield at least one batch
    """
    empty = True
    for batch in loader:
        empty = False
        yield split_batch(batch, name)
    if empty:
        raise ValueError(f"{name} is empty; it must yield at least one batch")


def first_samples(loader: Iterable[Any], samples: int, name: str = "loader") -> list[Tensor]:
    """The first ``samples`` inputs of a loader, in its own batches.

    Raises:
        ValueError: if there is no batch, or inputs differ in shape.

    Example:
        >>> [len(x) for x in first_samples([torch.zeros(3, 1), torch.zeros(3, 1)], 4)]
        [3, 1]
    """
    taken: list[Tensor] = []
    missing = samples
    for x, _ in batches(loader, name):
        taken.append(x[:missing])
        if x.shape[1:] != taken[0].shape[1:]:
            raise ValueError(
                f"{name} yields inputs of shapes {list(taken[0].shape[1:])} and {list(x.shape[1:])}; "
                "bring them to one"
            )
        missing -= len(taken[-1])
        if missing == 0:
            break
    return taken
