"""Reference posteriors of small networks: long full-batch chains, plain and sharpness-aware."""

from flatbayes.reference.config import ReferenceConfig
from flatbayes.reference.diagnostics import ReferenceDiagnostics
from flatbayes.reference.result import Reference, measure_distances
from flatbayes.reference.sample import describe_network, sample_reference

__all__ = [
    "Reference",
    "ReferenceConfig",
    "ReferenceDiagnostics",
    "describe_network",
    "measure_distances",
    "sample_reference",
]
