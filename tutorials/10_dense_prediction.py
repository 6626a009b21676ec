"""Segment scenes of garments with a spiking U-Net: a class for every pixel after every time step.

    python tutorials/10_dense_prediction.py

Trains a small fully convolutional network with max-pooling, transposed convolutions and skip
connections on scenes made of Fashion-MNIST, converts it, and prints pixel accuracy, mean
intersection over union and the output's error against the ANN. Draws
figures/10_dense_prediction.png.
"""

import time

import torch
from common import STEPS, batched, fashion_mnist, parser, print_table, save, train
from loaders import scenes
from matplotlib import pyplot
from matplotlib.colors import ListedColormap
from networks import SmallFCN
from spikingjelly.activation_based import ann2snn
from torch import Tensor

import sj_burst

CLASSES = 11  # background and ten garments
PICTURED = (1, 4, 16)  # time steps whose masks are drawn
COLOURS = ["#202020", *(pyplot.get_cmap("tab10")(i) for i in range(10))]


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--time-steps", "-T", type=int, default=32, help="T, steps to simulate")
    p.add_argument("--images-per-scene", type=int, default=4, help="images per scene made of them")
    p.set_defaults(epochs=6)
    args = p.parse_args()

    start = time.perf_counter()
    data = fashion_mnist(args.data)
    training = {"count": args.train_images or len(data["train"][0]), "seed": args.seed}
    training["count"] //= args.images_per_scene
    train_scenes = scenes(data["train"], **training)
    test_scenes = scenes(data["test"], args.test_images // args.images_per_scene, args.seed + 1)
    calibration = batched(train_scenes, args.calibration_images // args.images_per_scene, size=25)
    test = batched(test_scenes, size=25)
    torch.manual_seed(args.seed)
    ann = train(SmallFCN(CLASSES), train_scenes, args.epochs, device=args.device, seed=args.seed, batch=25)
    with torch.no_grad():
        ann_output = torch.cat([ann(x.to(args.device)).cpu() for x, _ in test])
    print(f"trained on {training['count']} scenes in {time.perf_counter() - start:.0f} s")
