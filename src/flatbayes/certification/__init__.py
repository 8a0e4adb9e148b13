"""PAC-Bayes certificates: upper bounds on the error rate, proven from the training data."""

from flatbayes.certification.certify import certify
from flatbayes.certification.config import CertificationConfig
from flatbayes.certification.result import CertificationResult, ErrorEstimates, format_statement
from flatbayes.core.renames import explain_old_arguments

__all__ = ["CertificationConfig", "CertificationResult", "ErrorEstimates", "certify", "format_statement"]

explain_old_arguments(__name__)
