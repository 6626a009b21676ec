import math

import numpy as np
import pytest
import torch

from sj_burst.rules import statistics as module
from sj_burst.rules.statistics import ActivationStatistics

SHAPES = {"vectors": (7, 5), "pictures": (6, 5, 4, 3), "sequences": (4, 5, 6)}


@pytest.mark.parametrize("upper", [math.inf, 6.0])
@pytest.mark.parametrize("channel_wise", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("at_once", [1, 2**18])
def test_every_value_is_counted_in_its_bin(monkeypatch, shape, channel_wise, upper, at_once):
    """Value by value, with ranges that widen, zeros, and a channel that never fires."""
    monkeypatch.setattr(module, "_VALUES_AT_ONCE", at_once)
    batches = [torch.randn(shape) * scale for scale in (0.01, 8.0, 1.0)]
    for z in batches:
        z[:, 0] = -z[:, 0].abs()
        z[0] = 0.0
    statistics = ActivationStatistics(channel_wise, upper)
    for z in batches:
        statistics.update(z)
    channels = [torch.cat([z[:, c].flatten() for z in batches]).tolist() for c in range(shape[1])]
    if not channel_wise:
        channels = [[value for channel in channels for value in channel]]
    assert statistics.samples == len(channels[0])
    for c, values in enumerate(channels):
        active = [min(v, upper) for v in values if v > 0]
        assert statistics.dead[c] == (not active)
        reach = max(active, default=0.0)
        assert statistics.maximum[c] == reach
        assert statistics.range[c] == (2.0 ** math.ceil(math.log2(reach)) if active else 0.0)
        counts = np.zeros(2048)
        for a in active:
            counts[min(int(a / statistics.range[c].item() * 2048), 2047)] += 1
        assert statistics.histogram[c].tolist() == counts.tolist()
        assert statistics.mean[c].item() == pytest.approx(np.mean(values), abs=1e-6 * np.std(values))
        assert statistics.std[c].item() == pytest.approx(np.std(values), rel=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_and_leaves_nothing(value):
    statistics = ActivationStatistics()
    statistics.update(torch.ones(4, 3))
    bad = torch.ones(4, 3)
    bad[2, 1] = value
    with pytest.raises(ValueError, match="NaN or infinite values"):
        statistics.update(bad)
    assert statistics.samples == 4
    assert statistics.histogram.sum() == 12


def test_both_infinities_are_refused():
    """They would cancel in a sum."""
    with pytest.raises(ValueError, match="NaN or infinite"):
        ActivationStatistics().update(torch.tensor([[math.inf], [-math.inf]]))


def test_the_smallest_activations_are_counted():
    statistics = ActivationStatistics()
    statistics.update(torch.tensor([[1e-44, 1e-38, 0.0], [-1.0, 2e-38, -0.0]]))
    assert statistics.histogram.sum(1).tolist() == [1, 2, 0]
