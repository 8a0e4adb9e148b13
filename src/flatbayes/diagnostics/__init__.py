"""Read-only views of what was fitted."""

from flatbayes.diagnostics.mixing import effective_sample_size, split_r_hat

__all__ = ["effective_sample_size", "split_r_hat"]
