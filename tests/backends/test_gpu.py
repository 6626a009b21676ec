"""The CuPy backend on a CUDA device: ``pytest -m gpu``."""

import itertools

import pytest
import torch
from reference import (
    LAYOUTS,
    POOLS,
    assert_burst_equal,
    burst_cases,
    make_input,
    pool_shape,
    pool_states,
)
from spikingjelly.activation_based import base, neuron, surrogate
from torch import nn

from sj_burst import BurstIFNode, functional, set_backend
from sj_burst.backends import dispatch
from sj_burst.backends.cuda import operators
from sj_burst.backends.dispatch import is_installed
from sj_burst.modules.pooling import LIPool

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not is_installed("cupy"), reason="needs CuPy"),
]
BOOLS = (False, True)
STORAGES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
GIB = 1 << 30


@pytest.fixture
def vectors(monkeypatch):
    """Small inputs take the path of large ones."""
    monkeypatch.setattr(operators, "WIDE_FROM", 0)


@pytest.mark.parametrize("signed", BOOLS)
@pytest.mark.parametrize("shifted", BOOLS)
@pytest.mark.parametrize("dtype", STORAGES)
def test_burst_equals_reference(vectors, dtype, shifted, signed):
    for case in burst_cases(dtype, signed, shifted):
        moved = case.to("cuda")
        got = operators.burst_multi_step(*moved.args(), **moved.options, count=dtype == torch.float32)
        assert_burst_equal(case, got)


@pytest.mark.parametrize("count", BOOLS)
@pytest.mark.parametrize("dtype", STORAGES)
def test_leaky_equals_reference(vectors, dtype, count):
    for case in burst_cases(dtype, True, shifted=count, leaky=True):
        moved = case.to("cuda")
        assert_burst_equal(case, operators.burst_multi_step(*moved.args(), **moved.options, count=count))


@pytest.mark.parametrize("pool", POOLS, ids=repr)
def test_pooling_equals_reference(pool):
    for layout, steps in itertools.product(LAYOUTS, (1, 4)):
        x_seq, states = make_input(steps, pool_shape(pool), layout, torch.float32), pool_states(pool)
        got = operators.li_pool_multi_step(x_seq.cuda(), *(s.cuda() for s in states), pool)
        for a, b in zip(got, functional.li_pool_multi_step(x_seq, *states, pool), strict=True):
            assert torch.equal(a.cpu(), b), (layout, steps)


@pytest.mark.parametrize("signed", BOOLS)
@pytest.mark.parametrize("function", [surrogate.Sigmoid(3.0), surrogate.ATan(2.0)], ids=repr)
def test_gradient_equals_torch_backend(function, signed):
    threshold = torch.rand(3) + 0.2
    x_seq, grads = torch.randn(4, 2, 3, 5, 7, device="cuda"), []
    for backend in ("torch", "cupy"):
        node = BurstIFNode(
            threshold, 2, signed=signed, surrogate_function=function, step_mode="m", backend=backend
        ).cuda()
        node.threshold.requires_grad_()
        x = x_seq.clone().requires_grad_()
        y = node(x)
        grads.append((y, *torch.autograd.grad((y * y.detach().cos()).sum(), (x, node.threshold))))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not hasattr(base, "check_backend_library"), reason="SpikingJelly 2.0.0rc1 only")
def test_equals_spikingjellys_cupy_neuron():
    from spikingjelly.activation_based import functional as sj_functional

    theirs = neuron.IFNode(v_threshold=1.0, v_reset=None, step_mode="m")
    ours = BurstIFNode(1.0, 1, v_init=0.0, step_mode="m")
    net = nn.ModuleList([theirs, ours]).cuda()
    sj_functional.set_backend(net, "cupy")
    assert theirs.backend == ours.backend == "cupy"
    # Multiples of 1/8: no rounding, whatever the order of operations.
    x_seq = (torch.randn(16, 8, 33, device="cuda") * 8).round() / 8
    with torch.no_grad():
        assert torch.equal(theirs(x_seq), ours(x_seq))


def test_stream_that_is_not_the_default():
    stream = torch.cuda.Stream()
    z_seq = torch.randn(8, 64, 4096, device="cuda")
    args = (torch.zeros(64, 4096, device="cuda"), torch.tensor(0.5, device="cuda"))
    wanted = operators.burst_multi_step(z_seq, *args)[0]
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        late = z_seq * 1  # the kernel has to wait for this, on this stream
        got = operators.burst_multi_step(late, *args)[0]
    stream.synchronize()
    assert torch.equal(got, wanted)


def test_two_shapes_in_a_row():
    for shape in ((2, 3, 8, 8), (5, 7), (2, 3, 8, 8)):
        z_seq, v = torch.randn(4, *shape), torch.zeros(shape)
        theta = torch.tensor(0.4)
        got = operators.burst_multi_step(z_seq.cuda(), v.cuda(), theta.cuda(), 2)
        assert torch.equal(got[0].cpu(), functional.burst_multi_step(z_seq, v, theta, 2)[0])


def small_network() -> nn.Sequential:
    node = BurstIFNode(torch.tensor([0.3, 0.5, 0.7]), 3, 0.1, signed=True, step_mode="m")
    net = nn.Sequential(node, LIPool(nn.MaxPool2d(3, 2, 1), step_mode="m")).cuda()
    set_backend(net, "cupy")
    return net


def test_compiles_to_one_graph():
    net, x_seq = small_network(), torch.randn(4, 2, 3, 9, 11, device="cuda")
    with torch.no_grad():
        wanted = net(x_seq)
        for module in net:
            module.reset()
        assert torch.equal(torch.compile(net, fullgraph=True)(x_seq), wanted)


def test_cuda_graph():
    z_seq = torch.randn(4, 64, 1000, device="cuda")
    args = (torch.zeros(64, 1000, device="cuda"), torch.tensor(0.5, device="cuda"), 3)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # warm up: compile and load
        operators.burst_multi_step(z_seq, *args, count=True)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y_seq, _, _, counts = operators.burst_multi_step(z_seq, *args, count=True)
    for _ in range(2):
        z_seq.normal_()
        graph.replay()
        wanted = operators.burst_multi_step(z_seq, *args, count=True)
        assert torch.equal(y_seq, wanted[0]) and torch.equal(counts.per_step, wanted.counts.per_step)


def test_more_elements_than_32_bits_can_count():
    neurons, steps = (1 << 30) + 8, 3
    if torch.cuda.mem_get_info()[0] < 24 * GIB:
        pytest.skip("needs 24 GiB of free device memory")
    z_seq = torch.zeros(steps, 1, neurons, dtype=torch.float16, device="cuda")
    z_seq[:, 0, -3:] = torch.tensor([1.0, 0.25, 0.5], device="cuda")
    y_seq, v, _, counts = operators.burst_multi_step(
        z_seq, z_seq.new_zeros(1).expand(1, neurons), torch.tensor(0.5, device="cuda"), 4, count=True
    )
    assert y_seq[:, 0, -3:].tolist() == [[1.0, 0.0, 0.5], [1.0, 0.5, 0.5], [1.0, 0.0, 0.5]]
    assert counts.per_step.tolist() == [3, 4, 3] and v[0, -2].item() == 0.25
    assert not y_seq[:, 0, :-3].any()


def test_out_of_memory_is_said_clearly_and_leaves_the_device_usable():
    free, _ = torch.cuda.mem_get_info()
    z_seq = torch.zeros(1, 1, 1, device="cuda").expand(4, free // 4, 1)  # its output needs 4 times that
    theta = torch.tensor(0.5, device="cuda")
    with pytest.raises(torch.OutOfMemoryError, match="memory"):
        operators.burst_multi_step(z_seq, z_seq[0], theta)
    small = torch.ones(2, 1, 1, device="cuda")
    assert operators.burst_multi_step(small, small[0], theta)[0].tolist() == [[[0.5]], [[0.5]]]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_device_that_is_not_the_current_one():
    z_seq = torch.randn(4, 3, 5)
    theta, v = torch.tensor(0.5), torch.zeros(3, 5)
    got = operators.burst_multi_step(*(t.to("cuda:1") for t in (z_seq, v, theta)))
    assert got[0].device.index == 1
    assert torch.equal(got[0].cpu(), functional.burst_multi_step(z_seq, v, theta)[0])


def test_auto_picks_the_kernels(monkeypatch):
    calls = []
    monkeypatch.setattr(operators, "launch_kernel", lambda *args, **_: calls.append(args[0]))
    monkeypatch.setattr(dispatch, "_runs_here", lambda backend: True)  # its trial would launch one more
    net = small_network()
    set_backend(net, "auto")
    with torch.no_grad():
        net(torch.randn(4, 2, 3, 9, 11, device="cuda"))
    assert calls == ["burst_forward", "li_pool"]
