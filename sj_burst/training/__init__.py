"""Training for conversion: bounded activations, threshold scales, and the converted network itself."""

from .qcfs import QCFS
from .rate_norm import RateNorm, lock_max, rate_norms, replace_relu, share_scale

__all__ = [
    "QCFS",
    "RateNorm",
    "lock_max",
    "rate_norms",
    "replace_relu",
    "share_scale",
]
