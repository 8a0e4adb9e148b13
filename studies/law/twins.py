"""Pairs of plain and flat training from the results of other studies, with what the plain training shows.

Every reader returns the twins of one kind of file in `docs/results`; a file that does not exist has none. The gain is
that on test examples, at a radius above 0 that was chosen on validation examples, unless `radius` says otherwise.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from flatbayes.core.files import read_json
from flatbayes.experiments.statistics import compare_pairs

FEATURES = ("train_loss", "gap", "rise", "sharpness", "weights_per_example")
FINE_TUNING = {"sentences": "sst2", "images": "cifar10"}
"""Studies of pretrained networks, which rules are tested on and not fitted to, with their data sets."""


@dataclass(frozen=True)
class Twin:
    """A plain and a flat training of one method, averaged over seeds.

    Attributes:
        study: The study that it is from.
        data: The data set, which is left out as a whole.
        setting: Network and training, or size of the data; one word or two.
        method: The posterior.
        radius: `chosen` on validation examples, or `fixed`, 0.05.
        num_seeds: Seeds or splits.
        plain_nll: Test NLL of plain training.
        flat_nll: Test NLL of flat training.
        interval: 95 % interval of the gain, `plain_nll - flat_nll`; None for fewer than three seeds.
        train_loss: Training loss at the end of plain training, per example.
        gap: Validation NLL minus training loss at the end of plain training.
        rise: Validation NLL at the end minus the lowest one on the way; None where it was not evaluated on the way.
        sharpness: Rise of the training loss after one ascent step of length 0.05 (0.1 for the study `radius`); None
            where it was not measured.
        weights_per_example: Number of trained weights divided by that of training examples.
    """

    study: str
    data: str
    setting: str
    method: str
    radius: Literal["chosen", "fixed"]
    num_seeds: int
    plain_nll: float
    flat_nll: float
    interval: tuple[float, float] | None
    train_loss: float
    gap: float
    rise: float | None
    sharpness: float | None
    weights_per_example: float | None

    @property
    def gain(self) -> float:
        """How much lower the test NLL of flat training is."""
        return self.plain_nll - self.flat_nll

    @property
    def outcome(self) -> Literal["flat", "plain", "tie"]:
        """The winner, by the interval of the gain; without one by the sign of one seed, and a tie of several."""
        low, high = self.interval or ((self.gain, self.gain) if self.num_seeds == 1 else (-math.inf, math.inf))
        return "flat" if low > 0 else "plain" if high < 0 else "tie"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "gain": self.gain, "outcome": self.outcome}


def summarize_pairs(plain: Sequence[float], flat: Sequence[float]) -> dict[str, Any]:
    """Means of the test NLLs by seed and the interval of the gain; pairs that are not finite are left out."""
    pairs = [(a, b) for a, b in zip(plain, flat, strict=True) if math.isfinite(a + b)]
    first, second = zip(*pairs, strict=True)
    comparison = compare_pairs(second, first, higher_is_better=False)
    return {
        "num_seeds": len(pairs),
        "plain_nll": fmean(first),
        "flat_nll": fmean(second),
        "interval": comparison.interval,
    }


def read_all(folder: Path, features: Mapping[str, Mapping[str, float]]) -> list[Twin]:
    """The twins of all studies in `docs/results`; the features are those of `measure` for studies without any."""
    twins = [twin for reader in (read_radius, read_defaults, read_interpolation) for twin in reader(folder)]
    return [*twins, *read_fine_tuning(folder, features), *read_comparisons(folder, features)]


def read_file(path: Path) -> Any:
    """Content of a JSON file, None where there is no file."""
    return read_json(path) if path.is_file() else None


def read_radius(folder: Path) -> Iterable[Twin]:
    """MAP on the sets of the benchmark of the defaults, one seed, without early stopping.

    The radius is chosen from all that were tried, without 0. Training and radii are those of `studies/radius`.
    """
    forecast, late = (read_file(folder / name) or {} for name in ("radius-forecast.json", "radius-late.json"))
    for data, record in forecast.items():
        if "error" in record:
            continue
        finished = [radius for radius, val in record["val"].items() if val is not None]
        nlls = {r: (record["val"][r], test) for r, test in zip(finished, record["test"], strict=True)}
        nlls = {radius: pair for radius, pair in late.get(data, nlls).items() if pair[0] is not None}
        best = min((radius for radius in nlls if float(radius)), key=lambda radius: nlls[radius][0])
        val = record["val"]["0"]
        yield Twin(
            study="radius",
            data=data,
            setting="MLP",
            method="MAP",
            radius="chosen",
            num_seeds=1,
            plain_nll=nlls["0"][1],
            flat_nll=nlls[best][1],
            interval=None,
            train_loss=record["train_loss"],
            gap=val - record["train_loss"],
            rise=val - record["lowest_val_nll"],
            sharpness=record["sharpness"],
            weights_per_example=record["num_weights"] / record["train_size"],
        )


def read_defaults(folder: Path) -> Iterable[Twin]:
    """Posteriors with every option at its default and early stopping, the radius not chosen but 0.05; one seed."""
    forecast = read_file(folder / "radius-forecast.json") or {}
    for job in (read_file(folder / "defaults-after.json") or {"jobs": []})["jobs"]:
        for method in sorted({name.rsplit(" ", 1)[0] for name in job["records"] if name.endswith(" fixed")}):
            plain, flat = (job["records"].get(f"{method} {variant}", {}) for variant in ("plain", "fixed"))
            history, val = plain.get("history"), plain.get("val", {}).get("nll")
            if history is None or val is None or "nll" not in flat.get("metrics", {}):
                continue
            num_weights = forecast.get(job["task"], {}).get("num_weights")
            yield Twin(
                study="defaults",
                data=job["task"],
                setting="MLP, early stopping",
                method=method,
                radius="fixed",
                num_seeds=1,
                plain_nll=plain["metrics"]["nll"],
                flat_nll=flat["metrics"]["nll"],
                interval=None,
                train_loss=history["last_loss"],
                gap=val - history["last_loss"],
                rise=history["val_nll"] - history["lowest_val_nll"],
                sharpness=None,
                weights_per_example=num_weights / job["train"] if num_weights else None,
            )


def read_interpolation(folder: Path) -> Iterable[Twin]:
    """Ten methods on three networks from scratch, over seeds."""
    results = read_file(folder / "interpolation.json") or {"settings": {}}
    for name, setting in results["settings"].items():
        for record in setting["law"]:
            yield make_twin("interpolation", name.split("-")[0], name, record)


def list_chosen(settings: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Settings of fine-tuning for which the study chose a radius, not those with default options."""
    return [setting for setting in settings if not setting["trained"].startswith("default")]


def read_fine_tuning(folder: Path, features: Mapping[str, Mapping[str, float]]) -> Iterable[Twin]:
    """Pretrained networks on sentences and on images, over seeds, at the radius that the study chose.

    Twins have the number of epochs of the setting; those with a chosen number are left out.
    """
    for study, data in FINE_TUNING.items():
        results = read_file(folder / f"{study}.json") or {"settings": [], "trainings": []}
        for setting in list_chosen(results["settings"]):
            radius = setting["selection"] and setting["selection"]["flat"]["rho"]
            trainings = [
                training
                for training in results["trainings"]
                if training["size"] == setting["size"]
                and training["trained"] == setting["trained"]
                and training.get("epochs", setting["epochs"]) == setting["epochs"]
            ]
            if radius:
                for record in pair_trainings(trainings, radius):
                    measured = features.get(f"{study}-{setting['name']}", {})
                    yield make_twin(study, data, setting["name"], {**record, **measured})


def pair_trainings(trainings: Sequence[Mapping[str, Any]], radius: float) -> list[dict[str, Any]]:
    """Plain and flat test NLLs by seed of each method of a setting, and the mean features of plain training."""
    nlls: dict[str, dict[float, dict[int, float]]] = {}
    features: dict[str, list[float]] = {}
    for training in trainings:
        for method, nll in training.get("test_nll", {}).items():
            value = math.nan if nll is None else nll
            nlls.setdefault(method, {}).setdefault(training["rho"], {})[training["seed"]] = value
        if training["rho"] == 0 and "gap" in training:
            for name in FEATURES:
                if training.get(name) is not None:
                    features.setdefault(name, []).append(training[name])
    means = {name: fmean(values) for name, values in features.items()}
    records = []
    for method, by_radius in nlls.items():
        plain, flat = by_radius.get(0.0, {}), by_radius.get(radius, {})
        seeds = sorted(set(plain) & set(flat))
        if seeds and "gap" in means:
            pairs = {"plain_nll": [plain[seed] for seed in seeds], "flat_nll": [flat[seed] for seed in seeds]}
            records.append({"method": method, **pairs, **means})
    return records


def make_twin(study: str, data: str, setting: str, record: Mapping[str, Any]) -> Twin:
    """A twin from a record with its features and the NLLs by seed."""
    features: dict[str, Any] = {name: record.get(name) for name in FEATURES}
    pairs = summarize_pairs(record["plain_nll"], record["flat_nll"])
    return Twin(study, data, setting, record["method"], "chosen", **pairs, **features)


def read_comparisons(folder: Path, features: Mapping[str, Mapping[str, float]]) -> Iterable[Twin]:
    """Ten methods on the five UCI sets and on 500 images of CIFAR-10; the features are those of plain MAP."""
    for path in [*sorted(folder.glob("uci-*.json")), folder / "cifar10.json"]:
        results = read_file(path)
        if not isinstance(results, dict) or path.stem not in features:
            continue
        nlls: dict[str, dict[bool, dict[int, float]]] = {}
        for run in results["runs"]:
            is_flat = run["flatness"] != "Plain"
            nll = run["metrics"]["nll"]
            nlls.setdefault(run["posterior"], {}).setdefault(is_flat, {})[run["seed"]] = (
                math.nan if nll is None else nll
            )
        for method, variants in nlls.items():
            seeds = sorted(set(variants[False]) & set(variants[True]))
            record = {
                "method": method,
                "plain_nll": [variants[False][seed] for seed in seeds],
                "flat_nll": [variants[True][seed] for seed in seeds],
                **features[path.stem],
            }
            is_uci = path.stem.startswith("uci-")
            study, setting = ("uci", "MLP of 50") if is_uci else ("cifar10-small", "ConvNet(8)")
            yield make_twin(study, path.stem.removeprefix("uci-"), setting, record)
