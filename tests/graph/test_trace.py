"""Tracing networks, and the weights that they compute."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from sj_burst import load, save, standardize
from sj_burst.graph.fuse import fuse
from sj_burst.graph.trace import trace
from tests.networks import randomize_batch_norm


def test_parametrized_weights_are_taken_as_they_are():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3)).eval()
    nn.utils.parametrizations.weight_norm(net[0])
    nn.utils.parametrizations.spectral_norm(net[3])
    randomize_batch_norm(net)
    x = torch.rand(2, 1, 6, 6)
    expected = net(x)
    gm = fuse(standardize(net, x), x)
    assert torch.allclose(gm(x), expected, atol=1e-5)
    assert type(gm.get_submodule("3")) is nn.Conv2d
    assert torch.equal(net(x), expected)  # the class, which copies share, has kept its weight


@pytest.mark.parametrize("run", [True, False])
def test_weights_computed_in_hooks_of_torch_become_plain(run):
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    prune.l1_unstructured(net[0], "weight", 0.5)
    x = torch.rand(2, 3)
    with torch.set_grad_enabled(run):
        net(x)
    gm = standardize(net, x)
    assert torch.equal(gm(x), net(x))
    assert (gm.get_submodule("0").weight == 0).sum() == 4
    assert prune.is_pruned(net)


def test_untraceable_and_multi_input_networks():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    with pytest.raises(ValueError, match=r"cannot be traced .*, test_trace.py:\d+\); its forward must"):
        standardize(Branch(), torch.rand(2, 3))
    with pytest.raises(
        ValueError,
        match=r"Two.forward takes \['x', 'y'\] without a default, and the loader yields 1 input",
    ):
        standardize(Two(), torch.rand(2, 3))
    with pytest.raises(ValueError, match=r"does not run on inputs \[2, 3\] \(torch.uint8, cpu\)"):
        standardize(nn.Linear(3, 2), torch.zeros(2, 3, dtype=torch.uint8))


def test_wrappers_come_off(convert):
    net, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.rand(8, 3)
    expected = convert(net, [x], calibration="none").run(x, 3)
    for wrapped in (nn.DataParallel(net), torch.compile(net), nn.DataParallel(torch.compile(net))):
        assert torch.equal(convert(wrapped, [x], calibration="none").run(x, 3), expected)


def test_wrappers_of_parts_come_off(convert, tmp_path):
    part, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.rand(8, 3)
    expected = convert(nn.Sequential(part, nn.Identity()), [x], calibration="none").run(x, 3)
    for wrapped in (nn.DataParallel(part), torch.compile(part, backend="eager")):
        net = nn.Sequential(wrapped, nn.Identity())
        snn = convert(net, [x], calibration="none")
        save(snn, tmp_path / "snn.pt")
        assert torch.equal(snn.run(x, 3), expected)
        assert torch.equal(load(tmp_path / "snn.pt", net).run(x, 3), expected)
        assert net[0] is wrapped


@pytest.mark.parametrize(
    "question",
    [
        lambda x: x.abs().max().item() > 100,
        lambda x: max(x[0].tolist()) > 100,
        lambda x: torch.equal(x, x.abs()),
        lambda x: torch.allclose(x, x + 100),
    ],
)
def test_numbers_made_of_values_decide_nothing(question):
    class Asks(nn.Module):
        def forward(self, x):
            return 2 * F.relu(x) if question(x) else F.relu(x)

    with pytest.raises(ValueError, match="the value of a tensor decides"):
        standardize(Asks(), torch.randn(4, 3))


@pytest.mark.parametrize("few", [1, 2, 5])
def test_the_number_of_samples_decides_nothing(convert, few):
    class Counts(nn.Module):
        def forward(self, x):
            return F.relu(x) * (1.0 if x.shape[0] <= few else 2.0)

    with pytest.raises(ValueError, match=r"something else for \d+ sample\(s\) than for 2"):
        convert(Counts(), [torch.rand(8, 3)])


def test_a_call_that_fails_is_not_recorded(convert):
    class Tries(nn.Module):
        def forward(self, x):
            try:
                return F.relu(x).view(-1, 7)
            except Exception:
                return F.relu(x)

    x = torch.rand(8, 3)
    snn = convert(Tries(), [x], threshold="max", calibration="none")
    assert torch.allclose(snn.run(x, 64).mean(0), x, atol=0.02)


def test_positions_are_resized_to_the_input(convert, capfd):
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.positions = nn.Conv2d(3, 4, 1), nn.Parameter(torch.rand(1, 4, 4, 4))

        def forward(self, x):
            x = self.conv(x) + F.interpolate(self.positions, size=x.shape[2:], mode="bilinear")
            if x.shape[2] > 100:
                return x
            return F.relu(x + torch.ones(x.shape[2], x.shape[3])).mean((2, 3))

    net = Positions()
    snn = convert(net, [torch.rand(8, 3, 8, 8)], calibration="none", max_spikes=16, threshold="max")
    x = 0.9 * torch.rand(3, 3, 12, 10)
    assert (snn.run(x, 64).mean(0) - net(x)).abs().max() < 0.02
    assert "Traceback" not in capfd.readouterr().err


def test_a_parameter_is_recorded_once():
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.rand(4, 3))

        def forward(self, x):
            weight = self.weight * 2
            return F.relu(x @ weight.t()) if weight.shape[1] == 3 else x

    graph, _ = trace(Weighted(), torch.rand(2, 3))
    assert [n.op for n in graph.graph.nodes].count("get_attr") == 1


def test_a_buffer_that_keeps_what_was_computed_is_named():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("last", torch.zeros(()))

        def forward(self, x):
            self.last = self.last + x.mean()
            return F.relu(x)

    # Older versions of torch refuse the assignment itself.
    with pytest.raises(ValueError, match=r"writes what it computes into last|Keeps does not run"):
        standardize(Keeps(), torch.rand(4, 3))


class Shapes(nn.Module):
    """Control flow of the kinds that depend on sizes alone."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        assert x.shape[1] == 3, "three channels"
        assert isinstance(x, torch.Tensor) and x.ndim == 4
        batch, _, height, _ = x.shape
        if height % 2:
            x = F.pad(x, (0, 0, 0, 1))
        h = F.relu(self.conv(x))
        total = 0
        for part in torch.chunk(h, 2, dim=1):
            total = total + part
        for index in range(h.shape[1]):
            total = total + h[:, index : index + 1]
        scale = 1.0
        for size in h.size()[2:]:
            scale = scale * size
        return total.reshape(batch, 2, -1).sum(2) / scale


@pytest.mark.parametrize("size", [6, 7])
def test_sizes_decide_and_other_batches_stay_right(convert, size):
    net, x = Shapes(), torch.rand(8, 3, size, size)
    snn = convert(net, [x], calibration="none", max_spikes=16, threshold="max")
    for batch in (1, 4, 5):
        error = snn.run(x[:batch], 64).mean(0) - net(x[:batch])
        assert error.abs().max() < 0.02 * net(x).abs().max()


def test_other_sizes_follow_or_are_refused(convert):
    class Grid(nn.Module):
        """Fixed to its size: a number of rows becomes a Python number."""

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x):
            rows = int(x.shape[2])
            grid = torch.linspace(0, 1, rows).view(1, 1, rows, 1)
            return F.relu(self.conv(x) + grid).mean((2, 3))

    class Checked(Grid):
        """The same way at every size."""

        def forward(self, x):
            assert x.shape[2] >= 4
            return F.relu(self.conv(x)).mean((2, 3))

    x, larger = torch.rand(4, 3, 8, 8), 0.9 * torch.rand(2, 3, 12, 12)
    net = Checked()
    snn = convert(net, [x], calibration="none", max_spikes=16, threshold="max")
    assert (snn.run(larger, 64).mean(0) - net(larger)).abs().max() < 0.02
    net = Grid()
    snn = convert(net, [x], calibration="none", max_spikes=16, threshold="max")
    assert (snn.run(x, 64).mean(0) - net(x)).abs().max() < 0.02
    with pytest.raises(ValueError, match=r"size \[8, 8\] that it was converted for, and got \[12, 12\]"):
        snn.run(larger, 2)


def test_functional_batch_norm_folds(convert):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), randomize_batch_norm(nn.BatchNorm2d(4))

        def forward(self, x):
            n = self.norm
            x = F.batch_norm(
                self.conv(x), n.running_mean, n.running_var, n.weight, n.bias, self.training, 0.1, n.eps
            )
            return F.relu(x).mean((2, 3))

    net, x = Functional().eval(), torch.rand(4, 3, 8, 8)
    gm = standardize(net, x)
    assert torch.allclose(fuse(gm, x)(x), net(x), atol=1e-6)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in gm.modules())
    snn = convert(net, [x], calibration="none", max_spikes=16, threshold="max")
    assert (snn.run(x, 64).mean(0) - net(x)).abs().max() < 0.02


def test_the_length_of_a_sequence_follows_or_is_refused(convert):
    class Unrolled(nn.Module):
        """Over all steps of ``[N, L, C]``, as many as there were in tracing."""

        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 6)

        def forward(self, x):
            total = 0
            for step in range(x.shape[1]):
                total = total + F.relu(self.inner(x[:, step]))
            return total

    class Named(Unrolled):
        def forward(self, x):
            assert x.shape[2] == 4
            return F.relu(self.inner(x)).sum(1)

    x, longer = torch.randn(16, 3, 4), torch.randn(16, 7, 4)
    options = {"calibration": "none", "threshold": "max", "max_spikes": 16, "channel_wise": False}
    net = Named()
    snn = convert(net, [x], **options)
    assert (snn.run(longer, 64).mean(0) - net(longer)).norm() < 0.1 * net(longer).norm()
    net = Unrolled()
    snn = convert(net, [x], **options)
    assert (snn.run(x, 64).mean(0) - net(x)).norm() < 0.1 * net(x).norm()
    with pytest.raises(ValueError, match=r"size \[3, 4\] that it was converted for, and got \[7, 4\]"):
        snn.run(longer, 2)


def test_a_slice_of_a_sequential_is_its_layers():
    class Sliced(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())

        def forward(self, x):
            h = self.features[:2](x)
            return h, self.features[2:](h)

    net, x = Sliced(), torch.randn(4, 3)
    gm = standardize(net, x)
    assert [n.target for n in gm.graph.nodes if n.op == "call_module"] == [
        f"features.{i}" for i in range(4)
    ]
    for got, wanted in zip(gm(x), net(x), strict=True):
        assert torch.allclose(got, wanted)
