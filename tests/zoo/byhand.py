"""The networks that are written out here, by field."""

from collections.abc import Iterator

from .entry import Entry

__all__ = ["FIELDS", "entries"]

FIELDS: tuple = ()


def entries() -> Iterator[Entry]:
    """All of them."""
    for field in FIELDS:
        yield from field.networks
