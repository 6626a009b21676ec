import pytest
import torch
from spikingjelly.activation_based import functional
from torch import nn

from tests.networks import resnet, vgg

IMAGES = [torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(s)) for s in range(4)]


@torch.no_grad()
def output_error(snn, ann, x, steps):
    functional.reset_net(snn)
    wanted = ann(x)
    # Relative to how the outputs differ between samples: their mean is easily met.
    return ((snn.run(x, steps).mean(0) - wanted).norm() / (wanted - wanted.mean(0)).norm()).item()


def layer_means(snn, ann, x, steps):
    from sj_burst.analysis.layers import layer_rates

    return next(layer_rates(snn, ann, [x], steps))


@pytest.mark.parametrize("coding", ["direct", "rate"])
def test_light_removes_the_mean_error_of_each_channel(convert, coding):
    ann, options = resnet(blocks=2), {"time_steps": 4, "max_spikes": 2, "coding": coding}
    x = torch.cat(IMAGES)
    errors = {}
    for calibration in ("none", "light"):
        snn = convert(ann, IMAGES, calibration=calibration, **options)
        errors[calibration] = [
            (a - rate).mean((0, 2, 3)).norm().item() for rate, a in layer_means(snn, ann, x, 4).values()
        ]
    assert sum(errors["light"]) < 0.3 * sum(errors["none"])


def test_each_step_of_calibration_lowers_the_error(convert):
    ann = resnet(blocks=2)
    test = torch.randn(256, 3, 16, 16, generator=torch.Generator().manual_seed(9))
    options = {"time_steps": 4, "max_spikes": 1}
    errors = [
        output_error(convert(ann, IMAGES, calibration=c, **options), ann, test, 4)
        for c in ("none", "light", "advanced")
    ]
    assert errors[0] > errors[1] > errors[2]


def test_data_potential_removes_the_mean_error(convert):
    ann, x = resnet(), torch.cat(IMAGES)
    errors = {}
    for potential in ("half", "data"):
        options = {"time_steps": 4, "max_spikes": 4, "calibration": "none"}
        snn = convert(ann, IMAGES, potential=potential, **options)
        errors[potential] = sum(
            (a - rate).mean((0, 2, 3)).norm().item() for rate, a in layer_means(snn, ann, x, 4).values()
        )
    assert errors["data"] < 0.2 * errors["half"]


def test_calibration_is_deterministic(convert):
    states = [
        convert(resnet(), IMAGES, calibration="advanced", time_steps=4).state_dict() for _ in range(2)
    ]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_residual_branches_are_part_of_the_fit(convert):
    """The second convolution of a block is refitted although a shortcut joins before its neuron."""
    ann = resnet()
    none = convert(ann, IMAGES, time_steps=4, calibration="none")
    advanced = convert(ann, IMAGES, time_steps=4, calibration="advanced")
    for name in ("layer1.0.conv2", "layer2.0.conv2", "linear"):
        a, b = none.graph.get_submodule(name), advanced.graph.get_submodule(name)
        assert not torch.equal(a.weight, b.weight)


@pytest.mark.parametrize("rule", ["lateral_inhibition", "spike", "average", "gated"])
def test_pooling_of_every_rule_is_calibrated(convert, rule):
    images = [torch.rand(32, 2, 8, 8)]
    snn = convert(vgg(), images, max_pool=rule, calibration="advanced")
    with torch.no_grad():
        assert snn.run(images[0], 4).isfinite().all()


def test_a_convolution_that_ends_the_network_gets_its_bias_per_channel(convert):
    ann = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 1))
    x = torch.randn(32, 1, 8, 8)  # as many rows and columns as channels
    snn = convert(ann, [x], time_steps=2, calibration="light", max_spikes=1)
    with torch.no_grad():
        error = (snn.run(x, 2).mean(0) - ann(x)).mean((0, 2, 3))
    assert error.abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(convert, dtype):
    ann = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).to(dtype)
    x = torch.rand(32, 3, dtype=dtype)
    snn = convert(ann, [x], time_steps=16, calibration="advanced", coding="compensated")
    with torch.no_grad():
        out = snn.run(x, 16)
        assert out.dtype == dtype
        assert torch.allclose(out.mean(0), ann(x), atol=0.05)


class Residual(nn.Module):
    """A sum with another operand than a plain residual."""

    def __init__(self, join):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.p, self.join, self.head = nn.Parameter(torch.rand(8, 1, 1)), join, nn.Linear(8, 3)

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.head(torch.relu(self.join(self, h)).mean((2, 3)))


@pytest.mark.parametrize(
    "join",
    [
        lambda net, h: torch.add(net.b(h), h, alpha=-2),
        lambda net, h: nn.functional.adaptive_avg_pool2d(net.c(h), 1) + net.b(h),
        lambda net, h: net.c(nn.functional.adaptive_avg_pool2d(h, 1)) + net.b(h),
        lambda net, h: net.b(h) + net.p,
        lambda net, h: net.p + net.b(h),
    ],
)
def test_sums_that_are_no_residuals_lose_nothing(convert, join):
    ann = Residual(join)
    errors = {}
    for calibration in ("none", "advanced"):
        snn = convert(ann, IMAGES, time_steps=16, calibration=calibration)
        with torch.no_grad():
            out = torch.cat([snn.run(x, 16).mean(0) for x in IMAGES if not functional.reset_net(snn)])
            wanted = torch.cat([ann(x) for x in IMAGES])
        errors[calibration] = ((out - wanted).norm() / wanted.norm()).item()
    assert errors["advanced"] < 1.2 * errors["none"] + 0.01
