"""Distillation of a posterior into one network with the same mean and uncertainty."""

from flatbayes.distillation.distill import distill

__all__ = ["distill"]
