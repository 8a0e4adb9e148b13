# %% [markdown]
# # Inputs of a kind never seen in training
#
# **Your question:** *my classifier will get inputs that belong to none of its classes. Does its uncertainty
# show which?*
#
# A network learns the digits 0 to 4 and is then shown 5 to 9, which it can only get wrong. The images come with
# scikit-learn (8 x 8 pixels).

# %%
from functools import partial

import matplotlib.pyplot as plt
import numpy as np

from flatbayes import SAM, SWAG, ConvNet, Ensemble, compare, evaluate, fit
from flatbayes.data import ClassSplit, Digits
from flatbayes.experiments import EvaluationConfig, Method
from flatbayes.prediction import evaluate_ood

source = ClassSplit(source=Digits(), classes=(0, 1, 2, 3, 4), train_size=200)
data, unknown = source.load(seed=0), source.read_ood()
print(f"{len(data.train)} training images, {len(data.test)} test images,")
print(f"{len(unknown)} images of unknown digits")

# %% [markdown]
# ## Fit, evaluate
#
# An ensemble of three networks, each with a posterior of its own.

# %%
network, config = partial(ConvNet, width=16), {"epochs": 20}
posterior = Ensemble(SWAG(), size=3)
fitted = fit(network, data, posterior, SAM(), config)
evaluate(fitted, data.test)

# %% [markdown]
# ## Entropy of unknown digits
#
# `predict` returns several measures of uncertainty; `entropy` is that of the averaged probabilities.

# %% Histograms of the entropy of predictions for known and for unknown digits
familiar = fitted.predict(data.test.inputs)
strange = fitted.predict(unknown.inputs)
fig, ax = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
bins = np.linspace(0, np.log(5), 25)
ax.hist(familiar.entropy, bins, density=True, alpha=0.6, label="digits 0 to 4")
ax.hist(strange.entropy, bins, density=True, alpha=0.6, label="digits 5 to 9")
ax.set(xlabel="entropy in nats", ylabel="density")
legend = ax.legend(frameon=False)

# %% [markdown]
# ## A threshold
#
# Reject whatever has a higher entropy than 95 % of the test images. In use, take the threshold from validation images
# instead.

# %%
threshold = familiar.entropy.quantile(0.95)
is_caught = strange.entropy > threshold
caught = is_caught.double().mean()
print(
    f"An entropy above {threshold:.2f} rejects {caught:.1%} of the unknown digits;"
)
print(f"{(~is_caught).sum()} of {len(unknown)} pass.")

# %% [markdown]
# These pass most easily: the networks are sure of a wrong answer. A detector by uncertainty has such cases, however
# good its average.

# %% The four unknown digits with the lowest entropy, with the predicted class
worst = strange.entropy.argsort()[:4]
fig, axes = plt.subplots(1, 4, figsize=(6.4, 2), layout="constrained")
for ax, row in zip(axes, worst.tolist(), strict=True):
    ax.imshow(unknown.inputs[row, 0], cmap="gray")
    predicted = data.class_names[strange.top_class[row]]
    ax.set_title(f"a {unknown.targets[row]}, taken for {predicted}", fontsize=9)
    ax.axis("off")

# %% [markdown]
# ## Which score?
#
# The AUROC is the probability that an unknown digit has the higher score of the two; 0.5 is chance.
# `mutual_information` is high where the networks disagree.

# %%
detection = evaluate_ood(fitted, data.test.inputs, unknown.inputs)
for name, score in detection.scores.items():
    print(f"{name:22} AUROC {score.auroc:.3f}")

# %% [markdown]
# ## Flat or plain?
#
# `compare` measures detection too, here over five seeds.

# %% Difference flat minus plain of the AUROC of the entropy, with its 95 % interval
ood = EvaluationConfig(ood=ClassSplit(source=Digits(), classes=(5, 6, 7, 8, 9)))
methods = [Method(posterior, name="3 x SWAG")]
comparison = compare(
    network, source, methods, SAM(), config, evaluations=ood, num_jobs=1
)
ax = comparison.plot("ood_auroc")
comparison

# %% [markdown]
# ## What next
#
# * On the command line: `flatbayes compare --data DATA --ood OTHER --out runs/x` ([Command
#   line](../command-line.md)).
# * With CIFAR-10 and its corrupted images: [Results](../results.md).
# * Choose the posterior by detection on data of your own: [How to choose](../how-to-choose.md).
