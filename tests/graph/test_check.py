"""What would convert to a wrong network is refused, with every reason at once."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sj_burst import standardize
from sj_burst.graph.check import check_batch_independent, check_equal, check_supported
from sj_burst.graph.fuse import fuse


def test_what_cannot_be_rewritten_is_named_with_the_rest(convert):
    net = nn.Sequential(nn.Linear(3, 4), nn.Threshold(1.0, 0.0), nn.Linear(4, 2), nn.Sigmoid())
    with pytest.raises(ValueError, match=r"(?s)2 operation.*Threshold.*Sigmoid"):
        convert(net, [torch.rand(4, 3)])


def test_every_unsupported_node_is_named_at_once():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.act, self.norm = nn.Linear(3, 3), nn.SiLU(), nn.LayerNorm(3)

        def forward(self, x):
            x = self.norm(self.act(self.fc(x)))
            x = x * torch.sigmoid(x)
            return F.softmax(x, dim=1)

    x = torch.rand(2, 3)
    with pytest.raises(ValueError) as error:
        check_supported(standardize(Gated(), x), x)
    text = str(error.value)
    assert text.startswith("5 operation(s)")
    for part in (
        "SiLU",
        "LayerNorm",
        "sigmoid",
        "softmax",
        "product of two activations",
        "after the last neuron it can stay",
    ):
        assert part in text
    assert "test_check.py:" in text  # the source line


@pytest.mark.filterwarnings("ignore:The reduce argument")  # which torch advises against, too
@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda x: torch.clamp(x, 1, -1), "bounds of 1 and -1"),
        (lambda x: F.relu(F.silu(x)), "retrain with ReLU"),
        (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], "indices"),
        (lambda x: x / (1 + x), "product"),
        (lambda x: x * x, "product"),
        (lambda x: x.scatter(1, torch.zeros(2, 1, 4, 4).long(), x, reduce="multiply"), "product"),
        (lambda x: torch.sort(x)[0], "replace it"),
        (lambda x: torch.div(x, 2, rounding_mode="floor"), "rounds"),
        (lambda x: x.to(torch.int32).float(), "rounds"),
        (lambda x: F.relu(x.sum((1, 2, 3))).unsqueeze(1), "one number per sample"),
    ],
)
def test_unsupported_operations(operation, message):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.LazyLinear(4)  # weights, and a neuron after them

        def forward(self, x):
            return F.relu(self.last(operation(F.relu(x)).flatten(1)))

    x = torch.rand(2, 1, 4, 4)
    net = Net()
    with pytest.raises(ValueError, match=message):
        net(x)
        check_supported(standardize(net, x), x)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: 2 * x / 3,
        lambda x: x.view(x.size(0), -1),
        lambda x: torch.cat([x, 1 - x], 1),
        lambda x: x.chunk(2, 1)[0],
    ],
)
def test_affine_operations_pass(operation):
    class Net(nn.Module):
        def forward(self, x):
            return operation(x)

    x = torch.rand(2, 2, 4, 4)
    gm = standardize(Net(), x)
    check_supported(gm, x)
    check_batch_independent(gm, x)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x - x.mean(0),
        lambda x: x - x.mean(),
        lambda x: x.view(2, -1),
        lambda x: x.flip(0),
        lambda x: x[:1],
    ],
)
def test_operators_that_mix_samples_are_refused(operation):
    class Net(nn.Module):
        def forward(self, x):
            return operation(x)

    x = torch.rand(2, 3)
    with pytest.raises(ValueError, match="batch"):
        check_batch_independent(standardize(Net(), x), x)


def test_batch_norm_without_statistics_is_refused():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False))
    x = torch.rand(4, 3)
    with pytest.raises(ValueError, match="running statistics"):
        check_supported(standardize(net, x), x)


def cancelling():
    """A network whose answer is a small difference of large values, as deep networks have them."""
    net = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(2, 4))
        net[0].bias.fill_(3e4)
        net[1].running_mean.fill_(0.1)
        net[1].running_var.fill_(0.7)
        net[3].weight.copy_(torch.tensor([[1.0, -1.0]]))
    return net.eval()


def test_rounding_is_not_taken_for_a_difference(convert):
    net, x = cancelling(), torch.rand(8, 4)
    fused = fuse(standardize(net, x), x)
    assert ((fused(x) - net(x)).abs().max() / net(x).abs().max()) > 1e-4  # in float32
    convert(net, [x], calibration="none")


def test_a_small_difference_is_not_taken_for_rounding():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    gm, x = standardize(net, torch.rand(2, 3)), torch.rand(2, 3)
    with torch.no_grad():
        net[0].bias.add_(1e-5)
    with pytest.raises(ValueError, match="differs from the network"):
        check_equal(gm, net, x)


class SlightlyMixing(nn.Module):
    def __init__(self, share):
        super().__init__()
        self.share = share

    def forward(self, x):
        return F.relu(x + self.share * x.mean(0, keepdim=True))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 255.0])
def test_mixing_of_a_ten_thousandth_is_seen_at_any_range_of_the_input(scale):
    x = scale * torch.rand(2, 3)
    with pytest.raises(ValueError, match="mixes the samples"):
        check_batch_independent(standardize(SlightlyMixing(1e-5), x), x)


@pytest.mark.parametrize("x", [torch.rand(1, 3).expand(2, 3), torch.tensor([[3, 1, 2], [3, 1, 2]])])
def test_mixing_is_seen_though_the_samples_are_alike(x):
    class Embedded(nn.Module):
        def forward(self, x):
            x = x.float()
            return F.relu(x - x.mean(0))

    with pytest.raises(ValueError, match="mixes the samples"):
        check_batch_independent(standardize(Embedded(), x), x)


def test_padding_of_minus_infinity_mixes_nothing(convert):
    class Padded(nn.Module):
        def forward(self, x):
            x = F.pad(F.relu(x), (1, 1, 1, 1), value=float("-inf"))
            return F.max_pool2d(x, 3, 2)

    x = torch.rand(4, 2, 6, 6)
    snn = convert(Padded(), [x], calibration="none", max_spikes=8)
    assert (snn.run(x, 64).mean(0) - Padded()(x)).abs().max() < 0.02


def test_stacked_branches_do_not_mix_samples(convert):
    class Stacked(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            h = F.relu(self.first(x))
            return self.second(torch.stack([h, 2 * h]).sum(0))

    net, x = Stacked(), torch.rand(8, 3)
    snn = convert(net, [x], calibration="none", max_spikes=8)
    assert (snn.run(x, 64).mean(0) - net(x)).abs().max() < 0.02


def test_activations_are_named_with_their_line(convert):
    class Thresholds(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.Threshold(0.5, 0.0)

        def forward(self, x):
            return F.relu(self.act(x) + x.clamp(2, 1))

    with pytest.raises(ValueError) as raised:
        convert(Thresholds(), [torch.rand(4, 3)])
    text = str(raised.value)
    assert re.search(r"act \(Threshold module, test_check.py:\d+\): only Threshold\(0, 0\)", text)
    assert re.search(r"clamp \(Tensor.clamp, test_check.py:\d+\): bounds of 2 and 1", text)


class Ends(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), last

    def forward(self, x):
        y = self.first(x).relu().unsqueeze(1)
        return self.last(y, y, y)[0] if isinstance(self.last, nn.MultiheadAttention) else self.last(y)[0]


@pytest.mark.parametrize(
    "last",
    [
        nn.LSTM(4, 4, batch_first=True),
        nn.GRU(4, 4, batch_first=True),
        nn.RNN(4, 4, batch_first=True),
        nn.MultiheadAttention(4, 2, batch_first=True),
    ],
    ids=lambda last: type(last).__name__,
)
def test_a_recurrent_layer_at_the_end_is_refused_once(convert, last):
    with pytest.raises(ValueError) as error:
        convert(Ends(last).eval(), [torch.rand(8, 3)])
    assert str(error.value).count(type(last).__name__) == 1
    assert "products of activations" in str(error.value)
