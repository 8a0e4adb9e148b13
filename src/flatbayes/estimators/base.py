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

from flatbayes.data import Dataset, Part
from flatbayes.estimators.nested import SEPARATOR, nested, replaced
from flatbayes.flatness import SAM
from flatbayes.likelihoods import Predictive
from flatbayes.models import MLP
from flatbayes.posteriors import SWAG
from flatbayes.prediction import FittedPosterior
from flatbayes.training import Recipe, fit

MOST_SEEDS = 2**31 - 1
DEFAULT = SWAG(prior_precision=2.0)
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
        return found | {k: v for axis in defaults(self) for k, v in nested(axis, chosen(self, axis)).items() if deep}

    def set_params(self, **params: Any) -> Self:
        """Set parameters, also those of the posterior, the flatness and the recipe.

        Raises:
            ValueError: There is no such parameter.
        """
        inner: dict[str, dict[str, Any]] = {}
        for name in list(params):
            axis, _, path = name.partition(SEPARATOR)
            if path and axis in defaults(self):
                inner.setdefault(axis, {})[path] = params.pop(name)
        super().set_params(**params)
        for axis, changes in inner.items():
            setattr(self, axis, replaced(axis, chosen(self, axis), changes))
        return self

    def predictive(self, X: ArrayLike) -> Predictive:
        """Everything that the posterior says of these examples: moments, entropies, and intervals of numbers.

        Args:
            X: Examples, shape (examples, features), or of any shape that the model takes.
        """
        check_is_fitted(self)
        inputs = tensor(validate_data(self, X, dtype=np.float32, allow_nd=True, reset=False))
        return self.posterior_.predict(inputs, self.num_draws, batched=False)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


def learn(estimator: Any, data: Dataset) -> None:
    """Fit the posterior, and set what every fitted estimator has."""
    recipe = recipe_of(estimator, data)
    seed = int(check_random_state(estimator.random_state).randint(MOST_SEEDS))
    model = partial(MLP, hidden=tuple(estimator.hidden)) if estimator.model is None else estimator.model
    posterior, flatness = chosen(estimator, "posterior"), chosen(estimator, "flatness")
    fitted = fit(model, data, posterior, flatness, recipe, seed=seed, progress=bool(estimator.verbose))
    estimator.posterior_, estimator.n_iter_ = fitted, recipe.epochs


def recipe_of(estimator: Any, data: Dataset) -> Recipe:
    """The estimator's recipe, or the one that its plain parameters make."""
    given: Recipe | None = estimator.recipe
    if given is not None:
        return given
    optimizer = chosen(estimator, "posterior").default_optimizer
    return Recipe(
        epochs=estimator.epochs,
        batch_size=estimator.batch_size,
        optimizer=optimizer if estimator.learning_rate is None else partial(optimizer, lr=estimator.learning_rate),
        clip_norm=1.0 if data.is_regression else None,
        validations=0,
    )


def defaults(estimator: Any) -> dict[str, Any]:
    """What None stands for, of the parameters that have parameters."""
    return {"posterior": DEFAULT, "flatness": SAM(), "recipe": None}


def chosen(estimator: Any, axis: str) -> Any:
    """The estimator's, or the default."""
    given = getattr(estimator, axis)
    return defaults(estimator)[axis] if given is None else given


def dataset(
    inputs: Tensor,
    targets: Tensor,
    features: Any,
    *,
    classes: tuple[str, ...] = (),
    targets_named: tuple[str, ...] = (),
) -> Dataset:
    """Training data, and nothing held out: scikit-learn's own tools do that."""
    count = inputs.shape[1] if inputs.ndim == 2 else 0
    names = tuple(f"x{k}" for k in range(count)) if features is None else tuple(map(str, features))
    nothing = Part(inputs=inputs[:0], targets=targets[:0])
    return Dataset(
        train=Part(inputs=inputs, targets=targets),
        val=nothing,
        test=nothing,
        class_names=classes,
        feature_names=names if count else (),
        augment=None,
        target_names=targets_named,
    )


def tensor(values: Any) -> Tensor:
    """An array as a tensor that shares nothing with it, since arrays may be read-only."""
    return torch.from_numpy(np.array(values))
