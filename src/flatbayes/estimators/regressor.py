"""Scikit-learn regressor: predictions are mixtures over the networks of a posterior."""

from typing import Any, Literal, Self, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import RegressorMixin
from sklearn.utils import Tags
from sklearn.utils.validation import validate_data
from torch import Tensor

from flatbayes.data.column_names import list_columns
from flatbayes.estimators.base import (
    FLOAT_TYPES,
    PosteriorEstimator,
    check_examples,
    make_data_splits,
    refuse_fit_params,
)
from flatbayes.likelihoods import NumberPredictive
from flatbayes.likelihoods.labels import to_tensor


class FlatBayesRegressor(RegressorMixin, PosteriorEstimator):  # type: ignore[misc]
    """A sharpness-aware posterior over the weights of a network, as a regressor of scikit-learn.

    Inputs and targets, but no counts, are standardised per column; predictions have the unit of the targets. There
    may be several targets. Fields of posterior, flatness and config are parameters as well: `flatness__rho`.

    Args:
        posterior: The posterior; None is `SWAG(prior_precision=2.0)`, whose prior is stronger where the number of
            epochs is automatic and a stronger one has a lower validation NLL.
        flatness: The flatness; None is `SAM()`, and `Plain()` is ordinary training.
        model: A class or function that builds the network, as in `flatbayes.fit`; None is an `MLP`.
        likelihood: Distribution of the targets: the name of a family of `DistributionLikelihood`, such as `"Poisson"`
            for counts, or an instance; None is a `Gaussian` in the unit of the targets.
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
        n_features_in_: Number of features of an example.
        feature_names_in_: Names of the features, if the training data have names.
        n_iter_: Number of epochs trained, without those that early stopping gave up.

    Examples:
        >>> from sklearn.datasets import load_diabetes
        >>> x, y = load_diabetes(return_X_y=True)
        >>> regressor = FlatBayesRegressor(
        ...     SWAG(rank=2), SAM(rho=0.05), epochs=5, random_state=0
        ... ).fit(x, y)
        >>> regressor.predict(x[:2]).shape, regressor.predict_std(x[:2]).shape
        ((2,), (2,))
    """

    def fit(self, X: ArrayLike, y: ArrayLike, **fit_params: Any) -> Self:
        """Fit the posterior.

        Args:
            X: Examples, shape (examples, features), or of any shape that the model takes.
            y: Targets, numbers of shape (examples,) or (examples, targets). The columns of a data frame are the
                names of the targets of `posterior_`.
            **fit_params: None; others, such as `sample_weight`, are refused with advice.

        Raises:
            TypeError: There are further arguments.
            ValueError: Examples and targets differ in number, a target is constant, or columns of `y` have one name.
        """
        refuse_fit_params(self, fit_params)
        check_examples(X, y)
        columns = list_columns(y, "data frame y")
        X, y = validate_data(
            self, X, y, dtype=FLOAT_TYPES, allow_nd=True, multi_output=True, y_numeric=True, ensure_min_samples=2
        )
        targets = torch.from_numpy(np.array(y, dtype=np.float64))
        self._has_target_column = targets.ndim == 2 and targets.shape[1] == 1
        targets = targets.squeeze(1) if self._has_target_column else targets
        numbered = ("y",) if targets.ndim == 1 else tuple(f"y{k}" for k in range(targets.shape[1]))
        features = getattr(self, "feature_names_in_", None)
        self._fit_posterior(make_data_splits(to_tensor(X), targets, features, target_names=columns or numbered))
        return self

    @overload
    def predict(self, X: ArrayLike, return_std: Literal[False] = False) -> NDArray[np.float64]: ...
    @overload
    def predict(self, X: ArrayLike, return_std: Literal[True]) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
    def predict(
        self, X: ArrayLike, return_std: bool = False
    ) -> NDArray[np.float64] | tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Expected targets, of the shape of the training targets.

        Args:
            X: Examples, shape (examples, features), or of any shape that the model takes.
            return_std: Return standard deviations as well, as `predict_std` does.
        """
        predictive = self._predict_numbers(X)
        mean = self._match_target_shape(predictive.mean)
        return (mean, self._match_target_shape(predictive.std)) if return_std else mean

    def predict_std(self, X: ArrayLike, epistemic: bool = False) -> NDArray[np.float64]:
        """Standard deviations of the targets.

        Args:
            X: Examples, shape (examples, features), or of any shape that the model takes.
            epistemic: Only the spread of the means over the networks, without the noise of the targets.
        """
        predictive = self._predict_numbers(X)
        return self._match_target_shape(predictive.epistemic.sqrt() if epistemic else predictive.std)

    def _predict_numbers(self, X: ArrayLike) -> NumberPredictive:
        predictive = self.predict_distribution(X)
        if not isinstance(predictive, NumberPredictive):
            raise TypeError(f"A regression predicts numbers, and the likelihood gives a {type(predictive).__name__}.")
        return predictive

    def _match_target_shape(self, values: Tensor) -> NDArray[np.float64]:
        array: NDArray[np.float64] = values.cpu().numpy()
        return array[:, None] if self._has_target_column else array

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
