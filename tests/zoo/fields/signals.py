"""EEG, ECG, motion, and other time series."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from ..entry import Collection

networks = Collection("signals")


@networks.network((1, 8, 64))
class EEGNetReLU(nn.Module):
    """Lawhern et al., 2018, with ReLU."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(1, 4, (1, 16), padding=(0, 8), bias=False), nn.BatchNorm2d(4)
        )
        self.depth = nn.Sequential(
            *(nn.Conv2d(4, 8, (8, 1), groups=4, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.AvgPool2d((1, 4)), nn.Dropout(0.25)),
        )
        self.sep = nn.Sequential(
            *(
                nn.Conv2d(8, 8, (1, 16), padding=(0, 8), groups=8, bias=False),
                nn.Conv2d(8, 8, 1, bias=False),
            ),
            *(nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d((1, 8)), nn.Dropout(0.25)),
        )
        self.classify = nn.LazyLinear(4)
        self(torch.zeros(1, 1, 8, 64))

    def forward(self, x):
        x = self.sep(self.depth(self.first(x)))
        return self.classify(x.view(x.size(0), -1))


@networks.network((1, 8, 64), refused_for="ELU")
class EEGNetELU(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv2d(1, 4, (1, 16)), nn.ELU(), nn.Conv2d(4, 4, (8, 1)), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(196, 4)),
        )

    def forward(self, x):
        return self.net(x)


@networks.network((1, 8, 80), refused_for="square and log")
class ShallowConvNet(nn.Module):
    """Schirrmeister et al., 2017: square, mean, log; a ReLU before."""

    def __init__(self):
        super().__init__()
        self.time, self.space = nn.Conv2d(1, 4, (1, 9)), nn.Conv2d(4, 4, (8, 1), bias=False)
        self.norm, self.fc = nn.BatchNorm2d(4), nn.Linear(4 * 9, 4)

    def forward(self, x):
        x = self.norm(self.space(F.relu(self.time(x))))
        x = F.avg_pool2d(x * x, (1, 8), (1, 8))
        return F.relu(self.fc(torch.log(torch.clamp(x, min=1e-6)).flatten(1)))


@networks.network((1, 120))
class EcgResNet(nn.Module):
    """Residual blocks with max-pooling in the shortcut, and BN-ReLU-Dropout before convolutions."""

    def __init__(self):
        super().__init__()
        self.inp = nn.Conv1d(1, 12, 7, padding=3)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Conv1d(12, 12, 7, 2, 3)),
                *(nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Conv1d(12, 12, 7, 1, 3)),
            )
            for _ in range(2)
        )
        self.last, self.fc = nn.BatchNorm1d(12), nn.Linear(12, 5)

    def forward(self, x):
        x = F.relu(self.inp(x))
        for block in self.blocks:
            x = block(x) + F.max_pool1d(x, 2)
        return self.fc(F.relu(self.last(x)).mean(-1))


class _Chomp1d(nn.Module):
    def __init__(self, chomp_size):
        super().__init__()
        self.chomp_size = chomp_size

    def forward(self, x):
        return x[:, :, : -self.chomp_size].contiguous()


class _TemporalBlock(nn.Module):
    def __init__(self, n_inputs, n_outputs, kernel_size, dilation, norm):
        super().__init__()
        padding = (kernel_size - 1) * dilation
        self.conv1 = norm(
            nn.Conv1d(n_inputs, n_outputs, kernel_size, padding=padding, dilation=dilation)
        )
        self.conv2 = norm(
            nn.Conv1d(n_outputs, n_outputs, kernel_size, padding=padding, dilation=dilation)
        )
        self.net = nn.Sequential(
            *(self.conv1, _Chomp1d(padding), nn.ReLU(), nn.Dropout(0.2)),
            *(self.conv2, _Chomp1d(padding), nn.ReLU(), nn.Dropout(0.2)),
        )
        self.downsample = nn.Conv1d(n_inputs, n_outputs, 1) if n_inputs != n_outputs else None
        self.relu = nn.ReLU()

    def forward(self, x):
        out = self.net(x)
        res = x if self.downsample is None else self.downsample(x)
        return self.relu(out + res)


@networks.network((3, 40))
class TCN(nn.Module):
    """Bai et al., 2018, with weight norm; the last time step is read."""

    def __init__(self, norm=parametrizations.weight_norm):
        super().__init__()
        channels = [3, 8, 8, 12]
        self.tcn = nn.Sequential(
            *(_TemporalBlock(channels[i], channels[i + 1], 3, 2**i, norm) for i in range(3))
        )
        self.linear = nn.Linear(12, 5)

    def forward(self, inputs):
        y1 = self.tcn(inputs)
        return self.linear(y1[:, :, -1])


@networks.network((3, 40))
def TCNOldWeightNorm():
    return TCN(_old_weight_norm)


def _old_weight_norm(layer):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(layer)


@networks.network((1, 96))
class InceptionTime(nn.Module):
    """Fawaz et al., 2020: one block."""

    def __init__(self):
        super().__init__()
        self.bottleneck = nn.Conv1d(1, 8, 1, bias=False)
        self.convs = nn.ModuleList(nn.Conv1d(8, 8, k, padding=k // 2, bias=False) for k in (39, 19, 9))
        self.maxpool, self.after = nn.MaxPool1d(3, 1, 1), nn.Conv1d(1, 8, 1, bias=False)
        self.bn = nn.BatchNorm1d(32)
        self.shortcut = nn.Sequential(nn.Conv1d(1, 32, 1, bias=False), nn.BatchNorm1d(32))
        self.fc = nn.Linear(32, 3)

    def forward(self, x):
        b = self.bottleneck(x)
        y = torch.cat([*[conv(b) for conv in self.convs], self.after(self.maxpool(x))], dim=1)
        y = F.relu(self.bn(y))
        y = F.relu(y + self.shortcut(x))
        return self.fc(F.adaptive_avg_pool1d(y, 1).squeeze(-1))


@networks.network((9, 64))
def FCN():
    """Wang et al., 2017."""
    layers, before = [], 9
    for width, k in ((16, 7), (16, 5), (12, 3)):
        layers += [nn.Conv1d(before, width, k, padding="same"), nn.BatchNorm1d(width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(12, 6))


@networks.network((24, 5))
class DLinearReLU(nn.Module):
    """Decomposition by a moving average with replicated ends."""

    def __init__(self):
        super().__init__()
        self.avg = nn.AvgPool1d(5, stride=1, padding=0)
        self.seasonal, self.trend = nn.Linear(24, 16), nn.Linear(24, 16)
        self.out = nn.Linear(16, 12)

    def forward(self, x):
        front, end = x[:, 0:1, :].repeat(1, 2, 1), x[:, -1:, :].repeat(1, 2, 1)
        trend = self.avg(torch.cat([front, x, end], dim=1).permute(0, 2, 1))
        seasonal = x.permute(0, 2, 1) - trend
        y = F.relu(self.seasonal(seasonal)) + F.relu(self.trend(trend))
        return self.out(y).permute(0, 2, 1)


@networks.network((20,))
class NBeats(nn.Module):
    """Doubly residual stacks."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 25))
            for _ in range(3)
        )

    def forward(self, backcast):
        forecast = torch.zeros(size=(backcast.size()[0], 5))
        for block in self.blocks:
            b, f = block(backcast).split([20, 5], dim=1)
            backcast = backcast - b
            forecast = forecast + f
        return forecast


@networks.network((6, 12), refused_for="recurrence")
class LSTMClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.lstm, self.fc = (
            nn.Linear(12, 8),
            nn.LSTM(8, 8, batch_first=True),
            nn.Linear(8, 3),
        )

    def forward(self, x):
        out, _ = self.lstm(F.relu(self.embed(x)))
        return F.relu(self.fc(out[:, -1]))


@networks.network((6, 12))
class UnrolledReLURnn(nn.Module):
    """A recurrence of ReLUs over six steps, which is a deep network."""

    def __init__(self):
        super().__init__()
        self.inp, self.rec, self.out = nn.Linear(12, 16), nn.Linear(16, 16, bias=False), nn.Linear(16, 3)

    def forward(self, x):
        h = x.new_zeros(x.size(0), 16)
        for t in range(x.size(1)):
            h = F.relu(self.inp(x[:, t]) + self.rec(h))
        return self.out(h)


@networks.network((6, 12), refused_for="recurrence")
class ReLURnnModule(nn.Module):
    """The same with torch's module."""

    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.RNN(12, 16, nonlinearity="relu", batch_first=True), nn.Linear(16, 3)

    def forward(self, x):
        _, h = self.rnn(x)
        return self.out(h[-1])


@networks.network((2, 16, 3))
class SkeletonGraph(nn.Module):
    """ST-GCN: a constant adjacency multiplies joints, by einsum."""

    def __init__(self):
        super().__init__()
        a = torch.rand(3, 3)
        self.register_buffer("A", torch.stack([a / a.sum(0), torch.eye(3)]))
        self.importance = nn.Parameter(torch.ones(2, 3, 3))
        self.data_bn = nn.BatchNorm1d(6)
        self.gcn = nn.Conv2d(2, 16, 1)
        self.tcn = nn.Sequential(
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, (9, 1), 1, (4, 0)),
            nn.BatchNorm2d(8),
        )
        self.residual, self.relu, self.fcn = (
            nn.Conv2d(2, 8, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 5, 1),
        )

    def forward(self, x):
        n, c, t, v = x.size()
        x = self.data_bn(x.permute(0, 3, 1, 2).contiguous().view(n, v * c, t))
        x = x.view(n, v, c, t).permute(0, 2, 3, 1).contiguous()
        res = self.residual(x)
        y = self.gcn(x)
        n, kc, t, v = y.size()
        y = y.view(n, 2, kc // 2, t, v)
        y = torch.einsum("nkctv,kvw->nctw", (y, self.A * self.importance)).contiguous()
        x = self.relu(self.tcn(y) + res)
        x = F.avg_pool2d(x, x.size()[2:]).view(n, -1, 1, 1)
        return self.fcn(x).view(x.size(0), -1)
