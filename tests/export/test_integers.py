import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from spikingjelly.activation_based.functional import set_step_mode
from torch import nn

import sj_burst
from sj_burst.backends import integers as kernels
from sj_burst.backends.dispatch import is_installed
from sj_burst.export import to_integers, unit_thresholds
from sj_burst.modules import integers
from sj_burst.modules.counting import CountingNode
from sj_burst.modules.integers import IntegerLayer, fixed_point
from tests.networks import resnet, vgg

from .test_unit_thresholds import Sequences, UNet, conv1d


class Branches(nn.Module):
    """Pooling that fits and does not, upsampling, slices, padding, three terms in a sum."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.c, self.d = nn.Conv2d(6, 9, 3, padding=1), nn.Conv2d(9, 9, 3, padding="same")
        self.up, self.fc = nn.Upsample(scale_factor=2), nn.Linear(9, 4)

    def forward(self, x):
        a = F.relu(self.a(x))
        half = F.relu(self.b(F.avg_pool2d(a, 2)))
        a = F.relu(self.up(half) + a + self.b(a))
        skip = F.pad(a[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2))
        c = F.relu(self.c(F.max_pool2d(a, 3, 2, 1)) + skip)
        d = F.relu(self.d(F.avg_pool2d(c, 3, 1, 1)))
        return self.fc(d.mean((2, 3))), d.softmax(1)


CASES = {
    "vgg": (vgg, (2, 8, 8), {}),
    "vgg, averages": (vgg, (2, 8, 8), {"max_pool": "average"}),
    "vgg, unsigned": (vgg, (2, 8, 8), {"inactivated_spikes": "allow", "max_spikes": 1}),
    "vgg, one threshold": (vgg, (2, 8, 8), {"channel_wise": False, "weight_bits": 4}),
    "vgg, 16 bits": (vgg, (2, 8, 8), {"weight_bits": 16}),
    "vgg, rate coding": (vgg, (2, 8, 8), {"coding": "compensated"}),
    "vgg, gated": (vgg, (2, 8, 8), {"max_pool": "spike"}),
    "resnet": (resnet, (3, 8, 8), {"max_spikes": 15}),
    "unet": (UNet, (3, 8, 8), {}),
    "branches": (Branches, (3, 8, 8), {}),
    "sequences": (Sequences, (5, 4), {"channel_wise": False}),
    "conv1d": (conv1d, (2, 16), {}),
}


def make(convert, case, calibration="light"):
    network, shape, options = CASES[case]
    torch.manual_seed(0)
    ann, x = network(), torch.randn(16, *shape)
    options = {"weight_bits": 8, "time_steps": 6, "calibration": calibration, **options}
    return convert(ann, [x], **options), torch.randn(8, *shape)


def parts(value):
    return value if isinstance(value, tuple) else (value,)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_it_returns_what_the_network_returns(convert, case):
    snn, x = make(convert, case)
    before = {key: value.clone() for key, value in snn.state_dict().items()}
    net = to_integers(snn)
    assert all(torch.equal(value, before[key]) for key, value in snn.state_dict().items())
    for got, wanted in zip(parts(net.run(x, 6)), parts(snn.run(x, 6)), strict=True):
        # A current on a threshold to seven digits may fall on either side.
        assert ((got - wanted).abs() < 1e-4).float().mean() > 0.99
    for got, wanted in zip(parts(net.answer(x, 6)), parts(snn.answer(x, 6)), strict=True):
        torch.testing.assert_close(got, wanted, atol=0.02, rtol=0)
    layers = [m for m in net.modules() if isinstance(m, IntegerLayer)]
    assert layers
    assert not any(p.is_floating_point() for m in layers for p in m.state_dict().values())


def counts_of(net, x, steps):
    found = {}

    def keep(name):
        return lambda module, _, out: found.__setitem__(name, out.unflatten(0, tuple(module.time_fold)))

    hooks = [
        m.register_forward_hook(keep(n)) for n, m in net.named_modules() if isinstance(m, CountingNode)
    ]
    out = net.run(x, steps)
    for hook in hooks:
        hook.remove()
    return found, out


def slow_layer(layer, x):
    """Sums of a convolution or product in Python's integers of any size."""
    weight = layer.weight.numpy().astype(object)
    geometry = layer.geometry
    if isinstance(geometry, nn.Linear):
        return np.array(
            [[sum(w * n for w, n in zip(row, sample, strict=True)) for row in weight] for sample in x]
        )
    columns = F.unfold(
        torch.from_numpy(x.astype(np.float64)),
        geometry.kernel_size,
        1,
        geometry.padding,
        geometry.stride,
    ).numpy()
    rows = weight.reshape(len(weight), -1)
    height = (x.shape[2] + 2 * geometry.padding[0] - geometry.kernel_size[0]) // geometry.stride[0] + 1
    sums = np.array([rows @ sample.astype(np.int64).astype(object) for sample in columns])
    return sums.reshape(len(x), len(weight), height, -1)


@torch.no_grad()
@pytest.mark.parametrize("signed", [True, False])
def test_every_count_is_that_of_integer_arithmetic(convert, signed):
    torch.manual_seed(0)
    ann = nn.Sequential(
        *(nn.Conv2d(2, 5, 3, 2, 1), nn.ReLU(), nn.Conv2d(5, 6, 3), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(24, 7), nn.ReLU(), nn.Linear(7, 3)),
    )
    x = torch.randn(8, 2, 8, 8)
    spikes = {} if signed else {"inactivated_spikes": "allow"}
    net = to_integers(convert(ann, [x], weight_bits=8, max_spikes=3, **spikes))
    found, out = counts_of(net, x, 5)
    graph = net.graph
    layers = [m for m in graph.modules() if isinstance(m, IntegerLayer)]
    nodes = [m for m in graph.modules() if isinstance(m, CountingNode)]
    q, step = fixed_point(x)
    first = slow_layer(layers[0], q.numpy().astype(np.int64))
    first = (first.astype(np.float64) * step.numpy().reshape(-1, 1, 1, 1)).astype(np.float32)
    state = {}
    for t in range(5):
        value = first
        for i, (node, (name, emitted)) in enumerate(zip(nodes, found.items(), strict=True)):
            if i:
                value = value.reshape(8, -1) if isinstance(layers[i].geometry, nn.Linear) else value
                value = slow_layer(layers[i], value).astype(np.float32)
            scale, shift, v_init = (p.numpy() for p in (node.scale_0, node.shift, node.v_init))
            v, sent = state.get(name, (np.broadcast_to(v_init, value.shape).astype(np.float32), 0))
            m = (v + scale * value) + shift
            assert m.dtype == np.float32
            n = np.clip(np.floor(m), -3 if signed else 0, 3)
            n = np.maximum(n, -sent) if signed else n
            state[name] = (m - n, sent + n)
            assert np.array_equal(emitted[t].numpy(), n)
            value = n.astype(np.int64)
        sums = slow_layer(layers[-1], value).astype(np.float32)
        last = list(graph.modules())[-1]
        assert np.array_equal(out[t].numpy(), sums * last.scale.numpy() + last.offset.numpy())


@torch.no_grad()
@pytest.mark.parametrize("case", ["vgg", "resnet", "branches", "sequences", "conv1d"])
def test_neither_threads_nor_kernels_nor_backends_tell(convert, monkeypatch, case):
    snn, x = make(convert, case)
    net = to_integers(snn)
    wanted = parts(net.run(x, 5))

    def same(got):
        return all(torch.equal(a, b) for a, b in zip(parts(got), wanted, strict=True))

    with monkeypatch.context() as patch:
        patch.setattr(integers, "has_kernel", lambda *_: False)
        assert same(net.run(x, 5))
    for backend in ("torch", "numba"):
        if is_installed(backend):
            sj_burst.set_backend(net, backend)
            assert same(net.run(x, 5))
    torch.set_num_threads(2)
    try:
        assert same(net.run(x, 5))
    finally:
        torch.set_num_threads(1)
    with net.present(x) as shown:  # in parts
        pieces = [parts(shown.run(2)), parts(shown.run(3))]
    assert same(tuple(torch.cat(pair) for pair in zip(*pieces, strict=True)))
    set_step_mode(net, "s")
    steps = [parts(net(x)) for _ in range(5)]
    assert same(tuple(torch.stack(pair) for pair in zip(*steps, strict=True)))


@torch.no_grad()
def test_alone_or_in_a_batch(convert):
    snn, x = make(convert, "resnet")
    net = to_integers(snn)
    alone = torch.cat([net.run(sample, 4) for sample in x.split(1)], 1)
    assert torch.equal(net.run(x, 4), alone)


def test_spikes_and_operations_are_counted(convert):
    snn, x = make(convert, "vgg", "none")
    net = to_integers(snn)
    wanted, got = (sj_burst.simulate(n, [x], 6, progress=False) for n in (snn, net))
    assert got.operations.synops == pytest.approx(wanted.operations.synops, rel=1e-3)
    assert got.operations.macs == wanted.operations.macs
    assert got.operations.ann_macs == wanted.operations.ann_macs
    assert list(got.spikes) == list(wanted.spikes)


@torch.no_grad()
def test_copies_and_other_weights(convert, tmp_path):
    snn, x = make(convert, "vgg")
    net = to_integers(snn)
    wanted = net.run(x, 3)
    assert torch.equal(copy.deepcopy(net).run(x, 3), wanted)
    state = {k: torch.zeros_like(v) if v.dtype == torch.int8 else v for k, v in net.state_dict().items()}
    net.load_state_dict(state)  # what was packed for the kernels is packed again
    assert not torch.equal(net.run(x, 3), wanted)
    with pytest.raises(ValueError, match="save"):
        sj_burst.save(net, tmp_path / "net.pt")


def test_what_has_no_integers_is_refused(convert):
    x = torch.randn(16, 2, 8, 8)
    plain = convert(vgg(), [x], calibration="none")
    with pytest.raises(ValueError, match="convert with weight_bits=8, or pass bits=8"):
        to_integers(plain)
    assert to_integers(plain, bits=8).run(x, 2).isfinite().all()
    with pytest.raises(ValueError, match="weight_bits must be from 2 to 16"):
        to_integers(plain, bits=1)
    snn = convert(vgg(), [x], calibration="none", weight_bits=8)
    for name in ("4", "9"):
        snn.graph.get_submodule(name).weight.data.normal_()
    with pytest.raises(ValueError, match="weights of 4, 9 are no integers of 8 bits"):
        to_integers(snn)
    assert to_integers(snn, bits=8).run(x, 2).isfinite().all()
    with pytest.raises(ValueError, match=r"max_spikes=128 of '2' .* up to 127"):
        to_integers(convert(vgg(), [x], calibration="none", weight_bits=8, max_spikes=128))
    with pytest.raises(ValueError, match=r"or call snn\.float\(\)"):
        to_integers(convert(vgg().double(), [x.double()], calibration="none", weight_bits=8))
    with pytest.raises(ValueError, match="pass the converted network"):
        to_integers(to_integers(snn, bits=8))
    with pytest.raises(TypeError, match="got Linear"):
        to_integers(nn.Linear(2, 2))


def test_counts_carry_no_gradient(convert):
    snn, x = make(convert, "vgg", "none")
    with pytest.raises(ValueError, match="train the network before to_integers"):
        to_integers(snn).run(x.requires_grad_(), 2)


@given(st.lists(st.integers(-(2**30), 2**30), min_size=1, max_size=20))
def test_digits_make_up_the_number(numbers):
    q = torch.tensor(numbers, dtype=torch.float64)
    found = [digit.double() for digit in kernels.digits(q)]
    assert torch.equal(sum(256.0**place * digit for place, digit in enumerate(found)), q)


@given(st.lists(st.floats(-(2.0**100), 2.0**100), min_size=2, max_size=8), st.floats(1e-20, 1e20))
def test_fixed_point_is_right_to_30_bits(numbers, scale):
    x = torch.tensor([numbers, [scale * (i + 1) for i in range(len(numbers))]], dtype=torch.float64)
    q, step = fixed_point(x)
    assert torch.equal(q, q.round())
    assert (q.abs() <= 2**30).all()
    assert ((q * step.view(-1, 1) - x).abs() <= x.abs().amax(1, keepdim=True) * 2.0**-30).all()
    alone, own = fixed_point(x[1:])
    assert torch.equal(alone, q[1:]) and torch.equal(own, step[1:])


def act(*layers):
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))


def c(*sizes, **options):
    return nn.Conv2d(*sizes, **options)


class Mixed(nn.Module):
    """Counts beside what is none; names that others would take; shared layers; a type of a value."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.a, self.b, self.b_1 = kind, c(3, 4, 1), c(4, 4, 1), c(4, 4, 1)
        self.scale_1, self.d, self.e = c(4, 4, 1, bias=False), c(8, 5, 1), c(4, 5, 1)

    def forward(self, x):
        h = F.relu(self.a(x))
        if self.kind == "sums beside counts":
            return self.d(torch.cat([h, self.b(h)], 1)), torch.cat([self.scale_1(h), h], 1)
        if self.kind == "two sums":
            return self.d(F.relu(torch.cat([self.b(h), self.scale_1(h)], 1)))
        if self.kind == "names":
            return self.e(F.relu(self.scale_1(F.relu(self.b_1(F.relu(self.b(F.relu(self.b(h)))))))))
        if self.kind == "types":
            halves = (0 * x[:, :1] + 0.5).expand(-1, 4, -1, -1)
            return self.d(torch.cat([F.relu(self.b(h)), halves.to(h.dtype)], 1))
        return self.e(F.relu(self.b(F.avg_pool2d(self.scale_1(h), 2))))  # layer after layer


ODD = {
    "one column": (act(c(1, 4, 3, padding=1), c(4, 8, 3, (1, 2), 1), c(8, 8, 3, (1, 2), 1)), (1, 16, 4)),
    "padding alone": (act(c(1, 8, 3, 2, 3), c(8, 2, 1)), (1, 9, 9)),
    **{k: (Mixed(k), (3, 8, 8)) for k in ("sums beside counts", "two sums", "names", "types", "layers")},
}


@torch.no_grad()
@pytest.mark.parametrize("case", ODD)
def test_odd_networks(convert, case):
    torch.manual_seed(0)
    ann, shape = ODD[case]
    x = torch.rand(12, *shape)
    snn = convert(ann, [x], weight_bits=8, time_steps=4, calibration="light")
    for net in (to_integers(snn), unit_thresholds(snn)):
        for got, wanted in zip(parts(net.answer(x, 4)), parts(snn.answer(x, 4)), strict=True):
            spread = (wanted - wanted.mean(0)).norm() + 1e-3 * wanted.norm()
            assert (got - wanted).norm() < 1e-3 * spread


@torch.no_grad()
def test_kernels_that_are_wrong_are_found_out(monkeypatch):
    layer = IntegerLayer(nn.Conv2d(2, 3, 3), torch.ones(3, 2, 3, 3, dtype=torch.int8), signed=False)
    x = torch.ones(2, 2, 5, 5, dtype=torch.int8)
    monkeypatch.setattr(kernels.Packed, "sums", lambda self, x: torch.zeros(len(x), 3, 3, 3))
    assert (layer(x) == 18).all()


@torch.no_grad()
def test_no_sample_and_no_number(convert):
    snn, x = make(convert, "vgg", "none")
    net = to_integers(snn)
    assert net.answer(x[:0], 2).shape == (0, *snn.answer(x, 2).shape[1:])
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="1 of 8 samples hold NaN or infinite"):
            net.answer(torch.cat([x[:7], torch.full_like(x[:1], wrong)]), 2)


@torch.no_grad()
@pytest.mark.parametrize("size", [1e-33, 1e-37, 1e-40])
def test_channels_as_good_as_silent(convert, size):
    torch.manual_seed(0)
    ann = act(c(2, 4, 3), c(4, 4, 3))
    for layer in (ann[0], ann[2]):
        layer.weight[1] *= size
        layer.bias[1] *= size
    x = torch.rand(8, 2, 8, 8)
    snn = convert(ann, [x], weight_bits=8, calibration="light")
    wanted = snn.answer(x, 4)
    assert wanted.isfinite().all()
    for net in (to_integers(snn), unit_thresholds(snn)):
        torch.testing.assert_close(net.answer(x, 4), wanted, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_an_output_size_that_is_given(convert):
    class Up(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.up = c(3, 4, 3, 2, 1), nn.ConvTranspose2d(4, 2, 3, 2, 1)

        def forward(self, x):
            return self.up(F.relu(self.a(x)), output_size=[8, 8])

    x = torch.rand(8, 3, 8, 8)
    snn = convert(Up(), [x], weight_bits=8, calibration="none")
    torch.testing.assert_close(to_integers(snn).answer(x, 4), snn.answer(x, 4), atol=1e-3, rtol=1e-3)


def test_what_needs_the_converted_network_says_so(convert):
    torch.manual_seed(0)
    ann, x = vgg(), torch.randn(8, 2, 8, 8)
    net = to_integers(convert(ann, [x], weight_bits=8, calibration="none"))
    labels = torch.zeros(8, dtype=torch.long)
    for use in (
        lambda: sj_burst.report(net, ann, [x]),
        lambda: sj_burst.training.finetune(net, [(x, labels)], 2, progress=False),
        lambda: sj_burst.training.distil(net, ann, [x], weight_lr=0, progress=False),
    ):
        with pytest.raises(ValueError, match="pass the converted network"):
            use()


def test_it_stays_in_single_precision(convert):
    net, x = vgg(), torch.rand(8, 2, 8, 8)
    integers = to_integers(convert(net, [x], weight_bits=8))
    expected = integers.run(x, 4)
    for cast in (integers.double, integers.half, lambda: integers.to(torch.bfloat16)):
        with pytest.raises(TypeError, match="in float32, not in"):
            cast()
    assert torch.equal(integers.float().to("cpu").run(x, 4), expected)


def test_windows_may_be_lists(convert):
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d([2, 2]), nn.Flatten(), nn.Linear(36, 3)
    ).eval()
    x = torch.rand(16, 1, 8, 8)
    snn = convert(net, [x], weight_bits=8)
    assert torch.allclose(to_integers(snn).run(x, 4), snn.run(x, 4), atol=1e-4)
