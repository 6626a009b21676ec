"""BatchNorm folds into its neighbours where that is exact."""

import torch
import torch.nn.functional as F
from torch import nn

from sj_burst import standardize
from sj_burst.graph.check import check_equal
from sj_burst.graph.fuse import fuse, unfused


def test_batch_norm_folds_backward_and_forward():
    net = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)),
        *(nn.Conv2d(4, 6, 2, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 4)),
        *(nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 3)),
    )
    randomize_batch_norm_all(net)
    x = torch.rand(3, 2, 4, 4)
    gm = fuse(standardize(net, x), x)
    assert unfused(gm) == []
    check_equal(gm, net, x, tolerance=1e-5)


def randomize_batch_norm_all(net):
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)


def test_transposed_convolutions_fold_too():
    net = nn.Sequential(nn.ConvTranspose2d(2, 3, 2, 2), nn.BatchNorm2d(3), nn.ReLU())
    randomize_batch_norm_all(net)
    x = torch.rand(2, 2, 3, 3)
    gm = fuse(standardize(net, x), x)
    assert unfused(gm) == []
    check_equal(gm, net, x, tolerance=1e-5)


def test_batch_norm_before_padding_stays():
    net = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.ReLU(), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, padding=1), nn.ReLU()
    )
    randomize_batch_norm_all(net)
    x = torch.rand(2, 1, 4, 4)
    gm = fuse(standardize(net, x), x)
    assert unfused(gm) == ["2"]
    check_equal(gm, net, x, tolerance=1e-5)


def test_a_convolution_shared_by_two_batch_norms_is_not_fused():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.a, self.b = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.BatchNorm2d(2)

        def forward(self, x):
            return F.relu(self.a(self.conv(x))) + F.relu(self.b(self.conv(x)))

    net = Shared()
    randomize_batch_norm_all(net)
    x = torch.rand(2, 1, 5, 5)
    gm = fuse(standardize(net, x), x)
    assert unfused(gm) == ["a", "b"]
    check_equal(gm, net, x, tolerance=1e-5)


def test_batch_norm_over_a_sequence_is_not_folded_into_its_linear():
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.bn = nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x):
            return F.relu(self.bn(self.fc(x)))  # [N, 4, 4]: BatchNorm acts on dimension 1

    net = Sequence()
    randomize_batch_norm_all(net)
    x = torch.rand(3, 4, 4)
    gm = fuse(standardize(net, x), x)
    check_equal(gm, net, x, tolerance=1e-5)


def test_batch_norm_after_a_grouped_transposed_convolution_stays():
    net = nn.Sequential(nn.ConvTranspose2d(4, 8, 2, groups=2), nn.BatchNorm2d(8), nn.ReLU()).eval()
    x = torch.rand(2, 4, 3, 3)
    gm = fuse(standardize(net, x), x)
    assert unfused(gm) == ["1"]
    assert torch.allclose(gm(x), net(x))
