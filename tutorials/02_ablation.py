"""What each method brings: the published baseline, and one method added at a time.

    python tutorials/02_ablation.py

Starts from the maximum as threshold, v(0) = 0 and max-pooling of spikes (Diehl et al. 2015) at Γ = 1
and adds percentile, burst, lateral-inhibition pooling, half potential, mse threshold, signed spikes,
light and advanced calibration. Prints accuracy over time and spikes per image, and draws both into
figures/02_ablation.png.
"""

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
from matplotlib import pyplot

import sj_burst


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--time-steps", "-T", type=int, default=16, help="T, steps to simulate")
    p.add_argument("--fit-steps", type=int, default=4, help="T that the methods are fitted for")
    p.add_argument("--max-spikes", "-G", type=int, default=2, help="Γ from the burst row on")
    args = p.parse_args()

    data = fashion_mnist(args.data)
    test = batched(data["test"], args.test_images)
    calibration = batched(data["train"], args.calibration_images)
    ann = quickstart_network(args, data["train"])
    ann_accuracy = accuracy(ann, test, args.device)
    print(f"ANN: {100 * ann_accuracy:.1f} % of {images_in(test)} test images\n")

    additions = [
        ("max threshold, v(0)=0", {}),
        ("+ percentile 99.9", {"threshold": "99.9%"}),
        (f"+ burst Γ={args.max_spikes}", {"max_spikes": args.max_spikes}),
        ("+ LI pooling", {"max_pool": "lateral_inhibition"}),
        ("+ half potential", {"potential": "half"}),
        ("+ mse threshold, channel-wise", {"threshold": "mse", "channel_wise": True}),
        ("+ signed spikes", {"inactivated_spikes": "signed"}),
        ("+ light calibration", {"calibration": "light"}),
        ("+ advanced calibration", {"calibration": "advanced"}),
    ]
    options: dict[str, object] = {}
    results = {}
    for label, addition in additions:
        options |= addition
        setting = sj_burst.Options.preset("diehl2015", time_steps=args.fit_steps, **options)
        snn = sj_burst.convert(ann, calibration, setting, device=args.device)
        results[label] = sj_burst.simulate(snn, test, args.time_steps)
    print_table({label: r.accuracy for label, r in results.items()}, "accuracy (%)")
    print()
    print_table({k: r.total_spikes for k, r in results.items()}, "spikes per image (×1000)", 1e-3)

    fig, (left, right) = pyplot.subplots(1, 2, figsize=(10.5, 4.4), layout="constrained")
    sj_burst.plot.accuracy_vs_time(results, ann_accuracy=ann_accuracy, ax=left)
    sj_burst.plot.accuracy_vs_spikes(results, ann_accuracy=ann_accuracy, ax=right)
    left.get_legend().remove()
    right.get_legend().remove()
    fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    save(fig, args, "02_ablation.png")


if __name__ == "__main__":
    main()
