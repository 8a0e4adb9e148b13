"""Entropy of a flat and a plain MAP on out-of-distribution images, by weight decay."""
