import pytest
import torch
from matplotlib import pyplot
from spikingjelly.activation_based import functional
from torch import nn

from sj_burst import BurstIFNode, Options, SimulationResult, plot, report, simulate
from sj_burst.analysis.layer_report import PARTS, LayerReport
from sj_burst.analysis.report import Report
from sj_burst.export import unit_thresholds
from sj_burst.simulation.operations import LayerOperations, Operations
from tests.networks import vgg

X = torch.randn(12, 2, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def close():
    yield
    pyplot.close("all")


@pytest.fixture
def pair(convert):
    ann = vgg()
    return convert(ann, [X], max_spikes=2, calibration="none"), ann


def test_every_figure_draws_into_given_axes(pair):
    snn, ann = pair
    fig, ax = pyplot.subplots()
    node = BurstIFNode(torch.tensor([0.5, 1.0]), 2, torch.tensor([0.0, 0.5]))
    for drawn in (
        plot.layer_errors(report(snn, ann, [X], 4), ax=ax),
        plot.rates_vs_activations(snn, ann, X, "2", 4, ax=ax),
        plot.spike_raster(snn, X, "2", 4, ax=ax),
        plot.membrane_trace(node, torch.rand(5), channel=1, ax=ax),
    ):
        assert drawn == (fig, ax)
        assert ax.get_xlabel() and ax.get_ylabel()


def test_stacked_bars_end_at_the_layer_error(pair):
    found = report(*pair, [X], 4)
    _, ax = plot.layer_errors(found)
    heights = torch.zeros(len(found.layers))
    for container in ax.containers:
        heights += torch.tensor([bar.get_height() for bar in container])
    assert torch.allclose(
        heights, torch.tensor([100 * layer.error for layer in found.layers]), atol=1e-3
    )
    with pytest.raises(ValueError, match="no errors"):
        plot.layer_errors(report(pair[0]))


def test_figures_have_labels_and_return_axes(convert):
    result = simulate(
        convert(vgg(), [X], calibration="none"), [(X, torch.arange(12) % 5)], 4, progress=False
    )
    fig, ax = plot.accuracy_vs_time({"a": result}, ann_accuracy=0.5)
    assert ax.get_xlabel() == "time steps T" and ax.get_ylabel() == "accuracy (%)"
    assert ax.lines[0].get_ydata()[-1] == pytest.approx(100 * result.accuracy[-1].item())
    again, same = plot.accuracy_vs_spikes({"a": result}, ax=ax)
    assert again is fig and same is ax
    with pytest.raises(ValueError, match="results is empty"):
        plot.accuracy_vs_time({})
    without = simulate(convert(vgg(), [X], calibration="none"), [X], 2, reference=vgg(), progress=False)
    with pytest.raises(ValueError, match="has no accuracy"):
        plot.accuracy_vs_time({"a": without})


@torch.no_grad()
def test_scatter_and_raster_show_the_spikes(pair):
    snn, ann = pair
    theta = snn.neurons()["6"].threshold.view(-1, 1, 1)
    outputs = []
    handle = snn.neurons()["6"].register_forward_hook(lambda _, __, y: outputs.append(y))
    for _ in range(5):
        snn(X)
    handle.remove()
    functional.reset_net(snn)
    y = torch.stack(outputs)
    _, ax = plot.rates_vs_activations(snn, ann, X, "6", 5, points=10**6)
    points = torch.as_tensor(ax.collections[0].get_offsets().data).float()
    assert torch.allclose(points[:, 1], y.mean(0).flatten(), atol=1e-5)
    assert torch.allclose(points[:, 0], ann[:7](X).flatten(), atol=1e-4)
    _, ax = plot.spike_raster(snn, X, "6", 5, neurons=10**6)
    count = (y[:, 0] / theta).round()
    assert len(ax.collections[0].get_offsets()) == (count > 0).sum()
    assert ax.collections[0].get_sizes().sum() == 5 * count.clamp(min=0).sum()
    for draw in (
        lambda: plot.spike_raster(snn, X, "nowhere", 5),
        lambda: plot.rates_vs_activations(snn, ann, X, "nowhere", 5),
    ):
        with pytest.raises(ValueError, match="layer must be one of"):
            draw()
    with pytest.raises(TypeError, match=r"results must be .*, got Tensor"):
        plot.accuracy_vs_time(torch.rand(4))


def test_membrane_trace_follows_the_neuron():
    node = BurstIFNode(torch.tensor([9.0, 1.0]), 2, torch.tensor([0.0, 0.5]), shift=0.25, signed=True)
    node(torch.rand(3, 2))  # a state with a gradient, of another batch
    state = node.v
    current = torch.tensor([0.5, 3.0, -2.5, 0.0])
    _, ax = plot.membrane_trace(node, current, channel=1)
    v, sent, expected, spikes = 0.5, 0, [], []
    for z in current.tolist():
        v += z + 0.25
        n = max(min(max(int(v // 1), -2), 2), -sent)
        v, sent = v - n, sent + n
        expected.append(v)
        spikes.append(f"{n:+d}")
    assert ax.lines[1].get_ydata().tolist() == pytest.approx(expected)
    assert [text.get_text() for text in ax.texts] == [s for s in spikes if s != "+0"]
    assert "-1" in spikes or "-2" in spikes
    assert node.v is state and node.step_mode == "s"
    with pytest.raises(ValueError, match="channel must be in 0 … 1"):
        plot.membrane_trace(node, current, channel=2)
    with pytest.raises(ValueError, match="shape"):
        plot.membrane_trace(node, torch.rand(2, 2))


def test_what_cannot_be_drawn_leaves_no_figure():
    silent = SimulationResult(torch.tensor([0.5]), None, torch.empty(0), {"1": torch.zeros(1)})
    pyplot.close("all")
    with pytest.raises(ValueError, match="empty"):
        plot.accuracy_vs_time({})
    with pytest.raises(ValueError, match=r"share in \[0, 1\], got 94.4"):
        plot.accuracy_vs_time({"a": [0.1, 0.2]}, ann_accuracy=94.4)
    with pytest.raises(ValueError, match="no spikes"):
        plot.accuracy_vs_spikes({"a": silent})
    with pytest.raises(TypeError, match="must be of simulate"):
        plot.accuracy_vs_spikes({"a": torch.tensor([0.1])})
    assert not pyplot.get_fignums()


def test_membrane_trace_of_one_channel_of_a_leaky_neuron():
    slopes = torch.tensor([0.5, 0.25])
    node = BurstIFNode(1.0, 4, 0.5, negative_slope=slopes)
    _, ax = plot.membrane_trace(node, torch.tensor([-2.0, 1.0]), channel=1)
    assert [text.get_text() for text in ax.texts] == ["-2", "+1"]


def at(accuracy, unary, binary, graded):
    operations = Operations({"1": LayerOperations(unary, 0.0, 1e6, binary, graded)}, time_steps=1)
    accuracies = torch.tensor([0.1, accuracy])
    return SimulationResult(accuracies, None, torch.empty(0), {}, operations=operations)


def test_energy_frontier_leaves_out_what_is_beaten():
    results = {"a": [at(0.9, 4e6, 2e6, 1e6), at(0.7, 1e6, 5e5, 4e5), at(0.6, 2e6, 3e6, 5e5)]}
    fig, ax = plot.accuracy_vs_energy(results, ann_accuracy=0.95)
    points, best, star = ax.lines
    assert points.get_xdata().tolist() == pytest.approx([0.9, 1.8, 3.6])  # 0.9 pJ each
    assert best.get_xdata().tolist() == pytest.approx([0.9, 3.6])
    assert best.get_ydata().tolist() == pytest.approx([70, 90], abs=1e-4)
    assert star.get_xdata().tolist() == [4.6] and ax.get_xlabel().startswith("energy per image (µJ")
    again, same = plot.accuracy_vs_energy(results, accounting="graded", ax=ax)
    assert again is fig and same is ax
    assert ax.lines[3].get_xdata().tolist() == pytest.approx([1.84, 2.3, 4.6])  # 4.6 pJ each
    with pytest.raises(ValueError, match="accounting must be one of"):
        plot.accuracy_vs_energy(results, accounting="ternary")
    uncounted = SimulationResult(torch.tensor([0.5]), None, torch.empty(0), {})
    with pytest.raises(ValueError, match="no operations"):
        plot.accuracy_vs_energy({"a": [uncounted]})


def test_spikes_that_outputs_do_not_tell_are_not_drawn(convert):
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(3, 4), nn.PReLU(init=-0.5), nn.Linear(4, 2))
    x = torch.randn(8, 3)
    snn = convert(ann, [x], calibration="none")
    with pytest.raises(ValueError, match="negative_slope of 0 or less"):
        plot.spike_raster(snn, x, "1", time_steps=4)


def test_folded_networks_are_refused(convert):
    ann = vgg()
    snn = convert(ann, [X], calibration="none")
    layer = next(iter(snn.neurons()))
    with pytest.raises(ValueError, match="pass the converted network"):
        plot.rates_vs_activations(unit_thresholds(snn), ann, [X], layer, time_steps=4)


def test_membrane_trace_of_a_neuron_with_expected_spikes():
    node = BurstIFNode(torch.tensor([0.5, 1.0]), 4)
    node.expected = torch.tensor([1.0, 2.0])
    _, ax = plot.membrane_trace(node, torch.full((4,), 1.2), channel=1)
    assert [text.get_text() for text in ax.texts] == ["+1", "+1", "+1", "+1"]


def test_a_second_call_on_the_same_axes_hides_nothing():
    results = [
        SimulationResult(torch.linspace(0, 1, t), None, torch.empty(0), {"1": torch.linspace(1, n, t)})
        for t, n in ((32, 20.0), (4, 2000.0))
    ]
    for draw in (plot.accuracy_vs_time, plot.accuracy_vs_spikes):
        _, ax = draw({"a": results[0]}, ann_accuracy=0.9)
        _, ax = draw({"b": results[1]}, ax=ax)
        first, second = (line for line in ax.get_lines() if not line.get_label().startswith("_"))
        assert first.get_color() != second.get_color()
        low, high = ax.get_xlim()
        assert all(low < max(line.get_xdata()) < high for line in (first, second))


def test_long_names_of_layers_stand_upright(convert):
    names = [f"backbone.layer{i}.relu_after_conv1" for i in range(4)]
    layers = [LayerReport(n, "BurstIFNode", error=0.1, parts=dict.fromkeys(PARTS, 0.02)) for n in names]
    _, ax = plot.layer_errors(Report(layers, Options(), []))
    assert {label.get_rotation() for label in ax.get_xticklabels()} == {90}


def test_brain_floats_are_drawn(convert):
    ann, x = nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU()).bfloat16(), torch.rand(8, 3).bfloat16() - 3
    _, ax = plot.rates_vs_activations(convert(ann, [x]), ann, x, "1", time_steps=2)
    ends = ax.get_lines()[0].get_xdata()
    assert ends[0] <= ann(x).min() and ends[1] >= ann(x).max()
