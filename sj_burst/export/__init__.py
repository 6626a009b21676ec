"""Converted networks for other executors and for chips.

- :func:`to_integers`: int8 counts times int8 weights, the same bits on every machine; several times as
  fast on a CPU.
- :func:`unit_thresholds`: thresholds of 1, neurons that send counts, weights that hold the scales.
- :func:`to_sinabs`, :func:`to_nir`, :func:`from_nir`: layers of sinabs, and graphs of NIR.
- :func:`expected_currents`: what spikes amount to that are not sent, because they are expected.
- :func:`to_neurobench`: for the metrics of NeuroBench.
"""

from .expected import expected_currents
from .integers import to_integers
from .neurobench import to_neurobench
from .nir import from_nir, to_nir
from .sinabs import to_sinabs
from .unit_thresholds import unit_thresholds

__all__ = [
    "expected_currents",
    "from_nir",
    "to_integers",
    "to_neurobench",
    "to_nir",
    "to_sinabs",
    "unit_thresholds",
]
