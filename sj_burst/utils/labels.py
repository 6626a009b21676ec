"""Class labels, and the share of right answers."""

from typing import Any

from torch import Tensor

__all__ = ["IGNORED", "check_labels", "correct_share", "is_label"]


IGNORED = -100  # torch's cross_entropy leaves out what has this label


def is_label(target: Any, shape: tuple[int, ...]) -> bool:
    """Whether a target is a tensor of class labels of this shape.

    Example:
        >>> import torch
        >>> is_label(torch.tensor([1, 0]), (2,)), is_label([1, 0], (2,))
        (True, False)
    """
    return isinstance(target, Tensor) and not target.is_floating_point() and target.shape == shape


def check_labels(target: Tensor, classes: int) -> None:
    """Raise unless the class labels of a batch ``[N]`` lie in [0, classes), or are torch's −100.

    Labels of pixels ``[N, ...]`` may lie outside. What is of no class does not count.

    Raises:
        ValueError: names the range.

    Example:
        >>> import torch
        >>> check_labels(torch.tensor([1, 2]), classes=2)
        Traceback (most recent call last):
        ValueError: loader yields class labels from 1 to 2, and the network has 2 classes; ...
    """
    known = target[target != IGNORED]
    if target.dim() == 1 and len(known) and not (known.min() >= 0 and known.max() < classes):
        raise ValueError(
            f"loader yields class labels from {int(known.min())} to {int(known.max())}, and the "
            f"network has {classes} classes; count them from 0"
        )


def correct_share(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Share of right answers of each sample; what is of no class does not count.

    Args:
        scores: ``[N, C, ...]``.
        target: class labels ``[N, ...]``.

    Returns:
        The shares ``[N]`` in [0, 1], and which samples have a label of a class at all.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[[3.0, 3.0, 0.0], [0.0, 0.0, 1.0]]])  # two classes, three pixels
        >>> correct_share(scores, torch.tensor([[0, 255, 0]]))
        (tensor([0.5000]), tensor([True]))
    """
    right = (scores.argmax(1) == target).reshape(len(target), -1)
    known = ((target >= 0) & (target < scores.shape[1])).reshape(len(target), -1).sum(1)
    return right.sum(1) / known.clamp_min(1), known > 0
