"""Rival methods as published, and ours, with equally many gradients."""
