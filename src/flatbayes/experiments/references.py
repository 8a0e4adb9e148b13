"""Distances of the runs of a comparison to exact posteriors: which belongs to a run, and whether densities agree."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from flatbayes.core.names import format_names
from flatbayes.core.spec import short_name
from flatbayes.data import DataSplits
from flatbayes.data.fingerprint import compute_fingerprint
from flatbayes.flatness import SAM
from flatbayes.likelihoods import Predictive
from flatbayes.posteriors import BLoB, Ensemble, Laplace, Posterior
from flatbayes.posteriors.optimization import find_weight_decay, resolve_temperature
from flatbayes.prediction.metadata import compute_file_checksum
from flatbayes.reference import Reference, describe_network
from flatbayes.training import TrainingConfig

if TYPE_CHECKING:
    from flatbayes.experiments.run import ExperimentRun

SUFFIXES = {False: "", True: "_flat"}
"""Ends of the names of metrics by whether the reference is sharpness-aware."""
Model = nn.Module | Callable[..., nn.Module]
TOLERANCE = 1e-6
"""Relative difference of prior precisions and temperatures that counts as rounding."""


class ReferenceWarning(UserWarning):
    """A posterior is compared with a reference of another density."""


def find_density(posterior: Posterior, config: TrainingConfig, num_data: int) -> tuple[float | None, float]:
    """Prior precision and temperature of the density that a posterior approximates.

    Of an ensemble its member counts; the weight decay of the training can be the prior.

    Returns:
        The precision, None where it is not one number for all weights, or is chosen after training; and the
        temperature, 1 for a posterior that has none.
    """
    while isinstance(posterior, Ensemble):
        posterior = posterior.member
    temperature = resolve_temperature(getattr(posterior, "temperature", None))
    if isinstance(posterior, BLoB):
        return posterior.prior_std**-2, temperature
    if isinstance(posterior, Laplace) and posterior.tune == "evidence":
        return None, temperature
    precision = getattr(posterior, "prior_precision", None)
    if isinstance(precision, int | float):
        return float(precision), temperature
    if precision is not None:
        return None, temperature
    try:
        weight_decay = find_weight_decay(config.optimizer or posterior.default_optimizer)
    except Exception:  # of the user's function, which takes the parameters apart
        return None, temperature
    return weight_decay * num_data / temperature, temperature


def explain_density_mismatch(reference: Reference, posterior: Posterior, config: TrainingConfig) -> str | None:
    """What differs between the density of a posterior and that of a reference; None if they agree."""
    precision, temperature = find_density(posterior, config, reference.num_data)
    reasons, expected = [], reference.config.prior_precision
    if precision is None:
        reasons.append(f"their prior has other precisions than {expected:g} for all weights")
    elif not math.isclose(precision, expected, rel_tol=TOLERANCE):
        reasons.append(f"their prior precision is {precision:.4g}, and that of the reference {expected:.4g}")
    if not math.isclose(temperature, reference.config.temperature, rel_tol=TOLERANCE):
        reasons.append(
            f"their temperature is {temperature:g}, and that of the reference {reference.config.temperature:g}"
        )
    return "; ".join(reasons) or None


@dataclass(frozen=True)
class ReferenceFile:
    """The file of a reference.

    By the checksum of its content, results with another content are not reused.
    """

    path: str
    checksum: str

    @staticmethod
    def open(path: Path | str) -> "ReferenceFile":
        """Name a file with its checksum.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is no reference.
        """
        Reference.load(path)  # for its messages
        return ReferenceFile(str(path), compute_file_checksum(Path(path)))

    def load(self) -> Reference:
        """Read the file; the last ones are kept."""
        return _load_reference(self)


@lru_cache(maxsize=4)
def _load_reference(file: ReferenceFile) -> Reference:
    return Reference.load(file.path)


def find_references(
    files: Sequence[ReferenceFile], model: Model, data: DataSplits, split: str
) -> dict[str, Reference]:
    """The plain and the sharpness-aware reference for a network and data, by the end of the names of their metrics.

    Raises:
        ValueError: Of one kind there are files, and none of them belongs to these data and this network.
    """
    fingerprint = compute_fingerprint(data, tuple(dict.fromkeys(("train", split))))
    network, references, reasons = describe_network(model), dict[str, Reference](), dict[str, list[str]]()
    for file in files:
        reference = file.load()
        suffix = SUFFIXES[reference.config.rho > 0]
        reason = reference.explain_mismatch(network, fingerprint, split)
        if reason is None:
            references.setdefault(suffix, reference)
        else:
            reasons.setdefault(suffix, []).append(f"{file.path}: {reason}")
    missing = [reason for suffix, kind in reasons.items() if suffix not in references for reason in kind]
    if missing:
        raise ValueError(
            f"No reference belongs to the run: {'; '.join(missing)}. Sample one with the data, seed and network of "
            "the run, by `flatbayes reference`; a comparison over seeds that draw other training examples needs one "
            "for each seed."
        )
    return references


def list_reference_problems(files: Sequence[ReferenceFile]) -> tuple[str, ...]:
    """A sentence on each reference whose chains do not have the density that they should."""
    return tuple(
        f"Distances to {file.path} are unreliable: {problem}."
        for file in files
        for problem in file.load().diagnostics.list_problems()
    )


def measure_distances_to(
    files: Sequence[ReferenceFile], predictive: Predictive, model: Model, data: DataSplits, split: str
) -> dict[str, float]:
    """Distances of predictions to the plain and the sharpness-aware reference, by the names of the metrics.

    Raises:
        ValueError: No reference belongs to the run.
    """
    return {
        f"{name}{suffix}": value
        for suffix, reference in find_references(files, model, data, split).items()
        for name, value in reference.measure(predictive).items()
    }


def check_references(files: Sequence[ReferenceFile], runs: "Sequence[ExperimentRun]") -> None:
    """Check that every run has a reference, and warn where its density is another one."""
    by_seed = {run.seed: run for run in runs}
    references = {
        seed: find_references(files, run.model, run.load_data(), run.split) for seed, run in by_seed.items()
    }
    names: dict[str, list[str]] = {}
    for run in runs:
        for reference in references[run.seed].values():
            reason = explain_density_mismatch(reference, run.posterior, run.config)
            if reason is not None:
                names.setdefault(reason, []).append(run.posterior_name or short_name(run.posterior))
            radius = reference.config.rho
            if radius and isinstance(run.flatness, SAM) and run.flatness.radius != radius:
                reason = f"they have the radius {run.flatness.radius}, and the sharpness-aware reference {radius:g}"
                names.setdefault(reason, []).append(short_name(run.flatness))
    for reason, labels in names.items():
        warnings.warn(
            f"Distances of {format_names(dict.fromkeys(labels))} to the reference include a difference of the "
            f"posteriors: {reason}.",
            ReferenceWarning,
            stacklevel=2,
        )
