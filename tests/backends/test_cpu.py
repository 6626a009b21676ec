"""The numba loops against functional.py."""

import itertools
import os
import subprocess
import sys
import threading

import pytest
import torch
from reference import (
    LAYOUTS,
    POOLS,
    assert_burst_equal,
    bits_of,
    burst_cases,
    make_input,
    pool_shape,
    pool_states,
)
from torch import nn

from sj_burst import BurstIFNode, functional

cpu = pytest.importorskip("sj_burst.backends.cpu")
cpu_blocks = pytest.importorskip("sj_burst.backends.cpu_blocks")
BOOLS = (False, True)


@pytest.mark.parametrize("signed", BOOLS)
@pytest.mark.parametrize("shifted", BOOLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_burst_equals_reference(dtype, shifted, signed):
    for case in burst_cases(dtype, signed, shifted):
        got = cpu.burst_multi_step(*case.args(), **case.options, count=True)
        assert got.counts is not None
        assert_burst_equal(case, got)


@pytest.mark.parametrize("shifted", BOOLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_leaky_equals_reference(dtype, shifted):
    for case in burst_cases(dtype, True, shifted, leaky=True):
        for count in BOOLS:
            got = cpu.burst_multi_step(*case.args(), **case.options, count=count)
            assert (got.counts is not None) == count
            assert_burst_equal(case, got)


def test_many_blocks_and_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(cpu_blocks, "GRAIN", 1)
    for shape in ((2, 3, 41, 43), (1, 7, 1024), (3, 1025)):
        z_seq, v = torch.randn(4, *shape), torch.zeros(shape)
        for threshold in (
            torch.rand(shape[1], *[1] * (len(shape) - 2)) + 0.2,
            torch.rand(shape[1:]) + 0.2,
        ):
            got = cpu.burst_multi_step(z_seq, v, threshold, 2, count=True)
            y_seq, v_after, _ = functional.burst_multi_step(z_seq, v, threshold, 2)
            assert torch.equal(got.y_seq, y_seq) and torch.equal(got.v, v_after)
            bursts = (y_seq / threshold).round()
            assert torch.equal(got.counts.per_step, bursts.flatten(1).sum(1).double())
            events = torch.stack([bursts, bits_of(bursts), (bursts > 0).float()]).double().sum((1, 2))
            assert torch.equal(got.counts.per_neuron, events)


@pytest.mark.parametrize("pool", POOLS, ids=repr)
def test_pooling_equals_reference(pool):
    for layout, steps, dtype in itertools.product(LAYOUTS, (1, 4), (torch.float32, torch.float64)):
        x_seq = make_input(steps, pool_shape(pool), layout, dtype)
        states = pool_states(pool, dtype)
        got = cpu.li_pool_multi_step(x_seq, *states, pool)
        for a, b in zip(got, functional.li_pool_multi_step(x_seq, *states, pool), strict=True):
            assert torch.equal(a, b), (layout, steps)


def test_inputs_stay_as_they_are():
    z_seq, v, sent = torch.randn(3, 2, 5), torch.zeros(2, 5), torch.zeros(2, 5)
    copies = [t.clone() for t in (z_seq, v, sent)]
    cpu.burst_multi_step(z_seq, v, torch.tensor(0.5), 2, sent=sent)
    total, pooled = torch.zeros(1, 2, 5), torch.zeros(1, 2, 2)
    cpu.li_pool_multi_step(z_seq[:, None], total, pooled, nn.MaxPool1d(2))
    assert all(torch.equal(a, b) for a, b in zip((z_seq, v, sent), copies, strict=True))
    assert not total.any() and not pooled.any()


def test_special_values():
    inf, nan = float("inf"), float("nan")
    z_seq = torch.tensor([inf, nan, -0.0, 1e-41, 3e38, -inf, 1.0]).expand(3, 1, 7)
    threshold = torch.tensor([1.0, 1.0, 1.0, 1e-41, 1e-3, 1.0, 0.1])
    for most in (1, 7, inf):
        args = (z_seq, torch.zeros(1, 7), threshold, most)
        wanted = functional.burst_multi_step(*args)
        for a, b in zip(cpu.burst_multi_step(*args), wanted, strict=False):
            assert a is b is None or torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


def test_gradient_half_precision_and_compile_fall_back():
    node = BurstIFNode(0.5, 2, step_mode="m", backend="numba")
    x = torch.randn(3, 2, 4, requires_grad=True)
    node(x).sum().backward()
    assert x.grad is not None
    node.reset()
    with torch.no_grad():
        assert node(x.detach().half()).dtype == torch.float16
        node.reset()
        eager = node(x.detach())
        node.reset()
        assert torch.equal(torch.compile(node, fullgraph=True, backend="eager")(x.detach()), eager)


def test_calls_from_several_threads():
    z_seq, v, threshold = torch.randn(8, 4, 3000), torch.zeros(4, 3000), torch.tensor(0.5)
    wanted, *_ = functional.burst_multi_step(z_seq, v, threshold)
    results: list[torch.Tensor] = []

    def call() -> None:
        results.append(cpu.burst_multi_step(z_seq, v, threshold)[0])

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(torch.equal(r, wanted) for r in results)


_FORK = """
import multiprocessing, torch
from sj_burst.backends import cpu, cpu_blocks

cpu_blocks.GRAIN = 1
torch.set_num_threads(2)
z_seq, v = torch.randn(4, 5000), torch.zeros(5000)

def fire():
    return cpu.burst_multi_step(z_seq, v, torch.tensor(0.5))[0]

def in_child(queue):
    queue.put(fire().sum().item())

fork = multiprocessing.get_context("fork")
wanted, queue = fire().sum().item(), fork.SimpleQueue()
child = fork.Process(target=in_child, args=(queue,))
child.start()
child.join(60)
assert child.exitcode == 0, child.exitcode
assert queue.get() == wanted
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_after_a_fork():
    # A process of its own: this one holds the threads of other libraries.
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", _FORK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_to_do():
    for shape in ((3, 0, 4), (3, 2, 4, 0, 5)):
        for backend in ("torch", "numba"):
            node = BurstIFNode(torch.ones(4), signed=True, step_mode="m", backend=backend)
            assert node(torch.zeros(shape)).shape == shape
