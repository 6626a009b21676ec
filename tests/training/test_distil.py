import math
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from sj_burst import save
from sj_burst.graph.quantised import quantised
from sj_burst.training import distil, distillation_loss, finetune
from sj_burst.training.distil import _Student
from sj_burst.utils.inputs import as_inputs
from tests.networks import resnet, vgg
from tests.training.networks import Interrupt

X = torch.randn(192, 3, 8, 8, generator=torch.Generator().manual_seed(0))
DATA, HELD_BACK = [X[i : i + 16] for i in range(0, 128, 16)], X[128:]
COARSE = {"max_spikes": 4, "time_steps": 1, "calibration": "none"}
QUIET = {"progress": False}


def test_the_loss_against_plain_python():
    o, q = torch.randn(2, 3, 4, dtype=torch.float64)
    expected = 0.0
    for a, b in zip(o.tolist(), q.tolist(), strict=True):
        p, r = ([math.exp(v) / sum(map(math.exp, row)) for v in row] for row in (b, a))
        expected += sum(x * math.log(x / y) for x, y in zip(p, r, strict=True)) / 3
    assert distillation_loss(o, q).item() == pytest.approx(expected)
    assert distillation_loss(3 * o, 3 * o + 2).item() == pytest.approx(0)  # the same distribution
    errors = ((o - q) ** 2).sum() / ((q - q.mean(0)) ** 2).sum()
    assert distillation_loss(o, q, "mse").item() == pytest.approx(errors.item())
    both = distillation_loss({"a": o, "b": [2 * o]}, {"a": q, "b": [2 * q]}, "mse")
    assert both.item() == pytest.approx(2 * errors.item())


def test_a_batch_of_one_is_compared_with_its_own_size():
    o, q = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 3.0]])
    assert distillation_loss(o, q, "mse").item() == pytest.approx(0.1)


def test_biases_of_zero_are_fitted(convert):
    torch.manual_seed(0)
    ann, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.rand(16, 4)
    nn.init.zeros_(ann[2].bias)
    snn = convert(ann, [x], **COARSE)
    fitted = distil(snn, ann, [x], epochs=2, **QUIET)
    assert (fitted.graph.get_submodule("2").bias != 0).all()


def test_a_network_may_change_its_precision_before(convert):
    ann = resnet().double()
    snn = convert(resnet(), DATA, max_spikes=4).double()
    x = [x.double() for x in DATA]
    fitted = distil(snn, ann, x, epochs=1, weight_lr=0, energy_budget=4.0, **QUIET)
    assert fitted.run(x[0], 2).dtype == torch.float64


@torch.no_grad()
def loss_of(snn, ann, x=HELD_BACK):
    return distillation_loss(snn.run(x, 1).mean(0), ann(x)).item()


@pytest.mark.slow
@pytest.mark.parametrize("weight_lr", [0.0, 1e-3])
def test_it_helps_on_other_images(convert, weight_lr):
    ann = resnet(blocks=2)
    with torch.no_grad():  # answers that differ
        ann.linear.weight *= 30
        ann.linear.bias -= ann(X).mean(0)
    snn = convert(ann, DATA, **COARSE)
    before = {name: value.clone() for name, value in snn.state_dict().items()}
    weights = [p.clone() for p in ann.parameters()]
    fitted = distil(snn, ann, DATA, epochs=20, lr=1e-2, weight_lr=weight_lr, **QUIET)
    assert loss_of(fitted, ann) < 0.7 * loss_of(snn, ann)
    assert all(torch.equal(value, before[name]) for name, value in snn.state_dict().items())
    assert all(map(torch.equal, ann.parameters(), weights))
    assert all(p.grad is None and p.requires_grad for p in ann.parameters())
    moved = {name for name, value in fitted.state_dict().items() if not same(value, before.get(name))}
    assert any(name.endswith("threshold") for name in moved)
    assert any(name.endswith("shift") for name in moved)
    assert any(name.endswith("bias") for name in moved)
    assert any(name.endswith("weight") for name in moved) is (weight_lr > 0)


def same(value, before):
    return before is not None and torch.equal(value, before)


@torch.no_grad()
def test_one_step_runs_what_was_fitted(convert):
    ann, x = vgg(), torch.rand(32, 2, 8, 8)
    snn = convert(ann, [x], max_spikes=4, time_steps=1)
    with torch.enable_grad():
        fitted = distil(snn, ann, [x], epochs=3, lr=1e-2, **QUIET)
    out = quantised(fitted.graph, 1)(x)
    assert torch.allclose(fitted.run(x, 1).mean(0), out, atol=1e-4)
    for name, node in fitted.neurons().items():  # potentials keep their ratio
        before = snn.neurons()[name]
        assert torch.allclose(node.v_init / node.threshold, before.v_init / before.threshold)


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 12), nn.LeakyReLU(0.1), nn.Linear(12, 12), nn.ReLU())
        self.a, self.b = nn.Linear(12, 3), nn.Linear(12, 1)

    def forward(self, x, y):
        h = self.body(x + y)
        return {"scores": self.a(h).softmax(1), "size": self.b(h)}


def test_several_inputs_and_outputs_and_a_read_out(convert):
    torch.manual_seed(0)
    ann, x, y = Heads(), torch.randn(64, 6), torch.randn(64, 6)
    snn = convert(ann, [((x, y),)], **COARSE)
    fitted = distil(
        snn, ann, [((x, y), torch.zeros(64))], epochs=100, lr=2e-2, weight_lr=1e-2, loss="mse", **QUIET
    )
    with torch.no_grad():
        wanted = ann(x, y)
        losses = [distillation_loss(n.answer((x, y), 1), wanted, "mse") for n in (fitted, snn)]
    assert losses[0] < 0.9 * losses[1]


def test_a_run_goes_on_where_it_stopped(convert, tmp_path):
    ann = resnet()
    snn = convert(ann, DATA, **COARSE)
    whole = distil(snn, ann, DATA, epochs=4, **QUIET).state_dict()
    path = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        distil(snn, ann, DATA, epochs=4, checkpoint=path, writer=Interrupt(3), **QUIET)
    got = distil(snn, ann, DATA, epochs=4, checkpoint=path, **QUIET).state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in got.items())
    with pytest.raises(ValueError, match=r"lr=0.003 \(now 0.01\)"):
        distil(snn, ann, DATA, epochs=4, lr=1e-2, checkpoint=path, **QUIET)
    save(snn, tmp_path / "snn.pt")  # what was fitted is an ordinary network


def test_a_sequence_of_one_picture_is_that_picture(convert):
    ann = resnet()
    snn = convert(ann, DATA, **COARSE)
    frames = [torch.stack([x, x, x]) for x in DATA]
    kept = [
        distil(snn, ann, data, 3, epochs=1, time_dim=dim, **QUIET).state_dict()
        for data, dim in ((DATA, None), (frames, 0))
    ]
    for name, value in kept[0].items():
        assert torch.allclose(value, kept[1][name], atol=1e-4), name


def test_the_gradient_is_that_of_rates_and_the_value_that_of_spikes(convert):
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3))
    x = torch.randn(16, 4)
    snn = convert(ann, [x], max_spikes=1, time_steps=3)
    student = _Student(snn, 3)
    out = student.answer(as_inputs(x))
    wanted = snn.run(x, 3).mean(0)
    assert torch.allclose(out, wanted, atol=1e-5)
    out.square().sum().backward()
    # The same by hand: rates of the spiking network, and straight lines where it is not at its ends.
    a, b, c = (snn.graph.get_submodule(name) for name in "024")
    first, second = (snn.neurons()[name] for name in "13")
    spikes = {}
    hooks = [
        n.register_forward_hook(lambda m, i, o, k=k: spikes.update({k: o.view(3, 16, 5).mean(0)}))
        for k, n in (("1", first), ("3", second))
    ]
    snn.run(x, 3)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        error = 2 * wanted
        for neuron, layer, r, key in ((second, b, spikes["1"], "3"), (first, a, x, "1")):
            following = c if key == "3" else b
            error = error @ following.weight
            u = (layer(r) + neuron.shift) * 3 / neuron.threshold + neuron.v_init / neuron.threshold
            error = error * ((u > 0) & (u < 3))
            got = student.rates.get_submodule(str(int(key) - 1)).weight.grad
            assert torch.allclose(got, error.T @ r, rtol=1e-3, atol=1e-4)


def test_bad_arguments(convert):
    ann = resnet()
    snn = convert(ann, DATA, **COARSE)
    with pytest.raises(TypeError, match="converted by BurstRecipe"):
        distil(ann, ann, DATA, **QUIET)
    with pytest.raises(TypeError, match="read only once"):
        distil(snn, ann, iter(DATA), **QUIET)
    with pytest.raises(ValueError, match="epochs"):
        distil(snn, ann, DATA, epochs=0, **QUIET)
    with pytest.raises(ValueError, match="class scores"):
        distil(snn, ann, DATA, loss="huber", **QUIET)
    heads = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    one = convert(heads, [torch.rand(8, 3)])
    with pytest.raises(ValueError, match=r"returns \[\[8, 1\]\]; use loss='mse'"):
        distil(one, heads, [torch.rand(8, 3)], **QUIET)
    with pytest.raises(ValueError, match="weight_lr"):
        distil(snn, ann, DATA, weight_lr=-1, **QUIET)
    with pytest.raises(ValueError, match="pass the network that snn was converted from"):
        distil(snn, nn.Sequential(nn.Flatten(), nn.Linear(192, 7)), DATA, **QUIET)
    with pytest.raises(ValueError, match="calibrated on samples"):
        distil(snn, ann, [torch.rand(8, 2, 8, 8)], **QUIET)
    with pytest.raises(ValueError, match="lower lr"):
        distil(snn, ann, DATA, lr=1e9, epochs=3, **QUIET)


def test_endless_levels_may_be_fitted_too(convert):
    ann = resnet()
    snn = convert(ann, DATA, max_spikes=math.inf, threshold="max", calibration="none", time_steps=1)
    fitted = distil(snn, ann, DATA, epochs=2, **QUIET)
    assert loss_of(fitted, ann) < loss_of(snn, ann)


class Stream(torch.utils.data.IterableDataset):
    """Samples one after the other, as many as come."""

    def __iter__(self):
        return iter([(x, 0) for x in X[:32]])


def test_a_loader_over_a_stream_has_no_length(convert):
    ann = resnet()
    loader = torch.utils.data.DataLoader(Stream(), 16)
    snn = convert(ann, loader, calibration="none")
    fitted = distil(snn, ann, loader, epochs=1, **QUIET)
    assert finetune(fitted, loader, time_steps=2, **QUIET).run(X[:1], 2).isfinite().all()


@pytest.mark.parametrize("max_pool", ["spike", "gated", "lateral_inhibition", "average"])
def test_the_loss_is_that_of_the_spikes_whatever_pools(convert, max_pool):
    ann = vgg()
    x = torch.randn(16, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    snn = convert(ann, [x], max_pool=max_pool, max_spikes=1, time_steps=8, calibration="none")

    class Writer:
        def add_scalar(self, _, value, __):
            assert value == pytest.approx(
                distillation_loss(snn.answer(x, 8), ann(x), "mse").item(), rel=1e-4
            )

    options = dict(epochs=1, lr=1e-12, weight_lr=0, loss="mse", writer=Writer(), **QUIET)
    distil(snn, ann, [x], **options)


def test_a_last_step_too_long_is_noticed(convert, tmp_path):
    ann = resnet()
    snn = convert(ann, DATA, **COARSE)
    path = tmp_path / "run.pt"
    with pytest.raises(ValueError, match="lower lr"):
        distil(snn, ann, DATA[:1], epochs=1, lr=1e3, checkpoint=path, **QUIET)
    assert not path.exists()


def test_a_run_goes_on_with_the_ann_it_was_started_from_only(convert, tmp_path):
    ann = resnet()
    snn = convert(ann, DATA, **COARSE)
    options = dict(epochs=1, checkpoint=tmp_path / "run.pt", **QUIET)
    distil(snn, ann, DATA, **options)
    with torch.no_grad():
        next(iter(ann.parameters())).add_(0.1)
    with pytest.raises(ValueError, match="another network: ann"):
        distil(snn, ann, DATA, **options)


def test_the_result_is_fitted_for_the_steps_of_training(convert):
    ann = resnet()
    snn = convert(ann, DATA, **COARSE)
    assert distil(snn, ann, DATA, time_steps=3, epochs=1, **QUIET).options.time_steps == 3
    assert snn.options.time_steps == 1


def test_what_could_not_be_expected_is_told_of_before_training(convert):
    ann = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    sizes = [torch.rand(4, 1, 8, 8), torch.rand(4, 1, 6, 6)]
    snn = convert(ann, sizes[:1], expected_spikes="median", calibration="none")
    writer = Mock()
    with pytest.raises(ValueError, match="bring them to one"):
        distil(snn, ann, sizes, writer=writer, **QUIET)
    assert not writer.add_scalar.called
