"""A value for every pixel: segmentation, restoration, generation."""

import torch
import torch.nn.functional as F
from torch import nn

from ..entry import Collection

networks = Collection("dense")
GREY, IMAGE = (1, 32, 32), (3, 32, 32)


class DoubleConv(nn.Module):
    """(convolution => [BN] => ReLU) * 2"""

    def __init__(self, in_channels, out_channels, mid_channels=None):
        super().__init__()
        mid_channels = mid_channels or out_channels
        self.double_conv = nn.Sequential(
            *(
                nn.Conv2d(in_channels, mid_channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(mid_channels),
                nn.ReLU(inplace=True),
            ),
            *(
                nn.Conv2d(mid_channels, out_channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(inplace=True),
            ),
        )

    def forward(self, x):
        return self.double_conv(x)


class Up(nn.Module):
    def __init__(self, in_channels, out_channels, bilinear=True):
        super().__init__()
        if bilinear:
            self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            self.conv = DoubleConv(in_channels + out_channels, out_channels, in_channels // 2)
        else:
            self.up = nn.ConvTranspose2d(in_channels, in_channels, kernel_size=2, stride=2)
            self.conv = DoubleConv(in_channels + out_channels, out_channels)

    def forward(self, x1, x2):
        x1 = self.up(x1)
        diffY = x2.size()[2] - x1.size()[2]
        diffX = x2.size()[3] - x1.size()[3]
        x1 = F.pad(x1, [diffX // 2, diffX - diffX // 2, diffY // 2, diffY - diffY // 2])
        return self.conv(torch.cat([x2, x1], dim=1))


@networks.network((3, 34, 30))
class MilesialUNet(nn.Module):
    def __init__(self, bilinear=True):
        super().__init__()
        self.inc, self.down1, self.down2 = (
            DoubleConv(3, 6),
            nn.Sequential(nn.MaxPool2d(2), DoubleConv(6, 8)),
            nn.Sequential(nn.MaxPool2d(2), DoubleConv(8, 8)),
        )
        self.up1, self.up2, self.outc = Up(8, 8, bilinear), Up(8, 6, bilinear), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x = self.up1(x3, x2)
        x = self.up2(x, x1)
        return self.outc(x)


@networks.network((3, 32, 32))
def TransposedUNet():
    return MilesialUNet(bilinear=False)


@networks.network(IMAGE)
class BrainUNet(nn.Module):
    """The hub's U-Net: named layers, a sigmoid at the end."""

    def __init__(self):
        super().__init__()
        self.encoder1, self.pool1, self.bottleneck = (
            DoubleConv(3, 6),
            nn.MaxPool2d(2, 2),
            DoubleConv(6, 12),
        )
        self.upconv1, self.decoder1, self.conv = (
            nn.ConvTranspose2d(12, 6, 2, stride=2),
            DoubleConv(12, 6),
            nn.Conv2d(6, 1, 1),
        )

    def forward(self, x):
        enc1 = self.encoder1(x)
        bottleneck = self.bottleneck(self.pool1(enc1))
        dec1 = self.upconv1(bottleneck)
        dec1 = self.decoder1(torch.cat((dec1, enc1), dim=1))
        return torch.sigmoid(self.conv(dec1))


@networks.network(IMAGE, refused_for="an attention gate multiplies by a sigmoid of activations")
class AttentionUNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.gate, self.out = (
            DoubleConv(3, 6),
            DoubleConv(6, 6),
            nn.Conv2d(6, 1, 1),
            nn.Conv2d(6, 1, 1),
        )

    def forward(self, x):
        a = self.a(x)
        b = self.b(a)
        return self.out(F.relu(a * torch.sigmoid(self.gate(F.relu(a + b)))))


@networks.network(GREY)
class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(1024, 64), nn.ReLU(True), nn.Linear(64, 12))
        self.decoder = nn.Sequential(nn.Linear(12, 64), nn.ReLU(True), nn.Linear(64, 1024))

    def forward(self, x):
        shape = x.shape
        x = self.encoder(x.view(x.size(0), -1))
        return self.decoder(x).view(shape)


@networks.network(GREY)
class ConvAutoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(12, 16, 8),
        )
        self.decoder = nn.Sequential(
            *(nn.ConvTranspose2d(16, 12, 8), nn.ReLU()),
            *(nn.ConvTranspose2d(12, 8, 3, 2, padding=1, output_padding=1), nn.ReLU()),
            *(nn.ConvTranspose2d(8, 1, 3, 2, padding=1, output_padding=1), nn.Sigmoid()),
        )

    def forward(self, x):
        return self.decoder(self.encoder(x))


@networks.network((784,))
class VAEMean(nn.Module):
    """In eval mode the mean is decoded; all three are returned."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc21, self.fc22 = nn.Linear(784, 40), nn.Linear(40, 6), nn.Linear(40, 6)
        self.fc3, self.fc4 = nn.Linear(6, 40), nn.Linear(40, 784)

    def reparameterize(self, mu, logvar):
        if self.training:
            return mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
        return mu

    def forward(self, x):
        h1 = F.relu(self.fc1(x.view(-1, 784)))
        mu, logvar = self.fc21(h1), self.fc22(h1)
        z = self.reparameterize(mu, logvar)
        return self.fc4(F.relu(self.fc3(z))), mu, logvar


@networks.network((784,), refused_for="random at inference")
class VAESampling(VAEMean):
    def reparameterize(self, mu, logvar):
        return mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)


@networks.network((16,))
class DCGenerator(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            *(nn.ConvTranspose2d(16, 12, 4, 1, 0, bias=False), nn.BatchNorm2d(12), nn.ReLU(True)),
            *(nn.ConvTranspose2d(12, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(True)),
            nn.ConvTranspose2d(8, 3, 4, 2, 1, bias=False),
        )

    def forward(self, z):
        return self.main(z.view(z.size(0), -1, 1, 1))


@networks.network((16,))
class TanhGenerator(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.c1, self.c2 = (
            nn.Linear(16, 8 * 16),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 3, 3, padding=1),
        )

    def forward(self, z):
        x = F.relu(self.fc(z)).view(-1, 8, 4, 4)
        x = F.relu(self.c1(F.interpolate(x, scale_factor=2)))
        return torch.tanh(self.c2(x))


@networks.network(IMAGE)
def PatchDiscriminator():
    """Pix2pix: LeakyReLU of 0.2, and BatchNorm."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 4, 2, 1), nn.LeakyReLU(0.2, True)),
        *(nn.Conv2d(8, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.LeakyReLU(0.2, True)),
        nn.Conv2d(16, 1, 4, 1, 1),
    )


@networks.network(IMAGE)
def SpectralDiscriminator():
    from torch.nn.utils.parametrizations import spectral_norm

    return nn.Sequential(
        spectral_norm(nn.Conv2d(3, 8, 4, 2, 1)),
        nn.LeakyReLU(0.1),
        spectral_norm(nn.Conv2d(8, 1, 4, 2, 1)),
    )


@networks.network(IMAGE)
def OldSpectralDiscriminator():
    from torch.nn.utils import spectral_norm

    return nn.Sequential(
        spectral_norm(nn.Conv2d(3, 8, 4, 2, 1)),
        nn.LeakyReLU(0.1),
        spectral_norm(nn.Conv2d(8, 1, 4, 2, 1)),
    )


@networks.network(GREY)
class ESPCN(nn.Module):
    def __init__(self, scale_factor=2):
        super().__init__()
        self.first_part = nn.Sequential(
            nn.Conv2d(1, 12, 5, padding=2), nn.ReLU(), nn.Conv2d(12, 8, 3, padding=1), nn.ReLU()
        )
        self.last_part = nn.Sequential(
            nn.Conv2d(8, scale_factor**2, 3, padding=1), nn.PixelShuffle(scale_factor)
        )

    def forward(self, x):
        x = self.first_part(x)
        return self.last_part(x)


@networks.network(GREY)
class FSRCNN(nn.Module):
    def __init__(self):
        super().__init__()
        p = lambda n: nn.PReLU(n)
        self.first = nn.Sequential(nn.Conv2d(1, 12, 5, padding=2), p(12))
        self.mid = nn.Sequential(
            nn.Conv2d(12, 6, 1), p(6), nn.Conv2d(6, 6, 3, padding=1), p(6), nn.Conv2d(6, 12, 1), p(12)
        )
        self.last = nn.ConvTranspose2d(12, 1, 9, 2, 4, output_padding=1)

    def forward(self, x):
        return self.last(self.mid(self.first(x)))


@networks.network(GREY)
class SRCNNBicubic(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv2d(1, 8, 9, padding=4),
            nn.Conv2d(8, 8, 5, padding=2),
            nn.Conv2d(8, 1, 5, padding=2),
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)
        x = self.relu(self.conv1(x))
        x = self.relu(self.conv2(x))
        return self.conv3(x)


@networks.network(IMAGE)
class EDSR(nn.Module):
    """Mean shift, residual scaling, pixel shuffle, and clamping of the image at the end."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.45, 0.44, 0.40]).view(1, 3, 1, 1))
        self.head, self.tail = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Sequential(
                nn.Conv2d(8, 32, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(8, 3, 3, padding=1)
            ),
        )
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(True), nn.Conv2d(8, 8, 3, padding=1))
            for _ in range(2)
        )

    def forward(self, x):
        x = self.head((x - self.mean) * 255 / 64)
        res = x
        for block in self.body:
            res = res + block(res).mul(0.1)
        x = self.tail(res + x)
        return torch.clamp(x * 64 / 255 + self.mean, 0, 1)


@networks.network(IMAGE)
class RRDB(nn.Module):
    """ESRGAN's residual dense block."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 1, 1)
        self.convs = nn.ModuleList(nn.Conv2d(8 + 4 * i, 4 if i < 2 else 8, 3, 1, 1) for i in range(3))
        self.lrelu, self.last = nn.LeakyReLU(negative_slope=0.2, inplace=True), nn.Conv2d(8, 3, 3, 1, 1)

    def forward(self, x):
        x = self.first(x)
        x1 = self.lrelu(self.convs[0](x))
        x2 = self.lrelu(self.convs[1](torch.cat((x, x1), 1)))
        x3 = self.convs[2](torch.cat((x, x1, x2), 1))
        x = x3 * 0.2 + x
        return self.last(self.lrelu(F.interpolate(x, scale_factor=2, mode="nearest")))


@networks.network(GREY)
class DnCNN(nn.Module):
    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(4):
            layers += [
                nn.Conv2d(8, 8, 3, padding=1, bias=False),
                nn.BatchNorm2d(8),
                nn.ReLU(inplace=True),
            ]
        self.dncnn = nn.Sequential(*layers, nn.Conv2d(8, 1, 3, padding=1, bias=False))

    def forward(self, x):
        y = x
        return y - self.dncnn(x)


@networks.network(IMAGE, refused_for="instance normalisation by the sample")
class StyleTransfer(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.n = (
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(8, 8, 3),
            nn.InstanceNorm2d(8, affine=True),
        )
        self.c = nn.Conv2d(8, 3, 3)

    def forward(self, x):
        x = F.relu(self.a(F.pad(x, (1, 1, 1, 1), mode="reflect")))
        return self.c(F.relu(self.n(self.b(x))))


@networks.network(IMAGE)
class PyramidPooling(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(s), nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()
            )
            for s in (1, 2, 3, 6)
        )
        self.out = nn.Conv2d(24, 5, 1)

    def forward(self, x):
        size = x.shape[-2:]
        f = self.stem(x)
        h, w = f.size(2), f.size(3)
        priors = [
            F.interpolate(stage(f), size=(h, w), mode="bilinear", align_corners=False)
            for stage in self.stages
        ] + [f]
        return F.interpolate(self.out(torch.cat(priors, 1)), size, mode="bilinear", align_corners=False)


@networks.network(IMAGE)
class ASPP(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.rates = nn.ModuleList(nn.Conv2d(8, 4, 3, padding=r, dilation=r) for r in (1, 2, 4))
        self.image, self.project = nn.Conv2d(8, 4, 1), nn.Conv2d(16, 5, 1)

    def forward(self, x):
        input_shape = x.shape[-2:]
        x = F.relu(self.stem(x))
        res = [F.relu(conv(x)) for conv in self.rates]
        pooled = F.relu(self.image(F.adaptive_avg_pool2d(x, 1)))
        res.append(F.interpolate(pooled, size=x.shape[-2:], mode="bilinear", align_corners=False))
        x = F.interpolate(
            self.project(torch.cat(res, dim=1)), size=input_shape, mode="bilinear", align_corners=False
        )
        return {"out": x}


@networks.network(IMAGE)
class LinkNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.e1, self.e2 = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.d2, self.d1 = (
            nn.ConvTranspose2d(16, 8, 3, 2, 1, output_padding=1),
            nn.ConvTranspose2d(8, 2, 4, 2, 1),
        )

    def forward(self, x):
        e1 = F.relu(self.e1(x))
        e2 = F.relu(self.e2(e1))
        d = F.relu(self.d2(e2)) + e1
        return self.d1(d)


@networks.network(IMAGE, refused_for="unpooling by the indices of a maximum")
class SegNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 3, 3, padding=1),
        )

    def forward(self, x):
        x, i = F.max_pool2d(F.relu(self.a(x)), 2, return_indices=True)
        x = F.max_unpool2d(F.relu(self.b(x)), i, 2)
        return self.c(F.relu(x))


@networks.network(IMAGE)
class ENetInitial(nn.Module):
    """ENet and ERFNet: convolution beside pooling; factorised convolutions."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.bn = (
            nn.Conv2d(3, 5, 3, 2, 1, bias=True),
            nn.MaxPool2d(2, stride=2),
            nn.BatchNorm2d(8, eps=1e-3),
        )
        self.c31, self.c13 = (
            nn.Conv2d(8, 8, (3, 1), padding=(2, 0), dilation=(2, 1)),
            nn.Conv2d(8, 8, (1, 3), padding=(0, 2), dilation=(1, 2)),
        )
        self.out = nn.ConvTranspose2d(8, 4, 2, stride=2, padding=0, output_padding=0, bias=True)

    def forward(self, input):
        output = F.relu(self.bn(torch.cat([self.conv(input), self.pool(input)], 1)))
        o = F.relu(self.c31(output))
        o = self.c13(o)
        return self.out(F.relu(o + output))


@networks.network(IMAGE)
class BiSeNetless(nn.Module):
    """Two paths, of which the deep one is upsampled with nearest neighbours; two heads while training."""

    def __init__(self):
        super().__init__()
        self.spatial, self.context = (
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU6()),
        )
        self.head, self.aux = nn.Conv2d(16, 3, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        s, c = F.relu(self.spatial(x)), self.context(x)
        out = self.head(torch.cat([s, F.interpolate(c, s.shape[2:])], 1))
        if self.training:
            return out, self.aux(c)
        return out


@networks.network(IMAGE)
class ColourAndDepth(nn.Module):
    """Depth as a bounded number: 10·hardsigmoid."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x):
        return 10 * F.hardsigmoid(self.b(F.relu(self.a(x)))) + 0.1


@networks.network((16, 2))
class CoordinateMlp(nn.Module):
    """NeRF without a view: an encoding of coordinates by sines, then a skip connection."""

    def __init__(self):
        super().__init__()
        self.register_buffer("bands", 2.0 ** torch.arange(4))
        self.first, self.second, self.third = nn.Linear(16, 24), nn.Linear(40, 24), nn.Linear(24, 4)

    def forward(self, x):
        y = (x[..., None] * self.bands).flatten(-2)
        e = torch.cat([y.sin(), y.cos()], -1)
        h = F.relu(self.first(e))
        return self.third(F.relu(self.second(torch.cat([h, e], -1))))


@networks.network(IMAGE, refused_for="sines between layers")
class Siren(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        return F.relu(self.b(torch.sin(30 * F.relu(self.a(x)))))


@networks.network(IMAGE)
class PartialConvolution(nn.Module):
    """Inpainting: features are multiplied by a mask of the input, which is held."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        mask = (x[:, :1] > 0).float()
        h = F.relu(self.a(x * mask)) * mask
        return F.relu(self.b(h))
