import copy
import tempfile

import pytest
import torch
import torch.nn.functional as F
import torchvision
from networks import CifarResNet
from torch import nn

import sj_burst
from sj_burst import standardize
from sj_burst.graph.check import check_batch_independent, check_equal, check_supported
from sj_burst.graph.fuse import fuse
from sj_burst.graph.trace import activation_names
from tests.networks import randomize_batch_norm

MODELS = [
    *("resnet18", "googlenet", "mobilenet_v2", "mnasnet0_5", "squeezenet1_1"),
    *("regnet_x_400mf", "shufflenet_v2_x0_5"),
]
SLOW_TO_MAKE = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("alexnet", "resnet50", "densenet121")
]


def difference(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def build(name):
    if name == "cifar_resnet20":
        return CifarResNet()
    options = {"init_weights": True} if name == "googlenet" else {}
    return getattr(torchvision.models, name)(weights=None, **options)


@pytest.mark.filterwarnings("ignore:.*scipy.*")
@pytest.mark.parametrize("name", [*MODELS, *SLOW_TO_MAKE, "cifar_resnet20"])
@torch.no_grad()
def test_graphs_equal_the_network(name):
    net = randomize_batch_norm(build(name)).train()
    before = copy.deepcopy(net.state_dict())
    x = torch.rand(2, 3, 64, 64)
    gm = standardize(net, x)
    check_supported(gm, x)
    check_batch_independent(gm, x)
    expected = copy.deepcopy(net).eval()(x)
    assert difference(gm(x), expected) <= 1e-5
    check_equal(fuse(gm, x), net, x, tolerance=1e-5)
    assert difference(gm(x), expected) <= 1e-5
    # The network that came in is as it was.
    assert net.training
    assert all(m.training for m in net.modules())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def names(gm):
    return [str(node.target) for node in gm.graph.nodes if node.op == "call_module"]


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x, flag=False):
        x = F.relu(self.conv(x), inplace=True)
        x = torch.clamp(x, 0, 2.0)
        x = x.relu_()
        x = F.max_pool2d(x, 2)
        x = F.dropout(x, training=self.training)
        x = F.avg_pool2d(x, x.size()[3])
        return x.mean([2, 3])


def test_functional_calls_become_modules():
    x = torch.rand(2, 1, 8, 8)
    net = Functional()
    gm = standardize(net, x)
    kinds = [type(gm.get_submodule(name)).__name__ for name in names(gm)]
    assert kinds == [
        "Conv2d",
        "ReLU",
        "Hardtanh",
        "ReLU",
        "MaxPool2d",
        "AdaptiveAvgPool2d",
        "AdaptiveAvgPool2d",
        "Flatten",
    ]
    check_equal(gm, net, x)
    assert activation_names(gm) == ["relu", "clamp", "relu_1"]


@pytest.mark.parametrize("pool", ["avg_pool2d", "max_pool2d"])
def test_a_window_of_the_size_of_the_map_follows_the_resolution(pool):
    class Net(nn.Module):
        def __init__(self, fixed):
            super().__init__()
            self.fixed = fixed

        def forward(self, x):
            return getattr(F, pool)(x, 4 if self.fixed else x.size()[2:])

    small, large = torch.rand(2, 1, 4, 4), torch.rand(2, 1, 8, 8)
    for fixed, size in ((False, 1), (True, 2)):
        gm = standardize(Net(fixed), small)
        assert gm(large).shape[-1] == size
        check_equal(gm, Net(fixed), large)


def test_a_module_called_twice_becomes_two():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.act = nn.Linear(3, 3), nn.Linear(3, 3), nn.ReLU()

        def forward(self, x):
            return self.act(self.b(self.act(self.a(x))))

    gm = standardize(Twice(), torch.rand(2, 3))
    first, second = activation_names(gm)
    assert gm.get_submodule(first) is not gm.get_submodule(second)


def test_what_an_in_place_relu_overwrote_is_read_later():
    class Overwrite(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            x = self.fc(x)
            y = F.relu(x, inplace=True)
            return x + y

    x = torch.randn(4, 3)
    net = Overwrite()
    check_equal(standardize(net, x), net, x)


def test_operations_in_place_leave_the_input_alone():
    class InPlace(nn.Module):
        def forward(self, x):
            x.sub_(0.5).div_(0.2)
            y = x * 2
            y += F.relu(x)
            x.add_(y)
            return x - y

    x = torch.rand(2, 3)
    before = x.clone()
    gm = standardize(InPlace(), x)
    assert torch.allclose(gm(x), InPlace()(x.clone()))
    check_equal(gm, InPlace(), x)
    assert torch.equal(x, before)


def test_views_and_squeezes_take_any_layout_and_batch():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.Parameter(torch.eye(48).unsqueeze(0))

        def forward(self, x):
            pooled = F.adaptive_avg_pool2d(x, 1).squeeze().repeat(1, 16)
            return x.view(x.size(0), -1) @ self.p.squeeze().t() + pooled

    x = torch.rand(2, 3, 4, 4)
    gm = standardize(Net(), x)
    for batch in (torch.rand(5, 3, 4, 4), torch.rand(1, 3, 4, 4)):
        wanted = batch.flatten(1) + batch.mean((2, 3)).repeat(1, 16)
        for layout in (torch.contiguous_format, torch.channels_last):
            assert torch.allclose(gm(batch.contiguous(memory_format=layout)), wanted)


@pytest.mark.parametrize("pool", ["avg_pool2d", "max_pool2d"])
@pytest.mark.parametrize("image", [True, False])
def test_a_window_of_half_the_map_refuses_another_resolution(convert, pool, image):
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 3, padding=1)

        def forward(self, x):
            h = F.relu(self.conv(x))
            pooled = getattr(F, pool)(h, h.size(2) // 2)
            return pooled.mean((2, 3)) if image else pooled

    net, x = Halves(), torch.rand(4, 2, 8, 8)
    snn = convert(net, [x], calibration="none", max_spikes=8)
    with torch.no_grad():
        assert (snn.run(x, 64).mean(0) - net(x)).abs().max() < 0.02
        with pytest.raises(ValueError, match=r"from the size \[8, 8\] .* got \[12, 12\]"):
            snn.run(torch.rand(2, 2, 12, 12), 2)
    again = load_after_saving(snn, net)
    with pytest.raises(ValueError, match="computes something from the size"):
        again.run(torch.rand(2, 2, 12, 12), 2)


def load_after_saving(snn, net):
    with tempfile.TemporaryDirectory() as folder:
        sj_burst.save(snn, f"{folder}/snn.pt")
        return sj_burst.load(f"{folder}/snn.pt", net)


class ByKeyword(nn.Module):
    """Layers that are called with their arguments by name."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.act = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        x = self.act(input=self.norm(input=self.conv(input=x)))
        return self.last(input=x.mean((2, 3)))


def test_layers_called_by_keyword_convert():
    ann, x = ByKeyword().eval(), torch.rand(6, 1, 6, 6)
    fine = {"max_spikes": 2**12, "calibration": "none"}
    snn = sj_burst.convert(ann, [x], time_steps=1, **fine, progress=False)
    with torch.no_grad():
        torch.testing.assert_close(snn.answer(x, 1), ann(x), atol=1e-3, rtol=1e-2)
    assert snn.graph.get_submodule("conv").bias is not None  # the norm is in it
    assert not any(isinstance(m, nn.BatchNorm2d) for m in snn.modules())
