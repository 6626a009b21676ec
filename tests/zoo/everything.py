"""All the networks of the zoo."""

from collections.abc import Iterator

from . import byhand
from .entry import Entry
from .libraries import LIBRARIES

__all__ = ["entries"]


def entries() -> Iterator[Entry]:
    """Those of the libraries that are installed, and those written by hand."""
    yield from byhand.entries()
    for library in LIBRARIES.values():
        try:
            yield from library()
        except ImportError as error:
            print(f"left out: {error}")
