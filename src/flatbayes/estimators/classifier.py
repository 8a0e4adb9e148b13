"""Scikit-learn classifier: class probabilities averaged over the networks of a posterior."""

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from flatbayes.estimators.base import (
    FLOAT_TYPES,
    PosteriorEstimator,
    check_examples,
    make_data_splits,
    refuse_fit_params,
)
from flatbayes.likelihoods.labels import to_tensor


class FlatBayesClassifier(ClassifierMixin, PosteriorEstimator):  # type: ignore[misc]
    """A sharpness-aware posterior over the weights of a network, as a classifier of scikit-learn.

    Inputs are standardised per feature. Fields of posterior, flatness and config are parameters as well:
    `GridSearchCV(FlatBayesClassifier(), {"flatness__rho": [0.0, 0.05, 0.2]})`.

    Args:
        posterior: The posterior; None is `SWAG(prior_precision=2.0)`, whose prior is stronger where the number of
            epochs is automatic and a stronger one has a lower validation NLL.
        flatness: The flatness; None is `SAM()`, and `Plain()` is ordinary training.
        model: A class or function that builds the network, as in `flatbayes.fit`; None is an `MLP`.
        likelihood: None is a `Categorical`; or a `Custom` of one, for a loss such as one with class weights.
        hidden: Units of each hidden layer, for the `MLP` only.
        epochs: Passes over the training data; None: at least 60, and as many as give 3,000 steps.
        batch_size: Examples per step.
        learning_rate: Learning rate of the posterior's default optimizer; None is the default rate, at most 0.03
            where the number of epochs is automatic.
        config: A training configuration, which replaces the three parameters before.
        validation_fraction: Fraction of the training examples that is held out where the number of epochs is
            automatic, for early stopping and the width of the posterior, or where a radius is "auto". With 0, or
            where it is fewer than 10 examples, none are held out.
        num_draws: Networks averaged in a prediction.
        random_state: Seed of all random numbers, as in scikit-learn; with None every fit differs.
        verbose: Show a progress bar.

    Attributes:
        posterior_: The fitted posterior, to draw from, evaluate, save and compile.
        seed_: Seed of the fit and of the networks that predictions average; `posterior_.predict` draws these
            networks with `num_draws` and `seed=seed_`, and others with its own default.
        classes_: Class labels, in the order of the probabilities.
        n_features_in_: Number of features of an example.
        feature_names_in_: Names of the features, if the training data have names.
        n_iter_: Number of epochs trained, without those that early stopping gave up.

    Examples:
        >>> from sklearn.datasets import load_iris
        >>> x, y = load_iris(return_X_y=True)
        >>> classifier = FlatBayesClassifier(
        ...     SWAG(rank=2), SAM(rho=0.05), epochs=20, random_state=0
        ... ).fit(x, y)
        >>> classifier.predict_proba(x[:2]).shape, classifier.score(x, y) > 0.8
        ((2, 3), True)
    """

    def fit(self, X: ArrayLike, y: ArrayLike, **fit_params: Any) -> Self:
        """Fit the posterior.

        Args:
            X: Examples, shape (examples, features), or of any shape that the model takes.
            y: Class labels, numbers or strings, shape (examples,).
            **fit_params: None; others, such as `sample_weight`, are refused with advice.

        Raises:
            TypeError: There are further arguments.
            ValueError: Examples and labels differ in number, or there is only one class.
        """
        refuse_fit_params(self, fit_params)
        check_examples(X, y)
        shape = np.asarray(y).shape
        if len(shape) > 1 and max(shape[1:]) > 1:
            raise ValueError(
                f"y should be a 1d array, one class for each example, got an array of shape {shape}. For several "
                f"labels of each example (0 or 1) use flatbayes.fit(model, (X, y), likelihood=Bernoulli({shape[1]}))"
                ", for a class at each position likelihood=DenseCategorical(num_classes)."
            )
        X, y = validate_data(self, X, y, dtype=FLOAT_TYPES, allow_nd=True)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"A classifier needs at least 2 classes, got 1 class, {str(self.classes_[0])!r}.")
        names = tuple(map(str, self.classes_))
        features = getattr(self, "feature_names_in_", None)
        targets = torch.from_numpy(labels).long()
        self._fit_posterior(make_data_splits(to_tensor(X), targets, features, class_names=names))
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Probabilities of the classes, shape (examples, classes), averaged over networks."""
        return self.predict_distribution(X).mean.cpu().numpy()

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The most probable label of each example."""
        indices = self.predict_proba(X).argmax(1)
        labels: NDArray[Any] = self.classes_[indices]
        return labels

    def predict_std(self, X: ArrayLike) -> NDArray[np.float64]:
        """Standard deviations of the probabilities over networks, shape (examples, classes)."""
        return self.predict_distribution(X).variance.sqrt().cpu().numpy()
