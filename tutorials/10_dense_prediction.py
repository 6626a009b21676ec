"""Segment scenes of garments with a spiking U-Net: a class for every pixel, after every time step.

    python tutorials/10_dense_prediction.py

About three minutes on two CPU cores. Trains a small U-Net on scenes pasted together from
Fashion-MNIST, converts it, and prints pixel accuracy, mean intersection over union (mIoU) and the
output's error against the ANN. Draws figures/10_dense_prediction.png.
"""

import time

import torch
from common import STEPS, batched, fashion_mnist, parser, save, train
from loaders import scenes
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator
from networks import SmallFCN
from spikingjelly.activation_based import ann2snn
from torch import Tensor

import sj_burst

CLASSES = 11  # background and ten garments
PICTURED = ("published burst, Γ=5", "sj_burst, Γ=4")
MASKS = ListedColormap(["black", *pyplot.get_cmap("tab10").colors])


def pixel_accuracy(output: Tensor, masks: Tensor) -> float:
    """Share of pixels whose largest output, of ``[N, K, H, W]``, is that of their class; in percent."""
    return 100 * (output.argmax(1) == masks).float().mean().item()


def mean_iou(output: Tensor, masks: Tensor) -> float:
    """Pixels of a class both found and true, of those either; mean over classes, in percent."""
    pairs = masks.flatten() * CLASSES + output.argmax(1).flatten()
    confusion = pairs.bincount(minlength=CLASSES**2).view(CLASSES, CLASSES).double()
    union = confusion.sum(0) + confusion.sum(1) - confusion.diag()
    return 100 * (confusion.diag() / union)[union > 0].mean().item()


def print_scores(label: str, runs: dict[int, sj_burst.SimulationResult], masks: Tensor) -> None:
    """Three lines of a table with a column for every number of time steps."""
    rows = {
        "pixel accuracy (%)": [pixel_accuracy(run.output, masks) for run in runs.values()],
        "mIoU (%)": [mean_iou(run.output, masks) for run in runs.values()],
        "output error (%)": [100 * run.error[-1].item() for run in runs.values()],
    }
    print(f"\n{label:20s}" + "".join(f"{f'T={t}':>7s}" for t in runs))
    for name, values in rows.items():
        print(f"  {name:18s}" + "".join(f"{value:7.1f}" for value in values))


def draw_errors(ax: Axes, errors: dict[str, Tensor]) -> None:
    """The output's error against the ANN after every time step."""
    for (label, error), colour, marker in zip(
        errors.items(), sj_burst.plot.COLOURS, "osD", strict=False
    ):
        at = [t - 1 for t in STEPS if t <= len(error)]
        steps = range(1, len(error) + 1)
        ax.loglog(steps, 100 * error, color=colour, marker=marker, markevery=at, label=label)
    ax.xaxis.set_major_locator(FixedLocator(STEPS))
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter("{x:g}")
    ax.set_xlabel("time steps T")
    ax.set_ylabel("output error against the ANN (%)")
    ax.grid(True, alpha=0.25)
    ax.legend(fontsize="small", frameon=False)


def draw_pictures(figure: Figure, rows: list[dict[str, Tensor]]) -> None:
    """A row of panels for each dict: an image in grey, or the class of every pixel in colour."""
    axes = figure.subplots(len(rows), max(map(len, rows)), squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for row, panels in zip(rows, axes, strict=True):
        for ax, (title, picture) in zip(panels, row.items(), strict=False):
            if picture.is_floating_point():
                ax.imshow(picture, cmap="gray")
            else:
                ax.imshow(picture, cmap=MASKS, vmin=0, vmax=CLASSES - 1, interpolation="nearest")
            ax.set_title(title, fontsize="x-small")


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--time-steps", "-T", type=int, default=32, help="T, steps to simulate")
    p.add_argument("--images-per-scene", type=int, default=4, help="one scene for so many images")
    p.set_defaults(test_images=600)
    args = p.parse_args()

    start = time.perf_counter()
    data = fashion_mnist(args.data)
    counts = {"train": args.train_images or len(data["train"][0]), "test": args.test_images}
    made = {
        split: scenes(data[split], count // args.images_per_scene, seed)
        for seed, (split, count) in enumerate(counts.items(), args.seed)
    }
    test, masks = batched(made["test"], size=25), made["test"][1]
    calibration = batched(made["train"], args.calibration_images // args.images_per_scene, size=25)
    torch.manual_seed(args.seed)
    ann = SmallFCN(CLASSES)
    train(ann, made["train"], args.epochs, device=args.device, seed=args.seed, lr=7e-3, batch=10)
    print(f"trained on {len(made['train'][0])} scenes in {time.perf_counter() - start:.0f} s")
    with torch.no_grad():
        output = torch.cat([ann(x.to(args.device)).cpu() for x, _ in test])
    ann_scores = pixel_accuracy(output, masks), mean_iou(output, masks)
    print("ANN: pixel accuracy {:.1f} %, mIoU {:.1f} %".format(*ann_scores))

    recipes = {
        "published burst, Γ=5": sj_burst.BurstRecipe(calibration, sj_burst.Options.preset("burst")),
        "sj_burst, Γ=1": sj_burst.BurstRecipe(calibration, max_spikes=1),
        "sj_burst, Γ=4": sj_burst.BurstRecipe(calibration, max_spikes=4),
    }
    errors: dict[str, Tensor] = {}
    pictures = [{"image": made["test"][0][0, 0], "labels": masks[0], "ANN": output[0].argmax(0)}]
    for label, recipe in recipes.items():
        snn = ann2snn.Converter(recipe, device=args.device).convert(ann)
        steps = [t for t in STEPS if t < args.time_steps] + [args.time_steps]
        runs = {t: sj_burst.simulate(snn, test, t, reference=ann) for t in steps}
        print_scores(label, runs, masks)
        errors[label] = runs[args.time_steps].error
        if label in PICTURED:
            found = {f"{label}, T={t}": runs[t].output[0].argmax(0) for t in (1, 4, 16) if t in runs}
            pictures.append(found)

    fig = pyplot.figure(figsize=(10, 4.6), layout="constrained")
    left, right = fig.subfigures(1, 2, width_ratios=(1, 1.1))
    draw_errors(left.subplots(), errors)
    draw_pictures(right, pictures)
    save(fig, args, "10_dense_prediction.png")
    print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
