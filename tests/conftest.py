import hypothesis
import matplotlib
import pytest
import torch
from spikingjelly.activation_based import ann2snn
from spikingjelly.logger import logger

from sj_burst import BurstRecipe

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
    """Convert with SpikingJelly's converter."""

    def run(ann, batches, **options):
        recipe = BurstRecipe(batches, progress=False, **options)
        return ann2snn.Converter(recipe).convert(ann)

    return run
