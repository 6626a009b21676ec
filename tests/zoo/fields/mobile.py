"""Small convolutional networks of phones and cameras."""

import torch
import torch.nn.functional as F
from torch import nn

from ..entry import Collection

networks = Collection("mobile")
IMAGE = (3, 32, 32)


def conv_bn(inp, oup, stride, act=nn.ReLU6):
    return nn.Sequential(
        nn.Conv2d(inp, oup, 3, stride, 1, bias=False), nn.BatchNorm2d(oup), act(inplace=True)
    )


def conv_dw(inp, oup, stride):
    return nn.Sequential(
        *(
            nn.Conv2d(inp, inp, 3, stride, 1, groups=inp, bias=False),
            nn.BatchNorm2d(inp),
            nn.ReLU(inplace=True),
        ),
        *(nn.Conv2d(inp, oup, 1, 1, 0, bias=False), nn.BatchNorm2d(oup), nn.ReLU(inplace=True)),
    )


@networks.network(IMAGE)
class MobileNetV1(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(
            conv_bn(3, 8, 2, nn.ReLU),
            conv_dw(8, 16, 1),
            conv_dw(16, 32, 2),
            conv_dw(32, 32, 1),
            nn.AvgPool2d(8),
        )
        self.fc = nn.Linear(32, 10)

    def forward(self, x):
        return self.fc(self.model(x).view(-1, 32))


class InvertedResidual(nn.Module):
    def __init__(self, inp, oup, stride, expand_ratio, act=nn.ReLU6):
        super().__init__()
        hidden_dim = round(inp * expand_ratio)
        self.identity = stride == 1 and inp == oup
        self.conv = nn.Sequential(
            *(nn.Conv2d(inp, hidden_dim, 1, bias=False), nn.BatchNorm2d(hidden_dim), act(inplace=True)),
            *(nn.Conv2d(hidden_dim, hidden_dim, 3, stride, 1, groups=hidden_dim, bias=False),),
            *(nn.BatchNorm2d(hidden_dim), act(inplace=True)),
            *(nn.Conv2d(hidden_dim, oup, 1, bias=False), nn.BatchNorm2d(oup)),
        )

    def forward(self, x):
        if self.identity:
            return x + self.conv(x)
        else:
            return self.conv(x)


@networks.network(IMAGE)
class MobileNetV2(nn.Module):
    def __init__(self):
        super().__init__()
        layers = [conv_bn(3, 8, 2)]
        for i, o, s in ((8, 8, 1), (8, 12, 2), (12, 12, 1)):
            layers.append(InvertedResidual(i, o, s, 3))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(12, 10))

    def forward(self, x):
        x = self.features(x)
        x = x.mean(3).mean(2)
        return self.classifier(x)


@networks.network(IMAGE)
def MobileNetV2ONNXStyle():
    """ReLU6 as clamp, the mean by a reshape."""

    class Net(MobileNetV2):
        def forward(self, x):
            x = torch.clamp(self.features(x), 0.0, 6.0)
            x = x.reshape(x.shape[0], x.shape[1], -1).mean(-1)
            return self.classifier(x)

    return Net()


class Fire(nn.Module):
    def __init__(self, inplanes, squeeze, e1, e3):
        super().__init__()
        self.squeeze, self.squeeze_activation = nn.Conv2d(inplanes, squeeze, 1), nn.ReLU(inplace=True)
        self.expand1x1, self.expand1x1_activation = nn.Conv2d(squeeze, e1, 1), nn.ReLU(inplace=True)
        self.expand3x3, self.expand3x3_activation = (
            nn.Conv2d(squeeze, e3, 3, padding=1),
            nn.ReLU(inplace=True),
        )

    def forward(self, x):
        x = self.squeeze_activation(self.squeeze(x))
        return torch.cat(
            [self.expand1x1_activation(self.expand1x1(x)), self.expand3x3_activation(self.expand3x3(x))],
            1,
        )


@networks.network(IMAGE)
def SqueezeNetBypass():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(
                nn.Conv2d(3, 16, 3, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, ceil_mode=True)
            )
            self.f2, self.f3 = Fire(16, 4, 8, 8), Fire(16, 4, 8, 8)
            self.classifier = nn.Sequential(
                nn.Dropout(), nn.Conv2d(16, 10, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d((1, 1))
            )

        def forward(self, x):
            x = self.f2(self.stem(x))
            x = self.f3(x) + x
            return torch.flatten(self.classifier(x), 1)

    return Net()


def channel_shuffle(x, groups):
    batchsize, num_channels, height, width = x.data.size()
    channels_per_group = num_channels // groups
    x = x.view(batchsize, groups, channels_per_group, height, width)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(batchsize, -1, height, width)


@networks.network(IMAGE)
class ShuffleNetV2(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = conv_bn(3, 16, 2, nn.ReLU)
        self.branch = nn.Sequential(
            *(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
            *(nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8)),
            *(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        )
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = self.conv1(x)
        x1, x2 = x.chunk(2, dim=1)
        out = channel_shuffle(torch.cat((x1, self.branch(x2)), dim=1), 2)
        x1, x2 = out[:, : (out.shape[1] // 2), :, :], out[:, (out.shape[1] // 2) :, :, :]
        out = channel_shuffle(torch.cat((x1, self.branch(x2)), dim=1), 2)
        return self.fc(out.mean([2, 3]))


@networks.network(IMAGE)
class ShuffleNetV1(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, 2, 1)
        self.g1, self.dw, self.g2 = (
            nn.Conv2d(12, 6, 1, groups=3),
            nn.Conv2d(6, 6, 3, 2, 1, groups=6),
            nn.Conv2d(6, 12, 1, groups=3),
        )
        self.b1, self.b2, self.b3 = nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.BatchNorm2d(12)
        self.shuffle, self.fc = nn.ChannelShuffle(3), nn.Linear(24, 10)

    def forward(self, x):
        x = self.stem(x)
        out = F.relu(self.b1(self.g1(x)))
        out = self.b3(self.g2(self.b2(self.dw(self.shuffle(out)))))
        res = F.avg_pool2d(x, 3, stride=2, padding=1)
        out = F.relu(torch.cat([out, res], 1))
        return self.fc(F.avg_pool2d(out, 8).view(out.size(0), -1))


class GhostModule(nn.Module):
    def __init__(self, inp, oup, relu=True):
        super().__init__()
        self.oup, half = oup, (oup + 1) // 2
        self.primary_conv = nn.Sequential(
            nn.Conv2d(inp, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True) if relu else nn.Sequential(),
        )
        self.cheap_operation = nn.Sequential(
            nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True) if relu else nn.Sequential(),
        )

    def forward(self, x):
        x1 = self.primary_conv(x)
        x2 = self.cheap_operation(x1)
        return torch.cat([x1, x2], dim=1)[:, : self.oup, :, :]


@networks.network(IMAGE)
class GhostNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, 8, 2, nn.ReLU)
        self.ghost1, self.ghost2, self.fc = (
            GhostModule(8, 15),
            GhostModule(15, 8, relu=False),
            nn.Linear(8, 10),
        )

    def forward(self, x):
        x = self.stem(x)
        x = x + self.ghost2(self.ghost1(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class RepVGGBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.nonlinearity = nn.ReLU()
        self.rbr_identity = nn.BatchNorm2d(channels)
        self.rbr_dense = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
        )
        self.rbr_1x1 = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, inputs):
        if hasattr(self, "rbr_reparam"):
            return self.nonlinearity(self.rbr_reparam(inputs))
        return self.nonlinearity(
            self.rbr_dense(inputs) + self.rbr_1x1(inputs) + self.rbr_identity(inputs)
        )


@networks.network(IMAGE)
def RepVGG():
    return nn.Sequential(
        conv_bn(3, 8, 2, nn.ReLU),
        RepVGGBlock(8),
        RepVGGBlock(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )


@networks.network(IMAGE)
def McuNetPReLU():
    """MobileFaceNet: PReLU and a depthwise convolution over the whole map."""
    prelu = [nn.PReLU(8), nn.PReLU(8), nn.PReLU(16)]
    for module in prelu:
        nn.init.uniform_(module.weight, 0.05, 0.4)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), prelu[0]),
        *(nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False), nn.BatchNorm2d(8), prelu[1]),
        *(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), prelu[2]),
        *(nn.Conv2d(16, 16, 8, groups=16, bias=False), nn.BatchNorm2d(16), nn.Flatten()),
        *(nn.Linear(16, 12, bias=False), nn.BatchNorm1d(12)),
    )


@networks.network(IMAGE, refused_for="squeeze and excitation")
class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, 8, 2, nn.ReLU)
        self.se = nn.Sequential(nn.Linear(8, 4), nn.ReLU(inplace=True), nn.Linear(4, 8), nn.Sigmoid())
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = self.stem(x)
        y = self.se(x.mean((2, 3))).view(x.size(0), -1, 1, 1)
        return self.fc((x * y).mean((2, 3)))


class h_swish(nn.Module):
    def forward(self, x):
        return x * F.relu6(x + 3) / 6


@networks.network(IMAGE, refused_for="hard-swish")
def MobileNetV3Swish():
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2), h_swish(), nn.Conv2d(8, 8, 3, 2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )


@networks.network(IMAGE)
class BlurPooling(nn.Module):
    """Anti-aliased downsampling with a fixed filter that is expanded to the channels."""

    def __init__(self):
        super().__init__()
        a = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("filt", (a[:, None] * a[None, :] / 16)[None, None])
        self.conv1, self.conv2, self.fc = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Linear(8, 5),
        )

    def blur(self, x):
        return F.conv2d(
            F.pad(x, (1, 1, 1, 1), mode="reflect"),
            self.filt.expand(x.shape[1], 1, 3, 3),
            stride=2,
            groups=x.shape[1],
        )

    def forward(self, x):
        x = self.blur(F.max_pool2d(F.relu(self.conv1(x)), 2, 1))
        x = self.blur(F.relu(self.conv2(x)))
        return self.fc(x.mean((-2, -1)))


@networks.network(IMAGE)
class WeightStandardised(nn.Module):
    """Convolutions that standardise their weights in every forward."""

    class Conv(nn.Conv2d):
        def forward(self, x):
            w = self.weight
            w = w - w.mean(dim=(1, 2, 3), keepdim=True)
            w = w / (w.view(w.size(0), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-5)
            return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = self.Conv(3, 8, 3, 2), self.Conv(8, 8, 3, 2), nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.a(x), inplace=True)
        x = F.relu(self.b(x), inplace=True)
        return self.fc(F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0])


@networks.network(IMAGE)
class Quantised(nn.Module):
    """QuantStub and DeQuantStub of quantisation-aware training."""

    def __init__(self):
        super().__init__()
        self.quant, self.dequant = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
        self.skip_add = torch.ao.nn.quantized.FloatFunctional()
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)
        self.relu = nn.ReLU()

    def forward(self, x):
        x = self.relu(self.a(self.quant(x)))
        x = self.skip_add.add(x, self.relu(self.b(x)))
        x = nn.functional.adaptive_avg_pool2d(x, (1, 1))
        return self.dequant(self.fc(torch.flatten(x, 1)))
