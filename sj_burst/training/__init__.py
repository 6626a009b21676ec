"""Training for conversion: bounded activations, threshold scales, and the converted network itself."""

from .qcfs import QCFS
from .rate_inference import (
    Candidate,
    evaluate_rates,
    non_dominated,
    omega,
    output_rate,
    rate_inference_loss,
    record_rates,
    train_rates,
    train_threshold_scale,
)
from .rate_norm import RateNorm, lock_max, rate_norms, replace_relu, share_scale
from .tet import finetune, tet_loss

__all__ = [
    "QCFS",
    "Candidate",
    "RateNorm",
    "evaluate_rates",
    "finetune",
    "lock_max",
    "non_dominated",
    "omega",
    "output_rate",
    "rate_inference_loss",
    "rate_norms",
    "record_rates",
    "replace_relu",
    "share_scale",
    "tet_loss",
    "train_rates",
    "train_threshold_scale",
]
