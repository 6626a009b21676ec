"""Convert a network from an .onnx file, as other frameworks write them too.

    python tutorials/14_onnx.py
    python tutorials/14_onnx.py --onnx network.onnx

Without a file, it exports the quickstart's VGG to runs/vgg.onnx. Imports the file by onnx2torch,
converts it, and prints accuracy at T = 1, 2, 4, … and what each layer loses. A file of your own has
to take Fashion-MNIST's images, [N, 1, 28, 28] normalised as in loaders.py, in batches of any size. Draws
figures/14_onnx.png. Needs `pip install "sj_burst[onnx]"`; a minute and a half with the training.
"""

from pathlib import Path

import torch
from common import (
    RUNS,
    accuracy,
    batched,
    fashion_mnist,
    images_in,
    parser,
    print_table,
    quickstart_network,
    save,
)
from torch import Tensor, nn

import sj_burst

NEWEST = 17  # opset that onnx2torch reads in full


def export(net: nn.Module, x: Tensor, path: Path) -> None:
    """Write a network to a file; its batch size is free, as time steps are folded into the batch."""
    path.parent.mkdir(exist_ok=True)
    torch.onnx.export(
        net.cpu(),
        (x,),
        path,
        dynamo=False,
        opset_version=NEWEST,
        input_names=["x"],
        output_names=["logits"],
        dynamic_axes={"x": {0: "n"}, "logits": {0: "n"}},
    )


def load(path: Path) -> nn.Module:
    """The network in a file, of whatever opset, in eval mode."""
    import onnx
    import onnx2torch
    from onnx.version_converter import convert_version

    content = onnx.load(path)
    if any(opset.domain == "" and opset.version > NEWEST for opset in content.opset_import):
        content = convert_version(content, NEWEST)
    return onnx2torch.convert(content).eval()


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--onnx", type=Path, help="file to convert; default: the quickstart's VGG")
    p.add_argument("--time-steps", "-T", type=int, default=16, help="T, steps to simulate")
    p.set_defaults(calibration_images=300)
    args = p.parse_args()

    data = fashion_mnist(args.data)
    test = batched(data["test"], args.test_images)
    calibration = batched(data["train"], args.calibration_images)
    path = args.onnx or RUNS / "vgg.onnx"
    if args.onnx is None:
        export(quickstart_network(args, data["train"]), calibration[0][0], path)
    ann = load(path).to(args.device)
    ann_accuracy = accuracy(ann, test, args.device)
    print(f"{path.name}: {100 * ann_accuracy:.1f} % of {images_in(test)} test images\n")

    snn = sj_burst.convert(ann, calibration, time_steps=4, progress=False)
    result = sj_burst.simulate(snn, test, args.time_steps, progress=False)
    print_table({"sj_burst, Γ=4": result.accuracy}, "accuracy (%)")
    print(f"\n{sj_burst.report(snn, ann, calibration[:1])}")

    fig, ax = sj_burst.plot.accuracy_vs_time({"sj_burst, Γ=4": result}, ann_accuracy=ann_accuracy)
    ax.set_title(f"{path.name}, Fashion-MNIST", fontsize="medium")
    save(fig, args, "14_onnx.png")


if __name__ == "__main__":
    main()
