"""Modules of a spiking network: neurons, pooling and encoders."""
