"""The suite itself: its draws are the same every time, whatever runs before and beside."""

import re
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

DRAWN = """
import torch
from hypothesis import given, strategies as st

X = torch.rand(1).item()


@given(st.floats())
def test_draws(value):
    print("drawn", X, value)


def test_settings():
    from hypothesis import settings
    print("settings", settings().derandomize, settings().max_examples)
"""


def drawn(folder, *options):
    """What a suite with our conftest draws."""
    (folder / "conftest.py").write_text((ROOT / "conftest.py").read_text())
    (folder / "test_drawn.py").write_text(DRAWN)
    command = [sys.executable, "-m", "pytest", "-s", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    result = subprocess.run([*command, *options, "."], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return re.findall(r"(?:drawn|settings) .*", result.stdout)


@pytest.mark.slow
def test_two_runs_draw_the_same_and_a_long_run_others(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "test_before.py").write_text("import torch\ntorch.rand(7)\n")
    first, second = drawn(tmp_path / "a"), drawn(tmp_path / "b")
    assert len(first) > 40
    assert first == second
    long = drawn(tmp_path / "a", "--hypothesis-profile=long")
    assert "settings False 2000" in long
    assert len(long) > len(first)


def test_this_run_draws_the_same_every_time(request):
    if request.config.getoption("--hypothesis-profile"):
        pytest.skip("another profile was asked for")
    assert hypothesis.settings().derandomize
    drawn_now = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn_now, torch.rand(1))
