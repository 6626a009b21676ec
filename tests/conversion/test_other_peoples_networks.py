"""What the zoo has found in networks of other people."""

import dataclasses
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .test_unusual_networks import EXACT, assert_converges


class Between(nn.Module):
    """An operation between two layers of ReLUs."""

    def __init__(self, operation):
        super().__init__()
        self.operation, self.first = operation, nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Linear(operation(torch.randn(2, 4, 6, 6)).flatten(1).size(1), 3)

    def forward(self, x):
        return F.relu(self.second(self.operation(F.relu(self.first(x))).flatten(1)))


def leaky(x):
    return torch.where(x >= 0, x, x * 0.2)


GRID = 2 * torch.rand(1, 5, 5, 2) - 1
SQUARE = torch.randn(6, 6)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x.cumsum(2),
        lambda x: torch.where(SQUARE > 0, x, -x),
        lambda x: x.masked_fill(SQUARE > 0, 0.0),
        lambda x: torch.zeros(x.size(0), 2, 6, 6).index_add(1, torch.tensor([0, 1, 1, 0]), x),
        lambda x: torch.view_as_real(torch.fft.rfft2(x)),
        lambda x: torch.fft.ifft(torch.fft.fft(x)).real,
        lambda x: F.grid_sample(x, GRID.expand(x.size(0), -1, -1, -1), align_corners=False),
        lambda x: torch.addmm(SQUARE[0], x.flatten(1)[:, :6], SQUARE),
        lambda x: torch.lerp(x, x.flip(1), 0.3),
        lambda x: torch.tensordot(x, SQUARE, dims=([3], [0])),
        lambda x: torch.true_divide(x, 3).multiply(2),
        lambda x: leaky(x - 0.5),
    ],
)
def test_affine_operations(convert, operation):
    ann, x = Between(operation), torch.randn(4, 3, 6, 6)
    assert_converges(convert(ann, [x], **EXACT), ann, x)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: torch.einsum("bchw,bchw->bc", x, x),
        lambda x: torch.einsum("bchw,bchw->bc", [x, x]),
        lambda x: torch.tensordot(x, x, dims=([0], [0])).sum() + x,
        lambda x: torch.addcmul(x, x, x),
        lambda x: torch.lerp(x, x + 1, x),
        lambda x: torch.kron(x, x),
    ],
)
def test_products_are_refused(convert, operation):
    with pytest.raises(ValueError, match="product of two activations"):
        convert(Between(operation), [torch.randn(4, 3, 6, 6)])


class Gated(nn.Module):
    """What is computed of the held input alone is a constant factor for each sample."""

    def __init__(self):
        super().__init__()
        self.gate, self.body, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        y = F.relu(self.body(x)) * torch.sigmoid(self.gate(x))
        return F.relu(self.out(y / x.square().sum(1, keepdim=True).sqrt()))


def test_factors_of_the_held_input(convert):
    ann, x = Gated(), torch.randn(8, 6)
    snn = convert(ann, [x], **EXACT)
    assert_converges(snn, ann, x)
    assert_converges(convert(ann, [x], time_steps=8), ann, x, steps=8, tolerance=0.2)
    with pytest.raises(ValueError, match="product of two activations"):
        convert(ann, [x], coding="rate")


def test_a_divisor_that_fires_is_refused(convert):
    class Divided(Gated):
        def forward(self, x):
            return F.relu(self.out(self.gate(x) / (1 + F.relu(self.body(x)))))

    with pytest.raises(ValueError, match="product of two activations"):
        convert(Divided(), [torch.randn(8, 6)])


def test_a_table_of_numbers_and_categories(convert):
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.net = nn.Embedding(5, 3), nn.Sequential(nn.Linear(6, 8), nn.ReLU())

        def forward(self, x):
            return self.net(torch.cat([x[:, :3], self.embed(x[:, 3].long())], 1))

    x = torch.cat([torch.randn(8, 3), torch.randint(5, (8, 1)).float()], 1)
    ann = Table()
    assert_converges(convert(ann, [x], **EXACT), ann, x)


@dataclasses.dataclass
class Answer:
    logits: Tensor
    features: Tensor | None = None


class Named(NamedTuple):
    logits: Tensor
    features: Tensor | None = None


@pytest.mark.parametrize("kind", [Answer, Named])
@pytest.mark.parametrize("both", [True, False])
def test_outputs_with_names(convert, kind, both):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            x = F.relu(self.first(x))
            return kind(self.second(x), features=x) if both else kind(logits=self.second(x))

    net, x = Net(), torch.randn(8, 3)
    out = convert(net, [x], **EXACT).run(x, 512)
    got = out["logits"] if kind is Answer else out[0]
    assert torch.allclose(got.mean(0), net(x).logits, atol=0.02)
    rest = out["features"] if kind is Answer else out[1]
    assert rest.shape == (512, 8, 4) if both else rest is None


@pytest.mark.parametrize(
    "largest",
    [
        lambda x: x.view(-1, 6, 2).max(dim=2)[0],
        lambda x: torch.max(*x.chunk(2, 1)),
        lambda x: torch.minimum(x[:, :6], x[:, 6:]),
        lambda x: x.view(-1, 3, 4).amax(-1, keepdim=True).expand(-1, -1, 2).flatten(1),
    ],
)
def test_networks_of_maxima_alone_spike(convert, largest):
    class Maxout(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(5, 12), nn.Linear(6, 3)

        def forward(self, x):
            return self.second(largest(self.first(x)))

    ann, x = Maxout(), torch.randn(8, 5)
    snn = convert(ann, [x], **EXACT)
    assert snn.neurons()
    assert_converges(snn, ann, x)


def test_indices_of_a_maximum_that_nobody_reads(convert):
    def largest(x):
        x, _ = x.max(1)
        return x

    ann, x = Between(largest), torch.randn(4, 3, 6, 6)
    assert_converges(convert(ann, [x], **EXACT), ann, x)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_older_weight_norm(convert):
    ann, x = (
        nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2)),
        torch.randn(8, 3),
    )
    snn = convert(ann, [x], **EXACT)
    ann.eval()
    assert_converges(snn, ann, x)
    assert "weight_g" in ann[0]._parameters


def test_buffers_take_sizes(convert):
    class Blurred(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("filter", torch.rand(1, 1, 3, 3))
            self.first = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            x = F.relu(self.first(x))
            x = F.conv2d(x, self.filter.expand(x.size(1), -1, -1, -1), groups=x.size(1))
            return F.relu(x - 0.1).flatten(1)

    ann, x = Blurred(), torch.randn(4, 3, 6, 6)
    expand = Tensor.expand
    assert_converges(convert(ann, [x], **EXACT), ann, x)
    assert Tensor.expand is expand
