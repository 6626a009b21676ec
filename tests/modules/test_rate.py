import math

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from sj_burst import BurstIFNode
from sj_burst.modules.rate import RateNeuron

currents = st.lists(st.integers(-512, 512).map(lambda k: k / 64), min_size=2, max_size=2)
thresholds = st.lists(st.integers(1, 128).map(lambda k: k / 32), min_size=2, max_size=2)


@given(
    currents,
    thresholds,
    st.sampled_from([1, 2, 7, math.inf]),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([None, -0.5, 0.25]),
    st.sampled_from([None, 0.125]),
)
def test_it_is_a_signed_neuron_at_a_constant_current(z, theta, gamma, steps, slope, shift):
    theta = torch.tensor(theta, dtype=torch.float64)
    shift = None if shift is None else torch.full_like(theta, shift)
    kind = dict(signed=True, negative_slope=slope, shift=shift, step_mode="m")
    neuron = BurstIFNode(theta, gamma, theta / 2, **kind)
    z = torch.tensor([z], dtype=torch.float64)
    with torch.no_grad():
        sent = neuron(z.expand(steps, 1, 2)).mean(0)
        got = RateNeuron(neuron, steps)(z)
    # A constant current is never late, nor early.
    torch.testing.assert_close(got, sent)


@given(currents, thresholds, st.sampled_from([1, 3]), st.sampled_from([1, 4]))
def test_gradients_are_those_of_the_clipped_line(z, theta, gamma, steps):
    theta = torch.tensor(theta, dtype=torch.float64)
    neuron = BurstIFNode(theta, gamma, theta / 2)
    rate = RateNeuron(neuron, steps)
    z = torch.tensor([z], dtype=torch.float64, requires_grad=True)
    rate(z).sum().backward()
    u = (z * steps / theta + 0.5).detach()
    assume(not bool(((u == 0) | (u == gamma * steps)).any()))  # there, versions of torch differ
    count = u.floor().clamp(0, gamma * steps)
    inside = (u > 0) & (u < gamma * steps)
    torch.testing.assert_close(z.grad, inside.to(z.dtype))
    torch.testing.assert_close(rate.offset.grad, theta * inside[0])
    # θ/T·count: what is cut off grows with θ; within, only the rounding does.
    wanted = theta / steps * torch.where(inside, count - (u - 0.5), count)
    torch.testing.assert_close(rate.log_scale.grad, wanted[0])


def test_it_can_be_written_back():
    neuron = BurstIFNode(torch.tensor([0.5, 2.0]), 4, v_init=torch.tensor([0.25, 0.5]), signed=True)
    rate = RateNeuron(neuron, 4)
    x = torch.rand(5, 2)
    before = neuron.threshold.clone()
    rate.write_to(neuron)
    assert torch.equal(neuron.threshold, before)
    assert neuron.shift is None
    with torch.no_grad():
        rate.log_scale += torch.tensor([0.1, -0.3])
        rate.offset += 0.05
    rate.write_to(neuron)
    assert torch.allclose(neuron.threshold, before * torch.tensor([0.1, -0.3]).exp())
    assert torch.allclose(neuron.v_init / neuron.threshold, torch.tensor([0.5, 0.25]))
    with torch.no_grad():
        again = RateNeuron(neuron, 4)(x)
        assert torch.allclose(again, rate(x), atol=1e-5)
