"""What both estimators share: scikit-learn's parameters in, a fitted posterior out.

Bases and overridden methods are those of scikit-learn's protocol, which is one of inheritance.
"""

from functools import partial
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from flatbayes.data import DataSplits, Split
from flatbayes.estimators.nested import SEPARATOR, get_nested_params, replace_nested_params
from flatbayes.flatness import SAM
from flatbayes.likelihoods import Predictive
from flatbayes.models import MLP
from flatbayes.posteriors import SWAG
from flatbayes.prediction import FittedPosterior
from flatbayes.training import OptimizationConfig, TrainingConfig, fit

MAX_RANDOM_SEED = 2**31 - 1
DEFAULT_POSTERIOR = SWAG(prior_precision=2.0)
"""The prior is stronger than the usual weight decay, which was found on images: on tables of a few hundred rows that
leaves networks far too sure (docs/estimators.md)."""


class PosteriorEstimator(BaseEstimator):  # type: ignore[misc]
    """A posterior, a flatness and a recipe, whose fields are parameters too: `flatness__rho`, `posterior__rank`."""

    posterior_: FittedPosterior
    n_iter_: int

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name.

        Args:
            deep: Also those of the posterior, the flatness and the recipe; of the defaults, where they are None.
        """
        found: dict[str, Any] = super().get_params(deep=deep)
        return found | {
            k: v
            for axis in get_default_components(self)
            for k, v in get_nested_params(axis, get_component(self, axis)).items()
            if deep
        }

    def set_params(self, **params: Any) -> Self:
        """Set parameters, also those of the posterior, the flatness and the recipe.

        Raises:
            ValueError: There is no such parameter.
        """
        inner: dict[str, dict[str, Any]] = {}
        for name in list(params):
            axis, _, path = name.partition(SEPARATOR)
            if path and axis in get_default_components(self):
                inner.setdefault(axis, {})[path] = params.pop(name)
        super().set_params(**params)
        for axis, changes in inner.items():
            setattr(self, axis, replace_nested_params(axis, get_component(self, axis), changes))
        return self

    def predict_distribution(self, X: ArrayLike) -> Predictive:
        """Everything that the posterior says of these examples: moments, entropies, and intervals of numbers.

        Args:
            X: Examples, shape (examples, features), or of any shape that the model takes.
        """
        check_is_fitted(self)
        inputs = to_tensor(validate_data(self, X, dtype=np.float32, allow_nd=True, reset=False))
        return self.posterior_.predict(inputs, self.num_draws, vectorized=False)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


def fit_estimator(estimator: Any, data: DataSplits) -> None:
    """Fit the posterior, and set what every fitted estimator has."""
    recipe = resolve_training_config(estimator, data)
    seed = int(check_random_state(estimator.random_state).randint(MAX_RANDOM_SEED))
    model = partial(MLP, hidden=tuple(estimator.hidden)) if estimator.model is None else estimator.model
    posterior, flatness = get_component(estimator, "posterior"), get_component(estimator, "flatness")
    fitted = fit(model, data, posterior, flatness, recipe, seed=seed, show_progress=bool(estimator.verbose))
    estimator.posterior_, estimator.n_iter_ = fitted, recipe.epochs


def resolve_training_config(estimator: Any, data: DataSplits) -> TrainingConfig:
    """The estimator's recipe, or the one that its plain parameters make."""
    given: TrainingConfig | None = estimator.config
    if given is not None:
        return given
    optimizer = get_component(estimator, "posterior").default_optimizer
    return TrainingConfig(
        epochs=estimator.epochs,
        batch_size=estimator.batch_size,
        optimizer=optimizer if estimator.learning_rate is None else partial(optimizer, lr=estimator.learning_rate),
        optimization=OptimizationConfig(clip_norm=1.0 if data.is_regression else None),
        num_validations=0,
    )


def get_default_components(estimator: Any) -> dict[str, Any]:
    """What None stands for, of the parameters that have parameters."""
    return {"posterior": DEFAULT_POSTERIOR, "flatness": SAM(), "config": None}


def get_component(estimator: Any, name: str) -> Any:
    """The estimator's, or the default."""
    given = getattr(estimator, name)
    return get_default_components(estimator)[name] if given is None else given


def make_data_splits(
    inputs: Tensor,
    targets: Tensor,
    feature_names: Any,
    *,
    class_names: tuple[str, ...] = (),
    target_names: tuple[str, ...] = (),
) -> DataSplits:
    """Training data, and nothing held out: scikit-learn's own tools do that."""
    count = inputs.shape[1] if inputs.ndim == 2 else 0
    names = tuple(f"x{k}" for k in range(count)) if feature_names is None else tuple(map(str, feature_names))
    nothing = Split(inputs=inputs[:0], targets=targets[:0])
    return DataSplits(
        train=Split(inputs=inputs, targets=targets),
        val=nothing,
        test=nothing,
        class_names=class_names,
        feature_names=names if count else (),
        augment=None,
        target_names=target_names,
    )


def to_tensor(values: Any) -> Tensor:
    """An array as a tensor that shares nothing with it, since arrays may be read-only."""
    return torch.from_numpy(np.array(values))
