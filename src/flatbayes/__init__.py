"""Sharpness-aware Bayesian posteriors for any PyTorch model."""
