"""How the image enters the network: four input codings compared.

    python tutorials/03_coding.py

Direct coding presents the analog image as a current, so nothing is lost. Where the hardware wants
spikes, deterministic rate coding beats Poisson coding, and coding compensation recovers what the
spikes still lose. Prints accuracy over time and draws figures/03_coding.png.
"""

import torch
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
    p.add_argument("--time-steps", "-T", type=int, default=16, help="T, steps to fit and simulate")
    p.add_argument("--max-spikes", "-G", type=int, default=4, help="Γ")
    args = p.parse_args()

    data = fashion_mnist(args.data)
    test = batched(data["test"], args.test_images)
    calibration = batched(data["train"], args.calibration_images)
    ann = quickstart_network(args, data["train"])
    ann_accuracy = accuracy(ann, test, args.device)
    print(f"ANN: {100 * ann_accuracy:.1f} % of {images_in(test)} test images\n")

    results = {}
    for coding in ("direct", "compensated", "rate", "poisson"):
        torch.manual_seed(args.seed)  # Poisson spikes are random
        recipe = sj_burst.BurstRecipe(
            calibration, time_steps=args.time_steps, max_spikes=args.max_spikes, coding=coding
        )
        snn = ann2snn.Converter(recipe, device=args.device).convert(ann)
        results[coding] = sj_burst.simulate(snn, test, args.time_steps)
    print_table({label: r.accuracy for label, r in results.items()}, "accuracy (%)")

    fig, ax = sj_burst.plot.accuracy_vs_time(results, ann_accuracy=ann_accuracy)
    ax.set_title(f"Input coding, VGG on Fashion-MNIST, Γ={args.max_spikes}", fontsize="medium")
    save(fig, args, "03_coding.png")


if __name__ == "__main__":
    main()
