"""The way to the device: every launch goes to a stand-in for the driver, which runs it on the host."""

import contextlib
import functools
import re
from types import SimpleNamespace

import host_shim
import pytest
import torch
from reference import assert_burst_equal, burst_cases, make_input, pool_shape, pool_states
from spikingjelly.activation_based import surrogate
from torch import nn

from sj_burst import functional
from sj_burst.backends.cuda import launch, operators

DEVICE, STREAM = 1, 4242


class Driver:
    """Records launches and the devices they are made on; runs them with the host's threads."""

    def __init__(self) -> None:
        self.launches: list[SimpleNamespace] = []
        self.current: list[int] = []

    @contextlib.contextmanager
    def device(self, device):
        self.current.append(device.index)
        yield
        self.current.pop()

    def stream(self, device):
        return SimpleNamespace(cuda_stream=STREAM + device.index)

    def compiled(self, kernel, macros, device):
        assert list(macros) == sorted(macros)
        return functools.partial(self.launch, kernel, macros, device)

    def launch(self, kernel, macros, device, grid, block, args, shared, stream):
        self.launches.append(
            SimpleNamespace(
                kernel=kernel,
                macros=dict(macros),
                compiled_for=device,
                current=self.current[-1],
                grid=grid,
                block=block,
                args=dict(zip(parameters(kernel), args, strict=True)),
                shared=shared,
                stream=stream.ptr,
            )
        )
        module = host_shim.library(kernel, macros)
        threads = 1 if dict(macros).get("COUNT") else block[0]  # threads that meet need a device
        numbers = [host_shim.ctypes.c_longlong(n) for n in (grid[0], threads)]
        for b in range(grid[0]):
            for t in range(threads):
                module.set_thread(*map(host_shim.ctypes.c_longlong, (b, t)), *numbers)
                getattr(module, kernel)(*map(host_shim._argument, args))


def parameters(kernel: str) -> list[str]:
    """Names of what a kernel takes, from its source."""
    source = re.sub(r"//.*", "", launch.kernel_source(kernel))
    taken = re.search(rf"__global__ void (?:BOUNDS )?{kernel}\((.*?)\) \{{", source, re.DOTALL)[1]
    return [re.search(r"(\w+)$", part.strip())[1] for part in taken.split(",")]


@pytest.fixture
def driver(monkeypatch):
    if host_shim.COMPILER is None:
        pytest.skip("needs g++")
    driver = Driver()
    monkeypatch.setattr(launch, "_compiled", driver.compiled)
    monkeypatch.setattr(launch, "THREADS", 4)
    monkeypatch.setattr(launch, "BLOCKS_PER_PROCESSOR", 2)
    monkeypatch.setattr(torch.cuda, "device", driver.device)
    monkeypatch.setattr(torch.cuda, "current_stream", driver.stream)
    processors = SimpleNamespace(multi_processor_count=3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: processors)

    def on_device(kernel, macros, work, args, device, shared=0):
        assert device.type == "cpu"
        launch.launch_kernel(kernel, macros, work, args, torch.device("cuda", DEVICE), shared)

    monkeypatch.setattr(operators, "launch_kernel", on_device)
    monkeypatch.setattr(operators, "WIDE_FROM", 0)
    return driver


def check(made: SimpleNamespace, work: int) -> None:
    """What is the same for all launches: device, stream, and as many threads as there is work."""
    assert made.compiled_for == made.current == DEVICE
    assert made.stream == STREAM + DEVICE
    assert made.block == (4,) and made.grid == (min(-(-work // 4), 6),)
    assert all(type(value) in (int, float) for value in made.args.values())


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("count", [False, True])
def test_neurons(driver, count, signed):
    for case in burst_cases(torch.float32, signed, shifted=count):
        z, *_ = case.args()
        assert_burst_equal(case, operators.burst_multi_step(*case.args(), **case.options, count=count))
        made = driver.launches[-1]
        neurons = z[0].numel()
        check(made, neurons // made.macros["WIDTH"])
        assert made.macros["WIDTH"] in (1, 4) and neurons % made.macros["WIDTH"] == 0
        assert made.args["steps"] == len(z) and made.args["neurons"] == neurons
        constant = len(z) > 1 and z.stride(0) == 0
        assert (made.args["z_stride"] == 0) == constant
        assert (made.args["sent"] != 0) == signed and (made.args["shift"] != 0) == count
        assert made.args["slope"] == 0
        assert made.shared == (8 * len(z) if count else 0)  # two counters of 4 bytes a step
    assert {made.macros["WIDTH"] for made in driver.launches} == {1, 4}


def test_pooling(driver):
    pool = nn.MaxPool2d(3, 2, 1)
    for layout in ("contiguous", "channels_last", "constant", "every second step"):
        x_seq = make_input(3, pool_shape(pool), layout, torch.float32)
        total, pooled = pool_states(pool)
        got = operators.li_pool_multi_step(x_seq, total, pooled, pool)
        for a, b in zip(got, functional.li_pool_multi_step(x_seq, total, pooled, pool), strict=True):
            assert torch.equal(a, b), layout
        made = driver.launches[-1]
        check(made, pooled.numel())
        assert made.args["x_stride"] == x_seq.stride(0)
        assert made.args["size"] == total.numel() and made.args["outs"] == pooled.numel()
        assert made.args["inner"] == (x_seq.shape[2] if layout == "channels_last" else 1)
        assert (made.args["height"], made.args["width"]) == total.shape[2:]
        assert (made.args["out_height"], made.args["out_width"]) == pooled.shape[2:]
        assert (made.args["stride_h"], made.args["padding_w"], made.args["dilation_h"]) == (2, 1, 1)


def test_gradients(driver):
    shape = (2, 3, 4)
    z = torch.randn(4, *shape, dtype=torch.float64, requires_grad=True)
    grads = []
    for run in (functional.burst_multi_step, operators.burst_multi_step):
        threshold = torch.tensor([0.3, 0.5, 0.7]).double()[:, None]
        y, *_ = run(z, torch.zeros(shape).double(), threshold, 2, surrogate=surrogate.ATan(2.0))
        grads.append(torch.autograd.grad((y * torch.arange(len(z))[:, None, None, None]).sum(), z)[0])
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)
    forward, backward = driver.launches
    check(forward, z[0].numel() // forward.macros["WIDTH"])
    check(backward, z[0].numel())
    assert forward.macros["SAVE"] == 1 and forward.args["membrane"] == backward.args["membrane"] != 0


def test_nothing_to_do_is_not_launched(driver):
    z = torch.zeros(2, 0, 3)
    operators.burst_multi_step(z, torch.zeros(0, 3), torch.ones(3), 1)
    assert not driver.launches


def test_every_parameter_of_a_kernel_is_of_eight_bytes():
    """As :func:`launch_kernel` passes them."""
    for kernel in ("burst_forward", "burst_backward", "li_pool"):
        source = launch.kernel_source(kernel)
        taken = re.search(rf"{kernel}\(\n(.*?)\n\) \{{", source, re.DOTALL)[1]
        for part in re.sub(r"//.*", "", taken).replace("\n", " ").split(","):
            assert re.search(r"\*|\bIndex\b|\bdouble\b", part), part
