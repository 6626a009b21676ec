import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from sj_burst.graph.trace import copy_with_plain_weights


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_all_layers_whose_weights_are_computed_in_hooks_are_named():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Conv1d(3, 3, 1), nn.Linear(1, 3), nn.Linear(3, 3))
    prune.l1_unstructured(net[0], "weight", 0.5)
    prune.l1_unstructured(net[2], "bias", 0.5)
    nn.utils.weight_norm(net[3])
    nn.utils.spectral_norm(net[4])
    net[4](torch.rand(2, 3))
    with pytest.raises(ValueError, match=r"^0, 2, 3, 4: weights are computed in a hook; make such"):
        copy_with_plain_weights(net)
    for layer, name in ((net[0], "weight"), (net[2], "bias")):
        prune.remove(layer, name)
    nn.utils.remove_weight_norm(net[3])
    nn.utils.remove_spectral_norm(net[4])
    copy_with_plain_weights(net)


def test_a_pruned_network_of_one_layer():
    net = prune.l1_unstructured(nn.Linear(3, 3), "weight", 0.5)
    with pytest.raises(ValueError, match=r"^the network: weights.*prune.remove\(module, 'weight'\)"):
        copy_with_plain_weights(net)
