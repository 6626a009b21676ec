"""The least energy for a stated loss: where spikes are spent, and how bursts travel.

    python tutorials/12_energy.py

Converts the quickstart network with published settings, with the defaults at several T and Γ, and with
thresholds by rate and distortion at several budgets of energy: where neurons send all their spikes,
where they send those that are not expected, and with distillation from unlabelled training images.
Prints points lost, the energy as a share of the ANN's in three accountings of a burst, and the share of
spikes that are taken back; asks recommend for the cheapest setting within half a point; and draws
accuracy against energy into figures/12_energy.png.
"""

from collections import defaultdict
from typing import Any

from common import accuracy, batched, fashion_mnist, images_in, parser, quickstart_network, save
from matplotlib import pyplot
from torch.utils.data import DataLoader, TensorDataset

import sj_burst

PUBLISHED = ["burst", "opi", "rts", "adafire", "calibration_light", "calibration_advanced"]
EQUAL = [(1, 15), (2, 4), (4, 2), (4, 4), (8, 1)]  # T, Γ
BUDGETS = [0.3, 0.2, 0.15, 0.1]
POINTS = 6  # below the ANN that the figure shows


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--max-drop", type=float, default=0.5, help="accuracy points that may be lost")
    p.add_argument("--distil-epochs", type=int, default=3, help="passes over the training images")
    p.add_argument(
        "--budgets", type=float, nargs="*", default=BUDGETS, help="shares of the ANN's energy"
    )
    args = p.parse_args()

    data = fashion_mnist(args.data)
    test = batched(data["test"], args.test_images)
    calibration = batched(data["train"], args.calibration_images)
    ann = quickstart_network(args, data["train"])
    ann_accuracy = accuracy(ann, test, args.device)
    print(f"ANN: {100 * ann_accuracy:.1f} % of {images_in(test)} test images\n")
    print(f"{'':42s} {'lost':>6s} {'unary':>7s} {'binary':>7s} {'graded':>7s} {'churn %':>8s}")
    results: dict[str, list[sj_burst.SimulationResult]] = defaultdict(list)

    def measure(label: str, snn: sj_burst.SpikingNetwork, setting: str, time_steps: int) -> None:
        result = sj_burst.simulate(snn, test, time_steps)
        results[label].append(result)
        print(f"{label + ', ' + setting:42s} {described(result, ann_accuracy)}")

    for name in PUBLISHED:
        for steps in (8, 16):
            setting = sj_burst.Options.preset(name, time_steps=steps)
            snn = sj_burst.convert(ann, calibration, setting, device=args.device)
            measure(name, snn, f"T={steps}", steps)
    for steps, most in EQUAL:
        snn = sj_burst.convert(ann, calibration, time_steps=steps, max_spikes=most, device=args.device)
        measure("equal levels", snn, f"T={steps}, Γ={most}", steps)
    images = TensorDataset(data["train"][0][: args.train_images])
    loader = DataLoader(images, 100, shuffle=True)
    for budget in args.budgets:
        options: dict[str, Any] = {"threshold": "rate_distortion", "energy_budget": budget}
        options |= {"time_steps": 1, "max_spikes": 15, "device": args.device}
        snn = sj_burst.convert(ann, calibration, **options)
        measure("rate and distortion", snn, f"T=1, budget {budget}", 1)
        snn = sj_burst.convert(ann, calibration, expected_spikes="median", **options)
        measure("expected spikes", snn, f"T=1, budget {budget}", 1)
        fitted = sj_burst.training.distil(
            snn, ann, loader, epochs=args.distil_epochs, energy_budget=budget
        )
        measure("expected, distilled", fitted, f"T=1, budget {budget}", 1)

    found = sj_burst.recommend(
        ann,
        calibration,
        args.max_drop,
        objective="energy",
        images=args.calibration_images,
        expected_spikes="median",
    )
    print(f"\nthe cheapest within {args.max_drop} points, of training images held back:\n{found}")
    seen = {name: many for name, many in results.items() if best(many) > ann_accuracy - POINTS / 100}
    fig, axes = pyplot.subplots(1, 2, figsize=(10.5, 4.4), layout="constrained", sharey=True)
    for ax, accounting in zip(axes, ("unary", "binary"), strict=True):
        sj_burst.plot.accuracy_vs_energy(seen, ann_accuracy=ann_accuracy, accounting=accounting, ax=ax)
        ax.set_ylim(bottom=100 * ann_accuracy - POINTS)
        ax.get_legend().remove()
    handles = axes[0].get_legend_handles_labels()
    fig.legend(*handles, loc="outside lower center", ncols=5, frameon=False)
    save(fig, args, "12_energy.png")


def best(results: list[sj_burst.SimulationResult]) -> float:
    """The best accuracy after all steps."""
    return max(r.accuracy[-1].item() for r in results if r.accuracy is not None)


def described(result: sj_burst.SimulationResult, ann_accuracy: float) -> str:
    """Points lost, energies as shares of the ANN's, and churn, in one line."""
    operations = result.operations
    assert operations is not None and result.accuracy is not None
    lost = 100 * (ann_accuracy - result.accuracy[-1].item())
    shares = [value / operations.ann_energy for value in operations.energies.values()]
    sent = sum(result.spikes[name].sum().item() for name in result.net_spikes)
    kept = sum(spikes.sum().item() for spikes in result.net_spikes.values())
    cells = " ".join(f"{share:7.3f}" for share in shares)
    # Where spikes are expected, it is not known.
    churn = f"{100 * (1 - kept / sent):8.1f}" if sent else f"{'-':>8s}"
    return f"{lost:6.2f} {cells} {churn}"


if __name__ == "__main__":
    main()
