"""Train a small VGG with max-pooling, convert it three ways, and see accuracy after every step.

    python tutorials/01_quickstart.py

Takes about a minute on two CPU cores. Prints a table and writes figures/01_quickstart.png.
"""

import time

from common import accuracy, batched, fashion_mnist, parser, print_table, quickstart_network
from spikingjelly.activation_based import ann2snn

import sj_burst


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--time-steps", "-T", type=int, default=32, help="T, steps to simulate")
    p.add_argument("--max-spikes", "-G", type=int, default=4, help="Γ of the default conversion")
    p.add_argument("--calibration-images", type=int, default=1000, help="of the training split")
    args = p.parse_args()

    data = fashion_mnist(args.data)
    test = batched(data["test"], args.test_images)
    calibration = batched(data["train"], args.calibration_images)
    start = time.perf_counter()
    name = "full" if args.data else "embedded"
    ann = quickstart_network(data["train"], args.epochs, args.seed, args.device, name)
    ann_accuracy = accuracy(ann, test, args.device)
    print(f"ANN {100 * ann_accuracy:.1f} % ({time.perf_counter() - start:.0f} s)\n")

    recipes = {
        "SpikingJelly rate coding, max": ann2snn.RateCodingRecipe(calibration, mode="max"),
        "SpikingJelly rate coding, 99.9%": ann2snn.RateCodingRecipe(calibration, mode="99.9%"),
        "published burst, Γ=5": sj_burst.BurstRecipe.preset("burst", calibration),
        "sj_burst default, Γ=1": sj_burst.BurstRecipe(calibration, max_spikes=1),
        f"sj_burst default, Γ={args.max_spikes}": sj_burst.BurstRecipe(
            calibration, time_steps=4, max_spikes=args.max_spikes
        ),
    }
    results = {}
    for label, recipe in recipes.items():
        snn = ann2snn.Converter(recipe, device=args.device).convert(ann)
        results[label] = sj_burst.simulate(snn, test, args.time_steps)
    print_table({k: r.accuracy for k, r in results.items()}, args.time_steps, "accuracy (%)")

    args.figures.mkdir(exist_ok=True)
    fig, ax = sj_burst.plot.accuracy_vs_time(results, ann_accuracy=ann_accuracy)
    ax.set_title("Small VGG with max-pooling, Fashion-MNIST", fontsize="medium")
    path = args.figures / "01_quickstart.png"
    fig.savefig(path, dpi=160)
    print(f"\n{path.name} written, {time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
