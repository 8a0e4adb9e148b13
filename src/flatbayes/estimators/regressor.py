"""A regressor whose predictions are mixtures over the networks of a posterior."""

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import RegressorMixin
from sklearn.utils import Tags
from sklearn.utils.validation import validate_data
from torch import Tensor

from flatbayes.estimators.base import PosteriorEstimator, fit_estimator, make_data_splits, to_tensor
from flatbayes.flatness import Flatness
from flatbayes.likelihoods import GaussianPredictive
from flatbayes.posteriors import Posterior
from flatbayes.training import TrainingConfig
from flatbayes.training.model_builder import ModelFactory


class FlatBayesRegressor(RegressorMixin, PosteriorEstimator):  # type: ignore[misc]
    """A flat-seeking posterior over the weights of a network, as a regressor of scikit-learn.

    Inputs and targets are standardised, column by column; predictions are in the unit of the targets. There may be
    several targets. Fields of posterior, flatness and recipe are parameters as well: `flatness__rho`.

    Args:
        posterior: What is fitted; None is `SWAG(prior_precision=2.0)`.
        flatness: Where gradients are taken; None is `SAM()`, and `Plain()` is ordinary training.
        model: A class or function that builds the network, as in `flatbayes.fit`; None is an `MLP`.
        hidden: Units of each hidden layer, for the `MLP` only.
        epochs: Passes over the training data.
        batch_size: Examples per step.
        learning_rate: Of the posterior's usual optimiser; None is its usual one too.
        config: A whole recipe, in the place of the three before, and of the clipping of gradients at norm 1.
        num_draws: Networks that a prediction averages.
        random_state: Decides everything random, as in scikit-learn; None differs from fit to fit.
        verbose: Show a progress bar.

    Attributes:
        posterior_: The fitted posterior: to draw from, evaluate, save and compile.
        n_features_in_: Features of an example.
        feature_names_in_: Their names, where the training data had names.
        n_iter_: Epochs trained.
    """

    def __init__(
        self,
        posterior: Posterior | None = None,
        flatness: Flatness | None = None,
        model: ModelFactory | None = None,
        *,
        hidden: tuple[int, ...] = (64, 64),
        epochs: int = 60,
        batch_size: int = 32,
        learning_rate: float | None = None,
        config: TrainingConfig | None = None,
        num_draws: int = 30,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.posterior = posterior
        self.flatness = flatness
        self.model = model
        self.hidden = hidden
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.config = config
        self.num_draws = num_draws
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit the posterior.

        Args:
            X: Examples, shape (examples, features), or of any shape that the model takes.
            y: Numbers to predict, shape (examples,) or (examples, targets).

        Raises:
            ValueError: Examples and targets are not fit for each other, or a target is the same in all examples.
        """
        X, y = validate_data(
            self, X, y, dtype=np.float32, allow_nd=True, multi_output=True, y_numeric=True, ensure_min_samples=2
        )
        targets = torch.from_numpy(np.array(y, dtype=np.float32))
        self._has_target_column = targets.ndim == 2 and targets.shape[1] == 1
        targets = targets.squeeze(1) if self._has_target_column else targets
        named = ("y",) if targets.ndim == 1 else tuple(f"y{k}" for k in range(targets.shape[1]))
        features = getattr(self, "feature_names_in_", None)
        fit_estimator(self, make_data_splits(to_tensor(X), targets, features, target_names=named))
        return self

    def predict(self, X: ArrayLike, return_std: bool = False) -> Any:
        """Expected targets, of the shape that the training targets had.

        Args:
            X: Examples.
            return_std: Also give their standard deviations, as `predict_std` does.
        """
        found = self._predict_gaussian(X)
        mean = self._match_target_shape(found.mean)
        return (mean, self._match_target_shape(found.std)) if return_std else mean

    def predict_std(self, X: ArrayLike, epistemic: bool = False) -> NDArray[np.float64]:
        """Standard deviations of the targets.

        Args:
            X: Examples.
            epistemic: Only what the networks disagree on, without the noise of the targets.
        """
        found = self._predict_gaussian(X)
        return self._match_target_shape(found.epistemic.sqrt() if epistemic else found.std)

    def _predict_gaussian(self, X: ArrayLike) -> GaussianPredictive:
        found = self.predict_distribution(X)
        if not isinstance(found, GaussianPredictive):
            raise TypeError(f"A regression predicts by a GaussianPredictive, got a {type(found).__name__}.")
        return found

    def _match_target_shape(self, values: Tensor) -> NDArray[np.float64]:
        array: NDArray[np.float64] = values.cpu().numpy()
        return array[:, None] if self._has_target_column else array

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
