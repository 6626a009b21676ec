"""Spend fewer steps on easy images: samples leave once their answer is clear.

    python tutorials/09_early_exit.py

Fits the confidence margin at which a sample may leave on training images, for several losses of
accuracy, and runs the test images with it. Prints average steps and accuracy, and draws
figures/09_early_exit.png.
"""

from common import accuracy, batched, fashion_mnist, images_in, parser, quickstart_network, save
from matplotlib import pyplot
from spikingjelly.activation_based import ann2snn

import sj_burst

LOSSES = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)  # points of accuracy on training images


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--time-steps", "-T", type=int, default=8, help="T, most steps of a sample")
    p.add_argument("--max-spikes", "-G", type=int, default=4, help="Γ")
    p.add_argument("--exit-images", type=int, default=3000, help="of the training split, to fit exits")
    p.set_defaults(test_images=2000)
    args = p.parse_args()

    data = fashion_mnist(args.data)
    test = batched(data["test"], args.test_images)
    calibration = batched(data["train"], args.calibration_images)
    ann = quickstart_network(args, data["train"])
    print(f"ANN: {100 * accuracy(ann, test, args.device):.1f} % of {images_in(test)} test images\n")

    # Exits are fitted on other images than the network, on which it would be too sure of itself.
    images, labels = (split[: args.train_images].flip(0) for split in data["train"])
    fitting = batched((images, labels), args.exit_images)
    recipe = sj_burst.BurstRecipe(calibration, time_steps=args.time_steps, max_spikes=args.max_spikes)
    snn = ann2snn.Converter(recipe, device=args.device).convert(ann)
    whole = sj_burst.simulate(snn, test, args.time_steps)
    full = 100 * whole.accuracy[-1].item()
    print(
        f"{'allowed loss':>12s} {'margin':>7s} {'steps':>6s} {'fewer':>6s} {'accuracy':>9s} {'loss':>6s}"
    )
    print(f"{'-':>12s} {'-':>7s} {args.time_steps:6.2f} {1.0:5.2f}× {full:9.2f} {0.0:6.2f}")
    points = [(float(args.time_steps), full)]
    for loss in LOSSES:
        margin = sj_burst.fit_early_exit(snn, fitting, args.time_steps, max_loss=loss)
        early = sj_burst.simulate(snn, test, args.time_steps, early_exit=margin)
        steps, score = early.average_steps, 100 * early.accuracy[-1].item()
        points.append((steps, score))
        print(
            f"{loss:12.2f} {margin:7.3f} {steps:6.2f} {args.time_steps / steps:5.2f}× "
            f"{score:9.2f} {full - score:6.2f}"
        )

    fig, ax = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    steps = range(1, args.time_steps + 1)
    ax.plot(steps, 100 * whole.accuracy, "o-", color="0.5", label="every sample takes T steps")
    ax.plot(*zip(*sorted(points), strict=True), "s-", color="#D55E00", label="with early exit")
    ax.set_xlabel("average time steps")
    ax.set_ylabel("accuracy (%)")
    ax.grid(True, alpha=0.25)
    ax.legend(frameon=False)
    save(fig, args, "09_early_exit.png")


if __name__ == "__main__":
    main()
