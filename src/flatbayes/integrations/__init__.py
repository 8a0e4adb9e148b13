"""Sharpness-aware training and posteriors in the loops of Lightning and transformers.

Import `flatbayes.integrations.lightning` or `flatbayes.integrations.transformers`; each imports its own library only.
"""

from flatbayes.integrations.fitted_posteriors import join_posteriors

__all__ = ["join_posteriors"]
