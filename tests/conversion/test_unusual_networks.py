"""Networks off the beaten path become right spiking networks, or are refused."""

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based.functional import reset_net
from torch import nn

from sj_burst import load, report, save, set_backend, simulate, standardize
from sj_burst.export import unit_thresholds

EXACT = {"threshold": "max", "calibration": "none", "max_spikes": 1, "time_steps": 64}


@torch.no_grad()
def assert_converges(snn, ann, x, steps=512, tolerance=0.02):
    """Mean output of T steps against the ANN, and one step after the other against all at once."""
    reset_net(snn)
    held = snn.run(x, steps)
    wanted = ann(x)
    assert ((held.mean(0) - wanted).abs().max() / wanted.abs().max()).item() < tolerance
    reset_net(snn)
    for out in held[:4]:
        assert torch.allclose(snn(x), out, atol=1e-5)
    reset_net(snn)


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize(
    ("pool", "shape", "features"),
    [
        (nn.MaxPool2d(2), (6, 10), 30),  # [N, H, W], which torch takes as channels of one picture
        (nn.MaxPool1d(2), (10,), 10),  # [N, L]
    ],
)
def test_pooling_without_channels(convert, backend, pool, shape, features):
    ann = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), pool, nn.Flatten(), nn.Linear(features, 4))
    x = torch.randn(8, *shape)
    snn = convert(ann, [x], **EXACT)
    set_backend(snn, backend)
    assert_converges(snn, ann, x)
    assert simulate(snn, [x], 8, progress=False).output.shape == (8, 4)


@pytest.mark.parametrize(("index", "changed"), [(0, abs), (1, abs), (2, lambda out: out + 1)])
def test_hooks_that_change_values_are_refused(convert, index, changed):
    ann = nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
    ann[index].register_forward_hook(lambda module, args, out: changed(out) + 0.1)
    x = torch.randn(4, 2, 8, 8)
    with pytest.raises(ValueError, match="hook that changes a value"):
        convert(ann, [x])
    with pytest.raises(ValueError, match="hook that changes a value"):
        standardize(ann, x)


def test_hooks_that_look_on_stay_with_the_ann(convert):
    ann = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    seen = []
    ann[0].register_forward_hook(lambda module, args, out: seen.append(out))
    x = torch.randn(4, 2, 8, 8)
    snn = convert(ann, [x], **EXACT)
    seen.clear()
    assert_converges(snn, lambda x: ann(x), x)
    assert len(seen) == 1  # of the ANN
    assert len(ann[0]._forward_hooks) == 1


class Collecting(nn.Module):
    """A skip connection that a hook collects, and one that scales a block."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU())
        self.after, self.out = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(8 * 36, 3)
        self.kept = {}
        self.block.register_forward_hook(self.keep)
        self.block.register_forward_hook(lambda module, args, out: out * 0.5)

    def keep(self, module, args, out):
        self.kept["block"] = out

    def forward(self, x):
        x = F.relu(self.after(self.block(x)))
        return self.out(torch.cat([x, self.kept["block"]], 1).flatten(1))


def test_hooks_of_containers_are_traced(convert):
    ann, x = Collecting(), torch.randn(4, 2, 6, 6)
    assert_converges(convert(ann, [x], **EXACT), ann, x)


class Crops(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))

    def forward(self, x):
        n, crops = x.shape[:2]
        return self.net(x.flatten(0, 1)).view(n, crops, -1).mean(1)


class Frames(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(7, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(F.relu(self.hidden(x)).flatten(0, 1))


def test_more_rows_than_samples_in_the_output_are_refused(convert):
    with pytest.raises(ValueError, match=r"the network returns .* for a batch of 2"):
        convert(Frames(), [torch.randn(4, 5, 7)])


class PooledCrops(Crops):
    """With slopes for each channel, and max-pooling, of maps that overlap."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.MaxPool2d(3, 2, 1), nn.AdaptiveMaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 3)),
        )
        nn.init.uniform_(self.net[1].weight, -0.5, 0.5)


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("kind", [Crops, PooledCrops])
def test_rows_of_crops_are_samples_of_their_own(convert, kind, backend):
    ann, x = kind(), torch.randn(4, 5, 3, 8, 8)
    snn = convert(ann, [x], **EXACT)
    set_backend(snn, backend)
    assert_converges(snn, ann, x)
    assert_converges(snn, ann, torch.cat([x, x[:1]]))
    calibrated = convert(ann, [x], time_steps=8, max_spikes=4)
    assert_converges(calibrated, ann, x, steps=8, tolerance=0.2)
    assert report(calibrated, ann, [x]).layers
    assert simulate(calibrated, [x], 8, progress=False).output.shape == (4, 3)


def test_crops_that_come_first_are_refused(convert):
    """The rows of a sample do not follow each other."""

    class First(Crops):
        def forward(self, x):
            n, crops = x.shape[:2]
            return self.net(x.transpose(0, 1).flatten(0, 1)).view(crops, n, -1).mean(0)

    with pytest.raises(ValueError, match="mixes the samples of a batch"):
        convert(First(), [torch.randn(4, 5, 3, 8, 8)])


def test_more_rows_between_two_layers_are_no_harm(convert):
    class Points(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.out = nn.Linear(7, 8), nn.Linear(8, 6), nn.Linear(6, 3)

        def forward(self, x):
            y = F.relu(self.first(x))
            y = F.relu(self.second(y.flatten(0, 1)).view(x.size(0), -1, 6))
            return self.out(y.reshape(-1, 6)).view(x.size(0), -1, 3)

    ann, x = Points(), torch.randn(8, 5, 7)
    assert_converges(convert(ann, [x], **EXACT), ann, x)
    snn = convert(ann, [x], time_steps=8, max_spikes=4)  # calibrated
    assert_converges(snn, ann, x, steps=8, tolerance=0.2)


class Scaled(nn.Module):
    """Activations of parameters, as functions and as modules; they do not fire."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.gate = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sigmoid()
        self.pool = nn.MaxPool1d(2)
        self.scale, self.shift = nn.Parameter(torch.rand(1, 4, 1, 1)), nn.Parameter(torch.randn(4, 1, 1))
        self.weight, self.pooled = nn.Parameter(torch.randn(3, 144)), nn.Parameter(torch.randn(1, 3, 2))

    def forward(self, x):
        x = self.relu(self.conv(x)) * self.scale.clamp(0, 1) * self.gate(self.shift.clamp(-1, 1))
        bias = self.pool(self.relu(self.pooled)).flatten()
        weight = F.relu(self.weight).clone()
        weight.sub_(weight.mean(1, keepdim=True))
        weight.clamp_(-0.5, 0.5)
        return F.linear(x.flatten(1), weight, bias)


def test_activations_of_parameters_do_not_fire(convert, tmp_path):
    ann, x = Scaled(), torch.randn(6, 3, 8, 8)
    snn = convert(ann, [x], **EXACT)
    assert len(snn.neurons()) == 1
    assert report(snn, ann, [x]).layers
    assert_converges(snn, ann, x)
    save(snn, tmp_path / "snn.pt")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "snn.pt", Scaled()).run(x, 3), snn.run(x, 3))


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: F.avg_pool2d(x, x.size(3)),
        lambda x: F.avg_pool2d(x, kernel_size=x.shape[2:]),
        lambda x: torch.reshape(x, (x.size(0), -1)),
        lambda x: torch.reshape(input=x, shape=(x.shape[0], -1)),
        lambda x: torch.narrow(x, 1, 0, x.size(1) // 2),
        lambda x: torch.chunk(x, x.size(1) // 2, 1)[0],
        lambda x: torch.roll(x, x.size(2) // 2, 2),
        lambda x: torch.mean(x, x.dim() - 1),
        lambda x: torch.tile(x, (1, x.size(1) // 2, 1, 1)),
        lambda x: torch.cat([x, torch.zeros(x.size(0), 2, *(4, 4))], 1),
        lambda x: torch.cat([x, torch.zeros((x.size(0), 2, x.size(2), 4), device=x.device)], 1),
        lambda x: torch.cat([x, x.new_zeros(x.size(0), 2, 4, 4)], 1),
    ],
)
@pytest.mark.parametrize("first", [nn.Identity(), nn.ReLU()])
def test_sizes_are_arguments(convert, operation, first):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.first = nn.Conv2d(2, 4, 3), first

        def forward(self, x):
            return F.relu(operation(self.first(self.conv(x)))) + 0.1

    ann, x = Net(), torch.randn(4, 2, 6, 6)
    snn = convert(ann, [x], **EXACT)
    assert_converges(snn, ann, x)
    assert_converges(snn, ann, torch.cat([x, x[:3]]))  # another batch size


def test_zeros_follow_the_precision(convert):
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(6, 3)

        def forward(self, x):
            x = F.relu(self.first(x))
            return self.second(torch.cat([x, torch.zeros(x.size(0), 2)], 1))

    x = torch.rand(8, 4)
    snn = convert(Padded(), [x]).double()
    assert snn.run(x.double(), 2).dtype == torch.float64


def test_what_mixes_samples_is_named_with_its_line(convert):
    class Centred(nn.Module):
        def forward(self, x):
            return F.relu(x) - torch.sum(x, 0)

    with pytest.raises(ValueError, match=r"sum_1 \(sum, test_unusual_networks.py:\d+\) mixes"):
        convert(Centred(), [torch.rand(8, 3)])


def test_networks_with_several_outputs_can_be_standardized():
    class Pair(nn.Module):
        def forward(self, x):
            return {"a": F.relu(x), "b": (x + 1, [x])}

    x = torch.randn(2, 3)
    assert torch.equal(standardize(Pair(), x)(x)["a"], x.relu())


def test_sequences_of_another_length(convert):
    ann = nn.Sequential(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 3))
    x, longer = torch.randn(8, 6, 7), torch.randn(8, 10, 7)
    with pytest.raises(ValueError, match=r"6 channels.*channel_wise=False"):
        convert(ann, [x]).run(longer, 2)
    snn = convert(ann, [x, longer], channel_wise=False, **EXACT)
    assert_converges(snn, ann, longer)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Parameter(torch.randn(9, 12)), nn.Linear(12, 3)

    def forward(self, x):
        return self.out(F.relu(self.table[x].mean(1)))


def test_integer_inputs_come_back(convert, tmp_path):
    ann, x = Tokens(), torch.randint(9, (8, 5))
    snn = convert(ann, [x], **EXACT)
    assert_converges(snn, ann, x)
    save(snn, tmp_path / "snn.pt")
    again = load(tmp_path / "snn.pt", Tokens())
    with torch.no_grad():
        assert torch.equal(snn.run(x, 3), again.run(x, 3))
    with pytest.raises(ValueError, match=r"calibrated on inputs of torch.int64, got torch.float32"):
        again.run(x.float(), 2)


def test_calibration_images_that_the_network_does_not_take(convert):
    ann = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"calibration_loader yields inputs of shapes \[3\] and \[4\]"):
        convert(ann, [torch.rand(8, 3), torch.rand(8, 4)], calibration="none")
    sequences = [torch.rand(8, 6, 3), torch.rand(8, 5, 3)]
    with pytest.raises(ValueError, match="try channel_wise=False"):
        convert(ann, sequences, calibration="none")
    convert(ann, sequences, calibration="none", channel_wise=False)
    with pytest.raises(TypeError, match="to_dense"):
        convert(ann, [torch.rand(8, 3).to_sparse()])


class Front(nn.Module):
    """Anything may be computed of an image that is held, before the first neuron."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x):
        x = torch.log1p(x.square()) * torch.sigmoid(x)
        x = x / x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return self.head(F.relu(self.conv(x)).mean((2, 3)))


def test_before_the_first_neuron_anything_goes(convert, tmp_path):
    net, x = Front(), torch.randn(8, 3, 6, 6)
    snn = convert(net, [x], **EXACT)
    assert_converges(snn, net, x)
    assert report(snn, net, [x]).operations.layers["conv"].macs > 0
    save(snn, tmp_path / "snn.pt")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "snn.pt", Front()).run(x, 3), snn.run(x, 3))
    with pytest.raises(ValueError, match="product of two activations"):
        convert(net, [x], coding="rate")  # spikes, which vary from step to step


def test_embeddings_convert(convert):
    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(10, 6), nn.Linear(6, 4)

        def forward(self, x):
            return F.relu(self.head(self.words(x).mean(1)))

    net, x = Embedded(), torch.randint(10, (8, 5))
    assert_converges(convert(net, [x], **EXACT), net, x)


def test_what_does_nothing_in_eval_mode_is_dropped(convert):
    from torchvision.ops import DropBlock2d, StochasticDepth

    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.depth, self.block = StochasticDepth(0.5, "row"), DropBlock2d(0.5, 3)
            self.alpha = nn.FeatureAlphaDropout()
            self.norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
            self.pad = nn.CircularPad2d(1)

        def forward(self, x):
            x = self.alpha(self.block(self.depth(F.relu(self.conv(x)))))
            return F.relu(self.norm(self.pad(x))).mean((2, 3))

    net, x = Dropping().eval(), torch.rand(8, 3, 6, 6)
    nn.init.uniform_(net.norm.running_mean), nn.init.uniform_(net.norm.running_var, 0.5, 2)
    assert_converges(convert(net, [x], **EXACT), net, x)


def test_slices_may_be_assigned(convert):
    class Assigned(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x):
            h = F.relu(self.conv(x))
            h[:, 0] = 0
            h[:, 1, 2:] = 2 * h[:, 2, 2:]
            return h.mean((2, 3))

    net, x = Assigned(), torch.rand(8, 3, 6, 6)
    assert_converges(convert(net, [x], **EXACT), net, x)


@pytest.mark.parametrize("low", [True, False])
def test_what_rests_in_two_samples_is_seen(convert, low):
    """An operation on a view, which changes nothing in the samples that the loader yields first."""

    class Views(nn.Module):
        def forward(self, x):
            view = x[:, :2]
            view.clamp_(0.0, None) if low else view.clamp_(None, 2.0)
            return F.relu(x + 1)

    with pytest.raises(ValueError, match="differs from the network"):
        convert(Views(), [0.5 + torch.rand(8, 3)])


@torch.no_grad()
def test_an_operator_that_views_its_input_sees_it_contiguous(convert):
    class Tiled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

        def forward(self, x):
            return self.b(torch.kron(torch.relu(self.a(x)), torch.ones(1, 1, 2, 2)))

    net, x = Tiled().eval(), torch.randn(6, 3, 8, 8)
    snn = convert(net, [x], max_spikes=64, calibration="none")
    out = snn.run(x.to(memory_format=torch.channels_last), 8).mean(0)
    assert (out - net(x)).norm() < 0.02 * net(x).norm()


class Forward(nn.Module):
    """Two linear layers by place, and what is done with them."""

    def __init__(self, forward, *sizes):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv1d(2, 4, 3, padding=1), nn.Conv1d(2, 4, 3, padding=1)
        self.last, self.act = nn.Linear(*sizes), forward

    def forward(self, x):
        return self.act(self, x)


ALIASES = [
    (lambda net, x: net.last(torch.max(net.a(x).relu(), axis=2)[0]), (4, 3)),
    (lambda net, x: net.last(torch.amin(net.a(x).relu(), axis=2)), (4, 3)),
    (
        lambda net, x: net.last((lambda y: y - y.max(dim=2, keepdims=True)[0])(net.a(x).relu()).mean(2)),
        (4, 3),
    ),
    (
        lambda net, x: net.last(
            torch.cat([net.a(x).relu().transpose(1, 2), net.b(x).relu().transpose(1, 2)], axis=-1).mean(
                1
            )
        ),
        (8, 3),
    ),
    (lambda net, x: net.last(net.a(x).relu().mean(axis=2)), (4, 3)),
]


@pytest.mark.parametrize(("forward", "sizes"), ALIASES)
def test_dimensions_by_numpys_names(convert, forward, sizes):
    ann, x = Forward(forward, *sizes), torch.randn(6, 2, 8)
    assert_converges(convert(ann, [x], **EXACT), ann, x)


def test_gradients_switched_off_inside(convert):
    ann = Forward(lambda net, x: net.last(net.a(x.requires_grad_(False)).relu().mean(2)), 4, 3)
    x = torch.randn(6, 2, 8)
    assert_converges(convert(ann, [x], **EXACT), ann, x)


def test_a_spectrum_in_front(convert):
    ann = Forward(lambda net, x: net.last(net.a(torch.fft.rfft(x).abs()).relu().mean(2)), 4, 3)
    x = torch.randn(6, 2, 8)
    assert_converges(convert(ann, [x], **EXACT), ann, x)


def test_tokens_within_bounds(convert):
    def forward(net, x):
        return net.last(net.a(net.embedding(x.clamp(0, 9)).transpose(1, 2)).relu().mean(2))

    ann, x = Forward(forward, 4, 3), torch.randint(-3, 14, (6, 8))
    ann.embedding = nn.Embedding(10, 2)
    assert_converges(convert(ann, [x], **EXACT), ann, x)


@pytest.mark.parametrize("calibration", ["none", "advanced"])
@pytest.mark.parametrize("order", [(0, 0), (1, 0, 1)])
def test_a_value_that_is_concatenated_twice_has_integer_weights(convert, calibration, order):
    def forward(net, x):
        parts = [net.a(x).relu(), net.b(x).relu()]
        return net.last(torch.cat([parts[i] for i in order], 1).transpose(1, 2)).mean(1)

    ann, x = Forward(forward, 4 * len(order), 3), torch.randn(12, 2, 8)
    ann.last = nn.Linear(4 * len(order), 3)
    snn = convert(ann, [x], weight_bits=8, calibration=calibration, max_spikes=15)
    with torch.no_grad():
        wanted, found = ann(x), unit_thresholds(snn).run(x, 8).mean(0)
    assert torch.allclose(found, snn.run(x, 8).mean(0), atol=1e-4)
    assert (found - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_a_row_that_all_samples_share(convert):
    ann = Forward(lambda net, x: net.last((net.a(x).relu() + x.new_ones(1, 4, 1)).mean(2)), 4, 3)
    x = torch.randn(6, 2, 8)
    assert_converges(convert(ann, [x], **EXACT), ann, x)


@pytest.mark.parametrize("length", [2, 4])
def test_sequences_that_come_first_are_refused(convert, length):
    """With two rows of a sequence, as many as there are samples in the example, too."""

    def forward(net, x):
        return net.last(torch.relu(net.c(torch.relu(net.b2(x.transpose(0, 1))))).mean(0))

    ann = Forward(forward, 5, 3)
    ann.b2, ann.c = nn.Linear(6, 5), nn.Linear(5, 5)
    with pytest.raises(ValueError, match="folded"):
        convert(ann, [torch.randn(16, length, 6)])


def test_a_factor_that_is_held_does_not_change_from_step_to_step(convert):
    """What the held input makes may meet spikes; frames make it vary, and that is a product of both."""

    def forward(net, x):
        return net.last((net.b(x) * net.a(x).relu()).mean(2))

    ann, frames = Forward(forward, 4, 3), torch.randn(6, 16, 2, 8)
    snn = convert(ann, [frames[:, 0]], time_steps=16)
    simulate(snn, [frames[:, 0]], 16, progress=False)
    with pytest.raises(ValueError, match="change over time need layers that are affine"):
        simulate(snn, [frames], 16, time_dim=1, progress=False)


FRONTS = {
    "log": lambda x: torch.log(x.clamp(min=1e-3)),
    "abs": lambda x: F.layer_norm(x.abs(), x.shape[1:]),
    "decibel": lambda x: (20 * torch.log10(torch.clamp(x.abs(), min=1e-3))).clamp(min=-40),
    "root": lambda x: torch.clip(x, 0.1, 2.0).mean(2, keepdim=True).sqrt() + x,
}


@pytest.mark.parametrize("front", FRONTS)
def test_bounds_in_front_serve_what_reads_them(convert, front):
    """Under direct coding the input may be bent as it likes: no neuron has to stand for that."""
    ann = Forward(lambda net, x: net.last(net.a(FRONTS[front](x)).relu().mean(2)), 4, 3)
    x = torch.randn(6, 2, 8)
    snn = convert(ann, [x], **EXACT)
    assert len(snn.neurons()) == 1
    assert_converges(snn, ann, x)
    with pytest.raises(ValueError, match="cannot be converted"):
        convert(ann, [x], coding="rate")


def test_bounds_that_nothing_bends_further_are_neurons(convert):
    ann = Forward(lambda net, x: net.last(net.a(x.clamp(0, 1)).relu().mean(2)), 4, 3)
    x = torch.randn(6, 2, 8)
    snn = convert(ann, [x], **EXACT)
    assert len(snn.neurons()) == 2
    assert_converges(snn, ann, x)
