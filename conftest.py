"""What tests and the examples in docstrings share: one thread, no window, the same draws every time."""

import random

import hypothesis
import matplotlib
import numpy
import pytest
import torch
from spikingjelly.logger import logger

matplotlib.use("Agg")
logger.remove()
torch.set_num_threads(1)  # small tensors; threads of a busy machine wait for each other

# The suite draws the same examples every time. `pytest --hypothesis-profile=long` looks for new ones;
# versions that are tried beside the newest get a few.
hypothesis.settings.register_profile("default", deadline=None, max_examples=40, derandomize=True)
hypothesis.settings.register_profile("short", deadline=None, max_examples=10, derandomize=True)
hypothesis.settings.register_profile(
    "long", deadline=None, max_examples=2000, derandomize=False, print_blob=True
)
hypothesis.settings.load_profile("default")


def seed_all() -> None:
    """The same draws whatever ran before, in whatever process."""
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


def pytest_collectstart() -> None:
    """Modules of tests draw inputs as they are imported."""
    seed_all()


@pytest.fixture(autouse=True)
def seed():
    """Every test and every example in a docstring."""
    seed_all()
