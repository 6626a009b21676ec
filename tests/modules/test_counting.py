import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sj_burst import BurstIFNode, set_backend
from sj_burst.backends.dispatch import is_installed
from sj_burst.modules.counting import CountingNode

BACKENDS = [b for b in ("torch", "numba") if is_installed(b)]


def slow(terms, scales, shift, v, most, signed):
    """Neuron by neuron, step by step, in numpy's float32."""
    one, out = np.float32, np.zeros(terms[0].shape, dtype=np.int8)
    for place in np.ndindex(out.shape[1:]):
        channel, m, sent = place[1], one(v[place[1]]), 0
        for t in range(len(out)):
            for x, scale in zip(terms, scales, strict=True):
                m = one(m + one(scale[channel] * one(x[(t, *place)])))
            m = one(m + one(shift[channel]))
            n = int(max(min(np.floor(m), most), -most if signed else 0))
            n = max(n, -sent) if signed else n
            out[(t, *place)], m, sent = n, one(m - n), sent + n
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("terms", [1, 2, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_counts_as_the_slow_reference(backend, signed, terms, layout):
    torch.manual_seed(0)
    steps, shape = 5, (3, 4, 2, 3)
    given = [
        (20 * torch.randn(steps, *shape)).round().to(torch.int8 if i == 1 else torch.float32)
        for i in range(terms)
    ]
    scales = [0.1 * torch.rand(4) + 0.01 for _ in given]
    shift, v = torch.randn(4), torch.rand(4)
    node = CountingNode(scales, 4, v, shift, signed, step_mode="m")
    set_backend(node, backend)
    moved = [torch.stack([step.to(memory_format=layout) for step in x]) for x in given]
    wanted = slow(
        [x.numpy() for x in given], [s.numpy() for s in scales], shift.numpy(), v.numpy(), 4, signed
    )
    got = node(*moved)
    assert got.dtype == torch.int8
    assert np.array_equal(got.numpy(), wanted)
    node.reset()
    node.step_mode = "s"
    assert np.array_equal(
        torch.stack([node(*step) for step in zip(*moved, strict=True)]).numpy(), wanted
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels", [16, 48])  # a block holds whole sets of 16 channels
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_many_blocks_and_spikes_are_counted(backend, channels, layout, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    z = 40 * torch.randn(40, 2, channels, 70, 40)
    z = z.flatten(0, 1).contiguous(memory_format=layout).unflatten(0, (40, 2))
    scale, shift = 0.2 * torch.rand(channels), torch.randn(channels)
    shift[0] = 1000  # as many spikes as there may be
    node = CountingNode([scale], 127, 0.5, shift, True, step_mode="m")
    plain = BurstIFNode(1.0, 127, 0.5, shift, True, step_mode="m")
    set_backend(node, backend)
    node.count_spikes = True
    with torch.no_grad():
        counts, wanted = node(z), plain(z * scale.view(-1, 1, 1))
    assert torch.equal(counts.float(), wanted)
    if node.spike_counts is not None:
        assert torch.equal(node.spike_counts.per_step, counts.abs().long().flatten(1).sum(1).double())
        assert torch.equal(node.spike_counts.net, counts.long().flatten(1).sum(1).double())
        bits = np.array([bin(n).count("1") for n in range(128)])[counts.abs().int().numpy()]
        events = torch.stack([counts.abs(), torch.from_numpy(bits), counts != 0]).double().sum((1, 2))
        assert torch.equal(node.spike_counts.per_neuron, events)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_no_number_is_told_of(backend):
    shift = torch.zeros(16)
    shift[3] = math.nan
    node = CountingNode([torch.ones(16)], 4, 0.5, shift, step_mode="m")
    set_backend(node, backend)
    node.count_spikes = True
    with torch.no_grad():
        node(torch.ones(3, 2, 16, 30, 10))
    assert not node.spike_counts.per_neuron.isfinite().all()
    assert not node.spike_counts.per_step.isfinite().any()


@settings(deadline=None)
@given(
    st.lists(st.integers(-1000, 1000), min_size=1, max_size=12),
    st.integers(1, 127),
    st.booleans(),
    st.sampled_from(BACKENDS),
)
def test_charge_is_conserved(sums, most, signed, backend):
    node = CountingNode([1 / 64], most, 0.5, None, signed, step_mode="m")
    set_backend(node, backend)
    with torch.no_grad():
        n = node(torch.tensor(sums, dtype=torch.float32).view(-1, 1, 1))
    # In float32 these are exact.
    assert node.v.item() == 0.5 + sum(sums) / 64 - n.long().sum().item()


def test_bad_input():
    with pytest.raises(ValueError, match="counts in int8 go up to 127"):
        CountingNode([1.0], max_spikes=128)
    with pytest.raises(ValueError, match="scales for 2 inputs, got 1"):
        CountingNode([1.0, 1.0])(torch.ones(1, 1))
