"""Trainings of the study, each in a file of its own.

For every setting (number of sentences, and whether all weights or adapters are trained), on validation sentences of
seeds 0 and 1, with one training for all posteriors:

1. plain with several numbers of epochs, and SAM with every radius and two numbers of epochs; each twin is the
   candidate of the lowest NLL, averaged over posteriors and the two seeds

and on test sentences of all seeds:

2. each twin with its number of epochs
3. other posteriors: those that the same training serves with the epochs of 2, variational ones with all epochs
4. with 200 sentences, both twins with all epochs

In a setting with default options nothing is chosen but what `fit` chooses itself, on the same validation sentences.

A seed is finished before the next one begins, so that an interrupted study has complete seeds.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from flatbayes import SAM, Plain, TrainingConfig
from flatbayes.core.files import read_json, replace_nonfinite, write_json
from flatbayes.flatness import Flatness
from flatbayes.posteriors import MAP, SGVB, SWAG, TFB, BLoB, Ensemble, Laplace, MCDropout, Posterior
from flatbayes.training import FINE_TUNING, CollectionConfig, OptimizationConfig, SWALinear
from flatbayes.training.recording import Recordings
from flatbayes.training.sharing import try_fit_together
from studies.fine_tuning.choices import TWINS
from studies.fine_tuning.evaluation import describe_cost, evaluate_all, measure_law
from studies.fine_tuning.selection import DEFAULT_RADIUS, DEFAULTS, Candidate, select_twins
from studies.fine_tuning.summary import SELECTION_FILE
from studies.sentences.task import NUM_OOD, NUM_TEST, NUM_VAL, Task

RADII, NUM_SEEDS, NUM_SELECTION_SEEDS, NUM_DRAWS, BATCH_SIZE = (0.02, 0.05, 0.1, 0.2), 5, 2, 6, 16
NUM_SHARPNESS_EXAMPLES, NUM_LOSS_EXAMPLES = 50, 200
MORE_SEEDS = {"default-200": 14}
"""Number of seeds by setting, where it is not `NUM_SEEDS`."""
EPOCHS = {100: 10, 200: 8}
EQUAL_LENGTH_SIZE = 200
"""Number of sentences with which the twins are compared with all epochs, too."""
EPOCH_FRACTIONS = {"plain": (0.25, 0.4, 0.5, 0.6, 0.8, 1.0), "flat": (0.6, 1.0)}
"""Of the epochs of a setting, the numbers that each twin chooses from: six candidates, and two for each radius."""
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
VARIATIONAL = ("sgvb", "blob")
"""Kinds with a training of their own, for which the number of epochs is not chosen."""
NUM_TFB_EXAMPLES = 24
"""Validation sentences that the noise of TFB is chosen on."""
GRADIENT_SECONDS = {"full": 0.4, "lora": 0.3, "default": 0.4, "default-lora": 0.3}
"""CPU seconds of a gradient of a batch with the step of the optimizer; measured on the machine of the results."""
DRAW_SECONDS, OVERHEAD_SECONDS = 0.0045, 16.0
"""CPU seconds of a prediction of a sentence by one network, and of the checks and copies of a training."""
NUM_NETWORKS = {"shared": 2 + 3 * NUM_DRAWS, "ensemble": 3} | dict.fromkeys(("tfb", "sgvb", "blob"), NUM_DRAWS)
"""Networks that are run for a prediction of all posteriors of a kind; draws of the last layer share one."""


@dataclass(frozen=True)
class Setting:
    """A number of training sentences, and what is trained.

    `full` is all weights, `lora` adapters, `default` and `default-lora` the same with default options.
    """

    size: int
    trained: str

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.trained}-{self.size}"

    @property
    def is_default(self) -> bool:
        """Whether every option is at its default, so that nothing is chosen by the study."""
        return self.trained.startswith("default")

    @property
    def has_equal_length(self) -> bool:
        """Whether both twins are compared with all epochs, too."""
        return self.size == EQUAL_LENGTH_SIZE and not self.is_default

    @property
    def num_epochs(self) -> int:
        """Largest number of epochs."""
        if self.is_default:
            return FINE_TUNING.resolve_epochs(math.ceil(self.size / BATCH_SIZE)).num_epochs
        return EPOCHS[self.size]

    @property
    def num_seeds(self) -> int:
        """Number of seeds."""
        return MORE_SEEDS.get(self.name, NUM_SEEDS)

    @property
    def posteriors(self) -> dict[str, Posterior]:
        """Posteriors of one training."""
        return DEFAULTS if self.is_default else SHARED

    @property
    def candidates(self) -> list[Candidate]:
        """Radii and numbers of epochs to choose from; with all weights the largest radius ends learning."""
        if self.is_default:
            return [(0.0, self.num_epochs), (DEFAULT_RADIUS, self.num_epochs)]
        radii = {"plain": (0.0,), "flat": RADII if self.trained == "lora" else RADII[:-1]}
        return [
            (rho, epochs)
            for twin, fractions in EPOCH_FRACTIONS.items()
            for rho in radii[twin]
            for epochs in sorted({max(1, round(fraction * self.num_epochs)) for fraction in fractions})
        ]

    def make_config(self, kind: str = "shared", epochs: int | None = None) -> TrainingConfig:
        """Hyperparameters of training: warmup, and a constant rate for the last 40 %, where SWAG collects.

        Args:
            kind: Kind of the training; the optimizer of a variational one is Adam, without weight decay.
            epochs: Number of epochs; None for that of the setting.
        """
        if self.is_default:
            return FINE_TUNING
        lr = LEARNING_RATES[self.trained]
        adamw = partial(torch.optim.AdamW, lr=lr, weight_decay=0.01, fused=True)
        adam = partial(torch.optim.Adam, lr=lr, fused=True)
        return TrainingConfig(
            epochs=epochs or self.num_epochs,
            batch_size=BATCH_SIZE,
            num_validations=0,
            optimizer=adam if kind in VARIATIONAL else adamw,
            schedule=SWALinear(decay_start=0.4, decay_end=0.6, end_factor=0.5, warmup=0.1),
            optimization=OptimizationConfig(clip_norm=1.0),
            collection=CollectionConfig(start_fraction=0.6),
        )

    @property
    def other_kinds(self) -> list[str]:
        """Kinds of trainings beside the shared ones, in their order."""
        return {"full": ["ensemble"], "lora": list(OTHERS)}.get(self.trained, [])


SETTINGS = tuple(
    Setting(*pair)
    for pair in [
        *product((200, 100, 500, 2000), ("default", "default-lora")),
        *[(200, "full"), (200, "lora"), (100, "full")],
    ]
)
"""In the order of the study: every size with default options, and those in which the study chooses."""


@dataclass(frozen=True)
class Training:
    """One training of a setting: a seed and a radius, and the posteriors that it serves.

    Attributes:
        folder: Folder of the setting.
        setting: The setting.
        seed: Seed of the training sentences, the head, the order of batches, and draws.
        rho: Radius of SAM; 0 is plain.
        kind: `shared`, or a key of `OTHERS`.
        epochs: Number of epochs; None for that of the setting.
    """

    folder: Path
    setting: Setting
    seed: int
    rho: float
    kind: str = "shared"
    epochs: int | None = None

    @property
    def label(self) -> str:
        """Seed, radius, and number of epochs if it is not that of the setting."""
        is_short = self.epochs not in (None, self.setting.num_epochs)
        return f"{self.seed}-{self.rho:g}" + (f"-{self.epochs}e" if is_short else "")

    @property
    def path(self) -> Path:
        """File of the results."""
        return self.folder / f"{self.kind}-{self.label}.json"

    @property
    def recording_path(self) -> Path:
        """File of the recorded weights of the shared training, from which other posteriors are made later."""
        return self.folder / f"{self.label}.recording"

    @property
    def flatness(self) -> Flatness:
        """Plain or SAM."""
        return SAM(rho=self.rho) if self.rho else Plain()


def count_trainings(setting: Setting, choices: Mapping[str, Any] | None = None) -> int:
    """Number of files of a setting; without choices, as if neither twin had all epochs."""
    num_chosen = setting.num_seeds * (1 + len(setting.other_kinds)) - NUM_SELECTION_SEEDS  # those of the choice exist
    num_trainings = NUM_SELECTION_SEEDS * len(setting.candidates) + len(TWINS) * num_chosen
    for twin in TWINS if setting.has_equal_length else ():
        if choices is None or choices[twin]["epochs"] != setting.num_epochs:
            num_trainings += setting.num_seeds - NUM_SELECTION_SEEDS
    return num_trainings


def estimate_minutes(setting: Setting) -> float:
    """CPU minutes of a setting, if each twin has 60 % of the epochs."""
    epoch = math.ceil(setting.size / BATCH_SIZE) * GRADIENT_SECONDS[setting.trained]
    num_tested = NUM_VAL + NUM_TEST + 2 * NUM_OOD
    trials = epoch * sum((2 if rho else 1) * epochs for rho, epochs in setting.candidates)  # SAM takes two gradients
    trials += len(setting.candidates) * (NUM_NETWORKS["shared"] * DRAW_SECONDS * NUM_VAL + OVERHEAD_SECONDS)
    own = len(VARIATIONAL) if setting.trained == "lora" else 0
    full = ("shared",) if setting.has_equal_length else ()
    tests = 3 * epoch * setting.num_epochs * (len(full) + own + 3 * 0.6)  # three members of the ensemble
    for kind in ("shared", *full, *setting.other_kinds):
        tests += 2 * (NUM_NETWORKS[kind] * DRAW_SECONDS * num_tested + OVERHEAD_SECONDS)
    return (NUM_SELECTION_SEEDS * trials + setting.num_seeds * tests) / 60


def run_setting(task: Task, setting: Setting, folder: Path) -> None:
    """Train and evaluate what has no file yet."""
    place = folder / setting.name
    make = partial(Training, place, setting)
    place.mkdir(parents=True, exist_ok=True)

    def list_twins(record: Mapping[str, Any]) -> list[Training]:
        choices = [record[twin] for twin in TWINS if twin in record]
        return [make(seed, c["rho"], epochs=c["epochs"]) for c in choices for seed in record["seeds"]]

    record: dict[str, Any] = {}
    trials: dict[Candidate, list[Any]] = {}
    for rho, epochs in setting.candidates:
        trainings = [make(seed, rho, epochs=epochs) for seed in range(NUM_SELECTION_SEEDS)]
        trials[rho, epochs] = [
            run_training(task, training, setting.posteriors, with_test=setting.is_default) for training in trainings
        ]
        record = select_twins(trials)
        keep_recordings(place, list_twins(record))
    write_json(place / SELECTION_FILE, replace_nonfinite(record))
    for seed, twin in product(range(setting.num_seeds), TWINS):
        rho, epochs = record[twin]["rho"], record[twin]["epochs"]
        run_training(task, make(seed, rho, epochs=epochs), setting.posteriors, with_test=True)
        for kind in setting.other_kinds:
            training = make(seed, rho, kind, None if kind in VARIATIONAL else epochs)
            run_training(task, training, OTHERS[kind], with_test=True)
        if setting.has_equal_length:
            run_training(task, make(seed, rho), setting.posteriors, with_test=True)
        keep_recordings(place, list_twins(record))
    keep_recordings(place, [])


def run_training(task: Task, training: Training, posteriors: dict[str, Posterior], *, with_test: bool) -> Any:
    """Fit posteriors with one training, or from its recording, and write and return what is not evaluated yet."""
    result: dict[str, Any] = read_json(training.path) if training.path.is_file() else {}
    if "test" in result or (result and not with_test):
        return result
    start, wall_start = time.process_time(), time.perf_counter()
    setting, val = training.setting, None
    recordings = (
        None if setting.is_default or training.kind in VARIATIONAL else read_recordings(training.recording_path)
    )
    examples = task.draw_training(setting.size, training.seed)
    if setting.is_default or training.kind == "tfb":
        val = task.val if setting.is_default else task.val.select(range(NUM_TFB_EXAMPLES))
    config = setting.make_config(training.kind, training.epochs)
    outcomes = try_fit_together(
        task.builders[setting.trained],
        examples.make_loader(BATCH_SIZE),
        [(posterior, config) for posterior in posteriors.values()],
        training.flatness,
        val=None if val is None else val.sort_into_batches(),
        seed=training.seed,
        recordings=recordings,
    )
    fitted = dict(zip(posteriors, outcomes, strict=True))
    if training.kind == "shared" and recordings is not None and not training.recording_path.is_file():
        torch.save(recordings, training.recording_path)
    seconds = time.perf_counter() - wall_start, time.process_time() - start
    result |= {
        "trained": setting.trained,
        "size": setting.size,
        "seed": training.seed,
        "rho": training.rho,
        "epochs": training.epochs or setting.num_epochs,
        "warmup": config.schedule.warmup,  # type: ignore[attr-defined]  # both configurations have `SWALinear`
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
    return replace_nonfinite(result)


def keep_recordings(folder: Path, trainings: Sequence[Training]) -> None:
    """Delete the recordings of other trainings in the folder of a setting."""
    for path in {*folder.glob("*.recording")} - {training.recording_path for training in trainings}:
        path.unlink()


def read_recordings(path: Path) -> Recordings:
    """Recordings of an earlier call; empty where there is no file."""
    if not path.is_file():
        return {}
    recordings: Recordings = torch.load(path, weights_only=False)  # written by this study
    return recordings


def load_trainings(folder: Path) -> Iterator[dict[str, Any]]:
    """Results of all finished trainings, with the kind of each; in a setting shared trainings come first."""
    for setting in SETTINGS:
        paths = sorted((folder / setting.name).glob("*-*-*.json"))
        for path in sorted(paths, key=lambda path: not path.name.startswith("shared")):
            result: Any = read_json(path)
            yield {"epochs": setting.num_epochs} | result | {"kind": path.stem.split("-")[0]}
