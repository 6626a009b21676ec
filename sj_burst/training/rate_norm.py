"""The rate norm layer: a ReLU with a trainable upper bound, the threshold of the neuron to come."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..graph.standardize import standardize
from ..modules.bounded import BoundedActivation
from ..utils.checks import check_network, check_range
from ..utils.copying import copied

__all__ = ["RateNorm", "lock_max", "rate_norms", "replace_relu", "share_scale"]


class RateNorm(BoundedActivation):
    r"""ReLU clipped at θ = p·M: a running maximum M times a trainable share p.

    .. math::
        M \leftarrow (1-\beta) M + \beta \max(x), \qquad
        \theta = p M, \quad p = \sigma(q) \in (0, 1), \qquad
        y = \theta r, \quad r = \mathrm{clip}(x / \theta, 0, 1)

    The output is θ·r, not the rate r of the article: the following weights keep their scale, and the
    network is an ordinary one with clipped ReLUs. θ is positive: where p·M underflows, it is the
    smallest normal number. The first batch sets M, and a batch without a positive value leaves it.

    Args:
        scale_logit: q at the start; p = 0.924 for 2.5.
        momentum: β of the running maximum.

    Attributes:
        scale_logit: the parameter q; may be shared, see :func:`share_scale`.
        maximum: M, updated in training mode only, unless ``locked``.

    Raises:
        ValueError: if the momentum is not in (0, 1].

    Source: Ding et al., "Optimal ANN-SNN conversion for fast and accurate inference in deep spiking
    neural networks", IJCAI 2021.

    Example:
        >>> layer = RateNorm()
        >>> layer(torch.tensor([-1.0, 1.0, 4.0])).tolist()
        [0.0, 1.0, 3.6965...]
        >>> layer.bound.item() / layer.maximum.item()
        0.924...
    """

    maximum: Tensor
    batches: Tensor

    def __init__(self, scale_logit: float = 2.5, momentum: float = 0.1) -> None:
        super().__init__()
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum must be in (0, 1], got {momentum}; the usual value is 0.1")
        check_range(-math.inf, math.inf, scale_logit=scale_logit)
        self.momentum = momentum
        self.locked = False
        self.scale_logit = nn.Parameter(torch.tensor(float(scale_logit)))
        self.register_buffer("maximum", torch.tensor(1.0))
        self.register_buffer("batches", torch.tensor(0))

    @property
    def bound(self) -> Tensor:
        """θ = p·M, and never so small that it has no reciprocal."""
        bound = self.scale_logit.sigmoid() * self.maximum
        return bound.clamp_min(torch.finfo(bound.dtype).tiny)

    def forward(self, x: Tensor) -> Tensor:
        """Clip ``x``, of any shape, to [0, θ]."""
        if self.training and not self.locked:
            self._update(x.detach())
        return x.relu().minimum(self.bound)

    @torch.no_grad()
    def _update(self, x: Tensor) -> None:
        largest = x.amax().to(self.maximum.dtype)
        mean = self.maximum.lerp(largest, self.momentum)
        new = torch.where(self.batches == 0, largest, mean)
        positive = (largest > 0) & largest.isfinite()
        # Not in place: a layer that is called twice still needs the first value for its gradient.
        self.maximum = torch.where(positive, new, self.maximum)
        self.batches += positive

    def extra_repr(self) -> str:
        """The bound, and what it is made of."""
        share = self.scale_logit.sigmoid().item()
        return f"bound={self.bound.item():.4g}, share={share:.4g}, maximum={self.maximum.item():.4g}"


def rate_norms(model: nn.Module) -> dict[str, RateNorm]:
    """The rate norm layers of a network by name.

    Raises:
        ValueError: if there is none.

    Example:
        >>> list(rate_norms(nn.Sequential(nn.Linear(2, 2), RateNorm())))
        ['1']
    """
    found = {name: m for name, m in model.named_modules() if isinstance(m, RateNorm)}
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no RateNorm layer; put them in with replace_relu(model)"
        )
    return found


def lock_max(model: nn.Module, locked: bool = True) -> nn.Module:
    """Stop (or resume) the update of M in every rate norm layer; returns the model.

    Args:
        model: a network with rate norm layers; changed in place.
        locked: M stays as it is.

    Raises:
        ValueError: if there is no rate norm layer.

    Source: Ding et al., IJCAI 2021, whose second stage keeps M.

    Example:
        >>> net = lock_max(nn.Sequential(RateNorm()))
        >>> _ = net(torch.tensor([100.0]))
        >>> net[0].maximum.item()
        1.0
    """
    for layer in rate_norms(model).values():
        layer.locked = locked
    return model


def share_scale(model: nn.Module, shared: bool = True) -> nn.Module:
    """Give all rate norm layers one q (the mean of theirs), or each its own; returns the model.

    Args:
        model: a network with rate norm layers; changed in place.
        shared: one for all.

    Raises:
        ValueError: if there is no rate norm layer.

    Source: Ding et al., IJCAI 2021, who recommend one scale.

    Example:
        >>> net = share_scale(nn.Sequential(RateNorm(1.0), RateNorm(3.0)))
        >>> net[0].scale_logit is net[1].scale_logit, net[1].scale_logit.item()
        (True, 2.0)
    """
    layers = list(rate_norms(model).values())
    if shared:
        mean = nn.Parameter(torch.stack([m.scale_logit.detach() for m in layers]).mean())
        for layer in layers:
            layer.scale_logit = mean
    else:
        for layer in layers:
            layer.scale_logit = nn.Parameter(layer.scale_logit.detach().clone())
    return model


def replace_relu(
    model: nn.Module,
    activation: Callable[[], nn.Module] = RateNorm,
    *,
    example: Any = None,
) -> nn.Module:
    """Put a bounded activation in the place of every ReLU of a copy of a network.

    ``nn.ReLU`` modules are replaced as they stand, under their names; one that is called several
    times remains one module. With an ``example`` the network goes through
    :func:`sj_burst.standardize` first: functional ReLUs become modules, each call gets its own, and
    Dropout is dropped. Parameters keep their names either way.

    Args:
        model: a network; stays as it is.
        activation: makes the module for one ReLU, ``RateNorm`` or ``lambda: QCFS(levels=4)`` say.
        example: input ``[N, ...]``, N ≥ 2, or a tuple or dict of several, for networks with functional
            ReLUs.

    Returns:
        The new network, in the mode of ``model``.

    Raises:
        ValueError: if there is no ReLU to replace.
        TypeError: if ``activation`` is a module.

    Source: Ding et al., IJCAI 2021.

    Example:
        >>> net = replace_relu(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
        >>> type(net[1]).__name__
        'RateNorm'
    """
    check_network(model=model)
    if isinstance(activation, nn.Module):
        raise TypeError(
            f"activation makes a new module for each ReLU, got one {type(activation).__name__}; pass "
            "the class, or a lambda"
        )
    net = copied(model) if example is None else standardize(model, example)
    made: dict[nn.Module, nn.Module] = {}
    for name, module in list(net.named_modules(remove_duplicate=False)):
        if type(module) is nn.ReLU and name:
            if module not in made:
                made[module] = activation()
            net.set_submodule(name, made[module])
    if not made:
        raise ValueError(
            f"{type(model).__name__} has no nn.ReLU module to replace; for functional ReLUs pass a "
            "batch of two inputs as example"
        )
    tensor = next(net.parameters(), torch.empty(0))
    for new in made.values():
        new.to(tensor.device, tensor.dtype).train(model.training)
    # A copy has the modes of its modules already; a rewritten graph is in eval mode.
    return net if example is None else net.train(model.training)
