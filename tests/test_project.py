"""The package as a whole: imports, README, tutorials."""

import os
import re
import runpy
import subprocess
import sys
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from PIL import Image

from tests import api

ROOT = Path(__file__).resolve().parent.parent


def run(*command, cwd=ROOT, **environment):
    return subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=600
    )


def test_a_bare_import_is_lean():
    # SpikingJelly itself may import more; what counts is what our modules add.
    code = (
        "import sys, torch, spikingjelly.activation_based.ann2snn\n"
        "before = set(sys.modules)\n"
        "import sj_burst\n"
        "added = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "assert not added & {'cupy', 'numba', 'matplotlib', 'torchvision'}, added\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    result = run(sys.executable, "-c", code)
    assert result.returncode == 0, result.stderr


def snippets():
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_readme_snippets_run_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert snippets()
    namespace = {}
    for snippet in snippets():
        exec(compile(snippet, "README.md", "exec"), namespace)


def test_readme_pictures_exist():
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / picture).is_file(), picture


def test_the_page_of_the_api_is_of_today():
    assert api.PAGE.read_text() == api.page(), "python -m tests.api writes it"


SMALLEST = {
    "08_benchmark.py": ["--time-steps", "1", "2", "--only", "*max", "*burst", "*Γ=[14]"],
    "12_energy.py": ["--distil-epochs", "1", "--budgets", "0.2", "--max-drop", "50"],
    "10_dense_prediction.py": ["--time-steps", "4", "--images-per-scene", "10"],
    "10_detection.py": ["--time-steps", "2", "--images-per-scene", "10"],
}

WITHOUT = {
    "06_gpu_simulation.py": ("--epochs", "--train-images", "--test-images", "--calibration-images"),
    "11_imagenet.py": ("--epochs", "--train-images"),
}

NEEDS = {"14_onnx.py": "onnx2torch"}


def photographs(folder):
    """Options of a folder of noise in two classes, and of a network with random weights."""
    from torchvision.models import squeezenet1_1

    for number in range(12):
        path = folder / "photos" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (90, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    torch.manual_seed(0)
    torch.save(squeezenet1_1(weights=None).state_dict(), folder / "weights.pt")
    network = ["--network", "squeezenet1_1", "--weights", str(folder / "weights.pt")]
    return ["--data", str(folder / "photos"), *network, "--settings", "4:2", "--distil", "1"]


def test_the_benchmark_keeps_tables_apart(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tutorials"))
    benchmark = runpy.run_path(str(ROOT / "tutorials" / "08_benchmark.py"))
    rows, fixed = tmp_path / "rows.csv", {"weights": "best", "test_images": 50}
    fixed |= {"calibration_images": 30, "seed": 0}
    args = SimpleNamespace(distil_epochs=3, distil_images=200)
    distilled = next(s for s in benchmark["SETTINGS"] if s.distilled)
    label = benchmark["row_label"](distilled, args)
    assert label == f"{distilled.label}, 3 epochs, 200 training images"
    benchmark["append"](rows, [fixed | {"setting": label, "T": 1, "draw": 0, "ann": "90.00"}])
    benchmark["check_same_network"](rows, fixed, 90.2)
    benchmark["check_same_network"](rows, fixed | {"weights": "other"}, 50.0)
    with pytest.raises(SystemExit, match=r"an ANN with 90.00 %, and this one has 70.00 %"):
        benchmark["check_same_network"](rows, fixed, 70.0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("script", sorted(p.name for p in (ROOT / "tutorials").glob("[0-9]*.py")))
def test_tutorials_run_at_their_smallest_size(script, tmp_path, monkeypatch):
    if script in NEEDS:
        pytest.importorskip(NEEDS[script])
    sizes = {"epochs": 1, "train-images": 300, "test-images": 50, "calibration-images": 30}
    given = {f"--{name}": str(size) for name, size in sizes.items()}
    taken = [pair for pair in given.items() if pair[0] not in WITHOUT.get(script, ())]
    small = [*chain.from_iterable(taken), *SMALLEST.get(script, [])]
    if script == "11_imagenet.py":
        small += photographs(tmp_path / "given")
        tmp_path = tmp_path / "figures"
    path = str(ROOT / "tutorials" / script)
    monkeypatch.setattr(sys, "argv", [path, *small, "--figures", str(tmp_path)])
    runpy.run_path(path, run_name="__main__")  # a process of its own would import torch again
    pyplot.close("all")
    assert list(tmp_path.iterdir())
