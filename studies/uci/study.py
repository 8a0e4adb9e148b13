"""Flat against plain on the UCI regressions, by the protocol of their 20 standard splits.

For every split on its own, and with nothing but its training part: a fifth of that is held out, the setting with the
best validation NLL is taken for the plain twin, and then the radius with the best validation NLL for it; both twins
are trained again on all of it, and measured once on the test part of the split. All are trained for about a thousand
steps. What was chosen, and from what, is in FOLDER/<name>/select-<split>/selection.json; FOLDER/<name>/results.json
is that of a comparison, written anew after every split.

    FLATBAYES_DATA=... python -m studies.uci runs/uci concrete energy wine-quality-red
"""

import argparse
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from flatbayes.core.spec import short_name, to_spec
from flatbayes.data import UCI
from flatbayes.experiments import Comparison, Method, execute_runs, select_methods, write_results
from flatbayes.flatness import SAM, Plain
from flatbayes.models import MLP
from flatbayes.posteriors import LRT, MAP, SGHMC, SGLD, SGVB, SWAG, Ensemble, Laplace, MCDropout
from flatbayes.training import CollectionConfig, Constant, Cosine, SWALinear, TrainingConfig

RADII = (0.003, 0.03)
DECAYS = (1e-4, 1e-3)
UNUSED = 0.01  # of the training part, once the choice is made
STEPS, LARGE = 1000, 5000
MODEL = partial(MLP, hidden=(50,), constant_scale=True)


def sgd(lr, decay=0.0, momentum=0.9):
    return partial(torch.optim.SGD, lr=lr, momentum=momentum, weight_decay=decay)


def trained(posterior, schedule, decay):
    return Method(
        posterior,
        config_overrides={"optimizer": sgd(0.02, decay), "schedule": schedule, "optimization.clip_norm": 5.0},
    )


def variational(kind, temperature):
    recipe = {"optimizer": partial(torch.optim.Adam, lr=0.01), "schedule": Cosine()}
    return Method(kind(temperature=temperature, initial_std=0.03), config_overrides=recipe)


def sampled(posterior, lr):
    return Method(
        posterior,
        config_overrides={"optimizer": sgd(lr, momentum=0.0), "schedule": Constant(), "optimization.clip_norm": 5.0},
    )


CANDIDATES = {
    "MAP": [trained(MAP(), Cosine(), d) for d in DECAYS],
    "MC-Dropout": [trained(MCDropout(rate=r), Cosine(), DECAYS[0]) for r in (0.01, 0.05)],
    "SWAG-Diag": [trained(SWAG(rank=0, scale=1.0), SWALinear(end_factor=0.5), d) for d in DECAYS],
    "SWAG": [trained(SWAG(), SWALinear(end_factor=0.5), d) for d in DECAYS],
    "Ensemble": [trained(Ensemble(size=3), Cosine(), d) for d in DECAYS],
    "SGVB": [variational(SGVB, t) for t in (0.1, 1.0)],
    "SGVB-LRT": [variational(LRT, t) for t in (0.1, 1.0)],
    "SGLD": [sampled(SGLD(prior_precision=1.0, temperature=t), 0.05) for t in (0.1, 1.0)],
    "SGHMC": [sampled(SGHMC(prior_precision=1.0, temperature=t), 0.005) for t in (0.1, 1.0)],
    "Laplace": [trained(Laplace(temperature=t), Cosine(), DECAYS[0]) for t in (0.3, 1.0)],
}


def recipe_for(num_data):
    """About a thousand steps, with larger batches where there are many examples."""
    batch_size = 32 if num_data < LARGE else 64
    epochs = math.ceil(STEPS / (num_data // batch_size))
    return TrainingConfig(
        epochs=epochs, batch_size=batch_size, num_validations=0, collection=CollectionConfig(start_fraction=0.5)
    )


def measure(source, folder, splits, jobs):
    data = source.load(0)
    common = Comparison(
        source=source,
        model=MODEL,
        posteriors=(MAP(),),
        config=recipe_for(len(data.train) + len(data.val)),
        num_seeds=splits,
    )
    flatnesses, tasks, failures = [SAM(rho=rho) for rho in RADII], [], []
    for split in range(splits):
        chosen = select_methods(common, CANDIDATES, flatnesses, folder / f"select-{split}", seeds=[split], jobs=jobs)
        final = replace(common, posteriors=chosen, source=replace(source, val_size=UNUSED))
        tasks += [task for task in final.list_runs() if task.seed == split]
        failures += execute_runs(tasks, folder / "runs", jobs)
        results = [run.load_result(folder / "runs") for run in tasks]
        labels = {short_name(Plain()): "Plain"}
        runs = [
            replace(result, flatness=labels.get(result.flatness, "SAM (rho chosen on each split)"))
            for result in results
            if result is not None
        ]
        summary = write_results(folder, to_spec(common)["init_args"], runs, failures).summary
    return summary


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=None)
    options = parser.parse_args()
    for name in options.names:
        for row in measure(UCI(name=name), options.folder / name, options.splits, options.jobs):
            if row.metric in ("rmse", "nll"):
                pair = row.comparison
                print(name, row.posterior, row.metric, pair.plain, pair.flat, pair.interval, pair.winner)


if __name__ == "__main__":
    main()
