"""Diagnose a network that converts badly, and mend it by following the report's advice.

    python tutorials/07_diagnose.py

Converts the quickstart's VGG as it was done in 2015 (maximum as threshold, v(0) = 0, max-pooling of
spikes, Γ = 1), prints what each layer loses and why, changes the first option that the report names,
and starts over until no advice is left for these T steps. A change removes the error that it is meant
for; accuracy need not rise at once, as errors also hide each other. Draws the errors of every layer
before and after into figures/07_diagnose.png, and the neurons of one layer into figures/07_rates.png.
"""

from common import accuracy, batched, fashion_mnist, images_in, parser, quickstart_network, save
from matplotlib import pyplot

import sj_burst


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--time-steps", "-T", type=int, default=8, help="T, steps to simulate")
    p.set_defaults(test_images=500, calibration_images=300)  # it converts eight times
    p.add_argument("--diagnosis-images", type=int, default=100, help="of the training split")
    args = p.parse_args()

    data = fashion_mnist(args.data)
    test = batched(data["test"], args.test_images)
    calibration = batched(data["train"], args.calibration_images)
    diagnosis = batched(data["train"], min(args.diagnosis_images, args.calibration_images))
    ann = quickstart_network(args, data["train"])
    print(f"ANN: {100 * accuracy(ann, test, args.device):.1f} % of {images_in(test)} test images\n")

    # The oldest setting: the maximum as threshold, v(0) = 0, max-pooling of spikes, Γ = 1.
    options = sj_burst.Options.preset("diehl2015", time_steps=args.time_steps)
    steps = []
    while True:
        snn = sj_burst.convert(ann, calibration, options, device=args.device, progress=False)
        report = sj_burst.report(snn, ann, diagnosis)
        result = sj_burst.simulate(snn, test, args.time_steps, progress=False)
        score = 100 * result.accuracy[-1].item()
        steps.append((snn, report, score))
        # More steps always help; here T is given.
        advice = [a for a in report.advice if a.option != "time_steps"]
        if len(steps) == 1 or not advice:
            print(f"{report}\n")
        print(f"T={args.time_steps}: {score:.1f} %, output error {100 * report.output_error:.1f} %")
        if not advice:
            break
        options = options.changed(**{advice[0].option: advice[0].value})
        print(f"  {advice[0]}")

    fig, axes = pyplot.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
    ends = (("as converted", steps[0]), (f"after {len(steps) - 1} changes", steps[-1]))
    for ax, (label, (_, report, score)) in zip(axes, ends, strict=True):
        sj_burst.plot.layer_errors(report, ax=ax)
        ax.set_title(f"{label}: {score:.1f} % at T={args.time_steps}", fontsize="medium")
    axes[1].get_legend().remove()
    axes[1].set_xlabel("layer (note the scale)")
    save(fig, args, "07_diagnose.png")

    fig, axes = pyplot.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
    layer = list(steps[0][0].neurons())[2]
    for ax, (label, (snn, _, _)) in zip(axes, ends, strict=True):
        images = diagnosis[0][0][:20]
        sj_burst.plot.rates_vs_activations(snn, ann, images, layer, args.time_steps, ax=ax)
        ax.set_title(f"layer {layer}, {label}", fontsize="medium")
    save(fig, args, "07_rates.png")


if __name__ == "__main__":
    main()
