"""Comparison of flat with plain training: every posterior in both variants over seeds, in parallel and resumable."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from flatbayes.core.components import resolve_component
from flatbayes.core.files import JsonValue
from flatbayes.core.spec import short_name, to_spec
from flatbayes.data import DataSource
from flatbayes.data.fingerprint import compute_fingerprint
from flatbayes.experiments.evaluations import EvaluationConfig
from flatbayes.experiments.folder_lock import lock_folder, unlock_folders
from flatbayes.experiments.method import Method, build_methods
from flatbayes.experiments.parallel import execute_runs
from flatbayes.experiments.results import ComparisonResult, RunResult
from flatbayes.experiments.run import ExperimentRun
from flatbayes.experiments.run_folder import claim_folder, describe_environment
from flatbayes.experiments.summary import summarize_runs
from flatbayes.flatness import SAM, Flatness, Plain
from flatbayes.metrics import HIGHER_IS_BETTER, METRIC_FAMILIES
from flatbayes.posteriors import Posterior
from flatbayes.prediction import check_num_draws
from flatbayes.training import TrainingConfig
from flatbayes.training.arguments import resolve_config, resolve_model
from flatbayes.training.distributed.workers import ParallelBackend

SPLIT_NAMES = ("test", "val", "train")
FAMILY_BY_METRIC = {metric: family for family, metrics in METRIC_FAMILIES.items() for metric in metrics}
EXTENDABLE_FIELDS = ("posteriors", "flatness", "num_seeds", "evaluations")
"""Fields that may change when a comparison is continued in the same folder."""


@dataclass(frozen=True)
class Comparison:
    """Posteriors x {plain, flat} x seeds on one data set, with one network and one training configuration.

    Attributes:
        source: Source of the data.
        model: Function that builds the network.
        posteriors: The posteriors; a `Method` where one has a training configuration or flatness of its own.
        flatness: Flatness of the flat runs; that of the plain runs is `Plain()`.
        config: The training configuration.
        num_seeds: Number of seeds, from 0 on; plain and flat runs share them.
        num_draws: Networks averaged in a prediction.
        split: Split to evaluate on: test, or val to choose hyperparameters.
        evaluations: Additional evaluations.
        data_fingerprint: Fingerprint of the content of the source, by `compute_fingerprint`; by default the data are
            loaded for it.
    """

    source: DataSource
    model: Callable[..., nn.Module]
    posteriors: Sequence[Posterior | Method]
    flatness: Flatness = SAM()
    config: TrainingConfig = TrainingConfig()
    num_seeds: int = 5
    num_draws: int = 30
    split: str = "test"
    evaluations: EvaluationConfig = EvaluationConfig()
    data_fingerprint: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if self.num_seeds < 1:
            raise ValueError(f"A comparison needs at least 1 seed, got {self.num_seeds}.")
        check_num_draws(self.num_draws)
        if not self.posteriors:
            raise ValueError("A comparison needs at least one posterior, got none.")
        posteriors = [
            entry if isinstance(entry, Method) else resolve_component(entry, Posterior, "posterior")
            for entry in self.posteriors
        ]
        object.__setattr__(self, "posteriors", posteriors)
        object.__setattr__(self, "flatness", resolve_component(self.flatness, Flatness, "flatness"))
        object.__setattr__(self, "config", resolve_config(self.config, TrainingConfig()))
        object.__setattr__(self, "model", resolve_model(self.model))
        build_methods(self.posteriors)
        if self.split not in SPLIT_NAMES:
            raise ValueError(f"split must be {', '.join(SPLIT_NAMES)}, got {self.split!r}.")
        if self.flatness == Plain():
            raise ValueError("A comparison sets a flatness against Plain: choose another one, such as SAM.")

    def with_fingerprint(self) -> "Comparison":
        """The comparison with the fingerprint of the data as they are now, unless it has one."""
        if self.data_fingerprint is not None:
            return self
        return replace(self, data_fingerprint=compute_fingerprint(self.source.load(0)))

    def make_run(self, method: Method, flatness: Flatness, seed: int) -> ExperimentRun:
        """One run of this comparison."""
        return ExperimentRun(
            source=self.source,
            model=self.model,
            posterior=method.posterior,
            flatness=flatness,
            config=method.apply_overrides(self.config),
            seed=seed,
            num_draws=self.num_draws,
            split=self.split,
            posterior_name=method.label,
            evaluations=self.evaluations,
            data_fingerprint=self.data_fingerprint,
        )

    def list_runs(self) -> list[ExperimentRun]:
        """All runs, the seeds outermost, so that an interrupted comparison has complete seeds."""
        comparison = self.with_fingerprint()
        return [
            comparison.make_run(method, flatness, seed)
            for seed in range(self.num_seeds)
            for method in build_methods(self.posteriors)
            for flatness in (Plain(), method.flatness or self.flatness)
        ]

    def claim_folder(self, folder: Path, *, overwrite: bool) -> None:
        """Reserve the folder for this comparison, new or continued, until `run` or this process ends.

        A comparison may be continued with other posteriors, flatness, evaluations or number of seeds; data, network,
        training configuration, number of draws and split must be the same.

        Args:
            folder: The folder.
            overwrite: Delete the results in the folder first.

        Raises:
            ValueError: The folder holds another run, and `overwrite` is not set; or another process is writing there.
        """
        claim_folder(folder, to_spec(self.with_fingerprint())["init_args"], EXTENDABLE_FIELDS, overwrite=overwrite)

    def run(
        self,
        folder: Path,
        *,
        jobs: int | None = None,
        show_progress: bool | None = None,
        backend: ParallelBackend = "loky",
    ) -> ComparisonResult:
        """Execute the runs that are not in the folder yet, and write `results.json`.

        Args:
            folder: Folder of the results; with `ray` on several machines, one that all of them can write to.
            jobs: Number of processes; by default one per core, or one if there is a GPU.
            show_progress: Show a progress bar; by default if standard error is a terminal.
            backend: How processes are started: `loky` on this machine, `ray` on those of a cluster.

        Returns:
            The content of `results.json`; `failures` names the runs that failed, with the reason.

        Raises:
            ValueError: Another process is writing to the folder.
            RuntimeError: A process of this comparison was killed; finished runs are kept.
        """
        comparison = self.with_fingerprint()
        runs = comparison.list_runs()
        lock_folder(folder)
        try:
            failures = execute_runs(runs, folder / "runs", jobs, show_progress, backend)
            results = (run.load_result(folder / "runs") for run in runs)
            finished = [result for result in results if result is not None]
            return write_results(folder, to_spec(comparison)["init_args"], finished, failures)
        finally:
            unlock_folders(folder)


def write_results(
    folder: Path, config: Mapping[str, JsonValue], runs: Sequence[RunResult], failures: Sequence[str] = ()
) -> ComparisonResult:
    """Summarize runs, write `results.json`, and return its content.

    Args:
        folder: Folder of the file.
        config: The configuration, as plain data.
        runs: Results of the finished runs, plain and flat.
        failures: Names of the failed runs, with the reason.
    """
    results = ComparisonResult(
        config=config,
        runs=tuple(runs),
        summary=summarize_runs(runs, short_name(Plain()), HIGHER_IS_BETTER, FAMILY_BY_METRIC),
        failures=tuple(failures),
        environment=describe_environment(),
    )
    results.save(folder)
    return results
