# %% [markdown]
# # A number with an interval
#
# **Your question:** *I predict a quantity. How far off may each prediction be?*
#
# The data are 442 patients with diabetes, which come with scikit-learn: ten measurements of each, and a score of the
# progression of the disease one year later (from 25 to 346).

# %%
from functools import partial

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import BayesianRidge
from sklearn.model_selection import train_test_split

from flatbayes import MLP, SAM, SWAG, Ensemble, compare, evaluate, fit
from flatbayes.data import Arrays
from flatbayes.experiments import Method

X, y = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)

# %% [markdown]
# ## Fit, evaluate
#
# The network learns a mean and the standard deviation of the noise for each patient. The targets are whole numbers,
# which may be classes; `likelihood="Gaussian"` says that they are quantities. All that comes out has their unit.
# (Clip the gradient in a regression: [Regression](../regression.md) says why.)

# %%
network = partial(MLP, hidden=(50,))
posterior = Ensemble(SWAG(prior_precision=2.0), size=3)
config = {"epochs": 60, "batch_size": 32, "optimization": {"clip_norm": 1.0}}
train = X_train, y_train
fitted = fit(network, train, posterior, SAM(), config, likelihood="Gaussian")
evaluation = evaluate(fitted, (X_test, y_test))
evaluation

# %% [markdown]
# ## Are the intervals right?
#
# A 95 % interval should hold 95 % of the targets, a 50 % interval 50 %. On the diagonal they do; below it the
# intervals are too narrow.

# %% Fraction of test targets inside central intervals, against their level
coverage = evaluation.metrics["coverage_95"]
print(f"95 % intervals hold {coverage:.1%} of the {len(y_test)} test targets")
ax = evaluation.plot_reliability()

# %% [markdown]
# ## Two kinds of uncertainty
#
# The inner band is noise: patients with the same measurements differ. The outer one adds what comes from not knowing
# the network.

# %% Predictions for the test patients with two bands and the observed targets
predictive = fitted.predict(X_test)
ax = predictive.plot(targets=y_test, name="progression")

# %%
lower, upper = predictive.interval(0.9)
widths = upper - lower
print(f"narrowest 90 % interval {widths.min():.0f}, widest {widths.max():.0f}")
predictive.to_pandas()[["mean", "std", "lower", "upper"]].head(4).round(1)

# %% [markdown]
# What happens outside the data? Here is a patient with median measurements whose body mass index runs past those of
# the training data (dotted lines).

# %% Prediction against the body mass index, with dotted lines at its range
patients = X_train.median().to_frame().T.iloc[np.zeros(100, dtype=int)]
patients = patients.assign(bmi=np.linspace(10, 70, 100))
sweep = fitted.predict(patients)
ax = sweep.plot(x=patients.bmi, name="progression")
ax.set_xlabel("body mass index")
for end in (X_train.bmi.min(), X_train.bmi.max()):
    ax.axvline(end, color="black", linestyle=":")

# %%
share = (sweep.epistemic / sweep.variance).numpy()
is_in = patients.bmi.between(X_train.bmi.min(), X_train.bmi.max()).to_numpy()
inside, outside = share[is_in].mean(), share[~is_in].mean()
print("Share of the variance that comes from not knowing the network:")
print(f"{inside:.1%} inside the data, {outside:.1%} outside")

# %% [markdown]
# ## Against a linear model, and flat against plain
#
# On a small table a linear model is hard to beat. Of NLL and RMSE, lower is better.

# %%
linear = BayesianRidge().fit(X_train, y_train)
mean, std = linear.predict(X_test, return_std=True)
nll = 0.5 * ((y_test - mean) / std) ** 2 + np.log(std) + 0.5 * np.log(2 * np.pi)
rmse = np.sqrt(np.mean((y_test - mean) ** 2))
ours = evaluation.metrics
print(f"linear model: NLL {nll.mean():.3f}, RMSE {rmse:.1f}")
print(f"posterior:    NLL {ours['nll']:.3f}, RMSE {ours['rmse']:.1f}")
winner = "the linear model" if nll.mean() < ours["nll"] else "the posterior"
print(f"On these {len(y_test)} patients {winner} has the lower NLL.")

# %% [markdown]
# Plain against flat training over five seeds, with paired intervals. A whole number may be a class: `task` says that
# these are not.

# %% Difference flat minus plain of the NLL, with its 95 % interval
data = Arrays(X, y, task="regression")
method = Method(posterior, name="3 x SWAG")
comparison = compare(network, data, [method], SAM(), config, num_jobs=1)
ax = comparison.plot()
comparison

# %% [markdown]
# ## What next
#
# * What the metrics mean, several targets, noise that is the same everywhere: [Regression](../regression.md).
# * Twenty standard splits of UCI data, with selection inside each: [Results](../results.md).
# * In a scikit-learn pipeline: `FlatBayesRegressor`, whose `predict(X, return_std=True)` returns both columns
#   ([scikit-learn](../estimators.md)).
