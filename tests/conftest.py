import functools

import hypothesis
import matplotlib
import pytest
import torch
from spikingjelly.logger import logger

import sj_burst

matplotlib.use("Agg")
logger.remove()
torch.set_num_threads(1)  # small tensors; threads of a busy machine wait for each other
hypothesis.settings.register_profile("default", deadline=None, max_examples=40)
hypothesis.settings.load_profile("default")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def convert():
    """Convert without progress bars."""
    return functools.partial(sj_burst.convert, progress=False)
