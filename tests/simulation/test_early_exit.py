import pytest
import torch
from spikingjelly.activation_based import ann2snn, functional
from torch import nn

from sj_burst import fit_early_exit, simulate
from sj_burst.simulation.early_exit import confidence_margin
from tests.networks import resnet, vgg

X = torch.rand(40, 2, 8, 8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def answers(snn, x, steps):
    """Margin and class after every step ``[T, N]``, one sample and one step at a time."""
    margins, classes = torch.zeros(steps, len(x)), torch.zeros(steps, len(x), dtype=torch.long)
    for i in range(len(x)):
        functional.reset_net(snn)
        total = 0
        for t in range(steps):
            total = total + snn(x[i : i + 1])
            first, second = (total / (t + 1)).softmax(1).sort(descending=True).values[0, :2]
            margins[t, i], classes[t, i] = first - second, total.argmax()
    functional.reset_net(snn)
    return margins, classes


def between(margins):
    """A margin amid these, and near none of them: rounding errors let no sample exit elsewhere."""
    ordered = margins.flatten().sort().values
    part = ordered[len(ordered) // 3 : 2 * len(ordered) // 3]
    gap = part.diff().argmax()
    return part[gap : gap + 2].mean().item()


def slow_exits(margins, classes, target, margin):
    steps, exits, hits = len(margins), [], torch.zeros(len(margins))
    for i in range(margins.shape[1]):
        left = next((t for t in range(steps) if margins[t, i] >= margin), steps - 1)
        exits.append(left + 1)
        for t in range(steps):
            hits[t] += (classes[min(t, left), i] == target[i]).item()
    return exits, hits / margins.shape[1]


@pytest.mark.parametrize("options", [{}, {"max_pool": "gated"}, {"inactivated_spikes": "allow"}])
def test_exits_equal_a_slow_loop(convert, options):
    snn = convert(vgg(), [X], time_steps=4, **options)
    margins, classes = answers(snn, X, 6)
    target = classes[-1].clone()
    target[::3] = 0
    middle = between(margins[:3])
    exits, hits = slow_exits(margins, classes, target, middle)
    data = [(X[:17], target[:17]), (X[17:], target[17:])]
    result = simulate(snn, data, 6, early_exit=middle, progress=False)
    assert result.exit_steps.tolist() == exits and len(set(exits)) > 1
    assert torch.allclose(result.accuracy, hits)
    assert result.average_steps == pytest.approx(sum(exits) / len(exits))


def test_who_left_fires_no_more(convert):
    snn = convert(vgg(), [X])
    whole = simulate(snn, [X], 6, progress=False)
    early = simulate(snn, [X], 6, early_exit=0.0, progress=False)  # everyone leaves after one step
    assert (early.exit_steps == 1).all()
    for name, spikes in early.spikes.items():
        assert spikes[0] == pytest.approx(whole.spikes[name][0].item(), rel=1e-4)
        assert not spikes[1:].any()
    never = simulate(snn, [X], 6, early_exit=1.0, progress=False)
    assert torch.equal(never.exit_steps, torch.full((40,), 6))
    assert torch.allclose(never.output, whole.output, atol=1e-6)


@pytest.mark.parametrize("coding", ["direct", "rate", "compensated"])
def test_presentation_goes_on_with_those_kept(convert, coding):
    ann = resnet()
    x = torch.randn(9, 3, 8, 8)
    snn = convert(ann, [x], coding=coding, time_steps=5)
    with torch.no_grad():
        expected = snn.run(x, 5)
        functional.reset_net(snn)
        shown = snn.present(x)
        first = shown.run(2)
        stay = torch.arange(9) % 2 == 0
        shown.keep(stay)
        rest = torch.cat([shown.run(1), shown.run(2)])
    assert torch.allclose(first, expected[:2], atol=1e-5)
    assert torch.allclose(rest, expected[2:, stay], atol=1e-5)


def test_sizes_follow_who_is_kept(convert):
    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x):
            rows = x.size(0)
            return self.last(torch.relu(self.first(x)).view(rows, -1))

    x = torch.randn(6, 4)
    snn = convert(Sized(), [x])
    with torch.no_grad():
        expected = snn.run(x, 3)
        functional.reset_net(snn)
        shown = snn.present(x)
        shown.run(1)
        shown.keep(torch.tensor([True] * 4 + [False] * 2))
        assert torch.allclose(shown.run(2), expected[1:, :4], atol=1e-6)


def test_the_fitted_margin_is_the_smallest_safe_one(convert):
    snn = convert(vgg(), [X], time_steps=4)
    margins, classes = answers(snn, X, 8)
    data = [(X[:25], classes[-1, :25]), (X[25:], classes[-1, 25:])]
    margin = fit_early_exit(snn, data, 8, max_loss=5.0)

    def loss(m):
        return 100 * (1 - slow_exits(margins, classes, classes[-1], m)[1][-1].item())

    assert loss(margin) <= 5.0 + 1e-4
    assert margin == 0 or loss(margin - 1 / 400) > 5.0
    assert all(loss(m) <= 5.0 + 1e-4 for m in torch.linspace(margin + 1e-5, 1, 40).tolist())


def test_bad_arguments(convert):
    snn = convert(vgg(), [X])
    with pytest.raises(ValueError, match=r"early_exit must be a plain.* in \[0, 1\].*got 2"):
        simulate(snn, [X], 4, early_exit=2.0)
    rate_coding = ann2snn.Converter(ann2snn.RateCodingRecipe([(X, X)])).convert(vgg())
    with pytest.raises(ValueError, match="early_exit needs a network converted with BurstRecipe"):
        simulate(rate_coding, [X], 4, early_exit=0.5)
    with pytest.raises(ValueError, match="class label"):
        fit_early_exit(snn, [X], 4)
    for target in (torch.zeros(len(X), 1).long(), [0] * len(X), torch.zeros(len(X))):
        with pytest.raises(ValueError, match="class label"):
            fit_early_exit(snn, [(X, target)], 4)
    with pytest.raises(ValueError, match="time_steps must be an integer ≥ 1, got 0"):
        fit_early_exit(snn, [X], 0)
    with pytest.raises(TypeError, match="converted by BurstRecipe, got Sequential"):
        fit_early_exit(vgg(), [X], 4)
    with pytest.raises(ValueError, match="max_loss"):
        fit_early_exit(snn, [X], 4, max_loss=-1)
    with pytest.raises(ValueError, match="leave early_exit out"):
        confidence_margin(torch.zeros(3, 4, 4))
