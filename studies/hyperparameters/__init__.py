"""Hyperparameters of the configurations in `configs/`, selected on validation data."""
