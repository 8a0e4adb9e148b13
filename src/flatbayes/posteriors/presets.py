"""Tuned and published hyperparameters by name; the defaults of the classes are those of the Bayesian posterior."""

from flatbayes.posteriors.entropy_mcmc import EntropyMCMC
from flatbayes.posteriors.laplace import Laplace
from flatbayes.posteriors.sghmc import SGHMC

LAPLACE_LAST_LAYER = Laplace(temperature=0.03)
"""Last-layer Laplace for classifiers that fit their training data perfectly, with the temperature found on digits.

Such classifiers leave almost no curvature, and at temperature 1 the Gaussian is far too wide. Use 0.03 as the start
of a search on validation data. Regression needs no preset: `Laplace()` has temperature 1.
"""

LAPLACE_KRON = Laplace(structure="kron", temperature=1e-3)
"""The same with Kronecker factors of all linear and convolutional layers; 0.001 is also the start for `diag`."""

NEAR_NOISELESS_SGLD = SGHMC(friction=0.1, temperature=2e-5)
"""What the code published with flat-seeking Bayesian networks calls SGLD: SGD with momentum and almost no noise.

At its learning rate of 0.2 and with 50,000 images the noise has standard deviation 4e-6 per step. The preset exists
for comparison: its snapshots are those of SGD, and their variance is not that of a posterior. The optimizer needs a
weight decay.
"""

ENTROPY_MCMC_CIFAR10 = EntropyMCMC(coupling=4e-8, temperature=1e-4, decay_anchor=True)
"""The settings of the code published with Entropy-MCMC for CIFAR-10: eta 4e-4 is coupling / temperature there.

With a cyclical learning rate from 0.5, four cycles of 50 epochs, a weight decay of 5e-4, and snapshots in the last
two epochs of each cycle. On CIFAR-100 eta is 8e-3, a coupling of 8e-7.
"""
