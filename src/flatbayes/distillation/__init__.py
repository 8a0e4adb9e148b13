"""Distillation of a posterior into one network with the same mean and uncertainty."""

from flatbayes.core.renames import explain_old_arguments
from flatbayes.distillation.distill import distill

__all__ = ["distill"]

explain_old_arguments(__name__)
