# %% [markdown]
# # A table with gaps and categories
#
# **Your question:** *some values of my table are missing, some columns are categories. Which predictions are safe?*
#
# The sex of penguins is determined from a drop of blood. For some birds of this table it is not known. What can be
# said about them from their measurements, and which answers are sure?
#
# The data are the Palmer penguins (Gorman, Williams and Fraser, 2014; published by Horst, Hill and Gorman under CC0):
# [penguins.csv](penguins.csv), in the folder of this notebook.

# %%
import pandas as pd
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from flatbayes import MLP, SAM, SWAG, TrainingConfig, compare, evaluate
from flatbayes.estimators import FlatBayesClassifier

penguins = pd.read_csv("penguins.csv")
is_labelled = penguins.sex.notna()
labelled, unlabelled = penguins[is_labelled], penguins[~is_labelled]
print(f"{len(labelled)} birds with a label, {len(unlabelled)} without")
penguins.agg(["nunique", "count"]).T.assign(missing=penguins.isna().sum())

# %% [markdown]
# ## Fit
#
# A posterior is the last step of a scikit-learn pipeline. Before it, words become columns of zeros and ones, and
# missing numbers the median, with a column that marks where they were missing.

# %%
X, y = labelled.drop(columns="sex"), labelled.sex
X_train, X_test, y_train, y_test = train_test_split(
    X, y, test_size=0.4, random_state=0
)
numbers = make_column_selector(dtype_include="number")
words = make_column_selector(dtype_exclude="number")
preprocessing = make_column_transformer(
    (SimpleImputer(strategy="median", add_indicator=True), numbers),
    (OneHotEncoder(sparse_output=False), words),
)
pipeline = make_pipeline(
    preprocessing, FlatBayesClassifier(epochs=60, random_state=0)
)
pipeline.fit(X_train, y_train)
accuracy = pipeline.score(X_test, y_test)
print(f"right: {accuracy:.1%} of {len(y_test)} test birds")

# %% [markdown]
# ## How reliable are the probabilities?
#
# The estimator holds a fitted posterior, `posterior_`, which `evaluate` takes, and gives the predictive distribution.
# Reliable probabilities lie on the diagonal: of the answers with a confidence of 80 %, 80 % are right.

# %% Accuracy against confidence on the test birds, with the diagonal of perfect calibration
classifier, inputs = pipeline[-1], preprocessing.transform(X_test)
evaluation = evaluate(classifier.posterior_, (inputs, y_test))
ax = evaluation.plot_reliability()
evaluation

# %% [markdown]
# The test birds that the networks are most uncertain about; blue is the right sex.

# %% The test birds with the most uncertain predictions, as bars, and their true sex
predictive = classifier.predict_distribution(inputs)
ax = predictive.plot(targets=y_test, names=classifier.classes_)

# %% [markdown]
# ## The birds without a label
#
# `mutual_information` is the part of the uncertainty (`entropy`) that comes from not knowing the network: more data
# would reduce it.

# %%
unknown = classifier.predict_distribution(preprocessing.transform(unlabelled))
answers = unknown.to_pandas(names=classifier.classes_)
table = unlabelled[["species", "island", "body_mass_g"]].reset_index(drop=True)
table = table.join(answers.iloc[:, :4])
table.sort_values("confidence", ascending=False).round(3)

# %%
is_sure = (predictive.confidence > 0.95).numpy()
is_right = pipeline.predict(X_test) == y_test
share = (unknown.confidence > 0.95).double().mean()
print(f"{share:.0%} of these birds get an answer with a confidence above 95 %.")
sure, unsure = is_right[is_sure].mean(), is_right[~is_sure].mean()
print(f"Of the test birds with such an answer {sure:.1%} are right,")
print(f"of the others {unsure:.1%}.")

# %% [markdown]
# ## Does flatness help here?
#
# `compare` fits the same posterior with plain and with flat training, over five seeds that share initial weights and
# order of batches, and gives every difference an interval. It takes arrays, so it gets the preprocessed table (no
# label goes into the preprocessing).

# %% The difference flat minus plain of the NLL, with its 95 % interval
data = preprocessing.transform(X), y
posterior, config = (
    SWAG(prior_precision=2.0),
    TrainingConfig(epochs=60, batch_size=32),
)
comparison = compare(MLP, data, [posterior], SAM(), config, num_jobs=1)
ax = comparison.plot()
comparison

# %% [markdown]
# ## What next
#
# * All parameters can be searched: `GridSearchCV(pipeline, {"flatbayesclassifier__flatness__rho": [0, 0.1]})`. See
#   [scikit-learn](../estimators.md), with measurements against linear models.
# * A table without gaps needs no pipeline: [Data and models](../data-and-models.md#tables).
# * To choose between posteriors, give `compare` several: [How to choose](../how-to-choose.md).
