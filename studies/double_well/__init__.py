"""Samplers on losses with two wells, whose plain and sharpness-aware posteriors are known exactly."""
