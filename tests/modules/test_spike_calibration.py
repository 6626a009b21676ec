from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spikingjelly.activation_based import functional

from sj_burst import BurstIFNode, simulate
from sj_burst.modules.spike_calibration import SpikeCalibratedNode
from tests.networks import vgg

NEURONS = 3
# Multiples of 1/64 keep every sum exact. Mostly silent after the start, so that spikes are taken back.
currents = st.one_of(st.just(0.0), st.integers(-256, 256).map(lambda k: k / 64))
sequences = st.lists(
    st.lists(currents, min_size=NEURONS, max_size=NEURONS), min_size=1, max_size=24
).map(lambda rows: torch.tensor(rows, dtype=torch.float64).unsqueeze(1))
thresholds = st.integers(1, 32).map(lambda k: k / 32)
gammas = st.sampled_from([1, 2, 5])
allowances = st.integers(0, 5)


def slow(z_seq, theta, gamma, allowance):
    """The rule as published, neuron by neuron; τ is the running mean."""
    out = torch.zeros_like(z_seq)
    for i in range(NEURONS):
        v, total, count, last, mean = 0.0, 0, 0, 0, Fraction(0)
        for t in range(len(z_seq)):
            v += z_seq[t, 0, i].item()
            emitted = int(max(0, min(gamma, v // theta)))
            v -= theta * emitted
            if emitted > 0:
                count += 1
                mean = ((t - last) + mean * (count - 1)) / count
                last = t
            if t - last > mean + allowance and total > 0:
                emitted -= 1
            total += emitted
            out[t, 0, i] = theta * emitted
    return out


@torch.no_grad()
def run(z_seq, *args, **options):
    return SpikeCalibratedNode(*args, **options, step_mode="m").double()(z_seq)


@given(sequences, thresholds, gammas, allowances)
def test_equals_the_rule(z_seq, theta, gamma, allowance):
    y = run(z_seq, theta, gamma, allowance=allowance)
    assert torch.equal(y, slow(z_seq, theta, gamma, allowance))


def test_equals_the_rule_where_much_is_taken_back():
    z = torch.randint(-40, 40, (200, 1, NEURONS), dtype=torch.float64) / 64
    z[:6] += 1
    y = run(z, 0.25, 4, allowance=3)
    assert torch.equal(y, slow(z, 0.25, 4, 3))
    assert (y < 0).sum() > 20


@given(sequences, thresholds, gammas, allowances)
def test_never_takes_back_more_than_was_sent(z_seq, theta, gamma, allowance):
    assert (run(z_seq, theta, gamma, allowance=allowance).cumsum(0) >= 0).all()


@given(sequences, thresholds, gammas, allowances)
def test_charge_is_lost_by_what_is_taken_back(z_seq, theta, gamma, allowance):
    """The membrane is that of the burst neuron, to which nothing is paid back."""
    node = SpikeCalibratedNode(theta, gamma, allowance=allowance, step_mode="m").double()
    burst = BurstIFNode(theta, gamma, step_mode="m").double()
    with torch.no_grad():
        y, plain = node(z_seq), burst(z_seq)
    assert torch.equal(node.v, burst.v)
    assert torch.equal(y, torch.where(y < 0, -theta, plain))


@given(sequences, thresholds, gammas, st.integers(0, 30))
def test_is_the_burst_neuron_up_to_step_allowance_plus_one(z_seq, theta, gamma, allowance):
    with torch.no_grad():
        plain = BurstIFNode(theta, gamma, step_mode="m").double()(z_seq)
    early = slice(allowance + 1)
    assert torch.equal(run(z_seq, theta, gamma, allowance=allowance)[early], plain[early])


@pytest.mark.parametrize("allowance", [0, 3, 64])
def test_acts_at_step_allowance_plus_two_until_nothing_is_left(allowance):
    z = torch.zeros(allowance + 8, 1, 1, dtype=torch.float64)
    z[0] = 3 * 0.5
    y = run(z, 0.5, 5, allowance=allowance).flatten().tolist()
    expected = [1.5, *[0.0] * allowance, -0.5, -0.5, -0.5]
    assert y == expected + [0.0] * (len(y) - len(expected))


def test_the_mean_interval_counts_the_first_latency_and_steps_not_spikes():
    z = torch.zeros(20, 1, 1)
    z[4], z[6] = 3.0, 1.0  # steps with spikes: t = 4 and 6, so τ = (4 + 2) / 2 = 3
    y = run(z.double(), 1.0, 5, allowance=2).flatten()
    assert y.nonzero().flatten().tolist() == [4, 6, 12, 13, 14, 15]  # t − 6 > 3 + 2


@given(sequences, thresholds, gammas, allowances, st.integers(1, 5))
def test_steps_and_chunks_give_the_same(z_seq, theta, gamma, allowance, chunk):
    whole = run(z_seq, theta, gamma, allowance=allowance)
    node = SpikeCalibratedNode(theta, gamma, allowance=allowance).double()
    with torch.no_grad():
        assert torch.equal(torch.stack([node(z) for z in z_seq]), whole)
        functional.reset_net(node)
        node.step_mode = "m"
        assert torch.equal(torch.cat([node(part) for part in z_seq.split(chunk)]), whole)
        functional.reset_net(node)
        node.store_v_seq = True
        assert torch.equal(node(z_seq), whole)
        assert torch.equal(node.v_seq[-1], node.v)


@torch.no_grad()
def test_in_a_network_samples_leave_and_spikes_are_counted(convert):
    x = torch.rand(6, 2, 8, 8)
    snn = convert(
        vgg(), [x], inactivated_spikes="spike_calibration", allowance=0, max_spikes=2, time_steps=6
    )
    trains = {name: [] for name in snn.neurons()}
    handles = [
        node.register_forward_hook(
            lambda node, _, y, name=name: trains[name].append(
                (y / node.threshold.view(-1, *[1] * (y.dim() - 2))).round()
            )
        )
        for name, node in snn.neurons().items()
    ]
    functional.reset_net(snn)
    functional.set_step_mode(snn, "s")
    expected = torch.stack([snn(x) for _ in range(6)])
    for handle in handles:
        handle.remove()
    assert all(any((n < 0).any() for n in train) for train in trains.values())
    assert torch.allclose(snn.run(x, 6), expected, atol=1e-5)
    shown, some = snn.present(x), torch.arange(6) % 2 == 0
    shown.run(2)
    shown.keep(some)
    assert torch.allclose(shown.run(4), expected[2:, some], atol=1e-5)
    for chunk in (1, 4, 6):
        result = simulate(snn, [x], 6, chunk=chunk, progress=False)
        for name, train in trains.items():
            count = torch.stack([n.abs().sum() for n in train]) / len(x)
            assert torch.allclose(result.spikes[name].float(), count, rtol=1e-4), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays(dtype):
    z = torch.zeros(5, 2, 3, dtype=dtype)
    z[0] = 1.5
    node = SpikeCalibratedNode(torch.full((3,), 0.5), 4, allowance=0, step_mode="m").to(dtype)
    with torch.no_grad():
        y = node(z)
    assert y.dtype == dtype
    assert y[:, 0, 0].tolist() == [1.5, -0.5, -0.5, -0.5, 0.0]


def test_gradients_flow_through_the_spikes():
    z = torch.rand(6, 2, 3).requires_grad_()
    SpikeCalibratedNode(0.5, 2, allowance=0, step_mode="m")(z).sum().backward()
    assert z.grad.abs().sum() > 0


def test_a_negative_allowance_is_refused():
    with pytest.raises(ValueError, match="allowance must be at least 0 time steps, got -1"):
        SpikeCalibratedNode(allowance=-1)
