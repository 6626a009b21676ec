"""What follows the last neuron and is no affine map is applied to the mean output over time."""

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based.functional import reset_net
from torch import nn

import sj_burst
from sj_burst.graph.readout import ReadOut, clipped_outputs
from sj_burst.utils.outputs import map_tensors, tensors_of

EXACT = {"calibration": "none", "threshold": "mse", "max_spikes": 256}


class Heads(nn.Module):
    """Class scores, values and positions from one trunk; what is made of them is to be tested."""

    def __init__(self, end=lambda a, b, h: (a, b, h)):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        self.a, self.b, self.h = nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(8, 2 * 9)
        self.norm, self.last = nn.LayerNorm(4), nn.Linear(4, 5)
        self.end = end

    def forward(self, x):
        h = self.trunk(x)
        args = (self.a(h), self.b(h), self.h(h).view(-1, 2, 3, 3))
        return self.end(*args) if self.end.__code__.co_argcount == 3 else self.end(self, *args)


def suppressed(a, b, h):
    """Peaks of a map of scores, as detectors of centres find them."""
    heat = torch.sigmoid(h).clamp(0.05, 0.95)
    return heat * (F.max_pool2d(heat, 3, 1, 1) == heat).float()


def in_place(a, b, h):
    x = a + 1
    x.exp_()
    return F.elu(x - 2, inplace=True)


ENDS = {
    "softmax": lambda a, b, h: F.softmax(a, dim=1),
    "log softmax": lambda a, b, h: a.log_softmax(1).view(a.shape[0], 2, 2),
    "sigmoid": lambda a, b, h: torch.sigmoid(h),
    "tanh": lambda a, b, h: 3 * torch.tanh(a) + 1,
    "exp": lambda a, b, h: a.exp(),
    "normalize": lambda a, b, h: F.normalize(a),
    "norm by hand": lambda a, b, h: a / a.norm(dim=1, keepdim=True).clamp(min=1e-6),
    "expected position": lambda a, b, h: (
        h.flatten(2).softmax(2).view(h.size(0), 2, 3, 3).sum(3) @ torch.linspace(0, 1, 3)
    ),
    "peaks": suppressed,
    "product of heads": lambda a, b, h: a * b,
    "softmaxes side by side": lambda a, b, h: torch.cat([a.softmax(1), b.softmax(1)], 1),
    "several outputs": lambda a, b, h: {"scores": a.sigmoid(), "boxes": [b, h.exp()], "both": a * b},
    "sorted": lambda a, b, h: torch.sort(a, 1)[0],
    "largest": lambda a, b, h: a.topk(2, 1).values,
    "class": lambda a, b, h: a.argmax(1),
    "a size of another value": lambda a, b, h: a.exp().repeat(1, h.shape[2] - 1).view(a.size(0), -1),
    "stacked, samples second": lambda a, b, h: torch.stack([a, b]).softmax(0).prod(0),
    "in parts": lambda a, b, h: [part.tanh() for part in h.chunk(2, 1)],
    "in place": in_place,
    "normalised and weighed": lambda self, a, b, h: self.last(self.norm(a)),
}


def pair(end, **options):
    """A network with an end, and the spiking networks with and without it."""
    torch.manual_seed(0)
    bare = Heads()
    net = Heads(end)
    net.load_state_dict(bare.state_dict())
    x = torch.randn(16, 3)
    convert = [sj_burst.convert(ann, [x], progress=False, **(EXACT | options)) for ann in (net, bare)]
    return net.eval(), x, *convert


def means(snn, x, time_steps):
    """Mean output after every step, one step at a time."""
    reset_net(snn)
    total, found = None, []
    for t in range(1, time_steps + 1):
        out = tuple(o.double() for o in snn(x))
        total = out if total is None else tuple(map(torch.add, total, out))
        found.append(tuple((o / t).float() for o in total))
    reset_net(snn)
    return found


def ended(net, values):
    values = [v.clone() for v in values]
    return net.end(*values) if net.end.__code__.co_argcount == 3 else net.end(net, *values)


def assert_alike(got, wanted, **tolerance):
    got, wanted = tensors_of(got), tensors_of(wanted)
    assert got.keys() == wanted.keys()
    for path, tensor in wanted.items():
        assert torch.allclose(got[path].float(), tensor.float(), **tolerance), path


@torch.no_grad()
@pytest.mark.parametrize("name", ENDS)
def test_the_answer_is_the_function_of_the_mean_output(name):
    net, x, snn, bare = pair(ENDS[name], max_spikes=2)
    assert isinstance(snn.readout, ReadOut) and isinstance(bare.readout, nn.Identity)
    expected = means(bare, x, 5)
    for t in (1, 5):
        assert_alike(snn.answer(x, t), ended(net, expected[t - 1]), atol=1e-5)
    for output in tensors_of(net(x)):
        result = sj_burst.simulate(snn, [x[:9], x[9:]], 5, output=output, reference=net, progress=False)
        answers = [tensors_of(ended(net, mean))[output].float() for mean in expected]
        wanted = tensors_of(net(x))[output].float()
        errors = torch.stack([(answer - wanted).norm() / wanted.norm() for answer in answers])
        assert torch.allclose(result.error, errors, atol=1e-4)
        assert torch.allclose(result.output, answers[-1], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(ENDS.keys() - {"class", "peaks"}))
def test_the_answer_is_the_anns_at_many_levels(name):
    net, x, snn, _ = pair(ENDS[name])
    assert_alike(snn.answer(x, 32), net(x), atol=0.02)


@torch.no_grad()
def test_steps_return_what_the_read_out_reads_in_the_place_of_its_outputs():
    net, x, snn, bare = pair(ENDS["several outputs"])
    a, b, h = bare.run(x, 3)
    steps = {"scores": a, "boxes": [b, h], "both": (a, b)}
    assert_alike(snn.run(x, 3), steps, rtol=0)
    snn.step_mode = "m"
    assert_alike(snn(x.expand(3, *x.shape)), steps, rtol=0)
    snn.step_mode = "s"
    reset_net(snn)
    assert_alike(snn(x), map_tensors(lambda t: t[0], steps), rtol=0)
    with snn.present(x) as shown:
        assert_alike(shown.run(3), steps, rtol=0)
    mean = map_tensors(lambda t: t.mean(0), steps)
    before = map_tensors(torch.clone, mean)
    assert_alike(snn.readout(mean), ended(net, (a.mean(0), b.mean(0), h.mean(0))), atol=1e-6)
    assert_alike(mean, before, rtol=0)
    assert "of the mean output: ReadOut(Tensor.sigmoid, Tensor.exp, mul)" in repr(snn)


@torch.no_grad()
def test_a_read_out_leaves_its_input_as_it_is():
    _, x, snn, _ = pair(lambda a, b, h: F.elu(a, inplace=True))
    mean = snn.run(x, 2).mean(0)
    before = mean.clone()
    assert not torch.equal(snn.readout(mean), before)
    assert torch.equal(mean, before)


@torch.no_grad()
@pytest.mark.parametrize("name", ["several outputs", "normalised and weighed"])
def test_the_rest_of_the_package_takes_them(tmp_path, name):
    net, x, snn, bare = pair(ENDS[name], max_spikes=2, calibration="advanced", threshold="mse")
    found = sj_burst.report(snn, net, [x], 8)
    rows = [
        torch.cat([t.flatten(1) for t in tensors_of(value).values()], 1)
        for value in (ended(net, means(bare, x, 8)[-1]), net(x))
    ]
    error = (rows[0] - rows[1]).norm() / rows[1].norm()
    assert found.output_error == pytest.approx(error.item(), rel=1e-3)
    assert "note: of the mean output: ReadOut(" in str(found)
    sj_burst.save(snn, tmp_path / "snn.pt")
    again = sj_burst.load(tmp_path / "snn.pt", Heads(ENDS[name]))
    assert_alike(again.answer(x, 3), snn.answer(x, 3), rtol=0, atol=0)
    with pytest.raises(ValueError, match="does not fit ann"):
        sj_burst.load(tmp_path / "snn.pt", Heads())


@torch.no_grad()
def test_layers_of_a_read_out_cost_macs_once_a_sample():
    _, x, snn, bare = pair(ENDS["normalised and weighed"])
    counted = sj_burst.synops(snn, [x], 4)
    assert counted.layers["last"] == sj_burst.simulation.operations.LayerOperations(
        0, 20, 20, binary_synops=0, graded_synops=0
    )
    assert sj_burst.simulate(snn, [x], 4, progress=False).operations.layers == counted.layers
    others = sj_burst.synops(bare, [x], 4).layers
    assert all(counted.layers[name] == others[name] for name in ("a", "trunk.0", "trunk.2"))


class Tied(nn.Module):
    """A layer that comes twice: before the last neuron, and in the read-out."""

    def __init__(self):
        super().__init__()
        self.first, self.fc = nn.Linear(3, 8), nn.Linear(8, 8)

    def forward(self, x):
        samples = x.size(0)
        h = F.relu(self.fc(F.relu(self.first(x))))
        return self.fc(F.normalize(h)).view(samples, 8, 1)


@torch.no_grad()
def test_calibration_leaves_the_layers_of_a_read_out_as_they_are():
    torch.manual_seed(0)
    net, x = Tied(), torch.randn(64, 3)
    snn = sj_burst.convert(net, [x], max_spikes=1, time_steps=2, progress=False)
    assert isinstance(snn.run(x, 2), torch.Tensor)  # the number of samples is no value of the network's
    assert not torch.equal(snn.graph.fc.bias, net.fc.bias)
    assert torch.equal(snn.readout.graph.fc.bias, net.fc.bias)
    snn = sj_burst.convert(net, [x], progress=False, **EXACT)
    assert_alike(snn.answer(x, 8), net(x), atol=0.02)


def test_a_file_is_of_a_read_out_too(tmp_path):
    x = torch.randn(8, 3)
    sj_burst.save(sj_burst.convert(classifier(nn.Softmax(1)), [x], progress=False), tmp_path / "snn.pt")
    for end in ((), (nn.Sigmoid(),)):
        with pytest.raises(ValueError, match="they differ in"):
            sj_burst.load(tmp_path / "snn.pt", classifier(*end))


def classifier(*end):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4), *end)


@pytest.mark.parametrize("end", [nn.Softmax(dim=1), nn.LogSoftmax(dim=1), nn.Sigmoid()])
def test_early_exit_and_fine_tuning_are_those_of_the_scores(end):
    x = torch.randn(64, 3)
    data = [(x, classifier()(x).argmax(1))]
    plain, full = (
        sj_burst.convert(classifier(*ends), [x], max_spikes=1, progress=False) for ends in ((), (end,))
    )
    margins = [sj_burst.fit_early_exit(snn, data, 8) for snn in (plain, full)]
    runs = [sj_burst.simulate(snn, data, 8, early_exit=0.1, progress=False) for snn in (plain, full)]
    assert margins[0] == margins[1]
    assert runs[0].average_steps == runs[1].average_steps < 8
    assert torch.equal(runs[0].accuracy, runs[1].accuracy)
    assert torch.allclose(end(runs[0].output), runs[1].output, atol=1e-6)
    for mode in ("s", "m"):
        tuned = [
            sj_burst.training.finetune(snn, data, 3, step_mode=mode, progress=False)
            for snn in (plain, full)
        ]
        weights = [snn.graph.get_submodule("2").weight for snn in (*tuned, plain)]
        assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    "end",
    [
        (nn.LayerNorm(4), nn.Linear(4, 4)),
        (nn.Softmin(dim=1),),
        (nn.Tanh(), nn.Unflatten(1, (2, 2)), nn.Flatten(), nn.GLU()),
    ],
)
def test_the_loss_of_other_scores_is_refused(end):
    x = torch.randn(16, 3)
    snn = sj_burst.convert(classifier(*end), [x], progress=False, **EXACT)
    with pytest.raises(ValueError, match="makes other class scores"):
        data = [(x, torch.zeros(16, dtype=torch.long))]
        sj_burst.training.finetune(snn, data, 2, progress=False)


class Masked(nn.Module):
    """Attention over the positions of a sequence, of which some are empty."""

    def __init__(self):
        super().__init__()
        self.embed, self.fc, self.score = nn.Linear(3, 8), nn.Linear(8, 4), nn.Linear(4, 1)

    def forward(self, x):
        n, length, _ = x.shape
        empty = (x == 0).all(2)
        h = F.relu(self.fc(F.relu(self.embed(x))))
        weights = self.score(h).view(n, length).exp().masked_fill(empty, 0)
        weights = weights / weights.sum(1, keepdim=True)
        return (weights.unsqueeze(2) * h).sum(1), weights


@torch.no_grad()
def test_a_mask_reaches_the_read_out_and_lengths_are_free():
    torch.manual_seed(0)
    net = Masked()

    def sequences(length):
        x = torch.randn(8, length, 3)
        x[:, length - 2 :] = 0
        return x

    snn = sj_burst.convert(net, [sequences(6)], progress=False, channel_wise=False, **EXACT)
    for x in (sequences(6), sequences(9)):
        assert_alike(snn.answer(x, 7), net(x), atol=0.02)
    assert snn.run(x, 2)[1][0].dtype == torch.bool  # the mask, beside the scores


@torch.no_grad()
def test_a_map_of_any_size_may_have_a_read_out():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.Softmax2d())
    snn = sj_burst.convert(net, [torch.rand(4, 1, 8, 8)], progress=False, **EXACT)
    x = torch.rand(2, 1, 11, 13)
    assert_alike(snn.answer(x, 8), net(x), atol=0.01)


@torch.no_grad()
def test_a_network_in_half_precision_reads_out_in_it():
    net, x, snn, _ = pair(ENDS["normalised and weighed"])
    low = snn.bfloat16()
    result = sj_burst.simulate(low, [x.bfloat16()], 8, progress=False)
    assert result.output.dtype == torch.float32
    assert (result.output - net(x)).norm() < 0.05 * net(x).norm()


@torch.no_grad()
@pytest.mark.parametrize("coding", ["rate", "compensated"])
def test_of_coded_inputs_too(coding):
    class Beside(nn.Module):
        """One output without a neuron before it: what is coded in spikes varies, too."""

        def __init__(self):
            super().__init__()
            self.first, self.second, self.other = nn.Linear(3, 8), nn.Linear(8, 4), nn.Linear(3, 4)

        def forward(self, x):
            return self.second(F.relu(self.first(x))).softmax(1), torch.sigmoid(self.other(x))

    net, x = Beside(), torch.randn(16, 3)
    options = EXACT | {"coding": coding, "time_steps": 64}
    snn = sj_burst.convert(net, [x], progress=False, **options)
    assert_alike(snn.answer(x, 64), net(x), atol=0.05)


class Hidden(nn.Module):
    def __init__(self, operation):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 4)
        self.operation = operation

    def forward(self, x):
        return self.operation(self, F.relu(self.first(x)))


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda self, h: self.second(F.silu(h)), r"1 operation.*silu.*retrain with ReLU"),
        (lambda self, h: F.gelu(self.second(F.softmax(h, 1))), r"2 operation.*softmax.*gelu"),
        (lambda self, h: F.relu(self.second(F.normalize(h))), r"1 operation.*normalize"),
        (lambda self, h: self.second(torch.tanh(h)).softmax(1), r"1 operation.*tanh"),
        (lambda self, h: F.dropout(h.exp(), 0.5), "random at inference"),
        (lambda self, h: h + torch.randn_like(h), "randn_like.*its result is random"),
        (lambda self, h: torch.bernoulli(h.sigmoid()), "bernoulli.*its result is random"),
        (lambda self, h: h.softmax(0), "mixes the samples of a batch"),
        (lambda self, h: h / h.norm(), "mixes the samples of a batch"),
    ],
)
def test_what_is_no_read_out_is_refused(operation, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        sj_burst.convert(Hidden(operation), [torch.randn(8, 3)], progress=False)


def test_without_neurons_before_it_there_is_no_read_out():
    net = nn.Sequential(nn.Linear(3, 4), nn.Softmax(1))
    with pytest.raises(ValueError, match="no ReLU"):
        sj_burst.convert(net, [torch.randn(8, 3)], progress=False)


class Pooled(nn.Module):
    """SqueezeNet's end: ReLU before the mean; another output is a hidden layer's."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        h = F.relu(self.a(x))
        h = h[:, :, 1:-1, 1:-1] + F.relu(self.b(h))
        return F.relu(self.c(h)).mean((2, 3)), h


@torch.no_grad()
def test_the_last_activation_may_wait_for_the_mean(tmp_path):
    torch.manual_seed(0)
    net, x = Pooled(), torch.randn(16, 2, 8, 8)
    options = dict(progress=False, max_spikes=1, time_steps=6)
    spiking, waiting = (sj_burst.convert(net, [x], output=o, **options) for o in ("spikes", "potential"))
    assert len(spiking.neurons()) == 3
    assert list(waiting.neurons()) == list(spiking.neurons())[:2]  # h has weights behind it
    # By hand: ReLU of the mean current.
    currents = []
    hook = waiting.graph.get_submodule("c").register_forward_hook(lambda m, i, o: currents.append(o))
    scores, h = waiting.answer(x, 6)
    hook.remove()
    mean = torch.cat(currents).view(6, 16, 4, 4, 4).mean(0)
    assert torch.allclose(scores, mean.relu().mean((2, 3)), atol=1e-5)
    wanted, hidden = net(x)
    assert h.shape == hidden.shape
    assert (scores - wanted).norm() < (spiking.answer(x, 6)[0] - wanted).norm()
    path = tmp_path / "snn.pt"
    sj_burst.save(waiting, path)
    again = sj_burst.load(path, net)
    assert all(torch.equal(a, b) for a, b in zip(again.answer(x, 6), waiting.answer(x, 6), strict=True))
    found = sj_burst.report(waiting, net, [x])
    assert [layer.name for layer in found.layers] == list(waiting.neurons())


@torch.no_grad()
def test_calibration_of_what_the_read_out_clips_looks_at_what_is_left(monkeypatch):
    """Biases are not spent on what is below zero; weights: see test_ridge."""
    torch.manual_seed(0)
    net, x = Pooled(), torch.randn(64, 2, 8, 8)
    h = F.relu(net.a(x))
    h = h[:, :, 1:-1, 1:-1] + F.relu(net.b(h))
    net.c.bias -= net.c(h).mean((0, 2, 3)) + net.c(h).std((0, 2, 3)) / 2  # mostly inactive
    wanted = net.c(h)

    def errors(calibration):
        """Of what follows the ReLU: mean square, and mean of the worst channel."""
        options = dict(progress=False, max_spikes=1, time_steps=2, output="potential")
        snn = sj_burst.convert(net, [x], calibration=calibration, **options)
        currents = []
        snn.graph.get_submodule("c").register_forward_hook(lambda m, i, o: currents.append(o))
        snn.run(x, 2)
        error = torch.cat(currents).view(2, *wanted.shape).mean(0).relu() - wanted.relu()
        return error.square().mean(), error.mean((0, 2, 3)).abs().max()

    found = {name: errors(name) for name in ("light", "advanced")}
    monkeypatch.setattr("sj_burst.conversion.calibration.clipped_outputs", lambda *_: set())
    for name, (square, offset) in found.items():
        blind_square, blind_offset = errors(name)
        assert offset < 0.4 * blind_offset and square < 1.05 * blind_square


def test_what_a_read_out_clips():
    gm = torch.fx.GraphModule({}, torch.fx.Graph())
    x = gm.graph.placeholder("x")
    parts = [gm.graph.call_function(torch.mul, (x, k)) for k in (1, 2, 3, 4)]
    more = gm.graph.call_function(torch.mul, (parts[3], 5))
    gm.graph.output({"a": parts[0], "b": parts[1], "c": [parts[2], parts[3]], "e": more})
    values = {n: torch.randn(6, 3) for n in gm.graph.nodes}

    class Read(nn.Module):
        def forward(self, given):
            (c, d), a, b = given["c"], given["a"], given["b"]
            return F.relu(a).mean(1), [b.exp(), F.relu(b)], (c + 1).relu(), F.relu(d), given["e"]

    assert clipped_outputs(gm, Read(), values) == {parts[0]}  # d is read by e, too


@pytest.mark.parametrize(
    ("read", "clips"),
    [
        (lambda y: F.relu(y).mean((2, 3)), True),
        (lambda y: F.relu6(y).flatten(1), True),
        (lambda y: y, False),
        (lambda y: F.leaky_relu(y), False),
        (lambda y: y.softmax(1), False),
        (lambda y: y.argmax(1), False),
        (lambda y: y.amax((2, 3)), False),
        (lambda y: (y / y.sum()).sqrt(), False),  # NaN
        (torch.linalg.cholesky, False),  # raises for what is not positive definite
    ],
)
@pytest.mark.parametrize("sign", [0.0, 1.0, -1.0])
def test_which_read_outs_clip(read, clips, sign):
    class Read(nn.Module):
        def forward(self, y):
            return read(y)

    gm = torch.fx.symbolic_trace(nn.Identity())
    values = {n: sign * torch.rand(2, 3, 4, 4) for n in gm.graph.nodes}
    assert bool(clipped_outputs(gm, Read(), values)) is clips
    whole = {n: v.long() for n, v in values.items()}
    assert not clipped_outputs(gm, nn.ReLU(), whole)


def test_the_only_activation_stays_a_neuron():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    snn = sj_burst.convert(net, [torch.rand(8, 3)], output="potential", progress=False)
    assert list(snn.neurons()) == ["1"]


def test_so_does_one_behind_max_pooling():
    net = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten())
    snn = sj_burst.convert(net, [torch.rand(8, 2, 8, 8)], output="potential", progress=False)
    assert list(snn.neurons()) == ["2"]


class Asserted(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 5)

    def forward(self, x):
        y = F.relu(self.b(F.relu(self.a(x))))
        torch._assert(y.shape[1] == 5, "five")
        return y


def test_assertions_keep_no_neuron_alive():
    net, x = Asserted(), torch.randn(16, 3)
    snn = sj_burst.convert(net, [x], output="potential", progress=False)
    assert len(snn.neurons()) == 1
    assert len(sj_burst.report(snn, net, [x]).layers) == 1


class Expectation(nn.Module):
    """Its read-out has a buffer, and no parameters."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 5)
        self.register_buffer("grid", torch.linspace(0, 1, 5))

    def forward(self, x):
        return self.b(F.relu(self.a(x))).softmax(1) @ self.grid


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_buffers_of_a_read_out_have_its_precision(dtype):
    net, x = Expectation().to(dtype), torch.randn(16, 3, dtype=dtype)
    snn = sj_burst.convert(net, [x], progress=False, max_spikes=15)
    torch.testing.assert_close(snn.answer(x, 8), net(x), atol=0.05, rtol=0.1)


@pytest.mark.parametrize("end", [lambda y: y.max(1), lambda y: {"least": torch.min(y, 1)}])
@torch.no_grad()
def test_maxima_with_their_places_may_be_returned(end):
    class Net(Asserted):
        def forward(self, x):
            return end(self.b(F.relu(self.a(x))).softmax(1))

    net, x = Net(), torch.randn(16, 3)
    snn = sj_burst.convert(net, [x], progress=False, max_spikes=127, calibration="none")
    (values, places), (wanted, at) = (
        found["least"] if isinstance(found, dict) else found for found in (snn.answer(x, 8), net(x))
    )
    torch.testing.assert_close(values, wanted, atol=0.02, rtol=0.05)
    assert (places == at).float().mean() > 0.8


def test_answers_that_are_true_or_false():
    class Net(Asserted):
        def forward(self, x):
            return self.b(F.relu(self.a(x))) > 0

    net, x = Net(), torch.randn(16, 3)
    snn = sj_burst.convert(net, [x], progress=False, max_spikes=127)
    error = sj_burst.simulate(snn, [x], 4, reference=net, progress=False).error[-1]
    with torch.no_grad():
        wrong, right = (snn.answer(x, 4) != net(x)).sum(), net(x).sum()
    assert error.item() == pytest.approx((wrong / right).sqrt().item())
    sj_burst.report(snn, net, [x])
    with pytest.raises(ValueError, match=r"returns torch\.bool, which has no gradient"):
        sj_burst.training.distil(snn, net, [x], loss="mse", progress=False)
    with pytest.raises(ValueError, match="classifiers with scores"):
        sj_burst.recommend(net, [x], progress=False)
