"""Boxes and keypoints: what is computed before they are picked."""

import torch
import torch.nn.functional as F
from torch import nn

from ..entry import Collection

networks = Collection("detection")
IMAGE = (3, 64, 64)


def cbl(i, o, k=3, s=1):
    return nn.Sequential(
        nn.Conv2d(i, o, k, s, k // 2, bias=False), nn.BatchNorm2d(o), nn.LeakyReLU(0.1, inplace=True)
    )


@networks.network(IMAGE)
class YoloV3Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers1 = nn.Sequential(
            cbl(3, 6), nn.MaxPool2d(2, 2), cbl(6, 8), nn.MaxPool2d(2, 2), cbl(8, 8)
        )
        self.layers2 = nn.Sequential(
            nn.MaxPool2d(2, 2), cbl(8, 12), nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(2, 1), cbl(12, 12)
        )
        self.head1, self.lateral = nn.Conv2d(12, 18, 1), cbl(12, 6, 1)
        self.up, self.head2 = (
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Sequential(cbl(14, 8), nn.Conv2d(8, 18, 1)),
        )

    def forward(self, x):
        a = self.layers1(x)
        b = self.layers2(a)
        return self.head1(b), self.head2(torch.cat([self.up(self.lateral(b)), a], 1))


@networks.network(IMAGE)
class YoloReshaped(YoloV3Tiny):
    """Anchors and attributes in dimensions of their own, all cells in one list."""

    def forward(self, x):
        outputs = []
        for y in super().forward(x):
            bs, _, ny, nx = y.shape
            y = y.view(bs, 3, 6, ny, nx).permute(0, 1, 3, 4, 2).contiguous()
            outputs.append(y.view(bs, -1, 6))
        return torch.cat(outputs, 1)


@networks.network(IMAGE)
class YoloDecoded(YoloReshaped):
    """Sigmoid and exponential after the last neuron: boxes in pixels."""

    def forward(self, x):
        y = super().forward(x)
        return torch.cat([y[..., :2].sigmoid(), y[..., 2:4].exp(), y[..., 4:].sigmoid()], -1)


@networks.network(IMAGE)
class YoloV2Reorg(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = cbl(3, 8, 3, 2), cbl(8, 8, 3, 2), nn.Conv2d(40, 10, 1)

    def reorg(self, x, s=2):
        b, c, h, w = x.size()
        x = x.view(b, c, h // s, s, w // s, s).transpose(3, 4).contiguous()
        x = x.view(b, c, h // s * w // s, s * s).transpose(2, 3).contiguous()
        return (
            x.view(b, c, s * s, h // s, w // s)
            .transpose(1, 2)
            .contiguous()
            .view(b, s * s * c, h // s, w // s)
        )

    def forward(self, x):
        a = self.a(x)
        return self.out(torch.cat([self.reorg(a), self.b(a)], 1))


@networks.network(IMAGE)
class CspDarknet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = cbl(3, 8, 3, 2), cbl(8, 4, 1), cbl(8, 4, 1)
        self.blocks = nn.ModuleList(nn.Sequential(cbl(4, 4, 1), cbl(4, 4)) for _ in range(2))
        self.join, self.spp = cbl(8, 8, 1), nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in (5, 9, 13))
        self.out = nn.Conv2d(32, 6, 1)

    def forward(self, x):
        x = self.stem(x)
        left, right = self.left(x), self.right(x)
        for block in self.blocks:
            right = right + block(right)
        x = self.join(torch.cat([right, left], 1))
        return self.out(torch.cat([x] + [pool(x) for pool in self.spp], 1))


class _PNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.prelu1, self.pool1 = (
            nn.Conv2d(3, 10, 3),
            nn.PReLU(10),
            nn.MaxPool2d(2, 2, ceil_mode=True),
        )
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
        self.conv4_1, self.conv4_2 = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x):
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.prelu2(self.conv2(x))
        x = self.prelu3(self.conv3(x))
        return self.conv4_2(x), self.conv4_1(x)


@networks.network((3, 12, 12))
def MtcnnP():
    return _PNet()


@networks.network((3, 14, 14))
class MtcnnPSoftmax(_PNet):
    """As it is published: the second answer is a softmax."""

    def forward(self, x):
        b, a = super().forward(x)
        return b, a.softmax(dim=1)


@networks.network((3, 24, 24))
class MtcnnR(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.prelu1, self.pool1 = (
            nn.Conv2d(3, 8, 3),
            nn.PReLU(8),
            nn.MaxPool2d(3, 2, ceil_mode=True),
        )
        self.conv2, self.prelu2, self.pool2 = (
            nn.Conv2d(8, 12, 3),
            nn.PReLU(12),
            nn.MaxPool2d(3, 2, ceil_mode=True),
        )
        self.dense4, self.prelu4, self.dense5 = nn.Linear(12 * 4 * 4, 24), nn.PReLU(24), nn.Linear(24, 4)

    def forward(self, x):
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.pool2(self.prelu2(self.conv2(x)))
        x = x.permute(0, 3, 2, 1).contiguous()
        x = self.prelu4(self.dense4(x.view(x.shape[0], -1)))
        return self.dense5(x)


@networks.network(IMAGE)
class FPN(nn.Module):
    """Lateral connections, top-down sums, heads shared by all levels; a dict of lists."""

    def __init__(self):
        super().__init__()
        self.c1, self.c2, self.c3 = (
            nn.Conv2d(3, 6, 3, 4, 1),
            nn.Conv2d(6, 8, 3, 2, 1),
            nn.Conv2d(8, 12, 3, 2, 1),
        )
        self.lateral = nn.ModuleList(nn.Conv2d(c, 8, 1) for c in (6, 8, 12))
        self.head = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.cls, self.box = nn.Conv2d(8, 3, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        features = []
        for c in (self.c1, self.c2, self.c3):
            x = F.relu(c(x))
            features.append(x)
        ps = [layer(f) for layer, f in zip(self.lateral, features)]
        for i in range(len(ps) - 1, 0, -1):
            ps[i - 1] = ps[i - 1] + F.interpolate(ps[i], size=ps[i - 1].shape[-2:], mode="nearest")
        heads = [self.head(p) for p in ps]
        return {"cls": [self.cls(h) for h in heads], "box": [self.box(h) for h in heads]}


@networks.network(IMAGE)
class RetinaHead(FPN):
    """All anchors of all levels, flattened and concatenated."""

    def forward(self, x):
        out = super().forward(x)
        cls = [c.permute(0, 2, 3, 1).reshape(c.size(0), -1, 3) for c in out["cls"]]
        return torch.cat(cls, dim=1)


@networks.network(IMAGE)
class FcosScales(FPN):
    """A learnt factor for each level and a ReLU on distances."""

    def __init__(self):
        super().__init__()
        self.scales = nn.ParameterList(nn.Parameter(torch.rand(1) + 0.5) for _ in range(3))

    def forward(self, x):
        out = super().forward(x)
        return tuple(F.relu(b * s) for b, s in zip(out["box"], self.scales))


@networks.network(IMAGE)
class CenterNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(12, 8, 4, 2, 1),
            nn.ReLU(),
        )
        self.heads = {"hm": 3, "wh": 2, "reg": 2}
        for head, classes in self.heads.items():
            fc = nn.Sequential(
                nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, classes, 1)
            )
            self.__setattr__(head, fc)

    def forward(self, x):
        y, ret = self.body(x), {}
        for head in self.heads:
            ret[head] = self.__getattr__(head)(y)
        return [ret]


@networks.network(IMAGE)
class CornerPooling(nn.Module):
    """The running maximum from one side, by shifts."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, 4, 1), nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.a(x))
        i = 1
        while i < x.size(-1):
            x = torch.maximum(x, F.pad(x, (0, i))[..., i:])
            i *= 2
        return self.b(x)


@networks.network(IMAGE)
class StackedHourglass(nn.Module):
    class Glass(nn.Module):
        def __init__(self, depth, n):
            super().__init__()
            self.up1, self.low1, self.low3 = (
                nn.Conv2d(n, n, 3, padding=1),
                nn.Conv2d(n, n, 3, padding=1),
                nn.Conv2d(n, n, 3, padding=1),
            )
            self.low2 = (
                StackedHourglass.Glass(depth - 1, n) if depth > 1 else nn.Conv2d(n, n, 3, padding=1)
            )

        def forward(self, x):
            low = F.relu(self.low1(F.max_pool2d(x, 2, stride=2)))
            low = F.relu(self.low3(self.low2(low)))
            return F.relu(self.up1(x)) + F.interpolate(low, scale_factor=2)

    def __init__(self):
        super().__init__()
        self.pre, self.glasses = (
            nn.Conv2d(3, 8, 7, 4, 3),
            nn.ModuleList(self.Glass(2, 8) for _ in range(2)),
        )
        self.outs, self.merge = nn.ModuleList(nn.Conv2d(8, 4, 1) for _ in range(2)), nn.Conv2d(4, 8, 1)

    def forward(self, x):
        x, preds = F.relu(self.pre(x)), []
        for i, glass in enumerate(self.glasses):
            y = glass(x)
            preds.append(self.outs[i](y))
            if i < len(self.glasses) - 1:
                x = x + self.merge(preds[-1]) + y
        return torch.stack(preds, 1)


@networks.network(IMAGE, refused_for="soft-argmax between neurons")
class SoftArgmaxPose(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3, 4), nn.Conv2d(6, 4, 1), nn.Linear(4, 4)

    def forward(self, x):
        h = self.b(F.relu(self.a(x))).flatten(2).softmax(-1)
        return F.relu(self.c((h * torch.linspace(0, 1, h.shape[-1])).sum(-1)))


@networks.network(IMAGE)
class SSD(nn.Module):
    """Heads on several maps, with channels last; constant anchors are returned, too."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (
            nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()),
        )
        self.loc, self.conf = (
            nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2)),
            nn.ModuleList(nn.Conv2d(8, 6, 3, padding=1) for _ in range(2)),
        )

    def forward(self, x):
        sources = [self.a(x)]
        sources.append(self.b(sources[0]))
        loc, conf = list(), list()
        for x, l, c in zip(sources, self.loc, self.conf):
            loc.append(l(x).permute(0, 2, 3, 1).contiguous())
            conf.append(c(x).permute(0, 2, 3, 1).contiguous())
        loc = torch.cat([o.view(o.size(0), -1) for o in loc], 1)
        conf = torch.cat([o.view(o.size(0), -1) for o in conf], 1)
        return loc.view(loc.size(0), -1, 4), conf.view(conf.size(0), -1, 3)


@networks.network(IMAGE)
class FaceEmbedding(nn.Module):
    """An embedding of unit length at the end."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, 4), nn.PReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 16)
        )

    def forward(self, x):
        return F.normalize(self.net(x), p=2, dim=1)
