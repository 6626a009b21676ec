"""How fast the backends are.

    pytest -o addopts= tests/benchmarks/test_backend_benchmark.py

compares the CPU backends, and on a CUDA device with CuPy also measures the kernels, against the
card's copy bandwidth and against SpikingJelly; what it finds there goes to
figures/backend_benchmark.json together with the card's name.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from spikingjelly.activation_based import ann2snn
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor, nn

from sj_burst import BurstRecipe, set_backend
from sj_burst.backends import dispatch
from sj_burst.modules.pooling import LIPool

COMMAND = "pytest -o addopts= tests/benchmarks/test_backend_benchmark.py"
RECORD = Path(__file__).parents[2] / "figures" / "backend_benchmark.json"
CPU_BACKENDS = [b for b in ("torch", "numba") if dispatch.is_installed(b)]
on_gpu = pytest.mark.skipif(
    not (torch.cuda.is_available() and dispatch.is_installed("cupy")),
    reason="needs a CUDA device and CuPy",
)


def vgg(widths: tuple[int | str, ...], features: int, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 10))


VGG_SMALL = (16, 16, "M", 32, 32, "M", 64, "M")
VGG_16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


def converted(ann: nn.Module, x: Tensor, recipe: object) -> nn.Module:
    with torch.no_grad():
        ann.to(x.device).train()(x)
    return ann2snn.Converter(recipe, device=x.device).convert(ann.eval())


def alternating_medians(runs: dict[str, Callable[[], object]], repeats: int = 9) -> dict[str, float]:
    """Seconds of each run; the runs take turns, so that a slow spell of the machine hits them all."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:  # the first one warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def record(name: str, values: dict[str, float]) -> None:
    found = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    found |= {"command": COMMAND, "card": torch.cuda.get_device_name(), name: values}
    RECORD.write_text(json.dumps(found, indent=2) + "\n")


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("signed", [False, True])
def test_burst_on_cpu(benchmark, backend, signed):
    z_seq, v = torch.randn(8, 16, 16, 32, 32), torch.zeros(16, 16, 32, 32)
    threshold, sent = torch.rand(16, 1, 1) + 0.3, torch.zeros_like(v) if signed else None
    benchmark(dispatch.burst_multi_step, backend, z_seq, v, threshold, 4, sent=sent)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_pooling_on_cpu(benchmark, backend):
    pool = LIPool(nn.MaxPool2d(2), step_mode="m")
    pool.backend = backend
    x_seq = torch.rand(8, 16, 16, 32, 32)
    with torch.no_grad():
        benchmark(pool, x_seq)


@pytest.mark.skipif("numba" not in CPU_BACKENDS, reason="needs numba")
def test_numba_is_faster_in_a_whole_network():
    x = torch.randn(16, 1, 28, 28)
    snn = converted(vgg(VGG_SMALL, 64 * 9, 1), x, BurstRecipe([x], max_spikes=4, progress=False))

    def run(backend: str) -> None:
        set_backend(snn, backend)
        reset_net(snn)
        with torch.no_grad():
            snn.run(x, 8)

    seconds = alternating_medians({b: lambda b=b: run(b) for b in CPU_BACKENDS})
    print(seconds, f"ratio {seconds['torch'] / seconds['numba']:.2f}")
    assert seconds["torch"] > 1.1 * seconds["numba"]


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_burst_bandwidth_on_gpu(dtype):
    steps = 32
    neurons = (1 << 30) // (steps * dtype.itemsize)  # 1 GiB to read, 1 GiB to write
    z_seq = torch.randn(steps, 1, neurons, device="cuda", dtype=dtype)
    target = torch.empty_like(z_seq)
    v = torch.zeros(1, neurons, device="cuda")
    threshold = torch.tensor(0.5, device="cuda")
    with torch.no_grad():
        seconds = alternating_medians(
            {
                "copy": lambda: target.copy_(z_seq),
                "cupy": lambda: dispatch.burst_multi_step("cupy", z_seq, v, threshold, 4),
                "torch": lambda: dispatch.burst_multi_step("torch", z_seq, v, threshold, 4),
            }
        )
    gigabytes = {name: 2 * z_seq.nbytes / s / 1e9 for name, s in seconds.items()}
    record(f"burst {dtype}, GB/s", gigabytes)
    assert gigabytes["cupy"] >= 0.8 * gigabytes["copy"]
    assert gigabytes["cupy"] >= 5 * gigabytes["torch"]


@on_gpu
def test_vgg16_on_gpu():
    steps, x = 32, torch.randn(256, 3, 32, 32, device="cuda")
    ours = converted(vgg(VGG_16, 512, 3), x, BurstRecipe([x], max_spikes=4, progress=False))
    theirs = converted(vgg(VGG_16, 512, 3), x, ann2snn.RateCodingRecipe([(x, x)]))

    def run_ours(backend: str) -> None:
        set_backend(ours, backend)
        reset_net(ours)
        ours.run(x, steps)

    def run_theirs() -> None:
        reset_net(theirs)
        for _ in range(steps):
            theirs(x)

    with torch.no_grad():
        seconds = alternating_medians(
            {
                "SpikingJelly": run_theirs,
                "sj_burst torch": lambda: run_ours("torch"),
                "sj_burst cupy": lambda: run_ours("cupy"),
            },
            repeats=5,
        )
        share = _share_in_our_kernels(lambda: run_ours("cupy"))
    record("VGG-16, 32×32, batch 256, T = 32, seconds", seconds | {"share in our kernels": share})
    assert seconds["SpikingJelly"] >= 1.5 * seconds["sj_burst cupy"]


def _share_in_our_kernels(run: Callable[[], None]) -> float:
    """Share of the device's time that is spent in neurons and pooling."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run()
        torch.cuda.synchronize()
    times = {e.key: e.self_device_time_total for e in profile.key_averages()}
    ours = sum(t for name, t in times.items() if name in ("burst_forward", "li_pool"))
    return ours / sum(times.values())
