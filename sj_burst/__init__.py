"""Burst neurons, lateral-inhibition pooling and calibration for SpikingJelly's ANN-to-SNN converter."""

from . import plot, training
from .backends import set_backend
from .checkpoint import load, save
from .early_exit import fit_early_exit
from .energy import synops
from .graph import standardize
from .graph.network import SpikingNetwork
from .inactivated import inactivated_share
from .neuron import BurstIFNode
from .recipe import PRESETS, BurstRecipe, Options
from .recommend import recommend
from .report import Report, report
from .simulate import SimulationResult, simulate

__version__ = "0.1.0"
__all__ = [
    "PRESETS",
    "BurstIFNode",
    "BurstRecipe",
    "Options",
    "Report",
    "SimulationResult",
    "SpikingNetwork",
    "fit_early_exit",
    "inactivated_share",
    "load",
    "plot",
    "recommend",
    "report",
    "save",
    "set_backend",
    "simulate",
    "standardize",
    "synops",
    "training",
]
