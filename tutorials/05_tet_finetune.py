"""Fine-tune a converted network for very few time steps.

    python tutorials/05_tet_finetune.py

Converts the quickstart network at Γ = 1, trains the result for T = 2 by surrogate gradients with the
loss of temporal efficient training, thresholds included, and compares accuracy and spikes before and
after, beside those of the training-free calibration. Draws figures/05_tet_finetune.png. About a minute
and a half on two CPU cores once the ANN is trained.
"""

import time

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
    p.add_argument("--time-steps", "-T", type=int, default=8, help="T, steps to simulate")
    p.add_argument("--tune-steps", type=int, default=2, help="T to fine-tune for")
    p.add_argument("--max-spikes", "-G", type=int, default=1, help="Γ")
    p.add_argument("--tune-images", type=int, default=10000, help="training images for fine-tuning")
    p.add_argument("--tune-epochs", type=int, default=1)
    p.add_argument("--lr", type=float, default=5e-4)
    args = p.parse_args()

    data = fashion_mnist(args.data)
    test = batched(data["test"], args.test_images)
    calibration = batched(data["train"], args.calibration_images)
    ann = quickstart_network(args, data["train"])
    ann_accuracy = accuracy(ann, test, args.device)
    print(f"ANN: {100 * ann_accuracy:.1f} % of {images_in(test)} test images\n")

    options = dict(time_steps=args.tune_steps, max_spikes=args.max_spikes)
    converted = {}
    for name in ("none", "advanced"):
        recipe = sj_burst.BurstRecipe(calibration, calibration=name, **options)
        converted[name] = ann2snn.Converter(recipe, device=args.device).convert(ann)

    count = min(args.tune_images, args.train_images or args.tune_images)
    images, labels = (part[:count] for part in data["train"])
    dataset = torch.utils.data.TensorDataset(images, labels)
    torch.manual_seed(args.seed)
    loader = torch.utils.data.DataLoader(dataset, batch_size=50, shuffle=True)
    start = time.perf_counter()
    tuned = sj_burst.training.finetune(
        converted["none"], loader, args.tune_steps, epochs=args.tune_epochs, lr=args.lr
    )
    print(f"fine-tuned on {len(images)} images in {time.perf_counter() - start:.0f} s")

    networks = {
        "converted": converted["none"],
        "converted and calibrated": converted["advanced"],
        f"converted and fine-tuned for T={args.tune_steps}": tuned,
    }
    results = {label: sj_burst.simulate(snn, test, args.time_steps) for label, snn in networks.items()}
    print_table({label: r.accuracy for label, r in results.items()}, "accuracy (%)")
    print()
    print_table({k: r.total_spikes for k, r in results.items()}, "spikes per image (×1000)", 1e-3)

    fig, ax = sj_burst.plot.accuracy_vs_time(results, ann_accuracy=ann_accuracy)
    ax.set_title(f"Γ={args.max_spikes}, VGG with max-pooling, Fashion-MNIST", fontsize="medium")
    ax.margins(y=0.1)
    save(fig, args, "05_tet_finetune.png")


if __name__ == "__main__":
    main()
