import re

import pytest
import torch
from torch import nn

from sj_burst import Options, load, save
from sj_burst.conversion.weights import weight_scale
from sj_burst.export import to_integers
from sj_burst.export.unit_thresholds import unit_thresholds
from sj_burst.training import distil, finetune
from tests.networks import resnet, vgg

LAYERS = (nn.Linear, nn.Conv2d)
X = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("calibration", ["none", "light", "advanced"])
def test_all_weights_are_integers(convert, calibration, bits):
    snn = convert(resnet(), [X], weight_bits=bits, calibration=calibration)
    layers = [m for m in unit_thresholds(snn).graph.modules() if isinstance(m, LAYERS)]
    assert len(layers) == 8
    for layer in layers:  # as they meet counts
        levels = layer.weight / weight_scale(layer, bits)
        assert torch.allclose(levels, levels.round(), atol=1e-2)
        assert len(levels.round().unique()) <= 2**bits - 1


@pytest.mark.parametrize("calibration", ["none", "light", "advanced"])
def test_bits_by_layer(convert, calibration, tmp_path):
    """The weights of each layer, as they meet counts, have the levels that its bits allow."""
    net = resnet()
    names = [name for name, module in net.named_modules() if isinstance(module, LAYERS)]
    first, *_, last = names
    given = {first: 8, last: 6, "*": 3}
    snn = convert(net, [X], weight_bits=given, calibration=calibration)
    plain = unit_thresholds(snn).graph
    for name in names:
        bits = given.get(name, 3)
        layer = plain.get_submodule(name)
        levels = layer.weight / weight_scale(layer, bits)
        assert torch.allclose(levels, levels.round(), atol=1e-2)
        assert levels.round().abs().max() == 2 ** (bits - 1) - 1
        assert bits == 3 or len(levels.round().unique()) > 7
    integers = to_integers(snn)
    assert torch.allclose(integers.run(X, 4), snn.run(X, 4), atol=1e-4)
    again = to_integers(convert(net, [X], calibration=calibration), bits=given)
    assert integers.state_dict().keys() == again.state_dict().keys()
    save(snn, tmp_path / "snn.pt")
    loaded = load(tmp_path / "snn.pt", net)
    assert loaded.options.weight_bits == given
    assert torch.equal(loaded.run(X, 3), snn.run(X, 3))
    tuned = distil(snn, net, [X], 4, epochs=1, weight_lr=0, progress=False)  # rounded anew
    assert torch.allclose(to_integers(tuned).run(X, 4), tuned.run(X, 4), atol=1e-4)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({}, ValueError, "weight_bits is an empty mapping; give a number, or {'*': 8}"),
        ({1: 8}, TypeError, "weight_bits maps names of layers to numbers, got 1 as a name"),
        ({"*": 1}, ValueError, "weight_bits must be from 2 to 16, or None, got 1"),
        ({"*": 8.0}, TypeError, "weight_bits must be an integer from 2 to 16, or None, got 8.0"),
        ({"*": "8"}, TypeError, "got '8'"),
        (
            {"0": None, "*": 4},
            TypeError,
            "weight_bits must be an integer from 2 to 16, or None, got None",
        ),
    ],
)
def test_bits_by_layer_are_checked(given, error, words):
    with pytest.raises(error, match=re.escape(words)):
        Options(weight_bits=given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"heed": 8, "*": 4}, "weight_bits: 'heed' matches none of the layers ["),
        ({"0": 8}, "weight_bits: no pattern matches ['2']; add '*': 8 as the last one"),
    ],
)
def test_bits_by_layer_name_layers(convert, given, words):
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=re.escape(words)):
        convert(net, [torch.rand(8, 3)], weight_bits=given)


@torch.no_grad()
def test_calibration_makes_up_for_it(convert):
    ann = resnet(blocks=2)
    options = {"time_steps": 4, "max_spikes": 15}
    errors = {
        (bits, calibration): (
            convert(ann, [X], weight_bits=bits, calibration=calibration, **options).answer(X, 4) - ann(X)
        ).norm()
        for bits, calibration in (
            (None, "none"),
            (3, "none"),
            (3, "light"),
            (3, "advanced"),
            (8, "none"),
        )
    }
    assert errors[3, "none"] > 3 * errors[None, "none"]  # three bits hurt
    assert errors[3, "light"] < 0.7 * errors[3, "none"]
    assert errors[3, "advanced"] < errors[3, "light"]
    assert errors[8, "none"] < 2 * errors[None, "none"]


def test_the_ann_is_left_alone_and_files_hold_it(convert, tmp_path):
    ann = vgg()
    before = {name: value.clone() for name, value in ann.state_dict().items()}
    x = torch.randn(16, 2, 8, 8)
    snn = convert(ann, [x], weight_bits=8)
    assert all(torch.equal(value, before[name]) for name, value in ann.state_dict().items())
    save(snn, tmp_path / "snn.pt")
    again = load(tmp_path / "snn.pt", ann)
    assert again.options.weight_bits == 8
    assert torch.equal(again.run(x, 3), snn.run(x, 3))
    with pytest.raises(ValueError, match="pass weight_lr=0"):
        distil(snn, ann, [x], progress=False)
    fitted = distil(snn, ann, [x], weight_lr=0, epochs=1, progress=False)
    for a, b in zip(fitted.graph.modules(), snn.graph.modules(), strict=True):
        if isinstance(a, LAYERS):  # but for the thresholds, to which they are rounded
            assert (a.weight - b.weight).norm() < 0.02 * b.weight.norm()


@pytest.mark.parametrize("bits", [1, 17, 0, -8])
def test_other_numbers_of_bits(bits):
    with pytest.raises(ValueError, match=f"from 2 to 16, or None, got {bits}"):
        Options(weight_bits=bits)


@pytest.mark.parametrize("bits", [True, 8.0, "8"])
def test_what_is_no_number_of_bits(bits):
    with pytest.raises(TypeError, match="weight_bits must be an integer"):
        Options(weight_bits=bits)


def test_training_rounds_again_to_the_thresholds_that_it_has_found(convert):
    ann = resnet()
    data = [(x, torch.arange(len(x)) % 3) for x in X.split(16)]
    snn = convert(ann, [X], weight_bits=8)
    for fitted in (
        distil(snn, ann, data, epochs=1, weight_lr=0, progress=False),
        finetune(snn, data, time_steps=2, progress=False),
    ):
        assert fitted.options.weight_bits == 8
        integers = to_integers(fitted)
        assert integers.run(X[:2], 2).isfinite().all()
    with pytest.raises(ValueError, match="off their integers; pass weight_lr=0"):
        distil(snn, ann, data, weight_lr=1e-3, progress=False)


@torch.no_grad()
@pytest.mark.parametrize("max_spikes", [4, 255])
def test_half_precision_rounds_as_single_does(convert, max_spikes):
    """1/θ of a channel that is hardly active is more than half precision holds."""
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1)).eval()
    ann[0].weight[0], ann[0].bias[0] = 0, 5e-5
    options = {"max_spikes": max_spikes, "time_steps": 1, "weight_bits": 8}
    wanted = convert(ann, [X], **options).answer(X, 1)
    snn = convert(ann.half(), [X.half()], **options)
    assert (snn.answer(X.half(), 1) - wanted).norm() < 0.03 * wanted.norm()
    unit = unit_thresholds(snn).answer(X.half(), 1)
    assert (unit - wanted).norm() < 0.05 * wanted.norm()


def test_integers_of_another_precision(convert):
    snn = convert(resnet().double(), [X.double()], weight_bits=8)
    with pytest.raises(ValueError, match=r"got torch\.float64; convert it in float32, or call"):
        to_integers(snn)
    with torch.no_grad():
        integers = to_integers(snn.float())
        torch.testing.assert_close(integers.answer(X, 4), snn.answer(X, 4), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="as it was converted"):
        to_integers(integers)


class Shared(nn.Module):
    """Layers that no neuron has to itself: of a branch, of a difference, called twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(i, 8, 3, padding=1) for i in (3, 8, 8))
        self.branch, self.twice = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(512, 5)

    def forward(self, x):
        x = self.a(x).relu()
        x = (self.c(self.b(x).relu()) + self.branch(x)).relu()
        x = (self.twice(x) - self.twice(x.flip(2))).relu()
        return self.last(x.flatten(1))


@pytest.mark.parametrize(("bits", "times"), [(8, 3), (4, 60)])
def test_calibration_makes_up_for_layers_that_no_neuron_has_to_itself(convert, bits, times):
    torch.manual_seed(0)
    net, x = Shared().eval(), torch.rand(48, 3, 8, 8)

    def error(weight_bits):
        snn = convert(net, [x], weight_bits=weight_bits)
        return (snn.answer(x, 8) - net(x)).square().mean().item()

    with torch.no_grad():
        assert error(bits) < times * error(None)  # rounded after it, 76 and 900 times
