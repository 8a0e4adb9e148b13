"""Flat against plain training on the UCI regression data sets, on their 20 standard splits.

For every split, with its training data only: a fifth is held out as validation data, the setting with the lowest
validation NLL in plain training is selected, and then the radius with the lowest validation NLL with this setting.
Both are trained again on all training data of the split and evaluated once on its test data. Every training has about
1000 steps. FOLDER/<name>/select-<split>/selection.json has all trials; FOLDER/<name>/results.json has the format of a
comparison and is rewritten after every split.

    FLATBAYES_DATA=... python -m studies.uci runs/uci concrete energy wine-quality-red
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from flatbayes.core.spec import short_name, to_spec
from flatbayes.data import UCI
from flatbayes.experiments import Comparison, Method, SummaryRow, execute_runs, select_methods, write_results
from flatbayes.flatness import SAM, Plain
from flatbayes.models import MLP
from flatbayes.posteriors import LRT, MAP, SGHMC, SGLD, SGVB, SWAG, Ensemble, Laplace, MCDropout, Posterior
from flatbayes.training import (
    CollectionConfig,
    Constant,
    Cosine,
    OptimizationConfig,
    Schedule,
    SWALinear,
    TrainingConfig,
)
from studies.hyperparameters.digits import make_sgd

RADII = (0.003, 0.03)
DECAYS = (1e-4, 1e-3)
FINAL_VAL_SIZE = 0.01
"""Fraction of the training data that the final training leaves out."""
NUM_STEPS, MIN_LARGE_DATA = 1000, 5000
MODEL = partial(MLP, hidden=(50,), constant_scale=True)


def make_sgd_method(posterior: Posterior, schedule: Schedule, weight_decay: float) -> Method:
    """A posterior trained by SGD with momentum and clipped gradients."""
    overrides = {"optimizer": make_sgd(0.02, weight_decay), "schedule": schedule, "optimization.clip_norm": 5.0}
    return Method(posterior, config_overrides=overrides)


def make_variational_method(kind: type[SGVB] | type[LRT], temperature: float) -> Method:
    """A variational posterior trained by Adam."""
    overrides = {"optimizer": partial(torch.optim.Adam, lr=0.01), "schedule": Cosine()}
    return Method(kind(temperature=temperature, initial_std=0.03), config_overrides=overrides)


def make_sampling_method(posterior: Posterior, lr: float) -> Method:
    """A sampler with a constant step size and clipped gradients."""
    overrides = {"optimizer": make_sgd(lr, momentum=0.0), "schedule": Constant(), "optimization.clip_norm": 5.0}
    return Method(posterior, config_overrides=overrides)


SWA = SWALinear(end_factor=0.5)
CANDIDATES = {
    "MAP": [make_sgd_method(MAP(), Cosine(), decay) for decay in DECAYS],
    "MC-Dropout": [make_sgd_method(MCDropout(rate=rate), Cosine(), DECAYS[0]) for rate in (0.01, 0.05)],
    "SWAG-Diag": [make_sgd_method(SWAG(rank=0, scale=1.0), SWA, decay) for decay in DECAYS],
    "SWAG": [make_sgd_method(SWAG(), SWA, decay) for decay in DECAYS],
    "Ensemble": [make_sgd_method(Ensemble(size=3), Cosine(), decay) for decay in DECAYS],
    "SGVB": [make_variational_method(SGVB, t) for t in (0.1, 1.0)],
    "SGVB-LRT": [make_variational_method(LRT, t) for t in (0.1, 1.0)],
    "SGLD": [make_sampling_method(SGLD(prior_precision=1.0, temperature=t), 0.05) for t in (0.1, 1.0)],
    "SGHMC": [make_sampling_method(SGHMC(prior_precision=1.0, temperature=t), 0.005) for t in (0.1, 1.0)],
    "Laplace": [make_sgd_method(Laplace(temperature=t), Cosine(), DECAYS[0]) for t in (0.3, 1.0)],
}


def make_config(num_data: int) -> TrainingConfig:
    """A configuration of about 1000 steps, with larger batches for larger data sets."""
    batch_size = 32 if num_data < MIN_LARGE_DATA else 64
    epochs = math.ceil(NUM_STEPS / (num_data // batch_size))
    return TrainingConfig(
        epochs=epochs,
        batch_size=batch_size,
        num_validations=0,
        optimization=OptimizationConfig(clip_norm=None, initial_noise=None),
        collection=CollectionConfig(start_fraction=0.5),
    )


def run_study(source: UCI, folder: Path, num_splits: int, num_jobs: int | None) -> Sequence[SummaryRow]:
    """Select on every split, train again, evaluate, and return the summary in `results.json`."""
    data = source.load(0)
    common = Comparison(
        source=source,
        model=MODEL,
        posteriors=(MAP(),),
        config=make_config(len(data.train) + len(data.val)),
        num_seeds=num_splits,
    )
    flatnesses, runs, failures = [SAM(rho=rho) for rho in RADII], [], []
    summary: Sequence[SummaryRow] = ()
    for split in range(num_splits):
        selection_dir = folder / f"select-{split}"
        methods = select_methods(
            common, CANDIDATES, flatnesses, selection_dir, seeds=[split], jobs=num_jobs, num_extensions=0
        )
        final = replace(common, posteriors=methods, source=replace(source, val_size=FINAL_VAL_SIZE))
        runs += [run for run in final.list_runs() if run.seed == split]
        failures += execute_runs(runs, folder / "runs", num_jobs)
        labels = {short_name(Plain()): "Plain"}
        finished = [
            replace(result, flatness=labels.get(result.flatness, "SAM (rho chosen on each split)"))
            for run in runs
            if (result := run.load_result(folder / "runs")) is not None
        ]
        summary = write_results(folder, to_spec(common)["init_args"], finished, failures).rows
    return summary


def main() -> None:
    """Run the study on the data sets named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the results")
    parser.add_argument("names", nargs="+", help="data sets")
    parser.add_argument("--num_splits", type=int, default=20)
    parser.add_argument("--num_jobs", type=int, default=None, help="parallel processes; by default one per core")
    options = parser.parse_args()
    for name in options.names:
        for row in run_study(UCI(name=name), options.folder / name, options.num_splits, options.num_jobs):
            if row.metric in ("rmse", "nll"):
                pair = row.comparison
                print(name, row.posterior, row.metric, pair.plain, pair.flat, pair.interval, pair.winner)
