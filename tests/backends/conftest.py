import host_shim
import pytest
import torch

from sj_burst.backends import dispatch as backends
from sj_burst.backends.cuda import operators as cupy


@pytest.fixture
def on_host(monkeypatch):
    """Kernels run on the CPU, and every backend but torch means them."""
    if host_shim.COMPILER is None:
        pytest.skip("needs g++")
    monkeypatch.setattr(cupy, "launch", host_shim.launch)
    monkeypatch.setattr(cupy, "WIDE_FROM", 0)
    monkeypatch.setattr(backends, "_engine", lambda backend, x: backend)
    monkeypatch.setitem(backends.INSTALLED, "cupy", True)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
