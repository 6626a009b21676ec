"""Detect garments with a spiking feature pyramid: classes and boxes at two scales, from one network.

    python tutorials/10_detection.py

About two minutes on two CPU cores. Trains a small one-stage detector on scenes of garments from
Fashion-MNIST, converts it as one network with several outputs, and prints mean average precision (mAP)
after T time steps. The sigmoid of the classes and the exponential of the boxes come after the last
neuron: they are the network's read-out, applied to the mean output. Draws figures/10_detection.png.
"""

import time

import torch
from common import STEPS, fashion_mnist, parser, save
from detection import Objects, decode, detection_loss, mean_average_precision, scenes_with_boxes
from loaders import MEAN, STD
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, NullLocator
from networks import SmallDetector
from torch import Tensor, nn
from tqdm import tqdm

import sj_burst

CLASSES = 10
SHOWN = 0.3  # least score of boxes in the picture
PICTURED = ("ANN", "Γ=4, T=4", "Γ=1, T=2", "Γ=1, T=4", "Γ=1, T=8")
NAMES = ("mAP@0.5", "mAP@0.5:0.95")
Curves = dict[str, list[tuple[float, float]]]


def train(net: SmallDetector, data: tuple[Tensor, list[Objects]], epochs: int, device: str) -> None:
    """Adam with a one-cycle schedule; leaves the network in eval mode."""
    images, truth = data
    steps = max(2, epochs * (len(images) // 16))
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    net.to(device).train()
    for epoch in range(epochs):
        order = torch.randperm(len(images))[: len(images) // 16 * 16].split(16)
        for index in tqdm(order, f"train {epoch + 1}/{epochs}", leave=False):
            scores, logs = net.levels(images[index].to(device))
            distances = [d.exp().cpu() for d in logs]
            scores = [z.cpu() for z in scores]
            loss = detection_loss(scores, distances, [truth[i] for i in index], net.STRIDES)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimizer.step()
            schedule.step()
    net.eval()


@torch.no_grad()
def detect(answer, images: Tensor, device: str) -> list[Objects]:
    """Objects that a network finds; ``answer`` makes its outputs of a batch."""
    found = []
    for x in images.split(20):
        out = {name: [t.cpu() for t in level] for name, level in answer(x.to(device)).items()}
        found += decode(out["scores"], out["distances"], SmallDetector.STRIDES)
    return found


def draw_curves(ax: Axes, curves: Curves, steps: list[int], ann: tuple[float, float]) -> None:
    """Both scores over time steps; the ANN's are lines across."""
    for (label, points), colour in zip(curves.items(), sj_burst.plot.COLOURS, strict=False):
        for values, style, name in zip(zip(*points, strict=True), ("o-", "s--"), NAMES, strict=True):
            ax.semilogx(steps, values, style, color=colour, label=f"{label}, {name}")
    for value, style, name in zip(ann, ("-", "--"), NAMES, strict=True):
        ax.axhline(value, color="black", linestyle=style, linewidth=1, label=f"ANN, {name}")
    ax.xaxis.set_major_locator(FixedLocator(steps))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_ylim(bottom=0)
    ax.set_xlabel("time steps T")
    ax.set_ylabel("mean average precision (%)")
    ax.grid(True, alpha=0.25)
    ax.legend(fontsize="x-small", frameon=False)


def draw_scene(ax: Axes, scene: Tensor, objects: Objects, title: str) -> None:
    """An image with a box in the colour of its class around every object."""
    ax.imshow(scene * STD + MEAN, cmap="gray", vmin=0, vmax=1)
    colours = pyplot.get_cmap("tab10").colors
    for (left, top, right, bottom), label, score in zip(*map(Tensor.tolist, objects), strict=True):
        if score >= SHOWN:
            edge = colours[label]
            ax.add_patch(
                Rectangle(
                    (left, top), right - left, bottom - top, fill=False, edgecolor=edge, linewidth=1.2
                )
            )
    ax.set_title(title, fontsize="x-small")
    ax.set_axis_off()


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--time-steps", "-T", type=int, default=32, help="T, steps to simulate")
    p.add_argument("--images-per-scene", type=int, default=5, help="one scene for so many images")
    p.set_defaults(epochs=10, test_images=500)
    args = p.parse_args()

    start = time.perf_counter()
    data = fashion_mnist(args.data)
    counts = {"train": args.train_images or len(data["train"][0]), "test": args.test_images}
    made = {
        split: scenes_with_boxes(data[split], count // args.images_per_scene, seed)
        for seed, (split, count) in enumerate(counts.items(), args.seed)
    }
    images, truth = made["test"]
    torch.manual_seed(args.seed)
    ann = SmallDetector(CLASSES)
    train(ann, made["train"], args.epochs, args.device)
    print(f"trained on {len(made['train'][0])} scenes in {time.perf_counter() - start:.0f} s")
    found = {"ANN": detect(ann, images, args.device)}
    ann_scores = mean_average_precision(found["ANN"], truth, CLASSES)

    calibration = made["train"][0][: args.calibration_images // args.images_per_scene].split(20)
    steps = [t for t in STEPS if t < args.time_steps] + [args.time_steps]
    curves: Curves = {}
    print(f"{'mAP@0.5 / mAP@0.5:0.95 (%)':28s}" + "".join(f"{f'T={t}':>12s}" for t in steps))
    for max_spikes in (1, 4):
        label = f"sj_burst, Γ={max_spikes}"
        snn = sj_burst.convert(ann, calibration, max_spikes=max_spikes, device=args.device)
        for t in steps:
            found[f"Γ={max_spikes}, T={t}"] = detect(
                lambda x, t=t, snn=snn: snn.answer(x, t), images, args.device
            )
        curves[label] = [
            mean_average_precision(found[f"Γ={max_spikes}, T={t}"], truth, CLASSES) for t in steps
        ]
        print(f"{label:28s}" + "".join(f"{f'{a:.1f} / {b:.1f}':>12s}" for a, b in curves[label]))
        print(f"  {sj_burst.synops(snn, [images[:20].to(args.device)], min(4, args.time_steps))}")
    print(f"{'ANN':28s}{'{:.1f} / {:.1f}'.format(*ann_scores):>12s}")

    fig = pyplot.figure(figsize=(10, 4.4), layout="constrained")
    left, right = fig.subfigures(1, 2, width_ratios=(1, 1.1))
    draw_curves(left.subplots(), curves, steps, ann_scores)
    scene = max(range(len(truth)), key=lambda n: len(truth[n].labels))
    panels = {"labels (a colour is a class)": truth} | {
        name: found[name] for name in PICTURED if name in found
    }
    for ax in right.subplots(2, 3).flat:
        ax.set_axis_off()
    for ax, (title, objects) in zip(right.axes, panels.items(), strict=False):
        draw_scene(ax, images[scene, 0], objects[scene], title)
    save(fig, args, "10_detection.png")
    print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
