import pytest
import torch
from torch import nn

from sj_burst import SimulationResult, simulate
from tests.networks import vgg

X = torch.rand(24, 2, 8, 8, generator=torch.Generator().manual_seed(0))


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
    assert rows[4] == str(result.operations) and len(rows) == 5
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
