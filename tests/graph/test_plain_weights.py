import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from sj_burst.graph.trace import copy_with_plain_weights


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@torch.no_grad()
def test_weights_that_torch_computes_in_hooks_become_plain():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Conv1d(3, 3, 1), nn.Linear(3, 3), nn.Linear(3, 3))
    prune.l1_unstructured(net[0], "weight", 0.5)
    prune.random_unstructured(net[0], "weight", 0.5)  # a container of two
    prune.l1_unstructured(net[2], "bias", 0.5)
    nn.utils.weight_norm(net[3])
    nn.utils.spectral_norm(net[4])
    with torch.enable_grad():
        net(torch.rand(2, 3, 3))
    net[0].weight_orig.add_(1.0)  # as after a step of training: what was computed is of old
    net[3].weight_g.mul_(2.0)
    x = torch.rand(2, 3, 3)
    before = [name for name, _ in net.named_parameters()]
    plain = copy_with_plain_weights(net)
    assert torch.equal(plain(x), net.eval()(x))
    assert [name for name, _ in net.named_parameters()] == before  # the original has kept its hooks
    assert all(name.split(".")[1] in ("weight", "bias") for name in plain.state_dict())
    assert not any(module._forward_pre_hooks for module in plain.modules())


class Doubling:
    """A hook that torch does not know."""

    def __call__(self, module, args):
        module.weight = 2 * module.base


def test_weights_computed_in_other_hooks_are_refused():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    for layer in net:
        del layer.weight
        layer.base = nn.Parameter(torch.rand(3, 3))
        layer.register_forward_pre_hook(Doubling())
    net(torch.rand(2, 3))
    with pytest.raises(ValueError, match=r"^0, 1: weights are computed in a hook; make such"):
        copy_with_plain_weights(net)
