"""CUDA kernels of the stateful modules, behind torch operators."""
