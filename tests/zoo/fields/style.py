"""Ways of writing a forward: control flow, hooks, containers, outputs, several inputs."""

import functools
import math
from collections import namedtuple
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..entry import Collection

networks = Collection("style")
IMAGE = (3, 16, 16)


class _Net(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.fc = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Linear(8, 5),
        )

    def head(self, x):
        return self.fc(x.mean((2, 3)))


@dataclass
class Output:
    logits: Tensor
    features: Tensor | None = None


@networks.network(IMAGE)
class DataclassOutput(_Net):
    def forward(self, x):
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        return Output(logits=self.head(x), features=x)


class Pair(NamedTuple):
    logits: Tensor
    features: Tensor


@networks.network(IMAGE)
class NamedTupleOutput(_Net):
    def forward(self, x):
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        return Pair(self.head(x), x)


Old = namedtuple("Old", ["logits", "aux"])


@networks.network(IMAGE)
class OldNamedTuple(_Net):
    def forward(self, x):
        x = F.relu(self.conv1(x))
        aux = self.head(x) if self.training else None
        return Old(self.head(F.relu(self.conv2(x))), aux)


@networks.network(IMAGE)
class DictWithNone(_Net):
    def forward(self, x):
        x = F.relu(self.conv1(x))
        return {"logits": self.head(x), "aux": None, "stride": 1}


@networks.network(IMAGE)
class ListOfFeatures(_Net):
    def forward(self, x):
        features = [x]
        for conv in (self.conv1, self.conv2):
            x = F.relu(conv(x))
            features += [x]
        return features


@networks.network(IMAGE)
class ExtraArguments(_Net):
    def forward(self, x, targets=None, return_features=False, *, scale: float = 1.0, **kwargs):
        x = F.relu(self.conv1(x * scale))
        if return_features:
            return x
        logits = self.head(F.relu(self.conv2(x)))
        if targets is not None:
            return logits, F.cross_entropy(logits, targets)
        return logits


@networks.network(IMAGE)
class AssertsAndPrints(_Net):
    def forward(self, x):
        B, C, H, W = x.shape
        assert H == W, f"size {H} {W}"
        if x.dim() != 4 or C not in (1, 3):
            raise ValueError(f"bad input {x.shape}")
        if C == 1:
            x = x.expand(-1, 3, -1, -1)
        x = F.relu(self.conv1(x))
        assert x.shape == (B, 8, H, W), x.shape
        return self.fc(F.relu(self.conv2(x)).view(B, 8, H * W).mean(dim=-1))


@networks.network((3, 17, 19))
class PadsToAMultiple(_Net):
    def forward(self, x):
        h, w = x.shape[-2:]
        pad_h, pad_w = (8 - h % 8) % 8, (8 - w % 8) % 8
        if pad_h or pad_w:
            x = F.pad(x, (0, pad_w, 0, pad_h), mode="replicate")
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        return x[:, :, :h, :w]


@networks.network(IMAGE)
class WhileTheMapIsLarge(_Net):
    def forward(self, x):
        x = F.relu(self.conv1(x))
        while x.shape[-1] > 4:
            x = F.avg_pool2d(F.relu(self.conv2(x)), 2)
        return self.head(x)


@networks.network(IMAGE)
class SizesByMath(_Net):
    def forward(self, x):
        size = [int(math.ceil(s * 0.6)) for s in x.shape[-2:]]
        x = F.relu(self.conv1(x))
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        k = x.size(2) // 2
        return self.fc(F.max_pool2d(F.relu(self.conv2(x)), kernel_size=k, stride=k).flatten(2).mean(-1))


@networks.network(IMAGE)
class SharedReLU(_Net):
    def __init__(self):
        super().__init__()
        self.act, self.pool = nn.ReLU(inplace=True), nn.MaxPool2d(2)

    def forward(self, x):
        for conv in (self.conv1, self.conv2, self.conv2):
            x = self.pool(self.act(conv(x)))
        return self.head(x)


@networks.network(IMAGE)
class SharedWeights(_Net):
    def forward(self, x):
        x = F.relu(self.conv1(x))
        w = self.conv2.weight
        x = F.relu(F.conv2d(x, w, padding=1))
        x = F.relu(F.conv_transpose2d(x, w, padding=1))
        x = F.relu(F.conv2d(x, w.transpose(0, 1).flip(2, 3), self.conv2.bias, padding=1))
        return self.head(x)


@networks.network(IMAGE)
class ActivationByName(_Net):
    def __init__(self):
        super().__init__()
        self.act = F.relu
        self.last = functools.partial(F.leaky_relu, negative_slope=0.1)

    def forward(self, x):
        return self.head(self.last(self.conv2(self.act(self.conv1(x)))))


@networks.network(IMAGE)
class OwnReLUs(_Net):
    """ReLU in seven spellings."""

    def forward(self, x):
        x = self.conv1(x)
        x = torch.where(x > 0, x, torch.zeros_like(x))
        x = self.conv2(x)
        x = x * (x > 0).float()
        x = self.conv2(x).clamp(min=0)
        x = torch.max(self.conv2(x), torch.zeros(1))
        x = (self.conv2(x) + self.conv2(x).abs()) / 2
        x = torch.maximum(self.conv2(x), torch.tensor(0.0))
        return self.head(nn.functional.threshold(x, 0, 0))


@networks.network(IMAGE)
class OwnLeaky(_Net):
    def forward(self, x):
        x = self.conv1(x)
        x = torch.max(x, 0.1 * x)
        x = self.conv2(x)
        x = torch.where(x >= 0, x, 0.2 * x)
        return self.head(F.relu(x) - 0.3 * F.relu(-x))


@networks.network(IMAGE)
class ShiftedReLU(_Net):
    """A learnt bias before and after ReLU (RPReLU of binary networks)."""

    def __init__(self):
        super().__init__()
        self.b0, self.b1, self.act = (
            nn.Parameter(torch.randn(1, 8, 1, 1)),
            nn.Parameter(torch.randn(1, 8, 1, 1)),
            nn.PReLU(8),
        )

    def forward(self, x):
        x = self.conv1(x)
        x = self.act(x - self.b0.expand_as(x)) + self.b1.expand_as(x)
        return self.head(self.conv2(x))


class _SquareFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, grad):
        return grad


@networks.network(IMAGE)
class AutogradFunction(_Net):
    """A ReLU with a gradient of its own."""

    def forward(self, x):
        return self.head(_SquareFunction.apply(self.conv2(F.relu(self.conv1(x)))))


@networks.network(IMAGE)
class Checkpointed(_Net):
    def forward(self, x):
        from torch.utils.checkpoint import checkpoint

        x = F.relu(self.conv1(x))
        x = checkpoint(lambda y: F.relu(self.conv2(y)), x, use_reentrant=False)
        return self.head(x)


@networks.network(IMAGE)
class NoGradPart(_Net):
    def forward(self, x):
        with torch.no_grad():
            x = F.relu(self.conv1(x))
        return self.head(F.relu(self.conv2(x.detach())))


@networks.network(IMAGE)
class ModuleDictOfHeads(_Net):
    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleDict({"age": nn.Linear(8, 1), "sex": nn.Linear(8, 2)})

    def forward(self, x):
        x = F.relu(self.conv1(x)).mean((2, 3))
        return {k: head(x) for k, head in self.heads.items()}


@networks.network(IMAGE)
class FeatureHooks(_Net):
    """Features collected by hooks of layers, as by feature extractors."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Sequential(self.conv1, nn.ReLU()), nn.Sequential(self.conv2, nn.ReLU())
        )
        self.seen = []
        for block in self.body:
            block.register_forward_hook(self.keep)

    def keep(self, module, args, out):
        self.seen.append(out)

    def forward(self, x):
        self.seen.clear()
        self.body(x)
        return self.fc(sum(f.mean((2, 3)) for f in self.seen))


@networks.network(IMAGE)
class Backbone(nn.Module):
    """torchvision's extractor of intermediate layers."""

    def __init__(self):
        super().__init__()
        from torchvision.models._utils import IntermediateLayerGetter

        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.body, self.out = IntermediateLayerGetter(net, {"1": "low", "3": "high"}), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        f = self.body(x)
        return self.out(F.interpolate(f["high"], f["low"].shape[-2:], mode="bilinear")) + self.out(
            f["low"]
        )


@networks.network(IMAGE)
def TracedByFx():
    net = DataclassOutput()
    return torch.fx.symbolic_trace(nn.Sequential(net.conv1, nn.ReLU(), net.conv2, nn.ReLU6()))


@networks.network(IMAGE)
class Einops(_Net):
    """Rearrangement as einops writes it out."""

    def forward(self, x):
        b, c, (h, w) = x.size(0), x.size(1), x.shape[2:]
        x = (
            x.reshape(b, c, h // 2, 2, w // 2, 2)
            .permute(0, 2, 4, 3, 5, 1)
            .reshape(b, h // 2 * (w // 2), -1)
        )
        x = x[..., :3].transpose(-1, -2).unflatten(-1, (h // 2, -1))
        return self.head(F.relu(self.conv2(F.relu(self.conv1(x)))))


@networks.network(IMAGE)
class FlipEnsemble(_Net):
    """Test-time augmentation inside the forward."""

    def once(self, x):
        return self.head(F.relu(self.conv2(F.relu(self.conv1(x)))))

    def forward(self, x):
        return (self.once(x) + self.once(torch.flip(x, dims=[3]))) / 2


@networks.network(IMAGE)
class PositionsFromTheSize(_Net):
    """CoordConv: coordinates made from the size of the input."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(5, 8, 3, padding=1)

    def forward(self, x):
        b, _, h, w = x.size()
        xx = torch.linspace(-1, 1, w, device=x.device).view(1, 1, 1, w).expand(b, 1, h, w)
        yy = torch.arange(h, device=x.device, dtype=x.dtype).view(1, 1, h, 1).repeat(b, 1, 1, w) / h
        x = torch.cat([x, xx.type_as(x), yy], dim=1)
        return self.head(F.relu(self.conv2(F.relu(self.conv1(x)))))


@networks.network(IMAGE)
class PositionBuffer(_Net):
    """A table of positions cut to the length of the sequence."""

    def __init__(self):
        super().__init__()
        self.register_buffer("pe", torch.randn(1, 400, 8) / 3)
        self.mix = nn.Linear(8, 8)

    def forward(self, x):
        x = F.relu(self.conv1(x)).flatten(2).transpose(1, 2)
        x = x + self.pe[:, : x.size(1)]
        return self.fc(F.relu(self.mix(x)).mean(1))


@networks.network(IMAGE)
class ClassToken(_Net):
    """A learnt token in front of the others."""

    def __init__(self):
        super().__init__()
        self.token, self.mix = nn.Parameter(torch.randn(1, 1, 8)), nn.Linear(257, 4)

    def forward(self, x):
        x = F.relu(self.conv1(x)).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1)
        return self.fc(F.relu(self.mix(x.transpose(1, 2))).transpose(1, 2)[:, 0])


@networks.network(IMAGE)
class HalfInside(_Net):
    """A cast that autocast writers leave in."""

    def forward(self, x):
        x = F.relu(self.conv1(x.float()))
        x = x.to(dtype=self.conv2.weight.dtype)
        return self.head(F.relu(self.conv2(x))).float()


@networks.network(IMAGE)
class ChannelsLast(_Net):
    def __init__(self):
        super().__init__()
        self.linear, self.bn = nn.Linear(8, 8), nn.BatchNorm2d(8)

    def forward(self, x):
        x = F.relu(self.conv1(x)).permute(0, 2, 3, 1)
        x = F.relu(self.linear(x)).permute(0, 3, 1, 2)
        return self.head(F.relu(self.bn(self.conv2(x.contiguous(memory_format=torch.channels_last)))))


@networks.network(IMAGE)
class ZeroedChannels(_Net):
    """A constant mask of channels, by where, masked_fill and multiplication."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.rand(1, 8, 1, 1) > 0.5)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = torch.where(self.mask, x, 0.5 * x)
        x = F.relu(self.conv2(x)).masked_fill(~self.mask, 0.0)
        return self.head(x * self.mask)


@networks.network(IMAGE)
class IndexedChannels(_Net):
    """A permutation of channels by a list and by a tensor."""

    def __init__(self):
        super().__init__()
        self.register_buffer("order", torch.randperm(8))

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = x[:, self.order]
        x = F.relu(self.conv2(x[:, [7, 6, 5, 4, 3, 2, 1, 0], ...]))
        return self.head(torch.index_select(x, 1, self.order))


@networks.network(lambda n: (torch.randn(n, 3, 16, 16), torch.randn(n, 3, 16, 16)))
class Siamese(_Net):
    """Two images through one network, and the difference of what comes out."""

    def once(self, x):
        return self.head(F.relu(self.conv2(F.relu(self.conv1(x)))))

    def forward(self, a, b):
        return torch.abs(self.once(a) - self.once(b))


@networks.network(lambda n: torch.randn(n, 2, 3, 16, 16))
class SiameseOfOne(_Net):
    """The same with the images side by side in one tensor."""

    def once(self, x):
        return self.head(F.relu(self.conv2(F.relu(self.conv1(x)))))

    def forward(self, pair):
        a, b = pair[:, 0], pair[:, 1]
        return torch.abs(self.once(a) - self.once(b))


@networks.network(lambda n: (torch.randn(n, 3, 16, 16), torch.randn(n, 6)))
class ImageAndTable(_Net):
    def __init__(self):
        super().__init__()
        self.table, self.join = nn.Linear(6, 8), nn.Linear(16, 3)

    def forward(self, image, table):
        x = F.relu(self.conv1(image)).mean((2, 3))
        return self.join(torch.cat([x, F.relu(self.table(table))], dim=1))


@networks.network(lambda n: (torch.randn(n, 4), torch.randn(n, 2)))
class StateAndAction(nn.Module):
    def __init__(self):
        super().__init__()
        self.l1, self.l2, self.l3 = nn.Linear(6, 24), nn.Linear(24, 16), nn.Linear(16, 1)

    def forward(self, state, action):
        q = F.relu(self.l1(torch.cat([state, action], 1)))
        return self.l3(F.relu(self.l2(q)))


@networks.network(IMAGE)
def DoubleNetwork():
    """A network within a network within a list."""

    class Inner(_Net):
        def forward(self, x):
            return F.relu(self.conv2(F.relu(self.conv1(x))))

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inners = nn.ModuleList([Inner(), Inner()])

        def forward(self, x):
            ys = [inner(x) for inner in self.inners]
            return torch.cat([y.flatten(1) for y in ys], dim=-1)

    return Outer()


@networks.network(IMAGE)
class ReadsItsTrainingFlag(_Net):
    def forward(self, x):
        drop = 0.5 if self.training else 0.0
        x = F.dropout(F.relu(self.conv1(x)), drop, self.training)
        x = F.relu(F.dropout2d(self.conv2(x), p=drop, training=self.training))
        return self.head(x)


@networks.network(IMAGE)
class CountsItsCalls(_Net):
    """A buffer that counts, as loss schedules keep it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        if self.training:
            self.calls += 1
        return self.head(F.relu(self.conv1(x)))


@networks.network(IMAGE)
class ActNorm(_Net):
    """A flag in a buffer, which is read."""

    def __init__(self):
        super().__init__()
        self.register_buffer("initialized", torch.tensor(1, dtype=torch.uint8))
        self.loc, self.scale = (
            nn.Parameter(torch.randn(1, 8, 1, 1)),
            nn.Parameter(torch.rand(1, 8, 1, 1) + 0.5),
        )

    def forward(self, x):
        x = self.conv1(x)
        if self.initialized.item() == 0:
            self.loc.data.copy_(-x.mean())
        return self.head(F.relu(self.scale * (x + self.loc)))


@networks.network(IMAGE)
class FlattenedByMinusOne(_Net):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8 * 16 * 16, 5)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        return self.fc(x.view(-1, 8 * 16 * 16))


@networks.network(IMAGE)
class LogitsScaledByTemperature(_Net):
    def __init__(self):
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(0.3))

    def forward(self, x):
        return self.head(F.relu(self.conv1(x))) / self.log_temperature.exp()


@networks.network(IMAGE)
class CosineClassifier(_Net):
    """Normalised weights; the embedding is left as it is."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 8))

    def forward(self, x):
        x = F.relu(self.conv2(F.relu(self.conv1(x)))).mean((2, 3))
        return 4.0 * F.linear(x, F.normalize(self.weight, dim=1))
