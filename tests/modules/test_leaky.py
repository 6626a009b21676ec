"""The burst neuron with a negative slope: LeakyReLU and PReLU by one neuron."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spikingjelly.activation_based import functional, surrogate
from torch import nn

from sj_burst import BurstIFNode
from sj_burst.functional import burst_step

# Multiples of powers of two keep every sum exact, so that identities hold to the last bit.
thresholds = st.integers(1, 128).map(lambda k: k / 32)
slopes = st.integers(-32, 32).map(lambda k: k / 16)
gammas = st.sampled_from([1, 2, 4, math.inf])
sequences = st.lists(
    st.lists(st.integers(-256, 256).map(lambda k: k / 64), min_size=3, max_size=3),
    min_size=1,
    max_size=8,
).map(lambda rows: torch.tensor(rows, dtype=torch.float64).unsqueeze(1))


def leaky(theta, gamma, slope, **options) -> BurstIFNode:
    start = theta / 2
    return BurstIFNode(theta, gamma, start, step_mode="m", negative_slope=slope, **options).double()


def slow(currents, theta, gamma, slope):
    """The equations, for one neuron; outputs, membrane potential and total."""
    v, total, out = theta / 2, 0, []
    for z in currents:
        n = max(min(math.floor((v + z) / theta), gamma), -gamma)
        v += z - theta * n
        before, total = total, total + n
        f = [theta * s if s >= 0 else slope * theta * s for s in (before, total)]
        out.append(f[1] - f[0])
    return out, v, total


@given(sequences, thresholds, gammas, slopes)
def test_equals_the_equations(z_seq, theta, gamma, slope):
    node = leaky(theta, gamma, slope)
    with torch.no_grad():
        y = node(z_seq)
    for i in range(3):
        out, v, total = slow(z_seq[:, 0, i].tolist(), theta, gamma, slope)
        assert y[:, 0, i].tolist() == out
        assert node.v[0, i].item() == v and node.sent[0, i].item() == total


@given(sequences, thresholds, gammas, slopes)
def test_charge_is_conserved_at_every_step(z_seq, theta, gamma, slope):
    node, totals = leaky(theta, gamma, slope), []
    with torch.no_grad():
        for z in z_seq:
            node(z.unsqueeze(0))
            totals.append((node.sent, node.v))
    for charge, (sent, v) in zip(z_seq.cumsum(0), totals, strict=True):
        assert torch.equal(charge, theta * sent + v - theta / 2)


@given(
    st.integers(-512, 512), thresholds, st.integers(0, 63), st.integers(1, 12), st.integers(1, 4), slopes
)
def test_transfer_function(k, theta, fraction, steps, gamma, slope):
    """Σ y = f(clip(⌊(zT + v0)/θ⌋, −ΓT, ΓT)) for any 0 ≤ v0 < θ, beyond saturation too."""
    z, v = k / 64, theta * fraction / 64
    node = BurstIFNode(theta, gamma, v, step_mode="m", negative_slope=slope).double()
    with torch.no_grad():
        total = node(torch.full((steps, 1, 1), z, dtype=torch.float64)).sum().item()
    count = min(max(math.floor((z * steps + v) / theta), -gamma * steps), gamma * steps)
    assert total == theta * count * (1 if count >= 0 else slope)


@given(sequences, thresholds, slopes)
def test_equals_two_neurons_in_the_limit(z_seq, theta, slope):
    """relu(x) − a·relu(−x) by two signed neurons: both err by one count at most, so by O(1/T)."""
    x, steps = z_seq[-1], 64
    rates = []
    with torch.no_grad():
        for node, current in (
            (leaky(theta, math.inf, slope), x),
            (BurstIFNode(theta, math.inf, theta / 2, signed=True, step_mode="m").double(), x),
            (BurstIFNode(theta, math.inf, theta / 2, signed=True, step_mode="m").double(), -x),
        ):
            rates.append(node(current.expand(steps, *x.shape)).mean(0))
    one, positive, negative = rates
    bound = theta / steps * max(1.0, abs(slope))
    assert ((one - (positive - slope * negative)).abs() <= bound).all()
    wanted = torch.where(x >= 0, x, slope * x)
    assert ((one - wanted).abs() <= bound / 2).all()


@given(sequences, thresholds)
def test_slope_one_passes_the_sign_and_slope_zero_is_a_relu_of_the_total(z_seq, theta):
    with torch.no_grad():
        node = leaky(theta, 3, 1.0)
        assert torch.equal(node(z_seq).sum(0), theta * node.sent)
        node = leaky(theta, 3, 0.0)
        assert torch.equal(node(z_seq).sum(0), theta * node.sent.clamp_min(0))


@given(sequences, st.sampled_from([1, 3]), st.sampled_from(["torch", "numba"]), st.data())
def test_step_modes_and_chunks_agree_to_the_last_bit(z_seq, gamma, backend, data):
    if backend == "numba":
        pytest.importorskip("numba")
    z_seq = z_seq + 1e-3 * torch.rand_like(z_seq)  # inexact sums on purpose
    theta, slope = torch.rand(3, dtype=torch.float64) + 0.1, torch.randn(3, dtype=torch.float64)
    node = BurstIFNode(
        theta, gamma, theta / 3, 0.01, step_mode="m", negative_slope=slope, backend=backend
    )
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


@pytest.mark.parametrize("gamma", [3, math.inf])
@pytest.mark.parametrize("mode", ["torch", "numba", "half", "single", "stored"])
def test_every_way_counts_the_spikes(mode, gamma):
    """Spikes are the changes of the total, which the output does not tell."""
    if mode == "numba":
        pytest.importorskip("numba")
    node = BurstIFNode(0.3, gamma, 0.15, negative_slope=-0.5, step_mode="m")
    node.count_spikes, node.store_v_seq = True, mode == "stored"
    node.backend = "numba" if mode == "numba" else "torch"
    node.step_mode = "s" if mode == "single" else "m"
    z_seq = torch.randn(5, 2, 4).to(torch.float16 if mode == "half" else torch.float32)
    per_step, per_neuron, before = [], torch.zeros(3, 4).double(), torch.zeros(2, 4)
    reference = BurstIFNode(0.3, gamma, 0.15, negative_slope=-0.5)
    found = []
    with torch.no_grad():
        for z in z_seq:
            reference(z)
            per_step.append((reference.sent - before).abs().sum().item())
            n = (reference.sent - before).abs()
            bits = torch.tensor([bin(int(k)).count("1") for k in n.flatten()]).view(2, 4)
            per_neuron += torch.stack([n, bits, (n > 0).float()]).sum(1)
            before = reference.sent
            if mode == "single":
                node(z)
                found.append(node.spike_counts)
        if mode != "single":
            node(z_seq)
            found.append(node.spike_counts)
    assert torch.cat([counts.per_step for counts in found]).tolist() == per_step
    assert torch.equal(sum(counts.per_neuron for counts in found), per_neuron)


def test_numba_equals_torch_in_the_module():
    pytest.importorskip("numba")
    outputs = []
    for backend in ("torch", "numba"):
        node = BurstIFNode(
            torch.tensor([0.3, 0.5, 0.7]),
            4,
            0.1,
            step_mode="m",
            backend=backend,
            negative_slope=torch.tensor([0.01, 0.25, -1.0]),
        )
        torch.manual_seed(0)
        with torch.no_grad():
            outputs.append(node(torch.randn(6, 2, 3, 5, 7)))
    assert torch.equal(*outputs)


def test_gradient_reaches_the_input_below_zero():
    """One step at the level −1: f' = a there, so the gradient is a times that of the mirrored neuron."""
    theta, function = torch.tensor(1.0), surrogate.ATan()
    gradients = []
    for x, sent, slope in ((-1.0, -2.0, 0.25), (1.0, 2.0, 0.25)):
        z = torch.tensor([x], dtype=torch.float64, requires_grad=True)
        options = {"sent": torch.tensor([sent]).double(), "negative_slope": torch.tensor(slope)}
        y, _, _ = burst_step(z, torch.zeros(1).double(), theta, 2, **options, surrogate=function)
        gradients.append(torch.autograd.grad(y.sum(), z)[0].item())
    steps = sum(
        torch.autograd.functional.jacobian(function, torch.tensor(-1.0 - k).double()).item()
        for k in range(-1, 3)
    )
    assert gradients[0] == pytest.approx(0.25 * steps, rel=1e-6)
    assert gradients[1] > gradients[0] > 0


def test_trains_on_any_backend(monkeypatch):
    x = torch.randn(3, 2, 4)
    grads = []
    for backend in ("torch", "auto"):
        node = BurstIFNode(0.5, 2, 0.25, step_mode="m", backend=backend, negative_slope=0.1)
        z = x.clone().requires_grad_()
        node(z).square().sum().backward()
        grads.append(z.grad)
    assert torch.equal(*grads) and grads[0].any()


def test_the_slope_follows_the_module():
    node = BurstIFNode(torch.ones(3), 4, negative_slope=torch.tensor([0.1, 0.2, 0.3]))
    assert node.signed and node.double().negative_slope.dtype == torch.float64
    assert "negative_slope=(3,) in [0.1, 0.3]" in repr(node) and "signed" not in repr(node)
    other = BurstIFNode(torch.ones(3), 4, negative_slope=torch.zeros(3))
    other.load_state_dict(node.state_dict())
    assert torch.equal(other.negative_slope, node.negative_slope.float())
    assert "negative_slope" not in BurstIFNode().state_dict()


def test_errors():
    with pytest.raises(ValueError, match="negative_slope must be finite"):
        BurstIFNode(negative_slope=math.nan)
    with pytest.raises(ValueError, match="slopes for 2 channels"):
        BurstIFNode(negative_slope=torch.ones(2))(torch.zeros(1, 3, 4))
    with pytest.raises(ValueError, match="give sent"):
        z = torch.zeros(2, 1)
        burst_step(z, z, torch.tensor(1.0), negative_slope=torch.tensor(0.1))


def test_it_is_what_leaky_relu_computes():
    x = torch.randn(4, 3, 5, 5).double()
    prelu = nn.PReLU(3).double()
    prelu.weight.data = torch.tensor([0.0, 0.25, 1.5]).double()
    node = leaky(1.0, 8, prelu.weight.detach())
    with torch.no_grad():
        rate = node(x.expand(4096, *x.shape)).mean(0)
        assert (rate - prelu(x)).abs().max() < 1e-3
