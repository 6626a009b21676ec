"""Quantized clipped ReLU with a trainable bound (QCFS)."""

import math

import torch
from torch import Tensor, nn

from ..modules.bounded import BoundedActivation
from ..utils.checks import check_positive

__all__ = ["QCFS"]


class QCFS(BoundedActivation):
    r"""Quantization clip-floor-shift activation: what a neuron with threshold λ sends in L steps.

    .. math::
        a = \lambda\,\mathrm{clip}\Big(\frac1L \Big\lfloor \frac{xL}{\lambda} + \frac12
        \Big\rfloor, 0, 1\Big), \qquad \lambda = e^s > 0

    The floor is straight-through: gradients are those of :math:`\lambda(\mathrm{clip}(x/\lambda, 0,
    1) L + \frac12 + \delta)/L`, with the rounding δ = ⌊u⌋ − u a constant:

    .. math::
        \frac{\partial a}{\partial x} = [0 < x < \lambda], \qquad
        \frac{\partial a}{\partial \lambda} = \frac{a - x\,[0 < x < \lambda]}{\lambda}

    A network of these converts with ``BurstRecipe(loader, threshold="trained", time_steps=L,
    max_spikes=1, calibration="none")``: θ = λ, v0 = θ/2, and nothing is observed. At Γ = L and T = 1
    the spiking network computes exactly what this one does.

    Args:
        levels: L ≥ 1.
        bound: λ > 0 at the start, in the units of the activation.

    Attributes:
        log_bound: the parameter s = log λ. The article trains λ itself, which may become negative.

    Raises:
        ValueError: for fewer than one level, or a bound that is not positive.

    Source: Bu et al., "Optimal ANN-SNN conversion for high-accuracy and ultra-low-latency spiking
    neural networks", ICLR 2022.

    Example:
        >>> QCFS(levels=4, bound=2.0)(torch.tensor([-1.0, 0.2, 0.3, 1.0, 5.0])).tolist()
        [0.0, 0.0, 0.5, 1.0, 2.0]
    """

    def __init__(self, levels: int = 4, bound: float = 4.0) -> None:
        super().__init__()
        if isinstance(levels, bool) or not isinstance(levels, int) or levels < 1:
            raise ValueError(f"levels must be an integer ≥ 1, got {levels!r}; 4 and 8 are usual")
        check_positive(bound=bound)
        self.levels = levels
        self.log_bound = nn.Parameter(torch.tensor(math.log(bound)))

    @property
    def bound(self) -> Tensor:
        """λ."""
        return self.log_bound.exp()

    def forward(self, x: Tensor) -> Tensor:
        """Clip ``x``, of any shape, to [0, λ] and round it to a multiple of λ/L."""
        bound = self.bound
        level = (x / bound).clamp(0, 1) * self.levels + 0.5
        level = level + (level.floor() - level).detach()
        return bound * (level / self.levels)

    def extra_repr(self) -> str:
        """Options in one line."""
        return f"levels={self.levels}, bound={self.bound.item():.4g}"
