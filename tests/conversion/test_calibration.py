import weakref

import pytest
import torch
from torch import nn

import sj_burst
from sj_burst.analysis.layers import layer_rates
from sj_burst.conversion import recipe
from sj_burst.conversion.calibration import calibrate_layers
from sj_burst.conversion.fits import FITS
from sj_burst.modules.neuron import neurons
from tests.networks import resnet, vgg

IMAGES = [torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(s)) for s in range(4)]
STEPS = {"time_steps": 4, "max_spikes": 2}


@pytest.fixture(scope="module")
def ann():
    return resnet()


@pytest.fixture(scope="module")
def calibrated(ann):
    """The network converted with every calibration."""
    return {
        calibration: sj_burst.convert(ann, IMAGES, calibration=calibration, progress=False, **STEPS)
        for calibration in ("none", "light", "advanced")
    }


def mean_error(snn, ann):
    """Mean errors of the channels of all layers on the calibration images."""
    errors = next(layer_rates(snn, ann, [torch.cat(IMAGES)], 4)).values()
    return sum((a - rate).mean((0, 2, 3)).norm().item() for rate, a in errors)


@torch.no_grad()
def output_error(snn, ann, x, steps):
    wanted = ann(x)
    # Relative to how the outputs differ between samples: their mean is easily met.
    return ((snn.run(x, steps).mean(0) - wanted).norm() / (wanted - wanted.mean(0)).norm()).item()


def test_light_removes_the_mean_error_of_each_channel(calibrated, ann):
    assert mean_error(calibrated["light"], ann) < 0.3 * mean_error(calibrated["none"], ann)


def test_light_removes_the_mean_error_with_a_coded_input(convert, ann):
    """Currents then differ from step to step from the first layer on."""
    none, light = (
        convert(ann, IMAGES, calibration=calibration, coding="rate", **STEPS)
        for calibration in ("none", "light")
    )
    assert mean_error(light, ann) < 0.3 * mean_error(none, ann)


def test_data_potential_removes_the_mean_error(convert, ann):
    half, data = (
        convert(ann, IMAGES, potential=potential, calibration="none", time_steps=4)
        for potential in ("half", "data")
    )
    assert mean_error(data, ann) < 0.2 * mean_error(half, ann)


def test_each_step_of_calibration_lowers_the_error(calibrated, ann):
    test = torch.randn(128, 3, 16, 16, generator=torch.Generator().manual_seed(9))
    errors = [output_error(calibrated[c], ann, test, 4) for c in ("none", "light", "advanced")]
    assert errors[0] > errors[1] > errors[2]


def test_calibration_is_deterministic(convert, calibrated, ann):
    again = convert(ann, IMAGES, calibration="advanced", **STEPS).state_dict()
    first = calibrated["advanced"].state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)


def test_residual_branches_are_part_of_the_fit(calibrated):
    """The second convolution of a block is refitted although a shortcut joins before its neuron."""
    for name in ("layer1.0.conv2", "layer2.0.conv2", "linear"):
        a, b = (calibrated[c].graph.get_submodule(name) for c in ("none", "advanced"))
        assert not torch.equal(a.weight, b.weight)


def test_a_module_that_is_called_twice_keeps_its_parameters(convert):
    """What suits one call would harm the other; the shift of the neurons belongs to one each."""
    shared = nn.Linear(4, 4)
    net, x = nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(4, 2)), torch.rand(32, 4)
    graph = convert(net, [x], calibration="advanced", **STEPS).graph
    assert torch.equal(graph.get_submodule("0").weight, shared.weight)
    assert torch.equal(graph.get_submodule("0").bias, shared.bias)
    assert not torch.equal(graph.get_submodule("4").weight, net[4].weight)
    first, second = neurons(graph).values()
    assert not torch.equal(first.shift, second.shift)


@pytest.mark.parametrize("rule", ["lateral_inhibition", "spike", "average", "gated"])
def test_pooling_of_every_rule_is_calibrated(convert, rule):
    """In the layer after the pooling, on what the spiking pooling really sends."""
    net, images = vgg(), [torch.rand(32, 2, 8, 8)]
    errors = {}
    for calibration in ("none", "light"):
        snn = convert(net, images, max_pool=rule, calibration=calibration, **STEPS)
        rate, a = list(next(layer_rates(snn, net, images, 4)).values())[1]
        errors[calibration] = (a - rate).mean((0, 2, 3)).norm().item()
    assert errors["light"] < 0.3 * errors["none"]


class Residual(nn.Module):
    """A sum with another operand than a plain residual."""

    def __init__(self, join):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.p, self.join, self.head = nn.Parameter(torch.rand(8, 1, 1)), join, nn.Linear(8, 3)

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.head(torch.relu(self.join(self, h)).mean((2, 3)))


def sweep(ann, images, fits, hook):
    """Calibrate the layers of a converted network; ``hook`` sees every call of a module.

    Modules that stand in for neurons in the ANN are called "ann" and their name.
    """
    snn = sj_burst.convert(ann, images, calibration="none", progress=False, **STEPS)
    called = [str(node.target) for node in snn.graph.graph.nodes if node.op == "call_module"]
    modules = {name: snn.graph.get_submodule(name) for name in called}
    stand_ins = {name: nn.ReLU() for name in neurons(snn.graph)}
    for name, module in [*modules.items(), *((f"ann {n}", m) for n, m in stand_ins.items())]:
        module.register_forward_hook(lambda _, __, output, name=name: hook(name, output))
    fits, device = [FITS[name] for name in fits], torch.device("cpu")
    calibrate_layers(snn.graph, stand_ins, images, 4, fits, device=device, progress=False)


@pytest.mark.parametrize(
    ("fits", "neuron", "head", "convolution"),
    [
        ([], 1, 1 + 1, 1 + 1),
        (["bias"], 3 + 1, 1 + 2, 1 + 1),  # three rounds; the head changes after it was evaluated
        (["weights"], 1, 1 + 1 + 1, 1 + 4 + 1),  # iterations
        (["weights", "bias"], 3 + 1, 1 + 1 + 2, 1 + 4 + 1),
    ],
)
def test_each_node_is_evaluated_once_for_each_network(fits, neuron, head, convolution):
    """And besides only what the fits themselves look at: ANN + SNN, in units of the batches."""
    calls = {}
    net = Residual(lambda net, h: net.b(h) + h).eval()

    def count(name, _):
        calls[name] = calls.get(name, 0) + 1

    sweep(net, IMAGES[:2], fits, count)
    expected = {"a": convolution, "b": convolution, "head": head}
    spiking = [name.removeprefix("ann ") for name in calls if name.startswith("ann ")]
    assert len(spiking) == 2
    expected |= dict.fromkeys(spiking, neuron) | {f"ann {name}": 1 for name in spiking}
    for name, times in expected.items():
        shapes = not name.startswith("ann ")  # one look at two images before the sweep
        assert calls[name] == 2 * times + shapes, name


def test_values_are_freed_after_their_last_use():
    """However deep the network is, as many activations are alive at one time."""
    most = {}
    for depth in (3, 9):
        layers = [m for _ in range(depth) for m in (nn.Linear(8, 8), nn.ReLU())]
        alive = []

        def hook(_, output, alive=alive, depth=depth):
            if len(output) == 2:  # a look at two images before the sweep
                return
            alive[:] = [*(ref for ref in alive if ref() is not None), weakref.ref(output)]
            most[depth] = max(most.get(depth, 0), len(alive))

        sweep(nn.Sequential(*layers), [torch.rand(8, 8)], ["weights", "bias"], hook)
    assert most[3] == most[9] < 9


@pytest.fixture
def taken(monkeypatch):
    """The images of each calibration, and room for a layer of 1 KiB only."""
    seen = []

    def calibrate(gm, ann_modules, inputs, *args, **kwargs):
        seen.append(torch.cat(inputs))

    monkeypatch.setattr(recipe, "calibrate_layers", calibrate)
    monkeypatch.setattr(recipe, "_LAYER_BYTES", 1024)
    return seen


def narrow():
    """A network whose largest activation has 8 floats a sample: 128 bytes in 4 steps."""
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))


def test_a_cut_of_the_calibration_images_is_told(convert, taken):
    images = torch.rand(30, 3)
    with pytest.warns(UserWarning, match="calibration_images=20: only the first 8 of 20 images") as seen:
        convert(narrow(), images.split(6), time_steps=4, calibration_images=20)
    assert "all 4 time steps would exceed 9.54e-07 GiB" in str(seen[0].message)
    assert "ask for 8" in str(seen[0].message)
    assert torch.equal(taken[0], images[:8])


@pytest.mark.parametrize(("images", "wanted"), [(5, 20), (8, 20), (30, 8), (30, 3)])
def test_no_warning_without_a_cut(convert, taken, images, wanted):
    """The loader has no more, or no more are asked for. Warnings are errors here."""
    x = torch.rand(images, 3)
    convert(narrow(), x.split(6), time_steps=4, calibration_images=wanted)
    assert torch.equal(taken[0], x[:wanted])


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
    ann, x = Residual(join), torch.cat(IMAGES)
    errors = {}
    for calibration in ("none", "advanced"):
        snn = convert(ann, IMAGES, time_steps=16, calibration=calibration)
        with torch.no_grad():
            out, wanted = snn.run(x, 16).mean(0), ann(x)
        errors[calibration] = ((out - wanted).norm() / wanted.norm()).item()
    assert errors["advanced"] < 1.2 * errors["none"] + 0.01
