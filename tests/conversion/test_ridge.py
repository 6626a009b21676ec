"""The refit of an affine map against least squares, one output and one row at a time."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from sj_burst.conversion.layer import Layer
from sj_burst.conversion.ridge import refit_weights
from sj_burst.modules.neuron import BurstIFNode

RIDGE = 0.15
MODULES = {
    "linear": (lambda: nn.Linear(5, 3), (24, 5)),
    "linear on sequences": (lambda: nn.Linear(5, 3, bias=False), (6, 4, 5)),
    "strided, grouped": (lambda: nn.Conv2d(4, 6, 3, 2, 1, groups=2, bias=False), (8, 4, 5, 6)),
    "depthwise": (lambda: nn.Conv2d(3, 3, 3, padding=1, groups=3), (5, 3, 4, 4)),
    "dilated": (lambda: nn.Conv1d(4, 6, 3, padding=2, dilation=2), (8, 4, 9)),
    "padded to the same": (lambda: nn.Conv2d(4, 6, (3, 1), padding="same", dilation=2), (5, 4, 5, 5)),
    "not padded": (lambda: nn.Conv1d(4, 6, 2, padding="valid"), (8, 4, 9)),
}


def make(kind, residual):
    """An affine module, its spiking inputs, and the ANN's values, in two batches."""
    build, shape = MODULES[kind]
    module = build().double()
    if module.bias is not None:
        nn.init.normal_(module.bias, 0.0, 0.5)
    inputs = [torch.rand(shape, dtype=torch.float64), torch.rand(shape, dtype=torch.float64)[:-2]]
    with torch.no_grad():
        wanted = [module(x + 0.8 * torch.rand_like(x) - 0.3) for x in inputs]
        residuals = [torch.randn_like(w) if residual else torch.zeros(()) for w in wanted]
    targets = [(w + s).relu() for w, s in zip(wanted, residuals, strict=True)]
    return module, inputs, wanted, residuals, targets


def refit(
    module, inputs, wanted, residuals, targets, iterations, neuron=True, clipped=False, ridge=RIDGE
):
    node, device = BurstIFNode() if neuron else None, torch.device("cpu")
    layer = Layer(
        "x", node, module, list, inputs, wanted, residuals, targets, 1, device, clipped=clipped
    )
    with torch.no_grad():
        refit_weights(layer, ridge, iterations)


def seen_by(module, x, channel, place):
    """Inputs of one output of one sample ``x``, zeros where it looks beyond the edge."""
    if isinstance(module, nn.Linear):
        return x[place].numpy()
    per_group = module.weight.shape[0] // module.groups
    channels = module.weight.shape[1]
    first = channel // per_group * channels
    padding = module.padding
    if isinstance(padding, str):
        reach = [d * (k - 1) // 2 for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        padding = [0] * len(reach) if padding == "valid" else reach
    row = []
    for c in range(first, first + channels):
        for offset in itertools.product(*map(range, module.kernel_size)):
            at = [
                p * s + o * d - pad
                for p, s, o, d, pad in zip(
                    place, module.stride, offset, module.dilation, padding, strict=True
                )
            ]
            inside = all(0 <= i < size for i, size in zip(at, x.shape[1:], strict=True))
            row.append(x[(c, *at)].item() if inside else 0.0)
    return np.array(row)


def samples_of(values):
    return [one for batch in values for one in batch]


def rows_of(module, inputs, wanted, residuals, channel):
    """Inputs, wanted values and residuals of one output channel at all samples and places."""
    x_rows, z, s = [], [], []
    residuals = [r.expand_as(w) for r, w in zip(residuals, wanted, strict=True)]
    for x, w, r in zip(*map(samples_of, (inputs, wanted, residuals)), strict=True):
        linear = isinstance(module, nn.Linear)
        places = itertools.product(*map(range, w.shape[:-1] if linear else w.shape[1:]))
        for place in places:
            index = (*place, channel) if linear else (channel, *place)
            x_rows.append(seen_by(module, x, channel, place))
            z.append(w[index].item())
            s.append(r[index].item())
    return np.array(x_rows), np.array(z), np.array(s)


def fitted_slowly(x, z, s, old, bias, iterations, one_sided=True):
    """Weights and bias of one output after each iteration, by least squares on stacked rows.

    All iterations but the first go 1.8 times as far.
    """
    penalty = RIDGE * sum(sum(column**2) for column in x.T) / x.shape[1]
    active = z + s > 0
    stacked = np.block(
        [[x, np.ones((len(x), 1))], [np.sqrt(penalty) * np.eye(x.shape[1]), np.zeros((x.shape[1], 1))]]
    )
    weight, found = old, []
    for iteration in range(iterations):
        target = z.copy()
        if iteration and one_sided:
            for i, row in enumerate(x):
                out = row @ weight + bias
                # Inactive: to zero if it is above, and content if it is below.
                target[i] = z[i] if active[i] else out - max(out + s[i], 0.0)
        answer = np.linalg.lstsq(stacked, np.concatenate([target, np.sqrt(penalty) * old]), rcond=None)
        far = 1.8 if iteration else 1.0
        weight = weight + far * (answer[0][:-1] - weight)
        bias = bias + far * (answer[0][-1] - bias)
        found.append((weight, bias))
    return found, penalty


def loss_of(x, z, s, old, penalty, weight, bias):
    total = penalty * sum((weight - old) ** 2)
    for row, wanted, residual in zip(x, z, s, strict=True):
        out = row @ weight + bias
        total += (out - wanted) ** 2 if wanted + residual > 0 else max(out + residual, 0.0) ** 2
    return total


@pytest.mark.parametrize("kind", MODULES)
def test_what_the_read_out_clips_is_fitted_as_before_a_neuron(kind):
    """But for a larger penalty."""
    module, *values = make(kind, residual=False)
    old = module.weight, module.bias
    found = {}
    for last, clipped in ((False, False), (True, True), (True, False)):
        module.weight, module.bias = old
        ridge = RIDGE if clipped else 10 / 3 * RIDGE
        refit(module, *values, iterations=4, neuron=not last, clipped=clipped, ridge=ridge)
        found[last, clipped] = torch.cat([module.weight.flatten(), module.bias])
    assert torch.allclose(found[True, True], found[False, False], atol=1e-12)
    assert not torch.allclose(found[True, False], found[True, True])


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("kind", MODULES)
def test_each_iteration_is_a_least_squares_fit_and_lowers_the_loss(kind, residual):
    module, *values = make(kind, residual)
    old, bias = module.weight.detach().clone(), module.bias
    references = []
    for c in range(len(old)):
        x, z, s = rows_of(module, *values[:3], c)
        before = 0.0 if bias is None else bias[c].item()
        flat = old[c].flatten().numpy()
        found, penalty = fitted_slowly(x, z, s, flat, before, 4)
        references.append((x, z, s, flat, penalty, found))
    losses = []
    for iterations in (1, 2, 3, 4):
        module.weight, module.bias = nn.Parameter(old.clone()), bias
        refit(module, *values, iterations)
        total = 0.0
        for c, (x, z, s, flat, penalty, found) in enumerate(references):
            weight, shift = module.weight[c].detach().flatten().numpy(), module.bias[c].item()
            wanted, wanted_shift = found[iterations - 1]
            assert weight == pytest.approx(wanted, abs=2e-5)
            assert shift == pytest.approx(wanted_shift, abs=2e-5)
            total += loss_of(x, z, s, flat, penalty, weight, shift)
        losses.append(total)
    assert losses[0] > losses[1] > losses[2] > losses[3]
    steps = [f[i + 1][0] - f[i][0] for *_, f in references for i in range(3)]
    assert max(abs(step).max() for step in steps[2::3]) > 1e-4  # even the last is seen


@pytest.mark.parametrize("kind", ["linear", "strided, grouped"])
def test_the_last_layer_is_fitted_once(kind):
    """Nothing comes after it that would be inactive."""
    module, *values = make(kind, residual=False)
    old = module.weight.detach().clone()
    before = [0.0] * len(old) if module.bias is None else module.bias.tolist()
    refit(module, *values, 4, neuron=False)
    for c in range(len(old)):
        x, z, s = rows_of(module, *values[:3], c)
        flat = old[c].flatten().numpy()
        found, _ = fitted_slowly(x, z, s, flat, before[c], 1)
        assert module.weight[c].detach().flatten().numpy() == pytest.approx(found[0][0], abs=2e-5)
        assert module.bias[c].item() == pytest.approx(found[0][1], abs=2e-5)


@pytest.mark.parametrize(
    "module",
    [
        nn.ConvTranspose2d(4, 4, 2),
        nn.Conv3d(2, 2, 1),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        nn.Conv1d(4, 4, 2, padding="same"),
        nn.Linear(8193, 2),
    ],
)
def test_what_it_does_not_know_keeps_its_weights(module):
    before = module.weight
    refit(module, [torch.rand(1)], [torch.rand(1)], [torch.rand(1)], [torch.rand(1)], 4)
    assert module.weight is before


def test_tied_weights_are_left_to_the_other_module():
    module, *values = make("linear", residual=False)
    old = module.weight
    copy = old.detach().clone()
    refit(module, *values, 4)
    assert module.weight is not old
    assert torch.equal(old, copy)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize(("error", "kept"), [(0.5e-3, True), (2e-3, False)])
def test_a_layer_whose_current_is_right_keeps_its_weights(kind, error, kept):
    """Error relative to the variance of the current in each channel, with its residual."""
    torch.manual_seed(0)
    module, inputs, wanted, residuals, _ = make(kind, residual=True)
    channel = -1 if isinstance(module, nn.Linear) else 1
    with torch.no_grad():
        out = [module(x) for x in inputs]
        current = torch.cat([z + s for z, s in zip(out, residuals, strict=True)])
        current = (
            current.movedim(channel, 0).flatten(1) + 100 * torch.arange(module.weight.shape[0])[:, None]
        )
        variance = current.var(1, correction=0).sum() / len(current)
        noise = [torch.randn_like(z) for z in out]
        power = torch.cat(noise).square().mean()
        wanted = [z + n * (error * variance / power).sqrt() for z, n in zip(out, noise, strict=True)]
    targets = [(w + s).relu() for w, s in zip(wanted, residuals, strict=True)]
    before = module.weight.clone()
    refit(module, inputs, wanted, residuals, targets, iterations=1)
    assert torch.equal(module.weight, before) == kept
    refit(module, inputs, wanted, residuals, targets, iterations=1, neuron=False)
    assert not torch.equal(module.weight, before)
