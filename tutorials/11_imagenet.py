r"""An ImageNet network on your own photographs: from a trained network to accuracy over time.

    python tutorials/11_imagenet.py --data PHOTOS --network resnet50
    python tutorials/11_imagenet.py --data PHOTOS --onnx network.onnx
    python tutorials/11_imagenet.py --data imagenet-photos.npz --network squeezenet1_0 \
        --weights imagenet-squeezenet1_0.pt --pixels caffe

PHOTOS is a folder of image files, or of a folder for each of the network's classes in alphabetical
order (without labels, agreement with the ANN is all that is measured), or a file as in loaders.py.
Photos with an even number calibrate, those with an odd number test. Every setting Γ:T is converted for
each draw of the calibration photos; with --distil EPOCHS it is then fitted to the answers of the ANN on
random crops of all photos that calibrate, without labels. With --energy-budget B thresholds are those
of "rate_distortion" within B of the ANN's energy; with --burst-allocation sensitivity each layer has its
own Γ, of which that of the setting is the mean; with --expected-spikes median, neurons send what differs
from the median of their channel; with --weight-bits 8-4-8 the first and the last layer have weights of 8
bits, the others of 4. Prints points below the ANN and agreement, energy as a share of the ANN's, and
what conversion took; writes figures/11_imagenet_NETWORK.csv and .png. Needs torchvision; on two cores a
setting of SqueezeNet takes about four minutes, and an epoch of --distil one or two. With --rounding it
prints by layer what rounding to --weight-bits adds to the error of the currents, beside that of counts
in T steps, and ends.
"""

import argparse
import csv
import dataclasses
import itertools
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

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


def batches(x: Tensor, prepare: Any) -> list[Tensor]:
    """Batches of prepared photos."""
    return [prepare(part) for part in x.split(BATCH)]


class Setting(NamedTuple):
    """How the network is converted."""

    max_spikes: int
    time_steps: int
    weight_bits: str  # "32": weights as they are; "8-4-8": of the first layer, the others, the last
    energy_budget: float  # 1: thresholds of least error, whatever they cost
    burst_allocation: str
    expected_spikes: str
    distil: int  # epochs

    def __str__(self) -> str:
        mean = "" if self.burst_allocation == "uniform" else f" by {self.burst_allocation}"
        label = f"Γ={self.max_spikes}{mean}, T={self.time_steps}"
        label += f", {self.weight_bits} bits" if self.weight_bits != "32" else ""
        label += f", energy {self.energy_budget}" if self.energy_budget != 1 else ""
        label += ", expected spikes" if self.expected_spikes != "none" else ""
        return label + (f", {self.distil} epochs" if self.distil else "")

    def bits(self, ann: nn.Module) -> int | dict[str, int] | None:
        """Those of the weights."""
        first, *others = map(int, self.weight_bits.split("-"))
        if not others:
            return None if first == 32 else first
        layers = [n for n, m in ann.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        between, last = others
        return {layers[0]: first, layers[-1]: last, "*": between}

    def options(self, ann: nn.Module) -> sj_burst.Options:
        """Those of the conversion."""
        options = sj_burst.Options(
            max_spikes=self.max_spikes,
            time_steps=self.time_steps,
            burst_allocation=self.burst_allocation,
            expected_spikes=self.expected_spikes,
            output="potential",
            weight_bits=self.bits(ann),
        )
        if self.energy_budget == 1:
            return options
        within: dict[str, Any] = {"threshold": "rate_distortion", "energy_budget": self.energy_budget}
        return dataclasses.replace(options, **within)


def converted(
    ann: nn.Module, even: Tensor, setting: Setting, args: argparse.Namespace, seed: int
) -> sj_burst.SpikingNetwork:
    """The network converted with the first of these photos, and distilled with all of them."""
    prepare = PIXELS[args.pixels]
    options = dataclasses.replace(setting.options(ann), calibration_images=args.calibration_images)
    snn = sj_burst.convert(ann, batches(even[: args.calibration_images], prepare), options)
    if not setting.distil:
        return snn
    return sj_burst.training.distil(
        snn,
        ann,
        Crops(even, prepare, seed),
        epochs=setting.distil,
        weight_lr=args.weight_lr if setting.weight_bits == "32" else 0,  # rounded weights stay
        energy_budget=None if setting.energy_budget == 1 else setting.energy_budget,
    )


@torch.no_grad()
def rounding_errors(
    ann: nn.Module, x: list[Tensor], setting: Setting
) -> Iterator[tuple[str, float, float]]:
    """By layer the squared errors of its mean currents, as shares of their variance.

    That of spikes in place of activations, and that of rounded weights. Nothing is calibrated, so that
    with and without rounding the thresholds are the same.
    """
    options = dataclasses.replace(setting.options(ann), calibration="none")
    rounded = sj_burst.convert(ann, x, options)
    snn = sj_burst.convert(ann, x, dataclasses.replace(options, weight_bits=None))
    inputs: dict[tuple[nn.Module, str], Tensor] = {}

    def noted(net: nn.Module, name: str) -> Any:
        return lambda _, given, __: inputs.__setitem__((net, name), given[0])

    layers = {n: m for n, m in snn.graph.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    for name in layers:
        for net in (ann, snn.graph):
            net.get_submodule(name).register_forward_hook(noted(net, name))
    ann(x[0])
    snn.run(x[0], setting.time_steps)
    for name, layer in layers.items():
        a = inputs[ann, name]
        y = inputs[snn.graph, name].unflatten(0, (-1, len(x[0]))).mean(0)
        wanted, out = layer(a), layer(y)
        errors = (out - wanted, rounded.graph.get_submodule(name)(y) - out)
        spikes, weights = (error.square().mean().item() / wanted.var().item() for error in errors)
        yield name, spikes, weights


def print_rounding(ann: nn.Module, x: list[Tensor], setting: Setting) -> None:
    """What :func:`rounding_errors` finds, a line for each layer."""
    print(f"{setting}: squared errors of the currents, as shares of their variance")
    for layer, spikes, weights in rounding_errors(ann, x, setting):
        share = f"{100 * weights / spikes:.1f} % of it" if spikes else ""
        print(f"{layer:36s} spikes {spikes:.5f}   weights {weights:.5f}   {share}")


def measured(
    result: sj_burst.SimulationResult, answers: Tensor, ann_accuracy: float
) -> dict[str, float]:
    """Points lost, agreement with the ANN's answers, and energies as shares of the ANN's."""
    assert result.accuracy is not None and result.operations is not None
    energies = result.operations.energies
    return {
        "lost": 100 * (ann_accuracy - result.accuracy[-1].item()),
        "agreement": 100 * (result.output.argmax(1) == answers).float().mean().item(),
        **{name: energies[name] / result.operations.ann_energy for name in ("unary", "binary")},
    }


def main() -> None:
    p = parser(__doc__, without=("--epochs", "--train-images"))
    p.add_argument("--network", default="squeezenet1_0", help="of torchvision")
    p.add_argument("--weights", default="DEFAULT", help="state dict, or DEFAULT for torchvision's")
    p.add_argument("--onnx", type=Path, help="a network in a file, in place of --network")
    p.add_argument("--pixels", choices=PIXELS, default="imagenet", help="what the network takes")
    p.add_argument("--settings", nargs="*", default=["15:2", "4:4", "1:8", "1:16"], help="Γ:T")
    p.add_argument("--weight-bits", nargs="*", default=["32"], help="of the weights; 32: as is")
    p.add_argument("--energy-budget", nargs="*", type=float, default=[1.0], help="share of the ANN's")
    p.add_argument(
        "--burst-allocation", nargs="*", default=["uniform"], help="as the option; Γ is the mean then"
    )
    p.add_argument("--expected-spikes", nargs="*", default=["none"], help="as the option")
    p.add_argument("--draws", type=int, default=1, help="draws of the calibration photos")
    p.add_argument("--distil", type=int, default=0, help="epochs of distillation")
    p.add_argument("--weight-lr", type=float, default=2e-4, help="of distillation")
    p.add_argument("--rounding", action="store_true", help="what few bits add to the errors of layers")
    p.set_defaults(calibration_images=256, test_images=500)
    args = p.parse_args()

    pixels, labels = photographs(Path(args.data or "photos"))
    ann = network(args).to(args.device)
    shown = pixels[1::2][: args.test_images]
    test = batches(shown, PIXELS[args.pixels])
    with torch.no_grad():
        answers = torch.cat([ann(x.to(args.device)).argmax(1).cpu() for x in test])
    truth = answers if labels is None else labels[1::2][: args.test_images]
    ann_accuracy = (answers == truth).float().mean().item()
    name = args.onnx.stem if args.onnx else args.network
    print(f"{name}: ANN {100 * ann_accuracy:.1f} % of {len(shown)} photos")
    print(f"{'':36s} lost / agreement, energy (in binary) / ANN's, conversion")

    results: dict[str, Any] = {}
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    kinds = (args.settings, args.weight_bits, args.energy_budget)
    chosen = list(itertools.product(*kinds, args.burst_allocation, args.expected_spikes))
    if args.rounding:
        photos = batches(pixels[0::2][: args.calibration_images], PIXELS[args.pixels])
        for steps, *others in chosen:
            setting = Setting(*map(int, steps.split(":")), *others, args.distil)
            print_rounding(ann, [x.to(args.device) for x in photos], setting)
        return
    for number, (steps, *others) in itertools.product(range(args.draws), chosen):
        setting = Setting(*map(int, steps.split(":")), *others, args.distil)
        generator = torch.Generator().manual_seed(args.seed + number)
        even = pixels[0::2][torch.randperm(len(pixels[0::2]), generator=generator)]
        start = time.time()
        snn = converted(ann, even, setting, args, args.seed + number)
        seconds = time.time() - start
        result = sj_burst.simulate(
            snn, list(zip(test, truth.split(BATCH), strict=True)), setting.time_steps
        )
        values = measured(result, answers, ann_accuracy)
        print(f"draw {number}  {setting!s:28s} {line(values)}   {seconds:.0f} s", flush=True)
        found[str(setting)].append(values)
        results.setdefault(str(setting), result)
        keys = {"network": name, "seed": args.seed, "draw": number} | setting._asdict()
        keys["calibration_images"] = args.calibration_images
        texts = {key: f"{value:.4g}" for key, value in values.items()}
        append(args.figures / f"11_imagenet_{name}.csv", keys | texts | {"seconds": f"{seconds:.0f}"})

    for label, draws in found.items():
        columns = {key: torch.tensor([values[key] for values in draws]) for key in draws[0]}
        text = f"{label:36s} {line({key: column.mean().item() for key, column in columns.items()})}"
        if len(draws) > 1:
            text += f"   ± {columns['lost'].std():.1f} / ± {columns['agreement'].std():.1f}"
        print(text)
    fig, ax = sj_burst.plot.accuracy_vs_time(results, ann_accuracy=ann_accuracy)
    ax.set_title(f"{name}, {len(shown)} photos", fontsize="medium")
    save(fig, args, f"11_imagenet_{name}.png")


def line(values: dict[str, float]) -> str:
    """What was measured, in one line."""
    cells = f"{values['lost']:5.1f} / {values['agreement']:.1f}"
    return f"{cells}   {values['unary']:.3f} ({values['binary']:.3f})"


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row to a table, so that what was measured is kept if the rest is interrupted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    if not new and path.read_text().partition("\n")[0] != ",".join(row):
        raise SystemExit(f"{path} has other columns than {', '.join(row)}; move it away")
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
