import copy
import tempfile
import weakref

import pytest
import torch
from torch import nn

import sj_burst
from sj_burst.analysis.layers import layer_rates
from sj_burst.conversion import calibration as sweep_module
from sj_burst.conversion import layer, recipe
from sj_burst.conversion.calibration import calibrate_layers
from sj_burst.conversion.fits import FITS
from sj_burst.modules.neuron import mean_output, neurons
from sj_burst.utils.spill import Spill, free_memory, memory_budget
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
    ("fits", "looks", "head", "iterations"),
    [
        ([], 0, 1, 0),
        (["bias"], 3, 2, 0),  # three rounds; the head changes after it was evaluated
        (["weights"], 0, 1, 3),
        (["weights", "bias"], 3, 2, 3),
    ],
)
def test_each_node_is_evaluated_once_for_each_network(monkeypatch, fits, looks, head, iterations):
    """And besides only what the fits themselves look at; in rows, of which all steps have T·N."""
    rows, seen, steps = {}, [], 4
    net, n = Residual(lambda net, h: net.b(h) + h).eval(), 64

    def count(name, output):
        rows[name] = rows.get(name, 0) + len(output)

    def look(neuron, z, fold):
        seen.append((neuron, fold.batch))
        return mean_output(neuron, z, fold)

    monkeypatch.setattr(layer, "mean_output", look)
    sweep(net, IMAGES[:2], fits, count)
    example = 2  # one look at two images before the sweep
    fitted = min(iterations, 1)  # a look whether to fit
    iterations = max(0, iterations - 1)  # the first of them, all for the head, needs no look
    assert rows["a"] == (1 + fitted + 1) * n + example  # sees the same image at every step: right
    assert rows["b"] == (1 + fitted + iterations + steps) * n + example
    assert rows["head"] == (1 + head * steps) * n + example
    stand_ins = [name for name in rows if name.startswith("ann ")]
    assert len(stand_ins) == 2
    for name in stand_ins:
        assert rows[name] == n
        assert rows[name.removeprefix("ann ")] == steps * n + example
    assert sum(batch for _, batch in seen) == len(stand_ins) * looks * n


@pytest.mark.parametrize("join", [lambda net, h: net.b(h), lambda net, h: net.b(h) + h])
@pytest.mark.parametrize(
    ("least", "places", "share", "fitted"),
    [(2, 64 * 60, 0.1, 2), (2, 64 * 65, 0.1, 3), (2, 10**9, 0.1, 4), (97, 1, 0.1, 4), (2, 1, 0.6, 3)],
)
def test_a_layer_is_fitted_on_as_many_images_as_it_needs(
    monkeypatch, join, least, places, share, fitted
):
    """An image shows a convolution 64 places here; the features that end the network, one."""
    for name, value in {"_IMAGES": least, "_PLACES": places, "_SHARE": share}.items():
        monkeypatch.setattr(sweep_module, name, value)
    images = [x[..., :8, :8] for x in IMAGES]
    seen = {}

    def note(layer):
        counts = {
            len(values) for values in (layer.evaluate(), layer.inputs, layer.wanted, layer.targets)
        }
        seen[layer.name] = (*counts, layer.neuron is None)

    monkeypatch.setitem(FITS, "note", note)
    net, fits = Residual(join).eval(), ["weights", "note", "threshold", "potential", "bias"]
    converted = sj_burst.convert(net, images, calibration="none", progress=False, **STEPS)
    found = []
    for some in (images, images[:fitted]):
        graph = copy.deepcopy(converted.graph)
        stand_ins = {name: nn.ReLU() for name in neurons(graph)}
        device = torch.device("cpu")
        calibrate_layers(
            graph, stand_ins, some, 4, [FITS[f] for f in fits], device=device, progress=False
        )
        found.append(graph.state_dict())
        if some is images:
            head = max(fitted, min(4, -(-places // 32)))
            assert list(seen.values()) == [(fitted, False), (fitted, False), (head, True)]
            monkeypatch.setattr(sweep_module, "_SHARE", 1.0)
    # What a layer was not fitted on changes nothing in it, and reaches those behind.
    for name, value in found[0].items():
        same = not name.startswith("head") or fitted == head
        assert torch.equal(found[1][name], value) == same, name


class Pyramid(nn.Module):
    """Maps of three sizes, read again where they are larger or smaller; 5 images, one by one."""

    def __init__(self):
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.up, self.out = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(4, 3)

    def forward(self, x):
        a = torch.relu(self.stem(x))
        b = torch.relu(self.deep(a))
        c = torch.relu(self.up(self.pool(b)))
        c = torch.nn.functional.interpolate(c, scale_factor=4)
        d = torch.relu(self.out(a + c))
        return self.head(self.pool(d).mean((2, 3)))


@pytest.mark.parametrize("net", [Pyramid, lambda: Residual(lambda net, h: net.b(h) + h), resnet, vgg])
def test_small_maps_are_taken_several_batches_at_once(monkeypatch, convert, net):
    """Which changes nothing but the order of sums."""
    torch.manual_seed(0)
    net, states, sizes = net().eval(), [], []
    images = torch.randn(5, 2 if hasattr(net, "0") else 3, 8, 8)

    class Watched(sweep_module.Activations):
        def _compute(self, node, part):
            sizes.append(len(part))
            return super()._compute(node, part)

    monkeypatch.setattr(sweep_module, "Activations", Watched)
    monkeypatch.setattr(recipe, "_LARGEST_BATCH", 1)
    for together in (1, 4):
        sizes.clear()
        monkeypatch.setattr(sweep_module, "_TOGETHER", together)
        states.append(convert(copy.deepcopy(net), [images], **STEPS).state_dict())
        assert max(sizes) == together
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-4)


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
    """The images of each calibration, and room for four layers of 1 KiB only."""
    seen = []

    def calibrate(gm, ann_modules, inputs, *args, **kwargs):
        seen.append(torch.cat(inputs))

    monkeypatch.setattr(recipe, "calibrate_layers", calibrate)
    monkeypatch.setattr(recipe, "free_room", lambda: 4 * 1024)
    return seen


def narrow():
    """A network whose largest activation has 8 floats a sample: 128 bytes in 4 steps."""
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))


def test_a_cut_of_the_calibration_images_is_told(convert, taken):
    images = torch.rand(30, 3)
    with pytest.warns(UserWarning, match="calibration_images=20: only the first 8 of 20 images") as seen:
        convert(narrow(), images.split(6), time_steps=4, calibration_images=20)
    assert "have room for 3.81e-06 GiB" in str(seen[0].message)
    assert "what an image needs in all 4 time steps may take 4.77e-07 GiB" in str(seen[0].message)
    assert "ask for 8" in str(seen[0].message)
    assert torch.equal(taken[0], images[:8])


@pytest.mark.parametrize(("images", "wanted"), [(5, 20), (8, 20), (30, 8), (30, 3)])
def test_no_warning_without_a_cut(convert, taken, images, wanted):
    """The loader has no more, or no more are asked for. Warnings are errors here."""
    x = torch.rand(images, 3)
    convert(narrow(), x.split(6), time_steps=4, calibration_images=wanted)
    assert torch.equal(taken[0], x[:wanted])


@pytest.mark.parametrize("net", ["residual", "pooling", "leaky"])
def test_spilling_changes_nothing(monkeypatch, convert, net):
    """Bit for bit, whether all is kept in memory, a part of it, or nothing."""
    ann = {
        "residual": resnet,
        "pooling": lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 3)
        ),
        "leaky": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.1), nn.Conv2d(4, 2, 3)),
    }[net]()
    most = {}

    class Watched(Spill):
        def keep(self, tensor):
            kept = super().keep(tensor)
            assert self.in_memory <= self.budget
            memory, disk = most.get(self.budget, (0, 0))
            most[self.budget] = max(memory, self.in_memory), max(disk, self.on_disk)
            return kept

    states = {}
    monkeypatch.setattr(sweep_module, "Spill", Watched)
    for budget in (0, 2**18, 2**40):
        monkeypatch.setattr(sweep_module, "memory_budget", lambda budget=budget: budget)
        states[budget] = convert(ann, IMAGES[:2], **STEPS).state_dict()
    assert most[0][0] == most[2**40][1] == 0 < min(most[0][1], *most[2**18], most[2**40][0])
    for budget in (0, 2**18):
        assert all(torch.equal(states[budget][k], states[2**40][k]) for k in states[budget])


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_no_file_is_left_when_a_calibration_breaks_off(monkeypatch, convert, error):
    opened, make = [], tempfile.TemporaryFile

    def temporary(**options):
        opened.append(make(**options))
        return opened[-1]

    def fit(_):
        assert not opened[-1].closed
        raise error

    monkeypatch.setattr(tempfile, "TemporaryFile", temporary)
    monkeypatch.setattr(sweep_module, "memory_budget", lambda: 0)
    monkeypatch.setitem(FITS, "bias", fit)
    with pytest.raises(error):
        convert(resnet(), IMAGES[:1], calibration="light", **STEPS)
    assert opened
    assert all(file.closed for file in opened)


def test_spikes_are_kept_as_counts(monkeypatch, convert):
    """A neuron's spikes, and what max-pooling passes on; in two bytes where one is too few."""
    ann = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 3))
    for gamma, dtype in ((127, torch.int8), (128, torch.int16), (40000, torch.float32)):
        kept = []

        class Watched(Spill):
            def keep(self, tensor, kept=kept):
                kept.append((tensor.dtype, tuple(tensor.shape)))
                return super().keep(tensor)

        monkeypatch.setattr(sweep_module, "Spill", Watched)
        convert(ann, IMAGES[:1], time_steps=4, max_spikes=gamma, calibration="light")
        assert (dtype, (128, 4, 14, 14)) in kept
        assert (dtype, (128, 4, 7, 7)) in kept
        assert ((torch.float32, (128, 4, 14, 14)) in kept) == (dtype == torch.float32)


def test_the_budget_is_a_part_of_what_is_free():
    assert 0 < memory_budget() <= free_memory() / 4


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


class WrittenAs(nn.Module):
    """A sum of a layer and its input, by one of the ways to write it."""

    def __init__(self, add):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.last, self.add = nn.Linear(3, 2), add

    def forward(self, x):
        x = self.first(x).relu()
        return self.last(self.add(self.second(x), x).relu().mean((2, 3)))


@pytest.mark.parametrize(
    "add", [torch.add, lambda a, b: a.add(b), lambda a, b: a.add_(b), lambda a, b: torch.add(a, other=b)]
)
def test_a_residual_is_calibrated_however_its_sum_is_written(convert, add):
    x = torch.rand(32, 3, 6, 6)
    snn, like = (convert(WrittenAs(made), [x], time_steps=4) for made in (add, lambda a, b: a + b))
    ann = WrittenAs(add)
    found = snn.graph.get_submodule("second").weight
    assert (found - ann.second.weight).norm() > 0.01
    assert torch.equal(found, like.graph.get_submodule("second").weight)


def test_sums_of_half_precision_do_not_overflow(convert):
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)),
    )
    net[0].weight.data *= 300
    x = torch.rand(16, 3, 64, 64).half()
    snn = convert(net.half(), [x], time_steps=4, max_spikes=2)
    assert all(value.isfinite().all() for value in snn.state_dict().values())
    assert snn.answer(x, 4).isfinite().all()


def test_tokens_of_other_lengths_after_calibration(convert):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).eval(), torch.rand(64, 7, 6)
    snn = convert(net, [x], channel_wise=False)
    longer = torch.rand(3, 9, 6)
    with torch.no_grad():
        wanted = net(longer)
        assert (snn.answer(longer, 16) - wanted).norm() < 0.1 * wanted.norm()


def test_the_bias_of_features_of_tokens_is_their_layers(convert):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).eval(), torch.rand(64, 7, 6)
    snn = convert(net, [x], calibration="light", threshold="90%", max_spikes=1, time_steps=4)
    assert snn.neurons()["1"].shift is None
    with torch.no_grad():
        before = convert(net, [x], calibration="none", threshold="90%", max_spikes=1, time_steps=4)
        wanted = nn.Sequential(*net[:2])(x).mean((0, 1))
        errors = []
        for one in (before, snn):
            z = one.graph.get_submodule("0")(x)
            rate = one.neurons()["1"]
            rate.reset()
            errors.append((torch.stack([rate(z) for _ in range(4)]).mean((0, 1, 2)) - wanted).norm())
            rate.reset()
    assert errors[1] < 0.5 * errors[0]


class Mean(nn.Module):
    """An activation of one number per sample, which gets its channel afterwards."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(1, 3)

    def forward(self, x):
        return self.b(torch.relu(self.a(x).mean(1)).unsqueeze(1))


@pytest.mark.parametrize("channel_wise", [True, False])
@pytest.mark.parametrize("calibration", ["light", "advanced"])
@torch.no_grad()
def test_an_activation_of_one_number_per_sample(convert, calibration, channel_wise):
    torch.manual_seed(0)
    net, x = Mean(), torch.rand(32, 6)
    net.a.bias += 1  # it is not silent
    snn = convert(net, [x], calibration=calibration, channel_wise=channel_wise)
    wanted = net(x)
    assert (snn.answer(x, 64) - wanted).abs().max() < 0.05 * (wanted.max(0)[0] - wanted.min(0)[0]).max()
