"""Every fit against a slow reference: loops over samples, channels, places and steps."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from sj_burst.conversion.fits import correct_bias, correct_potential, refit_threshold
from sj_burst.conversion.layer import Layer
from sj_burst.modules.neuron import BurstIFNode

T, GAMMA = 3, 2
FACTORS = (1.0, 0.7, 0.8, 0.9, 1.1, 1.2, 1.35)


def draw(*shape, scale=1.0):
    return scale * torch.randn(*shape, dtype=torch.float64)


def layer_of(neuron, currents, targets, affine=None, bounded=False):
    return Layer(
        name="layer",
        neuron=neuron,
        affine=affine,
        evaluate=lambda: currents,
        inputs=[],
        wanted=[],
        residuals=[],
        targets=targets,
        time_steps=T,
        device=torch.device("cpu"),
        bounded=bounded,
    )


def mean_output(currents, theta, v0, shift, signed):
    """Mean weighted output of one neuron that gets these currents, step by step."""
    v, sent, total = v0, 0, 0.0
    for z in currents:
        v += z + shift
        n = math.floor(v / theta)
        n = max(min(n, GAMMA), -GAMMA, -sent) if signed else max(min(n, GAMMA), 0)
        v, sent, total = v - n * theta, sent + n, total + n * theta
    return total / len(currents)


def outputs(current, samples, theta, v0, shift, signed):
    """Mean outputs ``[N, C, places]`` for a folded current ``[T·N, C, ...]``, or ``[N, C, ...]``."""
    z = current.reshape(len(current), current.shape[1], -1).tolist()
    channels, places = range(len(z[0])), range(len(z[0][0]))
    rows = range(len(z) // samples)
    result = np.zeros((samples, len(channels), len(places)))
    for n in range(samples):
        for c in channels:
            for p in places:
                steps = [z[t * samples + n][c][p] for t in rows]
                steps = steps * T if len(rows) == 1 else steps  # constant in time
                result[n, c, p] = mean_output(steps, theta[c], v0[c], shift[c], signed)
    return result


def mean_errors(currents, targets, theta, v0, shift, signed):
    """Mean of target minus output of every channel, over all samples and places."""
    totals, counts = np.zeros(len(theta)), np.zeros(len(theta))
    for current, a in zip(currents, targets, strict=True):
        phi = outputs(current, len(a), theta, v0, shift, signed)
        wanted = a.reshape(phi.shape).numpy()
        for n in range(phi.shape[0]):
            for c in range(phi.shape[1]):
                for p in range(phi.shape[2]):
                    totals[c] += wanted[n, c, p] - phi[n, c, p]
                    counts[c] += 1
    return totals / counts


SHAPES = {"vectors": (3,), "pictures": (3, 2, 2), "sequences": (3, 4)}


@pytest.fixture(params=SHAPES)
def data(request):
    """Currents and targets of two batches, of which the second is smaller and constant in time."""
    shape = SHAPES[request.param]
    currents = [draw(T * 6, *shape) + 0.3, draw(4, *shape) + 0.3]
    return currents, [draw(6, *shape).relu(), draw(4, *shape).relu()]


@pytest.mark.parametrize("rounds", [1, 2, 3])
@pytest.mark.parametrize("given", [None, 0.05, [0.1, -0.2, 0.3]])
def test_correct_bias(data, rounds, given):
    theta, v0 = [0.5, 0.3, 0.8], [0.25, 0.0, 0.4]
    shift = given if given is None else torch.tensor(given, dtype=torch.float64)
    neuron = BurstIFNode(torch.tensor(theta).double(), GAMMA, torch.tensor(v0).double(), shift)
    theta, v0 = neuron.threshold.tolist(), neuron.v_init.tolist()
    expected = np.broadcast_to(0.0 if given is None else given, 3).copy()
    for _ in range(rounds):
        expected += mean_errors(*data, theta, v0, expected, signed=False)
    correct_bias(layer_of(neuron, *data), rounds)
    assert neuron.shift.shape == (3,)
    assert neuron.shift.numpy() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("rounds", [1, 2, 3])
@pytest.mark.parametrize("channel_wise", [True, False])
def test_correct_potential(data, rounds, channel_wise):
    theta = [0.5, 0.25, 0.75] if channel_wise else [0.5] * 3
    threshold = torch.tensor(theta if channel_wise else theta[0]).double()
    neuron = BurstIFNode(threshold, GAMMA, threshold / 2, shift=0.05, signed=True)
    shift = [neuron.shift.item()] * 3
    expected = np.array(theta) / 2
    for _ in range(rounds):
        expected += T * mean_errors(*data, theta, expected, shift, signed=True)
    correct_potential(layer_of(neuron, *data), rounds)
    assert neuron.v_init.numpy() == pytest.approx(expected, abs=1e-12)
    assert torch.equal(neuron.threshold, threshold)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_last_affine_module_takes_its_bias_itself(kind, bias):
    """Channels are last for a linear map, also of sequences, and dimension 1 for a convolution."""
    if kind == "linear":
        module, shape, channel = nn.Linear(5, 3, bias=bias), (4, 3), 2
    else:
        module, shape, channel = nn.Conv1d(5, 3, 1, bias=bias), (3, 4), 1
    module.double()
    before = module.bias.tolist() if bias else [0.0] * 3
    currents, targets = [draw(T * 6, *shape), draw(4, *shape)], [draw(6, *shape), draw(4, *shape)]
    expected = []
    for c in range(3):
        errors = []
        for current, a in zip(currents, targets, strict=True):
            for n in range(len(a)):
                rows = current[n :: len(a)]  # of all steps
                phi = sum(rows.select(channel, c)) / len(rows)
                errors += (a[n].unsqueeze(0).select(channel, c)[0] - phi).tolist()
        expected.append(before[c] + sum(errors) / len(errors))
    correct_bias(layer_of(None, currents, targets, affine=module))
    assert module.bias.tolist() == pytest.approx(expected, abs=1e-12)
    assert isinstance(module.bias, nn.Parameter)


def squared_errors(currents, targets, theta, v0, shift):
    """Σ (φ − a)² of every channel, for each factor of threshold and initial potential ``[F, C]``."""
    costs = np.zeros((len(FACTORS), 3))
    for f, factor in enumerate(FACTORS):
        scaled = [[factor * x for x in values] for values in (theta, v0)]
        for current, a in zip(currents, targets, strict=True):
            phi = outputs(current, len(a), *scaled, shift, signed=False)
            for c in range(3):
                costs[f, c] += ((phi[:, c] - a.reshape(phi.shape).numpy()[:, c]) ** 2).sum()
    return costs


def threshold_case():
    """Batches of 32; the third would tip the balance."""
    gains = torch.tensor([0.6, 1.0, 1.5]).double()
    currents = [draw(T * 32, 3) + 0.3, draw(T * 32, 3) + 0.3, draw(32, 3, scale=4.0)]
    means = [z.unflatten(0, (-1, 32)).mean(0) for z in currents]
    return currents, [gains * means[0].relu(), gains * means[1].relu(), 2.5 * means[2].relu()]


@pytest.mark.parametrize("on_all", [True, False])
def test_the_bias_is_sought_on_the_first_images_and_set_by_all(on_all):
    currents, targets = threshold_case()
    theta, v0 = [0.5, 0.3, 0.8], [0.25, 0.0, 0.4]
    neuron = BurstIFNode(torch.tensor(theta).double(), GAMMA, torch.tensor(v0).double())
    theta, v0 = neuron.threshold.tolist(), neuron.v_init.tolist()
    expected = np.zeros(3)
    for batches in (2, 2, 3 if on_all else 2):  # 64 images tell
        expected += mean_errors(currents[:batches], targets[:batches], theta, v0, expected, signed=False)
    correct_bias(layer_of(neuron, currents, targets), on_all=on_all)
    assert neuron.shift.numpy() == pytest.approx(expected, abs=1e-12)


def test_refit_threshold_takes_the_best_factor_of_every_channel():
    currents, targets = threshold_case()
    theta, v0 = [0.8, 0.5, 0.6], [0.7, -0.4, 0.9]
    neuron = BurstIFNode(torch.tensor(theta).double(), GAMMA, torch.tensor(v0).double(), 0.05)
    theta, v0 = neuron.threshold.tolist(), neuron.v_init.tolist()
    shift = [neuron.shift.item()] * 3
    best = squared_errors(currents[:2], targets[:2], theta, v0, shift).argmin(0)
    assert len(set(best)) > 1  # channels differ,
    assert (best != squared_errors(currents, targets, theta, v0, shift).argmin(0)).any()  # as images do
    refit_threshold(layer_of(neuron, currents, targets))
    factors = [FACTORS[f] for f in best]
    assert neuron.threshold.numpy() == pytest.approx(np.multiply(factors, theta))
    assert neuron.v_init.numpy() == pytest.approx(np.multiply(factors, v0))


def test_refit_threshold_of_a_layer_takes_one_factor():
    currents, targets = threshold_case()
    neuron = BurstIFNode(torch.tensor(1.0).double(), GAMMA, torch.tensor(0.2).double())
    theta, v0 = neuron.threshold.item(), neuron.v_init.item()
    costs = squared_errors(currents[:2], targets[:2], [theta] * 3, [v0] * 3, [0.0] * 3)
    factor = FACTORS[costs.sum(1).argmin()]
    assert factor != 1
    refit_threshold(layer_of(neuron, currents, targets))
    assert neuron.threshold.item() == pytest.approx(factor * theta)
    assert neuron.v_init.item() == pytest.approx(factor * v0)


def test_bounded_activations_keep_their_thresholds():
    theta = torch.tensor([0.8, 0.5, 0.6])
    neuron = BurstIFNode(theta, GAMMA, theta / 2)
    refit_threshold(layer_of(neuron, *threshold_case(), bounded=True))
    assert torch.equal(neuron.threshold, theta)
    assert torch.equal(neuron.v_init, theta / 2)
