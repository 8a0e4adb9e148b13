"""Time of the pieces of the fast CIFAR-10 recipe, and what they add up to.

The pieces are measured in one short `fit` of the recipe itself, on random images: the first two thirds of its steps
have one gradient, the rest two, and each of the last ones collects a snapshot.
"""

import math
import statistics
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from gpu_data import ImageArrays
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from flatbayes import FittedPosterior, Flatness, Posterior, TrainingConfig, WideResNet, fit
from flatbayes.core.spec import instantiate
from flatbayes.data import Arrays, DataSplits
from flatbayes.training import Callback

RECIPE = Path(__file__).parents[1] / "configs" / "fast-cifar10.yaml"
NUM_TRAIN, NUM_TEST = 50_000, 10_000
PIECE_STEPS, PIECE_IMAGES = 40, 4096
DRY_RUN: dict[str, Any] = {
    "batch_size": 16,
    "precision": {"mode": "32-true", "compile": False, "channels_last": True},
    "collection": {"num_norm_batches": 2},
}


@dataclass(frozen=True)
class Recipe:
    """The recipe, or a smaller one of the same structure for the CPU.

    Attributes:
        data: Options of the data source.
        model: Makes the network.
        posterior: The posterior.
        flatness: The flatness.
        config: Training hyperparameters.
        num_draws: Networks of a prediction.
        prediction: Options of a prediction.
    """

    data: dict[str, Any]
    model: "partial[WideResNet]"
    posterior: Posterior
    flatness: Flatness
    config: TrainingConfig
    num_draws: int
    prediction: dict[str, Any]

    @classmethod
    def load(cls, device: str) -> "Recipe":
        """Read the YAML file; on the CPU with a small network and batch."""
        content = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
        model = instantiate(content.pop("model"), bind=True)
        optimizer = instantiate(content.pop("optimizer"), bind=True)
        data, num_draws = content.pop("data")["init_args"], content.pop("num_draws")
        posterior, flat = instantiate(content.pop("posterior")), instantiate(content.pop("flatness"))
        config = TrainingConfig(
            **{**content, "optimizer": optimizer, "schedule": instantiate(content.pop("schedule"))}
        )
        config = config.with_options(distribution={"accelerator": device})
        prediction = {"precision": "bf16-mixed", "compiled": True, "batch_size": 1000}
        if device == "cpu":
            model, config = partial(WideResNet, depth=10, width=1), config.with_options(**DRY_RUN)
            num_draws, prediction = 2, {"batch_size": 64}
        return cls(data, model, posterior, flat, config, num_draws, prediction)

    def make_splits(self, arrays: ImageArrays, val_size: int) -> DataSplits:
        """Training, validation and test split with the augmentation of the recipe."""
        options = {**self.data, "val_size": val_size}
        return Arrays(arrays.x, arrays.y, test=(arrays.x_test, arrays.y_test), **options).load(seed=0)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch of all training images."""
        return math.ceil((NUM_TRAIN - self.data["val_size"]) / self.config.batch_size)


class StepTimer(Callback):
    """Notes the time at the end of each step, without waiting for the device."""

    def __init__(self, device: str) -> None:
        self._is_cuda = device == "cuda"
        self._marks: list[Any] = []
        self.first_step: float | None = None

    def on_step_end(self, step: int, loss: Tensor, lr: float) -> None:
        """Note it; the first step ends after all compilation."""
        if self.first_step is None:
            loss.item()
            self.first_step = time.perf_counter()
        mark = torch.cuda.Event(enable_timing=True) if self._is_cuda else time.perf_counter()
        if self._is_cuda:
            mark.record()
        self._marks.append(mark)

    def intervals(self) -> list[float]:
        """Seconds from each step to the next."""
        if self._is_cuda:
            torch.cuda.synchronize()
            return [a.elapsed_time(b) / 1e3 for a, b in zip(self._marks, self._marks[1:], strict=False)]
        return [b - a for a, b in zip(self._marks, self._marks[1:], strict=False)]


def make_random_images(num_train: int, num_test: int) -> ImageArrays:
    """Random pixels with labels, in the shapes of CIFAR-10."""
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8) for count in (num_train, num_test)]
    return ImageArrays(images[0], np.arange(num_train) % 10, images[1], np.arange(num_test) % 10)


def measure_pieces(recipe: Recipe, device: str) -> dict[str, float]:
    """Seconds of each piece, from a short fit and short predictions."""
    steps = PIECE_STEPS if device == "cuda" else 20
    batch = recipe.config.batch_size
    count = PIECE_IMAGES if device == "cuda" else 64
    data = recipe.make_splits(make_random_images(steps * batch + 50, count), 50)
    config = recipe.config.with_options(epochs=1, num_validations=0, **{"collection.snapshots_per_epoch": steps})
    timer, start = StepTimer(device), time.perf_counter()
    fitted = fit(recipe.model, data, recipe.posterior, recipe.flatness, config, callback=timer, show_progress=False)
    intervals, change = timer.intervals(), round(recipe.flatness.start * steps)
    collects = [config.is_collection_step(step, steps) for step in range(1, steps)]
    single = intervals[2 : change - 1]
    double = [t for t, collected in zip(intervals[change:], collects[change:], strict=True) if not collected]
    collecting = [t for t, collected in zip(intervals, collects, strict=True) if collected]
    compiling = sum(max(0.0, t - statistics.median(single)) for t in intervals[:2])
    compiling += max(0.0, intervals[change - 1] - statistics.median(double))
    inputs = data.test.input_tensor.to(device)
    first, later = measure_prediction(recipe, fitted, inputs)
    return {
        "startup_s": (timer.first_step or start) - start + compiling,
        "single_gradient_step_s": statistics.median(single),
        "two_gradient_step_s": statistics.median(double),
        "snapshot_s": max(0.0, statistics.median(collecting) - statistics.median(double)),
        "statistics_s": max(0.0, first - later),
        "forward_image_s": later / count,
    }


def measure_prediction(recipe: Recipe, fitted: FittedPosterior, inputs: Tensor) -> tuple[float, float]:
    """Seconds per network of a first prediction, with estimated BatchNorm statistics, and of a later one."""
    fitted.predict(inputs, 1, seed=9, **recipe.prediction)  # compiles
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        fitted.predict(inputs, 2, seed=0, vectorized=False, **recipe.prediction).entropy.sum().item()
        seconds.append((time.perf_counter() - start) / 2)
    return seconds[0], seconds[1]


def count_forward_flops(model: "partial[WideResNet]") -> float:
    """Floating-point operations of the forward pass of an image."""
    with torch.device("meta"):
        network, image = model(input_shape=(3, 32, 32), num_classes=10), torch.empty(1, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        network.eval()(image)
    return float(counter.get_total_flops())


def extrapolate(recipe: Recipe, pieces: dict[str, float], forward_flops: float) -> dict[str, float]:
    """Time of the whole recipe on all images, from the time of its pieces.

    Args:
        recipe: The recipe.
        pieces: The result of `measure_pieces`.
        forward_flops: Operations of the forward pass of an image.
    """
    config, steps = recipe.config, recipe.steps_per_epoch
    start, batch = recipe.flatness.start, config.batch_size
    epoch = steps * (start * pieces["single_gradient_step_s"] + (1 - start) * pieces["two_gradient_step_s"])
    snapshots = config.epochs * (1 - config.collection.start_fraction) * (config.collection.snapshots_per_epoch or 1)
    validation = config.num_validations * recipe.data["val_size"] * pieces["forward_image_s"]
    training = config.epochs * epoch + snapshots * pieces["snapshot_s"] + validation + pieces["startup_s"]
    measuring = recipe.num_draws * (pieces["statistics_s"] + NUM_TEST * pieces["forward_image_s"])
    return {
        "epoch_s": epoch,
        "training_s": training,
        "measuring_s": measuring,
        "training_pflop": estimate_pflop(recipe, measuring=False),
        "measuring_pflop": estimate_pflop(recipe, training=False),
        "step_tflop_s": 3 * batch * forward_flops / pieces["single_gradient_step_s"] / 1e12,
    }


def estimate_pflop(recipe: Recipe, *, training: bool = True, measuring: bool = True) -> float:
    """Operations of the recipe in 10^15: three forward passes a gradient, and those of the prediction.

    Args:
        recipe: The recipe.
        training: Count the gradients.
        measuring: Count the BatchNorm statistics of each network, and its predictions for the test images.
    """
    config, start, forward = recipe.config, recipe.flatness.start, count_forward_flops(recipe.model)
    gradients = config.epochs * recipe.steps_per_epoch * config.batch_size * (start + 2 * (1 - start))
    predictions = recipe.num_draws * (config.collection.num_norm_batches * config.batch_size + NUM_TEST)
    return (3 * gradients * training + predictions * measuring) * forward / 1e15
