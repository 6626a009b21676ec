"""Networks that return tuples, lists or dicts of tensors."""

import pytest
import torch
from torch import nn

import sj_burst
from sj_burst.analysis.inactivated import inactivated_share

EXACT = {"calibration": "none", "threshold": "max", "max_spikes": 16}


class Heads(nn.Module):
    """Classes and a box from one trunk, nested; one output is the image's own mean."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.classes, self.box = nn.Linear(6 * 16, 5), nn.Linear(6 * 16, 4)

    def forward(self, x):
        h = self.trunk(x).flatten(1)
        return {"scores": self.classes(h), "rest": (self.box(h), [x.mean((2, 3))])}


def convert(calibration="none"):
    torch.manual_seed(0)
    net, x = Heads(), torch.rand(16, 2, 8, 8)
    options = EXACT | {"calibration": calibration}
    return net, x, sj_burst.convert(net, [x], progress=False, **options)


@torch.no_grad()
def test_every_output_converges_in_its_place():
    net, x, snn = convert()
    found, wanted = snn.run(x, 64), net(x)
    assert found.keys() == wanted.keys()
    pairs = [
        (found["scores"], wanted["scores"]),
        (found["rest"][0], wanted["rest"][0]),
        (found["rest"][1][0], wanted["rest"][1][0]),
    ]
    for got, expected in pairs:
        assert got.shape == (64, *expected.shape)
        assert (got.mean(0) - expected).norm() < 0.03 * expected.norm()
    snn.step_mode = "m"
    assert torch.equal(snn(x.expand(64, *x.shape))["scores"], found["scores"])
    snn.step_mode = "s"
    sj_steps = [snn(x)["rest"][0] for _ in range(3)]
    assert sj_steps[0].shape == (16, 4)


@torch.no_grad()
def test_simulate_wants_to_know_the_answer():
    net, x, snn = convert()
    y = net(x)["scores"].argmax(1)
    result = sj_burst.simulate(snn, [(x, y)], 32, output="scores", reference=net, progress=False)
    assert result.accuracy[-1] > 0.9 and result.error[-1] < 0.05
    assert result.output.shape == (16, 5)
    box = sj_burst.simulate(snn, [x], 32, output=("rest", 0), reference=net, progress=False)
    assert box.output.shape == (16, 4) and box.error[-1] < 0.05
    with pytest.raises(
        ValueError, match=r"say which is the answer, output='scores' or output=\('rest', 0\)"
    ):
        sj_burst.simulate(snn, [x], 4, progress=False)
    with pytest.raises(ValueError, match="output='box' is none of the network's"):
        sj_burst.simulate(snn, [x], 4, output="box", progress=False)
    margin = sj_burst.fit_early_exit(snn, [(x, y)], 8, output="scores")
    early = sj_burst.simulate(snn, [(x, y)], 8, early_exit=margin, output="scores", progress=False)
    assert early.average_steps <= 8


@pytest.mark.parametrize("calibration", ["none", "advanced"])
def test_the_rest_of_the_package_takes_them(tmp_path, calibration):
    net, x, snn = convert(calibration)
    found = sj_burst.report(snn, net, [x], 32)
    with torch.no_grad():
        run, ann = snn.run(x, 32), net(x)
    rows = [
        torch.cat([a, b, c], 1)
        for a, (b, [c]) in (
            (run["scores"].mean(0), (run["rest"][0].mean(0), [run["rest"][1][0].mean(0)])),
            (ann["scores"], ann["rest"]),
        )
    ]
    expected = (rows[0] - rows[1]).norm() / rows[1].norm()
    assert found.output_error == pytest.approx(expected.item(), rel=1e-3)
    assert sj_burst.synops(snn, [x], 4).layers["classes"].synops > 0
    assert inactivated_share(snn, net, [x], 4).keys() == snn.neurons().keys()
    sj_burst.save(snn, tmp_path / "snn.pt")
    again = sj_burst.load(tmp_path / "snn.pt", Heads())
    with torch.no_grad():
        assert torch.equal(again.run(x, 3)["scores"], snn.run(x, 3)["scores"])
    data = [(x, torch.zeros(16, dtype=torch.long))]
    finetuned = [
        sj_burst.training.finetune(snn, data, 2, output="scores", step_mode=mode, progress=False)
        for mode in ("s", "m")
    ]
    weights = [net.graph.get_submodule("classes").weight for net in (snn, *finetuned)]
    assert torch.allclose(weights[1], weights[2], atol=1e-6) and not torch.equal(weights[0], weights[1])
    with pytest.raises(ValueError, match="say which is the answer"):
        sj_burst.training.finetune(snn, data, 2, progress=False)


def test_what_is_no_tensor_is_refused():
    class Number(nn.Module):
        def forward(self, x):
            return len(x.shape)

    with pytest.raises(ValueError, match="must return a tensor, or tuples"):
        sj_burst.convert(Number(), [torch.rand(4, 3)], progress=False)
