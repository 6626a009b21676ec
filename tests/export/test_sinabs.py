import importlib.util
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sj_burst.export.sinabs import SinabsNeurons, to_sinabs
from sj_burst.modules.neuron import BurstIFNode
from sj_burst.utils.outputs import tensors_of
from tests.networks import resnet, vgg

needs_sinabs = pytest.mark.skipif(importlib.util.find_spec("sinabs") is None, reason="needs sinabs")


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.up, self.c = nn.ConvTranspose2d(12, 8, 2, 2), nn.Conv2d(16, 8, 3, padding=1)
        self.d = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        a = F.relu(self.a(x))
        up = F.relu(self.up(F.relu(self.b(F.avg_pool2d(a, 2)))))
        return {"scores": self.d(F.relu(self.c(torch.cat([up, a], 1)))), "features": up}


NETWORKS = {"vgg": (vgg, (2, 8, 8)), "resnet": (resnet, (3, 8, 8)), "unet": (UNet, (3, 8, 8))}
UNSIGNED = {"inactivated_spikes": "allow", "max_pool": "average"}


def counts(net, kind, run):
    """What every layer of neurons sends, in units of its threshold, ``[N, T, ...]``."""
    found = {}

    def keep(name, node):
        def hook(module, _, out):
            if kind is SinabsNeurons:
                found[name] = out.unflatten(0, (-1, module.time_steps))
            else:
                theta = module.threshold.view(-1, *[1] * (out.dim() - 2))
                found[name] = (out / theta).unflatten(0, tuple(module.time_fold)).transpose(0, 1)

        return node.register_forward_hook(hook)

    hooks = [keep(name, m) for name, m in net.graph.named_modules() if isinstance(m, kind)]
    out = run()
    for hook in hooks:
        hook.remove()
    return found, out


@needs_sinabs
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
@pytest.mark.parametrize("gamma", [1, 4, math.inf])
@pytest.mark.parametrize("name", NETWORKS)
def test_spike_for_spike(convert, name, gamma):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    ann, x = make().double(), torch.randn(12, *shape, dtype=torch.float64)
    threshold = "99.9%" if math.isinf(gamma) else "mse"
    options = {"max_spikes": gamma, "threshold": threshold, "time_steps": 16, "calibration": "light"}
    snn = convert(ann, [x], **options, **UNSIGNED)
    net = to_sinabs(snn)
    wanted, out = counts(snn, BurstIFNode, lambda: snn.run(x, 16))
    got, same = counts(net, SinabsNeurons, lambda: net.run(x, time_steps=16))
    assert list(got) == list(wanted)
    for layer in wanted:
        assert torch.equal(got[layer], wanted[layer].round()), layer
        assert got[layer].sum() > 0
    for a, b in zip(tensors_of(same).values(), tensors_of(out).values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_what_sinabs_cannot_express_is_refused(convert):
    x = torch.randn(8, 2, 8, 8)
    snn = convert(vgg(), [x], calibration="none", coding="rate")
    with pytest.raises(ValueError, match="inactivated_spikes='allow'; nor") as error:
        to_sinabs(snn)
    assert "max_pool='average'" in str(error.value)
    assert "coding='direct'" in str(error.value)
    leaky = nn.Sequential(nn.Conv2d(2, 3, 3), nn.LeakyReLU(0.1), nn.Conv2d(3, 2, 3))
    with pytest.raises(ValueError, match="train with ReLU"):
        to_sinabs(convert(leaky, [x], calibration="none"))
    with pytest.raises(TypeError, match="got Linear"):
        to_sinabs(nn.Linear(2, 2))


@pytest.mark.skipif(importlib.util.find_spec("sinabs") is not None, reason="sinabs is there")
def test_without_sinabs_its_extra_is_named(convert):
    snn = convert(vgg(), [torch.randn(8, 2, 8, 8)], calibration="none", **UNSIGNED)
    with pytest.raises(ImportError, match=r"pip install 'sj_burst\[sinabs\]'"):
        to_sinabs(snn)
