"""Distances of the runs of a comparison to exact posteriors, and which reference belongs to which run."""

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
from flatbayes.prediction.metadata import compute_file_checksum
from flatbayes.reference import Reference, describe_network
from flatbayes.reference.density import ReferenceWarning, explain_density_mismatch

if TYPE_CHECKING:
    from flatbayes.experiments.run import ExperimentRun

SUFFIXES = {False: "", True: "_flat"}
"""Ends of the names of metrics by whether the reference is sharpness-aware."""
Model = nn.Module | Callable[..., nn.Module]


@dataclass(frozen=True)
class ReferenceFile:
    """The file of a reference.

    Attributes:
        path: Its path.
        checksum: Checksum of its content, so that results with another content are not reused.
    """

    path: str
    checksum: str

    @staticmethod
    def open(path: Path | str) -> "ReferenceFile":
        """Name a file with its checksum.

        Args:
            path: Path of the file.

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
    """Check that every run has a reference, and warn where its density is another one.

    Raises:
        ValueError: A run has none; the message says why.
    """
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
