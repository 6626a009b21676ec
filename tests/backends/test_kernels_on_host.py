"""The CUDA sources, compiled for the CPU, against functional.py."""

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
from spikingjelly.activation_based import surrogate
from spikingjelly.activation_based.functional import reset_net
from torch import nn

from sj_burst import BurstIFNode, functional, set_backend
from sj_burst.backends import dispatch
from sj_burst.backends.cuda import operators
from sj_burst.backends.layout import state_dtype
from sj_burst.modules.pooling import LIPool

pytestmark = pytest.mark.usefixtures("on_host")
BOOLS = (False, True)


@pytest.mark.parametrize("signed", BOOLS)
@pytest.mark.parametrize("shifted", BOOLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_burst_equals_reference(dtype, shifted, signed):
    for case in burst_cases(dtype, signed, shifted):
        assert_burst_equal(case, operators.burst_multi_step(*case.args(), **case.options))


@pytest.mark.parametrize("signed", BOOLS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_storage_has_float_state(dtype, signed):
    for case in burst_cases(dtype, signed, shifted=False):
        assert_burst_equal(case, operators.burst_multi_step(*case.args(), **case.options))


@pytest.mark.parametrize("count", BOOLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_leaky_equals_reference(dtype, count):
    for case in burst_cases(dtype, True, shifted=count, leaky=True):
        got = operators.burst_multi_step(*case.args(), **case.options, count=count)
        assert (got.counts is not None) == count
        assert_burst_equal(case, got)


@pytest.mark.parametrize("signed", BOOLS)
def test_spikes_are_counted_on_the_fly(signed):
    for case in burst_cases(torch.float32, signed, shifted=False):
        got = operators.burst_multi_step(*case.args(), **case.options, count=True)
        assert got.counts is not None
        assert_burst_equal(case, got)


def test_special_values():
    z_seq = torch.tensor([[float("inf"), float("nan"), -0.0, 1e-41, 3e38, -float("inf"), 1.0, 0.5]])
    threshold = torch.tensor([1.0, 1.0, 1.0, 1e-41, 1e-3, 1.0, 0.1, 0.25])
    for most in (1, 7, float("inf")):
        args = (z_seq.expand(3, 1, 8), torch.zeros(1, 8), threshold, most)
        wanted = functional.burst_multi_step(*args)
        for a, b in zip(operators.burst_multi_step(*args), wanted, strict=False):
            assert a is b is None or torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


@pytest.mark.parametrize("pool", POOLS, ids=repr)
def test_pooling_equals_reference(pool):
    for layout, steps in itertools.product(LAYOUTS, (1, 4)):
        x_seq = make_input(steps, pool_shape(pool), layout, torch.float32)
        total, pooled = pool_states(pool)
        got = operators.li_pool_multi_step(x_seq, total, pooled, pool)
        wanted = functional.li_pool_multi_step(x_seq, total, pooled, pool)
        for a, b in zip(got, wanted, strict=True):
            assert torch.equal(a, b), (layout, steps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_pooling_storage(dtype):
    pool = nn.MaxPool2d(3, 2, 1)
    state = state_dtype(dtype)
    x_seq = make_input(4, (2, 3, 9, 11), "contiguous", dtype)
    total, pooled = pool_states(pool, state)
    wanted = functional.li_pool_multi_step(x_seq.to(state), total, pooled, pool)
    got = operators.li_pool_multi_step(x_seq, total, pooled, pool)
    assert torch.equal(got[0], wanted[0].to(dtype))
    assert torch.equal(got[1], wanted[1]) and torch.equal(got[2], wanted[2])


@pytest.mark.parametrize("dtype", operators.STORAGE, ids=str)
@pytest.mark.parametrize(
    ("pool", "words"),  # and the registers that the totals of one thread take
    [(nn.MaxPool2d(2), 16), (nn.MaxPool2d(3, 2, 1), 18), (nn.MaxPool2d((1, 3), dilation=2), 12)],
    ids=repr,
)
def test_neighbouring_channels_are_pooled_as_vectors(pool, words, dtype, monkeypatch):
    launched = []
    run = operators.launch_kernel
    monkeypatch.setattr(operators, "launch_kernel", lambda *a: (launched.append(a), run(*a)))
    state = state_dtype(dtype)
    for steps, layout in itertools.product((1, 4), ("channels_last", "contiguous", "constant")):
        shape = (2, 8, 9, 11)
        x_seq = make_input(steps, shape, layout, dtype)
        if layout == "constant":
            x_seq = x_seq[0].contiguous(memory_format=torch.channels_last).expand(steps, *shape)
        total = torch.rand(shape, dtype=state)
        pooled = pool(total)
        got = operators.li_pool_multi_step(x_seq, total, pooled, pool)
        wanted = functional.li_pool_multi_step(x_seq.to(state), total, pooled, pool)
        assert torch.equal(got[0], wanted[0].to(dtype))
        assert torch.equal(got[1], wanted[1]) and torch.equal(got[2], wanted[2])
        _, macros, work, *_ = launched[-1]
        taps = macros["KERNEL_H"] * macros["KERNEL_W"]
        width = 1 if layout == "contiguous" else words // taps // (state.itemsize // 4)
        assert macros["WIDTH"] == width and work == pooled.numel() // width


def test_vectors_off_their_boundaries_are_not_read_as_such():
    pool, room = nn.MaxPool2d(2), torch.rand(160)
    for offsets in itertools.product((0, 1), repeat=2):
        x, total = (room[i : i + 64] for i in (offsets[0], 80 + offsets[1]))  # [1, 4, 4, C = 4]
        pooled = torch.zeros(16)
        assert operators._pool_width(x[None], total, pooled, 4, 4) == (1 if any(offsets) else 4)
        x, total, pooled = (
            row.view(1, size, size, 4).permute(0, 3, 1, 2)
            for row, size in ((x, 4), (total, 4), (pooled, 2))
        )
        got = operators.li_pool_multi_step(x[None], total, pooled, pool)
        wanted = functional.li_pool_multi_step(x[None], total, pooled, pool)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("size", [5, 6])
def test_large_windows_are_pooled_over_totals_in_memory(size, monkeypatch):
    launched = []
    run = operators.launch_kernel
    monkeypatch.setattr(operators, "launch_kernel", lambda *a: (launched.append(a), run(*a)))
    pool = nn.MaxPool2d(size, 1, size // 2)
    x_seq = torch.rand(3, 1, 2, 12, 10)
    states = torch.rand(1, 2, 12, 10), torch.zeros(pool(x_seq[0]).shape)
    got = dispatch.li_pool_multi_step("cupy", x_seq, *states, pool)
    assert len(launched) == (size == 5)
    for a, b in zip(got, functional.li_pool_multi_step(x_seq, *states, pool), strict=True):
        assert torch.equal(a, b)


def test_pooling_passes_nan_on():
    pool = nn.MaxPool2d(2)
    x_seq = torch.rand(2, 1, 1, 4, 4)
    x_seq[0, 0, 0, 1, 1] = float("nan")
    total, pooled = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2)
    got, *_ = operators.li_pool_multi_step(x_seq, total, pooled, pool)
    wanted, *_ = functional.li_pool_multi_step(x_seq, total, pooled, pool)
    assert torch.equal(got.isnan(), wanted.isnan()) and got.isnan().any()


@pytest.mark.parametrize("signed", BOOLS)
@pytest.mark.parametrize("function", [surrogate.Sigmoid(3.0), surrogate.ATan(2.0)], ids=repr)
def test_gradient_equals_autograd(function, signed):
    shape = (2, 3, 4, 5)
    for layout in ("contiguous", "channels_last", "constant"):
        z_seq = make_input(4, shape, layout, torch.float64)
        threshold, shift = torch.rand(3, 1, 1).double() + 0.2, torch.rand(shape[1:]).double() / 10
        leaves = [z_seq, torch.rand(3, 1, 1).double(), threshold, shift]
        sent = torch.randint(0, 2, shape).double() if signed else None
        weights = [torch.randn(4, *shape).double(), torch.randn(shape).double()]
        grads = []
        for run in (functional.burst_multi_step, operators.burst_multi_step):
            z, v, theta, current = (x.detach().clone().requires_grad_() for x in leaves)
            start = None if sent is None else sent.clone().requires_grad_()
            y, v_after, sent_after, *_ = run(
                z, v.expand(shape), theta, 2, shift=current, sent=start, surrogate=function
            )
            loss = (y * weights[0]).sum() + (v_after * weights[1]).sum()
            inputs = [z, v, theta, current]
            if signed:
                loss, inputs = loss + (sent_after * weights[1]).sum(), [*inputs, start]
            grads.append((y, *torch.autograd.grad(loss, inputs)))
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)


def _run(net, x_seq, grad):
    """Outputs of two windows, and the gradient of their sum if wanted."""
    x = x_seq.clone().requires_grad_(grad)
    with torch.set_grad_enabled(grad):
        y = torch.cat([net(x), net(x)])
        return (y, *torch.autograd.grad(y.sum(), x)) if grad else (y,)


@pytest.mark.parametrize("grad", BOOLS)
def test_modules_compile_to_one_graph(grad):
    x_seq = torch.randn(4, 2, 3, 9, 11)
    results = []
    for backend, compiled in (("torch", False), ("cupy", False), ("cupy", True)):
        threshold = torch.tensor([0.3, 0.5, 0.7])
        node = BurstIFNode(threshold, 3, 0.1, signed=True, step_mode="m", backend=backend)
        pool = LIPool(nn.MaxPool2d(3, 2, 1), step_mode="m")
        pool.backend = backend
        net = nn.Sequential(node) if grad else nn.Sequential(node, pool)
        run = torch.compile(net, fullgraph=True, backend="aot_eager") if compiled else net
        results.append(_run(run, x_seq, grad))
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0])
        for a, b in zip(other[1:], results[0][1:], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(
    torch.__version__.startswith("2.6"), reason="torch 2.6 compares no sizes that change"
)
def test_modules_compile_for_sizes_that_change():
    node = BurstIFNode(torch.tensor([0.3, 0.5, 0.7]), 3, 0.1, signed=True, step_mode="m")
    net = nn.Sequential(node, LIPool(nn.MaxPool2d(3, 2, 1), step_mode="m"))
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=True)
    for backend, size in (("torch", 5), ("cupy", 5), ("cupy", 7)):
        set_backend(net, backend)
        x_seq = torch.randn(4, 2, 3, size, size + 2)
        results = []
        for run in (net, compiled):
            reset_net(net)
            with torch.no_grad():
                results.append(run(x_seq))
        assert torch.equal(*results)


def test_operators_pass_opcheck():
    z, v, theta = torch.randn(4, 24), torch.zeros(24), torch.rand(24) + 0.2
    leaves = [t.requires_grad_() for t in (z, v, theta)]
    burst = (*leaves, None, torch.zeros(24), None, [1, 1, 1, 1], 3.0, True, 0, 4.0)
    torch.library.opcheck(torch.ops.sj_burst.burst.default, burst)
    fixed = [t.detach() for t in leaves]
    leaky = (*fixed, None, torch.zeros(24), torch.tensor([0.1]), [1, 1, 1, 1], 3.0, True, -1, 0.0)
    torch.library.opcheck(torch.ops.sj_burst.burst.default, leaky)
    total, pooled = torch.zeros(24), torch.zeros(6)
    sizes, geometry = [1, 1, 4, 6, 2, 3], [2, 2, 2, 2, 0, 0, 1, 1]
    torch.library.opcheck(
        torch.ops.sj_burst.li_pool.default, (z.detach(), total, pooled, sizes, geometry)
    )


def test_training_with_another_surrogate_falls_back():
    node = BurstIFNode(0.5, 2, surrogate_function=surrogate.PiecewiseQuadratic(), step_mode="m")
    node.backend = "cupy"
    x = torch.randn(3, 2, 4, requires_grad=True)
    node(x).sum().backward()
    assert x.grad is not None


def test_half_network_keeps_float_state_between_calls():
    node = BurstIFNode(0.3, 2, v_init=0.1, step_mode="m", backend="cupy")
    z_seq = torch.randn(6, 2, 5).half()
    whole = node(z_seq)
    node.reset()
    parts = torch.cat([node(z_seq[:1]), node(z_seq[1:4]), node(z_seq[4:])])
    assert torch.equal(whole, parts) and node.v.dtype == torch.float32 and parts.dtype == torch.float16
