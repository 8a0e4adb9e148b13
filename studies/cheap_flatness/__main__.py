"""Flatness methods with one to two gradients a step, compared with plain training and SAM.

For MAP and SWAG on each data set: the setting with the lowest validation NLL in plain training, then for every
method the
radius with the lowest validation NLL, from equally many radii each. All are trained again over seeds and evaluated on
the test split. Reported are the gain in NLL over plain training with an interval of the paired differences, this gain
as a fraction of SAM's with Fieller's interval of the ratio, gradients a step, and seconds. Seconds are comparable
only
with `--num_jobs 1` on an idle machine.

    FLATBAYES_DATA=... python -m studies.cheap_flatness runs/cheap digits cifar

FOLDER/<data>/cheap.json has the numbers, from which cheap.svg is drawn. The same command resumes an interrupted
study.
"""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from flatbayes.core.files import read_json, write_json
from flatbayes.core.spec import short_name
from flatbayes.experiments import ExperimentRun, RunResult, execute_runs, select_methods
from flatbayes.experiments.run_folder import describe_environment
from flatbayes.experiments.statistics import compare_pairs
from flatbayes.flatness import LESAM, MSAM, SAM, Delayed, Flatness, GaussianSmoothing, LookSAM, Periodic, Plain
from studies.cheap_flatness.figure import draw_figure
from studies.hyperparameters import cifar10, digits

STUDIES = {
    "digits": (digits, "digits, MLP", (0.05, 0.1, 0.2, 0.4, 0.8), "last_layer"),
    "cifar": (cifar10, "CIFAR-10 (500 images), ConvNet", (0.02, 0.05, 0.1), "norms"),
}
"""Module with common settings and candidates, title, radii, and the parameters of the partial perturbation."""
POSTERIORS = ("MAP", "SWAG")
Interval = tuple[float, float]


def make_flatness_grids(radii: Sequence[float], params: Any) -> dict[str, list[Flatness]]:
    """Settings of every method by its name: as many as there are radii, around its usual value."""
    makers: dict[str, Callable[[float], Flatness]] = {
        "SAM": lambda r: SAM(rho=r),
        "MSAM": lambda r: MSAM(rho=5 * r),
        "GaussianSmoothing": lambda r: GaussianSmoothing(std=r / 25),
        "LookSAM": lambda r: LookSAM(rho=r, period=5),
        "every 5th": lambda r: Periodic(SAM(rho=r), 5),
        "every 2nd": lambda r: Periodic(SAM(rho=r), 2),
        "late": lambda r: Delayed(SAM(rho=r), 0.7),
        "1/4 batch": lambda r: SAM(rho=r, ascent_batch_fraction=0.25),
        params.replace("_", " "): lambda r: SAM(rho=3 * r, params=params),
        "LE-SAM": lambda r: LESAM(loss_budget=r / 2, rho_max=4 * r),
    }
    return {name: [make(radius) for radius in radii] for name, make in makers.items()}


def run_study(
    name: str,
    folder: Path,
    posteriors: Sequence[str],
    num_seeds: int | None = None,
    num_selection_seeds: int | None = None,
    epochs: int | None = None,
    num_radii: int | None = None,
    num_jobs: int | None = None,
) -> dict[str, Any]:
    """Select radii, train over seeds, and return the content of `cheap.json`.

    Args:
        name: A key of `STUDIES`.
        folder: Folder of trials and runs.
        posteriors: Names of posteriors.
        num_seeds: Seeds of the evaluation; None for those of the module.
        num_selection_seeds: Seeds of the selection; None for those of the module.
        epochs: Epochs of every training; None for those of the module.
        num_radii: Use only the first radii.
        num_jobs: Parallel processes; None for one per core.
    """
    module, title, all_radii, params = STUDIES[name]
    common = module.COMMON
    if epochs is not None:
        common = replace(common, config=replace(common.config, epochs=epochs))
    candidates = {posterior: module.CANDIDATES[posterior] for posterior in posteriors}
    selection_seeds = None if num_selection_seeds is None else range(num_selection_seeds)
    num_seeds = num_seeds or common.num_seeds
    runs: dict[str, list[ExperimentRun]] = {}
    for mechanism, grid in make_flatness_grids(all_radii[:num_radii], params).items():
        methods = select_methods(
            common, candidates, grid, folder / "choice", seeds=selection_seeds, jobs=num_jobs, num_extensions=0
        )
        trials = read_json(folder / "choice" / "selection.json")
        write_json(folder / "choice" / f"{mechanism.replace('/', ' of ')}.json", trials)
        runs[mechanism] = replace(common, posteriors=methods, num_seeds=num_seeds).list_runs()
    all_runs = [run for mechanism_runs in runs.values() for run in mechanism_runs]
    failures = execute_runs(all_runs, folder / "runs", num_jobs)
    rows = []
    for posterior in posteriors:
        selected = {
            mechanism: [run for run in mechanism_runs if run.posterior_name == posterior]
            for mechanism, mechanism_runs in runs.items()
        }
        rows += summarize_mechanisms(selected, folder / "runs")
    return {
        "data": name,
        "title": title,
        "seeds": num_seeds,
        "environment": describe_environment(),
        "failures": failures,
        "rows": rows,
    }


def summarize_mechanisms(runs: Mapping[str, Sequence[ExperimentRun]], folder: Path) -> list[dict[str, Any]]:
    """A row per method, for the runs of one posterior."""
    pairs = {mechanism: load_pairs(mechanism_runs, folder) for mechanism, mechanism_runs in runs.items()}
    sam_pairs, rows = pairs["SAM"], []
    for mechanism, by_seed in pairs.items():
        seeds = sorted(set(by_seed) & set(sam_pairs))
        gains = [compute_gain(by_seed[seed]) for seed in seeds]
        sam_gains = [compute_gain(sam_pairs[seed]) for seed in seeds]
        gain = compare_pairs([0.0] * len(seeds), gains, higher_is_better=True)
        time_ratios = [compute_cost_ratio(by_seed[seed], "train_seconds") for seed in seeds]
        time = compare_pairs([0.0] * len(seeds), time_ratios, higher_is_better=True)
        flat_run = next(run for run in runs[mechanism] if run.flatness != Plain())
        rows.append(
            {
                "posterior": flat_run.posterior_name,
                "mechanism": mechanism,
                "flatness": short_name(flat_run.flatness),
                "seeds": len(seeds),
                "plain_nll": fmean(get_nll(by_seed[seed][0]) for seed in seeds),
                "nll": fmean(get_nll(by_seed[seed][1]) for seed in seeds),
                "gain": gain.difference,
                "interval": gain.interval,
                "share_of_sam": fmean(gains) / fmean(sam_gains) if fmean(sam_gains) else None,
                "share_interval": (1.0, 1.0) if mechanism == "SAM" else compute_fieller_interval(gains, sam_gains),
                "gradients": fmean(compute_cost_ratio(by_seed[seed], "gradients") for seed in seeds),
                "time": {"ratio": time.difference, "interval": time.interval},
                "seconds": fmean(by_seed[seed][1].cost.train_seconds for seed in seeds),
            }
        )
    return rows


def load_pairs(runs: Sequence[ExperimentRun], folder: Path) -> dict[int, tuple[RunResult, RunResult]]:
    """Plain and flat results by seed, for seeds with both."""
    results: dict[bool, dict[int, RunResult]] = {True: {}, False: {}}
    for run in runs:
        if (result := run.load_result(folder)) is not None:
            results[run.flatness == Plain()][run.seed] = result
    return {seed: (results[True][seed], flat) for seed, flat in results[False].items() if seed in results[True]}


def get_nll(result: RunResult) -> float:
    """Test NLL of a run."""
    return float(result.metrics["nll"] or math.nan)


def compute_gain(pair: tuple[RunResult, RunResult]) -> float:
    """NLL of the plain run minus that of the flat one."""
    plain, flat = pair
    return get_nll(plain) - get_nll(flat)


def compute_cost_ratio(pair: tuple[RunResult, RunResult], name: str) -> float:
    """Cost of the flat run divided by that of the plain one."""
    plain, flat = (float(getattr(result.cost, name)) for result in pair)
    return flat / plain


def compute_fieller_interval(above: Sequence[float], below: Sequence[float]) -> Interval | None:
    """Fieller's (1954) 95 % confidence interval of mean(above) / mean(below) for pairs; None if it is unbounded.

    It contains those theta for which a paired t-test does not reject mean(above) = theta mean(below), where

        (a - theta b)² <= t² (s_aa - 2 theta s_ab + theta² s_bb) / n.
    """
    n = len(above)
    if n < 2:
        return None
    from scipy.stats import t

    a, b = fmean(above), fmean(below)
    covariance = sum((x - a) * (y - b) for x, y in zip(above, below, strict=True)) / (n - 1)
    scale = float(t.ppf(0.975, n - 1)) ** 2 / n
    square = b * b - scale * stdev(below) ** 2
    cross = a * b - scale * covariance
    constant = a * a - scale * stdev(above) ** 2
    root = cross * cross - square * constant
    if square <= 0 or root < 0:
        return None  # the denominator does not differ from zero
    return (cross - math.sqrt(root)) / square, (cross + math.sqrt(root)) / square


def main() -> None:
    """Run the study on the data sets named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the results")
    parser.add_argument("names", nargs="+", choices=STUDIES, help="data sets")
    parser.add_argument("--posteriors", nargs="+", default=POSTERIORS, choices=POSTERIORS)
    parser.add_argument("--num_seeds", type=int, help="seeds of the evaluation")
    parser.add_argument("--num_selection_seeds", type=int, help="seeds of the selection of radii")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--num_radii", type=int, help="use only the first radii")
    parser.add_argument("--num_jobs", type=int, help="parallel processes; by default one per core")
    options = vars(parser.parse_args())
    folder, names = options.pop("folder"), options.pop("names")
    for name in names:
        results = run_study(name, folder / name, **options)
        write_json(folder / name / "cheap.json", results)
        (folder / name / "cheap.svg").write_text(draw_figure(results), encoding="utf-8")
        for row in results["rows"]:
            print(
                f"{name:7} {row['posterior']:5} {row['mechanism']:11} gain {row['gain']:+.4f} {row['interval']} "
                f"share {row['share_of_sam']} {row['share_interval']} gradients {row['gradients']:.2f} "
                f"time {row['time']['ratio']:.2f}"
            )


if __name__ == "__main__":
    main()
