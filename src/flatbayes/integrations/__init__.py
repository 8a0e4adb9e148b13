"""Sharpness-aware training in the loops of Lightning and transformers.

Import `flatbayes.integrations.lightning` or `flatbayes.integrations.transformers`; each imports its own library only.
"""
