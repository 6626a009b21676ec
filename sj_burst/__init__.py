"""Burst neurons, lateral-inhibition pooling and calibration for SpikingJelly's ANN-to-SNN converter."""

from . import plot
from .neuron import BurstIFNode
from .recipe import BurstRecipe
from .simulate import SimulationResult, simulate

__version__ = "0.1.0"
__all__ = ["BurstIFNode", "BurstRecipe", "SimulationResult", "plot", "simulate"]
