"""Tables, control, physics, games, and text."""

import torch
import torch.nn.functional as F
from torch import nn

from ..entry import Collection

networks = Collection("tables")


def tokens(high, length):
    return lambda samples: torch.randint(high, (samples, length))


@networks.network((12,))
def Mlp():
    return nn.Sequential(
        nn.Linear(12, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)
    )


@networks.network((12,))
class MlpFromList(nn.Module):
    def __init__(self, sizes=(12, 24, 24, 3)):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:])])
        self.norms = nn.ModuleList([nn.BatchNorm1d(b) for b in sizes[1:-1]])
        self.activation = torch.relu

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i < len(self.norms):
                x = self.activation(self.norms[i](x))
        return x


@networks.network((12,))
class OneNumber(nn.Module):
    """A regression whose output has no dimension of features."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(12, 24), nn.Linear(24, 1)

    def forward(self, x):
        return self.b(F.relu(self.a(x))).squeeze(-1)


@networks.network((12,))
class ResNetTable(nn.Module):
    """Gorishniy et al., 2021, with BatchNorm."""

    def __init__(self):
        super().__init__()
        self.first, self.head = (
            nn.Linear(12, 16),
            nn.Sequential(nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2)),
        )
        self.layers = nn.ModuleList(
            nn.ModuleDict({"norm": nn.BatchNorm1d(16), "a": nn.Linear(16, 32), "b": nn.Linear(32, 16)})
            for _ in range(2)
        )

    def forward(self, x):
        x = self.first(x)
        for layer in self.layers:
            z = layer["norm"](x)
            z = F.relu(layer["a"](z))
            z = F.dropout(z, 0.2, self.training)
            x = x + layer["b"](z)
        return self.head(x)


@networks.network(lambda n: torch.cat([torch.randn(n, 4), torch.randint(5, (n, 2)).float()], 1))
class Categorical(nn.Module):
    """Numbers and categories in one table; the categories are embedded."""

    def __init__(self):
        super().__init__()
        self.embeds = nn.ModuleList(nn.Embedding(5, 3) for _ in range(2))
        self.bn, self.net = (
            nn.BatchNorm1d(4),
            nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 2)),
        )

    def forward(self, x):
        cats = [e(x[:, 4 + i].long()) for i, e in enumerate(self.embeds)]
        return self.net(torch.cat([self.bn(x[:, :4]), *cats], 1))


@networks.network((12,))
class WideAndDeep(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.deep = (
            nn.Linear(12, 1),
            nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 1)),
        )

    def forward(self, x):
        return self.wide(x) + self.deep(x)


@networks.network((8,))
class FactorizationMachine(nn.Module):
    """Products of the input's features beside a deep part: all products are before the neurons."""

    def __init__(self):
        super().__init__()
        self.v, self.lin = nn.Parameter(torch.randn(8, 4) / 3), nn.Linear(8, 1)
        self.deep = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, x):
        inter = 0.5 * ((x @ self.v).pow(2) - x.pow(2) @ self.v.pow(2)).sum(1, keepdim=True)
        return self.lin(x) + inter + self.deep(x)


@networks.network((8,), refused_for="SELU")
def SelfNormalising():
    return nn.Sequential(nn.Linear(8, 16), nn.SELU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))


@networks.network((8,), refused_for="tanh")
def TanhPolicy():
    return nn.Sequential(
        nn.Linear(8, 16),
        nn.ReLU(),
        nn.Linear(16, 8),
        nn.Tanh(),
        nn.Linear(8, 4),
        nn.ReLU(),
        nn.Linear(4, 2),
    )


@networks.network((8,), refused_for="layer normalisation between neurons")
def LayerNormed():
    return nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 2)
    )


@networks.network((8,), refused_for="softplus")
def SoftplusPhysics():
    return nn.Sequential(nn.Linear(8, 16), nn.Softplus(), nn.Linear(16, 2), nn.ReLU())


@networks.network((4, 36, 36))
class DQN(nn.Module):
    def __init__(self, actions=4):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv2d(4, 8, 8, stride=4),
            nn.Conv2d(8, 12, 4, stride=2),
            nn.Conv2d(12, 12, 3, stride=1),
        )
        self.fc4, self.fc5 = nn.Linear(12, 24), nn.Linear(24, actions)

    def forward(self, x):
        x = x.float() / 255 * 64
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = F.relu(self.conv3(x))
        x = F.relu(self.fc4(x.view(x.size(0), -1)))
        return self.fc5(x)


@networks.network((4,))
class DuelingDQN(nn.Module):
    def __init__(self):
        super().__init__()
        self.feature, self.value, self.advantage = nn.Linear(4, 24), nn.Linear(24, 1), nn.Linear(24, 3)

    def forward(self, x):
        x = F.relu(self.feature(x))
        advantage = self.advantage(x)
        return self.value(x) + advantage - advantage.mean(dim=-1, keepdim=True)


@networks.network((4,))
class ActorCritic(nn.Module):
    """Probabilities of actions, and a value."""

    def __init__(self):
        super().__init__()
        self.affine1, self.action_head, self.value_head = (
            nn.Linear(4, 24),
            nn.Linear(24, 2),
            nn.Linear(24, 1),
        )

    def forward(self, x):
        x = F.relu(self.affine1(x))
        action_prob = F.softmax(self.action_head(x), dim=-1)
        state_values = self.value_head(x)
        return action_prob, state_values


@networks.network((6,))
class DDPGActor(nn.Module):
    """A bounded action: tanh at the end, times the largest action."""

    def __init__(self):
        super().__init__()
        self.l1, self.l2, self.max_action = nn.Linear(6, 24), nn.Linear(24, 2), 2.0

    def forward(self, state):
        return self.max_action * torch.tanh(self.l2(F.relu(self.l1(state))))


@networks.network((6,))
class SACActor(nn.Module):
    """Mean, and a clamped logarithm of the deviation."""

    def __init__(self):
        super().__init__()
        self.l1, self.mu, self.log_std = nn.Linear(6, 24), nn.Linear(24, 2), nn.Linear(24, 2)

    def forward(self, state):
        a = F.relu(self.l1(state))
        return self.mu(a), torch.clamp(self.log_std(a), -2.0, 1.0)


@networks.network((2, 6, 6))
class AlphaZero(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.pc, self.pf, self.vc, self.vf = (
            nn.Conv2d(8, 2, 1),
            nn.Linear(72, 37),
            nn.Conv2d(8, 1, 1),
            nn.Linear(36, 1),
        )

    def forward(self, s):
        s = s.view(-1, 2, 6, 6)
        s = F.relu(self.bn(self.conv(s)))
        pi = self.pf(F.relu(self.pc(s)).view(-1, 72))
        v = self.vf(F.relu(self.vc(s)).view(-1, 36))
        return F.log_softmax(pi, dim=1), torch.tanh(v)


@networks.network((10,))
class MixtureOfConstantExperts(nn.Module):
    """Experts that learnt numbers weigh."""

    def __init__(self):
        super().__init__()
        self.experts, self.weights = (
            nn.ModuleList(nn.Linear(10, 12) for _ in range(3)),
            nn.Parameter(torch.randn(3)),
        )
        self.out = nn.Linear(12, 2)

    def forward(self, x):
        w = torch.softmax(self.weights, 0)
        y = torch.stack([F.relu(e(x)) for e in self.experts])
        return self.out((w.view(-1, 1, 1) * y).sum(0))


@networks.network((10,), refused_for="a gate computed from activations")
class MixtureOfExperts(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.gate, self.experts = (
            nn.Linear(10, 12),
            nn.Linear(12, 3),
            nn.ModuleList(nn.Linear(12, 4) for _ in range(3)),
        )

    def forward(self, x):
        x = F.relu(self.trunk(x))
        g = self.gate(x).softmax(-1)
        return F.relu(sum(g[:, i : i + 1] * e(x) for i, e in enumerate(self.experts)))


@networks.network((10,))
class GateOfTheInput(nn.Module):
    """A gate computed from the input alone, which is held: a constant factor of each sample."""

    def __init__(self):
        super().__init__()
        self.gate, self.trunk, self.out = nn.Linear(10, 12), nn.Linear(10, 12), nn.Linear(12, 3)

    def forward(self, x):
        return self.out(F.relu(self.trunk(x)) * torch.sigmoid(self.gate(x)))


@networks.network(tokens(40, 12))
class TextCNN(nn.Module):
    """Kim, 2014."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(40, 8)
        self.convs = nn.ModuleList([nn.Conv2d(1, 6, (k, 8)) for k in (2, 3, 4)])
        self.dropout, self.fc = nn.Dropout(0.5), nn.Linear(18, 3)

    def forward(self, x):
        x = self.embed(x)
        x = x.unsqueeze(1)
        x = [F.relu(conv(x)).squeeze(3) for conv in self.convs]
        x = [F.max_pool1d(i, i.size(2)).squeeze(2) for i in x]
        x = torch.cat(x, 1)
        return self.fc(self.dropout(x))


@networks.network(tokens(40, 12))
class FastText(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.a, self.b = (
            nn.EmbeddingBag(40, 8, mode="mean"),
            nn.Linear(8, 16),
            nn.Linear(16, 3),
        )

    def forward(self, x):
        return self.b(F.relu(self.a(self.embed(x))))


@networks.network(tokens(40, 12))
class CharCNN(nn.Module):
    """One-hot characters."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv1d(40, 12, 3), nn.Conv1d(12, 12, 3), nn.Linear(12, 4)

    def forward(self, x):
        x = F.one_hot(x, 40).float().transpose(1, 2)
        x = F.max_pool1d(F.relu(self.a(x)), 2)
        return self.fc(F.relu(self.b(x)).mean(-1))


@networks.network(tokens(40, 12))
class MaskedMean(nn.Module):
    """Words and positions; padding is masked in the mean over words."""

    def __init__(self):
        super().__init__()
        self.words, self.positions = nn.Embedding(40, 12, padding_idx=0), nn.Embedding(16, 12)
        self.a, self.b = nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, x):
        positions = torch.arange(x.size(1), device=x.device).unsqueeze(0).expand_as(x)
        mask = (x != 0).unsqueeze(-1).float()
        h = F.relu(self.a(self.words(x) + self.positions(positions)))
        return self.b((h * mask).sum(1) / mask.sum(1).clamp(min=1))


@networks.network(tokens(40, 8), refused_for="attention")
class SmallTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.layer, self.fc = (
            nn.Embedding(40, 8),
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            nn.Linear(8, 3),
        )

    def forward(self, x):
        return self.fc(F.relu(self.layer(F.relu(self.embed(x)))).mean(1))


@networks.network((6, 8), refused_for="attention")
class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out, self.first = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        x = F.relu(self.first(x))
        q, k, v = self.qkv(x).chunk(3, -1)
        a = (q @ k.transpose(-2, -1) / 8**0.5).softmax(-1)
        return F.relu(self.out(a @ v))


@networks.network((6, 8), refused_for="a product of activations")
class LinearAttentionReLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (
            nn.Linear(8, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 3),
        )

    def forward(self, x):
        q, k, v = F.relu(self.q(x)), F.relu(self.k(x)), self.v(x)
        return F.relu(self.out(q @ (k.transpose(1, 2) @ v)))


@networks.network((6, 8))
class LearntMixing(nn.Module):
    """A synthesizer: the attention is a parameter."""

    def __init__(self):
        super().__init__()
        self.mix, self.v, self.out = nn.Parameter(torch.randn(6, 6)), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.v(x))
        return self.out(torch.softmax(self.mix, -1) @ x)


@networks.network((32,), refused_for="the branch depends on the values")
class EarlyExit(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(32, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = F.relu(self.a(x))
        if x.sum() > 0:
            x = F.relu(self.b(x))
        return self.c(x)
