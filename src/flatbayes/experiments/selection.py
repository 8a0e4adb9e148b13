"""Hyperparameter selection on validation data: first the settings of plain training, then the flatness."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Literal

from flatbayes.core.components import resolve_component
from flatbayes.core.display import format_fields
from flatbayes.core.files import JsonValue, read_json, write_json
from flatbayes.core.spec import short_name, to_spec
from flatbayes.experiments.comparison import Comparison
from flatbayes.experiments.evaluations import EvaluationConfig
from flatbayes.experiments.json_reader import ObjectReader, upgrade_selection
from flatbayes.experiments.method import Method
from flatbayes.experiments.parallel import execute_runs
from flatbayes.experiments.results import RESULTS_SCHEMA
from flatbayes.experiments.tuning import is_higher_better
from flatbayes.flatness import Flatness, Plain
from flatbayes.metrics import HIGHER_IS_BETTER

SELECTION_FILE = "selection.json"
Variant = Literal["plain", "flat"]
MAX_STEP = 10.0
"""Largest factor between a radius and the one that is tried beyond it."""
VARIANTS: tuple[Variant, ...] = ("plain", "flat")


@dataclass(frozen=True)
class SelectionTrial:
    """One hyperparameter setting, evaluated on validation data.

    Attributes:
        method: Name of the method.
        setting: Description of the setting.
        variant: Whether it was trained plain or flat.
        score: Mean of the metric over seeds; None where a run failed.
        is_best: Whether it was the best trial of its method and variant.

    Examples:
        >>> SelectionTrial("SWAG", "rank=2", "plain", score=0.31, is_best=True).variant
        'plain'
    """

    method: str
    setting: str
    variant: Variant
    score: float | None
    is_best: bool = False


@dataclass(frozen=True)
class SelectionRecord:
    """Content of `selection.json`: all trials of a hyperparameter selection.

    Attributes:
        metric: Metric on the validation split that decides.
        seeds: Seeds that scores are averaged over.
        trials: All trials in the order in which they ran.
        selected_methods: The selected methods, as plain data.

    Examples:
        >>> trial = SelectionTrial("SWAG", "rank=2", "plain", score=0.31, is_best=True)
        >>> SelectionRecord("nll", seeds=(0, 1), trials=(trial,)).save(Path())
        >>> SelectionRecord.load(Path()).trials[0].score
        0.31
    """

    metric: str
    seeds: tuple[int, ...]
    trials: tuple[SelectionTrial, ...]
    selected_methods: tuple[JsonValue, ...] = ()

    __repr__ = format_fields

    def save(self, folder: Path) -> None:
        """Write `selection.json`."""
        write_json(folder / SELECTION_FILE, {"schema": RESULTS_SCHEMA, **asdict(self)})

    def list_unpaid(self) -> list[str]:
        """The methods for which no flatness has a better score than plain training with the same setting."""
        higher_is_better, names = HIGHER_IS_BETTER.get(self.metric), dict.fromkeys(t.method for t in self.trials)
        if higher_is_better is None:
            return []
        sign = 1.0 if higher_is_better else -1.0
        best = {(t.method, t.variant): sign * t.score for t in self.trials if t.is_best and t.score is not None}
        pairs = {name: (best.get((name, "plain")), best.get((name, "flat"))) for name in names}
        return [
            name for name, (plain, flat) in pairs.items() if plain is not None and flat is not None and flat <= plain
        ]

    @classmethod
    def load(cls, folder: Path) -> "SelectionRecord | None":
        """Read `selection.json`, None where there is no such file.

        Raises:
            ValueError: The file is damaged, or not the record of a selection.
        """
        path = folder / SELECTION_FILE
        if not path.is_file():
            return None
        try:
            return cls.from_dict(read_json(path))
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged, or not the record of a selection ({error}); run "
                "flatbayes.experiments.select_methods again, or move the file away for a report without it."
            ) from error

    @classmethod
    def from_dict(cls, data: JsonValue) -> "SelectionRecord":
        """Read plain data of this version or of flatbayes 0.1.

        Raises:
            ValueError: A field is missing or has a wrong type; the message names it.
        """
        record = ObjectReader(upgrade_selection(data), "the file")
        trials = [ObjectReader(trial, place) for trial, place in record.read_list("trials", min_length=1)]
        return cls(
            metric=record.read_text("metric"),
            seeds=tuple(int(seed) for seed in record.read_numbers("seeds", min_length=1)),
            trials=tuple(
                SelectionTrial(
                    trial.read_text("method"),
                    trial.read_text("setting"),
                    trial.read_choice("variant", VARIANTS),
                    trial.read_number("score", required=True),
                    trial.read_bool("is_best"),
                )
                for trial in trials
            ),
            selected_methods=tuple(method for method, _ in record.read_list("selected_methods", required=False)),
        )


def select_methods(
    comparison: Comparison,
    candidates: Mapping[str, Sequence[Method]],
    flatnesses: Sequence[Flatness],
    folder: Path,
    *,
    seeds: Sequence[int] | None = None,
    metric: str = "nll",
    jobs: int | None = None,
    show_progress: bool | None = None,
    share_trainings: bool = True,
    num_extensions: int = 2,
) -> list[Method]:
    """For each method the candidate that is best when trained plain, and then the flatness that is best with it.

    Settings that plain and flat runs share are tuned for the plain run; only the flatness is tuned for the flat run.
    If the candidates for the flatness differ in the radius only, and the largest or smallest radius is the best,
    further ones are tried. Plain training is the radius 0: `SelectionRecord.list_unpaid` names the methods for which
    it is the best. The test split is not used. Every trial is recorded in `selection.json`.

    Args:
        comparison: Data, network, common training configuration, seeds and number of draws; the rest is not used.
        candidates: Settings to choose from, by the name of the method.
        flatnesses: Candidates for the flatness of the flat run.
        folder: Folder of the runs; the same call continues where it was stopped.
        seeds: Seeds that scores are averaged over, by default all of the comparison. With one seed, the choice is for
            one split of the data, as in the protocol of the UCI data sets.
        metric: Metric that decides, in its own direction.
        jobs: Number of processes; by default that of `execute_runs`.
        show_progress: Show a progress bar; by default if standard error is a terminal.
        share_trainings: Whether settings whose networks are trained alike, such as ranks and scales of SWAG, share a
            training; see `compare`.
        num_extensions: Largest number of radii beyond the smallest or largest candidate that are tried.

    Returns:
        One method per name, with its flatness.

    Raises:
        RuntimeError: All trials of a method failed.

    Examples:
        >>> comparison = Comparison(
        ...     source, MLP, [MAP()], config=config, num_seeds=1
        ... )
        >>> candidates = {"SWAG": [Method(SWAG(rank=2)), Method(SWAG(rank=4))]}
        >>> methods = select_methods(comparison, candidates, [SAM(rho=0.05)], Path("runs"), jobs=1)
        >>> methods[0].flatness.rho, len(SelectionRecord.load(Path("runs")).trials)
        (0.05, 3)
    """
    higher_is_better = is_higher_better(metric)
    flatnesses = [resolve_component(flatness, Flatness, "flatness") for flatness in flatnesses]
    base = replace(comparison.with_fingerprints(), split="val", evaluations=EvaluationConfig())
    seeds = tuple(range(comparison.num_seeds) if seeds is None else seeds)

    def run_variant(
        settings: Mapping[str, Sequence[tuple[Method, Flatness]]], variant: Variant
    ) -> list[SelectionTrial]:
        runs = {
            (name, index): [replace(base.make_run(*pair, seed), posterior_name=None) for seed in seeds]
            for name, pairs in settings.items()
            for index, pair in enumerate(pairs)
        }
        execute_runs(
            [run for group in runs.values() for run in group],
            folder / "runs",
            jobs,
            show_progress,
            share_trainings=share_trainings,
        )
        results = {key: [run.load_result(folder / "runs") for run in group] for key, group in runs.items()}
        scores = {
            key: [None if result is None else result.metrics[metric] for result in group]
            for key, group in results.items()
        }
        return [
            SelectionTrial(name, f"{method.setting}, {short_name(flatness)}", variant, _mean_if_complete(group))
            for (name, index), group in scores.items()
            for method, flatness in [settings[name][index]]
        ]

    plain = _mark_best(
        run_variant({name: [(m, Plain()) for m in methods] for name, methods in candidates.items()}, "plain"),
        higher_is_better,
    )
    best = {name: methods[_best_index(plain, name)] for name, methods in candidates.items()}
    tried = {name: list(flatnesses) for name in best}
    flat = run_variant({name: [(method, f) for f in flatnesses] for name, method in best.items()}, "flat")
    for _ in range(num_extensions):
        marked = _mark_best(flat, higher_is_better)
        further = {name: extend_flatnesses(tried[name], _best_index(marked, name)) for name in best}
        settings = {name: [(best[name], f)] for name, f in further.items() if f is not None}
        if not settings:
            break
        flat += run_variant(settings, "flat")
        for name, pairs in settings.items():
            tried[name] += [flatness for _, flatness in pairs]
    flat = _mark_best(flat, higher_is_better)
    selected = [
        replace(method, flatness=tried[name][_best_index(flat, name)], name=name) for name, method in best.items()
    ]
    specs = tuple(to_spec(method)["init_args"] for method in selected)
    SelectionRecord(metric, seeds, (*plain, *flat), specs).save(folder)
    return selected


def extend_flatnesses(flatnesses: Sequence[Flatness], best: int) -> Flatness | None:
    """A flatness with a radius beyond the smallest or largest one; None if the best one is neither of them.

    Two or more flatnesses differ in the radius only; `best` is the index of the best one.

    Examples:
        >>> from flatbayes.flatness import SAM
        >>> extend_flatnesses([SAM(rho=0.1), SAM(rho=0.2)], best=1).rho
        0.4
    """
    radii = [flatness.radius for flatness in flatnesses]
    numbers = sorted({float(radius) for radius in radii if isinstance(radius, int | float) and radius > 0})
    usual = [f if f.radius is None else f.with_radius(f.reference_radius) for f in flatnesses]
    if len(numbers) < max(2, len(flatnesses)) or usual.count(usual[0]) < len(usual):
        return None
    if radii[best] == numbers[0]:
        return flatnesses[best].with_radius(numbers[0] * max(numbers[0] / numbers[1], 1 / MAX_STEP))
    if radii[best] == numbers[-1]:
        return flatnesses[best].with_radius(numbers[-1] * min(numbers[-1] / numbers[-2], MAX_STEP))
    return None


def _mean_if_complete(scores: Sequence[float | None]) -> float | None:
    finite = [score for score in scores if score is not None]
    return fmean(finite) if len(finite) == len(scores) else None


def _mark_best(trials: Sequence[SelectionTrial], higher_is_better: bool) -> list[SelectionTrial]:
    """Mark the best trial of each method.

    Raises:
        RuntimeError: All trials of a method failed.
    """
    best: dict[str, float] = {}
    choose = max if higher_is_better else min
    for name in dict.fromkeys(trial.method for trial in trials):
        scores = [trial.score for trial in trials if trial.method == name and trial.score is not None]
        if not scores:
            raise RuntimeError(f"All settings of {name} failed: lower the learning rate, or rho.")
        best[name] = choose(scores)
    marked = []
    for trial in trials:
        is_best = trial.method in best and trial.score == best[trial.method]
        marked.append(replace(trial, is_best=is_best))
        if is_best:
            del best[trial.method]  # of equal trials, the first
    return marked


def _best_index(trials: Sequence[SelectionTrial], name: str) -> int:
    return [trial.is_best for trial in trials if trial.method == name].index(True)
