"""FX passes from a trained network to a graph of plain modules, one concept a file."""

from .check import check_batch_independent, check_equal, check_supported
from .fuse import fuse
from .network import SpikingNetwork
from .standardize import standardize

__all__ = [
    "SpikingNetwork",
    "check_batch_independent",
    "check_equal",
    "check_supported",
    "fuse",
    "standardize",
]
