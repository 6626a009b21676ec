"""Checks, loaders, files and processes: what every part of the package uses."""
