import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from networks import CifarResNet
from torch import nn
from torch.nn.utils import prune

from sj_burst import standardize
from sj_burst.graph.check import check_batch_independent, check_equal, check_supported
from sj_burst.graph.fuse import fuse, unfused
from sj_burst.graph.trace import activation_names
from tests.networks import randomize_batch_norm

MODELS = [
    *("alexnet", "vgg11_bn", "resnet18", "resnet50", "densenet121", "googlenet", "mobilenet_v2"),
    *("mnasnet0_5", "squeezenet1_1", "regnet_x_400mf", "shufflenet_v2_x0_5"),
]


def difference(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def build(name):
    if name == "cifar_resnet20":
        return CifarResNet()
    options = {"init_weights": True} if name == "googlenet" else {}
    return getattr(torchvision.models, name)(weights=None, **options)


@pytest.mark.filterwarnings("ignore:.*scipy.*")
@pytest.mark.parametrize("name", [*MODELS, "cifar_resnet20"])
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
        "Sequential",
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
def test_weights_computed_in_hooks_are_refused(run):
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    prune.l1_unstructured(net[0], "weight", 0.5)
    x = torch.rand(2, 3)
    with torch.set_grad_enabled(run):
        net(x)
    with pytest.raises(ValueError, match=r"prune.remove\(module, 'weight'\)"):
        standardize(net, x)


def test_batch_norm_folds_backward_and_forward():
    net = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)),
        *(nn.Conv2d(4, 6, 2, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 4)),
        *(nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 3)),
    )
    randomize_batch_norm_all(net)
    x = torch.rand(3, 2, 4, 4)
    gm = fuse(standardize(net, x), x)
    assert unfused(gm) == []
    check_equal(gm, net, x, tolerance=1e-5)


def randomize_batch_norm_all(net):
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)


def test_transposed_convolutions_fold_too():
    net = nn.Sequential(nn.ConvTranspose2d(2, 3, 2, 2), nn.BatchNorm2d(3), nn.ReLU())
    randomize_batch_norm_all(net)
    x = torch.rand(2, 2, 3, 3)
    gm = fuse(standardize(net, x), x)
    assert unfused(gm) == []
    check_equal(gm, net, x, tolerance=1e-5)


def test_batch_norm_before_padding_stays():
    net = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.ReLU(), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, padding=1), nn.ReLU()
    )
    randomize_batch_norm_all(net)
    x = torch.rand(2, 1, 4, 4)
    gm = fuse(standardize(net, x), x)
    assert unfused(gm) == ["2"]
    check_equal(gm, net, x, tolerance=1e-5)


def test_a_convolution_shared_by_two_batch_norms_is_not_fused():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.a, self.b = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.BatchNorm2d(2)

        def forward(self, x):
            return F.relu(self.a(self.conv(x))) + F.relu(self.b(self.conv(x)))

    net = Shared()
    randomize_batch_norm_all(net)
    x = torch.rand(2, 1, 5, 5)
    gm = fuse(standardize(net, x), x)
    assert unfused(gm) == ["a", "b"]
    check_equal(gm, net, x, tolerance=1e-5)


def test_batch_norm_over_a_sequence_is_not_folded_into_its_linear():
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.bn = nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x):
            return F.relu(self.bn(self.fc(x)))  # [N, 4, 4]: BatchNorm acts on dimension 1

    net = Sequence()
    randomize_batch_norm_all(net)
    x = torch.rand(3, 4, 4)
    gm = fuse(standardize(net, x), x)
    check_equal(gm, net, x, tolerance=1e-5)


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


def test_batch_norm_after_a_grouped_transposed_convolution_stays():
    net = nn.Sequential(nn.ConvTranspose2d(4, 8, 2, groups=2), nn.BatchNorm2d(8), nn.ReLU()).eval()
    x = torch.rand(2, 4, 3, 3)
    gm = fuse(standardize(net, x), x)
    assert unfused(gm) == ["1"]
    assert torch.allclose(gm(x), net(x))


def test_what_cannot_be_rewritten_is_named_with_the_rest(convert):
    net = nn.Sequential(nn.Linear(3, 4), nn.Hardtanh(-1, 1), nn.Linear(4, 2), nn.Sigmoid())
    with pytest.raises(ValueError, match=r"(?s)2 operation.*Hardtanh.*Sigmoid"):
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
        "return the logits",
    ):
        assert part in text
    assert "test_passes.py:" in text  # the source line


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda x: torch.clamp(x, -1, 1), "clamp"),
        (lambda x: F.leaky_relu(x), "ReLU"),
        (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], "indices"),
        (lambda x: x / (1 + x), "product"),
        (lambda x: x * x, "product"),
        (lambda x: torch.maximum(x, -x), "replace it"),
        (lambda x: torch.div(x, 2, rounding_mode="floor"), "rounds"),
        (lambda x: x.to(torch.int32).float(), "rounds"),
        (lambda x: F.relu(x.sum((1, 2, 3))), "one number per sample"),
    ],
)
def test_unsupported_operations(operation, message):
    class Net(nn.Module):
        def forward(self, x):
            return operation(x)

    x = torch.rand(2, 1, 4, 4)
    with pytest.raises(ValueError, match=message):
        check_supported(standardize(Net(), x), x)


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


def test_untraceable_and_multi_input_networks():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    with pytest.raises(ValueError, match="cannot be traced"):
        standardize(Branch(), torch.rand(2, 3))
    with pytest.raises(ValueError, match="exactly one input"):
        standardize(Two(), torch.rand(2, 3))
    with pytest.raises(ValueError, match="instead of its DataParallel"):
        standardize(nn.DataParallel(nn.Linear(3, 2)), torch.rand(2, 3))
    with pytest.raises(ValueError, match=r"does not run on inputs \[2, 3\] \(torch.uint8, cpu\)"):
        standardize(nn.Linear(3, 2), torch.zeros(2, 3, dtype=torch.uint8))


def test_two_outputs_are_refused():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    x = torch.rand(2, 3)
    with pytest.raises(ValueError, match="one tensor"):
        check_supported(standardize(Pair(), x), x)
