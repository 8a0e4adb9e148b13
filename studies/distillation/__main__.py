"""Distillation of a posterior on digits: NLL, uncertainty, out-of-distribution detection, and time of a call.

The teacher is an ensemble of SWAG posteriors on 300 labelled images. One student learns from its predictions on these
images, another from those on all images outside the test split, without labels. The baseline is a MAP network trained
on the labels.

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
from flatbayes.core.files import write_json
from flatbayes.experiments.run_folder import describe_environment
from flatbayes.metrics import auroc

NUM_SEEDS, NUM_LABELS, NUM_DRAWS = 5, 300, 30
MODEL = partial(MLP, hidden=(128, 128))
TEACHER_CONFIG = TrainingConfig(epochs=60)
STUDENT_CONFIG = TrainingConfig(epochs=120, schedule=Cosine())
FLATNESS = SAM(rho=0.1)
NUM_CALLS, NUM_EXAMPLES = 30, 64


def evaluate_module(
    module: CompiledPosterior, inputs: Tensor, targets: Tensor, teacher: dict[str, Tensor]
) -> dict[str, float]:
    """Test metrics, and detection of images with permuted pixels by entropy and mutual information."""
    outputs = module(inputs)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    ood_outputs = module(inputs.flatten(1)[:, order].reshape(inputs.shape))
    names = ("entropy", "mutual_information")
    return {
        "nll": -float(outputs["mean"].double()[torch.arange(len(targets)), targets].log().mean()),
        "accuracy": float((outputs["mean"].argmax(1) == targets).float().mean()),
        **{f"foreign_auroc_{name}": auroc(*label_scores(ood_outputs[name], outputs[name])) for name in names},
        **{f"correlation_{name}": rank_correlation(outputs[name], teacher[name]) for name in names},
        "mean_mutual_information": float(outputs["mutual_information"].mean()),
    }


def label_scores(ood_scores: Tensor, test_scores: Tensor) -> tuple[Tensor, Tensor]:
    """All scores, and a mask of those of out-of-distribution images."""
    scores = torch.cat([ood_scores, test_scores])
    return scores, torch.arange(len(scores)) < len(ood_scores)


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation; 0 if the first argument is constant."""
    ranks = torch.stack([values.argsort().argsort().double() for values in (first, second)])
    return 0.0 if float(first.std()) == 0 else float(torch.corrcoef(ranks)[0, 1])


def run_seed(seed: int) -> dict[str, dict[str, float]]:
    """Metrics of MAP network, teacher and students for one seed."""
    data, pool = (
        Digits(train_size=NUM_LABELS).load(seed),
        Digits(train_size=None, val_size=1).load(seed).train.input_tensor,
    )
    inputs, targets = data.test.input_tensor, data.test.targets
    posterior = fit(MODEL, data, Ensemble(SWAG(), size=5), FLATNESS, TEACHER_CONFIG, seed=seed)
    single = fit(MODEL, data, MAP(), FLATNESS, TEACHER_CONFIG, seed=seed).compile(1)
    train_student = partial(
        distill, posterior, MODEL, config=STUDENT_CONFIG, flatness=FLATNESS, num_draws=NUM_DRAWS, seed=seed
    )
    modules = {
        "MAP": single,
        "teacher": posterior.compile(NUM_DRAWS),
        "student, training images": train_student(inputs=data.train.input_tensor),
        "student, all unlabelled": train_student(inputs=pool),
    }
    teacher_outputs = modules["teacher"](inputs)
    results = {name: evaluate_module(module, inputs, targets, teacher_outputs) for name, module in modules.items()}
    for name, ratio in time_calls(modules, inputs[:NUM_EXAMPLES]).items():
        results[name]["call_over_map"] = ratio
    return results


@torch.no_grad()
def time_calls(modules: dict[str, CompiledPosterior], inputs: Tensor) -> dict[str, float]:
    """Median time of a call, as a multiple of the first module's; calls alternate."""
    seconds: dict[str, list[float]] = {name: [] for name in modules}
    for _ in range(NUM_CALLS):
        for name, module in modules.items():
            start = time.perf_counter()
            module(inputs)
            seconds[name].append(time.perf_counter() - start)
    first = median(next(iter(seconds.values())))
    return {name: median(times) / first for name, times in seconds.items()}


def main(path: Path) -> None:
    """Write means and standard deviations over seeds."""
    torch.set_num_threads(1)
    runs = [run_seed(seed) for seed in range(NUM_SEEDS)]
    rows = {
        name: {
            key: [fmean(run[name][key] for run in runs), stdev(run[name][key] for run in runs)]
            for key in runs[0][name]
        }
        for name in runs[0]
    }
    nll_gains = {name: [run["MAP"]["nll"] - run[name]["nll"] for run in runs] for name in rows if name != "MAP"}
    for name, row in rows.items():
        print(name, {key: f"{mean:.4f} ± {sd:.4f}" for key, (mean, sd) in row.items()}, flush=True)
    write_json(
        path,
        {"environment": describe_environment(), "seeds": NUM_SEEDS, "rows": rows, "nll_gain_over_map": nll_gains},
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
