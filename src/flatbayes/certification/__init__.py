"""How much of a posterior's promise can be proven on one's own data."""

from flatbayes.certification.certify import certify
from flatbayes.certification.config import CertificationConfig
from flatbayes.certification.result import CertificationResult, ErrorEstimates
from flatbayes.certification.statement import format_statement

__all__ = ["CertificationConfig", "CertificationResult", "ErrorEstimates", "certify", "format_statement"]
