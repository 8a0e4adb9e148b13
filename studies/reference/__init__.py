"""Distance of every posterior to the exact one, and whether closeness goes with a better NLL."""
