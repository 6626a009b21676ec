import host_shim
import pytest
import torch

from sj_burst.backends import dispatch
from sj_burst.backends.cuda import operators


@pytest.fixture
def on_host(monkeypatch):
    """Kernels run on the CPU, and every backend but torch means them."""
    if host_shim.COMPILER is None:
        pytest.skip("needs g++")
    monkeypatch.setattr(operators, "launch_kernel", host_shim.launch_kernel)
    monkeypatch.setattr(operators, "WIDE_FROM", 0)
    monkeypatch.setattr(dispatch, "backend_for", lambda backend, x: backend)
    monkeypatch.setattr(dispatch, "is_installed", lambda backend: True)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
