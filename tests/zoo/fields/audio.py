"""Sound: waveforms and spectrograms."""

import torch
import torch.nn.functional as F
from torch import nn

from ..entry import Collection

networks = Collection("audio")


@networks.network((1, 2048))
class M5(nn.Module):
    """Dai et al., 2017, as in PyTorch's tutorial."""

    def __init__(self, n_channel=16):
        super().__init__()
        self.conv1 = nn.Conv1d(1, n_channel, kernel_size=80, stride=16)
        self.bn1 = nn.BatchNorm1d(n_channel)
        self.pool1 = nn.MaxPool1d(2)
        self.conv2 = nn.Conv1d(n_channel, n_channel, kernel_size=3)
        self.bn2 = nn.BatchNorm1d(n_channel)
        self.pool2 = nn.MaxPool1d(2)
        self.conv3 = nn.Conv1d(n_channel, 2 * n_channel, kernel_size=3)
        self.bn3 = nn.BatchNorm1d(2 * n_channel)
        self.fc1 = nn.Linear(2 * n_channel, 10)

    def forward(self, x):
        x = self.pool1(F.relu(self.bn1(self.conv1(x))))
        x = self.pool2(F.relu(self.bn2(self.conv2(x))))
        x = F.relu(self.bn3(self.conv3(x)))
        x = F.avg_pool1d(x, x.shape[-1])
        x = x.permute(0, 2, 1)
        return self.fc1(x).squeeze(1)


@networks.network((1, 40, 32))
class KeywordSpotter(nn.Module):
    """DS-CNN: depthwise-separable keyword spotting."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 16, (10, 4), stride=2, padding=(5, 1)), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.blocks = nn.ModuleList()
        for _ in range(3):
            self.blocks.append(
                nn.Sequential(
                    *(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.ReLU()),
                    *(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.ReLU()),
                )
            )
        self.fc = nn.Linear(16, 12)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.fc(F.adaptive_avg_pool2d(x, (1, 1)).view(x.shape[0], -1))


@networks.network((1, 32, 24))
class TcResNet(nn.Module):
    """Temporal convolutions over frequencies as channels."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(32, 16, 3, padding=1, bias=False)
        self.a, self.na = nn.Conv1d(16, 24, 9, 2, 4, bias=False), nn.BatchNorm1d(24)
        self.b, self.nb = nn.Conv1d(24, 24, 9, 1, 4, bias=False), nn.BatchNorm1d(24)
        self.down, self.nd = nn.Conv1d(16, 24, 1, 2, bias=False), nn.BatchNorm1d(24)
        self.head = nn.Conv1d(24, 12, 1)

    def forward(self, x):
        x = self.first(x.squeeze(1))
        shortcut = F.relu(self.nd(self.down(x)))
        x = F.relu(self.na(self.a(x)))
        x = self.nb(self.b(x))
        x = F.relu(x + shortcut)
        return self.head(x.mean(dim=2, keepdim=True)).flatten(1)


@networks.network((1, 1024))
class SincFront(nn.Module):
    """Filters that are computed from two parameters each, as in SincNet."""

    def __init__(self):
        super().__init__()
        self.low, self.band = (
            nn.Parameter(torch.linspace(0.01, 0.3, 8)),
            nn.Parameter(torch.full((8,), 0.1)),
        )
        self.register_buffer("n", torch.arange(-15, 16).float())
        self.register_buffer("window", torch.hamming_window(31))
        self.conv, self.norm, self.fc = nn.Conv1d(8, 16, 5), nn.BatchNorm1d(16), nn.Linear(16, 4)

    def forward(self, x):
        low = self.low.abs().unsqueeze(1)
        high = torch.clamp(low + self.band.abs().unsqueeze(1), max=0.5)
        filters = (
            2 * high * torch.sinc(2 * high * self.n) - 2 * low * torch.sinc(2 * low * self.n)
        ) * self.window
        x = F.conv1d(x, filters.unsqueeze(1), stride=2, padding=15)
        x = F.max_pool1d(F.leaky_relu(x, 0.2), 3)
        return self.fc(F.leaky_relu(self.norm(self.conv(x)), 0.2).mean(-1))


@networks.network((1, 512))
class SpectrogramInside(nn.Module):
    """A short-time Fourier transform before the first layer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("window", torch.hann_window(64))
        self.conv1, self.conv2, self.fc = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        s = torch.stft(x.squeeze(1), 64, 16, window=self.window, return_complex=True)
        x = torch.log(s.abs() ** 2 + 1e-3).unsqueeze(1)
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return self.fc(F.relu(self.conv2(x)).mean([2, 3]))


class _CausalConv(nn.Conv1d):
    def forward(self, x):
        return super().forward(F.pad(x, ((self.kernel_size[0] - 1) * self.dilation[0], 0)))


@networks.network((1, 64))
class DilatedCausal(nn.Module):
    """A WaveNet of ReLUs, with skip connections that are summed."""

    def __init__(self):
        super().__init__()
        self.inp = _CausalConv(1, 8, 2)
        self.dilated = nn.ModuleList(_CausalConv(8, 8, 2, dilation=2**i) for i in range(4))
        self.skip = nn.ModuleList(nn.Conv1d(8, 12, 1) for _ in range(4))
        self.out = nn.Sequential(nn.ReLU(), nn.Conv1d(12, 12, 1), nn.ReLU(), nn.Conv1d(12, 16, 1))

    def forward(self, x):
        x, total = self.inp(x), 0
        for conv, skip in zip(self.dilated, self.skip):
            y = F.relu(conv(x))
            total = total + skip(y)
            x = x + y
        return self.out(total)


@networks.network((1, 64), refused_for="a gate of tanh and sigmoid")
class WaveNetGated(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp, self.f, self.g = (
            nn.Conv1d(1, 8, 1),
            nn.Conv1d(8, 8, 3, padding=1),
            nn.Conv1d(8, 8, 3, padding=1),
        )
        self.out = nn.Sequential(nn.ReLU(), nn.Conv1d(8, 4, 1))

    def forward(self, x):
        x = self.inp(x)
        return self.out(torch.tanh(self.f(x)) * torch.sigmoid(self.g(x)) + x)


@networks.network((20, 40))
class XVector(nn.Module):
    """Time-delay layers on ``[N, T, features]``; mean pooling instead of statistics."""

    def __init__(self):
        super().__init__()
        self.tdnn1 = nn.Conv1d(40, 24, 5)
        self.tdnn2 = nn.Conv1d(24, 24, 3, dilation=2)
        self.tdnn3 = nn.Conv1d(24, 32, 1)
        self.bn = nn.ModuleList([nn.BatchNorm1d(24), nn.BatchNorm1d(24), nn.BatchNorm1d(32)])
        self.embed = nn.Linear(32, 16)

    def forward(self, x):
        x = x.transpose(1, 2)
        for conv, bn in zip([self.tdnn1, self.tdnn2, self.tdnn3], self.bn):
            x = bn(F.relu(conv(x)))
        return self.embed(torch.mean(x, dim=2))


@networks.network((20, 40), refused_for="a standard deviation of activations")
class XVectorStatistics(XVector):
    """Pooling of mean and standard deviation."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(64, 16), nn.ReLU())

    def forward(self, x):
        x = x.transpose(1, 2)
        for conv, bn in zip([self.tdnn1, self.tdnn2, self.tdnn3], self.bn):
            x = bn(F.relu(conv(x)))
        return self.embed(torch.cat([x.mean(2), x.std(2)], 1))


@networks.network((1, 256))
class DemucsLike(nn.Module):
    """A U-Net of strided and transposed 1-D convolutions, cropped to the shorter."""

    def __init__(self):
        super().__init__()
        self.e1, self.e2 = nn.Conv1d(1, 8, 8, 4), nn.Conv1d(8, 16, 8, 4)
        self.d2, self.d1 = nn.ConvTranspose1d(16, 8, 8, 4), nn.ConvTranspose1d(8, 1, 8, 4)

    def forward(self, x):
        a = F.relu(self.e1(x))
        b = F.relu(self.e2(a))
        u = F.relu(self.d2(b))
        n = min(u.shape[-1], a.shape[-1])
        return self.d1(u[..., :n] + a[..., :n])


@networks.network((1, 16, 40))
class FrequencyWise(nn.Module):
    """BatchNorm over frequencies by transposing, as in PANNs."""

    def __init__(self):
        super().__init__()
        self.bn0 = nn.BatchNorm2d(40)
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = self.bn0(x.transpose(1, 3)).transpose(1, 3)
        x = F.relu_(self.bn1(self.conv1(x)))
        x = F.relu_(self.bn2(self.conv2(x)))
        x = F.avg_pool2d(x, kernel_size=2) + F.max_pool2d(x, kernel_size=2)
        x = torch.mean(x, dim=3)
        x1, _ = torch.max(x, dim=2)
        x2 = torch.mean(x, dim=2)
        return self.fc(F.dropout(x1 + x2, p=0.5, training=self.training))
