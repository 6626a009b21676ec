"""Burst neurons, lateral-inhibition pooling and calibration for SpikingJelly's ANN-to-SNN converter.

Convert
    - :func:`convert`: a trained network to a spiking one, with :class:`Options`; published settings are
      in :data:`PRESETS`.
    - :class:`BurstRecipe`: the same for ``spikingjelly.activation_based.ann2snn.Converter``.
    - :func:`recommend`: the cheapest T and Γ that keep a network's accuracy.
    - :func:`standardize`: the graph of modules that a network is rewritten to first.

Run
    - :class:`SpikingNetwork`: what a conversion returns; ``run(x, T)``, or SpikingJelly's step modes.
    - :func:`simulate`: accuracy after every step, spikes, SynOps, as a :class:`SimulationResult`.
    - :func:`expect_spikes`: what layers take for granted, and neurons need not send.
    - :func:`fit_early_exit`: how sure an answer must be for a sample to leave early.
    - :func:`set_backend`: torch, numba or CuPy.
    - :func:`save`, :func:`load`: a network in a file, and back to the last bit.

Understand
    - :func:`report`: what every layer lost, why, and which option mends it, as a :class:`Report`.
    - :func:`synops`: synaptic operations and energy.
    - :func:`inactivated_share`: neurons that fire although the ANN's are silent.
    - :mod:`plot`: accuracy over time and spikes, errors of layers, rasters, membrane potentials.

Train
    - :mod:`training`: distillation of a converted network, temporal efficient training, rate norm layers
      and threshold scales, QCFS.

Deploy
    - :mod:`export`: integers of 8 bits, folded weights, sinabs, NIR, NeuroBench.

Build
    - :class:`BurstIFNode`; :mod:`sj_burst.modules.pooling`, :mod:`sj_burst.modules.encoding`, and the
      arithmetic in :mod:`sj_burst.functional`.
"""

from . import export, training
from .analysis import plot
from .analysis.inactivated import inactivated_share
from .analysis.recommend import recommend
from .analysis.report import Report, report
from .backends.dispatch import set_backend
from .conversion.checkpoint import load, save
from .conversion.expected import expect_spikes
from .conversion.recipe import BurstRecipe, convert
from .graph.standardize import standardize
from .modules.neuron import BurstIFNode
from .network import SpikingNetwork
from .options import PRESETS, Options
from .simulation.early_exit import fit_early_exit
from .simulation.result import SimulationResult
from .simulation.simulate import simulate
from .simulation.synops import synops

__version__ = "0.2.0"
__all__ = [
    "PRESETS",
    "BurstIFNode",
    "BurstRecipe",
    "Options",
    "Report",
    "SimulationResult",
    "SpikingNetwork",
    "convert",
    "expect_spikes",
    "export",
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
