"""Flat against plain training of networks from scratch that fit their training data."""
