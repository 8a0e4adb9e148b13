"""Trainings of the study, each in a file of its own.

For every setting (images of a class, and which layers are trained), on validation images of seeds 0 and 1:

1. the learning rate of plain training, and the options of IVON, by the NLL
2. one training for all other posteriors, plain and by SAM with every radius; the radius is that of the lowest NLL,
   averaged over posteriors and the two seeds; while the largest is the best, twice as large a one is tried

and on test images of all seeds:

3. plain, and SAM with this radius: one training for these posteriors and for the first network of the ensemble
4. the same for IVON

In a setting with default options nothing is chosen but what `fit` chooses itself, on the same validation images.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flatbayes import SAM, Plain, TrainingConfig
from flatbayes.core.files import read_json, replace_nonfinite, write_json
from flatbayes.core.randomness import Stream, make_generator
from flatbayes.posteriors import IVON, MAP, SWAG, Ensemble, Laplace, MCDropout, Posterior
from flatbayes.training import FINE_TUNING, CollectionConfig, OptimizationConfig, PrecisionConfig, SWALinear
from flatbayes.training.sharing import try_fit_together
from studies.fine_tuning.evaluation import describe_cost, evaluate_all, measure_law
from studies.fine_tuning.selection import DEFAULT_RADIUS, DEFAULTS, Candidate, average_nll, select_twins
from studies.fine_tuning.summary import SELECTION_FILE
from studies.images.task import (
    CLASSES,
    CORRUPTIONS,
    NUM_CORRUPTED,
    NUM_OOD,
    NUM_TEST,
    NUM_VAL,
    Task,
    load_task,
)

RADII, NUM_SEEDS, NUM_SELECTION_SEEDS, NUM_DRAWS, BATCH_SIZE = (0.02, 0.05, 0.1, 0.2), 5, 2, 8, 16
EPOCHS = {"head": {20: 30, 50: 20, 200: 10}, "block": {20: 15, 50: 10, 200: 5}, "all": {20: 10}}
RATES, MAX_EXTENSIONS, MAX_RADIUS = (1e-3, 3e-4), 3, 0.8
SHARED: dict[str, Posterior] = {
    "MAP": MAP(),
    "MC-Dropout": MCDropout(),
    "SWAG-Diag": SWAG(rank=0, scale=1.0),
    "SWAG": SWAG(rank=10),
}
"""Posteriors of one training, all with the dropout of the pretrained network, 0.2."""
LAPLACE = {
    scale: Laplace(structure="last_layer_kron", tune="evidence", scale=scale) for scale in (1.0, 0.1, 0.01, 0.001)
}
ENSEMBLE: dict[str, Posterior] = {"Ensemble": Ensemble(size=3)}
IVON_RATES, IVON_TEMPERATURES = (0.2, 0.05), (0.1, 0.01, 1.0)
EVALUATION_SETS = ("val", "test", "ood", *CORRUPTIONS)
SECONDS = {"head": (3e-5, 2e-6, 1.0), "block": (1.5e-3, 4e-4, 2.0), "all": (1.3e-2, 3.5e-3, 5.0)}
"""Of an image in a forward and backward pass, in a prediction of one network, and of a training beside these."""
NUM_SHARPNESS_EXAMPLES, NUM_LOSS_EXAMPLES = 48, 200


@dataclass(frozen=True)
class Setting:
    """What is trained, and the number of images of a class.

    `head` is the last layer, `block` the last block, `all` all layers, `default` all layers with default options.
    """

    trained: str
    per_class: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.trained}-{self.per_class}"

    @property
    def is_default(self) -> bool:
        """Whether every option is at its default, so that nothing is chosen by the study."""
        return self.trained == "default"

    @property
    def num_epochs(self) -> int:
        """Epochs of training, the largest number in a setting with default options."""
        if self.is_default:
            return FINE_TUNING.resolve_epochs(math.ceil(self.per_class * len(CLASSES) / BATCH_SIZE)).num_epochs
        return EPOCHS[self.trained].get(self.per_class, 2)

    @property
    def level(self) -> str:
        """Which layers are trained: `head`, `block` or `all`."""
        return "all" if self.is_default else self.trained

    @property
    def has_ivon(self) -> bool:
        """Whether IVON, which needs a training of its own, is one of the methods."""
        return self.trained in ("head", "block")

    def make_config(self, optimizer: Callable[..., torch.optim.Optimizer]) -> TrainingConfig:
        """Hyperparameters of training: warmup, and a constant rate for the last 40 %, where SWAG collects."""
        return TrainingConfig(
            epochs=self.num_epochs,
            batch_size=BATCH_SIZE,
            num_validations=0,
            optimizer=optimizer,
            schedule=SWALinear(decay_start=0.4, decay_end=0.6, end_factor=0.5, warmup=0.1),
            optimization=OptimizationConfig(clip_norm=1.0),
            collection=CollectionConfig(start_fraction=0.6),
            precision=PrecisionConfig(channels_last=self.trained != "head"),
        )

    def make_adam_config(self, lr: float) -> TrainingConfig:
        """Training of all posteriors but IVON."""
        return self.make_config(partial(torch.optim.AdamW, lr=lr, weight_decay=0.01))

    def make_ivon(self, lr: float, temperature: float) -> tuple[Posterior, TrainingConfig]:
        """IVON and its training."""
        sgd = partial(torch.optim.SGD, lr=lr, weight_decay=1e-3)
        return IVON(temperature=temperature), self.make_config(sgd)


SETTINGS = (
    *(Setting(trained, size) for trained in ("default", "head", "block") for size in (20, 50, 200)),
    Setting("all", 20),
)
"""In the order of the study."""


@dataclass(frozen=True)
class Training:
    """One training of a setting: a seed and a radius, and the posteriors that it serves.

    Attributes:
        folder: Folder of the setting.
        task: The data.
        setting: The setting.
        seed: Seed of the training images, the last layer, the order of batches, and draws.
        rho: Radius of SAM; 0 is plain.
        kind: First part of the name of the file.
    """

    folder: Path
    task: Task
    setting: Setting
    seed: int
    rho: float
    kind: str

    @property
    def path(self) -> Path:
        """File of the results."""
        return self.folder / f"{self.kind}-{self.seed}-{self.rho:g}.json"

    def run(self, methods: Mapping[str, tuple[Posterior, TrainingConfig]], sets: Sequence[str]) -> Any:
        """Fit posteriors with one training, and evaluate them, unless there is a file; returns its content."""
        if self.path.is_file():
            return read_json(self.path)
        start, wall_start = time.process_time(), time.perf_counter()
        examples = self.task.draw_training(self.setting.per_class, self.seed)
        outcomes = try_fit_together(
            self.task.builder,
            examples.make_loader(BATCH_SIZE),
            list(methods.values()),
            SAM(rho=self.rho) if self.rho else Plain(),
            val=self.task.sets["val"].make_batches() if self.setting.is_default else None,
            seed=self.seed,
        )
        fitted = dict(zip(methods, outcomes, strict=True))
        seconds = time.perf_counter() - wall_start, time.process_time() - start
        result: dict[str, Any] = {
            "trained": self.setting.trained,
            "size": len(examples),
            "seed": self.seed,
            "rho": self.rho,
            "warmup": next(iter(methods.values()))[1].schedule.warmup,  # type: ignore[attr-defined]  # `SWALinear`
            "errors": {name: str(outcome.error) for name, outcome in fitted.items() if outcome.error},
            "cost": describe_cost(fitted, *seconds),
        }
        batches = {name: self.task.sets[name].make_batches() for name in sets}
        result |= evaluate_all(fitted, batches, self.seed, NUM_DRAWS, shifted=CORRUPTIONS)
        if "MAP" in fitted and (network := fitted["MAP"].fitted) is not None:
            order = torch.randperm(len(examples), generator=make_generator(Stream.STUDY))  # sorted by class
            train, few = (
                examples.select(order[:count]).make_batches() for count in (NUM_LOSS_EXAMPLES, NUM_SHARPNESS_EXAMPLES)
            )
            result["law"] = measure_law(network, train, few, len(examples), result["val"]["MAP"]["nll"])
        result["cpu_seconds"] = time.process_time() - start
        write_json(self.path, replace_nonfinite(result))
        scores = {
            name: round(metrics["nll"], 3) for name, metrics in result["test" if "test" in sets else "val"].items()
        }
        print(
            time.strftime("%H:%M:%S"),
            self.folder.name,
            self.path.stem,
            scores,
            f"{result['cpu_seconds']:.0f} s",
            flush=True,
        )
        return replace_nonfinite(result)


def run_setting(setting: Setting, folder: Path) -> None:
    """Train and evaluate what has no file yet."""
    start, task = time.process_time(), load_task(setting.level, folder / "cache")
    place = folder / setting.name
    place.mkdir(parents=True, exist_ok=True)
    make = partial(Training, place, task, setting)
    if setting.is_default:
        run_defaults(setting, make, place)
        return

    def try_methods(
        kind: str, methods: Mapping[str, tuple[Posterior, TrainingConfig]], rho: float = 0.0
    ) -> list[Any]:
        return [make(seed, rho, kind).run(methods, ["val"]) for seed in range(NUM_SELECTION_SEEDS)]

    def try_rate(lr: float) -> float:
        method = SHARED["MAP"], setting.make_adam_config(lr)
        return average_nll(try_methods(f"rate-{lr:g}", {"MAP": method}), "MAP")

    def try_ivon(lr: float, temperature: float = IVON_TEMPERATURES[0]) -> float:
        method = setting.make_ivon(lr, temperature)
        return average_nll(try_methods(f"ivon-{lr:g}-{temperature:g}", {"IVON": method}), "IVON")

    rates = try_rates(RATES, try_rate)
    lr = min(rates, key=rates.__getitem__)
    config = setting.make_adam_config(lr)
    results = try_methods(
        "scale", {f"Laplace {scale:g}": (posterior, config) for scale, posterior in LAPLACE.items()}
    )
    scales = {scale: average_nll(results, f"Laplace {scale:g}") for scale in LAPLACE}
    scale = min(scales, key=scales.__getitem__)
    methods = {name: (posterior, config) for name, posterior in (SHARED | {"Laplace": LAPLACE[scale]}).items()}
    epochs = setting.num_epochs
    trials = {(rho, epochs): try_methods("radius", methods, rho) for rho in (0.0, *RADII)}
    while (best := (choices := select_twins(trials))["flat"]["rho"]) == max(trials)[0] and best < MAX_RADIUS:
        trials[2 * best, epochs] = try_methods("radius", methods, 2 * best)
    record = {"lr": lr, "laplace_scale": scale, "rates": [*rates.items()], "laplace_scales": [*scales.items()]}
    record |= choices
    kinds = {"shared": methods | {name: (posterior, config) for name, posterior in ENSEMBLE.items()}}
    if setting.has_ivon:
        ivon_rates = try_rates(IVON_RATES, try_ivon)
        lr = min(ivon_rates, key=ivon_rates.__getitem__)
        temperatures = {temperature: try_ivon(lr, temperature) for temperature in IVON_TEMPERATURES}
        temperature = min(temperatures, key=temperatures.__getitem__)
        record |= {"ivon_lr": lr, "ivon_rates": [*ivon_rates.items()]}
        record |= {"ivon_temperature": temperature, "ivon_temperatures": [*temperatures.items()]}
        kinds["ivon"] = {"IVON": setting.make_ivon(lr, temperature)}
    write_json(place / SELECTION_FILE, replace_nonfinite(record))
    for kind, kind_methods in kinds.items():
        for seed in range(NUM_SEEDS):
            for rho in (0.0, record["flat"]["rho"]):
                make(seed, rho, f"test-{kind}").run(kind_methods, EVALUATION_SETS)
    print(f"{setting.name}: {(time.process_time() - start) / 60:.1f} CPU minutes in this process", flush=True)


def run_defaults(setting: Setting, make: Callable[[int, float, str], Training], place: Path) -> None:
    """Train and evaluate both twins with default options, a seed after the other."""
    trials: dict[Candidate, list[Any]] = {(rho, setting.num_epochs): [] for rho in (0.0, DEFAULT_RADIUS)}
    methods = {name: (posterior, FINE_TUNING) for name, posterior in DEFAULTS.items()}
    for seed in range(NUM_SEEDS):
        for (rho, _), results in trials.items():
            results.append(make(seed, rho, "test-shared").run(methods, EVALUATION_SETS))
        write_json(place / SELECTION_FILE, replace_nonfinite(select_twins(trials)))


def try_rates(rates: Sequence[float], try_rate: Callable[[float], float]) -> dict[float, float]:
    """Validation NLL by learning rate; while the lowest rate is the best, a third of it is tried."""
    nlls = {rate: try_rate(rate) for rate in rates}
    for _ in range(MAX_EXTENSIONS):
        rate = min(nlls)
        if nlls[rate] > min(nlls.values()):
            break
        nlls[rate / 3] = try_rate(rate / 3)
    return nlls


def count_trainings(setting: Setting) -> int:
    """Number of trainings that are evaluated on test images."""
    return NUM_SEEDS * 2 * (2 if setting.has_ivon else 1)


def estimate_minutes(setting: Setting) -> float:
    """CPU minutes of a setting, from the time of an image in a forward and backward pass and in a prediction."""
    step, prediction, training = SECONDS[setting.level]
    num_steps = setting.per_class * len(CLASSES) * setting.num_epochs
    num_tested = NUM_VAL + NUM_TEST + NUM_OOD + len(CORRUPTIONS) * NUM_CORRUPTED
    trials = NUM_SELECTION_SEEDS * (4 * 1 + 1 + 2 * len(RADII))  # gradients of an image: 2 with SAM
    tests = NUM_SEEDS * 3 * (1 + 2)  # three networks, plain and SAM
    num_trials = NUM_SELECTION_SEEDS * (1 + len(RADII))
    if setting.is_default:
        trials, tests, num_trials = 0, NUM_SEEDS * (1 + 2), 0
    num_predictions = num_trials * NUM_VAL + NUM_SEEDS * 2 * num_tested
    seconds = (trials + tests) * num_steps * step + num_predictions * 3 * NUM_DRAWS * prediction
    return (seconds + training * (2 * num_trials + count_trainings(setting))) / 60


def load_trainings(folder: Path) -> Iterator[dict[str, Any]]:
    """Results of the trainings that are evaluated on test images, with the kind of each."""
    for setting in SETTINGS:
        for kind in ("shared", "ivon"):
            for path in sorted((folder / setting.name).glob(f"test-{kind}-*.json")):
                result: Any = read_json(path)
                yield result | {"kind": kind}
