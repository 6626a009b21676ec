import pytest
import torch
from torch import nn

from sj_burst import SimulationResult, report, simulate
from tests.networks import vgg

X = torch.rand(24, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def test_churn_is_what_single_spikes_add_up_to(convert):
    snn = convert(vgg(), [X], calibration="none", threshold="60%", max_spikes=5)
    sent, kept = {}, {}
    for name, node in snn.neurons().items():

        def add(node, _, y, name=name):
            if node.time_fold.batch > 1:  # one sample shows the shapes
                theta = node.threshold.view(-1, *[1] * (y.dim() - 2))
                for n in (y / theta).round().flatten().tolist():
                    sent[name] = sent.get(name, 0) + abs(n)
                    kept[name] = kept.get(name, 0) + n

        node.register_forward_hook(add)
    result = simulate(snn, [X], 6, chunk=4, progress=False)
    assert result.churn == pytest.approx({name: 1 - kept[name] / sent[name] for name in sent}, abs=1e-6)
    assert max(result.churn.values()) > 0.01
    layers = report(snn, vgg(), [X], 6).layers
    found = {layer.name: layer.churn for layer in layers if layer.churn is not None}
    assert found == pytest.approx(result.churn, abs=1e-6)
    allowed = convert(vgg(), [X], calibration="none", inactivated_spikes="allow")
    assert set(simulate(allowed, [X], 6, progress=False).churn.values()) == {0.0}


def test_a_result_prints_a_short_table(convert):
    ann = vgg()
    snn = convert(ann, [X], calibration="none")
    result = simulate(snn, [(X, ann(X).argmax(1))], 11, reference=ann, progress=False)
    head, *rows = repr(result).split("\n")
    assert str(result) == repr(result)
    assert head == f"SimulationResult: 24 samples, T=11, {result.seconds:.2f} s"
    table = {row[:13].strip(): row[13:].split() for row in rows[:4]}
    assert table["steps"] == ["1", "2", "4", "8", "11"]
    shown = [0, 1, 3, 7, 10]
    for name, values in (
        ("accuracy (%)", 100 * result.accuracy),
        ("error (%)", 100 * result.error),
        ("spikes so far", result.total_spikes),
    ):
        assert [float(v) for v in table[name]] == pytest.approx(values[shown].tolist(), abs=0.06)
    sent = sum(spikes.sum() for spikes in result.spikes.values())
    kept = sum(net.sum() for net in result.net_spikes.values())
    assert rows[4].startswith(f"churn: {100 * (1 - kept / sent):.1f} %")
    assert rows[5] == str(result.operations) and len(rows) == 6
    early = simulate(snn, [X], 11, early_exit=0.0, progress=False)
    assert early.average_steps == 1
    assert f"average steps: {early.average_steps:.2f}" in str(early)


def test_nothing_known_prints_one_line():
    assert str(SimulationResult(None, None, torch.zeros(3, 2), {}, samples=3)).count("\n") == 0


def test_the_network_remembers_what_was_measured(convert):
    snn = convert(vgg(), [X], calibration="none")
    assert snn.measured is None
    result = simulate(snn, [X], 5, progress=False)
    assert snn.measured == (5, pytest.approx(result.total_spikes[-1].item(), rel=1e-5))
    assert f"{result.total_spikes[-1]:.0f} spikes per sample in 5 steps" in repr(snn)


class Regressor(nn.Module):
    """Returns ``[N]``."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, x):
        return self.layers(x).squeeze(1)


@torch.no_grad()
def test_error_of_outputs_without_a_dimension(convert):
    ann, x = Regressor(), torch.rand(10, 6)
    snn = convert(ann, [x], calibration="none")
    result = simulate(snn, [x[:7], x[7:]], 6, reference=ann, progress=False)
    wanted = ann(x)
    mean = snn.run(x, 6).cumsum(0) / torch.arange(1, 7).view(-1, 1)
    expected = ((mean - wanted).square().sum(1) / wanted.square().sum()).sqrt()
    assert torch.allclose(result.error, expected, rtol=1e-4)
    assert torch.allclose(result.output, mean[-1], atol=1e-6)


def test_no_accuracy_without_a_label_of_a_class(convert):
    snn = convert(vgg(), [X], calibration="none")
    assert simulate(snn, [(X, torch.full((24,), -100))], 2, progress=False).accuracy is None
