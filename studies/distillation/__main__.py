"""What a distilled network keeps of a posterior on digits: NLL, uncertainty, foreign inputs, and the time of a call.

The teacher is an ensemble of SWAG posteriors on 300 labelled images. One student learns from its predictions on those
images, another on all images outside the test part, without their labels; a network trained on
the labels alone (MAP) is what both replace.

    python -m studies.distillation docs/results/distill.json
"""

import sys
import time
from functools import partial
from pathlib import Path
from statistics import fmean, median, stdev

import torch
from torch import Tensor

from flatbayes import MAP, MLP, SAM, SWAG, CompiledPosterior, Cosine, Digits, Ensemble, TrainingConfig, distill, fit
from flatbayes.core.environment import describe_environment
from flatbayes.core.files import write_json
from flatbayes.metrics import auroc

SEEDS, LABELS, DRAWS = 5, 300, 30
MODEL = partial(MLP, hidden=(128, 128))
RECIPE = TrainingConfig(epochs=60)
LESSONS = TrainingConfig(epochs=120, schedule=Cosine())
FLATNESS = SAM(rho=0.1)
CALLS, EXAMPLES = 30, 64


def measured(module: CompiledPosterior, inputs: Tensor, targets: Tensor, teacher: dict[str, Tensor]) -> dict:
    """Quality on the test part, and what mutual information says of images whose pixels are in disorder."""
    answer = module(inputs)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    foreign = module(inputs.flatten(1)[:, order].reshape(inputs.shape))
    names = ("entropy", "mutual_information")
    return {
        "nll": -float(answer["mean"].double()[torch.arange(len(targets)), targets].log().mean()),
        "accuracy": float((answer["mean"].argmax(1) == targets).float().mean()),
        **{f"foreign_auroc_{name}": auroc(*foreign_and_own(foreign[name], answer[name])) for name in names},
        **{f"correlation_{name}": correlation(answer[name], teacher[name]) for name in names},
        "mean_mutual_information": float(answer["mutual_information"].mean()),
    }


def foreign_and_own(foreign: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """All scores, and which of them are foreign."""
    return torch.cat([foreign, own]), torch.arange(len(foreign) + len(own)) < len(foreign)


def correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's rank correlation; zero if one of them is constant."""
    ranks = torch.stack([values.argsort().argsort().double() for values in (one, other)])
    return 0.0 if float(one.std()) == 0 else float(torch.corrcoef(ranks)[0, 1])


def of_seed(seed: int) -> dict[str, dict[str, float]]:
    """All four, for one seed."""
    data, pool = Digits(train_size=LABELS).load(seed), Digits(train_size=None, val_size=1).load(seed).train.inputs
    inputs, targets = data.test.inputs, data.test.targets
    posterior = fit(MODEL, data, Ensemble(SWAG(), size=5), FLATNESS, RECIPE, seed=seed)
    single = fit(MODEL, data, MAP(), FLATNESS, RECIPE, seed=seed).compile(1)
    learn = partial(distill, posterior, MODEL, config=LESSONS, flatness=FLATNESS, num_draws=DRAWS, seed=seed)
    modules = {
        "MAP": single,
        "teacher": posterior.compile(DRAWS),
        "student, training images": learn(inputs=data.train.inputs),
        "student, all unlabelled": learn(inputs=pool),
    }
    answer = modules["teacher"](inputs)
    found = {name: measured(module, inputs, targets, answer) for name, module in modules.items()}
    for name, seconds in timed(modules, inputs[:EXAMPLES]).items():
        found[name]["call_over_map"] = seconds
    return found


@torch.no_grad()
def timed(modules: dict[str, CompiledPosterior], inputs: Tensor) -> dict[str, float]:
    """Median time of a call, as a multiple of the first one's; calls alternate."""
    seconds: dict[str, list[float]] = {name: [] for name in modules}
    for _ in range(CALLS):
        for name, module in modules.items():
            start = time.perf_counter()
            module(inputs)
            seconds[name].append(time.perf_counter() - start)
    first = median(next(iter(seconds.values())))
    return {name: median(some) / first for name, some in seconds.items()}


def main(path: Path) -> None:
    """Means and standard deviations over seeds."""
    torch.set_num_threads(1)
    runs = [of_seed(seed) for seed in range(SEEDS)]
    rows = {
        name: {key: [fmean(r[name][key] for r in runs), stdev(r[name][key] for r in runs)] for key in runs[0][name]}
        for name in runs[0]
    }
    better = {name: [run["MAP"]["nll"] - run[name]["nll"] for run in runs] for name in rows if name != "MAP"}
    for name, row in rows.items():
        print(name, {key: f"{mean:.4f} ± {sd:.4f}" for key, (mean, sd) in row.items()}, flush=True)
    write_json(
        path, {"environment": describe_environment(), "seeds": SEEDS, "rows": rows, "nll_gain_over_map": better}
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
