"""Cross-conformal prediction: regions from posteriors that were each trained without a fold of the training examples.

Every training example is a calibration example for the posterior that has not seen it, so that none has to be held
out. The members of an `Ensemble` do not serve for this: each was trained on all examples. K folds cost as much as an
ensemble of K members.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from flatbayes.calibration import ConformalEvaluation, CoverageEstimate, PredictionIntervals, PredictionSets
from flatbayes.calibration.cross import cross_coverage, predict_cross_region
from flatbayes.calibration.quantiles import required_examples
from flatbayes.calibration.scores import (
    CALIBRATE_LABELS,
    LAC,
    NO_LABEL_REGIONS,
    ClassScore,
    ConformalScore,
    NormalizedResidual,
    QuantileResidual,
    get_score_data,
    make_score,
)
from flatbayes.calibration.targets import NO_POSITION_REGIONS, check_targets, warn_if_few
from flatbayes.core.display import format_entries
from flatbayes.core.files import read_json, write_json
from flatbayes.core.randomness import Stream, make_generator
from flatbayes.data import DataSplits, load_training_splits
from flatbayes.data.stratified_split import HELD_OUT_FRACTION, hold_out_validation
from flatbayes.flatness import SAM, Flatness
from flatbayes.likelihoods import DistributionLikelihood
from flatbayes.likelihoods.families import find_family
from flatbayes.posteriors import SWAG, Posterior
from flatbayes.prediction import FittedPosterior
from flatbayes.prediction.evaluation import predict_labelled
from flatbayes.prediction.example_batches import has_random_order
from flatbayes.prediction.inputs import Inputs
from flatbayes.prediction.labelled import count_classes, names_likelihood, read_as_task
from flatbayes.training.arguments import resolve_arguments
from flatbayes.training.checkpoint import FOLD_PREFIX, Checkpoints
from flatbayes.training.config import TrainingConfig
from flatbayes.training.fit import fit
from flatbayes.training.training_examples import needs_validation

SCORES_FILE = "cross_conformal.json"


def _check_order(examples: Any) -> None:
    """Check that the posteriors of all folds get the same examples in the same order.

    Raises:
        ValueError: The order is random, or the examples can be read only once.
    """
    if has_random_order(examples) or isinstance(examples, Iterator):
        fault = "can be read only once" if isinstance(examples, Iterator) else "gives them in a random order"
        raise ValueError(
            f"The posterior of each fold reads the examples, and a {type(examples).__name__} {fault}: make a loader "
            "with shuffle=False, or a list of batches."
        )


@dataclass(frozen=True, eq=False)
class CrossConformalPosterior:
    """Posteriors of all folds, and the scores of the examples that each has not seen; made by `fit_cross_conformal`.

    Attributes:
        members: The posterior of each fold.
        fold_scores: Scores of the examples of each fold, shape (examples,) or (examples, targets).
        score: The nonconformity score.
        level: Wanted coverage.
        num_draws: Networks of each member that every prediction averages.
        seed: Seed of their draws.

    Examples:
        >>> cross = fit_cross_conformal(MLP, data, MAP(), Plain(), config, num_folds=3, level=0.8)
        >>> cross.predict(inputs[:2]).members.shape
        torch.Size([2, 10])
        >>> again = CrossConformalPosterior.load(cross.save("folds"))
        >>> torch.equal(again.predict(inputs).members, cross.predict(inputs).members)
        True
    """

    members: tuple[FittedPosterior, ...]
    fold_scores: tuple[Tensor, ...]
    score: ConformalScore
    level: float
    num_draws: int
    seed: int

    def __repr__(self) -> str:
        return (
            f"<CrossConformalPosterior at level {self.level:g}: {self.score!r}, {len(self.members)} folds of "
            f"{self.num_examples} examples, {self.members[0]!r}>"
        )

    @property
    def num_examples(self) -> int:
        """Number of training examples, all of them calibration examples."""
        return sum(map(len, self.fold_scores))

    def predict(self, inputs: Inputs, *, batch_size: int = 256) -> PredictionSets | PredictionIntervals:
        """The region of each example: a set of classes, or an interval.

        Args:
            inputs: Examples as for `FittedPosterior.predict`, which are read once for each fold.
            batch_size: Examples per forward pass.

        Raises:
            ValueError: The inputs are not valid, or give other examples, or another order, when they are read again.
        """
        _check_order(inputs)
        predictives = [
            member.predict(inputs, self.num_draws, batch_size=batch_size, seed=self.seed) for member in self.members
        ]
        return predict_cross_region(predictives, self.fold_scores, self.score, self.level)

    def evaluate(self, data: Any, targets: Any = None, *, batch_size: int = 256) -> ConformalEvaluation:
        """Coverage and size on labelled examples that were not used for training.

        Args:
            data: Labelled examples as for `flatbayes.evaluate`.
            targets: As for `flatbayes.evaluate`.
            batch_size: Examples per forward pass.

        Raises:
            ValueError: The targets do not match the predictions, or the data give other examples, or another order,
                when they are read again.
            TypeError: There are no targets.
        """
        _check_order(data)
        results = [
            predict_labelled(member, data, targets, self.num_draws, batch_size=batch_size, seed=self.seed)
            for member in self.members
        ]
        labels = results[0][1]
        region = predict_cross_region([result[0] for result in results], self.fold_scores, self.score, self.level)
        labels = labels.reshape(region.size.shape)
        coverage, size = (float(values.double().mean()) for values in (region.contains(labels), region.size))
        empty = region.size == 0 if isinstance(region, PredictionSets) else region.upper < region.lower
        estimate = CoverageEstimate("all", len(labels), coverage, size, None)
        return ConformalEvaluation(self.level, (estimate,), float(empty.double().mean()), self.guarantee())

    def guarantee(self) -> str:
        """What is guaranteed, and the assumptions."""
        bound = cross_coverage(self.num_examples, len(self.members), self.level)
        region = "set" if isinstance(self.score, ClassScore) else "interval"
        method = "jackknife+" if len(self.members) == self.num_examples else f"CV+ with {len(self.members)} folds"
        return (
            f"Guarantee of {method} and {self.num_examples} examples: the {region} of a new example contains its "
            f"target with probability at least {100 * max(bound, 0):.1f} %, on average over training and new "
            f"examples; where the posterior changes little with a fold, the coverage is close to "
            f"{100 * self.level:g} %. Assumptions: training and new examples are exchangeable (one distribution, no "
            "drift), and hyperparameters were chosen on other examples. The guarantee is an average over examples, "
            "not one for each example."
        )

    def summary(self) -> str:
        """Score, folds and guarantee, as text."""
        lines = {"score": repr(self.score), "folds": f"{len(self.members)} of {self.num_examples} examples"}
        return f"{format_entries(f'Cross-conformal prediction at level {self.level:g}', lines)}\n{self.guarantee()}"

    def save(self, folder: str | Path) -> Path:
        """Write the posterior of each fold, and the scores, and return the folder.

        Args:
            folder: The folder; created if necessary.

        Raises:
            TypeError: The score is user-defined, or a posterior cannot be described by plain data.
            OSError: It cannot be written.
        """
        folder, score_data = Path(folder), get_score_data(self.score)
        for k, member in enumerate(self.members):
            member.save(folder / f"fold_{k}")
        write_json(
            folder / SCORES_FILE,
            {
                **score_data,
                "level": self.level,
                "num_draws": self.num_draws,
                "seed": self.seed,
                "scores": [scores.tolist() for scores in self.fold_scores],
            },
        )
        return folder

    @classmethod
    def load(cls, folder: str | Path, **options: Any) -> Self:
        """Read what `save` wrote.

        Args:
            folder: The folder.
            **options: Further arguments of `FittedPosterior.load`, for every fold.

        Raises:
            FileNotFoundError: There is no such folder.
            ValueError: A file is damaged.
        """
        data = read_json(Path(folder) / SCORES_FILE)
        try:
            scores = tuple(torch.tensor(values, dtype=torch.float64) for values in data["scores"])
            members = tuple(FittedPosterior.load(Path(folder) / f"fold_{k}", **options) for k in range(len(scores)))
            return cls(members, scores, make_score(data), data["level"], data["num_draws"], data["seed"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{Path(folder) / SCORES_FILE} is damaged: {error}.") from error


def fit_cross_conformal(
    model: Any,
    data: Any,
    posterior: Posterior = SWAG(),
    flatness: Flatness = SAM(),
    config: TrainingConfig | None = None,
    *,
    num_folds: int = 5,
    score: ConformalScore | None = None,
    level: float = 0.9,
    num_draws: int = 30,
    seed: int = 0,
    **options: Any,
) -> CrossConformalPosterior:
    """Train a posterior without each fold of the training examples, for regions without held-out examples (CV+).

    Args:
        model: As for `fit`.
        data: Splits, a source of data, or a pair `(inputs, targets)`. The validation split is not used for regions.
        posterior: As for `fit`.
        flatness: As for `fit`.
        config: As for `fit`.
        num_folds: Number K of folds, at least 2; the number of training examples for jackknife+.
        score: A score of `flatbayes.calibration`; None takes `LAC` for classes, `NormalizedResidual` for a
            Gaussian, and `QuantileResidual` for any other distribution.
        level: Wanted coverage. Guaranteed is about `2 level - 1`, see `CrossConformalPosterior.guarantee`.
        num_draws: Networks of each fold to average.
        seed: Seed of the folds, and of everything random in each training.
        **options: Further arguments of `fit`.

    Raises:
        ValueError: There are fewer examples than folds, or `fit` refuses its arguments.
        TypeError: The data are a loader, or have several labels of each example; or the score is not for predictions
            of this kind.

    Warns:
        CalibrationWarning: There are too few examples for a region that does not contain everything.

    Examples:
        >>> cross = fit_cross_conformal(MLP, data, MAP(), Plain(), config, num_folds=3, level=0.8)
        >>> cross.evaluate(data.test).coverage > 0.5
        True
    """
    likelihood: Any = options.get("likelihood")
    checkpoints: Checkpoints | None = options.pop("checkpoints", None)
    named = {**options, "seed": seed}
    model, data, posterior, flatness, config = resolve_arguments(model, data, posterior, flatness, config, named)
    holds_out = False
    if not isinstance(data, DataSplits):
        val = options.pop("val", None)
        holds_out = val is None and needs_validation(config, flatness)
        examples = data
        num_classes = count_classes(likelihood)
        data = read_as_task(lambda task: load_training_splits(examples, val, task, num_classes), likelihood)
    splits: DataSplits = data
    if splits.is_multi_label:
        raise TypeError(f"{NO_LABEL_REGIONS}. {CALIBRATE_LABELS}")
    if splits.is_dense:
        raise TypeError(NO_POSITION_REGIONS)
    count = len(splits.train)
    if not 2 <= num_folds <= count:
        raise ValueError(f"num_folds lies between 2 and the {count} training examples, got {num_folds}.")
    purpose = f"regions at level {level:g}"
    warn_if_few(count, required_examples(level), purpose, "Every region contains everything")
    score = score or _choose_score(splits, likelihood)
    order = torch.randperm(count, generator=make_generator(Stream.SUBSAMPLE, seed))
    folds = order.tensor_split(num_folds)
    members, fold_scores = list[FittedPosterior](), list[Tensor]()
    for k in range(num_folds):
        rows = torch.cat([fold for other, fold in enumerate(folds) if other != k]).sort().values
        fold_splits = replace(splits, train=splits.train.take(rows))
        fold_splits = hold_out_validation(fold_splits, HELD_OUT_FRACTION, seed) if holds_out else fold_splits
        fold = checkpoints and replace(checkpoints, folder=checkpoints.folder / f"{FOLD_PREFIX}{k}")
        member = fit(model, fold_splits, posterior, flatness, config, seed=seed, checkpoints=fold, **options)
        held_out = splits.train.take(folds[k].sort().values)
        predictive, targets, _ = predict_labelled(
            member, held_out.inputs, held_out.targets, num_draws, batch_size=256, seed=seed
        )
        members.append(member)
        fold_scores.append(score.compute_scores(predictive, check_targets(predictive, targets), level))
    return CrossConformalPosterior(tuple(members), tuple(fold_scores), score, level, num_draws, seed)


def _choose_score(splits: DataSplits, likelihood: object) -> ConformalScore:
    if not splits.is_regression:
        return LAC()
    is_distribution = find_family(likelihood) or names_likelihood(likelihood, DistributionLikelihood)
    return QuantileResidual() if is_distribution else NormalizedResidual()
