"""Trainings of the study, each in a file of its own.

For every setting (number of sentences, and whether all weights or adapters are trained):

1. seeds 0 and 1: plain, and SAM with every radius, on validation sentences; one training for all posteriors
2. the radius with the lowest validation NLL, averaged over posteriors and the two seeds; then test sentences
3. seeds 2 to 4: plain, and SAM with this radius
4. variational adapters, and ensembles: plain, and SAM with this radius
"""

import math
import pickle
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from flatbayes import SAM, Plain, TrainingConfig
from flatbayes.core.files import read_json, replace_nonfinite, write_json
from flatbayes.diagnostics import LossSurface
from flatbayes.diagnostics.sharpness import one_step_gap
from flatbayes.flatness import Flatness
from flatbayes.metrics import aurc, auroc, classification_metrics, cross_fitted_nll, ensemble_nlls
from flatbayes.posteriors import MAP, SWAG, Ensemble, Laplace, MCDropout, Posterior
from flatbayes.prediction import FittedPosterior
from flatbayes.training import CollectionConfig, OptimizationConfig, SWALinear
from flatbayes.training.recording import Recordings
from flatbayes.training.sharing import FitOutcome, fit_together
from studies.sentences.task import Batch, Examples, Task

RADII, NUM_SEEDS, NUM_SELECTION_SEEDS, NUM_DRAWS, BATCH_SIZE = (0.02, 0.05, 0.1, 0.2), 5, 2, 6, 16
EPOCHS = {100: 10, 200: 8, 500: 5, 2000: 3}
LEARNING_RATES = {"full": 1e-4, "lora": 1e-3}
SHARED: dict[str, Posterior] = {
    "MAP": MAP(),
    "MC-Dropout": MCDropout(),
    "SWAG-Diag": SWAG(rank=0, scale=1.0),
    "SWAG": SWAG(rank=10),
    "Laplace": Laplace(tune="evidence"),
}
"""Posteriors of one training, all with the dropout of the pretrained network, 0.1."""
ENSEMBLE: dict[str, Posterior] = {"Ensemble": Ensemble(size=3)}
SHARPNESS_RHO, NUM_SHARPNESS_EXAMPLES, NUM_LOSS_EXAMPLES = 0.05, 50, 200


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
    def config(self) -> TrainingConfig:
        """Hyperparameters of training: AdamW, warmup, and a constant rate for the last 40 %, where SWAG collects."""
        lr = LEARNING_RATES[self.trained]
        return TrainingConfig(
            epochs=EPOCHS.get(self.size, 2),
            batch_size=BATCH_SIZE,
            num_validations=0,
            optimizer=partial(torch.optim.AdamW, lr=lr, weight_decay=0.01),
            schedule=SWALinear(decay_start=0.4, decay_end=0.6, end_factor=0.5, warmup=0.1),
            optimization=OptimizationConfig(clip_norm=1.0),
            collection=CollectionConfig(start_fraction=0.6),
        )


SETTINGS = tuple(
    Setting(*pair) for pair in [(200, "full"), (200, "lora"), *((n, t) for n in (100, 500, 2000) for t in ("full", "lora"))]
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
        kind: `shared`, `ensemble` or `variational`.
    """

    folder: Path
    setting: Setting
    seed: int
    rho: float
    kind: str = "shared"

    @property
    def path(self) -> Path:
        """File of the results."""
        return self.folder / f"{self.kind}-{self.seed}-{self.rho:g}.json"

    @property
    def recording_path(self) -> Path:
        """File of the recorded weights of the shared training, from which other posteriors are made later."""
        return self.folder / f"{self.seed}-{self.rho:g}.recording"

    @property
    def flatness(self) -> Flatness:
        """Plain or SAM."""
        return SAM(rho=self.rho) if self.rho else Plain()

    def is_done(self, *, with_test: bool) -> bool:
        """Whether the file has what is asked for."""
        return self.path.is_file() and ("test" in read_json(self.path) or not with_test)  # type: ignore[operator]


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
    record = select_radius(folder / setting.name)
    write_json(folder / setting.name / "selection.json", record)
    radii = sorted({0.0, record["rho"]})
    keep_recordings(folder / setting.name, radii)
    for seed in range(NUM_SEEDS):
        for rho in radii:
            run_training(task, make(seed, rho), SHARED, with_test=True)
    for seed in range(NUM_SEEDS):
        for rho in radii:
            run_training(task, make(seed, rho, "ensemble"), ENSEMBLE, with_test=True)
            make(seed, rho).recording_path.unlink(missing_ok=True)


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
    recordings = read_recordings(training.recording_path)
    examples, config = task.draw_training(training.setting.size, training.seed), training.setting.config
    outcomes = fit_together(
        task.builders[training.setting.trained],
        examples.make_loader(BATCH_SIZE),
        [(posterior, config) for posterior in posteriors.values()],
        training.flatness,
        seed=training.seed,
        recordings=recordings,
    )
    fitted = dict(zip(posteriors, outcomes, strict=True))
    if training.kind == "shared" and not training.recording_path.is_file():
        training.recording_path.write_bytes(pickle.dumps(recordings))
    seconds = time.perf_counter() - wall_start, time.process_time() - start
    result: dict[str, Any] = read_json(training.path) if training.path.is_file() else {}  # type: ignore[assignment]
    result |= {
        "trained": training.setting.trained,
        "size": training.setting.size,
        "seed": training.seed,
        "rho": training.rho,
        "errors": {name: str(outcome.error) for name, outcome in fitted.items() if outcome.error},
    }
    if "cost" not in result:
        result["cost"] = describe_cost(fitted, *seconds)
    sets = {"test": task.test, **task.ood} if with_test else {}
    result |= evaluate_all(fitted, ({} if "val" in result else {"val": task.val}) | sets, training.seed)
    if "law" not in result and "MAP" in fitted and (network := fitted["MAP"].fitted) is not None:
        result["law"] = measure_law(network, examples, result["val"]["MAP"]["nll"])
    result["cpu_seconds"] = result.get("cpu_seconds", 0.0) + time.process_time() - start
    write_json(training.path, replace_nonfinite(result))
    scores = {name: round(m["nll"], 3) for name, m in result["test" if with_test else "val"].items()}
    print(time.strftime("%H:%M:%S"), training.path.parent.name, training.path.stem, scores, flush=True)


def describe_cost(fitted: dict[str, FitOutcome], wall: float, cpu: float) -> dict[str, float]:
    """Seconds of the fits together, and of the same fits one by one: steps, snapshots and last passes of each.

    Args:
        fitted: The posteriors by name.
        wall: Wall-clock seconds of the call that fitted all.
        cpu: CPU seconds of this call.
    """
    costs = [outcome.fitted.info["cost"] for outcome in fitted.values() if outcome.fitted]
    return {
        "cpu_seconds": cpu,
        "seconds": wall,
        "seconds_one_by_one": sum(cost["train_seconds"] for cost in costs),
        "gradients": costs[0]["gradients"] if costs else math.nan,
    }


def evaluate_all(
    fitted: dict[str, FitOutcome], sets: dict[str, Examples], seed: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Metrics on labelled sentences by set and posterior; a posterior that failed has an infinite NLL.

    Args:
        fitted: The posteriors by name.
        sets: `val` or `test`, or both, and other sentences, which are compared with those of `test`.
        seed: Seed of draws.
    """
    batches = {name: examples.sort_into_batches() for name, examples in sets.items()}
    results: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in sets if name in ("val", "test")}
    for name, outcome in fitted.items():
        try:
            if outcome.fitted is None:
                raise RuntimeError(str(outcome.error))
            metrics = evaluate_one(outcome.fitted, batches, seed)
        except RuntimeError as error:  # training failed, or a prediction is not finite
            metrics = {key: {"nll": math.inf, "error": str(error)} for key in results}
        for key, values in metrics.items():
            results[key][name] = values
    return results


def evaluate_one(fitted: FittedPosterior, sets: dict[str, list[Batch]], seed: int) -> dict[str, dict[str, Any]]:
    """Metrics on labelled sentences, and detection of other sentences by the entropy of the prediction.

    All sets are predicted in one call, since the draws of large networks are not kept for the next one.

    Args:
        fitted: The posterior.
        sets: Batches by name of the set.
        seed: Seed of draws.
    """
    inputs = [inputs for batches in sets.values() for inputs, _ in batches]
    is_ensemble = isinstance(fitted.posterior, Ensemble)
    together: Any = fitted.predict(inputs, NUM_DRAWS, seed=seed, precision="bf16-mixed", keep_members=is_ensemble)
    labels = {name: torch.cat([targets for _, targets in batches]) for name, batches in sets.items()}
    rows = torch.arange(sum(map(len, labels.values()))).split([len(targets) for targets in labels.values()])
    predictives = {name: together.select(part) for name, part in zip(sets, rows, strict=True)}
    results: dict[str, dict[str, Any]] = {}
    for name in [name for name in sets if name in ("val", "test")]:
        log_probs, targets = predictives[name].log_probs, labels[name]
        results[name] = classification_metrics(log_probs, targets) | {
            "aurc": aurc(log_probs.max(-1).values.double(), (log_probs.argmax(-1) != targets).double()),
            "nll_calibrated": cross_fitted_nll(log_probs, targets),
        }
        if is_ensemble:
            results[name]["ensemble_nlls"] = ensemble_nlls(predictives[name].member_probs, targets)
    for name in [name for name in sets if name not in results]:
        entropies = predictives["test"].entropy, predictives[name].entropy
        is_other = torch.arange(sum(map(len, entropies))) >= len(entropies[0])
        results["test"][f"auroc_{name}"] = auroc(torch.cat(entropies), is_other)
    return results


def measure_law(fitted: FittedPosterior, examples: Examples, val_nll: float) -> dict[str, float]:
    """What a training shows of itself: loss, generalization gap, sharpness, weights per example.

    Args:
        fitted: The MAP network.
        examples: Its training sentences.
        val_nll: Its NLL on validation sentences.
    """
    model, loss_fn = fitted.states[0].model, fitted.likelihood.loss
    train = examples.select(range(min(len(examples), NUM_LOSS_EXAMPLES)))
    loss = LossSurface(model, loss_fn, train.sort_into_batches()).loss()
    few = examples.select(range(min(len(examples), NUM_SHARPNESS_EXAMPLES)))
    surface = LossSurface(model, loss_fn, few.sort_into_batches())
    num_weights = sum(param.numel() for param in surface.params)
    return {
        "train_loss": loss,
        "gap": val_nll - loss,
        "sharpness": one_step_gap(surface, SHARPNESS_RHO),
        "weights_per_example": num_weights / len(examples),
    }


def select_radius(folder: Path) -> dict[str, Any]:
    """The radius, 0 included, with the lowest validation NLL averaged over posteriors and seeds; and the scores.

    Args:
        folder: Folder of the setting.
    """
    scores: dict[float, dict[str, float]] = {}
    for rho in (0.0, *RADII):
        results: list[Any] = [read_json(folder / f"shared-{seed}-{rho:g}.json") for seed in range(NUM_SELECTION_SEEDS)]
        scores[rho] = {
            name: fmean(math.inf if (nll := result["val"][name]["nll"]) is None else nll for result in results)
            for name in results[0]["val"]
        }
    means = {rho: fmean(by_name.values()) for rho, by_name in scores.items()}
    best_by_method = {name: min(scores, key=lambda rho: scores[rho][name]) for name in scores[0.0]}
    record = {
        "rho": min(means, key=means.__getitem__),
        "seeds": list(range(NUM_SELECTION_SEEDS)),
        "val_nll": [[rho, means[rho], scores[rho]] for rho in scores],
        "best_by_method": best_by_method,
    }
    replaced: dict[str, Any] = replace_nonfinite(record)
    return replaced


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
    recordings: Recordings = pickle.loads(path.read_bytes())  # noqa: S301  # written by this study
    return recordings


def load_trainings(folder: Path) -> Iterator[dict[str, Any]]:
    """Results of all finished trainings, with the kind of each.

    Args:
        folder: Folder of the study.
    """
    for setting in SETTINGS:
        for path in sorted((folder / setting.name).glob("*-*-*.json")):
            yield read_json(path) | {"kind": path.stem.split("-")[0]}  # type: ignore[operator]
