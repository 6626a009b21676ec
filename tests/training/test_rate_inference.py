import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sj_burst.training.rate_inference import (
    Candidate,
    _student,
    evaluate_rates,
    non_dominated,
    omega,
    rate_inference_loss,
    record_rates,
    train_rates,
    train_threshold_scale,
)
from sj_burst.training.rate_norm import RateNorm, rate_norms, share_scale


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Linear(6, 16), nn.BatchNorm1d(16), RateNorm()),
        *(nn.Linear(16, 16), RateNorm(), nn.Linear(16, 3)),
    )


def loader(samples=96, generator=None):
    torch.manual_seed(1)
    x = torch.randn(samples, 6)
    y = (x[:, :3] + 0.3 * x[:, 3:]).argmax(1)
    return DataLoader(TensorDataset(x, y), 16, shuffle=True, generator=generator)


def plain_loss(teacher, student, rates, lam):
    """The loss in plain Python."""
    agreement = 0.0
    for t, s in zip(teacher, student, strict=True):
        dot = sum(a * b for a, b in zip(t, s, strict=True))
        agreement += dot / math.sqrt(sum(a * a for a in t) * sum(b * b for b in s)) / len(teacher)
    last = [[max(v, 0.0) / max(*row, 1e-5) for v in row] for row in student]
    omegas = []
    for layer in [*rates, last]:
        values = [v for row in layer for v in row]
        omegas.append(sum(values) / (sum(v * v for v in values) + 1e-5))
    return 1 - agreement + lam * sum(omegas) / len(omegas)


def test_the_loss_against_plain_python():
    teacher, student = torch.randn(2, 4, 3, dtype=torch.float64)
    rates = [torch.rand(4, 5, dtype=torch.float64), torch.rand(4, 2, dtype=torch.float64)]
    expected = plain_loss(teacher.tolist(), student.tolist(), [r.tolist() for r in rates], 0.3)
    assert rate_inference_loss(student, teacher, rates, 0.3).item() == pytest.approx(expected)


def test_gradients_of_the_loss_against_finite_differences():
    teacher = torch.randn(4, 3, dtype=torch.float64)
    student = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    rates = torch.rand(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda o, r: rate_inference_loss(o, teacher, [r]), (student, rates))


@pytest.mark.parametrize("lam", [0.0, 0.1])
@pytest.mark.parametrize("shared", [True, False])
def test_gradients_of_the_scales_against_finite_differences(lam, shared):
    net = network().double()
    x = torch.randn(8, 6, dtype=torch.float64)
    net.train()(x)
    teacher = copy.deepcopy(net).eval()(x).detach()
    student, scales = _student(net, shared)
    with torch.no_grad():
        for scale in scales:
            scale.fill_(-0.5)
    assert len(scales) == (1 if shared else 2)

    def loss():
        with record_rates(student) as rates:
            return rate_inference_loss(student(x), teacher, rates, lam)

    gradients = torch.autograd.grad(loss(), scales)
    for scale, gradient in zip(scales, gradients, strict=True):
        values = []
        for shift in (1e-6, -1e-6):
            with torch.no_grad():
                scale.add_(shift)
                values.append(loss().item())
                scale.sub_(shift)
        assert gradient.item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)
        if lam == 0:  # the frozen teacher alone: the gradient would vanish without it
            assert abs(gradient.item()) > 1e-4


def test_rates_are_outputs_over_thresholds():
    net = network().eval()
    x = torch.randn(8, 6)
    with record_rates(net) as rates:
        net(x)
    first = net[2]
    z = net[:2](x)
    assert torch.allclose(rates[0], (z.relu() / first.bound).clamp(max=1))
    assert [tuple(r.shape) for r in rates] == [(8, 16), (8, 16)]
    with record_rates(net) as rates:  # hooks are gone
        pass
    net(x)
    assert rates == []


def test_evaluation_does_not_depend_on_the_batch_size():
    net = network().eval()
    data = loader(40).dataset
    x, y = data.tensors
    accuracy, omegas = evaluate_rates(net, DataLoader(data, 7))
    with record_rates(net) as rates, torch.no_grad():
        logits = net(x)
    assert accuracy == pytest.approx((logits.argmax(1) == y).float().mean().item())
    assert omegas[:2] == pytest.approx([omega(r).item() for r in rates], rel=1e-4)


def test_non_dominated_against_brute_force():
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 6, (200, 2), generator=generator).tolist()
    candidates = [Candidate(0.1, float(a), float(o), i, {}) for i, (a, o) in enumerate(values)]
    kept = {(c.accuracy, c.omega) for c in non_dominated(candidates)}
    points = {(c.accuracy, c.omega) for c in candidates}
    expected = {p for p in points if not any(q != p and q[0] >= p[0] and q[1] <= p[1] for q in points)}
    assert kept == expected
    assert len(non_dominated(candidates)) == len(kept)


def test_stage_one_learns_and_leaves_the_model_alone():
    net = network()
    state = copy.deepcopy(net.state_dict())
    scalars = []

    class Writer:
        def add_scalar(self, *args):
            scalars.append(args)

    trained = train_rates(net, loader(), epochs=8, lr=0.1, writer=Writer(), progress=False)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert not trained.training
    assert trained[2].scale_logit == net[2].scale_logit
    assert trained[2].maximum != net[2].maximum
    assert evaluate_rates(trained, loader())[0] > 0.8
    assert [s[2] for s in scalars] == list(range(1, 9))
    assert scalars[-1][1] < scalars[0][1]


@pytest.mark.parametrize("shared", [True, False])
def test_stage_two_lowers_omega_and_changes_the_scales_only(shared):
    model = share_scale(train_rates(network(), loader(), epochs=6, lr=0.05, progress=False))
    options = dict(epochs=6, lr=1.0, lam=1.0, share_scale=shared, progress=False)
    data = loader()
    found = train_threshold_scale(model, model, data, data, acc_tolerance=1.0, **options)
    omegas = [c.omega for c in found]
    assert omegas == sorted(omegas, reverse=True)
    assert [c.accuracy for c in found] == sorted((c.accuracy for c in found), reverse=True)
    assert min(omegas) < 0.9 * evaluate_omega(model)
    for candidate in found:
        for name, value in candidate.state_dict.items():
            if not name.endswith("scale_logit"):
                assert torch.equal(value, model.state_dict()[name])
        net = network(seed=5)
        net.load_state_dict(candidate.state_dict)
        accuracy, omegas = evaluate_rates(net.eval(), loader())
        assert accuracy == pytest.approx(candidate.accuracy)
        assert sum(omegas) / len(omegas) == pytest.approx(candidate.omega)
        scales = [m.scale_logit.item() for m in rate_norms(net).values()]
        assert (len(set(scales)) == 1) or not shared


def evaluate_omega(model):
    omegas = evaluate_rates(model, loader())[1]
    return sum(omegas) / len(omegas)


def test_it_stops_when_too_much_accuracy_is_lost():
    model = train_rates(network(), loader(), epochs=6, lr=0.05, progress=False)
    seen = []

    class Writer:
        def add_scalar(self, tag, value, step):
            if tag == "stage2/accuracy":
                seen.append(value)

    options = dict(epochs=30, lr=3.0, lam=1.0, acc_tolerance=0.05, writer=Writer(), progress=False)
    train_threshold_scale(model, model, loader(), loader(), **options)
    assert len(seen) < 31
    assert seen[-1] < max(seen) - 0.05
    assert all(value >= max(seen) - 0.05 for value in seen[:-1])


class Interrupt:
    """A writer that interrupts the run the n-th time it is called."""

    def __init__(self, after):
        self.left = after

    def add_scalar(self, *_):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def resumable_stage_one(path=None, writer=None):
    generator = torch.Generator().manual_seed(3)
    data = loader(generator=generator)
    torch.manual_seed(2)
    net = nn.Sequential(nn.Dropout(0.2), *network())
    torch.manual_seed(4)
    options = dict(epochs=4, lr=0.05, checkpoint=path, writer=writer, progress=False)
    return train_rates(net, data, **options).state_dict()


def resumable_stage_two(path=None, writer=None):
    data = loader(generator=torch.Generator().manual_seed(3))
    model = train_rates(network(), loader(), epochs=2, lr=0.05, progress=False)
    torch.manual_seed(4)
    options = dict(epochs=5, lr=0.3, checkpoint=path, writer=writer, progress=False)
    found = train_threshold_scale(model, model, data, loader(), **options)
    assert found
    scales = {f"{c.name} {c.epoch}": c.state_dict["2.scale_logit"] for c in found}
    return scales


@pytest.mark.parametrize("train", [resumable_stage_one, resumable_stage_two])
@pytest.mark.parametrize("after", [1, 3, 4])
def test_an_interrupted_run_ends_as_if_it_had_not_been(train, after, tmp_path):
    path = tmp_path / "run.pt"
    expected = train()
    with pytest.raises(KeyboardInterrupt):
        train(path, Interrupt(after))
    for _ in range(2):  # the second call finds the run finished
        got = train(path)
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]


def test_foreign_checkpoints_are_refused(tmp_path):
    path = tmp_path / "run.pt"
    net, data = network(), loader()
    options = dict(checkpoint=path, progress=False)
    train_threshold_scale(net, net, data, data, epochs=1, **options)
    with pytest.raises(ValueError, match=r"lam=0.1 \(now 0.2\)"):
        train_threshold_scale(net, net, data, data, epochs=1, lam=0.2, **options)
    with pytest.raises(ValueError, match="stage=2"):
        train_rates(net, data, epochs=1, **options)
    wide = nn.Sequential(nn.Linear(6, 4), RateNorm(), nn.Linear(4, 3))
    with pytest.raises(ValueError, match="another network"):
        train_threshold_scale(wide, wide, data, data, epochs=1, **options)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged"):
        train_threshold_scale(net, net, data, data, epochs=1, **options)
    torch.save({"a": 1}, path)
    with pytest.raises(ValueError, match="not a checkpoint"):
        train_threshold_scale(net, net, data, data, epochs=1, **options)


def test_labels_of_no_class_do_not_count():
    net, (x, y) = network(), next(iter(loader()))
    y = net.eval()(x).argmax(1)
    y[:2] = -100
    assert evaluate_rates(net, [(x, y)])[0] == 1
    train_rates(net, [(x, y)], epochs=1, progress=False)
    pixels = nn.Sequential(nn.Conv2d(2, 4, 1), RateNorm(), nn.Conv2d(4, 3, 1)).eval()
    x = torch.randn(4, 2, 6, 6)
    y = pixels(x).argmax(1)
    y[:, 0] = 255
    assert evaluate_rates(pixels, [(x, y)])[0] == 1
    train_rates(pixels, [(x, y)], epochs=1, progress=False)


def test_bad_arguments():
    net, data = network(), loader()
    with pytest.raises(ValueError, match="epochs"):
        train_rates(net, data, epochs=0)
    with pytest.raises(ValueError, match="lr"):
        train_rates(net, data, lr=0.0)
    with pytest.raises(ValueError, match="lam"):
        train_threshold_scale(net, net, data, data, lam=-1)
    with pytest.raises(ValueError, match="no RateNorm"):
        train_threshold_scale(nn.Linear(6, 3), net, data, data)
    with pytest.raises(TypeError, match="labels"):
        train_rates(net, [torch.rand(4, 6)], progress=False)
    with pytest.raises(TypeError, match="only once"):
        train_rates(net, iter([]), progress=False)
    x, y = next(iter(data))
    for labels, message in ((y[:, None], "do not fit the output"), (y + 3, "network has 3 classes")):
        with pytest.raises(ValueError, match=message):
            train_rates(net, [(x, labels)], progress=False)
        with pytest.raises(ValueError, match=message):
            evaluate_rates(net, [(x, labels)])
    train_rates(net, [(x, y.int())], epochs=1, progress=False)
    with pytest.raises(ValueError, match="momentum must be a plain"):
        train_rates(net, data, momentum=2)
    with pytest.raises(TypeError, match="teacher must be a network"):
        train_threshold_scale(net, None, data, data)


def test_a_nan_loss_is_an_error():
    # Finite inputs that overflow.
    net = network()
    state = copy.deepcopy(net.state_dict())
    data = [(torch.full((4, 6), 3e38), torch.zeros(4, dtype=torch.long))]
    with pytest.raises(ValueError, match="lower lr"):
        train_rates(net, data, progress=False)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
