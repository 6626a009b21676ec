"""Time of advanced calibration against depth: linear, because each layer resumes from its prefix.

pytest -o addopts= tests/benchmarks/test_calibration_benchmark.py -s
"""

import statistics
import time

import torch
from networks import CifarResNet
from spikingjelly.activation_based import ann2snn

from sj_burst import BurstRecipe

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
