"""Flatness methods with one to two gradients a step, compared with plain training and SAM."""
