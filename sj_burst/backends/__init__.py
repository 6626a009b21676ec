"""Backends of the stateful modules: torch everywhere, numba on CPUs, CuPy on CUDA devices.

``dispatch`` chooses one for every tensor, ``cpu``, ``cpu_counts`` and ``cpu_events`` hold the loops of
numba, which ``team`` runs side by side, ``events`` counts spikes, ``cuda`` holds the kernels, and
``functional.py`` is what the torch backend runs. ``integers`` has the exact sums of integer weights.

SpikingJelly shipped a CuPy multi-step backend for
its neurons through 2.0.0rc1 and dropped it in 2.0.0. With 2.0.0rc1, SpikingJelly's
``functional.set_backend(snn, "cupy")`` drives SpikingJelly's neurons and those of ``sj_burst`` alike.
With 2.0.0, which has no backends, ``sj_burst.set_backend`` does it for the modules of ``sj_burst``,
whose kernels need CuPy only (``pip install 'sj_burst[cuda13]'``).

All backends compute the same numbers, bit for bit in float32. Where a backend has no kernel, the
torch backend takes over:

- adaptive and three-dimensional pooling, gated pooling, single-step mode and ``store_v_seq``;
- training through lateral-inhibition pooling, whose gradient is torch's own max-pooling's;
- training of neurons with a negative slope (LeakyReLU);
- CuPy: neurons that send counts in int8, and their pooling;
- CuPy: training with a surrogate other than SpikingJelly's ``Sigmoid`` and ``ATan``, as any other is a
  Python function, which a kernel cannot call;
- numba: anything that needs a gradient, half precision, and under ``torch.compile``.

A neuron layer and the pooling behind it stay two modules, whose outputs hooks can see. numba compiles a
loop when it is first used, which takes some seconds, and keeps it on disk.
"""
