"""Converted networks for other executors and for chips."""
