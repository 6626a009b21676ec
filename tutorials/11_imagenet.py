r"""An ImageNet network on your own photographs: from a trained network to accuracy over time.

    python tutorials/11_imagenet.py --data PHOTOS --network resnet50
    python tutorials/11_imagenet.py --data PHOTOS --onnx network.onnx
    python tutorials/11_imagenet.py --data imagenet-photos.npz --network squeezenet1_0 \
        --weights imagenet-squeezenet1_0.pt --pixels caffe

PHOTOS is a folder of image files, or of a folder for each of the network's classes in alphabetical
order (without labels, agreement with the ANN is all that is measured), or a file as in loaders.py.
Photos with an even number calibrate, those with an odd number test. Every setting Γ:T is converted for
each draw of the calibration photos; with --distil EPOCHS it is then fitted to the answers of the ANN on
random crops of all photos that calibrate, without labels. Prints points below the ANN and agreement, and
what conversion took; writes figures/11_imagenet_NETWORK.csv and .png. Needs torchvision; on two cores a
setting of SqueezeNet takes about four minutes, and an epoch of --distil one or two.
"""

import argparse
import csv
import itertools
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import parser, save
from loaders import IMAGENET, photographs
from torch import Tensor, nn

import sj_burst

BATCH = 16


def caffe(pixels: Tensor) -> Tensor:
    """The central 227×227 pixels in the order B, G, R, less the mean."""
    return pixels[..., 14:241, 14:241].flip(-3).float() - torch.tensor([104.0, 117, 123]).view(3, 1, 1)


def imagenet(pixels: Tensor) -> Tensor:
    """The central 224×224 pixels, normalised as torchvision's networks want them."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in IMAGENET)
    return (pixels[..., 16:240, 16:240].float() / 255 - mean) / std


PIXELS = {"imagenet": imagenet, "caffe": caffe}


class Crops:
    """Batches of random crops, flipped at random, half of them blended with another photo.

    A few hundred photos are soon known by heart; of blends there is no end, and the ANN has an answer
    to each.
    """

    def __init__(self, pixels: Tensor, prepare: Any, seed: int) -> None:
        self.pixels, self.prepare = pixels, prepare
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self.pixels) // BATCH)

    def __iter__(self) -> Iterator[Tensor]:
        for chosen in torch.randperm(len(self.pixels), generator=self.generator).split(BATCH):
            crops = torch.stack([self._crop(self.pixels[i]) for i in chosen])
            if torch.rand((), generator=self.generator) < 0.5:
                share = torch.rand(len(crops), 1, 1, 1, generator=self.generator)
                crops = share * crops + (1 - share) * crops.roll(1, 0)
            yield self.prepare(crops)

    def _crop(self, pixels: Tensor) -> Tensor:
        """A square of 60 to 100 % of the sides, as large as the photo again."""
        whole = pixels.shape[-1]
        side = int(whole * (0.6 + 0.4 * torch.rand((), generator=self.generator).item()))
        top, left = torch.randint(0, whole - side + 1, (2,), generator=self.generator).tolist()
        part = pixels[None, :, top : top + side, left : left + side].float()
        crop = F.interpolate(part, (whole, whole), mode="bilinear", antialias=True, align_corners=False)[
            0
        ]
        return crop.flip(2) if torch.rand((), generator=self.generator) < 0.5 else crop


def network(args: argparse.Namespace) -> nn.Module:
    """The trained network."""
    if args.onnx:
        import onnx2torch

        return onnx2torch.convert(str(args.onnx)).eval()
    from torchvision import models

    if args.weights == "DEFAULT":
        return models.get_model(args.network, weights="DEFAULT").eval()
    net = models.get_model(args.network, weights=None)
    net.load_state_dict(torch.load(args.weights, weights_only=True, map_location="cpu"))
    return net.eval()


def batches(x: Tensor, prepare: Any, labels: Tensor | None = None) -> list[Any]:
    """Batches of prepared photos, with labels if there are any."""
    parts = [prepare(part) for part in x.split(BATCH)]
    return parts if labels is None else list(zip(parts, labels.split(BATCH), strict=True))


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--network", default="squeezenet1_0", help="of torchvision")
    p.add_argument("--weights", default="DEFAULT", help="state dict, or DEFAULT for torchvision's")
    p.add_argument("--onnx", type=Path, help="a network in a file, in place of --network")
    p.add_argument("--pixels", choices=PIXELS, default="imagenet", help="what the network takes")
    p.add_argument("--settings", nargs="*", default=["15:2", "4:4", "1:8", "1:16"], help="Γ:T")
    p.add_argument("--weight-bits", nargs="*", type=int, default=[32], help="of the weights; 32: as is")
    p.add_argument("--draws", type=int, default=1, help="draws of the calibration photos")
    p.add_argument("--distil", type=int, default=0, help="epochs of distillation")
    p.add_argument("--weight-lr", type=float, default=2e-4, help="of distillation")
    p.set_defaults(calibration_images=256, test_images=500)
    args = p.parse_args()

    pixels, labels = photographs(Path(args.data or "photos"))
    prepare = PIXELS[args.pixels]
    ann = network(args).to(args.device)
    shown = pixels[1::2][: args.test_images]
    with torch.no_grad():
        answers = torch.cat([ann(x.to(args.device)).argmax(1).cpu() for x in batches(shown, prepare)])
    truth = answers if labels is None else labels[1::2][: args.test_images]
    ann_accuracy = (answers == truth).float().mean().item()
    name = args.onnx.stem if args.onnx else args.network
    print(f"{name}: ANN {100 * ann_accuracy:.1f} % of {len(shown)} photos; points lost / agreement")

    results: dict[str, Any] = {}
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    rows = []
    for number in range(args.draws):
        generator = torch.Generator().manual_seed(args.seed + number)
        even = pixels[0::2][torch.randperm(len(pixels[0::2]), generator=generator)]
        calibration = batches(even[: args.calibration_images], prepare)
        for setting, bits in itertools.product(args.settings, args.weight_bits):
            gamma, steps = map(int, setting.split(":"))
            start = time.time()
            snn = sj_burst.convert(
                ann,
                calibration,
                max_spikes=gamma,
                time_steps=steps,
                calibration_images=args.calibration_images,
                output="potential",
                weight_bits=None if bits == 32 else bits,
            )
            if args.distil:
                crops = Crops(even, prepare, args.seed + number)
                weight_lr = args.weight_lr if bits == 32 else 0  # rounded weights stay
                options = {"epochs": args.distil, "weight_lr": weight_lr}
                snn = sj_burst.training.distil(snn, ann, crops, **options)
            seconds = time.time() - start
            result = sj_burst.simulate(snn, batches(shown, prepare, truth), steps)
            lost = 100 * (ann_accuracy - result.accuracy[-1].item())
            agreement = 100 * (result.output.argmax(1) == answers).float().mean().item()
            label = f"Γ={gamma}, T={steps}" + (f", {bits} bits" if bits < 32 else "")
            label += f", {args.distil} epochs" if args.distil else ""
            print(
                f"draw {number}  {label:24s} {lost:5.1f} / {agreement:.1f}   {seconds:.0f} s", flush=True
            )
            found[label].append((lost, agreement))
            results.setdefault(label, result)
            keys = {"draw": number, "max_spikes": gamma, "time_steps": steps, "distil": args.distil}
            keys["weight_bits"] = bits
            values = {
                "lost": f"{lost:.2f}",
                "agreement": f"{agreement:.2f}",
                "seconds": f"{seconds:.0f}",
            }
            rows.append({"network": name, "seed": args.seed} | keys | values)
            append(args.figures / f"11_imagenet_{name}.csv", rows[-1:])

    for label, pairs in found.items():
        lost, agreement = torch.tensor(pairs).T
        spread = f" ± {lost.std():.1f} / ± {agreement.std():.1f}" if len(pairs) > 1 else ""
        print(f"{label:24s} {lost.mean():5.1f} / {agreement.mean():.1f}{spread}")
    fig, ax = sj_burst.plot.accuracy_vs_time(results, ann_accuracy=ann_accuracy)
    ax.set_title(f"{name}, {len(shown)} photos", fontsize="medium")
    save(fig, args, f"11_imagenet_{name}.png")


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add rows to a table, so that what was measured is kept if the rest is interrupted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
