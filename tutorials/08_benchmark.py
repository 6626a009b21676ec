r"""Accuracy, spikes and time of every setting on a network of your choice, one table a command.

    python tutorials/08_benchmark.py                             # the quickstart VGG and its data
    python tutorials/08_benchmark.py --network resnet --epochs 8 --data FOLDER_OF_IDX_FILES
    python tutorials/08_benchmark.py --network resnet20 --weights STATE.pt \
        --dataset cifar10-jpeg --data IMAGES.npz --draws 3
    python tutorials/08_benchmark.py --network resnet18 --weights DEFAULT \
        --dataset folder --data IMAGENET

A network without --weights is trained first, and kept under runs/. Each setting is converted once for
each draw of calibration images from the training split (and for each T that it can be fitted for), and
run on the test split; settings that no T is fitted for run once, and each T of the table is read off on
the way. Rows are appended to figures/08_NETWORK_DATASET.csv as they are found, and rows
that stand there are not measured again, so an interrupted run goes on where it stopped; tables of all
its rows, means ± standard deviations over draws, are written beside it as Markdown.
"""

import argparse
import csv
import functools
import os
from collections import defaultdict
from collections.abc import Callable
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import RUNS, accuracy, keep, parser, train
from loaders import DATASETS
from networks import make, without_padding
from spikingjelly.activation_based import ann2snn
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

import sj_burst

STEPS = (1, 2, 4, 8, 16, 32, 64)
SHIFT, DISTIL_IMAGES, DISTIL_EPOCHS = 1, 5000, 10  # defaults, which labels leave out
COUNTED_BATCHES = 2  # for the operations of settings that are simulated once for all T


class Setting(NamedTuple):
    """A row of the table: how to convert, and whether the conversion depends on T."""

    label: str
    max_spikes: int
    recipe: Callable[[Any, int], ann2snn.FXConversionRecipe]
    fitted: bool = True
    distilled: bool = False
    energy_budget: float | None = None


def _ours(label: str, distilled: bool = False, **options: Any) -> Setting:
    def recipe(loader: Any, steps: int) -> sj_burst.BurstRecipe:
        return sj_burst.BurstRecipe(loader, time_steps=steps, **options)

    budget = options.get("energy_budget")
    return Setting(label, options["max_spikes"], recipe, distilled=distilled, energy_budget=budget)


def _within(
    budget: float, distilled: bool = False, images: int = 256, expected: str = "none"
) -> Setting:
    label = f"sj_burst, Γ=15, energy {budget}" + _of_expected(expected)
    label += ", distilled" if distilled else ""
    label += f", {images} images" if images != 256 else ""
    options = {"threshold": "rate_distortion", "energy_budget": budget, "max_spikes": 15}
    return _ours(label, distilled, calibration_images=images, expected_spikes=expected, **options)


def _of_expected(expected: str) -> str:
    return "" if expected == "none" else ", expected spikes"


def _preset(name: str, fitted: bool) -> Setting:
    def recipe(loader: Any, steps: int) -> sj_burst.BurstRecipe:
        return sj_burst.BurstRecipe(loader, sj_burst.Options.preset(name, time_steps=steps))

    return Setting(f"preset {name}", sj_burst.PRESETS[name].max_spikes, recipe, fitted)


def _spikingjelly(label: str, **options: Any) -> Setting:
    def recipe(loader: Any, _: int) -> ann2snn.FXConversionRecipe:
        return ann2snn.RateCodingRecipe(loader, **options)

    return Setting(f"SpikingJelly {label}", 1, recipe, fitted=False)


def _balanced(loader: Any, _: int) -> ann2snn.FXConversionRecipe:
    return ann2snn.LocalThresholdBalancingRecipe(loader)


SETTINGS = [
    _spikingjelly("max", mode="max"),
    _spikingjelly("99.9%", mode="99.9%"),
    _spikingjelly("99.9%, channel-wise", mode="99.9%", channel_wise=True),
    Setting("SpikingJelly local threshold balancing", 1, _balanced, fitted=False),
    _preset("diehl2015", fitted=False),
    _preset("burst", fitted=False),
    _preset("spicalib", fitted=False),  # "burst" up to T = 65: converting it warns of that
    _preset("opi", fitted=False),
    _preset("ic_snn", fitted=True),
    _preset("rts", fitted=True),
    _preset("adafire", fitted=True),
    _preset("calibration_light", fitted=True),
    _preset("calibration_advanced", fitted=True),
    *(_ours(f"sj_burst, Γ={gamma}", max_spikes=gamma) for gamma in (1, 4, 15)),
    *(_ours(f"sj_burst, Γ={gamma}, distilled", True, max_spikes=gamma) for gamma in (1, 4, 15)),
    *(
        _ours(f"sj_burst, Γ={gamma} by sensitivity", max_spikes=gamma, burst_allocation="sensitivity")
        for gamma in (4, 15)
    ),
    *(_within(budget, distilled) for distilled in (False, True) for budget in (0.3, 0.2, 0.15, 0.1)),
    *(_within(budget, images=1000) for budget in (0.3, 0.2, 0.15, 0.1)),
    *(
        _within(budget, distilled, images, "median")
        for distilled, images in ((False, 256), (True, 256), (False, 1000))
        for budget in (0.3, 0.2, 0.15, 0.1)
    ),
    *(
        _ours(f"sj_burst, Γ={gamma}, expected spikes", max_spikes=gamma, expected_spikes="median")
        for gamma in (1, 4, 15)
    ),
    *(_ours(f"sj_burst, Γ=4, {b}-bit weights", max_spikes=4, weight_bits=b) for b in (8, 4)),
    *(
        _ours(f"sj_burst, Γ={gamma}, uncalibrated", max_spikes=gamma, calibration="none")
        for gamma in (1, 4, 15)
    ),
]


def trained_network(
    args: argparse.Namespace, training: "Dataset[Any]", classes: int
) -> tuple[nn.Module, str]:
    """The network with the weights asked for, trained if there are none; and their name."""
    if args.weights == "DEFAULT":
        from torchvision import models

        return models.get_model(args.network, weights="DEFAULT").eval(), f"{args.network}_DEFAULT"
    net = make(args.network, classes)
    count = min(args.train_images or len(training), len(training))  # type: ignore[arg-type]
    name = f"{args.network}_{args.dataset}_{count}images_epochs{args.epochs}_seed{args.seed}"
    name += f"_shift{args.shift}.pt" if args.shift != SHIFT else ".pt"
    path = Path(args.weights) if args.weights else RUNS / name
    if not path.exists():
        if args.weights:
            raise SystemExit(f"--weights: there is no file {path}")
        torch.manual_seed(args.seed)
        net = make(args.network, classes).to(memory_format=torch.channels_last)
        data = next(iter(DataLoader(Subset(training, range(count)), count)))
        train(net, data, args.epochs, device=args.device, seed=args.seed, shift=args.shift)
        keep(net, path)
    net.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    return net.eval(), path.stem


def draw(training: "Dataset[Any]", count: int, seed: int) -> DataLoader[Any]:
    """Batches of calibration images."""
    return DataLoader(_some(training, count, seed), 64)


def _some(training: "Dataset[Any]", count: int, seed: int) -> "Dataset[Any]":
    generator = torch.Generator().manual_seed(seed)
    size = len(training)  # type: ignore[arg-type]
    return Subset(training, torch.randperm(size, generator=generator)[:count].tolist())


def shuffled(training: "Dataset[Any]", count: int, seed: int) -> DataLoader[Any]:
    """Batches of images to distil from, whose labels nobody looks at."""
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(_some(training, count, seed), 100, shuffle=True, generator=generator)


def measure(
    setting: Setting,
    ann: nn.Module,
    loader: Any,
    test: Any,
    wanted: list[int],
    device: str,
    distil: Callable[..., nn.Module],
) -> list[dict[str, Any]]:
    """Accuracy, spikes, synaptic operations, energy and seconds per image at each T."""
    rows = []
    snn: nn.Module | None = None
    result: sj_burst.SimulationResult | None = None
    for steps in wanted:
        if snn is None or setting.fitted:
            snn = ann2snn.Converter(setting.recipe(loader, steps), device=device).convert(ann)
            if setting.distilled:
                snn = distil(snn, ann, time_steps=steps, energy_budget=setting.energy_budget)
            result = sj_burst.simulate(snn, test, steps if setting.fitted else max(wanted))
        assert result is not None
        operations = result.operations  # of all its steps
        if operations is None or operations.time_steps != steps:
            operations = sj_burst.synops(snn, list(islice(test, COUNTED_BATCHES)), steps)
        share = steps / len(result.accuracy)
        rows.append(
            {
                "T": steps,
                "accuracy": f"{100 * result.accuracy[steps - 1].item():.2f}",
                "spikes": f"{result.total_spikes[steps - 1].item():.0f}",
                "synops": f"{operations.synops:.4g}",
                "microjoules": f"{operations.energy / 1e6:.4g}",
                "binary_microjoules": f"{operations.energies['binary'] / 1e6:.4g}",
                "graded_microjoules": f"{operations.energies['graded'] / 1e6:.4g}",
                "ann_microjoules": f"{operations.ann_energy / 1e6:.4g}",
                "seconds": f"{share * result.seconds / result.samples:.3g}",
            }
        )
    return rows


IMAGES = ("weights", "test_images", "calibration_images", "seed")
KEY = ("setting", "T", "draw", *IMAGES)
ENERGIES = ("microjoules", "binary_microjoules", "graded_microjoules", "ann_microjoules")
MEASURES = ("accuracy", "spikes", "synops", *ENERGIES, "seconds")
FIELDS = [*KEY, "ann", *MEASURES]


def read(path: Path) -> list[dict[str, str]]:
    """Rows found so far."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        missing = {"binary_microjoules", "graded_microjoules"}  # of older tables
        if not set(FIELDS) - missing <= set(reader.fieldnames or ()) <= set(FIELDS):
            raise SystemExit(f"{path} has other columns than {FIELDS}; move it away")
        return [dict.fromkeys(FIELDS, "") | row for row in reader]


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add rows to a table, which may be of fewer columns so far."""
    known, temporary = read(path), path.with_suffix(".tmp")
    with open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows([*known, *rows])
    os.replace(temporary, path)


def row_label(setting: Setting, args: argparse.Namespace) -> str:
    """The setting, and how it was distilled if that is not the usual way."""
    label = setting.label
    if setting.distilled and args.distil_epochs != DISTIL_EPOCHS:
        label += f", {args.distil_epochs} epochs"
    if setting.distilled and args.distil_images != DISTIL_IMAGES:
        label += f", {args.distil_images} training images"
    return label


def check_same_network(path: Path, fixed: dict[str, Any], accuracy: float) -> None:
    """Refuse a table of another network or other data by the same names."""
    for row in read(path):
        same = all(row[k] == str(v) for k, v in fixed.items())
        if same and abs(float(row["ann"]) - accuracy) > MOVES:
            raise SystemExit(
                f"{path} has rows of an ANN with {row['ann']} %, and this one has {accuracy:.2f} %: "
                "other weights or other data of the same name; move it away, or pass other --figures"
            )


MOVES = 0.3  # points by which the accuracy of one network differs between machines


# Column of the CSV, title, factor, and digits after the point.
TABLES = (
    ("accuracy", "Accuracy (%), mean ± standard deviation over draws", 1, 2),
    ("spikes", "Spikes per image (×1000)", 1e-3, 1),
    ("microjoules", "Energy per image (µJ; 0.9 pJ per SynOp, 4.6 pJ per MAC; n events a burst)", 1, 2),
    ("binary_microjoules", "Energy per image (µJ), a burst in binary", 1, 2),
    ("graded_microjoules", "Energy per image (µJ), a burst as one event and a MAC", 1, 2),
    ("seconds", "Wall time per image (ms), at different times on a shared machine", 1e3, 2),
)


def markdown(rows: list[dict[str, str]], name: str) -> str:
    """Tables of all rows: for each set of images, every measure at each T that it was taken at."""
    sets: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        sets[tuple(row[k] for k in IMAGES)].append(row)
    return "\n".join(_tables(part, name) for part in sets.values())


def _tables(rows: list[dict[str, str]], name: str) -> str:
    cells: dict[str, dict[int, list[dict[str, str]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        cells[row["setting"]][int(row["T"])].append(row)
    order = {setting.label: number for number, setting in enumerate(SETTINGS)}

    def place(label: str) -> tuple[int, str]:
        known = [setting for setting in order if label.startswith(setting)]
        return order[max(known, key=len)] if known else len(order), label

    row = rows[0]
    parts = [
        f"# {name}: ANN {row['ann']} % of {row['test_images']} test images",
        f"{row['calibration_images']} calibration images; seed {row['seed']}; weights {row['weights']}.",
    ]
    for measure, caption, factor, digits in TABLES:
        columns = sorted({int(row["T"]) for row in rows if row[measure]})
        if not columns:
            continue
        heads = " | ".join(f"T = {t}" for t in columns)
        lines = [f"| | {heads} |", "| - |" + " - |" * len(columns)]
        for label in sorted(cells, key=place):
            line = []
            for t in columns:
                found = [float(row[measure]) for row in cells[label][t] if row[measure]]
                values = torch.tensor(found) * factor
                spread = measure == "accuracy" and len(values) > 1
                deviation = f" ± {values.std():.{digits}f}" if spread else ""
                line.append(f"{values.mean():.{digits}f}{deviation}" if len(values) else "")
            lines.append(f"| {label} | " + " | ".join(line) + " |")
        parts += [caption, "\n".join(lines)]
    energies = [row["ann_microjoules"] for row in rows if row["ann_microjoules"]]
    if energies:
        least = min(energies, key=float)  # with BatchNorm folded
        parts.append(f"The ANN spends {least} µJ per image by the same count.")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--network", default="vgg", help="vgg, resnet, resnet20, vgg16, or of torchvision")
    p.add_argument("--weights", help="state dict, or DEFAULT for torchvision's; default: train")
    p.add_argument("--shift", type=int, default=SHIFT, help="of training images, in pixels, at most")
    p.add_argument("--dataset", choices=DATASETS, default="fashion-mnist")
    p.add_argument("--draws", type=int, default=1, help="draws of the calibration images")
    p.add_argument(
        "--distil-images", type=int, default=DISTIL_IMAGES, help="of the training split, for each draw"
    )
    p.add_argument("--distil-epochs", type=int, default=DISTIL_EPOCHS)
    p.add_argument("--only", nargs="*", default=["*"], help="labels of settings, or patterns")
    p.add_argument("--time-steps", "-T", type=int, nargs="*", default=list(STEPS), help="T of the table")
    args = p.parse_args()

    splits = DATASETS[args.dataset](args.data)
    training, held = splits["train"], splits["test"]
    count = min(args.test_images, len(held))  # type: ignore[arg-type]
    test = DataLoader(Subset(held, range(count)), 100)
    classes = len(getattr(training, "classes", range(10)))
    ann, weights = trained_network(args, training, classes)
    ann.to(args.device)
    ann_accuracy = 100 * accuracy(ann, list(test), args.device)
    print(f"{args.network}, {args.dataset}: ANN {ann_accuracy:.2f} % of {count} test images")

    args.figures.mkdir(parents=True, exist_ok=True)
    name = weights if args.weights else args.network
    path = args.figures / f"08_{name}_{args.dataset}.csv"
    fixed = {
        "weights": weights,
        "test_images": count,
        "calibration_images": args.calibration_images,
        "seed": args.seed,
    }
    check_same_network(path, fixed, ann_accuracy)
    chosen = [s for s in SETTINGS if any(fnmatchcase(s.label, pattern) for pattern in args.only)]
    # SpikingJelly refuses functional ReLUs and pads: its recipes are given the rewritten network.
    rewritten = sj_burst.standardize(without_padding(ann), next(iter(test))[0][:2].to(args.device))
    for number in range(args.draws):
        loader = draw(training, args.calibration_images, args.seed + number)
        for setting in chosen:
            label = row_label(setting, args)
            key = {"setting": label, "draw": number} | fixed
            known = {tuple(row[k] for k in KEY) for row in read(path)}
            wanted = [
                t for t in args.time_steps if tuple(str((key | {"T": t})[k]) for k in KEY) not in known
            ]
            if not wanted:
                continue
            source = rewritten if setting.label.startswith("SpikingJelly") else ann
            distil = functools.partial(
                sj_burst.training.distil,
                loader=shuffled(training, args.distil_images, args.seed + number),
                epochs=args.distil_epochs,
                weight_lr=3e-3,
            )
            rows = measure(setting, source, loader, test, wanted, args.device, distil)
            append(path, [key | {"ann": f"{ann_accuracy:.2f}"} | row for row in rows])
            found = "  ".join(f"T={row['T']}: {row['accuracy']}" for row in rows)
            print(f"draw {number}  {label:40s} {found}", flush=True)

    path.with_suffix(".md").write_text(markdown(read(path), f"{args.network}, {args.dataset}"))
    print(f"wrote {path.name} and {path.with_suffix('.md').name}")


if __name__ == "__main__":
    main()
