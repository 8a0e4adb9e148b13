"""Conformal prediction around a fitted posterior: regions with a guaranteed coverage."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from flatbayes.calibration import (
    ConformalEvaluation,
    ConformalPredictor,
    ConformalScore,
    PredictionIntervals,
    PredictionSets,
    fit_conformal,
)
from flatbayes.calibration.targets import to_names
from flatbayes.core.files import read_json, write_json
from flatbayes.data import is_array_pair
from flatbayes.data.pairs import check_row_labels
from flatbayes.prediction.evaluation import predict_labelled
from flatbayes.prediction.example_batches import has_random_order
from flatbayes.prediction.fitted import FittedPosterior
from flatbayes.prediction.inputs import Inputs


@dataclass(frozen=True)
class ConformalPosterior:
    """A posterior with the thresholds of conformal prediction; made by `conformalize`.

    Attributes:
        fitted: The posterior.
        predictor: The thresholds, for predictions of this posterior.
        num_draws: Number of networks that every prediction averages, since the guarantee is for these predictions.
        seed: Seed of their draws.

    Examples:
        >>> conformal = conformalize(fitted, data.val, level=0.8, num_draws=5)
        >>> conformal.predict(inputs[:2]).members.shape
        torch.Size([2, 10])
        >>> path = conformal.save("conformal.json")
        >>> ConformalPosterior.load(path, fitted).predictor == conformal.predictor
        True
    """

    fitted: FittedPosterior
    predictor: ConformalPredictor
    num_draws: int
    seed: int

    def __repr__(self) -> str:
        return f"<ConformalPosterior at level {self.predictor.level:g}: {self.predictor.score!r}, {self.fitted!r}>"

    def predict(
        self, inputs: Inputs, groups: Any = None, *, batch_size: int = 256
    ) -> PredictionSets | PredictionIntervals:
        """The region of each example: a set of classes, or an interval.

        Args:
            inputs: Examples as for `FittedPosterior.predict`.
            groups: Group of each example, if the thresholds are by group.
            batch_size: Examples per forward pass.

        Raises:
            ValueError: The inputs are not valid, or groups are missing.
        """
        _check_groups(inputs, groups)
        predictive = self.fitted.predict(inputs, self.num_draws, batch_size=batch_size, seed=self.seed)
        return self.predictor.predict(predictive, groups)

    def evaluate(
        self, data: Any, targets: Any = None, groups: Any = None, *, batch_size: int = 256
    ) -> ConformalEvaluation:
        """Coverage and size on labelled examples other than the calibration examples.

        Args:
            data: Labelled examples as for `flatbayes.evaluate`.
            targets: As for `flatbayes.evaluate`.
            groups: Group of each example, if the thresholds are by group.
            batch_size: Examples per forward pass.

        Raises:
            ValueError: The targets or groups do not match the predictions.
            TypeError: There are no targets.
        """
        _check_groups(_get_inputs(data), groups)
        predictive, targets, is_labelled = predict_labelled(
            self.fitted, data, targets, self.num_draws, batch_size=batch_size, seed=self.seed
        )
        names = self.fitted.info.get("class_names") or self.fitted.info.get("target_names")
        return self.predictor.evaluate(predictive, targets, _select_groups(groups, is_labelled), names)

    def guarantee(self) -> str:
        """What is guaranteed, and the assumptions."""
        return self.predictor.guarantee()

    def summary(self) -> str:
        """Posterior, score, thresholds and guarantee, as text."""
        return f"{self!r}\n{self.predictor.summary(self.fitted.info.get('class_names'))}"

    def save(self, path: str | Path) -> Path:
        """Write the thresholds as JSON, without the posterior, and return the path.

        Args:
            path: The file, such as `conformal.json` in the folder of the artefact.

        Raises:
            TypeError: The score is user-defined.
            OSError: The file cannot be written.
        """
        data = {"num_draws": self.num_draws, "seed": self.seed, "predictor": self.predictor.to_dict()}
        write_json(Path(path), data)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path, fitted: FittedPosterior) -> Self:
        """Read thresholds that `save` wrote.

        Args:
            path: The file.
            fitted: The posterior for which they were computed.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is damaged.
        """
        data = read_json(Path(path))
        try:
            return cls(fitted, ConformalPredictor.from_dict(data["predictor"]), data["num_draws"], data["seed"])
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{path} does not hold thresholds written by ConformalPosterior.save: {error}."
            ) from error


def conformalize(
    fitted: FittedPosterior,
    data: Any,
    targets: Any = None,
    num_draws: int = 30,
    *,
    score: ConformalScore | None = None,
    level: float = 0.9,
    groups: Any = None,
    allow_empty: bool = True,
    batch_size: int = 256,
    seed: int = 0,
) -> ConformalPosterior:
    """Add sets or intervals that contain the target with probability `level` at least. The posterior is not changed.

    The guarantee holds for any posterior and any data, if new examples are exchangeable with the calibration examples
    and these were used neither for training nor for a choice, such as of hyperparameters or of the best epoch.

    Args:
        fitted: The posterior.
        data: Labelled calibration examples in a form that `flatbayes.evaluate` takes.
        targets: As for `flatbayes.evaluate`.
        num_draws: Networks to average, now and in all predictions.
        score: A score of `flatbayes.calibration`; None takes `LAC` for classes, `NormalizedResidual` for a
            Gaussian, and `QuantileResidual` for any other distribution.
        level: Coverage to guarantee, strictly between 0 and 1.
        groups: `"class"` to cover every class; the group of each example to cover every group; None covers all.
        allow_empty: False puts the most probable class into sets that would be empty.
        batch_size: Examples per forward pass.
        seed: The same seed draws the same networks.

    Raises:
        ValueError: The targets or groups do not match the predictions, or the level is out of range.
        TypeError: There are no targets, or no scores for this kind of prediction.

    Examples:
        >>> conformal = conformalize(fitted, data.val, level=0.8, num_draws=5)
        >>> evaluation = conformal.evaluate(data.test)
        >>> evaluation.estimates[0].is_as_guaranteed
        True
    """
    _check_groups(_get_inputs(data), groups)
    predictive, targets, is_labelled = predict_labelled(
        fitted, data, targets, num_draws, batch_size=batch_size, seed=seed
    )
    if not isinstance(groups, str):
        groups = _select_groups(groups, is_labelled)
    predictor = fit_conformal(predictive, targets, score, level=level, groups=groups, allow_empty=allow_empty)
    return ConformalPosterior(fitted, predictor, num_draws, seed)


def _check_groups(inputs: Any, groups: Any) -> None:
    """Check that the group of each example may be in the order of the examples.

    Raises:
        ValueError: Their row labels are in another order, or the order of the examples is random.
    """
    if groups is None or isinstance(groups, str):
        return
    check_row_labels(inputs, groups, "inputs", "groups")
    if has_random_order(inputs):
        raise ValueError(
            "The loader gives the examples in a random order, so it is unknown which group belongs to which "
            "example. Make it with shuffle=False, in the order of the groups."
        )


def _get_inputs(data: Any) -> Any:
    """Inputs of a pair; anything else is unchanged."""
    return data[0] if is_array_pair(data) else data


def _select_groups(groups: Any, is_labelled: Tensor | None) -> list[str] | None:
    """Names of the groups of the labelled examples."""
    names = None if groups is None else to_names(groups)
    if names is None or is_labelled is None or len(names) != len(is_labelled):
        return names
    return [name for name, labelled in zip(names, is_labelled.tolist(), strict=True) if labelled]
