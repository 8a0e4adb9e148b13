"""Comparison of flat with plain training: every posterior in both variants over seeds, in parallel and resumable."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack

from torch import nn

from flatbayes.core.components import resolve_component
from flatbayes.core.display import format_fields
from flatbayes.core.files import JsonValue
from flatbayes.data import DataSource, DataSplits, make_source
from flatbayes.data.fingerprint import compute_fingerprint
from flatbayes.experiments.evaluations import EvaluationConfig
from flatbayes.experiments.fit_options import FitOptions
from flatbayes.experiments.folder_lock import lock_folder, unlock_folders
from flatbayes.experiments.method import Method, build_methods
from flatbayes.experiments.parallel import execute_runs
from flatbayes.experiments.references import ReferenceFile, check_references, list_reference_problems
from flatbayes.experiments.results import ComparisonResult
from flatbayes.experiments.run import ExperimentRun, describe_fields
from flatbayes.experiments.run_folder import claim_folder
from flatbayes.experiments.summary import write_results
from flatbayes.flatness import SAM, Flatness, Plain
from flatbayes.posteriors import MAP, SWAG, Ensemble, MCDropout, Posterior
from flatbayes.posteriors.mc_dropout import has_dropout
from flatbayes.prediction import check_num_draws
from flatbayes.training import TrainingConfig, dry_run
from flatbayes.training.arguments import NetworkOptions, resolve_config, resolve_model
from flatbayes.training.distributed.workers import ParallelBackend
from flatbayes.training.preparation import prepare_runs
from flatbayes.training.trial import NetworkWarning

SPLIT_NAMES = ("test", "val", "train")
DEFAULT_POSTERIORS: tuple[Posterior, ...] = (MCDropout(rate=0.1), SWAG(rank=0), SWAG(), Ensemble())
EXTENDABLE_FIELDS = ("posteriors", "flatness", "num_seeds", "evaluations", "references")
"""Fields that may change when a comparison is continued in the same folder."""


@dataclass(frozen=True)
class Comparison:
    """Posteriors x {plain, flat} x seeds on one data set, with one network and one training configuration.

    Attributes:
        source: Source of the data.
        model: Function that builds the network, or a network, whose weights every seed starts from.
        posteriors: The posteriors; a `Method` where one has a training configuration or flatness of its own.
        flatness: Flatness of the flat runs; that of the plain runs is `Plain()`.
        config: The training configuration.
        num_seeds: Number of seeds, from 0 on; plain and flat runs share them.
        num_draws: Networks averaged in a prediction.
        split: Split to evaluate on: test, or val to choose hyperparameters.
        evaluations: Additional evaluations.
        references: Files of exact posteriors that the predictions are compared with, by `sample_reference`.
        data_fingerprint: Fingerprint of the content of the source, by `compute_fingerprint`; by default the data are
            loaded for it.
        model_fingerprint: Fingerprint of the weights that training starts from; computed by default.
        options: Further arguments of `fit`.

    Examples:
        >>> comparison = Comparison(
        ...     source, MLP, [MAP()], config=config, num_seeds=2
        ... )
        >>> [run.name for run in comparison.list_runs()][:2]
        ['MAP Plain seed 0', 'MAP SAM seed 0']
        >>> results = comparison.run(Path("runs"), jobs=1)
    """

    source: DataSource
    model: nn.Module | Callable[..., nn.Module]
    posteriors: Sequence[Posterior | Method]
    flatness: Flatness = SAM()
    config: TrainingConfig = TrainingConfig()
    num_seeds: int = 5
    num_draws: int = 30
    split: str = "test"
    evaluations: EvaluationConfig = EvaluationConfig()
    references: Sequence[ReferenceFile] = ()
    data_fingerprint: Mapping[str, str] | None = None
    model_fingerprint: str | None = None
    options: FitOptions = FitOptions()

    __repr__ = format_fields

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
        object.__setattr__(self, "config", resolve_config(self.config))
        object.__setattr__(self, "model", resolve_model(self.model))
        build_methods(self.posteriors)
        if self.split not in SPLIT_NAMES:
            raise ValueError(f"split must be {', '.join(SPLIT_NAMES)}, got {self.split!r}.")
        if self.flatness == Plain():
            raise ValueError("A comparison sets a flatness against Plain: choose another one, such as SAM.")
        if self.evaluations.ood is not None and self.evaluations.ood == self.source:
            raise ValueError(
                "The out-of-distribution inputs are those of the training data, which no score can tell apart. Give "
                "another source; for a ClassSplit, one of its other classes."
            )

    def with_fingerprints(self) -> "Comparison":
        """The comparison with fingerprints of data and network as they are now, unless it has them."""
        data, model = self.data_fingerprint, self.model_fingerprint
        if data is None:
            data = compute_fingerprint(self.source.load(0))
        if model is None:
            model = self.options.fingerprint_start(self.model)
        return replace(self, data_fingerprint=data, model_fingerprint=model)

    def describe(self) -> dict[str, JsonValue]:
        """The configuration as plain data; what only exists in memory by the name of its class."""
        spec = describe_fields(self.with_fingerprints())
        return {**spec, "options": spec.get("options")}

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
            references=self.references,
            data_fingerprint=self.data_fingerprint,
            model_fingerprint=self.model_fingerprint,
            options=self.options,
        )

    def list_runs(self) -> list[ExperimentRun]:
        """All runs, the seeds outermost, so that an interrupted comparison has complete seeds."""
        comparison = self.with_fingerprints()
        return [
            comparison.make_run(method, flatness, seed)
            for seed in range(self.num_seeds)
            for method in build_methods(self.posteriors)
            for flatness in (Plain(), method.flatness or self.flatness)
        ]

    def check_compatibility(self, dataset: DataSplits | None = None) -> None:
        """Take one step with every posterior, plain and flat, on a few examples.

        Args:
            dataset: The splits of seed 0, if they are loaded already.

        Raises:
            ValueError: Model, data, a posterior, flatness and configuration do not go together, or a run has no
                reference for its data and network.
        """
        dataset = self.source.load(0) if dataset is None else dataset
        if self.references:
            check_references(self.references, self.list_runs())
        with warnings.catch_warnings():
            for run in self.list_runs()[: 2 * len(self.posteriors)]:
                dry_run(run.model, dataset, run.posterior, run.flatness, run.config, **run.options.to_arguments())
                warnings.simplefilter("ignore", NetworkWarning)  # shown once

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
        claim_folder(folder, self.describe(), EXTENDABLE_FIELDS, overwrite=overwrite)

    def run(
        self,
        folder: Path,
        *,
        jobs: int | None = None,
        show_progress: bool | None = None,
        backend: ParallelBackend = "loky",
        share_trainings: bool = True,
    ) -> ComparisonResult:
        """Execute the runs that are not in the folder yet, and write `results.json`.

        Args:
            folder: Folder of the results; with `ray` on several machines, one that all of them can write to.
            jobs: Number of processes, which are spread over the GPUs; by default one per GPU, or without GPUs one
                per core where workers save more time than they need to start.
            show_progress: Show a progress bar; by default if standard error is a terminal.
            backend: How processes are started: `loky` on this machine, `ray` on those of a cluster.
            share_trainings: Whether posteriors whose networks are trained alike share a training; see `compare`.

        Returns:
            The content of `results.json`; `failures` names the runs that failed, with the reason.

        Raises:
            ValueError: Another process is writing to the folder.
            RuntimeError: A process of this comparison was killed; finished runs are kept.
        """
        comparison = self.with_fingerprints()
        runs = comparison.list_runs()
        lock_folder(folder)
        try:
            failures = execute_runs(
                runs, folder / "runs", jobs, show_progress, backend, share_trainings=share_trainings
            )
            results = (run.load_result(folder / "runs") for run in runs)
            finished = [result for result in results if result is not None]
            notes = list_reference_problems(self.references)
            return write_results(folder, comparison.describe(), finished, failures, notes)
        finally:
            unlock_folders(folder)


def compare(
    model: nn.Module | Callable[..., nn.Module],
    data: Any,
    posteriors: Sequence[Posterior | Method] | Posterior | Method | str | None = None,
    flatness: Flatness = SAM(),
    config: TrainingConfig | None = None,
    *,
    num_seeds: int = 5,
    num_draws: int = 30,
    split: str = "test",
    evaluations: EvaluationConfig = EvaluationConfig(),
    reference: Path | str | Sequence[Path | str] = (),
    folder: str | Path | None = None,
    overwrite: bool = False,
    num_jobs: int | None = None,
    backend: ParallelBackend = "loky",
    show_progress: bool | None = None,
    share_trainings: bool = True,
    **options: Unpack[NetworkOptions],
) -> ComparisonResult:
    """Fit every posterior with plain and with flat training over seeds, and compare the pairs.

    Args:
        model: A class or function that builds the network, as for `fit`; or a network, whose weights every seed
            starts from. With several processes it must be importable, or defined in a notebook.
        data: A source, such as `Digits()`; a path; a pair `(inputs, targets)` of arrays, tensors or data frames, or a
            map-style torch dataset, which are split at random by seed, with one test split for all seeds; or splits.
            As for `fit`, inputs may be a dictionary or tuple of tensors, and a dataset may have dictionaries with an
            entry `labels`; all examples are read into memory, so texts are padded to one length.
        posteriors: The posteriors, or one; by default MC-Dropout (MAP for a network without dropout), SWAG-Diag, SWAG
            and, unless all networks would start from the same weights, an ensemble.
        flatness: Flatness of the flat runs.
        config: The training configuration; by default that of `fit`.
        num_seeds: Number of seeds; the plain and the flat run of a pair share theirs.
        num_draws: Networks averaged in a prediction.
        split: Split to evaluate on: test, or val to choose hyperparameters.
        evaluations: Additional evaluations, such as corrupted images.
        reference: Files of exact posteriors by `flatbayes.reference.sample_reference`, plain or sharpness-aware, for
            each data split. The predictions of every run are compared with theirs.
        folder: Folder of the results. Finished runs of this comparison in it are not repeated; None keeps nothing.
        overwrite: Delete the results in the folder first.
        num_jobs: Number of processes, spread over the GPUs; by default one per GPU, or without GPUs one per core
            where workers save more time than they need to start.
        backend: How processes are started: `loky` on this machine, `ray` on those of a cluster.
        show_progress: Show a progress bar; by default if standard error is a terminal.
        share_trainings: Whether posteriors whose networks are trained alike, such as MAP, SWAG of every rank, Laplace
            and the first member of an ensemble, share a training. The results are the same without, which takes
            longer and less memory: a shared training holds the snapshots of all its posteriors.
        **options: `likelihood`, `output`, `init`, `new_head`, `freeze` and `transform` of `fit`.

    Returns:
        The result, with `summary()`, `to_pandas()`, `plot()` and `report(path)`; `failures` names failed runs.

    Raises:
        ValueError: Model, data, a posterior, flatness and configuration do not go together, or the folder holds
            another comparison.
        RuntimeError: No pair of a plain and a flat run finished.

    Examples:
        >>> results = compare(
        ...     MLP, source, [MAP()], config=config, num_seeds=2, num_jobs=1
        ... )
        >>> len(results.runs), results.failures  # plain and flat, for each seed
        (4, ())
        >>> axes = results.plot("nll")
    """
    fit_options = FitOptions.from_keywords(options, compare)
    source = fit_options.apply_task(make_source(data))
    if isinstance(posteriors, Posterior | Method | str | type):
        posteriors = [posteriors]  # type: ignore[list-item]  # a name or class is resolved
    dataset, config = source.load(0), resolve_config(config, model, fit_options.init)
    if posteriors is None:
        posteriors = choose_default_posteriors(model, dataset, config, fit_options)
    comparison = Comparison(
        source=source,
        model=model,
        posteriors=posteriors,
        flatness=flatness,
        config=config,
        num_seeds=num_seeds,
        num_draws=num_draws,
        split=split,
        evaluations=evaluations,
        references=list(map(ReferenceFile.open, [reference] if isinstance(reference, Path | str) else reference)),
        data_fingerprint=compute_fingerprint(dataset),
        options=fit_options,
    ).with_fingerprints()
    comparison.check_compatibility(dataset)
    with nullcontext(folder) if folder is not None else TemporaryDirectory() as place:
        path = Path(place)
        if folder is not None:
            comparison.claim_folder(path, overwrite=overwrite)
        results = comparison.run(
            path, jobs=num_jobs, show_progress=show_progress, backend=backend, share_trainings=share_trainings
        )
    if not results.rows:
        raise RuntimeError("No pair of a plain and a flat run finished:\n" + "\n".join(results.failures))
    return results


def choose_default_posteriors(
    model: nn.Module | Callable[..., nn.Module], dataset: DataSplits, config: TrainingConfig, options: FitOptions
) -> Sequence[Posterior]:
    """The posteriors that are compared by default: MAP in place of MC-Dropout for a network without dropout."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the check of every posterior shows them
        factory, _ = prepare_runs(resolve_model(model), dataset, MAP(), Plain(), config, **options.to_arguments())
    first = DEFAULT_POSTERIORS[0] if has_dropout(factory.init_network(0)) else MAP()
    is_one_start = isinstance(model, nn.Module) or (options.init is not None and not options.new_head)
    return (first, *DEFAULT_POSTERIORS[1:-1], *([] if is_one_start else DEFAULT_POSTERIORS[-1:]))
