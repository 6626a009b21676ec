"""The rate inference loss: agreement with a teacher, and Ω, how slowly rates are reached."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["EPSILON", "omega", "output_rate", "rate_inference_loss"]

EPSILON = 1e-5  # keeps Ω of a silent layer finite


def omega(rate: Tensor) -> Tensor:
    r"""How slowly a layer's rates are reached: the smaller Ω, the faster the inference.

    .. math::
        \Omega = \frac{\sum r}{\sum r^2 + 10^{-5}}, \qquad K(t) \ge 1 - \Omega / t

    with the fit K(t) of the spiking rates after t steps to the rates r. Ω ≥ 1, and Ω = 1 when every
    neuron that fires does so at each step.

    Args:
        rate: firing rates in [0, 1], any shape.

    Source: Ding et al., IJCAI 2021.

    Example:
        >>> round(omega(torch.tensor([0.0, 0.5, 0.5])).item(), 3)
        2.0
    """
    return rate.sum() / (rate.square().sum() + EPSILON)


def output_rate(logits: Tensor) -> Tensor:
    r"""ReLU(logits) relative to each sample's largest: the rate of a layer of class scores.

    .. math::
        r_c = \max(o_c, 0) / \max_k \max(o_k, 0)

    Args:
        logits: o ``[N, C]``.

    Returns:
        r ``[N, C]`` in [0, 1]; zeros for a sample without a positive score.

    Source: Ding et al., IJCAI 2021, after whose stage 2 the output is a layer like the others.

    Example:
        >>> output_rate(torch.tensor([[-1.0, 1.0, 2.0]])).tolist()
        [[0.0, 0.5, 1.0]]
    """
    positive = logits.relu()
    return positive / positive.amax(1, keepdim=True).clamp_min(EPSILON)


def rate_inference_loss(
    logits: Tensor, teacher_logits: Tensor, rates: Sequence[Tensor], lam: float = 0.1
) -> Tensor:
    r"""Rate inference loss: answer as the teacher does, at rates that are reached fast.

    .. math::
        L = 1 - \cos(o_\text{teacher}, o) + \lambda \frac1{|l|} \sum_l \Omega_l

    The layers are the hidden ones and the output, whose rate is :func:`output_rate`. The teacher is
    a frozen network; with one network as teacher and student the cosine would have no gradient.

    Args:
        logits: o, ``[N, C]``.
        teacher_logits: of the frozen teacher, ``[N, C]``.
        rates: of each rate norm layer, as :func:`record_rates` collects them.
        lam: λ ≥ 0, weight of Ω.

    Returns:
        A scalar.

    Raises:
        ValueError: if the logits differ in shape.

    Source: Ding et al., IJCAI 2021.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0]])
        >>> round(rate_inference_loss(logits, logits, [torch.ones(1, 3)]).item(), 3)
        0.1
    """
    if logits.shape != teacher_logits.shape:
        raise ValueError(
            f"the teacher returns {list(teacher_logits.shape)}, the network {list(logits.shape)}; both "
            "must answer the same classes"
        )
    cosine = F.cosine_similarity(teacher_logits.detach().flatten(1), logits.flatten(1), dim=1).mean()
    omegas = torch.stack([omega(rate) for rate in (*rates, output_rate(logits))])
    return 1 - cosine + lam * omegas.mean()
