"""Thresholds of a run: of conformal prediction and of abstention, in a file of the run folder.

`flatbayes calibrate` writes them, `flatbayes predict` and `flatbayes evaluate` use them.
"""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from flatbayes.calibration import AbstentionThreshold, ConformalEvaluation, ConformalPredictor
from flatbayes.core.files import read_json, write_json
from flatbayes.core.names import format_count
from flatbayes.experiments.run_folder import THRESHOLDS_FILE
from flatbayes.likelihoods import CategoricalPredictive, Predictive
from flatbayes.prediction import FittedPosterior


@dataclass(frozen=True)
class Thresholds:
    """Thresholds for the predictions of one posterior with one calibration, number of draws and seed.

    Attributes:
        num_draws: Networks that predictions average.
        seed: Seed of their draws.
        source: Split or file of the examples that they were computed from.
        calibration: Plain data of the calibration map; None without one.
        conformal: Predictors by level, as text.
        abstention: Thresholds of the confidence by risk, as text.
        group_column: Column of the groups, if the predictors have thresholds by group.
    """

    num_draws: int
    seed: int
    source: str
    calibration: dict[str, Any] | None
    conformal: Mapping[str, ConformalPredictor]
    abstention: Mapping[str, AbstentionThreshold]
    group_column: str | None = None

    def save(self, folder: Path) -> None:
        """Write them to the folder of a run."""
        abstention = {risk: asdict(rule) for risk, rule in self.abstention.items()}
        for rule in abstention.values():
            rule |= {name: None for name in ("threshold", "observed_risk") if not math.isfinite(rule[name])}
        data = {
            **{name: getattr(self, name) for name in ("num_draws", "seed", "source", "calibration", "group_column")},
            "conformal": {level: predictor.to_dict() for level, predictor in self.conformal.items()},
            "abstention": abstention,
        }
        write_json(folder / THRESHOLDS_FILE, data)

    @classmethod
    def load(cls, folder: Path, fitted: FittedPosterior) -> Self:
        """Read the thresholds of a run.

        Raises:
            ValueError: There are none, they are damaged, or were computed for another calibration.
        """
        path = folder / THRESHOLDS_FILE
        if not path.is_file():
            command = f"flatbayes calibrate {shlex.quote(str(folder))}"
            raise ValueError(f"{folder} has no thresholds yet. Compute them: {command}.")
        data = read_json(path)
        try:
            rules = {
                risk: rule
                | {"threshold": math.inf if rule["threshold"] is None else rule["threshold"]}
                | {"observed_risk": math.nan if rule["observed_risk"] is None else rule["observed_risk"]}
                for risk, rule in data["abstention"].items()
            }
            thresholds = cls(
                num_draws=int(data["num_draws"]),
                seed=int(data["seed"]),
                source=str(data["source"]),
                calibration=data["calibration"],
                conformal={level: ConformalPredictor.from_dict(spec) for level, spec in data["conformal"].items()},
                abstention={risk: AbstentionThreshold(**rule) for risk, rule in rules.items()},
                group_column=data["group_column"],
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is damaged ({type(error).__name__}: {error}). Write it again: "
                f"flatbayes calibrate {shlex.quote(str(folder))}."
            ) from error
        if thresholds.calibration != fitted.info.get("calibration"):
            raise ValueError(
                f"{path} was computed for another calibration than that of the posterior. Compute both again: "
                f"flatbayes calibrate {shlex.quote(str(folder))}."
            )
        return thresholds

    def get_conformal(self, level: float) -> ConformalPredictor:
        """The predictor of a level.

        Raises:
            ValueError: No thresholds were computed for the level.
        """
        if f"{level:g}" not in self.conformal:
            raise ValueError(
                f"Thresholds were computed for the levels {', '.join(self.conformal) or 'of no region'}, not for "
                f"{level:g}. Compute them: flatbayes calibrate FOLDER --conformal {level:g}."
            )
        return self.conformal[f"{level:g}"]

    def get_abstention(self, risk: float) -> AbstentionThreshold:
        """The threshold of the confidence for a risk.

        Raises:
            ValueError: No threshold was computed for the risk.
        """
        if f"{risk:g}" not in self.abstention:
            raise ValueError(
                f"There are thresholds of the confidence for the risks {', '.join(self.abstention) or 'none'}, not "
                f"for {risk:g}. Compute one: flatbayes calibrate FOLDER --risk {risk:g}."
            )
        return self.abstention[f"{risk:g}"]

    def check_draws(self, num_draws: int, seed: int, defaults: tuple[int, int]) -> None:
        """Refuse options of the draws other than those that the thresholds hold for."""
        if (num_draws, seed) not in (defaults, (self.num_draws, self.seed)):
            raise ValueError(
                f"The thresholds hold for --num_draws {self.num_draws} --seed {self.seed}, got {num_draws} and "
                f"{seed}. Leave both options out, or compute thresholds for yours with flatbayes calibrate."
            )

    def evaluate(
        self, predictive: Predictive, targets: Tensor, names: Sequence[str] | None = None
    ) -> "ThresholdEvaluation":
        """Coverage of the regions, and errors of accepted predictions, on labelled examples."""
        evaluations = {
            level: predictor.evaluate(predictive, targets, names=names)
            for level, predictor in self.conformal.items()
            if predictor.grouping != "group"  # the groups of these examples are not known
        }
        abstentions = dict[str, tuple[float, float]]()
        if isinstance(predictive, CategoricalPredictive):
            is_wrong = (predictive.top_class.cpu() != targets.cpu()).double()
            confidence = predictive.confidence.cpu()
            for risk, rule in self.abstention.items():
                accepted = confidence >= rule.threshold
                error = float(is_wrong[accepted].mean()) if bool(accepted.any()) else math.nan
                abstentions[risk] = float(accepted.double().mean()), error
        return ThresholdEvaluation(self.source, len(targets), evaluations, abstentions)


@dataclass(frozen=True)
class ThresholdEvaluation:
    """What thresholds achieve on labelled examples.

    Attributes:
        source: Split or file of the examples that the thresholds were computed from.
        num_examples: Number of labelled examples.
        conformal: Coverage and size of the regions by level.
        abstention: By risk, the fraction of the examples that are accepted, and the fraction of these that are wrong.
    """

    source: str
    num_examples: int
    conformal: Mapping[str, ConformalEvaluation]
    abstention: Mapping[str, tuple[float, float]]

    def summary(self) -> str:
        """Coverage and size, and a sentence for each risk."""
        lines = [evaluation.summary() for evaluation in self.conformal.values()]
        for risk, (accepted, error) in self.abstention.items():
            wrong = "" if math.isnan(error) else f", {100 * error:.2f} % of them wrong"
            lines.append(
                f"abstention for a risk of {risk}: {100 * accepted:.1f} % of "
                f"{format_count(self.num_examples, 'example')} accepted{wrong}"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the text of the guarantee."""
        return {
            "source": self.source,
            "conformal": {
                level: {name: value for name, value in evaluation.to_dict().items() if name != "guarantee"}
                for level, evaluation in self.conformal.items()
            },
            "abstention": {
                risk: {"accepted": accepted, "error": error} for risk, (accepted, error) in self.abstention.items()
            },
        }


def choose_rows(count: int, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random rows for a map, and the other rows, for thresholds.

    Raises:
        ValueError: There are too few examples for both.
    """
    size = round(fraction * count)
    if size == count or (fraction > 0 and size == 0):
        raise ValueError(
            f"{format_count(count, 'labelled example is', 'labelled examples are')} too few: {size} would be for the "
            f"map and {count - size} for thresholds (--fraction {fraction:g}). Give a file with more, --input FILE."
        )
    rows = torch.randperm(count, generator=generator)
    return rows[:size].sort().values, rows[size:].sort().values
