"""What the tutorials share: data, networks, training, tables."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from loaders import fashion_mnist
from networks import small_vgg
from spikingjelly.logger import logger
from torch import Tensor, nn
from tqdm import tqdm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
FIGURES = HERE.parent / "figures"
RUNS = HERE.parent / "runs"
STEPS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

logger.remove()  # SpikingJelly logs every conversion; the tutorials print their own results

__all__ = [
    "STEPS",
    "Batches",
    "accuracy",
    "batched",
    "fashion_mnist",
    "images_in",
    "keep",
    "parser",
    "print_table",
    "quickstart_network",
    "save",
    "train",
]

Batches = list[tuple[Tensor, Tensor]]


def parser(description: str | None, without: Collection[str] = ()) -> argparse.ArgumentParser:
    """Options that every tutorial has, but for some."""
    p = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    data = "folder of Fashion-MNIST IDX files; default: the embedded subset"
    options: dict[str, dict[str, Any]] = {
        "--data": dict(help=data),
        "--epochs": dict(type=_count, default=4, help="training epochs of the ANN"),
        "--device": dict(default="cpu", help="cpu or cuda"),
        "--seed": dict(type=int, default=0),
        "--train-images": dict(type=_count, help="number of training images; default: all"),
        "--test-images": dict(type=_count, default=1000, help="number of test images"),
        "--calibration-images": dict(type=_count, default=1000, help="of the training split"),
        "--figures": dict(type=Path, default=FIGURES, help="where figures are written"),
    }
    for name, settings in options.items():
        if name not in without:
            p.add_argument(name, **settings)
    return p


def _count(text: str) -> int:
    """A number of images or epochs."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def images_in(batches: Batches) -> int:
    """How many there are, which may be fewer than were asked for."""
    return sum(len(y) for _, y in batches)


def batched(data: tuple[Tensor, Tensor], count: int | None = None, size: int = 100) -> Batches:
    """The first ``count`` samples in batches."""
    images, labels = data[0][:count], data[1][:count]
    return list(zip(images.split(size), labels.split(size), strict=True))


def _moved(*maps: Tensor, shift: int) -> tuple[Tensor, ...]:
    """The same random flip and shift for images and, if every pixel has one, their labels."""
    if torch.rand(()) < 0.5:
        maps = tuple(t.flip(-1) for t in maps)
    dx, dy = torch.randint(-shift, shift + 1, (2,)).tolist()
    return tuple(t.roll((dx, dy), (-2, -1)) for t in maps)


def train(
    net: nn.Module,
    data: tuple[Tensor, Tensor],
    epochs: int,
    *,
    device: str = "cpu",
    seed: int = 0,
    lr: float = 2e-3,
    batch: int = 100,
    shift: int = 1,
) -> nn.Module:
    """Train with Adam, a one-cycle schedule, random flips and shifts by up to ``shift`` pixels.

    Returns the network in eval mode.
    """
    torch.manual_seed(seed)
    net.to(device).train()
    images, labels = data
    batch = min(batch, len(images))
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.AdamW(net.parameters(), lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2 * lr, total_steps=max(steps, 2))
    for epoch in range(epochs):
        order = torch.randperm(len(images))[: len(images) // batch * batch].split(batch)
        for index in tqdm(order, f"train {epoch + 1}/{epochs}", leave=False):
            x, y = images[index].to(device), labels[index].to(device)
            x, y = _moved(x, y, shift=shift) if y.dim() > 1 else (*_moved(x, shift=shift), y)
            loss = F.cross_entropy(net(x), y, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def quickstart_network(args: argparse.Namespace, data: tuple[Tensor, Tensor]) -> nn.Module:
    """The trained small VGG; kept under ``runs/`` so that the next tutorial finds it."""
    images, labels = data[0][: args.train_images], data[1][: args.train_images]
    path = RUNS / f"vgg_{len(images)}images_epochs{args.epochs}_seed{args.seed}.pt"
    torch.manual_seed(args.seed)
    net = small_vgg()
    if not path.exists():
        train(net, (images, labels), args.epochs, device=args.device, seed=args.seed)
        keep(net, path)
    net.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    return net.to(args.device).eval()


def keep(net: nn.Module, path: Path) -> None:
    """Write a network's weights; an interruption leaves no half a file."""
    path.parent.mkdir(exist_ok=True)
    torch.save(net.state_dict(), path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


@torch.no_grad()
def accuracy(net: nn.Module, test: Batches, device: str = "cpu") -> float:
    """Top-1 accuracy in [0, 1]."""
    correct = sum((net(x.to(device)).argmax(1).cpu() == y).sum().item() for x, y in test)
    return correct / images_in(test)


def save(fig: Figure, args: argparse.Namespace, name: str) -> None:
    """Write a figure into the folder for figures."""
    args.figures.mkdir(parents=True, exist_ok=True)
    fig.savefig(args.figures / name, dpi=160)
    print(f"wrote {name}")


def print_table(rows: dict[str, Tensor], head: str = "", unit: float = 100) -> None:
    """Values times ``unit`` at T = 1, 2, 4, … for each row."""
    length = min(map(len, rows.values()))
    steps = [t for t in STEPS if t <= length]
    width = max(map(len, [*rows, head]))
    print(f"{head:{width}s} " + "".join(f"{f'T={t}':>8s}" for t in steps))
    for label, values in rows.items():
        cells = "".join(f"{unit * values[t - 1].item():8.1f}" for t in steps)
        print(f"{label:{width}s} {cells}")
