"""Training for conversion: bounded activations, threshold scales, and the converted network itself."""

from .candidates import Candidate, non_dominated
from .distil import distil, distillation_loss
from .qcfs import QCFS
from .rate_loss import omega, output_rate, rate_inference_loss
from .rate_measure import evaluate_rates, record_rates
from .rate_norm import RateNorm, lock_max, rate_norms, replace_relu, share_scale
from .scale_stage import train_threshold_scale
from .tet import finetune, tet_loss
from .weight_stage import train_rates

__all__ = [
    "QCFS",
    "Candidate",
    "RateNorm",
    "distil",
    "distillation_loss",
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
