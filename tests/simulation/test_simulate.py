import pytest
import torch
from spikingjelly.activation_based import ann2snn, functional, neuron
from torch import nn

from sj_burst import recommend, simulate
from tests.networks import vgg

X = torch.rand(24, 2, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 5, (24,), generator=torch.Generator().manual_seed(1))
DATA = [(X[:10], Y[:10]), (X[10:], Y[10:])]


@torch.no_grad()
def slow_accuracy(snn, steps):
    """One sample and one step at a time."""
    correct = torch.zeros(steps)
    for x, y in zip(X, Y, strict=True):
        functional.reset_net(snn)
        total = 0
        for t in range(steps):
            total = total + snn(x.unsqueeze(0))
            correct[t] += (total.argmax(1) == y).item()
    functional.reset_net(snn)
    return correct / len(X)


@pytest.mark.parametrize("chunk", [None, 1, 3, 100])
def test_accuracy_equals_a_slow_loop(convert, chunk):
    snn = convert(vgg(), [X])
    result = simulate(snn, DATA, 5, chunk=chunk, progress=False)
    assert torch.allclose(result.accuracy, slow_accuracy(snn, 5))
    assert result.output.shape == (24, 5)
    assert result.samples == 24


def test_other_spikingjelly_networks_run_step_by_step():
    recipe = ann2snn.RateCodingRecipe([(X, Y)], mode="max")
    snn = ann2snn.Converter(recipe).convert(vgg())
    result = simulate(snn, DATA, 4, progress=False)
    assert torch.allclose(result.accuracy, slow_accuracy(snn, 4))


@torch.no_grad()
def test_spikes_equal_a_brute_force_count(convert):
    snn = convert(vgg(), [X], max_spikes=3)
    result = simulate(snn, DATA, 4, progress=False)
    counts = {name: torch.zeros(4) for name in snn.neurons()}
    for name, node in snn.neurons().items():

        def hook(node, _, y, name=name):
            theta = node.threshold.view(-1, 1, 1)
            counts[name][step] += (y / theta).round().abs().sum() / len(X)

        node.register_forward_hook(hook)
    for step in range(4):  # noqa: B007 (the hook reads it)
        snn(X)
    for name in counts:
        assert torch.allclose(result.spikes[name], counts[name], rtol=1e-4)
    assert result.total_spikes[-1] == pytest.approx(
        sum(c.sum().item() for c in counts.values()), rel=1e-4
    )


def test_spikes_of_spikingjelly_neurons_are_counted():
    recipe = ann2snn.RateCodingRecipe([(X, Y)], mode="max")
    snn = ann2snn.Converter(recipe).convert(vgg())
    result = simulate(snn, [X], 3, progress=False)
    count = 0
    for node in snn.modules():
        if isinstance(node, neuron.BaseNode):

            def hook(_, __, y):
                nonlocal count
                count += y.sum().item()

            node.register_forward_hook(hook)
    with torch.no_grad():
        for _ in range(3):
            snn(X)
    functional.reset_net(snn)
    assert count > 0
    assert result.total_spikes[-1] == pytest.approx(count / len(X), rel=1e-4)


def test_layers_before_the_first_neuron_run_once(convert):
    snn = convert(vgg(), [X])
    calls = []
    first = next(m for m in snn.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_hook(lambda _, x, __: calls.append(len(x[0])))
    simulate(snn, [X], 16, chunk=2, progress=False)
    assert sum(rows for rows in calls if rows > 1) == len(X)  # one image shows the shapes


def test_memory_does_not_grow_with_time(convert):
    """The largest tensor that any layer returns is the same at T = 16 and T = 128."""
    snn = convert(vgg(), [X], time_steps=4)
    largest = 0

    def hook(_, __, y):
        nonlocal largest
        largest = max(largest, y.numel())

    for module in snn.graph.modules():
        module.register_forward_hook(hook)
    sizes = []
    for steps in (16, 128):
        largest = 0
        simulate(snn, [X], steps, progress=False)
        sizes.append(largest)
    assert sizes[0] == sizes[1] > 0


def test_error_against_the_ann_falls(convert):
    ann = vgg()
    snn = convert(ann, [X], time_steps=32)
    result = simulate(snn, [X], 32, reference=ann, progress=False)
    assert result.accuracy is None
    assert result.error[-1] < 0.05 < result.error[0]


def test_state_is_reset_before_and_after(convert):
    snn = convert(vgg(), [X])
    first = simulate(snn, DATA, 3, progress=False)
    with torch.no_grad():
        snn.run(X[:4], 2)  # a state of another batch size stays behind
    assert torch.equal(first.output, simulate(snn, DATA, 3, progress=False).output)
    assert all(node.v is None for node in snn.neurons().values())


def test_bad_arguments(convert):
    snn = convert(vgg(), [X])
    for steps in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="time_steps must be an integer ≥ 1"):
            simulate(snn, DATA, steps)
    with pytest.raises(ValueError, match="chunk"):
        simulate(snn, DATA, 4, chunk=0)
    with pytest.raises(ValueError, match="empty"):
        simulate(snn, [], 4, progress=False)
    with pytest.raises(TypeError, match="yields str batches"):
        simulate(snn, ["image"], 4, progress=False)
    with pytest.raises(ValueError, match="NaN or infinite inputs"):
        simulate(snn, [X / 0], 4, progress=False)
    with pytest.raises(TypeError, match="snn must be a network"):
        simulate(None, DATA, 4)
    with pytest.raises(TypeError, match="reference must be the ANN"):
        simulate(snn, DATA, 4, reference=snn)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([(X, Y.unsqueeze(1))], r"targets \[\d+, 1\] do not fit the output \[\d+, 5\]"),
        ([(X, Y[:10])], "do not fit"),
        ([(X[:5], torch.eye(5).long())], "do not fit"),
        ([DATA[0], X], "some batches only"),
        ([(X, Y + 1)], "class labels from 1 to 5, and the network has 5 classes"),
        ([(X, Y[0])], "single number"),
    ],
)
def test_targets_that_do_not_fit(convert, loader, message):
    snn = convert(vgg(), [X], calibration="none")
    with pytest.raises(ValueError, match=message):
        simulate(snn, loader, 4, progress=False)
    with pytest.raises(TypeError, match="targets of type list"):
        simulate(snn, [(X, Y.tolist())], 4, progress=False)


def test_pixels_of_no_class_do_not_count(convert):
    ann = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    snn = convert(ann, [X], calibration="none")
    y = torch.randint(3, (len(X), 8, 8))
    y[:, 2:5] = 255
    result = simulate(snn, [(X, y)], 4, progress=False)
    right = (result.output.argmax(1) == y)[:, [0, 1, 5, 6, 7]]
    assert result.accuracy[-1].item() == pytest.approx(right.float().mean().item())
    y[:3] = 255  # whole samples, too
    right = result.output.argmax(1)[3:, [0, 1, 5, 6, 7]] == y[3:, [0, 1, 5, 6, 7]]
    again = simulate(snn, [(X, y)], 4, progress=False)
    assert again.accuracy[-1].item() == pytest.approx(right.float().mean().item())
    y = torch.where(y == 255, y, ann(X).argmax(1))  # the ANN is right
    assert 0 <= recommend(ann, [(X, y)], 100, progress=False).chosen.drop < 100


def test_samples_without_a_label_do_not_count(convert):
    snn = convert(vgg(), [X], calibration="none")
    y = simulate(snn, [X], 4, progress=False).output.argmax(1)
    y[:5] = -100
    assert simulate(snn, [(X, y)], 4, progress=False).accuracy[-1] == 1


def test_a_reference_of_another_shape_is_refused(convert):
    ann = vgg()
    snn = convert(ann, [X], calibration="none")
    with pytest.raises(ValueError, match=r"reference returns \[\d+, 1\], the network \[\d+, 5\]"):
        simulate(snn, [X], 4, reference=nn.Sequential(ann, nn.Linear(5, 1)), progress=False)


def test_inputs_that_do_not_fit(convert):
    snn = convert(vgg(), [X], calibration="none")
    with pytest.raises(ValueError, match=r"calibrated on samples \[2, 8, 8\], got \[4, 16, 16\]"):
        simulate(snn, [torch.randn(2, 4, 16, 16)], 4, progress=False)
    with pytest.raises(ValueError, match=r"computes in torch.float32, got an input of torch.float64"):
        simulate(snn, [X.double()], 4, progress=False)
    with pytest.raises(ValueError, match=r"takes inputs \[N, 2, 8, 8\]"):
        snn(X[0])


def test_half_precision_is_summed_in_single_precision(convert):
    ann, x = vgg().bfloat16(), X.bfloat16()
    snn = convert(ann, [x])
    result = simulate(snn, [x], 64, chunk=8, progress=False)
    functional.reset_net(snn)
    with torch.no_grad():
        shown = snn.present(x)
        expected = torch.cat([shown.run(8) for _ in range(8)]).float().mean(0)
    assert torch.allclose(result.output, expected, atol=1e-5)


def test_networks_of_others_run_step_by_step():
    net = nn.Sequential(nn.Linear(3, 2), neuron.IFNode(step_mode="m"))
    with pytest.raises(ValueError, match="set_step_mode"):
        simulate(net, [torch.rand(4, 3)], 2, progress=False)
    with pytest.raises(TypeError, match="there is no neuron"):
        simulate(nn.Linear(3, 2), [torch.rand(4, 3)], 2, progress=False)


def test_lenet_with_a_view(convert):
    class LeNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(2, 6, 3), nn.Linear(54, 10)

        def forward(self, x):
            h = nn.functional.max_pool2d(torch.relu(self.conv(x)), 2)
            return self.fc(h.view(x.size(0), -1)) + self.fc(h.view(-1, 54))

    ann = LeNet()
    snn = convert(ann, [X], time_steps=32)
    assert simulate(snn, [X], 32, reference=ann, progress=False).error[-1] < 0.1


def test_answers_of_other_sizes_are_told_of_at_once(convert):
    ann = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 1))
    sizes = [torch.rand(2, 1, n, n) for n in (8, 12)]
    snn = convert(ann, sizes[:1])
    with pytest.raises(ValueError, match=r"\[2, 8, 8\] and \[2, 12, 12\]; simulate each size by itself"):
        simulate(snn, sizes, 2, progress=False)


def test_networks_of_others_may_return_several_tensors():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.node = nn.Linear(3, 2), neuron.IFNode(v_reset=None)

        def forward(self, x):
            y = self.node(self.layer(x))
            return y, x

    x = torch.rand(4, 3)
    result = simulate(Two(), [x], 3, output=1, progress=False)
    assert torch.allclose(result.output, x)
