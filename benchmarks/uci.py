"""Flat against plain on the UCI regressions, by the protocol of their 20 standard splits.

For every split on its own, and with nothing but its training part: a fifth of that is held out, the setting with the
best validation NLL is taken for the plain twin, and then the radius with the best validation NLL for it; both twins
are trained again on all of it, and measured once on the test part of the split. What was chosen, and from what, is
in FOLDER/<name>/select-<split>/selection.json; FOLDER/<name>/results.json is that of a comparison.

    FLATBAYES_DATA=... python benchmarks/uci.py runs/uci concrete energy wine-quality-red
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from flatbayes.comparison import Comparison, Method, execute, select, write_results
from flatbayes.core.spec import label, to_spec
from flatbayes.data import UCI
from flatbayes.flatness import SAM, Plain
from flatbayes.models import MLP
from flatbayes.posteriors import SGHMC, SGVB, SWAG, Ensemble, Laplace, Point
from flatbayes.training import Constant, Cosine, Recipe, SWALinear

RADII = (0.01, 0.05)
DECAYS = (1e-4, 1e-3)
UNUSED = 0.01  # of the training part, once the choice is made
MODEL = partial(MLP, hidden=(50,), constant_scale=True)


def sgd(lr, decay=0.0, momentum=0.9):
    return partial(torch.optim.SGD, lr=lr, momentum=momentum, weight_decay=decay)


def trained(posterior, schedule, decay):
    return Method(posterior, recipe={"optimizer": sgd(0.02, decay), "schedule": schedule, "clip_norm": 5.0})


def variational(temperature):
    recipe = {"optimizer": partial(torch.optim.Adam, lr=0.01), "schedule": Cosine()}
    return Method(SGVB(temperature=temperature, initial_std=0.03), recipe=recipe)


def sampled(posterior, lr):
    return Method(posterior, recipe={"optimizer": sgd(lr, momentum=0.0), "schedule": Constant(), "clip_norm": 5.0})


CANDIDATES = {
    "MAP": [trained(Point(), Cosine(), d) for d in DECAYS],
    "SWAG": [trained(SWAG(), SWALinear(low=0.5), d) for d in DECAYS],
    "Ensemble": [trained(Ensemble(size=3), Cosine(), d) for d in DECAYS],
    "SGVB": [variational(t) for t in (0.1, 1.0)],
    "SGHMC": [sampled(SGHMC(prior_precision=1.0, temperature=t), 0.005) for t in (0.1, 1.0)],
    "Laplace": [trained(Laplace(temperature=t), Cosine(), DECAYS[0]) for t in (0.3, 1.0)],
}


def measure(source, folder, splits=20, jobs=None):
    common = Comparison(
        source=source,
        model=MODEL,
        posteriors=(Point(),),
        recipe=Recipe(epochs=60, batch_size=32, validations=0, collect_from=0.5),
        seeds=splits,
    )
    flatnesses = [SAM(rho=rho) for rho in RADII]
    tasks = []
    for split in range(splits):
        chosen = select(common, CANDIDATES, flatnesses, folder / f"select-{split}", seeds=[split], jobs=jobs)
        final = replace(common, posteriors=chosen, source=replace(source, val_size=UNUSED))
        tasks += [task for task in final.tasks() if task.seed == split]
    failures = execute(tasks, folder / "runs", jobs)
    runs = [run for run in (task.kept(folder / "runs") for task in tasks) if run is not None]
    for run in runs:
        run["flatness"] = "Plain" if run["flatness"] == label(Plain()) else "SAM (rho chosen on each split)"
    return write_results(folder, to_spec(common)["init_args"], runs, failures)


def main(folder, *names):
    for name in names:
        results = measure(UCI(name=name), Path(folder) / name)
        for row in results["summary"]:
            if row["metric"] in ("rmse", "nll"):
                print(name, row["posterior"], row["metric"], row["plain"], row["flat"], row["interval"], row["wins"])


if __name__ == "__main__":
    main(*sys.argv[1:])
