"""Settings of published code that are worth a comparison, by name."""

from flatbayes.posteriors.sghmc import SGHMC

NEAR_NOISELESS_SGLD = SGHMC(friction=0.1, temperature=2e-5)
"""What the code published with flat-seeking Bayesian networks calls SGLD: SGD with momentum and next to no noise.

At its learning rate of 0.2 for 50,000 images noise has the standard deviation 4e-6 in a step. It is there to be
compared with: its snapshots are those of SGD, and their spread is not that of any posterior. Give its optimizer a
weight decay.
"""
