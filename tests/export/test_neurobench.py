import copy
import importlib.util
import math
import re

import pytest
import torch
from torch import nn

import sj_burst
from sj_burst.export import to_neurobench
from sj_burst.export.neurobench import Bits, ShownSpikes, UnfoldedLayer, _unfold
from sj_burst.export.unit_thresholds import unit_thresholds
from tests.networks import resnet, vgg

needs_neurobench = pytest.mark.skipif(
    importlib.util.find_spec("neurobench") is None, reason="needs neurobench"
)
CASES = {
    "vgg": (vgg, (2, 8, 8), {}),
    "resnet, Γ=1": (resnet, (3, 8, 8), {"max_spikes": 1, "inactivated_spikes": "allow"}),
    "resnet, unsigned": (resnet, (3, 8, 8), {"max_spikes": 4, "inactivated_spikes": "allow"}),
}


def make(convert, case):
    network, shape, options = CASES[case]
    torch.manual_seed(0)
    x = torch.randn(12, *shape)
    return convert(network(), [x], time_steps=4, **options), x


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_unfolding_changes_nothing(convert, case):
    snn, x = make(convert, case)
    unfolded = _unfold(unit_thresholds(snn))
    torch.testing.assert_close(unfolded.answer(x, 4), snn.answer(x, 4), atol=1e-5, rtol=1e-5)
    layers = [m for m in unfolded.modules() if isinstance(m, UnfoldedLayer)]
    weighted = [m for m in snn.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert len(layers) == len(weighted) - 1  # the first one reads a picture
    assert sum(isinstance(m, ShownSpikes) for m in unfolded.modules()) == len(snn.neurons())


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_what_layers_read_is_single_spikes_and_costs_what_synops_says(convert, case):
    """As NeuroBench counts: operations of a copy with weights of one, on what hooks see."""
    snn, x = make(convert, case)
    unfolded = _unfold(unit_thresholds(snn))
    operations, sent, places = 0.0, 0, 0

    def read(layer, inputs):
        nonlocal operations
        assert set(inputs[0].unique().tolist()) <= {-1.0, 0.0, 1.0}
        ones = copy.deepcopy(layer)
        ones._forward_pre_hooks.clear()
        ones.weight.data.fill_(1)
        operations += ones(inputs[0].abs()).sum().item()

    def seen(_, inputs, out):
        nonlocal sent, places
        sent, places = sent + int(out.count_nonzero()), places + out.numel()

    for module in unfolded.modules():
        if isinstance(module, UnfoldedLayer):
            module.layer.register_forward_pre_hook(read)
        if isinstance(module, Bits):
            module.register_forward_hook(seen)
    unfolded.run(x, 4)
    result = sj_burst.simulate(snn, [x], 4, progress=False)
    assert operations / len(x) == pytest.approx(result.operations.synops, rel=1e-5)
    assert sent / len(x) == pytest.approx(sum(n.sum().item() for n in result.spikes.values()), rel=1e-6)


@needs_neurobench
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_its_metrics_agree_with_ours(convert, case):
    from neurobench.metrics.workload import ActivationSparsity, SynapticOperations

    snn, x = make(convert, case)
    model = to_neurobench(snn)
    model.register_hooks()
    answer = model(x)
    torch.testing.assert_close(answer, snn.answer(x, 4), atol=1e-5, rtol=1e-5)
    operations = SynapticOperations()(model, answer, (x, None))
    result = sj_burst.simulate(snn, [x], 4, progress=False)
    assert operations["Effective_ACs"] == pytest.approx(result.operations.synops, rel=1e-5)
    assert operations["Effective_MACs"] == pytest.approx(result.operations.macs, rel=1e-5)
    places = sum(out.numel() for hook in model.activation_hooks for out in hook.activation_outputs)
    spikes = len(x) * sum(n.sum().item() for n in result.spikes.values())
    assert ActivationSparsity()(model, answer, (x, None)) == pytest.approx(1 - spikes / places)


@pytest.mark.parametrize(
    ("layers", "options"),
    [
        ((nn.LeakyReLU(0.1), nn.Conv2d(4, 2, 3)), {}),
        ((nn.ReLU(), nn.ConvTranspose2d(4, 2, 3)), {}),
        ((nn.ReLU(), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(4, 2, 3)), {}),
        ((nn.ReLU(), nn.Conv2d(4, 2, 3)), {"inactivated_spikes": "spike_calibration", "allowance": 2}),
        ((nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Conv2d(4, 2, 3)), {}),
    ],
)
def test_layers_whose_bursts_would_be_seen_as_one_are_named(convert, layers, options):
    ann, x = nn.Sequential(nn.Conv2d(2, 4, 3), *layers), torch.randn(8, 2, 8, 8)
    snn = convert(ann, [x], calibration="none", **options)
    with pytest.raises(ValueError, match=f"single spikes that {len(layers)} read; synops") as raised:
        to_neurobench(snn)
    advised = re.search(r"coding='(\w+)' and inactivated_spikes='(\w+)' or '(\w+)'", str(raised.value))
    coding, *kinds = advised.groups()
    for kind in kinds:  # what it says can be done
        sj_burst.Options(coding=coding, inactivated_spikes=kind)


def test_so_is_one_that_reads_what_an_encoder_sends(convert):
    snn = convert(vgg(), [torch.rand(8, 2, 8, 8)], calibration="none", coding="rate")
    with pytest.raises(ValueError, match=r"single spikes that 0 read; .* coding='direct'"):
        to_neurobench(snn)


@torch.no_grad()
def test_nearest_neighbours_are_single_spikes(convert):
    ann = nn.Sequential(
        *(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(4, 2, 3), nn.ReLU()),
        *(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 2, 1)),  # the last one reads currents
    )
    x = torch.randn(8, 2, 8, 8)
    snn = convert(ann, [x], calibration="none")
    unfolded = _unfold(unit_thresholds(snn))
    assert isinstance(unfolded.graph.get_submodule("3"), UnfoldedLayer)
    torch.testing.assert_close(unfolded.answer(x, 3), snn.answer(x, 3), atol=1e-5, rtol=1e-5)


def test_bad_input(convert):
    with pytest.raises(TypeError, match="got Linear"):
        to_neurobench(nn.Linear(2, 2))
    snn, x = make(convert, "vgg")
    with pytest.raises(ValueError, match="time_steps"):
        to_neurobench(snn, 0)
    endless = convert(vgg(), [x], max_spikes=math.inf, threshold="max", calibration="none")
    with pytest.raises(ValueError, match="has no bound"):
        to_neurobench(endless)


@pytest.mark.skipif(importlib.util.find_spec("neurobench") is not None, reason="neurobench is there")
def test_without_neurobench_its_extra_is_named(convert):
    with pytest.raises(ImportError, match=r"pip install 'sj_burst\[neurobench\]'"):
        to_neurobench(make(convert, "vgg")[0])


@torch.no_grad()
def test_other_sizes_are_refused_where_a_count_would_weigh_something_else(convert):
    ann = nn.Sequential(
        *(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
    )
    x = torch.randn(8, 2, 8, 8)
    unfolded = _unfold(unit_thresholds(convert(ann, [x], calibration="none")))
    with pytest.raises(ValueError, match="give the size of pictures"):
        unfolded.answer(torch.randn(8, 2, 12, 12), 3)
