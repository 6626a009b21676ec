import copy
import math

import pytest
import torch
from torch import nn

from sj_burst.training.rate_loss import rate_inference_loss
from sj_burst.training.rate_measure import evaluate_rates, record_rates
from sj_burst.training.rate_norm import rate_norms, share_scale
from sj_burst.training.scale_stage import _student, train_threshold_scale
from sj_burst.training.weight_stage import train_rates
from tests.training.networks import labelled_loader, rate_norm_mlp


@pytest.mark.parametrize("lam", [0.0, 0.1])
@pytest.mark.parametrize("shared", [True, False])
def test_gradients_of_the_scales_against_finite_differences(lam, shared):
    net = rate_norm_mlp().double()
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


@pytest.mark.parametrize("shared", [True, False])
def test_stage_two_lowers_omega_and_changes_the_scales_only(shared):
    model = share_scale(
        train_rates(rate_norm_mlp(), labelled_loader(), epochs=6, lr=0.05, progress=False)
    )
    options = dict(epochs=6, lr=1.0, lam=1.0, share_scale=shared, progress=False)
    data = labelled_loader()
    found = train_threshold_scale(model, model, data, data, acc_tolerance=1.0, **options)
    omegas = [c.omega for c in found]
    assert omegas == sorted(omegas, reverse=True)
    assert [c.accuracy for c in found] == sorted((c.accuracy for c in found), reverse=True)
    assert min(omegas) < 0.9 * evaluate_omega(model)
    for candidate in found:
        for name, value in candidate.state_dict.items():
            if not name.endswith("scale_logit"):
                assert torch.equal(value, model.state_dict()[name])
        net = rate_norm_mlp(seed=5)
        net.load_state_dict(candidate.state_dict)
        accuracy, omegas = evaluate_rates(net.eval(), labelled_loader())
        assert accuracy == pytest.approx(candidate.accuracy)
        assert sum(omegas) / len(omegas) == pytest.approx(candidate.omega)
        scales = [m.scale_logit.item() for m in rate_norms(net).values()]
        assert (len(set(scales)) == 1) or not shared


def evaluate_omega(model):
    omegas = evaluate_rates(model, labelled_loader())[1]
    return sum(omegas) / len(omegas)


def test_it_stops_when_too_much_accuracy_is_lost():
    model = train_rates(rate_norm_mlp(), labelled_loader(), epochs=6, lr=0.05, progress=False)
    seen = []

    class Writer:
        def add_scalar(self, tag, value, step):
            if tag == "stage2/accuracy":
                seen.append(value)

    options = dict(epochs=30, lr=3.0, lam=1.0, acc_tolerance=0.05, writer=Writer(), progress=False)
    train_threshold_scale(model, model, labelled_loader(), labelled_loader(), **options)
    assert len(seen) < 31
    assert seen[-1] < max(seen) - 0.05
    assert all(value >= max(seen) - 0.05 for value in seen[:-1])


def test_the_learning_rate_falls_to_a_tenth_along_a_cosine(learning_rates):
    net, data = rate_norm_mlp(), labelled_loader(32)
    options = dict(epochs=5, lr=0.02, acc_tolerance=1.0, progress=False)
    train_threshold_scale(net, net, data, data, **options)
    expected = [0.02 * (0.1 + 0.45 * (1 + math.cos(math.pi * epoch / 5))) for epoch in range(5)]
    assert learning_rates == pytest.approx([lr for lr in expected for _ in range(2)])


def test_training_labels_may_be_unknown_but_not_those_of_validation():
    net, data = rate_norm_mlp(), labelled_loader(32)
    none = [(x, torch.full_like(y, -100)) for x, y in data]
    assert train_threshold_scale(net, net, none, data, epochs=1, progress=False)
    with pytest.raises(ValueError, match="no label that val_loader yields is of a class"):
        train_threshold_scale(net, net, data, none, epochs=1, progress=False)


def test_bad_arguments():
    net, data = rate_norm_mlp(), labelled_loader()
    with pytest.raises(ValueError, match="lam"):
        train_threshold_scale(net, net, data, data, lam=-1)
    with pytest.raises(ValueError, match="no RateNorm"):
        train_threshold_scale(nn.Linear(6, 3), net, data, data)
    with pytest.raises(TypeError, match="teacher must be a network"):
        train_threshold_scale(net, None, data, data)
