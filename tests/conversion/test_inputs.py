"""Networks that take several tensors."""

import pytest
import torch
from spikingjelly.activation_based import functional
from torch import nn
from torch.utils.data import DataLoader

import sj_burst
from sj_burst.analysis.inactivated import inactivated_share
from sj_burst.training.rate_measure import evaluate_rates
from sj_burst.training.rate_norm import replace_relu
from sj_burst.training.scale_stage import train_threshold_scale
from sj_burst.training.weight_stage import train_rates
from tests.networks import randomize_batch_norm

EXACT = {"calibration": "none", "threshold": "max", "max_spikes": 16, "progress": False}


class Siamese(nn.Module):
    """Two images through one trunk."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            *(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(96, 12), nn.ReLU()),
        )
        self.head = nn.Linear(12, 3)

    def forward(self, left, right):
        return self.head(self.trunk(left) - self.trunk(right))


class TwoStream(nn.Module):
    """An image and a vector, and an offset of the scores if there is one."""

    def __init__(self):
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(2, 4, 3, 2), nn.ReLU(), nn.Flatten())
        self.vector = nn.Sequential(nn.Linear(5, 7), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(36 + 7, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, image, vector, offset=None):
        out = self.head(torch.cat([self.image(image), self.vector(vector)], dim=1))
        return out if offset is None else out + offset


def siamese():
    torch.manual_seed(0)
    return randomize_batch_norm(Siamese()).eval(), (torch.rand(24, 2, 8, 8), torch.rand(24, 2, 8, 8))


def two_stream():
    torch.manual_seed(1)
    return TwoStream().eval(), (torch.rand(24, 2, 8, 8), torch.randn(24, 5))


NETWORKS = pytest.mark.parametrize("make", [siamese, two_stream])


def distance(out, wanted):
    return ((out - wanted).norm() / wanted.norm()).item()


@NETWORKS
@pytest.mark.parametrize("calibration", ["none", "advanced"])
@torch.no_grad()
def test_rates_approach_the_ann(make, calibration):
    ann, x = make()
    snn = sj_burst.convert(ann, [(x,)], **EXACT | {"calibration": calibration})
    wanted = ann(*x)
    within = 0.02 if calibration == "none" else 0.05  # it is fitted for few steps, on few images
    assert distance(snn.run(x, 128).mean(0), wanted) < within
    few, many = (distance(snn.run(x, t).mean(0), wanted) for t in (2, 128))
    assert many < few
    swapped = (x[1], x[0]) if make is siamese else (x[0].flip(0), x[1])
    assert distance(snn.run(swapped, 128).mean(0), ann(*swapped)) < within


@NETWORKS
@torch.no_grad()
def test_the_network_is_called_as_the_ann_is(make):
    """One step after the other, all at once, held, and by name: the same spikes."""
    ann, x = make()
    ann, x = ann.double(), tuple(t.double() for t in x)
    snn = sj_burst.convert(ann, [(x,)], **EXACT)
    names = list(snn.inputs)
    held = snn.run(x, 5)
    steps = torch.stack([snn(*x) for _ in range(5)])
    functional.reset_net(snn)
    assert torch.allclose(held, steps, rtol=0, atol=1e-12)
    assert torch.equal(held, snn.run(dict(zip(names, x, strict=True)), 5))
    functional.set_step_mode(snn, "m")
    sequence = [t.expand(5, *t.shape) for t in x]
    first = snn(*sequence)
    functional.reset_net(snn)
    assert torch.equal(first, snn(sequence[0], **{names[1]: sequence[1]}))
    assert torch.allclose(first, steps, rtol=0, atol=1e-12)


@NETWORKS
def test_every_function_takes_such_batches(make, tmp_path):
    """As a list, which DataLoader makes of pairs; as a tuple; and by name."""
    ann, x = make()
    with torch.no_grad():
        target = ann(*x).argmax(1)
    samples = list(zip(zip(*x, strict=True), target, strict=True))
    loader = DataLoader(samples, 10)
    assert isinstance(next(iter(loader))[0], list)
    snn = sj_burst.convert(ann, loader, time_steps=8, max_spikes=8, progress=False)
    result = sj_burst.simulate(snn, loader, 16, reference=ann, progress=False)
    assert result.accuracy[-1] > 0.9 and result.error[-1] < 0.1
    assert result.samples == 24 and result.operations.synops > 0
    named = [(dict(zip(snn.inputs, x, strict=True)), target)]
    again = sj_burst.simulate(snn, named, 16, reference=ann, progress=False)
    assert torch.allclose(again.output, result.output, atol=1e-5)
    assert torch.allclose(again.error, result.error, atol=1e-5)

    counted = sj_burst.synops(snn, loader, 16)
    assert counted.synops == pytest.approx(result.operations.synops, rel=1e-6)
    found = sj_burst.report(snn, ann, loader, 16)
    assert found.output_error == pytest.approx(result.error[-1].item(), rel=1e-3)
    assert set(inactivated_share(snn, ann, loader, 4)) == set(snn.neurons())

    sj_burst.save(snn, tmp_path / "snn.pt")
    loaded = sj_burst.load(tmp_path / "snn.pt", ann)
    assert loaded.inputs == snn.inputs
    with torch.no_grad():
        assert torch.equal(loaded.run(x, 4), snn.run(x, 4))

    margin = sj_burst.fit_early_exit(snn, loader, 8, max_loss=10)
    left = sj_burst.simulate(snn, loader, 8, early_exit=margin, progress=False)
    assert left.average_steps < 8 and left.accuracy[-1] >= result.accuracy[7] - 0.11
    for mode in "ms":
        tuned = sj_burst.training.finetune(snn, loader, 2, step_mode=mode, progress=False)
        assert sj_burst.simulate(tuned, loader, 2, progress=False).samples == 24
    chosen = sj_burst.recommend(ann, loader, max_drop=100, progress=False)
    assert chosen.met and len(chosen.trials) == 1
    _, ax = sj_burst.plot.spike_raster(snn, x, next(iter(snn.neurons())), 4)
    assert ax.get_xlabel() == "time step"


@NETWORKS
def test_rate_domain_training(make):
    ann, x = make()
    target = torch.arange(24) % 3
    loader = [(x, target)]
    net = train_rates(replace_relu(ann), loader, epochs=1, lr=0.01, progress=False)
    assert len(evaluate_rates(net, loader)[1]) > 1
    best = train_threshold_scale(net, net, loader, loader, epochs=1, progress=False)[0]
    net.load_state_dict(best.state_dict)
    snn = sj_burst.convert(net, loader, threshold="trained", max_spikes=8, progress=False)
    with torch.no_grad():
        assert distance(snn.run(x, 64).mean(0), net(*x)) < 0.1


@pytest.mark.parametrize("coding", ["rate", "poisson", "compensated"])
@torch.no_grad()
def test_every_input_has_an_encoder_of_its_own(coding, tmp_path):
    ann, (image, vector) = two_stream()
    x = (image, 3 * vector)
    snn = sj_burst.convert(ann, [(x,)], coding=coding, time_steps=64, **EXACT)
    thetas = [snn.graph.get_submodule(f"encoder_{name}").threshold for name in snn.inputs]
    assert thetas == [t.abs().max() for t in x]
    assert distance(snn.run(x, 64).mean(0), ann(*x)) < (0.3 if coding == "poisson" else 0.1)
    sj_burst.save(snn, tmp_path / "snn.pt")
    loaded = sj_burst.load(tmp_path / "snn.pt", ann)
    if coding != "poisson":
        assert torch.equal(loaded.run(x, 4), snn.run(x, 4))


@torch.no_grad()
def test_an_input_with_a_default_is_taken_if_it_is_given():
    ann, x = two_stream()
    offset = torch.randn(24, 3)
    for value, wanted in (
        (x, ann(*x)),
        ((*x, offset), ann(*x, offset)),
        ({"vector": x[1], "image": x[0], "offset": offset}, ann(*x, offset)),
    ):
        snn = sj_burst.convert(ann, [(value,)], **EXACT)
        assert len(snn.inputs) == len(value)
        assert distance(snn.run(value, 128).mean(0), wanted) < 0.02
        result = sj_burst.simulate(snn, [(value,)], 8, reference=ann, progress=False)
        assert result.error[-1] < 0.1


@torch.no_grad()
def test_sizes_may_differ_and_one_input_may_be_of_integers():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.image = nn.Embedding(9, 6), nn.Conv2d(1, 6, 3, padding=1)
            self.head = nn.Sequential(nn.ReLU(), nn.Linear(6, 2))

        def forward(self, words, image):
            return self.head(self.words(words).mean(1) + self.image(image).mean((2, 3)))

    torch.manual_seed(0)
    ann, x = Words(), (torch.randint(9, (8, 4)), torch.rand(8, 1, 5, 5))
    snn = sj_burst.convert(ann, [(x,)], **EXACT)
    other = (torch.randint(9, (8, 4)), torch.rand(8, 1, 7, 6))
    assert distance(snn.run(other, 128).mean(0), ann(*other)) < 0.05
    with pytest.raises(ValueError, match="coding='rate' needs images of real numbers"):
        sj_burst.convert(ann, [(x,)], coding="rate", progress=False)
    with pytest.raises(ValueError, match=r"inputs words of torch.int64, got torch.float32"):
        snn.run((x[0].float(), x[1]), 2)


@torch.no_grad()
def test_what_follows_the_mean_output_and_several_outputs():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = two_stream()[0]

        def forward(self, image, vector):
            out = self.net(image, vector)
            return {"share": out.softmax(1), "rest": (out.sum(1), vector)}

    ann, (_, x) = Both(), two_stream()
    snn = sj_burst.convert(ann, [(x,)], **EXACT)
    found, wanted = snn.answer(x, 128), ann(*x)
    assert distance(found["share"], wanted["share"]) < 0.02
    assert distance(found["rest"][0], wanted["rest"][0]) < 0.05
    assert torch.allclose(found["rest"][1], x[1], atol=1e-5)
    result = sj_burst.simulate(snn, [(x,)], 64, output="share", reference=ann, progress=False)
    assert result.error[-1] < 0.02 and result.operations.synops > 0


@torch.no_grad()
def test_a_size_that_python_knows_follows_the_samples_of_all_inputs():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.image, self.vector = nn.Linear(12, 6), nn.Linear(5, 6)
            self.head = nn.Linear(6, 2)

        def forward(self, image, vector):
            flat = image.reshape(int(image.shape[0]), -1)
            return self.head((self.image(flat) + self.vector(vector)).relu())

    torch.manual_seed(0)
    ann, x = Flat(), (torch.rand(8, 3, 4), torch.rand(8, 5))
    snn = sj_burst.convert(ann, [(x,)], **EXACT)
    assert distance(snn.run(x, 128).mean(0), ann(*x)) < 0.02


def test_other_batches_are_refused():
    ann, x = two_stream()
    with pytest.raises(ValueError, match=r"takes \['image', 'vector'\] .* the loader yields 1 input"):
        sj_burst.convert(ann, [list(x)], progress=False)  # an input and its target
    with pytest.raises(ValueError, match=r"inputs of \[23, 24\] samples in one batch"):
        sj_burst.convert(ann, [((x[0], x[1][:23]),)], progress=False)
    with pytest.raises(TypeError, match="with a NoneType among the inputs"):
        sj_burst.convert(ann, [((*x, None),)], progress=False)
    snn = sj_burst.convert(ann, [(x,)], **EXACT)
    with pytest.raises(ValueError, match=r"takes 2 inputs \(image, vector\), got 1; yield"):
        sj_burst.simulate(snn, [x[0]], 2, progress=False)
    with pytest.raises(ValueError, match=r"inputs named \['image', 'vector'\], got \['image'\]"):
        sj_burst.simulate(snn, [{"image": x[0]}], 2, progress=False)
    with pytest.raises(ValueError, match=r"samples vector \[5\], got \[4\]"):
        snn.run((x[0], x[1][:, :4]), 2)
    with pytest.raises(ValueError, match=r"differ in \[N\]"):
        snn.run((x[0], x[1][:4]), 2)
    one = sj_burst.convert(nn.Sequential(nn.Linear(5, 3), nn.ReLU()), [x[1]], progress=False)
    with pytest.raises(ValueError, match="takes one input, got 2"):
        sj_burst.simulate(one, [(x, torch.zeros(24))], 2, progress=False)


class Mixing(nn.Module):
    def forward(self, a, b):
        return a.relu() + b.mean(0)


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, a, b):
        return self.last(self.hidden(a.relu() * b.relu()).relu())


@pytest.mark.parametrize(("net", "problem"), [(Mixing(), "mixes the samples"), (Gated(), "mul")])
def test_the_checks_see_all_inputs(net, problem):
    x = (torch.randn(8, 3), torch.randn(8, 3))
    with pytest.raises(ValueError, match=problem):
        sj_burst.convert(net, [(x,)], progress=False)


def test_no_input_is_dropped():
    ann, (image, vector) = two_stream()
    snn = sj_burst.convert(ann, [((image, vector),)], calibration="none", progress=False)
    for given, named in (((image, vector), {"vector": vector}), ((image, vector, vector), {})):
        with pytest.raises(ValueError, match=r"takes (2 )?inputs"):
            snn(*given, **named)
    first = snn(image, vector=vector)
    functional.reset_net(snn)
    assert torch.equal(first, snn(image, vector))
