"""How much of a posterior's promise can be proven on one's own data."""

from flatbayes.certification.certified import Certified, Estimate
from flatbayes.certification.certify import certify
from flatbayes.certification.plan import Plan
from flatbayes.certification.promise import promise

__all__ = ["Certified", "Estimate", "Plan", "certify", "promise"]
