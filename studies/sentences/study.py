"""Trainings of the study, each in a file of its own.

For every setting (number of sentences, and whether all weights or adapters are trained):

1. seeds 0 and 1: plain, and SAM with every radius, on validation sentences; one training for all posteriors
2. the radius with the lowest validation NLL, averaged over posteriors and the two seeds; then test sentences
3. seeds 2 to 4: plain, and SAM with this radius
4. plain with as many choices of its own: fewer epochs, chosen in the same way
5. other posteriors of adapters, and ensembles: plain, and SAM with this radius
"""

import math
import pickle
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flatbayes import SAM, Plain, TrainingConfig
from flatbayes.core.files import read_json, replace_nonfinite, write_json
from flatbayes.flatness import Flatness
from flatbayes.posteriors import MAP, SGVB, SWAG, TFB, BLoB, Ensemble, Laplace, MCDropout, Posterior
from flatbayes.training import CollectionConfig, OptimizationConfig, SWALinear
from flatbayes.training.recording import Recordings
from flatbayes.training.sharing import fit_together
from studies.fine_tuning.evaluation import describe_cost, evaluate_all, measure_law
from studies.fine_tuning.summary import EPOCHS_FILE
from studies.sentences.selection import select_value
from studies.sentences.task import NUM_OOD, NUM_TEST, NUM_VAL, Task

RADII, NUM_SEEDS, NUM_SELECTION_SEEDS, NUM_DRAWS, BATCH_SIZE = (0.02, 0.05, 0.1, 0.2), 5, 2, 6, 16
NUM_SHARPNESS_EXAMPLES, NUM_LOSS_EXAMPLES = 50, 200
EPOCHS = {100: 10, 200: 8, 500: 5, 2000: 3}
EPOCH_FRACTIONS = (0.25, 0.4, 0.6)
LEARNING_RATES = {"full": 1e-4, "lora": 1e-3}
SHARED: dict[str, Posterior] = {
    "MAP": MAP(),
    "MC-Dropout": MCDropout(),
    "SWAG-Diag": SWAG(rank=0, scale=1.0),
    "SWAG": SWAG(rank=10),
    "Laplace": Laplace(tune="evidence"),
}
"""Posteriors of one training, all with the dropout of the pretrained network, 0.1."""
OTHERS: dict[str, dict[str, Posterior]] = {
    "tfb": {"TFB": TFB()},
    "sgvb": {"SGVB": SGVB(temperature=0.1, prior_mean="initial")},
    "ensemble": {"Ensemble": Ensemble(size=3)},
    "blob": {"BLoB": BLoB(temperature=0.1)},
}
"""Posteriors that are fitted later, by kind: from a recorded training, or with a training of their own."""
NUM_TFB_EXAMPLES = 24
"""Validation sentences that the noise of TFB is chosen on."""
RADIUS_FILE = "selection.json"
GRADIENT_SECONDS = {"full": 0.4, "lora": 0.3}
"""CPU seconds of a gradient of a batch with the step of the optimizer; measured on the machine of the results."""
DRAW_SECONDS, OVERHEAD_SECONDS = 0.0045, 12.0
"""CPU seconds of a prediction of a sentence by one network, and of the checks and copies of a training."""


@dataclass(frozen=True)
class Setting:
    """A number of training sentences, and what is trained: `full` or `lora`."""

    size: int
    trained: str

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.trained}-{self.size}"

    @property
    def short_epochs(self) -> list[int]:
        """Smaller numbers of epochs that plain training may choose, as flat training may choose a radius."""
        return sorted({max(1, round(fraction * EPOCHS[self.size])) for fraction in EPOCH_FRACTIONS})

    def make_config(self, kind: str = "shared", epochs: int | None = None) -> TrainingConfig:
        """Hyperparameters of training: warmup, and a constant rate for the last 40 %, where SWAG collects.

        Args:
            kind: Kind of the training; the optimizer of a variational one is Adam, without weight decay.
            epochs: Number of epochs; None for that of the setting.
        """
        lr = LEARNING_RATES[self.trained]
        adamw = partial(torch.optim.AdamW, lr=lr, weight_decay=0.01, fused=True)
        adam = partial(torch.optim.Adam, lr=lr, fused=True)
        return TrainingConfig(
            epochs=epochs or EPOCHS[self.size],
            batch_size=BATCH_SIZE,
            num_validations=0,
            optimizer=adam if kind in ("sgvb", "blob") else adamw,
            schedule=SWALinear(decay_start=0.4, decay_end=0.6, end_factor=0.5, warmup=0.1),
            optimization=OptimizationConfig(clip_norm=1.0),
            collection=CollectionConfig(start_fraction=0.6),
        )

    @property
    def other_kinds(self) -> list[str]:
        """Kinds of trainings beside the shared ones, in their order."""
        return list(OTHERS) if self.trained == "lora" else ["ensemble"]


SETTINGS = tuple(
    Setting(*pair)
    for pair in [(200, "full"), (200, "lora"), *((n, t) for n in (100, 500, 2000) for t in ("full", "lora"))]
)
"""In the order of the study."""


@dataclass(frozen=True)
class Training:
    """One training of a setting: a seed and a radius, and the posteriors that it serves.

    Attributes:
        folder: Folder of the setting.
        setting: The setting.
        seed: Seed of the training sentences, the head, the order of batches, and draws.
        rho: Radius of SAM; 0 is plain.
        kind: `shared`, `short` for a shared training of fewer epochs, or a key of `OTHERS`.
        epochs: Epochs of a short training.
    """

    folder: Path
    setting: Setting
    seed: int
    rho: float
    kind: str = "shared"
    epochs: int | None = None

    @property
    def path(self) -> Path:
        """File of the results."""
        return self.folder / f"{self.kind}-{self.seed}-{self.rho if self.epochs is None else self.epochs:g}.json"

    @property
    def recording_path(self) -> Path:
        """File of the recorded weights of the shared training, from which other posteriors are made later."""
        if self.kind == "short":
            return self.folder / f"{self.seed}-{self.epochs}.short"
        return self.folder / f"{self.seed}-{self.rho:g}.recording"

    @property
    def flatness(self) -> Flatness:
        """Plain or SAM."""
        return SAM(rho=self.rho) if self.rho else Plain()

    def is_done(self, *, with_test: bool) -> bool:
        """Whether the file has what is asked for."""
        return self.path.is_file() and ("test" in read_json(self.path) or not with_test)


def count_trainings(setting: Setting) -> int:
    """Number of files of a setting, if the chosen radius is not 0, and not all epochs are chosen."""
    num_choices = len(RADII) - 1 + len(setting.short_epochs) - 1
    return NUM_SELECTION_SEEDS * num_choices + NUM_SEEDS * (2 * (1 + len(setting.other_kinds)) + 1)


def estimate_minutes(setting: Setting) -> float:
    """CPU minutes of a setting.

    Args:
        setting: The setting.
    """
    num_steps = EPOCHS[setting.size] * math.ceil(setting.size / BATCH_SIZE)
    plain = num_steps * GRADIENT_SECONDS[setting.trained]
    num_networks = sum(NUM_DRAWS if posterior.stochastic else 1 for posterior in SHARED.values())
    tests = num_networks * DRAW_SECONDS * (NUM_VAL + NUM_TEST + 2 * NUM_OOD) + OVERHEAD_SECONDS
    choices = NUM_SELECTION_SEEDS * (len(RADII) - 1) * (2 * plain + OVERHEAD_SECONDS)
    short = NUM_SELECTION_SEEDS * (sum(EPOCH_FRACTIONS) * plain + 2 * OVERHEAD_SECONDS)
    num_fits = 3 + (2 if setting.trained == "lora" else 0)  # the shared one, two more members, two variational ones
    return (choices + short + NUM_SEEDS * (num_fits * 3 * plain + (2 + len(setting.other_kinds)) * tests)) / 60


def run_setting(task: Task, setting: Setting, folder: Path) -> None:
    """Train and evaluate what has no file yet.

    Args:
        task: The data.
        setting: The setting.
        folder: Folder of the study.
    """
    make = partial(Training, folder / setting.name, setting)
    (folder / setting.name).mkdir(parents=True, exist_ok=True)
    for seed in range(NUM_SELECTION_SEEDS):
        for rho in (0.0, *RADII):
            run_training(task, make(seed, rho), SHARED, with_test=rho == 0)
    seeds = range(NUM_SELECTION_SEEDS)
    record = select_value("rho", {rho: [make(seed, rho).path for seed in seeds] for rho in (0.0, *RADII)})
    write_json(folder / setting.name / RADIUS_FILE, record)
    radii = sorted({0.0, record["rho"]})
    keep_recordings(folder / setting.name, radii)
    for seed in range(NUM_SEEDS):
        for rho in radii:
            run_training(task, make(seed, rho), SHARED, with_test=True)
    run_short_trainings(task, setting, folder)
    for kind in setting.other_kinds:
        for seed in range(NUM_SEEDS):
            for rho in radii:
                run_training(task, make(seed, rho, kind), OTHERS[kind], with_test=True)
    keep_recordings(folder / setting.name, [])


def run_short_trainings(task: Task, setting: Setting, folder: Path) -> None:
    """Choose the number of epochs of plain training, as the radius, and train all seeds with it.

    Args:
        task: The data.
        setting: The setting.
        folder: Folder of the study.
    """

    def make(seed: int, epochs: int) -> Training:
        base = Training(folder / setting.name, setting, seed, 0.0)
        return base if epochs == EPOCHS[setting.size] else replace(base, kind="short", epochs=epochs)

    seeds, candidates = range(NUM_SELECTION_SEEDS), [*setting.short_epochs, EPOCHS[setting.size]]
    for seed in seeds:
        for epochs in setting.short_epochs:
            run_training(task, make(seed, epochs), SHARED, with_test=False)
    record = select_value("epochs", {epochs: [make(seed, epochs).path for seed in seeds] for epochs in candidates})
    write_json(folder / setting.name / EPOCHS_FILE, record)
    for seed in range(NUM_SEEDS):
        run_training(task, make(seed, record["epochs"]), SHARED, with_test=True)
    for path in (folder / setting.name).glob("*.short"):
        path.unlink()


def run_training(task: Task, training: Training, posteriors: dict[str, Posterior], *, with_test: bool) -> None:
    """Fit posteriors with one training, or from its recording, and write their evaluation.

    Args:
        task: The data.
        training: The training.
        posteriors: The posteriors by name.
        with_test: Whether they are evaluated on test sentences.
    """
    if training.is_done(with_test=with_test):
        return
    start, wall_start = time.process_time(), time.perf_counter()
    recordings = {} if training.kind in ("sgvb", "blob") else read_recordings(training.recording_path)
    examples = task.draw_training(training.setting.size, training.seed)
    config = training.setting.make_config(training.kind, training.epochs)
    outcomes = fit_together(
        task.builders[training.setting.trained],
        examples.make_loader(BATCH_SIZE),
        [(posterior, config) for posterior in posteriors.values()],
        training.flatness,
        val=task.val.select(range(NUM_TFB_EXAMPLES)).sort_into_batches() if training.kind == "tfb" else None,
        seed=training.seed,
        recordings=recordings,
    )
    fitted = dict(zip(posteriors, outcomes, strict=True))
    if training.kind in ("shared", "short") and not training.recording_path.is_file():
        training.recording_path.write_bytes(pickle.dumps(recordings))
    seconds = time.perf_counter() - wall_start, time.process_time() - start
    result: dict[str, Any] = read_json(training.path) if training.path.is_file() else {}
    result |= {
        "trained": training.setting.trained,
        "size": training.setting.size,
        "seed": training.seed,
        "rho": training.rho,
        "epochs": config.epochs,
        "errors": {name: str(outcome.error) for name, outcome in fitted.items() if outcome.error},
    }
    if "cost" not in result:
        result["cost"] = describe_cost(fitted, *seconds)
    sets = {"test": task.test, **task.ood} if with_test else {}
    sets = ({} if "val" in result else {"val": task.val}) | sets
    batches = {name: examples.sort_into_batches() for name, examples in sets.items()}
    result |= evaluate_all(fitted, batches, training.seed, NUM_DRAWS, precision="bf16-mixed")
    if "law" not in result and "MAP" in fitted and (network := fitted["MAP"].fitted) is not None:
        train, few = (
            examples.select(range(min(len(examples), count))).sort_into_batches()
            for count in (NUM_LOSS_EXAMPLES, NUM_SHARPNESS_EXAMPLES)
        )
        result["law"] = measure_law(network, train, few, len(examples), result["val"]["MAP"]["nll"])
    result["cpu_seconds"] = result.get("cpu_seconds", 0.0) + time.process_time() - start
    write_json(training.path, replace_nonfinite(result))
    scores = {name: round(m["nll"], 3) for name, m in result["test" if with_test else "val"].items()}
    name = f"{training.path.parent.name} {training.path.stem}"
    print(time.strftime("%H:%M:%S"), name, scores, *result["errors"].values(), flush=True)


def keep_recordings(folder: Path, radii: Sequence[float]) -> None:
    """Delete the recordings of other radii.

    Args:
        folder: Folder of the setting.
        radii: Radii whose recordings are kept.
    """
    for path in folder.glob("*.recording"):
        if float(path.stem.split("-")[1]) not in radii:
            path.unlink()


def read_recordings(path: Path) -> Recordings:
    """Recordings of an earlier call; empty where there is no file."""
    if not path.is_file():
        return {}
    recordings: Recordings = pickle.loads(path.read_bytes())  # written by this study
    return recordings


def load_trainings(folder: Path) -> Iterator[dict[str, Any]]:
    """Results of all finished trainings, with the kind of each.

    Args:
        folder: Folder of the study.
    """
    for setting in SETTINGS:
        for path in sorted((folder / setting.name).glob("*-*-*.json")):
            result: Any = read_json(path)
            yield {"epochs": EPOCHS[setting.size]} | result | {"kind": path.stem.split("-")[0]}
