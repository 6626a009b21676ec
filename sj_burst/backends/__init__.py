"""Backends of the stateful modules: torch everywhere, numba on CPUs, CuPy on CUDA devices."""
