"""Train the scale of the thresholds, and choose between accuracy and speed.

    python tutorials/04_threshold_scale.py

Gives the quickstart network rate norm layers, trains their threshold scale against a frozen teacher,
and converts candidates of different Ω (the smaller, the fewer steps a network needs) with their own
thresholds at Γ = 1, as published: v(0) = 0, and spikes sent too early stay. Beside them a QCFS
network, whose activation has the levels of the spiking neuron, with v(0) = θ/2 and signed spikes.
Draws figures/04_threshold_scale.png. About two minutes on two CPU cores once the ANN is trained.
"""

import argparse
import copy

import torch
from common import (
    Batches,
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
from torch import Tensor, nn

import sj_burst
from sj_burst.training.candidates import Candidate
from sj_burst.training.qcfs import QCFS
from sj_burst.training.rate_measure import evaluate_rates
from sj_burst.training.rate_norm import replace_relu
from sj_burst.training.scale_stage import train_threshold_scale
from sj_burst.training.weight_stage import train_rates


def spread(candidates: list[Candidate], count: int) -> list[Candidate]:
    """A few candidates whose Ω are about evenly spaced on a logarithmic scale."""
    omegas = torch.tensor([c.omega for c in candidates]).log()
    goals = torch.linspace(omegas[0].item(), omegas[-1].item(), count)
    chosen = {(omegas - goal).abs().argmin().item() for goal in goals}
    return [candidates[i] for i in sorted(chosen)]


def steps_to(goal: float, accuracy: Tensor) -> str:
    """The first step after which the accuracy is at least ``goal``."""
    reached = (accuracy >= goal).nonzero()
    return str(reached[0].item() + 1) if len(reached) else f"> {len(accuracy)}"


def run(
    net: nn.Module, recipe: sj_burst.BurstRecipe, test: Batches, args: argparse.Namespace
) -> sj_burst.SimulationResult:
    snn = ann2snn.Converter(recipe, device=args.device).convert(net)
    return sj_burst.simulate(snn, test, args.time_steps)


def main() -> None:
    p = parser(__doc__)
    p.set_defaults(test_images=500)
    p.add_argument("--time-steps", "-T", type=int, default=64, help="T, steps to simulate")
    p.add_argument("--scale-images", type=int, default=500, help="training images of stage 2")
    p.add_argument("--scale-epochs", type=int, default=16, help="epochs of stage 2")
    p.add_argument("--lam", type=float, default=0.15, help="λ, weight of Ω in stage 2")
    p.add_argument("--candidates", type=int, default=5, help="how many to convert")
    args = p.parse_args()

    data = fashion_mnist(args.data)
    test = batched(data["test"], args.test_images)
    images, labels = (part[: args.train_images] for part in data["train"])
    held_out = len(images) // 10
    torch.manual_seed(args.seed)
    order = torch.randperm(len(images))
    images, labels = images[order], labels[order]
    validation = batched((images[:held_out], labels[:held_out]))
    rest = images[held_out:], labels[held_out:]
    calibration = batched(data["train"], args.calibration_images)
    ann = quickstart_network(args, data["train"])
    ann_accuracy = accuracy(ann, test, args.device)
    print(f"ANN: {100 * ann_accuracy:.1f} % of {images_in(test)} test images")

    # Stage 1 lets the maxima of the activations settle; stage 2 trains one scale for all layers.
    net = train_rates(replace_relu(ann), batched(rest, 5000, size=50), epochs=1, lr=1e-3)
    candidates = train_threshold_scale(
        net,
        net,
        batched(rest, args.scale_images, size=50),
        validation,
        lam=args.lam,
        lr=0.06,
        epochs=args.scale_epochs,
    )
    print(f"stage 2 found {len(candidates)} candidates:")
    for candidate in candidates:
        print(f"  {candidate.name}")

    _, omegas = evaluate_rates(net, validation)
    omega = sum(omegas) / len(omegas)
    networks = {f"Ω={omega:.2f}, before stage 2": net.state_dict()}
    networks |= {f"Ω={c.omega:.2f}": c.state_dict for c in spread(candidates, args.candidates)}
    results, rows = {}, []
    for label, state in networks.items():
        net = copy.deepcopy(net)
        net.load_state_dict(state)
        recipe = sj_burst.BurstRecipe(calibration, sj_burst.Options.preset("rnl"))
        results[label] = run(net, recipe, test, args)
        limit = accuracy(net, test, args.device)
        steps = steps_to(0.99 * limit, results[label].accuracy)
        rows.append(f"{label:24s} {100 * limit:17.1f} {steps:>20s}")
    print(f"\n{'':24s} {'accuracy, T→∞ (%)':>16s} {'steps to 99 % of it':>20s}")
    print("\n".join(rows))

    qcfs = train_rates(
        replace_relu(ann, lambda: QCFS(levels=4)), batched(rest, 5000, size=50), epochs=1, lr=5e-3
    )
    options = dict(threshold="trained", time_steps=4, max_spikes=1, calibration="none")
    results["QCFS, L=4"] = run(qcfs, sj_burst.BurstRecipe(calibration, **options), test, args)
    print(f"\nQCFS, L=4: {100 * accuracy(qcfs, test, args.device):.1f} % as an ANN\n")
    print_table({label: r.accuracy for label, r in results.items()}, "accuracy (%), Γ=1")

    fig, ax = sj_burst.plot.accuracy_vs_time(results, ann_accuracy=ann_accuracy)
    ax.set_title("thresholds as trained, Γ=1, VGG on Fashion-MNIST", fontsize="medium")
    save(fig, args, "04_threshold_scale.png")


if __name__ == "__main__":
    main()
