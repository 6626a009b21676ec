import functools

import pytest

import sj_burst


@pytest.fixture
def convert():
    """Convert without progress bars."""
    return functools.partial(sj_burst.convert, progress=False)
