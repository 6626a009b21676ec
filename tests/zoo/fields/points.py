"""Point clouds, volumes, clips and graphs."""

import torch
import torch.nn.functional as F
from torch import nn

from ..entry import Collection

networks = Collection("points")


@networks.network((3, 24))
class PointNet(nn.Module):
    """Without the transformer nets: shared layers, a maximum over points."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv1d(3, 12, 1),
            nn.Conv1d(12, 16, 1),
            nn.Conv1d(16, 24, 1),
        )
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm1d(12), nn.BatchNorm1d(16), nn.BatchNorm1d(24)
        self.fc1, self.fc2, self.bn4 = nn.Linear(24, 16), nn.Linear(16, 5), nn.BatchNorm1d(16)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        x = torch.max(x, 2, keepdim=True)[0]
        x = x.view(-1, 24)
        return self.fc2(F.relu(self.bn4(self.fc1(x))))


@networks.network((3, 24))
class PointNetSegmentation(nn.Module):
    """The global feature is repeated for each point."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (
            nn.Conv1d(3, 12, 1),
            nn.Conv1d(12, 16, 1),
            nn.Conv1d(28, 12, 1),
            nn.Conv1d(12, 4, 1),
        )

    def forward(self, x):
        n_pts = x.size()[2]
        pointfeat = F.relu(self.a(x))
        x = torch.max(self.b(pointfeat), 2, keepdim=True)[0]
        x = x.view(-1, 16, 1).repeat(1, 1, n_pts)
        x = F.relu(self.c(torch.cat([x, pointfeat], 1)))
        return self.d(x).transpose(2, 1).contiguous()


@networks.network((3, 24), refused_for="features are multiplied by a matrix of activations")
class PointNetTransform(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.t, self.b = nn.Conv1d(3, 6, 1), nn.Linear(6, 36), nn.Conv1d(6, 4, 1)

    def forward(self, x):
        x = F.relu(self.a(x))
        t = self.t(x.max(2)[0]).view(-1, 6, 6)
        return F.relu(self.b(torch.bmm(x.transpose(2, 1), t).transpose(2, 1)))


@networks.network((24, 3))
class DeepSets(nn.Module):
    def __init__(self):
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
        self.rho = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x):
        return self.rho(self.phi(x).sum(dim=1) / 8)


@networks.network((3, 16))
class EdgeConv(nn.Module):
    """DGCNN's first layer: neighbours by distance of the input, then layers and a maximum."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = (
            nn.Conv2d(6, 12, 1, bias=False),
            nn.BatchNorm2d(12),
            nn.Linear(12, 4),
        )

    def forward(self, x):
        inner = -2 * torch.matmul(x.transpose(2, 1), x)
        xx = torch.sum(x**2, dim=1, keepdim=True)
        idx = (-xx - inner - xx.transpose(2, 1)).topk(k=4, dim=-1)[1]
        b, c, n = x.size()
        nb = torch.gather(x.unsqueeze(2).expand(b, c, n, n), 3, idx.unsqueeze(1).expand(b, c, n, 4))
        centre = x.unsqueeze(3).expand(-1, -1, -1, 4)
        x = F.leaky_relu(self.bn(self.conv(torch.cat((nb - centre, centre), dim=1))), 0.2)
        x = x.max(dim=-1, keepdim=False)[0]
        return self.fc(F.adaptive_max_pool1d(x, 1).view(b, -1))


@networks.network((3, 16), refused_for="neighbours are sought among activations")
class DynamicEdges(EdgeConv):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv1d(3, 3, 1), nn.Linear(4, 4)

    def forward(self, x):
        return F.relu(self.last(super().forward(F.relu(self.first(x)))))


@networks.network((1, 12, 12, 12))
def VoxNet():
    return nn.Sequential(
        *(nn.Conv3d(1, 8, 3, 2), nn.BatchNorm3d(8), nn.LeakyReLU(0.1), nn.Dropout3d(0.2)),
        *(nn.Conv3d(8, 8, 3), nn.LeakyReLU(0.1), nn.MaxPool3d(3), nn.Flatten()),
        *(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)),
    )


@networks.network((1, 8, 16, 16))
class UNet3D(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU())
        self.b = nn.Sequential(
            nn.MaxPool3d(2), nn.Conv3d(4, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU()
        )
        self.up, self.out = nn.ConvTranspose3d(8, 4, 2, 2), nn.Conv3d(8, 2, 1)

    def forward(self, x):
        a = self.a(x)
        return self.out(torch.cat([self.up(self.b(a)), a], 1))


@networks.network((1, 8, 12, 12))
class Upsampled3D(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv3d(1, 4, 3, 2, 1),
            nn.Conv3d(4, 4, 3, padding=1),
            nn.Conv3d(4, 2, 1),
        )

    def forward(self, x):
        y = F.relu(self.a(x))
        y = F.interpolate(F.relu(self.b(y)), size=x.shape[2:], mode="trilinear", align_corners=False)
        return self.c(y)


@networks.network((3, 6, 16, 16))
class C3D(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.pool1 = nn.Conv3d(3, 6, 3, padding=1), nn.MaxPool3d((1, 2, 2), (1, 2, 2))
        self.conv2, self.pool2 = nn.Conv3d(6, 8, 3, padding=1), nn.MaxPool3d(2, 2, padding=(0, 1, 1))
        self.fc, self.relu = nn.Linear(8 * 3 * 5 * 5, 5), nn.ReLU()

    def forward(self, x):
        h = self.pool1(self.relu(self.conv1(x)))
        h = self.pool2(self.relu(self.conv2(h)))
        return self.fc(h.view(-1, 8 * 3 * 5 * 5))


@networks.network((3, 6, 16, 16))
class R2Plus1D(nn.Module):
    def __init__(self):
        super().__init__()
        self.s, self.t = (
            nn.Conv3d(3, 8, (1, 3, 3), (1, 2, 2), (0, 1, 1)),
            nn.Conv3d(8, 8, (3, 1, 1), padding=(1, 0, 0)),
        )
        self.bn, self.fc = nn.BatchNorm3d(8), nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.bn(self.t(F.relu(self.s(x)))))
        return self.fc(F.adaptive_avg_pool3d(x, 1).flatten(1))


@networks.network((5, 3, 16, 16))
class FramesInTheBatch(nn.Module):
    """Each frame through a 2-D network, by folding frames into the batch, then an average."""

    def __init__(self):
        super().__init__()
        self.features, self.fc = (
            nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()),
            nn.Linear(8, 4),
        )

    def forward(self, x):
        b, t, c, h, w = x.shape
        y = self.features(x.view(b * t, c, h, w)).mean((2, 3))
        return self.fc(y.view(b, t, -1).mean(1))


@networks.network((5, 3, 16, 16))
class FramesInALoop(FramesInTheBatch):
    """The same by a loop, and the maximum over frames."""

    def forward(self, x):
        outs = []
        for t in range(x.size(1)):
            outs.append(self.features(x[:, t]).mean((2, 3)))
        return self.fc(torch.stack(outs, dim=1).max(dim=1)[0])


@networks.network((8, 6, 12, 12))
class TemporalShift(nn.Module):
    """TSM: a part of the channels moves by a frame; written with assignments into zeros."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv3d(8, 8, (1, 3, 3)), nn.Conv3d(8, 8, (1, 3, 3)), nn.Linear(8, 4)

    def shift(self, x):
        x = x.transpose(1, 2)
        out = torch.zeros_like(x)
        out[:, :-1, :2] = x[:, 1:, :2]
        out[:, 1:, 2:4] = x[:, :-1, 2:4]
        out[:, :, 4:] = x[:, :, 4:]
        return out.transpose(1, 2)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = F.relu(self.b(self.shift(x)))
        return self.fc(x.mean((2, 3, 4)))


@networks.network((7, 5))
class GraphConvolution(nn.Module):
    """A fixed graph: adjacency times features times weights."""

    def __init__(self):
        super().__init__()
        a = (torch.rand(7, 7) > 0.5).float()
        self.register_buffer("adj", (a + torch.eye(7)) / 4)
        self.w1, self.w2, self.b = (
            nn.Parameter(torch.randn(5, 16) / 2),
            nn.Linear(16, 3),
            nn.Parameter(torch.zeros(16)),
        )

    def forward(self, x):
        support = torch.matmul(x, self.w1)
        x = F.relu(torch.matmul(self.adj, support) + self.b)
        return torch.einsum("ij,bjk->bik", self.adj, self.w2(x))


@networks.network((7, 5))
class ScatterGraph(nn.Module):
    """Messages along a list of edges, gathered and summed by index."""

    def __init__(self):
        super().__init__()
        self.register_buffer("edges", torch.randint(7, (2, 15)))
        self.lin1, self.lin2 = nn.Linear(5, 12), nn.Linear(12, 3)

    def propagate(self, x):
        src, dst = self.edges
        return torch.zeros_like(x).index_add(1, dst, x[:, src])

    def forward(self, x):
        x = F.relu(self.propagate(self.lin1(x)))
        return self.propagate(self.lin2(x))


@networks.network((7, 5), refused_for="attention over edges")
class GraphAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.a, self.out = nn.Linear(5, 8), nn.Linear(16, 1), nn.Linear(8, 3)

    def forward(self, x):
        h = F.relu(self.w(x))
        n = h.size(1)
        pairs = torch.cat(
            [h.unsqueeze(2).expand(-1, -1, n, -1), h.unsqueeze(1).expand(-1, n, -1, -1)], -1
        )
        att = F.leaky_relu(self.a(pairs).squeeze(-1), 0.2).softmax(-1)
        return F.relu(self.out(att @ h))
