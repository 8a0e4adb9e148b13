"""Flat against plain fine-tuning of a sentence encoder on few labelled sentences."""
