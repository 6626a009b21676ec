import copy
import math

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional
from torch import nn

from sj_burst import load, save
from sj_burst.modules.pooling import LIPool
from sj_burst.training.tet import _Scales, finetune, tet_loss
from tests.networks import resnet, vgg
from tests.training.networks import Interrupt

X = torch.rand(24, 2, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.randint(5, (24,), generator=torch.Generator().manual_seed(1))
DATA = [(X[:12], Y[:12]), (X[12:], Y[12:])]
QUIET = {"progress": False}


def test_the_loss_against_plain_python():
    out = torch.randn(3, 2, 4, dtype=torch.float64)
    target = torch.tensor([3, 0])
    expected = 0.0
    for step in out.tolist():
        for logits, label in zip(step, target.tolist(), strict=True):
            entropy = math.log(sum(map(math.exp, logits))) - logits[label]
            square = sum((o - 0.7) ** 2 for o in logits) / 4
            expected += (0.8 * entropy + 0.2 * square) / 6
    assert tet_loss(out, target, lam=0.2, phi=0.7).item() == pytest.approx(expected)
    out.requires_grad_()
    assert torch.autograd.gradcheck(lambda o: tet_loss(o, target), (out,))


def gradients(snn, run):
    functional.reset_net(snn)
    snn.zero_grad()
    scales = _Scales(snn).double()
    scales.apply_to_nodes()
    tet_loss(run(snn), Y[:6]).backward()
    functional.reset_net(snn)
    parameters = [*snn.parameters(), *scales.logs]
    assert all(p.grad is not None for p in parameters)
    return [p.grad.clone() for p in parameters]


@pytest.mark.parametrize("network", [vgg, resnet])
@pytest.mark.parametrize("options", [{}, {"max_pool": "gated"}, {"inactivated_spikes": "allow"}])
def test_gradients_agree_in_both_step_modes(convert, network, options):
    x = (X if network is vgg else torch.randn(6, 3, 8, 8))[:6].double()
    snn = convert(network().double(), [x], max_spikes=2, time_steps=3, **options)
    snn.requires_grad_(True)
    held = gradients(snn, lambda net: net.run(x, 3))
    steps = gradients(snn, lambda net: torch.stack([net(x) for _ in range(3)]))
    functional.set_step_mode(snn, "m")
    sequence = gradients(snn, lambda net: net(x.expand(3, *x.shape)))
    assert any(g.abs().sum() > 0 for g in held)
    for one, *others in zip(held, steps, sequence, strict=True):
        for other in others:
            assert torch.allclose(one, other, rtol=1e-6, atol=1e-12)


def unrolled(snn, x, log_theta, steps):
    """Linear, burst neuron, max-pooling, Linear, with the surrogate written out."""
    first, node, last = snn.graph.get_submodule("0"), snn.neurons()["1"], snn.graph.get_submodule("4")
    theta = node.threshold.detach() * log_theta.exp()
    v = (node.v_init.detach() * log_theta.exp()).expand(len(x), -1)
    total, outputs = torch.zeros(len(x), 8, dtype=x.dtype), []
    for _ in range(steps):
        m = v + F.linear(x, first.weight, first.bias)
        smooth = sum(torch.sigmoid(4 * (m / theta - k)) for k in (1, 2))
        count = smooth + ((m / theta).floor().clamp(0, 2) - smooth).detach()
        v = m - theta * count
        before = total.unflatten(1, (4, 2)).max(2).values
        total = total + theta * count
        outputs.append(
            F.linear(total.unflatten(1, (4, 2)).max(2).values - before, last.weight, last.bias)
        )
    return torch.stack(outputs)


def test_gradients_against_an_unrolled_network(convert):
    pool = nn.Unflatten(1, (1, 8)), nn.MaxPool1d(2)
    ann = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), *pool, nn.Linear(4, 5), nn.Flatten()).double()
    x = torch.rand(6, 3, dtype=torch.float64)
    options = dict(max_spikes=2, time_steps=3, inactivated_spikes="allow", calibration="none")
    snn = convert(ann, [x], **options).requires_grad_(True)
    assert isinstance(snn.graph.get_submodule("3"), LIPool)
    weights = [snn.graph.get_submodule(name).weight for name in ("0", "4")]
    log = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    expected = unrolled(snn, x, log, 3)
    references = torch.autograd.grad(tet_loss(expected, Y[:6]), [*weights, log])
    scales = _Scales(snn)
    scales.apply_to_nodes()
    out = snn.run(x, 3)
    assert torch.allclose(out, expected)
    got = torch.autograd.grad(tet_loss(out, Y[:6]), [*weights, scales.logs[0]])
    for reference, gradient in zip(references, got, strict=True):
        assert reference.abs().sum() > 0
        assert torch.allclose(reference, gradient, rtol=1e-6, atol=1e-12)


@torch.no_grad()
def loss_of(snn, steps=2):
    functional.reset_net(snn)
    loss = tet_loss(snn.run(X, steps), Y).item()
    functional.reset_net(snn)
    return loss


@pytest.mark.parametrize("options", [{}, {"channel_wise": False, "potential": "shift"}])
def test_it_learns_and_the_result_is_an_ordinary_network(convert, options, tmp_path):
    snn = convert(vgg(), DATA, max_spikes=1, time_steps=2, **options)
    state = copy.deepcopy(snn.state_dict())
    tuned = finetune(snn, DATA, 2, epochs=10, lr=3e-3, **QUIET)
    assert loss_of(tuned) < 0.98 * loss_of(snn)
    assert all(torch.equal(v, state[k]) for k, v in snn.state_dict().items())
    assert not tuned.training
    assert tuned.step_mode == "s"
    for before, after in zip(snn.neurons().values(), tuned.neurons().values(), strict=True):
        assert "threshold" in dict(after.named_buffers(recurse=False))
        assert not after.threshold.requires_grad
        assert (after.threshold > 0).all()
        assert not torch.equal(after.threshold, before.threshold)
        assert torch.allclose(after.v_init * before.threshold, before.v_init * after.threshold)
    save(tuned, tmp_path / "snn.pt")
    again = load(tmp_path / "snn.pt", vgg(seed=3))
    with torch.no_grad():
        assert torch.equal(tuned.run(X, 4), again.run(X, 4))


def test_thresholds_can_stay(convert):
    snn = convert(vgg(), DATA, max_spikes=1)
    tuned = finetune(snn, DATA, 2, lr=1e-2, train_thresholds=False, **QUIET)
    for before, after in zip(snn.neurons().values(), tuned.neurons().values(), strict=True):
        assert torch.equal(after.threshold, before.threshold)


def test_step_by_step_training_gives_the_same_network(convert):
    data = [(x.double(), y) for x, y in DATA]
    snn = convert(vgg().double(), data, max_spikes=2)
    functional.set_step_mode(snn, "m")
    whole, steps = (finetune(snn, data, 3, lr=1e-3, step_mode=mode, **QUIET) for mode in ("m", "s"))
    assert steps.step_mode == whole.step_mode == "m"
    for one, other in zip(whole.state_dict().values(), steps.state_dict().values(), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-8)


def test_an_interrupted_run_ends_as_if_it_had_not_been(convert, tmp_path):
    snn = convert(vgg(), DATA, max_spikes=1)
    options = dict(epochs=3, lr=1e-3, **QUIET)
    expected = finetune(snn, DATA, 2, **options).state_dict()
    path = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        finetune(snn, DATA, 2, checkpoint=path, writer=Interrupt(3), **options)
    for _ in range(2):
        got = finetune(snn, DATA, 2, checkpoint=path, **options).state_dict()
        assert all(torch.equal(got[name], expected[name]) for name in expected)


class Unsized:
    """A loader that does not know how many batches it has."""

    def __init__(self, data=DATA):
        self.data = data

    def __iter__(self):
        return iter(self.data)


@pytest.mark.parametrize("sized", [True, False])
def test_the_learning_rate_falls_to_zero_along_a_cosine(convert, sized, learning_rates, tmp_path):
    snn = convert(vgg(), DATA, max_spikes=1)
    loader, options = DATA if sized else Unsized(), dict(epochs=3, lr=1e-3, **QUIET)
    done = [epoch / 3 + (index / 6 if sized else 0) for epoch in range(3) for index in range(2)]
    expected = [1e-3 * (1 + math.cos(math.pi * share)) / 2 for share in done]
    finetune(snn, loader, 2, **options)
    assert learning_rates == pytest.approx(expected)
    del learning_rates[:]
    with pytest.raises(KeyboardInterrupt):
        finetune(snn, loader, 2, checkpoint=tmp_path / "run.pt", writer=Interrupt(2), **options)
    del learning_rates[2:]  # of the second epoch nothing was kept
    finetune(snn, loader, 2, checkpoint=tmp_path / "run.pt", **options)
    assert learning_rates == pytest.approx(expected)


def test_a_run_goes_on_with_the_network_it_was_started_from_only(convert, tmp_path):
    """Not with the thresholds of another one under the weights of the first."""
    options = dict(time_steps=2, epochs=1, checkpoint=tmp_path / "run.pt", **QUIET)
    snn = convert(vgg(), DATA, max_spikes=1, potential="half")
    finetune(snn, DATA, **options)
    names = {
        "graph.2.threshold": convert(vgg(), DATA, max_spikes=1, threshold="max"),
        "graph.2.v_init": convert(vgg(), DATA, max_spikes=1, potential="zero"),
        "graph.0.weight": convert(vgg(seed=1), DATA, max_spikes=1),
        "max_spikes": convert(vgg(), DATA, max_spikes=2),
        "architecture": convert(vgg(), DATA, max_spikes=1, max_pool="average"),
    }
    pattern = r"run.pt is of a run that was started from another network: .* differ; pass the network"
    for name, other in names.items():
        with pytest.raises(ValueError, match=pattern) as caught:
            finetune(other, DATA, **options)
        assert name in str(caught.value) or ", …" in str(caught.value)
    # One tensor that differs is named alone.
    with torch.no_grad():
        changed = copy.deepcopy(snn)
        changed.neurons()["6"].threshold.mul_(1.5)
    with pytest.raises(ValueError, match=r"another network: graph\.6\.threshold differ; pass"):
        finetune(changed, DATA, **options)
    save(snn, tmp_path / "snn.pt")
    finetune(load(tmp_path / "snn.pt", vgg(seed=5)), DATA, **options)


def test_batches_without_a_class_are_left_out(convert):
    snn = convert(vgg(), DATA, max_spikes=1)
    none = (X[:2], torch.full_like(Y[:2], -100))
    expected = finetune(snn, Unsized(), 2, **QUIET).state_dict()
    for data in ([none, *DATA], [*DATA, none]):
        got = finetune(snn, Unsized(data), 2, **QUIET).state_dict()
        assert all(torch.equal(value, got[name]) for name, value in expected.items())
    with pytest.raises(ValueError, match="no label that loader yields is of a class; nothing can be"):
        finetune(snn, [none, none], 2, **QUIET)
    half = [(X[:4], torch.tensor([-100, 1, 2, -100]))]
    tuned = finetune(snn, half, 2, **QUIET)
    assert all(value.isfinite().all() for value in tuned.state_dict().values())


def test_batches_that_are_left_out_count_in_the_schedule(convert, learning_rates):
    snn = convert(vgg(), DATA, max_spikes=1, calibration="none")
    none = (X[:2], torch.full_like(Y[:2], -100))
    finetune(snn, [DATA[0], none, none, DATA[1]], 2, lr=1e-3, **QUIET)
    expected = [1e-3 * (1 + math.cos(math.pi * share)) / 2 for share in (0, 3 / 4)]
    assert learning_rates == pytest.approx(expected)


def test_a_failure_leaves_the_network_as_it_was(convert):
    snn = convert(vgg(), DATA, max_spikes=1)
    state = copy.deepcopy(snn.state_dict())
    bad = [*DATA, (torch.full_like(X[:2], 3e38), Y[:2])]
    with pytest.raises(ValueError, match=r"gradient nan; lower lr"):
        finetune(snn, bad, 2, **QUIET)
    assert all(torch.equal(v, state[k]) for k, v in snn.state_dict().items())
    with torch.no_grad():
        snn.run(X, 2)


def test_a_last_step_too_long_is_noticed(convert):
    snn = convert(vgg(), DATA, max_spikes=1)
    with pytest.raises(ValueError, match="lower lr"):
        finetune(snn, DATA[:1], 2, lr=1e3, **QUIET)


def test_bad_arguments(convert):
    snn = convert(vgg(), DATA, threshold="max", max_spikes=math.inf)
    with pytest.raises(ValueError, match=r"max_spikes=inf of '.*'.* convert with fewer"):
        finetune(snn, DATA, 2, **QUIET)
    with pytest.raises(TypeError, match="converted by BurstRecipe"):
        finetune(vgg(), DATA, 2)
    with pytest.raises(ValueError, match="time_steps"):
        finetune(snn, DATA, 0)
    with pytest.raises(ValueError, match="step_mode"):
        finetune(snn, DATA, 2, step_mode="x")
    with pytest.raises(ValueError, match="out_seq must be"):
        tet_loss(torch.zeros(4, 5), Y[:4])
    with pytest.raises(ValueError, match="lam must be"):
        tet_loss(torch.zeros(1, 4, 5), Y[:4], lam=2)


def test_samples_of_no_class_do_not_count():
    out, other = torch.randn(2, 3, 2, 5, dtype=torch.float64)
    other[:, 0] = out[:, 0]
    target = torch.tensor([4, -100], dtype=torch.int32)
    assert tet_loss(out, target) == tet_loss(other, target) == tet_loss(out[:, :1], target[:1])


def test_the_result_is_fitted_for_the_steps_of_training(convert):
    snn = convert(vgg(), DATA, max_spikes=1, calibration="none")
    assert finetune(snn, DATA[:1], 2, **QUIET).options.time_steps == 2
