"""Take a converted network elsewhere: to integers, to NIR and sinabs, to NeuroBench, to files.

    python tutorials/13_deploy.py

Trains a small VGG with average pooling, converts it with weights of 8 bits for a chip that takes no
spike back, and runs it in integers. Prints accuracy, and time in units of T forward passes of the ANN;
writes the integers, the folded weights and a NIR graph to a folder; reads the graph back and runs it in
sinabs; compares NeuroBench's counts with ours. What is not installed (extras nir, sinabs, neurobench)
is left out. Draws figures/13_deploy.png.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import (
    RUNS,
    Batches,
    accuracy,
    batched,
    fashion_mnist,
    images_in,
    parser,
    print_table,
    save,
    train,
)
from networks import small_vgg
from torch import Tensor, nn

import sj_burst
from sj_burst import SpikingNetwork, export
from sj_burst.graph.fuse import fuse

CHIP = {"inactivated_spikes": "allow", "max_pool": "average"}


def main() -> None:
    p = parser(__doc__, without=("--device",))
    p.add_argument("--time-steps", "-T", type=int, default=8, help="T")
    p.add_argument("--max-spikes", "-G", type=int, default=4, help="Γ")
    p.add_argument("--out", type=Path, default=RUNS / "deploy", help="folder of the files")
    p.set_defaults(test_images=2000)
    args = p.parse_args()

    data = fashion_mnist(args.data)
    test = batched(data["test"], args.test_images)
    calibration = batched(data["train"], args.calibration_images)
    torch.manual_seed(args.seed)
    images, labels = (split[: args.train_images] for split in data["train"])
    ann = train(small_vgg(pool=nn.AvgPool2d), (images, labels), args.epochs, seed=args.seed)
    reached = accuracy(ann, test)
    print(f"ANN: {100 * reached:.1f} % of {images_in(test)} test images\n")

    networks = {
        f"weights of {bits or 32} bits": sj_burst.convert(
            ann,
            calibration,
            time_steps=args.time_steps,
            max_spikes=args.max_spikes,
            weight_bits=bits,
            **CHIP,
        )
        for bits in (None, 8, 4)
    }
    snn = networks["weights of 8 bits"]
    integers = export.to_integers(snn)
    networks["8 bits, in integers"] = integers
    results = {k: sj_burst.simulate(net, test, args.time_steps) for k, net in networks.items()}
    print_table({label: result.accuracy for label, result in results.items()}, "accuracy (%)")
    fig, _ = sj_burst.plot.accuracy_vs_time(results, ann_accuracy=reached)
    save(fig, args, "13_deploy.png")

    compare_times(ann, snn, integers, test[0][0], args.time_steps)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.save(integers.state_dict(), args.out / "integers.pt")
    torch.save(export.unit_thresholds(snn).state_dict(), args.out / "folded_weights.pt")
    print(f"\nwrote {args.out / 'integers.pt'} and {args.out / 'folded_weights.pt'}")
    run_in_sinabs(snn, test[0][0], args)
    count_with_neurobench(snn, test, args.time_steps)


def compare_times(
    ann: nn.Module, snn: SpikingNetwork, integers: SpikingNetwork, x: Tensor, time_steps: int
) -> None:
    """Print medians of runs that take turns, in units of T forward passes of the ANN."""
    fused = sj_burst.standardize(ann, x[:2])
    fuse(fused, x[:2])  # BatchNorm into the weights, as in the converted network
    runs: dict[str, Callable[[], object]] = {
        "T × ANN": lambda: [fused(x) for _ in range(time_steps)],
        "SNN": lambda: sj_burst.simulate(snn, [x], time_steps, progress=False),
        "SNN in integers": lambda: sj_burst.simulate(integers, [x], time_steps, progress=False),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for _ in range(5):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    print(f"\ntime of {len(x)} images in {time_steps} steps, on {torch.get_num_threads()} threads")
    for name, median in medians.items():
        print(f"{name:16s} {median / medians['T × ANN']:6.2f}")


def run_in_sinabs(snn: SpikingNetwork, x: Tensor, args: argparse.Namespace) -> None:
    """Write a NIR graph, read it back, and run it in sinabs: the same outputs at every step."""
    if importlib.util.find_spec("nir") is None:
        print("\nnir is not installed: pip install 'sj_burst[nir]'")
        return
    import nir

    file = args.out / "network.nir"
    nir.write(file, export.to_nir(snn))
    print(
        f"wrote {file}: {', '.join(sorted({type(n).__name__ for n in nir.read(file).nodes.values()}))}"
    )
    if importlib.util.find_spec("sinabs") is None:
        print("sinabs, to run it, is not installed: pip install 'sj_burst[sinabs]' elsewhere")
        return
    with torch.no_grad():
        theirs = export.from_nir(file).run(x, time_steps=args.time_steps)
        ours = snn.run(x, args.time_steps)
    same = (theirs - ours).abs().amax(
        (0, 2)
    ) < 1e-4  # a current on a threshold may be rounded either way
    print(f"sinabs gives the same outputs at every step for {int(same.sum())} of {len(x)} images")


def count_with_neurobench(snn: SpikingNetwork, test: Batches, time_steps: int) -> None:
    """Print NeuroBench's counts beside ours."""
    if importlib.util.find_spec("neurobench") is None:
        print("neurobench is not installed: pip install 'sj_burst[neurobench]'")
        return
    from neurobench.metrics.workload import ActivationSparsity, SynapticOperations

    x, labels = test[0]
    model = export.to_neurobench(snn, time_steps)
    model.register_hooks()
    answer = model(x)
    counted = SynapticOperations()(model, answer, (x, labels))
    sparsity = ActivationSparsity()(model, answer, (x, labels))
    result = sj_burst.simulate(snn, [x], time_steps, progress=False)
    places = sum(out.numel() for hook in model.activation_hooks for out in hook.activation_outputs)
    ours = {
        "accumulations": result.operations.synops,
        "multiplications": result.operations.macs,
        "activation sparsity": 1 - len(x) * sum(n.sum().item() for n in result.spikes.values()) / places,
    }
    theirs = [counted["Effective_ACs"], counted["Effective_MACs"], sparsity]
    print(f"\n{'per image':20s} {'sj_burst':>12s} {'NeuroBench':>12s}")
    for (name, own), other in zip(ours.items(), theirs, strict=True):
        print(f"{name:20s} {own:12.6g} {other:12.6g}")


if __name__ == "__main__":
    main()
