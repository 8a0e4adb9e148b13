"""Coverage of conformal prediction for every posterior, over random splits."""
