"""Events of bursts against counts of ones in binary, value by value."""

import math

import pytest
import torch
from reference import LAYOUTS, SHAPES, bits_of, make_input

from sj_burst import BurstIFNode, functional
from sj_burst.backends import dispatch
from sj_burst.backends.dispatch import is_installed
from sj_burst.backends.events import count_events
from sj_burst.backends.layout import samples_first

BACKENDS = [b for b in ("torch", "numba") if is_installed(b)]


def events_of(numbers):
    """Events of every number, of parts of spikes too, ``[3, ...]`` in float64."""
    sizes = numbers.double().abs()
    parts = sizes - sizes.floor()
    some = (sizes > 0).double()
    return torch.stack([sizes, torch.maximum(bits_of(sizes.floor()) + parts, some), some])


def assert_counted(counts, numbers):
    """Counts of numbers ``[T, N, ...]`` are those of single values."""
    events = events_of(numbers).sum((1, 2))
    assert torch.allclose(counts.per_neuron, events, rtol=1e-6)
    assert counts.per_neuron.shape == events.shape
    assert torch.allclose(counts.per_step.double(), numbers.double().abs().flatten(1).sum(1), rtol=1e-6)
    assert torch.allclose(counts.net.double(), numbers.double().flatten(1).sum(1), rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_whole_spikes_of_every_shape_and_layout(backend, dtype):
    for shape in (*SHAPES, (4,), (3, 5, 2), (1, 2000), (300, 7)):
        for layout in LAYOUTS:
            numbers = (9 * make_input(3, shape, layout, dtype)).round()
            per_channel = torch.rand(shape[1], *[1] * (len(shape) - 2)) + 0.5 if shape[1:] else None
            for unit in (None, torch.tensor(0.25), per_channel, torch.rand(shape[1:]) + 0.5):
                y = numbers if unit is None else numbers * unit.to(dtype)
                counts = dispatch.count_outputs(backend, y, unit, True)
                assert_counted(counts, numbers)


@pytest.mark.parametrize("backend", BACKENDS)
def test_parts_of_spikes_and_units_of_nothing(backend):
    numbers = torch.tensor([[[0.0, 0.25, -0.5, 2.75, -7.0, 4.0]], [[1.0, 1e-5, 3.0, -1.5, 0.5, 5.0]]])
    unit = torch.tensor([0.5, 3.0, 0.1, 0.7, 0.3, 0.0])
    noise = 1 + 1e-6 * torch.randn(numbers.shape)
    counts = dispatch.count_outputs(backend, numbers * unit * noise, unit, False)
    expected = numbers.clone()
    expected[..., -1] = 0  # a unit of 0 has no spikes
    expected[1, 0, 1] = 0  # a rounding error
    assert_counted(counts, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bursts_of_any_size(backend):
    numbers = torch.tensor(
        [[[2.0**k - 1, -(2.0**k), 3 * 2.0**k, 2.0**k - 2.0 ** (k // 2)]] for k in range(45)]
    )
    large = torch.tensor([[[50331652.0, 83886088.0, 123456792.0, 2147483520.0]]])
    assert_counted(dispatch.count_outputs(backend, large, None, True), large)
    assert_counted(dispatch.count_outputs(backend, numbers, None, True), numbers)
    numbers = torch.arange(-128, 128, dtype=torch.int8).view(2, 4, 32)
    assert_counted(dispatch.count_outputs(backend, numbers, None, True), numbers)
    many = torch.randint(-128, 128, (3, 200, 7, 300), dtype=torch.int8)  # more than a byte holds
    assert_counted(dispatch.count_outputs(backend, many, None, True), many)
    for given in (numbers, numbers.long(), numbers.double()):
        assert torch.equal(count_events(given).double(), events_of(numbers))


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_no_number(backend):
    """Counting ends, and says that there is no count."""
    for bad in (math.nan, math.inf, -math.inf):
        y = torch.ones(2, 3, 40)
        y[1, 2, 7] = bad
        counts = dispatch.count_outputs(backend, y, None, True)
        assert not counts.per_neuron[0, 7].isfinite() and not counts.per_step[1].isfinite()
        assert counts.per_step[0] == 120
        assert dispatch.count_outputs(backend, y, None, False).per_step.tolist() == [120, 119]
    assert dispatch.count_outputs(backend, torch.ones(2, 0, 3), None, True).per_neuron.sum() == 0


def test_a_sum_of_many_spikes_is_exact():
    y = torch.full((1, 300, 2), 2.0**17 + 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert dispatch.count_outputs("torch", y, None, True).per_neuron[0, 0] == 300 * (2**17 + 1)
        assert dispatch.count_outputs("torch", y * 0 + 333, None, True).per_neuron[0, 0] == 99_900


def test_counting_does_not_mind_gradients():
    for backend in BACKENDS:
        theta = torch.tensor(0.5, requires_grad=True)
        y = torch.ones(2, 3, 4, requires_grad=True)
        assert dispatch.count_outputs(backend, y, theta, True).per_step.tolist() == [24, 24]
    node = BurstIFNode(0.5, 4, negative_slope=0.1, step_mode="m", store_v_seq=True)
    node.count_spikes = True
    node(torch.ones(3, 2, 4, requires_grad=True))
    assert node.spike_counts.per_step.tolist() == [16, 16, 16]


@pytest.mark.parametrize("max_spikes", [1, 2, 3, 4, 7, 8, 15, 16, 255, 4096, 2**14, 2**15, math.inf])
def test_bursts_that_the_loop_counts_itself(max_spikes):
    pytest.importorskip("numba")
    z_seq = torch.rand(6, 3, 5, 300).square() * min(max_spikes, 2**16) * 0.7 - 0.1
    v, threshold = torch.zeros(3, 5, 300), torch.tensor(0.5)
    got = dispatch.burst_multi_step("numba", z_seq, v, threshold, max_spikes, sent=v, count=True)
    y_seq, *_ = functional.burst_multi_step(z_seq, v, threshold, max_spikes, sent=v)
    assert (got.counts is None) == (max_spikes > 2**14), "larger bursts are counted from the outputs"
    if got.counts is not None:
        assert_counted(got.counts, (y_seq / threshold).round())


def test_samples_come_first_wherever_they_lie():
    x = torch.randn(2, 3, 4, 5)
    for moved in (x, x.transpose(1, 2), x.permute(0, 3, 1, 2), x[:, :1].transpose(1, 3).transpose(1, 3)):
        found, order = samples_first(moved)
        assert order[0] == 0
        assert torch.equal(found, moved.permute(0, *[d + 1 for d in order]))
        assert found[0].is_contiguous()
    one = torch.randn(2, 4, 5, 1).permute(0, 3, 1, 2)  # one sample, whose dimension lies last
    found, order = samples_first(one)
    assert order == [0, 1, 2] and torch.equal(found, one)
    held = torch.randn(4, 3).t().expand(7, 3, 4)
    assert samples_first(held)[0].stride(0) == 0
