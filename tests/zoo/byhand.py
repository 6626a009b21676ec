"""The networks that are written out here, by field."""

from collections.abc import Iterator

from .entry import Entry
from .fields import audio, dense, detection, mobile, operators, points, signals, style, tables, vision

__all__ = ["FIELDS", "entries"]

FIELDS = (audio, signals, vision, mobile, dense, detection, points, tables, style, operators)


def entries() -> Iterator[Entry]:
    """All of them."""
    for field in FIELDS:
        yield from field.networks
