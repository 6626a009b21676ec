"""Tables of accuracy for a network and its settings, over draws of the calibration images.

    python tutorials/08_benchmark.py                       # the quickstart VGG, Fashion-MNIST
    python tutorials/08_benchmark.py --network resnet20 --cifar IMAGES.npz --weights STATE.pt

The CIFAR ResNet-20 wants a state dict of github.com/akamaster/pytorch_resnet_cifar10 and a file of JPEG
images with the arrays train_jpeg, train_end and train_label, and test_ likewise. Every row is
converted once per draw of calibration images from the training split; the table shows mean ± standard
deviation of accuracy (percent) over the draws, and spikes per image. Written to figures/ as CSV.
"""

import argparse
import csv
import io
from pathlib import Path

import numpy as np
import torch
from common import accuracy, batched, fashion_mnist, parser, quickstart_network
from networks import CifarResNet
from PIL import Image
from spikingjelly.activation_based import ann2snn
from torch import Tensor, nn

import sj_burst

# Label, T, and the options that differ from the defaults.
ROWS: list[tuple[str, int, dict[str, object]]] = [
    ("default", 4, {"max_spikes": 15}),
    ("default", 4, {"max_spikes": 4}),
    ("default", 8, {"max_spikes": 1}),
    ("light", 4, {"max_spikes": 4, "calibration": "light"}),
    ("advanced", 2, {"max_spikes": 15, "calibration": "advanced"}),
    ("advanced", 4, {"max_spikes": 4, "calibration": "advanced"}),
    ("advanced", 4, {"max_spikes": 1, "calibration": "advanced"}),
    (
        *("advanced, 1000 images", 4),
        {"max_spikes": 1, "calibration": "advanced", "calibration_images": 1000},
    ),
    ("advanced", 8, {"max_spikes": 1, "calibration": "advanced"}),
    ("advanced", 16, {"max_spikes": 1, "calibration": "advanced"}),
]


def cifar10(path: Path, split: str, count: int, skip: int = 0) -> tuple[Tensor, Tensor]:
    """Images normalised by ImageNet's mean and standard deviation, and labels."""
    file = np.load(path)
    data, ends, labels = (file[f"{split}_{name}"] for name in ("jpeg", "end", "label"))
    starts = np.concatenate([[0], ends[:-1]])
    images = [
        np.asarray(Image.open(io.BytesIO(data[starts[i] : ends[i]].tobytes())))
        for i in range(skip, min(skip + count, len(ends)))
    ]
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (x - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    return x, torch.from_numpy(labels[skip : skip + len(x)].astype(np.int64))


def problem(args: argparse.Namespace) -> tuple[nn.Module, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Network, training split, test split."""
    if args.network == "vgg":
        data = fashion_mnist(args.data)
        return quickstart_network(args, data["train"]), data["train"], data["test"]
    if not (args.cifar and args.weights):
        raise SystemExit("--network resnet20 wants --cifar and --weights")
    net = CifarResNet()
    net.load_state_dict(torch.load(args.weights, weights_only=True))
    return net.eval(), cifar10(args.cifar, "train", 5000), cifar10(args.cifar, "test", args.test_images)


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--network", choices=["vgg", "resnet20"], default="vgg")
    p.add_argument("--cifar", type=Path, help="file of CIFAR-10 images")
    p.add_argument("--weights", type=Path, help="state dict of the ResNet-20")
    p.add_argument("--draws", type=int, default=1, help="draws of the calibration images")
    p.add_argument("--only", default="", help="rows whose label contains this")
    args = p.parse_args()

    ann, train, test_split = problem(args)
    test = batched(test_split, args.test_images)
    ann.to(args.device)
    ann_accuracy = 100 * accuracy(ann, test, args.device)
    print(f"ANN {ann_accuracy:.2f} % of {sum(len(y) for _, y in test)} test images")
    table = []
    for label, steps, options in ROWS:
        name = f"{label}, Γ={options['max_spikes']}, T={steps}"
        if args.only not in name:
            continue
        found = []
        for draw in range(args.draws):
            order = torch.randperm(
                len(train[0]), generator=torch.Generator().manual_seed(args.seed + draw)
            )
            images = train[0][order[: args.calibration_images]].split(100)
            recipe = sj_burst.BurstRecipe(list(images), time_steps=steps, **options)
            snn = ann2snn.Converter(recipe, device=args.device).convert(ann)
            result = sj_burst.simulate(snn, test, steps)
            found.append((100 * result.accuracy[-1].item(), result.total_spikes[-1].item()))
        values = torch.tensor(found)
        spread = values[:, 0].std().item() if len(found) > 1 else 0.0
        mean, spikes = values.mean(0).tolist()
        table.append(
            [name, f"{mean:.2f}", f"{spread:.2f}", f"{ann_accuracy - mean:.2f}", f"{spikes:.0f}"]
        )
        print(
            f"{name:28s} {mean:6.2f} ± {spread:4.2f}  "
            f"drop {ann_accuracy - mean:5.2f}  spikes {spikes:9.0f}",
            flush=True,
        )

    args.figures.mkdir(parents=True, exist_ok=True)
    with open(args.figures / f"08_{args.network}.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["setting", "accuracy", "spread", "drop", "spikes per image"])
        writer.writerow(["ANN", f"{ann_accuracy:.2f}", "", "", ""])
        writer.writerows(table)


if __name__ == "__main__":
    main()
