"""Run a converted VGG on every backend of this machine: same answers, different times.

    python tutorials/06_gpu_simulation.py
    python tutorials/06_gpu_simulation.py --device cuda --network vgg16 --batch 256

Takes the first CUDA device if there is one and CuPy is installed (pip install 'sj_burst[cuda13]'), and
the CPU otherwise. Writes figures/06_backends.png, whose title names the device. The networks are not
trained: time does not depend on what the weights are.
"""

import statistics
import time
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
from common import parser, save
from matplotlib.figure import Figure
from networks import small_vgg, vgg16
from spikingjelly.activation_based import ann2snn
from spikingjelly.activation_based.functional import reset_net
from torch import Tensor

import sj_burst
from sj_burst.backends.dispatch import is_installed

NETWORKS = {"small": (small_vgg, (1, 28, 28)), "vgg16": (vgg16, (3, 32, 32))}


def seconds(run: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Wall time of one call."""
    on_gpu = x.is_cuda
    torch.cuda.synchronize() if on_gpu else None
    start = time.perf_counter()
    run(x)
    torch.cuda.synchronize() if on_gpu else None
    return time.perf_counter() - start


def main() -> None:
    images = ("--data", "--epochs", "--train-images", "--test-images", "--calibration-images")
    p = parser(__doc__, without=images)  # random numbers and weights will do
    gpu = torch.cuda.is_available() and is_installed("cupy")
    p.set_defaults(device="cuda" if gpu else "cpu")
    p.add_argument("--network", choices=NETWORKS, default="vgg16" if gpu else "small")
    p.add_argument("--batch", type=int, default=256 if gpu else 16)
    p.add_argument("--time-steps", "-T", type=int, default=32 if gpu else 8)
    p.add_argument("--repeats", type=int, default=7, help="alternating runs; the median counts")
    args = p.parse_args()

    device = torch.device(args.device)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = "CPU"
        reason = "as asked" if gpu else "there is no CUDA device with CuPy"
        print(f"Comparing the backends of the CPU: {reason}.\n")
    torch.manual_seed(args.seed)
    make, shape = NETWORKS[args.network]
    ann = make().to(device)
    x = torch.randn(args.batch, *shape, device=device)
    with torch.no_grad():
        ann(x)  # running statistics of the batch normalisation
    ann.eval()

    options = {"time_steps": args.time_steps, "max_spikes": 4, "progress": False}
    recipe = sj_burst.BurstRecipe([x], **options)
    snn = ann2snn.Converter(recipe, device=device).convert(ann)
    rate_coding = ann2snn.Converter(ann2snn.RateCodingRecipe([(x, x)]), device=device).convert(ann)

    def ours(x: Tensor) -> Tensor:
        reset_net(snn)
        return snn.run(x, args.time_steps)

    def theirs(x: Tensor) -> Tensor:
        reset_net(rate_coding)
        return torch.stack([rate_coding(x) for _ in range(args.time_steps)])

    kernels = "cupy" if device.type == "cuda" else "numba"
    backends = ["torch", kernels] if is_installed(kernels) else ["torch"]
    times: dict[str, list[float]] = {"SpikingJelly rate coding": []}
    answers = {}
    with torch.no_grad():
        for turn in range(args.repeats + 1):
            found = {"SpikingJelly rate coding": seconds(theirs, x)}
            for backend in backends:
                sj_burst.set_backend(snn, backend)
                found[f"sj_burst, {backend}"] = seconds(ours, x)
                answers[backend] = ours(x)
            for label, value in found.items() if turn else ():  # the first turn warms up
                times.setdefault(label, []).append(value)
    assert all(torch.equal(answers["torch"], y) for y in answers.values()) or device.type == "cuda"

    medians = {label: 1000 * statistics.median(values) for label, values in times.items()}
    title = f"{args.network}, {args.batch} images, T = {args.time_steps}, {name}"
    print(f"{title}\n")
    for label, value in medians.items():
        speed = medians["sj_burst, torch"] / value
        print(f"{label:26s} {value:10.1f} ms   {speed:5.2f} × as fast as torch")
    difference = (answers["torch"] - answers[backends[-1]]).abs().max().item()
    print(f"\nlargest difference between the backends' outputs: {difference:g}")
    save(draw(medians, title), args, "06_backends.png")


def draw(medians: dict[str, float], title: str) -> Figure:
    fig, ax = plt.subplots(figsize=(6, 2.2), layout="constrained")
    ax.barh(list(medians), list(medians.values()))
    ax.invert_yaxis()
    ax.set_xlabel("milliseconds")
    ax.set_title(title, fontsize="medium")
    return fig


if __name__ == "__main__":
    main()
