"""Choosing a backend: the switch, the properties, the errors."""

import subprocess
import sys

import pytest
import torch
from spikingjelly.activation_based import base
from spikingjelly.activation_based import functional as sj_functional
from torch import nn

import sj_burst
from sj_burst import BurstIFNode, BurstRecipe, set_backend, simulate
from sj_burst.backends import dispatch
from sj_burst.modules.pooling import GatedPool, LIPool


def network() -> nn.Sequential:
    node = BurstIFNode(0.3, 2, step_mode="m")
    pools = [LIPool(pool, step_mode="m") for pool in (nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(1))]
    return nn.Sequential(node, *pools)


def network_of_relus() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def test_properties():
    node, pool, adaptive = network()
    assert node.backend == pool.backend == "torch"
    assert node.supported_backends == pool.supported_backends == ("torch", "numba", "cupy", "auto")
    for module in (adaptive, LIPool(nn.MaxPool3d(2)), GatedPool(nn.MaxPool2d(2))):
        assert module.supported_backends == ("torch",)
        with pytest.raises(NotImplementedError, match="no backend 'auto'"):
            module.backend = "auto"
    assert BurstIFNode(backend="auto").backend == "auto"


def test_set_backend_reaches_what_it_can(monkeypatch):
    monkeypatch.setattr(dispatch, "is_installed", lambda backend: True)
    net = network()
    set_backend(net, "cupy")
    assert [m.backend for m in net] == ["cupy", "cupy", "torch"]
    set_backend(net, "torch")
    assert [m.backend for m in net] == ["torch"] * 3


@pytest.mark.skipif(not hasattr(sj_functional, "set_backend"), reason="SpikingJelly 2.0.0rc1 only")
def test_spikingjellys_own_switch(monkeypatch):
    from spikingjelly.activation_based import neuron

    monkeypatch.setattr(dispatch, "is_installed", lambda backend: True)
    monkeypatch.setattr(base, "cupy", object())
    net = nn.Sequential(*network(), neuron.IFNode(step_mode="m"))
    sj_functional.set_backend(net, "cupy")
    assert [m.backend for m in net] == ["cupy", "cupy", "torch", "cupy"]
    set_backend(net, "torch")
    assert [m.backend for m in net] == ["torch"] * 4
    set_backend(net, "cupy")
    assert net[3].backend == "cupy"


def test_unknown_backend():
    with pytest.raises(ValueError, match="backend must be one of"):
        set_backend(network(), "cuda")


@pytest.mark.parametrize(("name", "extra"), [("cupy", "cuda13"), ("numba", "cpu")])
def test_missing_package(monkeypatch, name, extra):
    monkeypatch.setattr(dispatch, "is_installed", lambda backend: backend != name)
    with pytest.raises(ImportError, match=rf"pip install 'sj_burst\[{extra}\]'"):
        set_backend(network(), name)
    with pytest.raises(ImportError, match="needs"):
        BurstIFNode(backend=name)


def test_cpu_tensors_with_cupy(monkeypatch):
    monkeypatch.setattr(dispatch, "is_installed", lambda backend: True)
    net = network()
    set_backend(net, "cupy")
    with torch.no_grad(), pytest.raises(ValueError, match=r"\.to\(\"cuda\"\).*sj_burst\[cuda13\]"):
        net(torch.zeros(2, 1, 1, 4, 4))


@pytest.mark.parametrize("installed", [True, False])
def test_auto_on_cpu(monkeypatch, installed):
    if installed:
        pytest.importorskip("numba")
    there = {"torch", "numba"} if installed else {"torch"}
    monkeypatch.setattr(dispatch, "is_installed", lambda backend: backend in {*there, "auto"})
    x_seq, results = torch.randn(4, 2, 3, 8, 8), []
    for backend in ("torch", "auto"):
        net = network()
        set_backend(net, backend)
        with torch.no_grad():
            results.append(net(x_seq))
    assert torch.equal(*results)


def test_converted_network_gives_the_same_answers():
    pytest.importorskip("numba")
    from spikingjelly.activation_based import ann2snn

    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU()]
    ann = nn.Sequential(*layers, nn.Flatten(), nn.Linear(6 * 4, 3))
    data = [(torch.randn(16, 1, 8, 8), torch.zeros(16, dtype=torch.long))]
    snn = ann2snn.Converter(BurstRecipe(data, max_spikes=2, progress=False)).convert(ann)
    results = []
    for backend in ("torch", "numba"):
        set_backend(snn, backend)
        results.append(simulate(snn, data, 6, chunk=4, progress=False))
    assert torch.equal(results[0].output, results[1].output)
    for name, spikes in results[0].spikes.items():
        torch.testing.assert_close(results[1].spikes[name], spikes, rtol=1e-5, atol=1e-4)


def test_import_stays_lean():
    code = (
        "import sys, sj_burst, torch; "
        "print([m for m in ('cupy', 'numba') if m in sys.modules], torch.cuda.is_initialized())"
    )
    # SpikingJelly 2.0.0rc1 imports CuPy itself.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = ["cupy"] if hasattr(base, "cupy") and base.cupy is not None else []
    assert done.stdout.strip().splitlines()[-1] == f"{imported} False"


def test_public_name():
    assert sj_burst.set_backend is set_backend


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_auto_falls_back_where_a_backend_does_not_run(monkeypatch):
    """CuPy may be installed where it cannot launch kernels: here, on the CPU's torch."""
    monkeypatch.setattr(dispatch, "is_installed", lambda backend: True)
    monkeypatch.setattr(dispatch, "_passes_trial", dispatch._passes_trial.__wrapped__)

    class OnCuda:
        device = torch.device("cuda")
        is_cuda = True
        numel = staticmethod(lambda: 1)

    assert dispatch.backend_for("auto", OnCuda()) == "torch"


def test_converted_networks_take_the_fastest_backend(convert):
    snn = convert(network_of_relus(), [torch.randn(4, 3)])
    assert all(node.backend == "auto" for node in snn.neurons().values())
