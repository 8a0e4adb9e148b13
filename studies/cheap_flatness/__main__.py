"""What flatness buys for what it costs: mechanisms of one to two gradients a step, against plain training and SAM.

For MAP and SWAG on each data set: the setting with the best validation NLL when trained plainly, then for every
mechanism the radius with the best validation NLL, of as many radii for each. Then all are trained again over seeds,
and measured on the test part: the NLL that is gained over the plain twin, with an interval of the paired differences;
that as a share of what SAM gains, with Fieller's interval of the ratio; gradients a step, and seconds. Seconds are
those of runs beside each other: for the ratios to count, `--jobs 1` on a machine that does nothing else.

    FLATBAYES_DATA=... python -m studies.cheap_flatness runs/cheap digits cifar

FOLDER/<data>/cheap.json has the numbers, and cheap.svg beside it is made from them. The same call goes on where it
was stopped.
"""

import argparse
import math
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, stdev

from flatbayes.core.environment import describe_environment
from flatbayes.core.files import read_json, write_json
from flatbayes.core.spec import short_name
from flatbayes.experiments import execute_runs, select_methods
from flatbayes.experiments.statistics import compare_pairs
from flatbayes.flatness import LESAM, MSAM, SAM, Delayed, GaussianSmoothing, LookSAM, Periodic, Plain
from studies.cheap_flatness.figure import figure
from studies.hyperparameters import cifar10, digits

STUDIES = {
    "digits": (digits, "digits, MLP", (0.05, 0.1, 0.2, 0.4, 0.8), "last_layer"),
    "cifar": (cifar10, "CIFAR-10 (500 images), ConvNet", (0.02, 0.05, 0.1), "norms"),
}
METHODS = ("MAP", "SWAG")


def mechanisms(radii, params):
    """For each name as many settings as there are radii, spaced alike, around what is usual for it."""
    makers = {
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


def study(name, folder, methods, seeds=None, choice_seeds=None, epochs=None, radii=None, jobs=None):
    """Choose, measure, and return what is in `cheap.json`."""
    module, title, all_radii, params = STUDIES[name]
    common = (
        module.COMMON
        if epochs is None
        else replace(module.COMMON, config=replace(module.COMMON.config, epochs=epochs))
    )
    candidates = {one: module.CANDIDATES[one] for one in methods}
    chosen = {}
    for mechanism, settings in mechanisms(all_radii[:radii], params).items():
        wanted = None if choice_seeds is None else range(choice_seeds)
        chosen[mechanism] = select_methods(common, candidates, settings, folder / "choice", seeds=wanted, jobs=jobs)
        trials = read_json(folder / "choice" / "selection.json")
        write_json(folder / "choice" / f"{mechanism.replace('/', ' of ')}.json", trials)
    seeds = seeds or module.COMMON.seeds
    twins = {m: replace(common, posteriors=found, seeds=seeds).tasks() for m, found in chosen.items()}
    failures = execute_runs([task for tasks in twins.values() for task in tasks], folder / "runs", jobs)
    rows = [
        row
        for posterior in methods
        for row in summary({m: [t for t in ts if t.called == posterior] for m, ts in twins.items()}, folder / "runs")
    ]
    about = {
        "data": name,
        "title": title,
        "seeds": seeds,
        "environment": describe_environment(),
        "failures": failures,
    }
    return {**about, "rows": rows}


def summary(tasks, folder):
    """One row for each mechanism of one posterior."""
    found, rows = {}, []
    for mechanism, both in tasks.items():
        runs = [(task, task.load_result(folder)) for task in both]
        plain = {t.seed: r for t, r in runs if r is not None and t.flatness == Plain()}
        flat = {t.seed: r for t, r in runs if r is not None and t.flatness != Plain()}
        found[mechanism] = {seed: (plain[seed], flat[seed]) for seed in flat if seed in plain}
    sam = found["SAM"]
    for mechanism, pairs in found.items():
        seeds = sorted(set(pairs) & set(sam))
        gains = [_nll(pairs[s][0]) - _nll(pairs[s][1]) for s in seeds]
        of_sam = [_nll(sam[s][0]) - _nll(sam[s][1]) for s in seeds]
        test = compare_pairs([0.0] * len(seeds), gains, higher_is_better=True)
        first = next(t for t in tasks[mechanism] if t.flatness != Plain())
        rows.append(
            {
                "posterior": first.posterior_name,
                "mechanism": mechanism,
                "flatness": short_name(first.flatness),
                "seeds": len(seeds),
                "plain_nll": fmean(_nll(pairs[s][0]) for s in seeds),
                "nll": fmean(_nll(pairs[s][1]) for s in seeds),
                "gain": test.difference,
                "interval": test.interval,
                "share_of_sam": fmean(gains) / fmean(of_sam) if fmean(of_sam) else None,
                "share_interval": (1.0, 1.0) if mechanism == "SAM" else fieller(gains, of_sam),
                "gradients": fmean(_cost(pairs[s], "gradients") for s in seeds),
                "time": ratio([_cost(pairs[s], "train_seconds") for s in seeds]),
                "seconds": fmean(pairs[s][1].cost.train_seconds for s in seeds),
            }
        )
    return rows


def _nll(run):
    return run.metrics["nll"]


def _cost(pair, kind):
    plain, flat = (getattr(run.cost, kind) for run in pair)
    return flat / plain


def ratio(values):
    """Mean of ratios over seeds, with the interval of Student's t."""
    test = asdict(compare_pairs([0.0] * len(values), values, higher_is_better=True))
    return {"ratio": test["difference"], "interval": test["interval"]}


def fieller(above, below, level=0.95):
    """Fieller's (1954) interval of mean(above) / mean(below) for pairs; None where it has no ends.

    It holds those theta for which a paired t-test does not tell mean(above) from theta mean(below): where

        (a - theta b)² <= t² (s_aa - 2 theta s_ab + theta² s_bb) / n.
    """
    n = len(above)
    if n < 2:
        return None
    from scipy.stats import t

    a, b = fmean(above), fmean(below)
    covariance = sum((x - a) * (y - b) for x, y in zip(above, below, strict=True)) / (n - 1)
    scale = float(t.ppf((1 + level) / 2, n - 1)) ** 2 / n
    square = b * b - scale * stdev(below) ** 2
    cross = a * b - scale * covariance
    constant = a * a - scale * stdev(above) ** 2
    root = cross * cross - square * constant
    if square <= 0 or root < 0:
        return None  # the denominator is not told from zero
    return (cross - math.sqrt(root)) / square, (cross + math.sqrt(root)) / square


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+", choices=STUDIES)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", type=int, help="of the measurement")
    parser.add_argument("--choice_seeds", type=int, help="of the choice of radii")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--radii", type=int, help="the first so many only")
    parser.add_argument("--jobs", type=int)
    options = vars(parser.parse_args())
    folder, names = options.pop("folder"), options.pop("names")
    for name in names:
        found = study(name, folder / name, **options)
        write_json(folder / name / "cheap.json", found)
        (folder / name / "cheap.svg").write_text(figure(found), encoding="utf-8")
        for row in found["rows"]:
            print(
                f"{name:7} {row['posterior']:5} {row['mechanism']:11} gain {row['gain']:+.4f} {row['interval']} "
                f"share {row['share_of_sam']} {row['share_interval']} gradients {row['gradients']:.2f} "
                f"time {row['time']['ratio']:.2f}"
            )


if __name__ == "__main__":
    main()
