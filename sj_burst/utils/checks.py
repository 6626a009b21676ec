"""Checks of plain arguments that several functions take."""

import math
from numbers import Integral, Real

from torch import nn

__all__ = ["check_count", "check_network", "check_positive", "check_range"]


def check_count(least: int = 1, /, **values: object) -> None:
    """Raise unless each value is an integer ≥ ``least``.

    Raises:
        ValueError: names the argument and its value.

    Example:
        >>> check_count(time_steps=0)
        Traceback (most recent call last):
        ValueError: time_steps must be an integer ≥ 1, got 0
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} must be an integer ≥ {least}, got {value!r}")


def check_positive(**values: object) -> None:
    """Raise unless each value is a positive, finite number.

    Raises:
        ValueError: names the argument and its value.

    Example:
        >>> check_positive(lr=float("inf"))
        Traceback (most recent call last):
        ValueError: lr must be a positive, finite number, got inf
    """
    for name, value in values.items():
        if not isinstance(value, Real) or not 0 < float(value) < math.inf:
            raise ValueError(f"{name} must be a positive, finite number, got {value!r}")


def check_range(low: float, high: float, **values: object) -> None:
    """Raise unless each value is a finite number in [low, high].

    Raises:
        ValueError: names the argument and its value.

    Example:
        >>> check_range(0, 1, lam=2)
        Traceback (most recent call last):
        ValueError: lam must be a plain, finite number in [0, 1], got 2
        >>> check_range(0, math.inf, max_drop=-1)
        Traceback (most recent call last):
        ValueError: max_drop must be a plain, finite number ≥ 0, got -1
    """
    for name, value in values.items():
        if not isinstance(value, Real) or not (math.isfinite(value) and low <= float(value) <= high):
            least = "" if low == -math.inf else f" ≥ {low}"
            allowed = least if high == math.inf else f" in [{low}, {high}]"
            raise ValueError(f"{name} must be a plain, finite number{allowed}, got {value!r}")


def check_network(**values: object) -> None:
    """Raise unless each value is a module.

    Raises:
        TypeError: names the argument and its type.

    Example:
        >>> check_network(ann="resnet18")
        Traceback (most recent call last):
        TypeError: ann must be a network (torch.nn.Module), got str
    """
    for name, value in values.items():
        if not isinstance(value, nn.Module):
            got = f"{value.__name__}, a class" if isinstance(value, type) else type(value).__name__
            raise TypeError(f"{name} must be a network (torch.nn.Module), got {got}")
