"""Image classification, in the ways in which people write it."""

from collections import OrderedDict
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from ..entry import Collection

networks = Collection("vision")
GREY, IMAGE = (1, 28, 28), (3, 32, 32)


@networks.network(GREY)
class LeNet(nn.Module):
    """PyTorch's tutorial."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(16 * 4 * 4, 40), nn.Linear(40, 30), nn.Linear(30, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), (2, 2))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(-1, self.num_flat_features(x))
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)

    def num_flat_features(self, x):
        size = x.size()[1:]
        num_features = 1
        for s in size:
            num_features *= s
        return num_features


@networks.network(GREY)
class MnistExample(nn.Module):
    """PyTorch's example, which returns log-probabilities."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, 1), nn.Conv2d(8, 8, 3, 1)
        self.dropout1, self.dropout2 = nn.Dropout(0.25), nn.Dropout(0.5)
        self.fc1, self.fc2 = nn.Linear(1152, 32), nn.Linear(32, 10)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = F.max_pool2d(x, 2)
        x = self.dropout1(x)
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = self.dropout2(x)
        x = self.fc2(x)
        return F.log_softmax(x, dim=1)


@networks.network(GREY)
def SoftmaxAtTheEnd():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10), nn.Softmax(dim=1)
    )


@networks.network(IMAGE)
class Vgg(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = self._make_layers([8, "M", 16, "M", 16, 16, "M"])
        self.classifier = nn.Linear(256, 10)

    def forward(self, x):
        out = self.features(x)
        out = out.view(out.size(0), -1)
        return self.classifier(out)

    def _make_layers(self, cfg):
        layers, in_channels = [], 3
        for x in cfg:
            if x == "M":
                layers += [nn.MaxPool2d(kernel_size=2, stride=2)]
            else:
                layers += [
                    nn.Conv2d(in_channels, x, 3, padding=1),
                    nn.BatchNorm2d(x),
                    nn.ReLU(inplace=True),
                ]
                in_channels = x
        layers += [nn.AvgPool2d(kernel_size=1, stride=1)]
        return nn.Sequential(*layers)


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, in_planes, planes, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_planes != planes:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_planes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)
            )

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


@networks.network(IMAGE)
class KuangliuResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.layer1, self.layer2 = (
            nn.Sequential(BasicBlock(8, 8)),
            nn.Sequential(BasicBlock(8, 16, 2), BasicBlock(16, 16)),
        )
        self.linear = nn.Linear(256, 10)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer2(self.layer1(out))
        out = F.avg_pool2d(out, 4)
        out = out.view(out.size(0), -1)
        return self.linear(out)


class LambdaLayer(nn.Module):
    def __init__(self, lambd):
        super().__init__()
        self.lambd = lambd

    def forward(self, x):
        return self.lambd(x)


@networks.network(IMAGE)
class ResNetOptionA(nn.Module):
    """Shortcuts of slices and zeros; the average over the width of the map."""

    def __init__(self):
        super().__init__()
        self.conv1, self.block1, self.block2 = (
            nn.Conv2d(3, 8, 3, padding=1),
            BasicBlock(8, 8),
            BasicBlock(8, 16, 2),
        )
        self.block2.shortcut = LambdaLayer(
            lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4), "constant", 0)
        )
        self.linear = nn.Linear(16, 10)

    def forward(self, x):
        out = self.block2(self.block1(F.relu(self.conv1(x))))
        out = F.avg_pool2d(out, out.size()[3])
        return self.linear(out.view(out.size(0), -1))


@networks.network(IMAGE)
class PreActResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv0 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1, self.conv1 = nn.BatchNorm2d(8), nn.Conv2d(8, 16, 3, 2, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, 1, 1, bias=False)
        self.shortcut = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False))
        self.bn3, self.fc = nn.BatchNorm2d(16), nn.Linear(16, 10)

    def forward(self, x):
        x = self.conv0(x)
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
        out = self.conv1(out)
        out = self.conv2(F.relu(self.bn2(out)))
        out += shortcut
        return self.fc(F.relu(self.bn3(out)).mean(dim=(2, 3)))


@networks.network(IMAGE)
class WideResNetInPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn1, self.conv1 = (
            nn.Conv2d(3, 8, 3, 1, 1),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 3, 1, 1),
        )
        self.relu1, self.bn2, self.relu2 = (
            nn.ReLU(inplace=True),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
        )
        self.conv2, self.droprate, self.equalInOut, self.fc = (
            nn.Conv2d(8, 8, 3, 1, 1),
            0.3,
            True,
            nn.Linear(8, 10),
        )

    def forward(self, x):
        x = self.conv(x)
        if not self.equalInOut:
            x = self.relu1(self.bn1(x))
        else:
            out = self.relu1(self.bn1(x))
        out = self.relu2(self.bn2(self.conv1(out if self.equalInOut else x)))
        if self.droprate > 0:
            out = F.dropout(out, p=self.droprate, training=self.training)
        out = torch.add(x if self.equalInOut else out, self.conv2(out))
        out = F.avg_pool2d(out, 8)
        return self.fc(out.mean((2, 3)))


@networks.network(IMAGE)
class DenseNetBC(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.layers = nn.ModuleList()
        for i in range(3):
            c = 12 + 6 * i
            self.layers.append(
                nn.ModuleDict(
                    {
                        "bn1": nn.BatchNorm2d(c),
                        "conv1": nn.Conv2d(c, 24, 1, bias=False),
                        "bn2": nn.BatchNorm2d(24),
                        "conv2": nn.Conv2d(24, 6, 3, padding=1, bias=False),
                    }
                )
            )
        self.bn, self.trans, self.fc = (
            nn.BatchNorm2d(30),
            nn.Conv2d(30, 15, 1, bias=False),
            nn.Linear(15, 10),
        )

    def forward(self, x):
        x = self.conv1(x)
        for m in self.layers:
            out = m["conv1"](F.relu(m["bn1"](x)))
            out = m["conv2"](F.relu(m["bn2"](out)))
            x = torch.cat((x, out), 1)
        x = F.avg_pool2d(self.trans(F.relu(self.bn(x))), 2)
        return self.fc(torch.squeeze(F.adaptive_avg_pool2d(x, 1)))


@networks.network(IMAGE)
class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.b1 = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(True))
        self.b2 = nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.ReLU(True), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(True)
        )
        self.b3 = nn.Sequential(
            nn.Conv2d(3, 4, (1, 7), padding=(0, 3)),
            nn.Conv2d(4, 4, (7, 1), padding=(3, 0)),
            nn.ReLU(True),
        )
        self.b4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), nn.Conv2d(3, 4, 1), nn.ReLU(True))
        self.fc = nn.Linear(18, 10)

    def forward(self, x):
        outputs = [self.b1(x), self.b2(x), self.b3(x), self.b4(x)]
        x = torch.cat(outputs, 1)
        return self.fc(F.adaptive_avg_pool2d(x, (1, 1)).reshape(x.shape[0], 18))


@networks.network(IMAGE)
class ResNeXt(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.net = nn.Sequential(
            OrderedDict(
                reduce=nn.Conv2d(16, 8, 1, bias=False),
                bn1=nn.BatchNorm2d(8),
                act1=nn.ReLU(),
                group=nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False),
                bn2=nn.BatchNorm2d(8),
                act2=nn.ReLU(),
                expand=nn.Conv2d(8, 16, 1, bias=False),
                bn3=nn.BatchNorm2d(16),
            )
        )
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        residual = self.stem(x)
        x = F.relu(self.net(residual) + residual, inplace=True)
        return self.fc(x.flatten(2).mean(2))


@networks.network(IMAGE)
class NetworkInNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv2d(3, 12, 5, padding=2), nn.ReLU(), nn.Conv2d(12, 8, 1), nn.ReLU()),
            *(
                nn.MaxPool2d(3, 2, padding=1),
                nn.Dropout2d(0.5),
                nn.Conv2d(8, 10, 3, padding=1),
                nn.ReLU(),
            ),
            *(nn.AvgPool2d(16, 1), nn.Flatten()),
        )

    def forward(self, x):
        return self.net(x)


@networks.network(IMAGE)
class AllConvolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1, self.c2, self.c3 = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, 2, 1),
            nn.Conv2d(8, 10, 1),
        )

    def forward(self, x):
        x = self.c1(x).relu()
        x = self.c2(x).relu_()
        return self.c3(x).relu().mean([-1, -2])


@networks.network(IMAGE)
class BatchNormAfterReLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1, self.n1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.c2, self.n2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, affine=False)
        self.fc, self.nf = nn.Linear(8 * 64, 10), nn.BatchNorm1d(10)

    def forward(self, x):
        x = F.max_pool2d(self.n1(F.relu(self.c1(x))), 2)
        x = F.avg_pool2d(self.n2(F.relu(self.c2(x))), 2)
        return self.nf(self.fc(x.flatten(start_dim=1)))


@networks.network((784,))
class Maxout(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(784, 2 * 24), nn.Linear(24, 3 * 12), nn.Linear(12, 10)

    def forward(self, x):
        x = self.a(x).view(-1, 24, 2).max(dim=2)[0]
        x, _ = self.b(x).view(x.size(0), 12, 3).max(-1)
        return self.out(x)


@networks.network(IMAGE)
class MaxFeatureMap(nn.Module):
    """LightCNN: the larger of two halves of the channels."""

    def __init__(self):
        super().__init__()
        self.c1, self.c2, self.fc = (
            nn.Conv2d(3, 16, 5, 1, 2),
            nn.Conv2d(8, 16, 3, 1, 1),
            nn.Linear(512, 10),
        )

    def mfm(self, x):
        out = torch.split(x, x.size(1) // 2, 1)
        return torch.max(out[0], out[1])

    def forward(self, x):
        x = F.max_pool2d(self.mfm(self.c1(x)), 2, ceil_mode=True)
        x = self.mfm(self.c2(x))
        x = F.max_pool2d(x, 2) + F.avg_pool2d(x, 2)
        return self.fc(torch.flatten(x, 1))


@networks.network(IMAGE)
class CReLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1, self.c2, self.fc = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(16, 8, 3, 2), nn.Linear(16, 10)

    def forward(self, x):
        x = self.c1(x)
        x = F.relu(torch.cat((x, -x), dim=1))
        x = self.c2(x)
        x = torch.cat([F.relu(x), F.relu(-x)], 1)
        return self.fc(x.mean(-1).mean(-1))


@networks.network(IMAGE)
class HighResolution(nn.Module):
    """HRNet: branches of two resolutions that exchange by upsampling."""

    def __init__(self):
        super().__init__()
        cb = lambda i, o, s: nn.Sequential(nn.Conv2d(i, o, 3, s, 1, bias=False), nn.BatchNorm2d(o))
        self.stem, self.relu = cb(3, 8, 2), nn.ReLU(True)
        self.transition = nn.ModuleList([cb(8, 8, 1), cb(8, 16, 2)])
        self.branches = nn.ModuleList([BasicBlock(8, 8), BasicBlock(16, 16)])
        self.fuse = nn.ModuleList(
            [
                nn.ModuleList(
                    [
                        None,
                        nn.Sequential(
                            nn.Conv2d(16, 8, 1, bias=False),
                            nn.BatchNorm2d(8),
                            nn.Upsample(scale_factor=2, mode="nearest"),
                        ),
                    ]
                ),
                nn.ModuleList([cb(8, 16, 2), None]),
            ]
        )
        self.head = nn.Linear(24, 10)

    def forward(self, x):
        x = self.relu(self.stem(x))
        xs = [self.relu(t(x)) for t in self.transition]
        xs = [b(y) for b, y in zip(self.branches, xs)]
        fused = []
        for i in range(len(self.fuse)):
            y = xs[0] if i == 0 else self.fuse[i][0](xs[0])
            for j in range(1, 2):
                y = y + (xs[j] if i == j else self.fuse[i][j](xs[j]))
            fused.append(self.relu(y))
        up = F.interpolate(fused[1], size=fused[0].shape[-2:], mode="bilinear", align_corners=True)
        return self.head(torch.cat([fused[0], up], 1).mean((2, 3)))


@networks.network(IMAGE, refused_for="the grid of the transformer comes from activations")
class SpatialTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Sequential(
            nn.Conv2d(3, 4, 7), nn.MaxPool2d(2, 2), nn.ReLU(True), nn.Flatten(), nn.Linear(676, 6)
        )
        self.conv, self.fc = nn.Conv2d(3, 4, 5), nn.Linear(4, 10)

    def forward(self, x):
        theta = self.loc(x).view(-1, 2, 3)
        x = F.grid_sample(x, F.affine_grid(theta, x.size(), align_corners=False), align_corners=False)
        return self.fc(F.relu(self.conv(x)).mean((2, 3)))


@networks.network(IMAGE)
class ConstantWarp(nn.Module):
    """A polar transformation of feature maps by a fixed grid."""

    def __init__(self):
        super().__init__()
        r, a = torch.meshgrid(torch.linspace(0, 1, 16), torch.linspace(0, 6.28, 16), indexing="ij")
        self.register_buffer("grid", torch.stack([r * torch.cos(a), r * torch.sin(a)], -1)[None])
        self.c1, self.c2, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3), nn.Linear(8, 10)

    def forward(self, x):
        x = F.relu(self.c1(x))
        x = F.grid_sample(x, self.grid.expand(x.size(0), -1, -1, -1), align_corners=True)
        return self.fc(F.relu(self.c2(x)).mean((2, 3)))


@networks.network(IMAGE)
class FocusStem(nn.Module):
    """YOLOv5's space to depth by slices."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(12, 8, 3, padding=1), nn.Linear(8, 10)

    def forward(self, x):
        x = torch.cat((x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]), 1)
        return self.fc(F.leaky_relu(self.conv(x), 0.1, inplace=True).mean((2, 3)))


@networks.network(IMAGE, refused_for="a dynamic convolution's weights come from activations")
class DynamicFilter(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.gen, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 4 * 9), nn.Linear(4, 3)

    def forward(self, x):
        n = x.size(0)
        x = F.relu(self.conv(x))
        w = self.gen(x.mean((2, 3))).view(n * 4, 1, 3, 3)
        x = F.conv2d(x.reshape(1, n * 4, 30, 30), w, groups=n * 4).view(n, 4, 28, 28)
        return self.fc(F.relu(x).mean((2, 3)))


@networks.network(IMAGE)
class SpatialPyramid(nn.Module):
    """Max-pooling to several sizes."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3, 2), nn.Linear(6 * 21, 10)

    def forward(self, x):
        x = F.relu(self.conv(x))
        return self.fc(torch.cat([F.adaptive_max_pool2d(x, s).flatten(1) for s in (1, 2, 4)], 1))


@networks.network(IMAGE)
class MlpMixerReLU(nn.Module):
    """A mixer with BatchNorm over tokens' features and ReLU (ResMLP-like affine norms)."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 8, 8)
        self.alpha, self.beta = (
            nn.Parameter(torch.rand(1, 1, 16) + 0.5),
            nn.Parameter(torch.randn(1, 1, 16) * 0.1),
        )
        self.token1, self.token2 = nn.Linear(16, 24), nn.Linear(24, 16)
        self.channel1, self.channel2, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 10)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = self.alpha * x + self.beta
        x = x + self.token2(F.relu(self.token1(x.transpose(1, 2)))).transpose(1, 2)
        x = x + self.channel2(F.relu(self.channel1(x)))
        return self.head(x.mean(dim=1))


@networks.network(IMAGE)
class ConvMixerReLU(nn.Module):
    class Residual(nn.Module):
        def __init__(self, fn):
            super().__init__()
            self.fn = fn

        def forward(self, x):
            return self.fn(x) + x

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv2d(3, 12, 4, 4), nn.ReLU(), nn.BatchNorm2d(12)),
            *[
                nn.Sequential(
                    self.Residual(
                        nn.Sequential(
                            nn.Conv2d(12, 12, 5, groups=12, padding="same"),
                            nn.ReLU(),
                            nn.BatchNorm2d(12),
                        )
                    ),
                    *(nn.Conv2d(12, 12, 1), nn.ReLU(), nn.BatchNorm2d(12)),
                )
                for _ in range(2)
            ],
            *(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(12, 10)),
        )

    def forward(self, x):
        return self.net(x)


@networks.network(IMAGE)
class RandomChoices(nn.Module):
    """Stochastic depth by hand, mixup and noise, all in training only."""

    def __init__(self):
        super().__init__()
        self.conv, self.block, self.fc, self.p = (
            nn.Conv2d(3, 8, 3, 2),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Linear(8, 4),
            0.8,
        )

    def forward(self, x):
        if self.training:
            x = x + 0.1 * torch.randn_like(x)
        x = F.relu(self.conv(x))
        if not self.training or torch.rand(1).item() < self.p:
            scale = self.p if not self.training else 1.0
            x = x + scale * F.relu(self.block(x))
        return self.fc(x.mean((2, 3)))


@networks.network(IMAGE)
def HardtanhNetwork():
    act = partial(nn.Hardtanh, inplace=True)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2), act(), nn.Conv2d(8, 8, 3, 2), nn.Hardtanh(-2, 3)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )


@networks.network(IMAGE)
def RandomisedLeaky():
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2), nn.RReLU(), nn.Conv2d(8, 8, 3, 2), nn.LeakyReLU(0.3)),
        *(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )


@networks.network(IMAGE)
def ThresholdedReLU():
    """Only what exceeds a threshold passes, and passes whole: two jumps no ReLU has."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Threshold(0.0, 0.0), nn.Flatten(), nn.Linear(1800, 4))


@networks.network((3, 33, 31))
class OddSizes(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1, ceil_mode=True)),
            *(
                nn.Conv2d(6, 6, (3, 5), (1, 2), (0, 2)),
                nn.ReLU(),
                nn.AvgPool2d(3, 2, 1, count_include_pad=False),
            ),
        )
        self.fc = nn.LazyLinear(4)
        self(torch.zeros(1, 3, 33, 31))

    def forward(self, x):
        return self.fc(self.net(x).flatten(1))


@networks.network(IMAGE)
class SplitAttentionFree(nn.Module):
    """Res2Net: a hierarchy of splits within a block."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.bns, self.fc = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3)), nn.Linear(16, 10)

    def forward(self, x):
        x = F.relu(self.stem(x))
        spx = torch.split(x, 4, 1)
        for i in range(3):
            sp = spx[i] if i == 0 else sp + spx[i]
            sp = F.relu(self.bns[i](self.convs[i](sp)))
            out = sp if i == 0 else torch.cat((out, sp), 1)
        out = torch.cat((out, spx[3]), 1)
        return self.fc((out + x).mean((2, 3)))


@networks.network(IMAGE)
class Octave(nn.Module):
    """Two frequencies, exchanged by pooling and nearest upsampling."""

    def __init__(self):
        super().__init__()
        self.h0, self.l0 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.hh, self.hl = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.ll, self.lh, self.fc = (
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Conv2d(4, 8, 3, padding=1),
            nn.Linear(12, 10),
        )

    def forward(self, x):
        h, low = F.relu(self.h0(x)), F.relu(self.l0(F.avg_pool2d(x, 2)))
        h2 = F.relu(self.hh(h) + F.interpolate(self.lh(low), scale_factor=2, mode="nearest"))
        l2 = F.relu(self.ll(low) + self.hl(F.avg_pool2d(h, 2)))
        return self.fc(torch.cat([h2.mean((2, 3)), l2.mean((2, 3))], dim=-1))


@networks.network(IMAGE)
class FractalOfMeans(nn.Module):
    """Branches that are averaged by stacking."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.paths, self.fc = (
            nn.ModuleList(nn.Conv2d(8, 8, k, padding=k // 2) for k in (1, 3, 5)),
            nn.Linear(8, 10),
        )

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = torch.stack([F.relu(path(x)) for path in self.paths], dim=0).mean(dim=0)
        return self.fc(x.mean((2, 3)))


@networks.network(IMAGE)
class SumOfList(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.paths, self.fc = (
            nn.Conv2d(3, 8, 3, 2),
            nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(3)),
            nn.Linear(8, 10),
        )

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = sum(F.relu(p(x)) for p in self.paths) / len(self.paths)
        return self.fc(x.mean((2, 3)))


@networks.network(IMAGE)
class FourierUnit(nn.Module):
    """LaMa's spectral convolution: a Fourier transform of feature maps, both ways, is linear."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.fc = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(8, 8, 1), nn.Linear(4, 10)

    def forward(self, x):
        x = F.relu(self.stem(x))
        f = torch.fft.rfftn(x, dim=(-2, -1), norm="ortho")
        f = torch.cat([f.real, f.imag], dim=1)
        f = F.relu(self.conv(f))
        re, im = f.chunk(2, 1)
        y = torch.fft.irfftn(torch.complex(re, im), s=x.shape[-2:], dim=(-2, -1), norm="ortho")
        return self.fc(F.relu(x + y).mean((2, 3)))


@networks.network(IMAGE)
class CumulativeSums(nn.Module):
    """Corner pooling's relatives: sums along rows and differences of neighbours."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.fc = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 10)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = torch.cumsum(x, dim=3) / 16
        x = torch.diff(F.relu(self.conv(x)), dim=2)
        return self.fc(x.mean((2, 3)))


@networks.network(IMAGE)
class NormalisesItsInput(nn.Module):
    """Mean and standard deviation of each image, before the first layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.conv2, self.fc = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3, 2), nn.Linear(8, 4)

    def forward(self, x):
        x = (x - x.mean((1, 2, 3), keepdim=True)) / (x.std((1, 2, 3), keepdim=True) + 1e-5)
        x = F.relu(self.conv(x))
        return self.fc(F.relu(self.conv2(x)).mean((2, 3)))
