import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spikingjelly.activation_based import functional, neuron, surrogate

from sj_burst import BurstIFNode
from sj_burst.functional import burst_multi_step

# Multiples of 1/64 keep every sum exact, so that identities hold to the last bit.
dyadic = st.integers(-256, 256).map(lambda k: k / 64)
thresholds = st.integers(1, 128).map(lambda k: k / 32)
gammas = st.sampled_from([1, 2, 4, 7, math.inf])


def sequences(low=-256):
    return st.lists(
        st.lists(st.integers(low, 256).map(lambda k: k / 64), min_size=3, max_size=3),
        min_size=1,
        max_size=8,
    ).map(lambda rows: torch.tensor(rows, dtype=torch.float64).unsqueeze(1))


def slow(z_seq, theta, gamma, v, signed):
    """The equations, neuron by neuron."""
    out = torch.zeros_like(z_seq)
    left = torch.zeros_like(z_seq[0])
    for index in torch.cartesian_prod(*(torch.arange(n) for n in z_seq.shape[1:])):
        i = tuple(index.tolist())
        m, sent = v, 0
        for t in range(len(z_seq)):
            m += z_seq[(t, *i)].item()
            n = math.floor(m / theta)
            n = max(min(n, gamma), -gamma if signed else 0)
            if signed:
                n = max(n, -sent)
            sent += n
            m -= theta * n
            out[(t, *i)] = theta * n
        left[i] = m
    return out, left


@given(sequences(), thresholds, gammas, dyadic, st.booleans())
def test_equals_the_equations(z_seq, theta, gamma, v, signed):
    node = BurstIFNode(theta, gamma, v, signed=signed, step_mode="m").double()
    with torch.no_grad():
        y = node(z_seq)
    expected, left = slow(z_seq, theta, gamma, v, signed)
    assert torch.equal(y, expected)
    assert torch.equal(node.v, left)


@given(sequences(), thresholds, gammas, dyadic, st.booleans())
def test_charge_is_conserved_at_every_step(z_seq, theta, gamma, v, signed):
    node = BurstIFNode(theta, gamma, v, signed=signed, step_mode="m", store_v_seq=True).double()
    with torch.no_grad():
        y = node(z_seq)
    assert torch.equal(z_seq.cumsum(0), y.cumsum(0) + node.v_seq - v)


@given(st.integers(0, 256), thresholds, st.integers(0, 63), st.integers(1, 12), gammas)
def test_constant_input_count(k, theta, fraction, steps, gamma):
    z, v = k / 64, theta * fraction / 64
    node = BurstIFNode(theta, gamma, v, step_mode="m").double()
    with torch.no_grad():
        count = (node(torch.full((steps, 1, 1), z, dtype=torch.float64)) / theta).sum().item()
    for t in range(1, steps + 1):
        if gamma != math.inf and z * t + v > gamma * t * theta:
            return  # the closed form holds for unsaturated input only
    assert count == math.floor((z * steps + v) / theta)


@given(sequences(), thresholds)
def test_one_spike_is_spikingjellys_if_node(z_seq, theta):
    ours = BurstIFNode(theta, 1, step_mode="m").double()
    theirs = neuron.IFNode(theta, None, step_mode="m")
    with torch.no_grad():
        assert torch.equal(ours(z_seq), theta * theirs(z_seq))


@given(sequences(), st.sampled_from([1, 3]), st.booleans(), st.data())
def test_step_modes_and_chunks_agree_to_the_last_bit(z_seq, gamma, signed, data):
    z_seq = z_seq + 1e-3 * torch.rand_like(z_seq)  # inexact sums on purpose
    theta = torch.rand(3, dtype=torch.float64) + 0.1
    node = BurstIFNode(theta, gamma, theta / 3, 0.01, signed, step_mode="m")
    with torch.no_grad():
        whole = node(z_seq)
        functional.reset_net(node)
        cut = data.draw(st.integers(0, len(z_seq)))
        parts = [node(part) for part in (z_seq[:cut], z_seq[cut:]) if len(part)]
        functional.reset_net(node)
        node.step_mode = "s"
        steps = torch.stack([node(z) for z in z_seq])
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(whole, steps)


@given(sequences(), thresholds, st.sampled_from([1, 4]))
def test_signed_spikes_never_take_back_more_than_was_sent(z_seq, theta, gamma):
    node = BurstIFNode(theta, gamma, theta / 2, signed=True, step_mode="m").double()
    with torch.no_grad():
        y = node(z_seq)
    assert (y.cumsum(0) >= 0).all()


def test_channels_broadcast_over_space():
    theta = torch.tensor([0.5, 1.0, 2.0])
    node = BurstIFNode(theta, 4, theta / 2)
    x = torch.rand(2, 3, 4, 5) * 3
    with torch.no_grad():
        y = node(x)
    for c in range(3):
        alone = BurstIFNode(theta[c], 4, theta[c] / 2)
        with torch.no_grad():
            assert torch.equal(y[:, c], alone(x[:, c]))


def test_gradient_is_spikingjellys_at_one_spike():
    x = torch.randn(5, 2, 3)
    grads = []
    for node in (
        BurstIFNode(1.0, 1, surrogate_function=surrogate.ATan(), step_mode="m"),
        neuron.IFNode(1.0, None, surrogate.ATan(), step_mode="m"),
    ):
        z = x.clone().requires_grad_()
        node(z).square().sum().backward()
        grads.append(z.grad)
    assert torch.allclose(*grads, atol=1e-6)


@pytest.mark.parametrize("signed", [False, True])
def test_gradient_is_the_sum_of_shifted_surrogates(signed):
    theta, gamma = 0.5, 3
    alpha = 4.0
    x = torch.linspace(-2, 2.3, 41)
    z = x.clone().requires_grad_()
    node = BurstIFNode(theta, gamma, signed=signed)
    y = node(z.unsqueeze(0))
    y.sum().backward()
    levels = range(-gamma + 1 if signed else 1, gamma + 1)
    s = [torch.sigmoid(alpha * (x / theta - k)) for k in levels]
    expected = sum(alpha * p * (1 - p) for p in s)
    if signed:  # nothing was sent: what is below zero is cut
        expected = torch.where(x < 0, 0, expected)
    assert torch.allclose(z.grad, expected, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(y, BurstIFNode(theta, gamma, signed=signed)(x.unsqueeze(0)))


def test_threshold_learns():
    node = BurstIFNode(1.0, 2, step_mode="m")
    node.threshold.requires_grad_()
    node(torch.rand(4, 2, 3)).sum().backward()
    assert node.threshold.grad.abs() > 0


def test_buffers_follow_the_state_dict_and_reset_keeps_them():
    node = BurstIFNode(torch.tensor([1.0, 2.0]), 2, torch.tensor([0.5, 1.0]), 0.1)
    assert set(node.state_dict()) == {"threshold", "v_init", "shift"}
    with torch.no_grad():
        first = node(torch.ones(3, 2))
        functional.reset_net(node)
        assert torch.equal(first, node(torch.ones(3, 2)))


def test_new_shape_without_reset_is_refused():
    node = BurstIFNode()
    node(torch.rand(2, 3))
    with pytest.raises(ValueError, match="reset_net"):
        node(torch.rand(4, 3))
    functional.reset_net(node)
    node(torch.rand(4, 3))


@pytest.mark.parametrize("gamma", [0, -1, 1.5, math.nan])
def test_bad_gamma(gamma):
    with pytest.raises(ValueError, match=r"max_spikes must be an integer ≥ 1"):
        BurstIFNode(max_spikes=gamma)


@pytest.mark.parametrize("gamma", [2**24 + 1, 1e300, 10**400])
def test_counts_beyond_single_precision(gamma):
    with pytest.raises(ValueError, match="max_spikes must be at most 16777216"):
        BurstIFNode(max_spikes=gamma)


@pytest.mark.parametrize("theta", [0.0, -1.0, math.nan, math.inf])
def test_bad_threshold(theta):
    with pytest.raises(ValueError, match="threshold must be positive"):
        BurstIFNode(torch.tensor([1.0, theta]))


def test_infinite_gamma_has_no_surrogate():
    node = BurstIFNode(max_spikes=math.inf)
    with pytest.raises(ValueError, match="give max_spikes less"):
        node(torch.rand(1, 2, requires_grad=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_potential_in_single_precision(dtype):
    """Both step modes fire as a neuron in single precision does, and round what they emit."""
    theta, z = torch.tensor(0.33).to(dtype), torch.rand(300, 1, 50).to(dtype)
    exact, _, _ = burst_multi_step(z.float(), torch.zeros(1, 50), theta.float(), 3)
    for backend in ("torch", "auto"):
        node = BurstIFNode(theta, 3, step_mode="m", backend=backend)
        with torch.no_grad():
            whole = node(z)
            node.reset()
            node.step_mode = "s"
            single = torch.stack([node(x) for x in z])
        assert torch.equal(whole, exact.to(dtype)) and torch.equal(single, whole)


def test_not_a_number_stays_one_with_gradients_too():
    z = torch.tensor([[[float("nan"), 1.0]]], requires_grad=True)
    out = BurstIFNode(threshold=0.5, max_spikes=4, step_mode="m")(z)
    assert out.isnan().tolist() == [[[True, False]]]


def test_so_many_levels_have_no_gradient():
    node = BurstIFNode(threshold=0.5, max_spikes=1025, step_mode="m")
    with pytest.raises(ValueError, match=r"max_spikes=1025 .* torch\.no_grad"):
        node(torch.ones(1, 1, 1, requires_grad=True))


@pytest.mark.parametrize("options", [{}, {"signed": True}, {"negative_slope": 0.1}])
def test_parameters_of_higher_precision_do_not_part_the_step_modes(options):
    theta = torch.linspace(0.3, 1, 64, dtype=torch.float64)
    z_seq = torch.rand(200, 4, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        single = BurstIFNode(theta, 4, **options)
        many = BurstIFNode(theta, 4, step_mode="m", **options)
        assert torch.equal(torch.stack([single(z) for z in z_seq]), many(z_seq))
    assert single.v.dtype == many.v.dtype == torch.float32


def test_currents_are_no_integers():
    with pytest.raises(TypeError, match=r"got torch.int64; use x\.float"):
        BurstIFNode(0.5, 1)(torch.ones(2, 3, dtype=torch.long))


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize(
    ("options", "shape", "what"),
    [
        ({"shift": torch.rand(3)}, (2, 1, 5, 5), "shifts for 3 channels"),
        ({"v_init": torch.rand(3)}, (2, 4, 5, 5), "initial potentials for 3 channels"),
        ({"threshold": torch.ones(3, 5, 5)}, (2, 3, 1, 1), r"thresholds of shape \[3, 5, 5\]"),
        ({"threshold": torch.ones(2, 3, 5, 5)}, (5, 5), "thresholds of shape"),
    ],
)
def test_parameters_never_widen_the_input(options, shape, what, step_mode):
    node = BurstIFNode(**{"threshold": 1.0, "max_spikes": 4, "step_mode": step_mode} | options)
    with pytest.raises(ValueError, match=what):
        node(torch.rand(*(2,) * (step_mode == "m"), *shape))


def test_small_thresholds_stay_positive_in_half_precision():
    node = BurstIFNode(1e-8, 4).half()
    assert node.threshold > 0 and node(torch.zeros(1, 2).half()).isfinite().all()
