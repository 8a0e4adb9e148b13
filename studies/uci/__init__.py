"""Flat against plain training on the UCI regression data sets."""
