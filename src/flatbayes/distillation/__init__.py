"""Distillation: one network that says what a posterior's many say, and how sure they are."""

from flatbayes.distillation.distill import distill

__all__ = ["distill"]
