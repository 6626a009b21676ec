import copy
import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import ann2snn, functional
from torch import nn

from sj_burst import PRESETS, BurstRecipe, Options
from sj_burst.conversion.fits import FITS
from sj_burst.modules.encoding import CompensatedRateEncoder
from sj_burst.modules.pooling import GatedPool, LIPool
from sj_burst.modules.spike_calibration import SpikeCalibratedNode
from tests.networks import resnet, vgg

IMAGES = [torch.rand(16, 2, 8, 8, generator=torch.Generator().manual_seed(s)) for s in range(3)]


def error(snn, ann, x, steps):
    functional.reset_net(snn)
    with torch.no_grad():
        return ((snn.run(x, steps).mean(0) - ann(x)).norm() / ann(x).norm()).item()


@pytest.mark.parametrize("max_spikes", [1, 4])
def test_the_network_converges_to_the_ann(convert, max_spikes):
    ann = vgg()
    snn = convert(ann, IMAGES, time_steps=128, max_spikes=max_spikes, threshold="max")
    assert error(snn, ann, IMAGES[0], 1024) < 0.01


@torch.no_grad()
@pytest.mark.parametrize("network", [vgg, resnet])
@pytest.mark.parametrize("coding", ["direct", "rate", "compensated"])
def test_step_modes_and_chunks_agree(convert, network, coding):
    ann = network()
    channels = 2 if network is vgg else 3
    x = torch.randn(4, channels, 8, 8)
    snn = convert(ann, [x], time_steps=6, max_spikes=2, coding=coding).double()
    x = x.double()
    whole = snn.run(x, 6)
    with snn.present(x) as shown:
        chunks = torch.cat([shown.run(steps) for steps in (1, 3, 2)])
    assert torch.equal(snn.run(x, 6), whole)  # each starts afresh
    steps = torch.stack([snn(x) for _ in range(6)])
    functional.reset_net(snn)
    functional.set_step_mode(snn, "m")
    sequence = snn(x.expand(6, *x.shape))
    for other in (chunks, steps, sequence):
        # Convolutions may sum in another order for another batch size; spikes must not differ.
        assert torch.allclose(whole, other, atol=1e-12)


@torch.no_grad()
def test_sequences_that_change_over_time(convert):
    snn = convert(vgg(), IMAGES, max_spikes=2).double()
    x = torch.rand(5, 4, 2, 8, 8, dtype=torch.float64)
    steps = torch.stack([snn(step) for step in x])
    functional.reset_net(snn)
    functional.set_step_mode(snn, "m")
    assert torch.allclose(steps, snn(x), atol=1e-12)


def test_the_ann_is_left_alone_and_the_snn_is_in_eval_mode(convert):
    ann = nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 2)
    )
    x = torch.rand(32, 4)
    ann.train()(x)
    state = copy.deepcopy(ann.state_dict())
    in_train = convert(ann.train(), [x], calibration="advanced")
    assert ann.training and ann[2].training and ann[4].training
    assert all(torch.equal(v, state[k]) for k, v in ann.state_dict().items())
    assert not any(m.training for m in in_train.modules())
    in_eval = convert(ann.eval(), [x], calibration="advanced")
    with torch.no_grad():
        assert torch.equal(in_train.run(x, 4), in_eval.run(x, 4))


def test_relu6_saturates_exactly(convert):
    ann = nn.Sequential(nn.Linear(1, 1), nn.ReLU6(), nn.Linear(1, 1, bias=False))
    nn.init.ones_(ann[0].weight)
    nn.init.zeros_(ann[0].bias)
    nn.init.ones_(ann[2].weight)
    images = [torch.linspace(-10, 30, 64).unsqueeze(1)]
    snn = convert(ann, images, time_steps=4, max_spikes=3, calibration="none")
    with torch.no_grad():
        assert snn.run(torch.tensor([[50.0]]), 4).mean().item() == pytest.approx(6.0, rel=1e-5)


def test_gamma_by_layer(convert):
    snn = convert(vgg(), IMAGES, max_spikes={"2": 1, "*": 3})
    assert {name: node.max_spikes for name, node in snn.neurons().items()} == {"2": 1, "6": 3}
    with pytest.raises(ValueError, match="matches none of the layers"):
        convert(vgg(), IMAGES, max_spikes={"layer*": 1, "*": 2})
    with pytest.raises(ValueError, match=r"no pattern matches \['6'\]"):
        convert(vgg(), IMAGES, max_spikes={"2": 1})


def test_layer_wise_thresholds_are_scalars(convert):
    snn = convert(vgg(), IMAGES, channel_wise=False)
    assert all(node.threshold.dim() == 0 for node in snn.neurons().values())
    snn = convert(vgg(), IMAGES)
    assert [tuple(n.threshold.shape) for n in snn.neurons().values()] == [(6,), (8,)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time_steps": 0}, "time_steps must be an integer ≥ 1, got 0"),
        ({"max_spikes": 0}, "max_spikes must be an integer ≥ 1"),
        ({"max_spikes": {}}, "max_spikes is an empty mapping"),
        ({"max_spikes": {"*": 0.5}}, "max_spikes must be an integer"),
        ({"threshold": "median"}, "threshold must be one of"),
        ({"threshold": "120%"}, "threshold must be one of"),
        ({"potential": "quarter"}, "potential must be one of"),
        ({"max_pool": "min"}, "max_pool must be one of"),
        ({"coding": "time"}, "coding must be one of"),
        ({"inactivated_spikes": "never"}, "inactivated_spikes must be one of"),
        ({"calibration": "heavy"}, "calibration must be one of"),
        ({"calibration_images": 0}, "calibration_images must be an integer ≥ 1"),
        ({"potential": "twice"}, "potential must be one of"),
        ({"max_spikes": math.inf}, "infinite"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Options(**options)


@pytest.mark.parametrize(
    "options", [{"time_steps": 2.0}, {"channel_wise": 1}, {"max_spikes": "4"}, {"max_spikes": {0: 4}}]
)
def test_options_of_a_wrong_type(options):
    with pytest.raises(TypeError):
        Options(**options)


def test_unknown_names():
    with pytest.raises(TypeError, match="unknown option gamma; the options are"):
        BurstRecipe(IMAGES, gamma=2)
    with pytest.raises(ValueError, match=r"preset must be one of .*diehl2015"):
        Options.preset("best")


def test_bad_loaders(convert):
    with pytest.raises(ValueError, match="calibration_loader is empty"):
        convert(vgg(), [])
    with pytest.raises(TypeError, match="read only once"):
        BurstRecipe(iter(IMAGES))
    with pytest.raises(TypeError, match="is a tensor"):
        BurstRecipe(IMAGES[0])
    with pytest.raises(TypeError, match="DataLoader or a list"):
        BurstRecipe(3)
    with pytest.raises(TypeError, match="yields dict batches with a list among the inputs"):
        convert(vgg(), [{"image": [1, 2]}])
    with pytest.raises(ValueError, match=r"the loader yields inputs named \['image'\]"):
        convert(vgg(), [{"image": IMAGES[0]}])
    with pytest.raises(ValueError, match="empty batch"):
        convert(vgg(), [torch.empty(0, 2, 8, 8)])
    with pytest.raises(ValueError, match="shapes"):
        convert(vgg(), [torch.rand(1, 2, 8, 8), torch.rand(1, 2, 9, 9)])


def test_integer_images(convert):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = vgg()

        def forward(self, x):
            return self.net(x.float() / 255)

    ann, images = Scaled(), (255 * IMAGES[0]).byte()
    snn = convert(ann, [images], time_steps=64, calibration="none")
    assert error(snn, ann, images, 256) < 0.05
    with pytest.raises(ValueError, match="coding='rate' needs images of real numbers"):
        convert(ann, [images], coding="rate")


def test_an_input_of_another_rank_is_refused(convert):
    snn = convert(vgg(), IMAGES, calibration="none")
    with pytest.raises(ValueError, match=r"\[N, 2, 8, 8\] in step_mode='s', got \[2, 8, 8\]"):
        snn(IMAGES[0][0])
    functional.set_step_mode(snn, "m")
    with pytest.raises(ValueError, match=r"\[T, N, 2, 8, 8\] in step_mode='m'"):
        snn(IMAGES[0])
    with pytest.raises(ValueError, match="time_steps must be an integer ≥ 1, got 0"):
        snn.run(IMAGES[0], 0)
    with pytest.raises(TypeError, match="converted already"):
        convert(snn, IMAGES)


def test_nan_and_no_activation(convert):
    with pytest.raises(ValueError, match="NaN"):
        convert(vgg(), [IMAGES[0], torch.full((2, 2, 8, 8), math.nan)])
    with pytest.raises(ValueError, match="NaN"):
        convert(vgg(), [torch.full((2, 2, 8, 8), math.nan)])
    with pytest.raises(ValueError, match="no ReLU"):
        convert(nn.Sequential(nn.Linear(2, 2)), [torch.rand(4, 2)])


def test_a_single_image_is_enough(convert):
    snn = convert(vgg(), [IMAGES[0][:1]])
    with torch.no_grad():
        assert snn.run(IMAGES[0], 3).shape == (3, 16, 5)


@pytest.mark.filterwarnings("ignore:.*allowance=64 acts from")  # "spicalib" at T = 8
@pytest.mark.parametrize("name", PRESETS)
def test_presets_differ_from_the_defaults_and_run(convert, name):
    assert Options.preset(name) == PRESETS[name] != Options()
    assert Options.preset(name, time_steps=3) == dataclasses.replace(PRESETS[name], time_steps=3)
    ann = bounded_vgg() if name == "rnl" else vgg()
    snn = convert(ann, IMAGES, PRESETS[name])
    with torch.no_grad():
        out, wanted = snn.run(IMAGES[0], 256), ann(IMAGES[0])
    few, many = ((out[:steps].mean(0) - wanted).norm() / wanted.norm() for steps in (2, 256))
    assert many < few and many < (0.5 if name == "diehl2015" else 0.2)  # max-pooling of spikes


def bounded_vgg():
    ann = vgg()
    ann[2], ann[6] = nn.Hardtanh(0, 0.8), nn.ReLU6()
    return ann


def test_rnl_takes_the_bounds_as_thresholds(convert):
    options = PRESETS["rnl"]
    nodes = convert(bounded_vgg(), IMAGES, options).neurons()
    assert nodes["2"].threshold.item() == pytest.approx(0.8)
    assert nodes["6"].threshold.item() == pytest.approx(6.0)
    nodes = convert(bounded_vgg(), IMAGES, options, max_spikes=4, channel_wise=True).neurons()
    assert torch.allclose(nodes["6"].threshold, torch.tensor(1.5))
    with pytest.raises(ValueError, match=r"activation '2'.*upper bound"):
        convert(vgg(), IMAGES, options)


def test_diehl2015_is_the_running_maximum_without_potential(convert):
    ann = vgg()
    snn = convert(ann, IMAGES, PRESETS["diehl2015"])
    node = snn.neurons()["2"]
    with torch.no_grad():
        largest = max(ann[:3](x).max().item() for x in IMAGES)
    assert node.threshold.item() == pytest.approx(largest, rel=1e-4)
    assert (node.v_init == 0).all() and not node.signed and node.max_spikes == 1
    assert isinstance(snn.graph.get_submodule("3"), nn.MaxPool2d)


def test_burst_preset_bursts_and_pools_with_inhibition(convert):
    snn = convert(vgg(), IMAGES, PRESETS["burst"])
    assert snn.neurons()["2"].max_spikes == 5
    assert isinstance(snn.graph.get_submodule("3"), LIPool)


def test_opi_starts_at_half_the_threshold(convert):
    for node in convert(vgg(), IMAGES, PRESETS["opi"]).neurons().values():
        assert torch.equal(node.v_init, node.threshold / 2)


def test_rts_shifts_by_half_a_quantum_per_t(convert):
    snn = convert(vgg(), IMAGES, PRESETS["rts"], time_steps=8)
    for node in snn.neurons().values():
        assert torch.allclose(node.shift, node.threshold / 16)
    half = convert(vgg(), IMAGES, PRESETS["rts"].changed(potential="half"), time_steps=8)
    # For constant input, counts after T steps are those of v(0) = θ/2.
    with torch.no_grad():
        z = torch.rand(8, 1).expand(8, 8, 1) * 2
        first, second = snn.neurons()["2"], half.neurons()["2"]
        for node in (first, second):
            node.step_mode = "m"
        assert torch.allclose(first(z).sum(0), second(z).sum(0), atol=1e-4)


def test_spicalib_uses_its_neuron(convert):
    snn = convert(vgg(), IMAGES, PRESETS["spicalib"].changed(allowance=3))
    for node in snn.neurons().values():
        assert isinstance(node, SpikeCalibratedNode)
        assert node.allowance == 3


def test_an_allowance_that_cannot_act_is_said(convert):
    spicalib = PRESETS["spicalib"]
    said = r"allowance=64 acts from T = 66 on; with time_steps=8 the network is that of .*'allow'"
    with pytest.warns(UserWarning, match=said):
        snn = convert(vgg(), IMAGES, spicalib)
    burst = convert(vgg(), IMAGES, PRESETS["burst"])
    with torch.no_grad():
        assert torch.equal(snn.run(IMAGES[0], 65), burst.run(IMAGES[0], 65))
    with pytest.warns(UserWarning, match="allowance=6 acts from T = 8 on"):
        convert(vgg(), IMAGES, spicalib, allowance=6, time_steps=7)
    convert(vgg(), IMAGES, spicalib, allowance=6, time_steps=8)  # acts in the last step: not a word
    convert(vgg(), IMAGES, inactivated_spikes="signed", allowance=64)


def test_ic_snn_codes_and_fits_the_potential(convert):
    snn = convert(vgg(), IMAGES, PRESETS["ic_snn"])
    assert isinstance(snn.graph.get_submodule("encoder"), CompensatedRateEncoder)
    for node in snn.neurons().values():
        assert not torch.allclose(node.v_init, node.threshold / 2)


def test_calibration_presets_change_biases_and_weights(convert):
    plain = convert(vgg(), IMAGES, PRESETS["calibration_light"].changed(calibration="none"))
    light = convert(vgg(), IMAGES, PRESETS["calibration_light"])
    advanced = convert(vgg(), IMAGES, PRESETS["calibration_advanced"])
    assert all(node.shift is None for node in plain.neurons().values())
    assert all(node.shift is not None for node in light.neurons().values())
    same = [
        torch.equal(n.graph.get_submodule("4").weight, plain.graph.get_submodule("4").weight)
        for n in (light, advanced)
    ]
    assert same == [True, False]


def test_gated_rule_is_placed(convert):
    assert isinstance(convert(vgg(), IMAGES, max_pool="gated").graph.get_submodule("3"), GatedPool)


def test_a_recipe_keeps_nothing_of_the_network():
    recipe = BurstRecipe(IMAGES, calibration="none", progress=False)
    before = vars(recipe).copy()
    ann2snn.Converter(recipe).convert(vgg())
    assert vars(recipe) == before
    with pytest.raises(ValueError):
        ann2snn.Converter(recipe).convert(nn.Sequential(nn.Flatten(), nn.SiLU()))
    assert vars(recipe) == before
    assert repr(recipe).startswith("BurstRecipe(list, Options(time_steps=8, max_spikes=4,")


def test_autocast_does_not_change_a_conversion(convert):
    ann = vgg()
    expected = convert(ann, IMAGES, time_steps=4).state_dict()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = convert(ann, IMAGES, time_steps=4).state_dict()
    assert all(torch.equal(got[name], value) for name, value in expected.items())


@pytest.mark.parametrize("options", [{}, {"burst_allocation": "sensitivity", "calibration": "light"}])
def test_inference_mode_does_not_change_a_conversion(convert, options):
    """The network may have gradients afterwards, and what finds its options needs some."""
    x = torch.rand(16, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = convert(vgg(), [x], **options).run(x, 4)
    with torch.inference_mode():
        snn = convert(vgg(), [x.clone()], **options)
    found = snn.run(x, 4)
    assert torch.equal(found, wanted)
    found.sum().backward()
    assert next(snn.parameters()).grad.isfinite().all()


def test_several_threads_convert_at_once(convert):
    networks = [vgg(seed) for seed in range(4)]
    expected = [convert(net, IMAGES, calibration="none").state_dict() for net in networks]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda net: convert(net, IMAGES, calibration="none"), networks * 3))
    for i, snn in enumerate(found):
        wanted = expected[i % 4]
        assert all(torch.equal(snn.state_dict()[name], value) for name, value in wanted.items())


def test_a_failed_conversion_lets_other_threads_in(convert):
    with pytest.raises(ValueError):
        convert(nn.Sequential(nn.Flatten(), nn.SiLU()), IMAGES)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(convert, vgg(), IMAGES, calibration="none")
        assert future.result(timeout=60).neurons()


def test_options_by_name_change_those_given(convert):
    snn = convert(vgg(), IMAGES, Options(max_spikes=2, calibration="none"), time_steps=3)
    assert snn.options == Options(max_spikes=2, calibration="none", time_steps=3)
    head, *layers = repr(snn).split("\n")
    assert head == "SpikingNetwork(T=3, Γ=2, coding='direct', 2 layers of neurons)"
    assert [line.split(":")[0].strip() for line in layers] == ["2", "6"]
    with pytest.raises(TypeError, match=r"options must be an sj_burst.Options, got dict"):
        convert(vgg(), IMAGES, {"max_spikes": 2})


def test_two_runs_in_a_row_start_afresh(convert):
    snn, x = convert(vgg(), IMAGES, calibration="none", max_spikes=1), IMAGES[0]
    with torch.no_grad():
        first = snn.run(x, 5)
        snn.step_mode = "m"
        snn(x.expand(3, *x.shape))  # leaves its state behind
        assert torch.equal(snn.run(x, 5), first)
        assert torch.equal(snn(x.expand(5, *x.shape)), first)  # and run leaves a fresh one


def test_a_nearly_silent_channel_in_half_precision(convert):
    torch.manual_seed(0)
    ann = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)),
    )
    nn.init.constant_(ann[1].weight[:2], 1e-6)
    ann, x = ann.eval().half(), torch.rand(32, 1, 8, 8).half()
    budget = {"threshold": "rate_distortion", "energy_budget": 2.0, "time_steps": 1}
    for options in ({}, budget):
        assert convert(ann, [x], max_spikes=63, **options).run(x, 4).isfinite().all()


def test_numbers_of_numpy_are_numbers(convert):
    ann, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.rand(8, 3)
    snn = convert(ann, [x], time_steps=np.int64(4), max_spikes=np.int64(3))
    assert type(snn.options.time_steps) is type(snn.options.max_spikes) is int


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, ["weights", "mean", "threshold", "bias"]),
        ({"calibration": "light"}, ["bias"]),
        ({"calibration": "none"}, []),
        ({"threshold": "rate_distortion", "energy_budget": 5.0}, ["weights", "bias"]),
        ({"threshold": "rate_distortion", "energy_budget": 5.0, "calibration": "light"}, ["bias"]),
        ({"potential": "data"}, ["weights", "potential", "mean", "threshold", "bias"]),
        ({"potential": "data", "calibration": "none"}, ["potential"]),
    ],
)
def test_what_is_fitted_in_a_layer(monkeypatch, convert, options, wanted):
    """Thresholds that a budget has chosen stay, and the bias is corrected in all rounds in the end."""
    fitted = []
    for name in FITS:
        monkeypatch.setitem(FITS, name, lambda layer, name=name: fitted.append((layer.name, name)))
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    convert(net, [torch.rand(16, 3)], **options)
    assert [name for layer, name in fitted if layer == "1"][-len(wanted) :] == wanted
    assert len(fitted) % max(1, 2 * len(wanted)) == 0  # a budget calibrates several times
