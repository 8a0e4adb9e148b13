"""Flat against plain fine-tuning of EfficientNet-Lite0 on few images."""
