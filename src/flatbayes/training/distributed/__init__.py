"""Distributed training: process layout, gradient averaging, sharding, and workers for independent runs."""
