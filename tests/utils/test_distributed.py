"""Two processes with shares of different sizes give the numbers of one."""

import faulthandler
import os
import socket
import subprocess
import sys
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch

import sj_burst
from sj_burst.conversion import recipe
from sj_burst.utils import distributed
from tests.networks import vgg

HERE = Path(__file__).resolve().parent
SAMPLES = 25  # shares of 13 and 12
OPTIONS = {"time_steps": 3, "coding": "rate", "progress": False}


def numbers_of(layer: sj_burst.analysis.layer_report.LayerReport) -> list[float]:
    """What was measured of a layer."""
    found = [layer.rate, layer.churn, layer.channels, layer.silent, layer.dead, layer.clipped]
    found += [layer.inactivated, layer.error, *layer.parts.values(), layer.levels]
    return [-1.0 if value is None else float(value) for value in found]


def run(rank: int, world: int) -> dict[str, torch.Tensor]:
    """Convert and simulate on this process's share of the data."""
    torch.manual_seed(0)
    ann = vgg()
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(SAMPLES, 2, 8, 8, generator=generator)
    x *= torch.linspace(0.1, 3, SAMPLES).view(-1, 1, 1, 1)
    y = torch.randint(0, 5, (SAMPLES,), generator=generator)
    share = [(x[rank::world][:5], y[rank::world][:5]), (x[rank::world][5:], y[rank::world][5:])]
    found = {}
    for calibration, images in (("none", 12), ("advanced", 12), ("advanced", SAMPLES)):
        snn = sj_burst.convert(ann, share, calibration=calibration, calibration_images=images, **OPTIONS)
        result = sj_burst.simulate(snn, share, 4, reference=ann, progress=False)
        early = sj_burst.simulate(snn, share, 4, early_exit=0.0058, progress=False)
        margin = sj_burst.fit_early_exit(snn, share, 4, max_loss=5.0)
        counted = sj_burst.synops(snn, share, 4)
        found_by_layer = sj_burst.report(snn, ann, share, 4)
        values = {
            **snn.state_dict(),
            **{f"spikes of {name}": spikes for name, spikes in result.spikes.items()},
            "accuracy": result.accuracy,
            "error": result.error,
            "samples": torch.tensor(result.samples),
            "synops": torch.tensor(result.operations.synops),
            "synops alone": torch.tensor([counted.synops, counted.binary_synops, counted.energy]),
            "report": torch.tensor([numbers_of(layer) for layer in found_by_layer.layers]),
            "report of the output": torch.tensor(
                [found_by_layer.output_error, found_by_layer.output_levels, found_by_layer.samples]
            ),
            "exit steps": early.exit_steps,
            "average steps": torch.tensor(early.average_steps),
            "margin": torch.tensor(margin),
        }
        found |= {f"{calibration}, {images} images: {name}": value for name, value in values.items()}
    for options, room in (
        ({"threshold": "rate_distortion", "energy_budget": 0.9}, None),
        ({"burst_allocation": "sensitivity"}, None),
        ({"burst_allocation": "adafire"}, None),
        ({}, 150_000 * (1 + rank)),  # for a few images, and on one machine for fewer
    ):
        limited = patch.object(recipe, "free_room", lambda room=room: room)
        with limited if room is not None else nullcontext(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "calibration_images=")
            neurons = sj_burst.convert(ann, share, **options, **OPTIONS).neurons().values()
        chosen = torch.cat([node.threshold * node.max_spikes for node in neurons])
        shifts = [node.shift for node in neurons if node.shift is not None]
        chosen = torch.cat([chosen, *shifts])
        most = distributed.maximum(torch.stack([chosen, -chosen]))
        assert torch.equal(most, torch.stack([chosen, -chosen])), "processes chose differently"
    return found


def main(folder: str) -> None:
    faulthandler.dump_traceback_later(300, exit=True)  # says where it hangs
    torch.distributed.init_process_group("gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    torch.save(run(rank, world), Path(folder) / f"{rank}.part")
    (Path(folder) / f"{rank}.part").rename(Path(folder) / f"{rank}.pt")
    time.sleep(600)  # until killed: leaving gloo hangs at times, and aborts who is left behind


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_processes(folder: Path, world: int) -> None:
    """Run ``main`` in several processes; shows all that they said if one of them fails."""
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(world),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "PYTHONFAULTHANDLER": "1",  # a process was seen to abort (SIGABRT), once in dozens of runs
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.utils.test_distributed", str(folder)]
    logs = [folder / f"{rank}.log" for rank in range(world)]
    processes = []
    try:
        for rank, log in enumerate(logs):
            with log.open("w") as output:
                processes.append(
                    subprocess.Popen(
                        command,
                        cwd=HERE.parent.parent,
                        env=os.environ | shared | {"RANK": str(rank)},
                        stdout=output,
                        stderr=subprocess.STDOUT,
                    )
                )
        results = [folder / f"{rank}.pt" for rank in range(world)]
        while not (done := all(result.exists() for result in results)):
            if any(process.poll() is not None for process in processes):
                time.sleep(5)  # what the others say when they miss the one that failed
                break
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    codes = [process.returncode for process in processes]
    said = [f"exit code {code}:\n{log.read_text()}" for code, log in zip(codes, logs, strict=True)]
    assert done, "\n".join(said)


def test_two_processes_give_the_numbers_of_one(tmp_path):
    run_processes(tmp_path, world=2)
    alone = run(0, 1)
    assert len(set(alone["none, 12 images: exit steps"].tolist())) > 1
    for rank in (0, 1):
        shared = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert shared.keys() == alone.keys()
        for name, value in alone.items():
            assert torch.allclose(shared[name].double(), value.double(), rtol=1e-4, atol=1e-6), name


if __name__ == "__main__":
    main(sys.argv[1])
