"""Number of training batches that BatchNorm statistics of a draw need, and the cost of a full pass per draw.

    FLATBAYES_DATA=... python -m studies.norm_batches docs/results/statistics-batches.json \
        docs/img/statistics-batches.svg

SWAG with SAM on a few thousand images of CIFAR-10. For each seed the same draws predict the same test images, with
statistics from k batches of 64 images, and from all batches. The change of a metric with k is compared with its noise
over seeds. Times are those of one draw, its statistics and its predictions; passes over 50,000 and 10,000 images are
scaled from a few batches.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatbayes.core.buffers import norm_layers, reestimate_norm_statistics, swap_buffers
from flatbayes.core.files import write_json, write_text
from flatbayes.data import CIFAR10, DataSplits
from flatbayes.flatness import SAM
from flatbayes.metrics import classification_metrics
from flatbayes.models import ConvNet
from flatbayes.plotting import theme
from flatbayes.posteriors import SWAG
from flatbayes.prediction import FittedPosterior
from flatbayes.reporting import svg
from flatbayes.training import CollectionConfig, TrainingConfig, fit

NUM_SEEDS, NUM_DRAWS, TRAIN_SIZE, TEST_SIZE, BATCH_SIZE = 4, 10, 3000, 2000, 64
BATCHES = (1, 2, 5, 10, 20, "all")
METRICS = ("accuracy", "nll", "ece")
PAPER = {"train": 50_000, "test": 10_000, "draws": 30, "batch_size": 128}


def main(out: Path, figure_path: Path) -> None:
    """Write curves and times, and draw the figure."""
    data = CIFAR10(train_size=TRAIN_SIZE, val_size=100).load(seed=0)
    config = TrainingConfig(
        epochs=10,
        num_validations=0,
        batch_size=BATCH_SIZE,
        collection=CollectionConfig(num_norm_batches=TRAIN_SIZE // BATCH_SIZE),
    )
    runs = []
    for seed in range(NUM_SEEDS):
        fitted = fit(partial(ConvNet, width=8), data, SWAG(), SAM(), config, seed=seed, show_progress=False)
        runs.append(measure_curve(fitted, data))
        print(seed, {k: {m: round(v, 4) for m, v in metrics.items()} for k, metrics in runs[-1].items()}, flush=True)
    results = {
        "curve": summarize_curves(runs),
        "times": measure_times(fitted, data),
        "seeds": NUM_SEEDS,
        "draws": NUM_DRAWS,
        "runs": runs,
    }
    write_json(out, results)
    write_text(figure_path, draw_curves(results["curve"]))
    print(json.dumps({key: results[key] for key in ("curve", "times")}, indent=2))


def measure_curve(fitted: FittedPosterior, data: DataSplits) -> dict[str, dict[str, float]]:
    """Test metrics of the same draws for each number of batches."""
    batches, inputs, targets = fitted.statistics_inputs, data.test.inputs[:TEST_SIZE], data.test.targets[:TEST_SIZE]
    curve = {}
    for k in BATCHES:
        norm_batches = batches if k == "all" else batches[:k]
        reestimated = replace(fitted, statistics_inputs=norm_batches, norm_statistics={})
        log_probs = reestimated.predict(inputs, NUM_DRAWS).log_probs
        metrics = classification_metrics(log_probs, targets)
        curve[str(k)] = {name: metrics[name] for name in METRICS}
    return curve


def summarize_curves(runs: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """By metric: noise over seeds, and by k the mean and the largest change from the full pass."""
    summary: dict[str, dict[str, Any]] = {}
    for name in METRICS:
        full = [run["all"][name] for run in runs]
        summary[name] = {"seed_noise": statistics.stdev(full)}
        for k in map(str, BATCHES):
            values = [run[k][name] for run in runs]
            changes = [abs(value - other) for value, other in zip(values, full, strict=True)]
            summary[name][k] = {
                "mean": statistics.mean(values),
                "mean_move": statistics.mean(changes),
                "largest_move": max(changes),
            }
    return summary


def run_full_pass(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """The procedure of the paper's code: the network in training mode, statistics averaged over examples."""
    norms, num_seen = norm_layers(network), 0
    momenta = [norm.momentum for norm in norms]
    network.train()
    for norm in norms:
        norm.reset_running_stats()
    with torch.no_grad():
        for batch in batches:
            num_seen += len(batch)
            for norm in norms:
                norm.momentum = len(batch) / num_seen
            network(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def measure_times(fitted: FittedPosterior, data: DataSplits) -> dict[str, float]:
    """Seconds of 30 draws by the paper's procedure and by ours, from medians of interleaved measurements."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    train = fitted.preprocess(data.train.inputs[:1024]).split(PAPER["batch_size"])
    test = data.test.inputs[:1024]
    norm_batches = fitted.statistics_inputs[: TrainingConfig().collection.num_norm_batches]
    sample_id = fitted.sample_ids(1)[0]
    seconds: dict[str, list[float]] = {"full": [], "ours": [], "test": [], "draw": []}

    def time_call(name: str, run: Callable[[], object]) -> None:
        start = clock()
        run()
        seconds[name].append(clock() - start)

    with fitted.sampled_network(sample_id):
        pass
    for _ in range(5):
        with fitted.sampled_network(sample_id) as network:
            buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
            time_call("full", lambda network=network: run_full_pass(network, train))
            time_call(
                "ours",
                lambda network=network: reestimate_norm_statistics(network, map(fitted.preprocess, norm_batches)),
            )
            with swap_buffers(network, buffers), torch.no_grad():
                batches = [fitted.preprocess(batch) for batch in test.split(PAPER["batch_size"])]
                time_call("test", lambda network=network, batches=batches: [network(batch) for batch in batches])
        time_call("draw", lambda: fitted.predict(test[:1], 1, vectorized=False))
    full, ours, test_time, draw = (statistics.median(seconds[name]) for name in ("full", "ours", "test", "draw"))
    train_pass, test_pass = full * PAPER["train"] / 1024, test_time * PAPER["test"] / 1024
    paper, first_call = (PAPER["draws"] * (draw + cost + test_pass) for cost in (train_pass, ours))
    cached = PAPER["draws"] * (draw + test_pass)
    return {
        "paper_seconds": paper,
        "ours_first_call_seconds": first_call,
        "ours_cached_seconds": cached,
        "ratio_first_call": paper / first_call,
        "ratio_cached": paper / cached,
        "ratio_of_statistics_alone": train_pass / ours,
        "ratio_with_twenty_test_sets": 20 * paper / (first_call + 19 * cached),
        "limit_of_first_call": (train_pass + test_pass) / test_pass,
    }


def draw_curves(curves: dict[str, dict[str, Any]]) -> str:
    """A panel per metric: change from the full pass by k, and noise over seeds as a line; as an SVG file."""
    ks = [str(k) for k in BATCHES if k != "all"]
    with svg.new_figure(900, 300) as figure:
        figure.set_layout_engine("constrained")
        for axes, name in zip(figure.subplots(1, len(METRICS)), METRICS, strict=True):
            axes.plot(ks, [curves[name][k]["mean_move"] for k in ks], "o-", label="mean over seeds")
            axes.plot(ks, [curves[name][k]["largest_move"] for k in ks], "o:", label="largest")
            axes.axhline(curves[name]["seed_noise"], color=theme.TIE, label="sd over seeds")
            axes.set(title=name, xlabel="batches", ylabel="change from all batches", ylim=(0, None))
        axes.legend(frameon=False, fontsize=9)
        return svg.to_svg_file(figure, "batches", "Change of metrics from all batches by the number of batches")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
