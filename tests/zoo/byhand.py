"""The networks that are written out here, by field."""

from collections.abc import Iterator

from .entry import Entry
from .fields import audio, mobile, signals, vision

__all__ = ["FIELDS", "entries"]

FIELDS = (audio, signals, vision, mobile)


def entries() -> Iterator[Entry]:
    """All of them."""
    for field in FIELDS:
        yield from field.networks
