"""Networks from ONNX files, by way of onnx2torch; the reference is onnx's own evaluator."""

import io
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from sj_burst import Options, standardize
from sj_burst.graph.operators import ACTIVATIONS
from tests.networks import randomize_batch_norm

onnx = pytest.importorskip("onnx")
onnx2torch = pytest.importorskip("onnx2torch")
helper, node = onnx.helper, onnx.helper.make_node
ReferenceEvaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator

# onnx2torch indexes with lists of slices.
pytestmark = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")

FINE = Options(max_spikes=256, time_steps=1, threshold="mse", calibration="none")
RNG = np.random.default_rng(0)


def weights(*shape):
    return RNG.normal(0, 0.4, shape).astype(np.float32)


def ints(*values):
    return np.array(values, np.int64)


def model(nodes, constants, shape, opset=13):
    """A file's content: nodes from ``x`` to ``y``."""
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def conv(source, target, weight="w", bias="b", pads=(1, 1, 1, 1)):
    return node("Conv", [source, weight, bias], [target], kernel_shape=[3, 3], pads=list(pads))


def head(nodes, constants, channels=4, opset=13, first="Relu"):
    """Nodes from ``r`` to ``q``, which has ``channels``, between convolutions with ReLU."""
    before = [conv("x", "c"), node(first, ["c"], ["r"])]
    after = [conv("q", "d", "w2", "b2"), node("Relu", ["d"], ["r2"])]
    after += [node("ReduceMean", ["r2"], ["y"], axes=[2, 3], keepdims=0)]
    shared = dict(w=weights(4, 3, 3, 3), b=weights(4), w2=weights(5, channels, 3, 3), b2=weights(5))
    return model([*before, *nodes, *after], shared | constants, (3, 8, 8), opset)


def error(got, wanted):
    return ((got - wanted).norm() / wanted.norm()).item()


@torch.no_grad()
def converted(convert, content, x, bound=0.02, **changes):
    """Imported and converted; for many levels its answer is that of the file, at any batch size."""
    net = onnx2torch.convert(content).eval()
    snn = convert(net, [x], FINE.changed(**changes))
    more = torch.cat([x, x.flip(0), x[:1]])
    for images in (x[:1], x, more):
        name = content.graph.input[0].name
        wanted = torch.from_numpy(ReferenceEvaluator(content).run(None, {name: images.numpy()})[0])
        assert error(net(images), wanted) < 1e-4
        assert error(snn.run(images, time_steps=2).mean(0), wanted) < bound
    return snn


HOW_MANY = [
    node("Shape", ["r"], ["s"]),
    node("Gather", ["s", "first"], ["count"], axis=0),
    node("Unsqueeze", ["count", "axis"], ["n1"]),
]
SIZES = dict(first=np.array(0, np.int64), axis=ints(0))


def shuffle():
    """Channel shuffle whose shapes are computed from the input's."""
    nodes = [
        *HOW_MANY,
        node("Concat", ["n1", "split"], ["to5"], axis=0),
        node("Concat", ["n1", "whole"], ["to4"], axis=0),
        node("Reshape", ["r", "to5"], ["five"]),
        node("Transpose", ["five"], ["t"], perm=[0, 2, 1, 3, 4]),
        node("Reshape", ["t", "to4"], ["q"]),
    ]
    return head(nodes, SIZES | dict(split=ints(2, 2, 8, 8), whole=ints(4, 8, 8)))


def resize_to_a_computed_size():
    nodes = [
        node("Shape", ["r"], ["s"]),
        node("Slice", ["s", "zero", "two"], ["s2"]),
        node("Concat", ["s2", "hw"], ["size"], axis=0),
        node("Resize", ["r", "", "", "size"], ["q"], mode="linear"),
    ]
    return head(nodes, dict(zero=ints(0), two=ints(2), hw=ints(16, 16)))


def zeros_of_a_computed_shape():
    nodes = [
        node("Shape", ["r"], ["s"]),
        node("ConstantOfShape", ["s"], ["z"]),
        node("Concat", ["r", "z"], ["q"], axis=1),
    ]
    return head(nodes, {}, channels=8)


def fully_connected(reshape, constants, bias=True):
    nodes = [conv("x", "c"), node("Relu", ["c"], ["r"]), *reshape]
    gemm = [node("Gemm", ["f", "g", "gb"], ["y"])]
    matmul = [node("MatMul", ["f", "g"], ["m"]), node("Add", ["m", "gb"], ["y"])]
    shared = dict(w=weights(4, 3, 3, 3), b=weights(4), g=weights(256, 5), gb=weights(5))
    return model([*nodes, *(gemm if bias else matmul)], shared | constants, (3, 8, 8))


def second(*nodes, **constants):
    """After another convolution, ``e``."""
    return head(
        [conv("r", "e", "w3", "b3"), *nodes], dict(w3=weights(4, 4, 3, 3), b3=weights(4)) | constants
    )


ONE_NODE = {
    "max-pool, asymmetric": dict(op="MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]),
    "max-pool, ceil": dict(op="MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "average": dict(op="AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "average, padding counts": dict(
        op="AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1
    ),
    "dropout": dict(op="Dropout"),
}
GRAPHS = {
    **{
        name: lambda given=given: head(
            [node(given["op"], ["r"], ["q"], **{k: v for k, v in given.items() if k != "op"})], {}
        )
        for name, given in ONE_NODE.items()
    },
    "shuffle": shuffle,
    "resize to a computed size": resize_to_a_computed_size,
    "zeros of a computed shape": zeros_of_a_computed_shape,
    "resize": lambda: head(
        [node("Resize", ["r", "", "k"], ["q"], coordinate_transformation_mode="asymmetric",
              nearest_mode="floor")],
        dict(k=np.float32([1, 1, 2, 2])),
    ),
    "transposed convolution": lambda: head(
        [node("ConvTranspose", ["r", "w3", "b3"], ["e"], strides=[2, 2]), node("Relu", ["e"], ["q"])],
        dict(w3=weights(4, 4, 2, 2), b3=weights(4)),
    ),
    "split and concat": lambda: head(
        [node("Split", ["r", "at"], ["a", "z"], axis=1), node("Concat", ["z", "a", "r"], ["q"], axis=1)],
        dict(at=ints(1, 3)),
        channels=8,
    ),
    "slice": lambda: head(
        [node("Slice", ["r", "from", "to", "axes", "steps"], ["q"])],
        {"from": ints(0, 1), "to": ints(2**62, 7), "axes": ints(2, 3), "steps": ints(2, 1)},
    ),
    "sum of several": lambda: head(
        [node("Mul", ["r", "two"], ["a"]), node("Sum", ["a", "r", "a"], ["q"])], dict(two=np.float32(2))
    ),
    "max and min with numbers": lambda: second(
        node("Max", ["e", "low"], ["e1"]), node("Min", ["e1", "high"], ["q"]),
        low=np.float32(0), high=np.float32(1),
    ),
    "clip": lambda: second(
        node("Clip", ["e", "low", "high"], ["q"]), low=np.float32(0), high=np.float32(6)
    ),
    "clip below zero": lambda: second(
        node("Clip", ["e", "low", "high"], ["q"]), low=np.float32(-1), high=np.float32(1)
    ),
    "leaky": lambda: second(node("LeakyRelu", ["e"], ["q"], alpha=0.1)),
    "prelu": lambda: second(node("PRelu", ["e", "slope"], ["q"]), slope=np.abs(weights(4, 1, 1))),
    "flatten, gemm": lambda: fully_connected([node("Flatten", ["r"], ["f"])], {}),
    "reshape to a computed shape": lambda: fully_connected(
        [*HOW_MANY, node("Concat", ["n1", "rest"], ["to"], axis=0), node("Reshape", ["r", "to"], ["f"])],
        SIZES | dict(rest=ints(-1)),
    ),
    "reshape with zeros, matmul": lambda: fully_connected(
        [node("Reshape", ["r", "to"], ["f"])], dict(to=ints(0, -1)), bias=False
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_converts_as_it_is(convert, name):
    converted(convert, GRAPHS[name](), torch.rand(2, 3, 8, 8))


def padded(pads, kernel=3, stride=2):
    """Max-pooling of values of either sign, whose border is −∞."""
    nodes = [
        node("Pad", ["r", "pads", "value"], ["p"]),
        node("MaxPool", ["p"], ["q"], kernel_shape=[kernel] * 2, strides=[stride] * 2),
    ]
    top, left, bottom, right = pads
    constants = dict(pads=ints(0, 0, top, left, 0, 0, bottom, right), value=np.float32(-np.inf))
    return head(nodes, constants, first="Identity")


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("rule", ["lateral_inhibition", "average"])
@pytest.mark.parametrize(
    ("pads", "kernel", "stride"),
    [((1, 1, 1, 1), 3, 2), ((0, 0, 1, 1), 3, 2), ((1, 1, 0, 0), 3, 2), ((0, 1, 1, 0), 2, 1)],
)
def test_a_padding_with_minus_infinity_becomes_that_of_the_pooling(
    convert, pads, kernel, stride, rule, size
):
    content = padded(pads, kernel, stride)
    x = torch.rand(2, 3, size, size)
    if rule == "average":  # not what the file computes, but finite
        net = onnx2torch.convert(content).eval()
        assert convert(net, [x], FINE, max_pool=rule).run(x, time_steps=2).isfinite().all()
    else:
        converted(convert, content, x)


def test_a_padding_with_minus_infinity_beyond_the_windows_is_refused(convert):
    net = onnx2torch.convert(padded((2, 2, 2, 2))).eval()
    with pytest.raises(ValueError, match="pads with −∞"):
        convert(net, [torch.rand(2, 3, 8, 8)])


def channels_last():
    """As TensorFlow's exporter writes: transposes around convolutions, the rest in NHWC."""
    nchw, nhwc = dict(perm=[0, 3, 1, 2]), dict(perm=[0, 2, 3, 1])
    nodes = [
        node("Transpose", ["x"], ["t"], **nchw), conv("t", "c"), node("Transpose", ["c"], ["u"], **nhwc),
        node("Add", ["u", "bias"], ["a"]), node("Relu", ["a"], ["r"]),
        node("Transpose", ["r"], ["v"], **nchw), conv("v", "d", "w2", "b2"),
        node("Transpose", ["d"], ["e"], **nhwc), node("Mul", ["e", "scale"], ["e1"]),
        node("Add", ["e1", "r"], ["e2"]), node("Relu", ["e2"], ["r2"]),
        node("Transpose", ["r2"], ["r3"], **nchw),
        node("MaxPool", ["r3"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Transpose", ["p"], ["p2"], **nhwc),
        node("Reshape", ["p2", "flat"], ["f"]), node("MatMul", ["f", "g"], ["m"]),
        node("Add", ["m", "gb"], ["y"]),
    ]  # fmt: skip
    constants = dict(
        w=weights(5, 3, 3, 3), b=weights(5), bias=weights(5), w2=weights(5, 5, 3, 3), b2=weights(5),
        scale=weights(5), flat=ints(-1, 80), g=weights(80, 5), gb=weights(5),
    )  # fmt: skip
    return model(nodes, constants, (8, 8, 3))


def test_transposes_around_layers_pass(convert):
    snn = converted(convert, channels_last(), torch.rand(2, 8, 8, 3))
    # All but those of the input and before the flattening cancel, and each channel has its threshold.
    assert sum(n.target == "permute" for n in snn.graph.graph.nodes) == 2
    assert [n.threshold.numel() for n in snn.neurons().values()] == [5, 5]


def exported(net, x, opset=13, dynamic=True):
    buffer = io.BytesIO()
    axes = {"x": {0: "n"}, "y": {0: "n"}} if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's: that this exporter is the older one
        torch.onnx.export(
            *(net.eval(), (x,), buffer),
            **dict(dynamo=False, opset_version=opset, dynamic_axes=axes),
            **dict(input_names=["x"], output_names=["y"]),
        )
    return onnx.load_model_from_string(buffer.getvalue())


class SmallUNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.deep = self._block(3, 4), self._block(4, 8)
        self.up, self.merge = nn.ConvTranspose2d(8, 4, 2, 2), self._block(8, 4)
        self.head = nn.Conv2d(4, 3, 1)

    @staticmethod
    def _block(inputs, channels):
        layers = (nn.Conv2d(inputs, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
        return nn.Sequential(*layers)

    def forward(self, x):
        skip = self.down(x)
        x = self.up(self.deep(nn.functional.max_pool2d(skip, 2)))
        return self.head(self.merge(torch.cat([x, skip], 1)))


@pytest.mark.parametrize("opset", [9, 11, 13, 17])
def test_opsets(convert, opset):
    x = torch.rand(2, 3, 16, 16)
    content = exported(randomize_batch_norm(SmallUNet()), x, opset)
    assert content.opset_import[0].version == opset
    converted(convert, content, x)


def test_newer_opsets_by_the_version_converter(convert):
    """onnx2torch reads up to opset 17 in full."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.rand(2, 3, 8, 8)
    content = exported(net, x, 20)
    from onnx.version_converter import convert_version

    converted(convert, convert_version(content, 17), x)


def test_a_fixed_batch_is_refused_with_the_remedy(convert):
    reshape = [node("Reshape", ["r", "to"], ["f"])]
    net = onnx2torch.convert(fully_connected(reshape, dict(to=ints(1, -1)))).eval()
    with pytest.raises(ValueError, match=r"(?s)one sample at a time.*dynamic_axes"):
        convert(net, [torch.rand(2, 3, 8, 8)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5"])
def test_networks_of_torchvision(convert, name):
    models = pytest.importorskip("torchvision").models
    net = randomize_batch_norm(models.get_model(name, weights=None, num_classes=10))
    x = torch.rand(2, 3, 32, 32)
    converted(convert, exported(net, x), x)


# What the tracing had to learn, on plain networks.


class FromSizes(nn.Module):
    """Numbers computed from sizes by way of tensors, as in an ONNX graph."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x):
        x = self.conv(x).relu()
        size = torch.cat([torch.tensor(x.shape[:2]), torch.tensor([-1])])
        if (size == 0).any():
            raise AssertionError
        x = x.reshape(torch.Size(size)).mean(-1)
        ones = torch.ones(int(x.shape[0]), 4)
        return self.linear(torch.maximum(x, ones / 2) + torch.stack([x, ones]).sum(0))


def test_numbers_computed_from_the_batch_follow_it(convert):
    net = FromSizes().eval()
    x = torch.rand(2, 3, 6, 6)
    gm = standardize(net, x)
    assert not any(isinstance(a, int) and a == 2 for n in gm.graph.nodes for a in n.args)
    for samples in (1, 2, 7):
        other = torch.rand(samples, 3, 6, 6)
        assert torch.allclose(gm(other), net(other), atol=1e-6)
    assert sum(isinstance(m, ACTIVATIONS) for m in gm.modules()) == 2


def test_a_number_that_only_sometimes_follows_the_batch_is_refused():
    class Net(nn.Module):
        def forward(self, x):
            return torch.relu(x) * int(min(x.shape[0], 4))

    with pytest.raises(ValueError, match="does something else for"):
        standardize(Net(), torch.rand(2, 3))


class ChannelsLast(nn.Module):
    """What may come between two transposes: scales, sums of branches, joins, bounds."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.c, self.bn = nn.Conv2d(8, 5, 1), nn.BatchNorm2d(4)
        self.scale, self.shift = nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(6, 1, 4))

    def forward(self, x):
        left = (self.bn(self.a(x)).permute(0, 2, 3, 1) * self.scale + self.shift).relu()
        right = nn.functional.leaky_relu(2 - self.b(x).transpose(1, 2).transpose(3, 2), 0.1)
        both = torch.cat([left, (left + right).clamp(0, 1)], dim=-1)
        return self.c(both.permute(0, 3, 1, 2).relu()).mean((2, 3))


def test_what_comes_between_two_transposes_has_its_channels_first(convert):
    net = randomize_batch_norm(ChannelsLast()).eval()
    x = torch.rand(2, 3, 6, 7)
    gm = standardize(net, x)
    assert not any(n.target in ("permute", "transpose") for n in gm.graph.nodes)
    other = torch.rand(5, 3, 6, 7)
    assert torch.allclose(gm(other), net(other), atol=1e-6)
    snn = convert(net, [x], FINE)
    assert [n.threshold.numel() for n in snn.neurons().values()] == [4, 4, 4, 8]
    with torch.no_grad():
        assert error(snn.run(other, time_steps=2).mean(0), net(other)) < 0.02


def test_a_sequence_keeps_its_transpose():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 4)

        def forward(self, x):
            return self.linear(x).permute(0, 2, 1).relu()

    gm = standardize(Net().eval(), torch.rand(2, 5, 3))
    assert [n.target for n in gm.graph.nodes][1:3] == ["linear", "permute"]


def test_multiples_of_the_batch_follow_it_too():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            points = torch.Size(torch.tensor([x.shape[0] * 9, 4]))
            x = self.linear(x.relu().permute(0, 2, 3, 1).reshape(points))
            return x.reshape(int(x.shape[0]) // 9, 27)

    net = Net().eval()
    gm = standardize(net, torch.rand(2, 4, 3, 3))
    for samples in (1, 5):
        x = torch.rand(samples, 4, 3, 3)
        assert torch.allclose(gm(x), net(x), atol=1e-6)
