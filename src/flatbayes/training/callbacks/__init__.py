"""Callbacks of a training: history, console output and metric loggers."""
