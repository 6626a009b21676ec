"""Time of calibration: advanced against depth (linear, because each layer resumes from its prefix),
and statistics and thresholds against a forward pass.

pytest -o addopts= tests/benchmarks/test_calibration_benchmark.py -s
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from networks import CifarResNet
from spikingjelly.activation_based import ann2snn

from sj_burst import BurstRecipe
from sj_burst.conversion.observe import observe
from sj_burst.graph.standardize import standardize
from sj_burst.rules.statistics import ActivationStatistics
from sj_burst.rules.threshold import error_by_bins, error_by_levels, fit_threshold
from sj_burst.rules.transfer import Transfer

IMAGES = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def seconds(blocks: int) -> float:
    """Time that calibration adds to the conversion of a ResNet with 6·blocks + 2 layers."""
    torch.manual_seed(0)
    ann = CifarResNet(blocks).eval()
    times = {}
    for calibration in ("none", "advanced"):
        recipe = BurstRecipe([IMAGES], time_steps=4, calibration=calibration, progress=False)
        start = time.perf_counter()
        ann2snn.Converter(recipe).convert(ann)
        times[calibration] = time.perf_counter() - start
    return times["advanced"] - times["none"]


def test_time_is_linear_in_depth(benchmark):
    ratios = []

    def run() -> None:
        shallow, deep = seconds(3), seconds(9)  # ResNet-20, ResNet-56: 19 and 55 neuron layers
        ratios.append(deep / shallow)

    benchmark.pedantic(run, rounds=5, iterations=1)
    print(f"\nResNet-56 / ResNet-20: {statistics.median(ratios):.2f} (layers: {55 / 19:.2f})")


def test_thresholds_in_forward_passes(benchmark):
    """Statistics and "mse" thresholds of a ResNet-56, in units of one forward pass over the images."""
    torch.manual_seed(0)
    gm = standardize(CifarResNet(9).eval(), IMAGES[:2])
    transfer = Transfer(time_steps=4, max_spikes=4, potential=0.5)
    ratios: dict[str, list[float]] = {"statistics": [], "thresholds": []}

    def run() -> None:
        start = time.perf_counter()
        with torch.no_grad():
            gm(IMAGES)
        forward = time.perf_counter()
        found = observe(gm, [IMAGES], channel_wise=True, device="cpu", progress=False)
        observed = time.perf_counter()
        for layer in found.values():
            fit_threshold(layer, "mse", transfer)
        fitted = time.perf_counter()
        ratios["statistics"].append((observed - forward) / (forward - start) - 1)
        ratios["thresholds"].append((fitted - observed) / (forward - start))

    benchmark.pedantic(run, rounds=5, iterations=1, warmup_rounds=1)
    for name, values in ratios.items():
        print(f"\n{name} / forward pass: {statistics.median(values):.2f}")


def test_mse_search_against_plain_search(benchmark):
    """Thresholds of 2048 channels from the tails of their histograms, and from all their bins."""
    torch.manual_seed(0)
    found = ActivationStatistics()
    found.update(torch.randn(512, 2048))
    transfer = Transfer(time_steps=4, max_spikes=4, potential=0.5)
    theta = found.maximum / 4
    ratios = []

    def seconds(error: Callable[[torch.Tensor], torch.Tensor]) -> float:
        start = time.perf_counter()
        for factor in (0.25, 0.5, 0.75, 1.0):
            error(factor * theta)
        return time.perf_counter() - start

    def run() -> None:
        by_bins, by_levels = error_by_bins(found, transfer), error_by_levels(found, transfer)
        ratios.append(seconds(by_bins) / seconds(by_levels))

    benchmark.pedantic(run, rounds=5, iterations=1, warmup_rounds=1)
    print(f"\nplain / by levels: {statistics.median(ratios):.1f}")


_LARGE = """
import resource, sys, time, torch, torch.fx.experimental.optimization, torchvision
from sj_burst import convert
torch.manual_seed(0)
ann = torchvision.models.resnet50(weights=None)
images = [torch.randn(16, 3, 224, 224) for _ in range(int(sys.argv[1]) // 16)]
ann.train()(images[0])  # statistics of BatchNorm
fused = torch.fx.experimental.optimization.fuse(ann.eval()).to(memory_format=torch.channels_last)
with torch.no_grad():
    fused(images[0])
    start = time.perf_counter()
    for x in images:
        fused(x.to(memory_format=torch.channels_last))
forward = time.perf_counter() - start
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
convert(ann, images, time_steps=4, calibration_images=int(sys.argv[1]), progress=False)
seconds = time.perf_counter() - start
print(seconds, forward, before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_time_and_memory_of_a_large_network(benchmark):
    """A conversion of ResNet-50 at 224×224 by the defaults; ``IMAGES`` of the environment, or 256."""

    def run() -> list[float]:
        command = [sys.executable, "-W", "ignore", "-c", _LARGE, os.environ.get("IMAGES", "256")]
        paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            command, env=os.environ | paths, capture_output=True, text=True, check=True
        )
        return [float(word) for word in done.stdout.split()]

    seconds, forward, before, peak = benchmark.pedantic(run, rounds=1, iterations=1)
    print(
        f"\nResNet-50: {seconds:.0f} s, {seconds / forward:.1f} times a forward pass of the fused ANN, "
        f"peak {peak / 2**20:.1f} GiB, before it {before / 2**20:.1f} GiB"
    )
