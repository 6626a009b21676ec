"""Checks of plain arguments that several functions take."""

from numbers import Integral

__all__ = ["check_count", "check_positive"]


def check_count(**values: object) -> None:
    """Raise unless each value is an integer ≥ 1.

    Raises:
        ValueError: names the argument and its value.

    Example:
        >>> check_count(time_steps=0)
        Traceback (most recent call last):
        ValueError: time_steps must be an integer ≥ 1, got 0
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be an integer ≥ 1, got {value!r}")


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
        if not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ValueError(f"{name} must be a positive, finite number, got {value!r}")
