"""What is published: a wheel and a source distribution, complete, and at work where installed."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import sj_burst

ROOT = Path(__file__).resolve().parent.parent

TRY = """
import sys
from pathlib import Path

import torch
from torch import nn

import sj_burst

assert Path(sj_burst.__file__).is_relative_to(sys.argv[1]), sj_burst.__file__
ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
ann.eval()
x = torch.rand(8, 1, 8, 8)
snn = sj_burst.convert(ann, [x], progress=False)
for backend in sys.argv[2:]:
    sj_burst.set_backend(snn, backend)
    result = sj_burst.simulate(snn, [(x, ann(x).argmax(1))], 8, progress=False)
    assert result.accuracy[-1] > 0.5
sj_burst.save(snn, "snn.pt")
sj_burst.load("snn.pt", ann)
print("works", sj_burst.__version__)
"""


def files_below(folder):
    """What belongs to the package, but for what Python and numba keep there."""
    found = (p.relative_to(folder) for p in (folder / "sj_burst").rglob("*") if p.is_file())
    return {str(p) for p in found if "__pycache__" not in p.parts}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A source distribution of this folder, and a wheel made from it alone."""
    folder = tmp_path_factory.mktemp("dist")

    def build(what, cwd):
        code = f"import hatchling.build as b; print(b.build_{what}({str(folder)!r}))"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return folder / done.stdout.split()[-1]

    pytest.importorskip("hatchling")
    source = build("sdist", ROOT)
    with tarfile.open(source) as archive:
        archive.extractall(folder / "source", filter="data")
    (unpacked,) = (folder / "source").iterdir()
    return unpacked, build("wheel", unpacked)


def test_both_hold_the_whole_package(built):
    unpacked, wheel = built
    ours = files_below(ROOT)
    assert {"sj_burst/py.typed", "sj_burst/backends/cuda/li_pool.cu"} <= ours
    assert files_below(unpacked) == ours
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in inside if name.startswith("sj_burst/")} == ours
    assert any(name.endswith("licenses/LICENSE") for name in inside)
    for name in ("LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "pyproject.toml"):
        assert (unpacked / name).is_file(), name
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", (ROOT / "README.md").read_text()):
        assert (unpacked / picture).is_file(), picture


def test_the_wheel_works_where_it_is_installed(built, tmp_path):
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")  # which is what installing pure Python is
    backends = [b for b in ("torch", "numba") if sj_burst.backends.dispatch.is_installed(b)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TRY, str(tmp_path / "site"), *backends],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"works {sj_burst.__version__}" in done.stdout


def test_one_version_everywhere():
    with open(ROOT / "pyproject.toml", "rb") as file:
        version = tomllib.load(file)["project"]["version"]
    assert version == sj_burst.__version__
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest and newest[1] == version
