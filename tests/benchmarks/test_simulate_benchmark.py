"""How fast simulation is, beside the ANN and SpikingJelly's converted network, and what it holds.

    pytest -o addopts= tests/benchmarks/test_simulate_benchmark.py -s

prints ratios, medians of alternating runs.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import torch
from common import accuracy, batched, fashion_mnist, parser, quickstart_network
from networks import CifarResNet, small_vgg, without_padding
from spikingjelly.activation_based import ann2snn
from torch import Tensor, nn

from sj_burst import BurstRecipe, convert, set_backend, simulate, standardize
from sj_burst.backends.dispatch import is_installed
from sj_burst.export import to_integers
from sj_burst.graph.fuse import fuse

NETWORKS = {"vgg": (small_vgg, (1, 28, 28)), "resnet20": (CifarResNet, (3, 32, 32))}
STEPS_TRIED = 64
BACKENDS = [b for b in ("torch", "numba") if is_installed(b)]


def medians(runs: dict[str, Callable[[], object]], repeats: int = 7) -> dict[str, float]:
    """Seconds of each run; the runs take turns, so that a slow spell hits them all."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:  # the first one warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


@torch.no_grad()
def trained_statistics(net: nn.Module, x: Tensor) -> nn.Module:
    net.train()(x)
    return net.eval()


@pytest.mark.parametrize("max_spikes", [1, 4])
@pytest.mark.parametrize("network", NETWORKS)
def test_time_beside_the_ann(benchmark, network, max_spikes):
    make, shape = NETWORKS[network]
    torch.manual_seed(0)
    steps, x = 8, torch.randn(100, *shape)
    ann = trained_statistics(make(), x)
    fused = standardize(ann, x[:2])
    fuse(fused, x[:2])
    options = {"max_spikes": max_spikes, "calibration": "none", "progress": False}
    snn = ann2snn.Converter(BurstRecipe([x], **options)).convert(ann)
    plain = standardize(without_padding(ann), x[:2])  # SpikingJelly refuses functional ReLUs
    theirs = ann2snn.Converter(ann2snn.RateCodingRecipe([(x, x)])).convert(plain)

    def ours(backend: str) -> None:
        set_backend(snn, backend)
        simulate(snn, [x], steps, progress=False)

    runs: dict[str, Callable[[], object]] = {
        "ANN": lambda: [fused(x) for _ in range(steps)],
        "SpikingJelly": lambda: simulate(theirs, [x], steps, progress=False),
    }
    for backend in BACKENDS:
        runs[backend] = lambda backend=backend: ours(backend)
    with torch.inference_mode():
        found = benchmark.pedantic(medians, args=(runs,), rounds=1, iterations=1)
    print(f"\n{network}, Γ={max_spikes}, T={steps}, batch 100, relative to T × fused ANN:")
    print({name: round(value / found["ANN"], 2) for name, value in found.items()})


def resnet18() -> nn.Module:
    from torchvision.models import resnet18

    return resnet18(num_classes=100)


IN_INTEGERS = NETWORKS | {"resnet18": (resnet18, (3, 112, 112))}


@pytest.mark.parametrize("network", IN_INTEGERS)
def test_time_in_integers(benchmark, network):
    make, shape = IN_INTEGERS[network]
    torch.manual_seed(0)
    steps, x = 8, torch.randn(100, *shape)
    ann = trained_statistics(make(), x)
    fused = standardize(ann, x[:2])
    fuse(fused, x[:2])
    options = {"weight_bits": 8, "calibration": "none", "progress": False}
    snn = convert(ann, [x[:32]], max_spikes=4, time_steps=steps, **options)
    integers = to_integers(snn)
    runs: dict[str, Callable[[], object]] = {
        "ANN": lambda: [fused(x) for _ in range(steps)],
        "float32": lambda: simulate(snn, [x], steps, progress=False),
        "integers": lambda: simulate(integers, [x], steps, progress=False),
        "integers, four batches": lambda: simulate(integers, [x] * 4, steps, progress=False),
    }
    with torch.inference_mode():
        found = benchmark.pedantic(medians, args=(runs,), rounds=1, iterations=1)
    found["integers, four batches"] /= 4
    print(f"\n{network}, Γ=4, T={steps}, batch 100, relative to T × fused ANN:")
    print({name: round(value / found["ANN"], 2) for name, value in found.items()})


def test_time_to_reach_the_ann(benchmark):
    """Wall time until accuracy is within a point of the ANN, and of SpikingJelly's fastest recipe.

    A recipe that is not there after ``STEPS_TRIED`` steps is given no more: the ratio is a lower bound.
    """
    args = parser(None).parse_args([])
    data = fashion_mnist()
    test, calibration = batched(data["test"], 500), batched(data["train"], 1000)
    ann = quickstart_network(args, data["train"])
    goal = accuracy(ann, test) - 0.01
    recipes = {
        f"SpikingJelly {mode}{', channel-wise' * wise}": ann2snn.RateCodingRecipe(
            calibration, mode=mode, channel_wise=wise
        )
        for mode in ("max", "99.9%", "99%")
        for wise in (False, True)
    }
    recipes["SpikingJelly LTB"] = ann2snn.LocalThresholdBalancingRecipe(calibration)
    recipes["sj_burst"] = BurstRecipe(calibration, time_steps=2, max_spikes=4, progress=False)
    steps, networks = {}, {}
    for label, recipe in recipes.items():
        snn = ann2snn.Converter(recipe).convert(ann)
        if label == "sj_burst":
            set_backend(snn, BACKENDS[-1])
        limit = 8 if label == "sj_burst" else STEPS_TRIED
        reached = simulate(snn, test, limit, progress=False).accuracy >= goal
        steps[label] = int(reached.int().argmax()) + 1 if reached.any() else limit
        networks[label] = snn
        print(label, f"is there after {steps[label]} steps" if reached.any() else f"is not in {limit}")
    # SpikingJelly's networks differ in the steps they need, not in the time of a step.
    fastest = min((label for label in steps if label != "sj_burst"), key=steps.__getitem__)
    runs = {
        label: lambda label=label: simulate(networks[label], test[:1], steps[label], progress=False)
        for label in ("sj_burst", fastest)
    }
    found = benchmark.pedantic(medians, args=(runs,), kwargs={"repeats": 5}, rounds=1, iterations=1)
    print(f"{fastest} takes {found[fastest] / found['sj_burst']:.1f} times as long as sj_burst")


_PEAK = """
import resource, sys, torch
from networks import small_vgg
from spikingjelly.activation_based import ann2snn
from sj_burst import BurstRecipe, simulate
x = torch.randn(500, 1, 28, 28)
recipe = BurstRecipe([x[:64]], calibration="none", progress=False)
snn = ann2snn.Converter(recipe).convert(small_vgg().eval())
simulate(snn, [x], int(sys.argv[1]), progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_peak_memory_over_time_steps(benchmark):
    def peak(steps: int) -> int:
        command = [sys.executable, "-W", "ignore", "-c", _PEAK, str(steps)]
        paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            command, env=os.environ | paths, capture_output=True, text=True, check=True
        )
        return int(done.stdout.split()[-1])

    found = benchmark.pedantic(lambda: {t: peak(t) for t in (16, 256)}, rounds=1, iterations=1)
    print(f"\npeak memory at T = 256 / T = 16: {found[256] / found[16]:.3f}")
