"""The fast CIFAR-10 recipe: time of its pieces, extrapolation, and a training as long as the time allows."""

import math
import time
from collections.abc import Iterator

from gpu_data import ImageArrays, read_arrays
from gpu_recipe_cost import (
    NUM_TRAIN,
    Recipe,
    count_forward_flops,
    estimate_pflop,
    extrapolate,
    make_random_images,
    measure_pieces,
)
from gpu_report import Row
from gpu_runner import Context

from flatbayes import evaluate, fit

SAFETY = 0.9
"""Fraction of the remaining time that a training is planned for."""


def run_recipe(context: Context) -> Iterator[Row]:
    """Measure the pieces, extrapolate to the whole recipe, and train as many epochs as fit into the time."""
    recipe = Recipe.load(context.device)
    network = f"WideResNet-{recipe.model.keywords['depth']}-{recipe.model.keywords['width']}"
    flops = count_forward_flops(recipe.model)
    yield {"network": network, "forward_gflop": flops / 1e9, "data": "images" if context.data else "random images"}
    pieces = measure_pieces(recipe, context.device)
    yield {"pieces": pieces}
    estimate = extrapolate(recipe, pieces, flops)
    summary = (
        f"{network}: training {estimate['training_s'] / 60:.1f} min, measuring {estimate['measuring_s'] / 60:.1f} min"
    )
    yield {"extrapolation": estimate, "summary": f"extrapolated, {summary}"}
    if context.is_cpu:  # the recipe itself, at the rate of the small network
        pflop = estimate_pflop(Recipe.load("cuda"))
        hours = pflop * 1e3 / estimate["step_tflop_s"] / 3600
        summary += f"; the recipe itself: {pflop:.0f} PFLOP, {hours:.0f} h"
        yield {"recipe_pflop": pflop, "recipe_hours": hours}
    if context.data is None and not context.is_cpu:
        yield {"training": {"skipped": "no images: give --data, see benchmarks/gpu_data.py"}}
        return
    arrays = make_random_images(320, 64) if context.data is None else read_arrays(context.data)
    startup = pieces["startup_s"] / 2  # compiled code is cached
    available = SAFETY * context.remaining() - startup - estimate["measuring_s"]
    epochs = min(recipe.config.epochs, int(available / estimate["epoch_s"]))
    if context.is_cpu:  # a dry run
        arrays, epochs = ImageArrays(arrays.x[:320], arrays.y[:320], arrays.x_test[:64], arrays.y_test[:64]), 2
    if epochs < 2:
        yield {"training": {"skipped": f"an epoch takes {estimate['epoch_s']:.0f} s, and {available:.0f} s are left"}}
        return
    training = train_and_evaluate(recipe, arrays, epochs)
    yield {
        "training": training,
        "summary": f"{network}, {epochs} epochs: {format_metrics(training['test'])}; {summary}",
    }


def train_and_evaluate(recipe: Recipe, arrays: ImageArrays, epochs: int) -> Row:
    """Train over a number of epochs, with as many snapshots as the whole recipe has, and measure the result."""
    val_size = recipe.data["val_size"] if len(arrays.y) >= NUM_TRAIN else len(arrays.y) // 10
    data = recipe.make_splits(arrays, val_size)
    steps = math.ceil(len(data.train) / recipe.config.batch_size)
    collection = recipe.config.collection
    snapshots = math.ceil((collection.snapshots_per_epoch or 1) * recipe.config.epochs / epochs)
    options = {"epochs": epochs, "collection.snapshots_per_epoch": min(steps, snapshots)}
    config = recipe.config.with_options(**options)
    start = time.perf_counter()
    fitted = fit(recipe.model, data, recipe.posterior, recipe.flatness, config, show_progress=False)
    trained = time.perf_counter()
    results: Row = {"epochs": epochs, "epochs_of_recipe": recipe.config.epochs, "train_s": trained - start}
    for name, split in (("validation", data.val), ("test", data.test)):
        evaluation = evaluate(fitted, split.input_tensor, split.targets, recipe.num_draws, **recipe.prediction)
        results[name] = {key: evaluation.metrics[key] for key in ("accuracy", "nll", "ece")}
    return {**results, "measure_s": time.perf_counter() - trained, "draws": recipe.num_draws}


def format_metrics(metrics: dict[str, float]) -> str:
    """Accuracy in per cent, NLL and ECE."""
    return f"{100 * metrics['accuracy']:.2f} %, NLL {metrics['nll']:.3f}, ECE {metrics['ece']:.4f}"
