"""Base class of the scikit-learn estimators: parameters in, a fitted posterior out.

Fields of posterior, flatness and training configuration are parameters too, named as scikit-learn names nested ones:
`flatness__rho` is the field `rho` of `flatness`, `config__optimization__clip_norm` that of a field of a field.
Inheritance follows scikit-learn's protocol.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from flatbayes.core.arrays import find_missing, is_missing
from flatbayes.core.components import resolve_component
from flatbayes.core.names import format_count
from flatbayes.core.randomness import Stream, spawn_seed
from flatbayes.data import DataSplits, Split
from flatbayes.data.column_names import is_data_frame, list_columns
from flatbayes.data.frame_features import list_other_columns, to_column_numbers
from flatbayes.data.pairs import check_row_labels
from flatbayes.data.stratified_split import hold_out_validation
from flatbayes.flatness import SAM, Flatness
from flatbayes.likelihoods import Likelihood, Predictive
from flatbayes.likelihoods.labels import to_tensor
from flatbayes.models import MLP
from flatbayes.posteriors import SWAG, Posterior
from flatbayes.prediction import FittedPosterior
from flatbayes.training import OptimizationConfig, TrainingConfig, fit
from flatbayes.training.arguments import resolve_config
from flatbayes.training.model_builder import ModelFactory
from flatbayes.training.optimizers import DefaultOptimizer
from flatbayes.training.training_examples import needs_validation

MAX_RANDOM_SEED = 2**31 - 1
SEPARATOR = "__"
FLOAT_TYPES = (np.float64, np.float32)
"""Types of inputs; others become the first. Networks get float32, after standardization."""


class PosteriorEstimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A posterior, a flatness and a training configuration as parameters, and a fitted posterior as result."""

    DEFAULT_COMPONENTS: ClassVar[Mapping[str, Any]] = {
        "posterior": SWAG(prior_precision=2.0),
        "flatness": SAM(),
        "config": None,
    }
    """Values that None stands for, of the parameters that have parameters themselves.

    The prior is stronger than the usual weight decay, which was tuned on images: on tables of a few hundred rows that
    leaves networks overconfident (docs/estimators.md).
    """

    posterior_: FittedPosterior
    seed_: int
    n_iter_: int

    def __init__(
        self,
        posterior: Posterior | None = None,
        flatness: Flatness | None = None,
        model: ModelFactory | None = None,
        *,
        likelihood: Likelihood | str | None = None,
        hidden: tuple[int, ...] = (64, 64),
        epochs: int | None = None,
        batch_size: int = 32,
        learning_rate: float | None = None,
        config: TrainingConfig | None = None,
        validation_fraction: float = 0.15,
        num_draws: int = 30,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.posterior = posterior
        self.flatness = flatness
        self.model = model
        self.likelihood = likelihood
        self.hidden = hidden
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.config = config
        self.validation_fraction = validation_fraction
        self.num_draws = num_draws
        self.random_state = random_state
        self.verbose = verbose

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name.

        Args:
            deep: Include the fields of posterior, flatness and configuration; of their defaults where they are None.
        """
        params: dict[str, Any] = super().get_params(deep=deep)
        if deep:
            for name in self.DEFAULT_COMPONENTS:
                with suppress(TypeError, ValueError):  # a wrong value is refused by fit, not here
                    params |= get_nested_params(name, self._get_component(name))
        return params

    def set_params(self, **params: Any) -> Self:
        """Set parameters, including fields of posterior, flatness and configuration.

        Raises:
            ValueError: There is no such parameter.
        """
        nested: dict[str, dict[str, Any]] = {}
        for full_name in list(params):
            name, _, path = full_name.partition(SEPARATOR)
            if path and name in self.DEFAULT_COMPONENTS:
                nested.setdefault(name, {})[path] = params.pop(full_name)
        super().set_params(**params)
        for name, changes in nested.items():
            setattr(self, name, replace_nested_params(name, self._get_component(name), changes))
        return self

    def predict_distribution(self, X: ArrayLike) -> Predictive:
        """The predictive distribution: moments, entropies, and intervals of a regression.

        Args:
            X: Examples, shape (examples, features), or of any shape that the model takes.
        """
        check_is_fitted(self)
        check_examples(X)
        inputs = to_tensor(validate_data(self, X, dtype=FLOAT_TYPES, allow_nd=True, reset=False))
        seed = getattr(self, "seed_", 0)  # estimators that flatbayes 0.1 has pickled have none
        return self.posterior_.predict(inputs, self.num_draws, seed=seed, vectorized=False)

    def _fit_posterior(self, data: DataSplits) -> None:
        """Fit the posterior, and set the attributes that all fitted estimators have."""
        config = self._resolve_training_config()
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be at least 0 and below 1, got {self.validation_fraction}.")
        self.seed_ = spawn_seed(Stream.ESTIMATOR, check_random_state(self.random_state).randint(MAX_RANDOM_SEED))
        posterior, flatness = self._get_component("posterior"), self._get_component("flatness")
        if needs_validation(config, flatness):
            data = hold_out_validation(data, self.validation_fraction, self.seed_)
        hidden = self.hidden.tolist() if isinstance(self.hidden, np.ndarray) else self.hidden
        model = partial(MLP, hidden=hidden) if self.model is None else self.model
        self.posterior_ = fit(
            model,
            data,
            posterior,
            flatness,
            config,
            likelihood=self.likelihood,
            seed=self.seed_,
            show_progress=bool(self.verbose),
        )
        training = self.posterior_.info["training"]
        self.n_iter_ = max(training.get("last_epochs", [training["epochs"]]))

    def _resolve_training_config(self) -> TrainingConfig:
        """The parameter `config`, or a configuration made of epochs, batch size and learning rate."""
        if self.config is not None:
            return resolve_config(self.config)
        default, rate = self._get_component("posterior").default_optimizer, self.learning_rate
        is_prior_free = self.posterior is None and self.epochs is None
        return TrainingConfig(
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=None if rate is None else _set_learning_rate(default, rate),
            optimization=OptimizationConfig(prior_factor="auto" if is_prior_free else None),
        )

    def _get_component(self, name: str) -> Any:
        if name == "config":
            return self._resolve_training_config()
        value = getattr(self, name)
        if value is None:
            return self.DEFAULT_COMPONENTS[name]
        bases: dict[str, type[Any]] = {"posterior": Posterior, "flatness": Flatness}
        return resolve_component(value, bases[name], name) if name in bases else value

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


def check_examples(X: Any, y: Any = None) -> None:
    """Check what scikit-learn does not: columns of a data frame, missing labels, and the labels of rows.

    Raises:
        ValueError: A column holds no numbers, labels are missing or of several types, or `X` and `y` have the same
            row labels in another order.

    Warns:
        DataWarning: `X` and `y` have different row labels.
    """
    if is_data_frame(X):
        list_columns(X, "data frame X")
        for name in list_other_columns(X):
            to_column_numbers({str(column): X[column] for column in X.columns}[name], name, "data frame X")
    check_row_labels(X, y, "X", "y")
    labels = np.asarray(y) if hasattr(y, "__array__") or isinstance(y, list) else np.empty(0)
    if labels.dtype == object:
        others = [label for label in labels.flat if not isinstance(label, str) and not is_missing(label)]
        if others and any(isinstance(label, str) for label in labels.flat):
            raise ValueError(
                f"Some labels are texts, and others are not, such as {others[0]!r}. Make all texts or numbers."
            )
        rows = np.flatnonzero(find_missing(labels))
        if len(rows):
            raise ValueError(
                f"{format_count(len(rows), 'label is', 'labels are')} missing, the first ({labels.ravel()[rows[0]]}) "
                f"in row {rows[0]} (counted from 0). Leave those examples out."
            )


def _set_learning_rate(default: Any, rate: float) -> Any:
    """The default optimizer of posterior and network with another learning rate."""
    is_bound = isinstance(default, partial)
    return DefaultOptimizer(default, {"lr": rate}) if is_bound else partial(default, lr=rate)


def refuse_fit_params(estimator: BaseEstimator, params: Mapping[str, Any]) -> None:
    """Refuse further arguments of `fit`, such as weights of examples.

    Raises:
        TypeError: There are some.
    """
    if params:
        advice = (
            " All rows have the same weight: give a row several times, np.repeat(X, counts, axis=0), or draw rows "
            "with probabilities that are their weights, and set epochs, since copies of a row may otherwise be held "
            "out for validation too; score takes sample_weight."
        )
        raise TypeError(
            f"{type(estimator).__name__}.fit takes X and y, got {', '.join(params)}."
            f"{advice if 'sample_weight' in params else ''}"
        )


def get_nested_params(name: str, value: Any) -> dict[str, Any]:
    """The fields of a frozen dataclass by their full names, recursively; empty for any other value."""
    if not is_dataclass(value) or isinstance(value, type):
        return {}
    params: dict[str, Any] = {}
    for field in (field for field in fields(value) if field.init):
        full_name, field_value = f"{name}{SEPARATOR}{field.name}", getattr(value, field.name)
        params |= {full_name: field_value} | get_nested_params(full_name, field_value)
    return params


def replace_nested_params(name: str, value: Any, changes: Mapping[str, Any]) -> Any:
    """A dataclass with some fields changed.

    Changes are by name of a field, or of a field of a field.

    Raises:
        ValueError: There is no such field.
    """
    valid_paths = [full_name.removeprefix(name + SEPARATOR) for full_name in get_nested_params(name, value)]
    unknown_paths = [path for path in changes if path.partition(SEPARATOR)[0] not in valid_paths]
    if unknown_paths:
        raise ValueError(
            f"{name} is {value!r}, which has no parameter {unknown_paths[0]!r}. Valid parameters are: {valid_paths}."
        )
    direct = {path: new for path, new in changes.items() if SEPARATOR not in path}
    value = replace(value, **direct)  # first, since a nested change applies to the new value
    nested: dict[str, dict[str, Any]] = {}
    for path in changes.keys() - direct.keys():
        field_name, _, rest = path.partition(SEPARATOR)
        nested.setdefault(field_name, {})[rest] = changes[path]
    return replace(
        value,
        **{
            field_name: replace_nested_params(f"{name}{SEPARATOR}{field_name}", getattr(value, field_name), inner)
            for field_name, inner in nested.items()
        },
    )


def make_data_splits(
    inputs: Tensor,
    targets: Tensor,
    feature_names: Sequence[str] | None,
    *,
    class_names: tuple[str, ...] = (),
    target_names: tuple[str, ...] = (),
) -> DataSplits:
    """Training data with empty validation and test splits, which scikit-learn's own tools make.

    Targets are class indices, or numbers, [examples] or [examples, targets]. Without names features are `x0`, `x1`,
    ...
    """
    num_features = inputs.shape[1] if inputs.ndim == 2 else 0
    names = tuple(f"x{k}" for k in range(num_features)) if feature_names is None else tuple(map(str, feature_names))
    empty = Split(inputs=inputs[:0], targets=targets[:0])
    return DataSplits(
        train=Split(inputs=inputs, targets=targets),
        val=empty,
        test=empty,
        class_names=class_names,
        feature_names=names if num_features else (),
        augment=None,
        target_names=target_names,
    )
