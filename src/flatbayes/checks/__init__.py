"""Self-checks: whether the uncertainty of a fitted posterior can be relied on, and what to try where it cannot."""

from flatbayes.checks.report import CheckReport, Finding
from flatbayes.checks.suite import CHECKS, Check, check
from flatbayes.core.renames import explain_old_arguments

__all__ = ["CHECKS", "Check", "CheckReport", "Finding", "check"]

explain_old_arguments(__name__)
