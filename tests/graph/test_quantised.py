import torch
from torch import nn

from sj_burst.graph.quantised import quantised
from tests.networks import resnet, vgg


@torch.no_grad()
def test_one_step_is_the_quantised_ann(convert):
    for make, shape in ((vgg, (2, 8, 8)), (resnet, (3, 8, 8))):
        ann, x = make(), torch.randn(12, *shape)
        snn = convert(ann, [x], max_spikes=6, time_steps=1)
        torch.testing.assert_close(quantised(snn.graph, 1)(x), snn.run(x, 1).mean(0), atol=1e-4, rtol=0)


@torch.no_grad()
def test_many_levels_are_the_ann(convert):
    ann, x = resnet(), torch.randn(12, 3, 8, 8)
    snn = convert(ann, [x], max_spikes=4, calibration="none", threshold="max")
    torch.testing.assert_close(quantised(snn.graph, 10_000)(x), ann(x), atol=1e-2, rtol=0)


@torch.no_grad()
def test_it_is_a_copy_without_time(convert):
    ann, x = vgg(), torch.randn(12, 2, 8, 8)
    snn = convert(ann, [x], max_spikes=1, coding="rate", calibration="none")
    before = {name: value.clone() for name, value in snn.state_dict().items()}
    found = quantised(snn.graph, 4)
    first = found(x)
    assert torch.equal(found(x), first)  # no state
    next(m for m in found.modules() if isinstance(m, nn.Conv2d)).weight.zero_()
    assert all(torch.equal(value, before[name]) for name, value in snn.state_dict().items())
