"""How many training batches the BatchNorm statistics of a draw need, and what a full pass for every draw costs.

    FLATBAYES_DATA=... python -m studies.norm_batches docs/results/statistics-batches.json \
        docs/img/statistics-batches.svg

SWAG x SAM on a few thousand images of CIFAR-10. For each seed the same draws predict the same test images, with
statistics from k batches of 64 images, and from all batches that there are. What matters is how far a metric moves
with k beside how far it moves with the seed. The times are those of one draw, its statistics and its predictions; the
passes over 50,000 and 10,000 images are scaled from a few batches.
"""

import json
import statistics
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

from flatbayes.core.buffers import norm_layers, reestimate_norm_statistics, swap_buffers
from flatbayes.core.files import write_json
from flatbayes.data import CIFAR10
from flatbayes.flatness import SAM
from flatbayes.metrics import classification_metrics
from flatbayes.models import ConvNet
from flatbayes.posteriors import SWAG
from flatbayes.training import CollectionConfig, TrainingConfig, fit

SEEDS, DRAWS, TRAIN, TEST, SIZE = 4, 10, 3000, 2000, 64
BATCHES = (1, 2, 5, 10, 20, "all")
METRICS = ("accuracy", "nll", "ece")
PAPER = {"train": 50_000, "test": 10_000, "draws": 30, "batch_size": 128}


def main(out: Path, picture: Path) -> None:
    """The curve, the times, and a figure of both."""
    data = CIFAR10(train_size=TRAIN, val_size=100).load(seed=0)
    recipe = TrainingConfig(
        epochs=10, num_validations=0, batch_size=SIZE, collection=CollectionConfig(num_norm_batches=TRAIN // SIZE)
    )
    runs = []
    for seed in range(SEEDS):
        fitted = fit(partial(ConvNet, width=8), data, SWAG(), SAM(), recipe, seed=seed, show_progress=False)
        runs.append(curve(fitted, data))
        print(seed, {k: {m: round(v, 4) for m, v in found.items()} for k, found in runs[-1].items()}, flush=True)
    found = {"curve": summary(runs), "times": times(fitted, data), "seeds": SEEDS, "draws": DRAWS, "runs": runs}
    write_json(out, found)
    figure(found["curve"]).savefig(picture)
    print(json.dumps({key: found[key] for key in ("curve", "times")}, indent=2))


def curve(fitted, data) -> dict[str, dict[str, float]]:
    """Metrics of the same draws for each number of batches."""
    batches, inputs, targets = fitted.statistics_inputs, data.test.inputs[:TEST], data.test.targets[:TEST]
    found = {}
    for k in BATCHES:
        kept = batches if k == "all" else batches[:k]
        again = replace(fitted, statistics_inputs=kept, norm_statistics={})
        log_probs = again.predict(inputs, DRAWS).log_probs
        found[str(k)] = {name: classification_metrics(log_probs, targets)[name] for name in METRICS}
    return found


def summary(runs) -> dict[str, dict[str, dict[str, float]]]:
    """By metric: its noise over the seeds, and by k its mean and its largest move away from the full pass."""
    found = {}
    for name in METRICS:
        full = [run["all"][name] for run in runs]
        found[name] = {"seed_noise": statistics.stdev(full)}
        for k in map(str, BATCHES):
            values = [run[k][name] for run in runs]
            moves = [abs(value - other) for value, other in zip(values, full, strict=True)]
            found[name][k] = {
                "mean": statistics.mean(values),
                "mean_move": statistics.mean(moves),
                "largest_move": max(moves),
            }
    return found


def full_pass(network: nn.Module, batches) -> None:
    """The procedure of the paper's code: all of the network in training mode, statistics an average over examples."""
    norms, seen = norm_layers(network), 0
    momenta = [norm.momentum for norm in norms]
    network.train()
    for norm in norms:
        norm.reset_running_stats()
    with torch.no_grad():
        for batch in batches:
            seen += len(batch)
            for norm in norms:
                norm.momentum = len(batch) / seen
            network(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def times(fitted, data) -> dict[str, float]:
    """Seconds of 30 draws, the paper's way and ours, from medians of interleaved measurements of a few batches."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    train = fitted.prepared(data.train.inputs[:1024]).split(PAPER["batch_size"])
    test = data.test.inputs[:1024]
    kept = fitted.statistics_inputs[: TrainingConfig().statistics_batches]
    key, parts = fitted.draw_keys(1)[0], {"full": [], "ours": [], "test": [], "draw": []}

    def timed(name, run):
        begin = clock()
        run()
        parts[name].append(clock() - begin)

    with fitted.drawn(key):
        pass
    for _ in range(5):
        with fitted.drawn(key) as network:
            own = {name: buffer.clone() for name, buffer in network.named_buffers()}
            timed("full", lambda network=network: full_pass(network, train))
            timed("ours", lambda network=network: reestimate_norm_statistics(network, map(fitted.prepared, kept)))
            with swap_buffers(network, own):
                timed("test", lambda: fitted._outputs(key, test.split(PAPER["batch_size"])))
        timed("draw", lambda: fitted.predict(test[:1], 1, batched=False))
    full, ours, test_time, draw = (statistics.median(parts[name]) for name in ("full", "ours", "test", "draw"))
    train_pass, test_pass = full * PAPER["train"] / 1024, test_time * PAPER["test"] / 1024
    paper, first = (PAPER["draws"] * (draw + cost + test_pass) for cost in (train_pass, ours))
    again = PAPER["draws"] * (draw + test_pass)
    return {
        "paper_seconds": paper,
        "ours_first_call_seconds": first,
        "ours_cached_seconds": again,
        "ratio_first_call": paper / first,
        "ratio_cached": paper / again,
        "ratio_of_statistics_alone": train_pass / ours,
        "ratio_with_twenty_test_sets": 20 * paper / (first + 19 * again),
        "limit_of_first_call": (train_pass + test_pass) / test_pass,
    }


def figure(curves) -> Figure:
    """A panel a metric: k against its move away from the full pass, and the noise over seeds as a line."""
    drawn = Figure(figsize=(9, 3), layout="constrained")
    ks = [str(k) for k in BATCHES if k != "all"]
    for axes, name in zip(drawn.subplots(1, len(METRICS)), METRICS, strict=True):
        axes.plot(ks, [curves[name][k]["mean_move"] for k in ks], "o-", label="mean over seeds")
        axes.plot(ks, [curves[name][k]["largest_move"] for k in ks], "o:", label="largest")
        axes.axhline(curves[name]["seed_noise"], color="grey", label="noise over seeds (sd)")
        axes.set(title=f"{name}: move from all batches", xlabel="batches", ylim=(0, None))
    axes.legend(frameon=False)
    return drawn


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
