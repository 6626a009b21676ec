"""Train a small VGG with max-pooling, convert it, and see accuracy after every time step.

    python tutorials/01_quickstart.py

About a minute and a half on two CPU cores. Prints accuracy at T = 1, 2, 4, … for SpikingJelly's rate
coding, for the published burst setting and for our default, and draws figures/01_quickstart.png.
"""

import time

from common import (
    accuracy,
    batched,
    fashion_mnist,
    images_in,
    parser,
    print_table,
    quickstart_network,
    save,
)
from spikingjelly.activation_based import ann2snn

import sj_burst


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--time-steps", "-T", type=int, default=32, help="T, steps to simulate")
    p.add_argument("--max-spikes", "-G", type=int, default=4, help="Γ of the default conversion")
    args = p.parse_args()

    start = time.perf_counter()
    data = fashion_mnist(args.data)
    test = batched(data["test"], args.test_images)
    calibration = batched(data["train"], args.calibration_images)
    ann = quickstart_network(args, data["train"])
    ann_accuracy = accuracy(ann, test, args.device)
    print(f"ANN: {100 * ann_accuracy:.1f} % of {images_in(test)} test images\n")

    recipes = {
        "SpikingJelly, max": ann2snn.RateCodingRecipe(calibration, mode="max"),
        "SpikingJelly, 99.9%": ann2snn.RateCodingRecipe(calibration, mode="99.9%"),
        "published burst, Γ=5": sj_burst.BurstRecipe(calibration, sj_burst.Options.preset("burst")),
        "sj_burst, Γ=1": sj_burst.BurstRecipe(calibration, max_spikes=1),
        f"sj_burst, Γ={args.max_spikes}": sj_burst.BurstRecipe(
            calibration, time_steps=4, max_spikes=args.max_spikes
        ),
    }
    results = {}
    for label, recipe in recipes.items():
        snn = ann2snn.Converter(recipe, device=args.device).convert(ann)
        results[label] = sj_burst.simulate(snn, test, args.time_steps)
    print_table({label: r.accuracy for label, r in results.items()}, "accuracy (%)")

    fig, ax = sj_burst.plot.accuracy_vs_time(results, ann_accuracy=ann_accuracy)
    ax.set_title("VGG with max-pooling, Fashion-MNIST", fontsize="medium")
    save(fig, args, "01_quickstart.png")
    print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
