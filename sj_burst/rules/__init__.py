"""Rules that fit thresholds and initial potentials to activations."""
