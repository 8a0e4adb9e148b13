# %% A posterior as a scikit-learn estimator, in a pipeline, with fields selected by cross-validation
import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.impute import SimpleImputer
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline

from flatbayes.estimators import FlatBayesClassifier, FlatBayesRegressor

cancer = load_breast_cancer()
X, X_test, y, y_test = train_test_split(
    cancer.data, cancer.target_names[cancer.target], test_size=0.4, stratify=cancer.target, random_state=0
)
pipeline = make_pipeline(SimpleImputer(), FlatBayesClassifier(epochs=20, random_state=0))
name = "flatbayesclassifier"
grid = {
    f"{name}__flatness__rho": [0.0, 0.1],  # a field of SAM, the default
    f"{name}__posterior__prior_precision": [1.0, 4.0],  # and one of SWAG
}
search = GridSearchCV(pipeline, grid, cv=3, scoring="neg_log_loss").fit(X, y)
probs = search.predict_proba(X_test)
print("selected", search.best_params_)
print(f"accuracy {np.mean(search.predict(X_test) == y_test):.3f}, NLL {log_loss(y_test, probs):.3f}")

# %% The fitted posterior of the estimator: predictive distributions, saving, compilation, export
model = search.best_estimator_[-1]
predictive = model.predict_distribution(X_test)
is_wrong = model.predict(X_test) != y_test
print(
    f"entropy of right predictions {predictive.entropy[~is_wrong].mean():.3f}, of wrong ones "
    f"{predictive.entropy[is_wrong].mean():.3f}"
)
print(model.posterior_.info["class_names"], type(model.posterior_.compile(5)).__name__)

# %% A regression: predictions with standard deviations, in the unit of the targets
X, y = load_diabetes(return_X_y=True, scaled=False)
X, X_test, y, y_test = train_test_split(X, y, random_state=0)
regressor = FlatBayesRegressor(epochs=20, random_state=0).fit(X, y)
mean, std = regressor.predict(X_test, return_std=True)
coverage = np.mean(abs(y_test - mean) < 2 * std)
epistemic = regressor.predict_std(X_test, epistemic=True)
print(f"R² {regressor.score(X_test, y_test):.2f}, within two standard deviations {coverage:.2f}")
print(f"standard deviation {std.mean():.0f} on average, of the networks' means {epistemic.mean():.0f}")
