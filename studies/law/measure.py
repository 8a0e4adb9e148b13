"""What plain MAP training shows where a study did not write it.

The UCI sets and 500 images of CIFAR-10: all features. The settings of fine-tuning: the validation NLL on the way,
for which plain MAP is trained again with an evaluation after every epoch; it takes their packages of pretrained
weights.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from flatbayes.core.files import read_json
from flatbayes.data import UCI, DataSource
from flatbayes.diagnostics import LossSurface
from flatbayes.diagnostics.sharpness import one_step_gap
from flatbayes.experiments import Method
from flatbayes.flatness import Plain
from flatbayes.posteriors import MAP
from flatbayes.training import Callback, TrainingConfig, fit
from flatbayes.training.callbacks.callback import Record
from studies.hyperparameters import cifar10
from studies.law.twins import list_chosen
from studies.uci import study as uci

UCI_NAMES = ("concrete", "energy", "kin8nm", "power-plant", "wine-quality-red")
SHARPNESS_RHO, NUM_SEEDS, VAL_SIZE = 0.05, 3, 0.2
Features = dict[str, float]
Task = tuple[DataSource, Callable[..., torch.nn.Module], Method, TrainingConfig]


class RecordList(Callback):
    """The records of all epochs."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def on_epoch_end(self, record: Record) -> None:
        """Keep the record."""
        self.records.append(record)


def list_tasks() -> Iterator[tuple[str, Task]]:
    """Data, network, method and configuration by the name of the file of results."""
    for name in UCI_NAMES:
        source = UCI(name=name, val_size=VAL_SIZE)
        config = uci.make_config(len(source.load(0).train))
        yield f"uci-{name}", (source, uci.MODEL, uci.CANDIDATES["MAP"][0], config)
    common = cifar10.COMMON
    yield "cifar10", (common.source, common.model, cifar10.CANDIDATES["MAP"][1], common.config)


def measure_all(
    measured: dict[str, Features], results: Path, cache: Path, save: Callable[[dict[str, Any]], None]
) -> dict[str, Features]:
    """Measure what is missing.

    Args:
        measured: What earlier calls have measured, by name.
        results: `docs/results`, with the settings of fine-tuning.
        cache: Folder of the images and features of `studies/images`.
        save: Called after each data set.
    """
    torch.set_num_threads(1)
    trainings: dict[str, Callable[[int], Features]] = {}
    for name, (source, model, method, config) in list_tasks():
        config = method.apply_overrides(config).with_options(num_validations=10)
        trainings[name] = partial(measure_plain, source, model, config)
    for study in ("sentences", "images"):
        path = results / f"{study}.json"
        for setting in list_chosen(read_json(path)["settings"] if path.is_file() else ()):
            trainings[f"{study}-{setting['name']}"] = partial(measure_fine_tuning, study, setting, cache)
    for name, measure in trainings.items():
        if name in measured:
            continue
        try:
            seeds = [measure(seed) for seed in range(NUM_SEEDS)]
        except ImportError as error:
            print(f"{name} is left out: {error}", flush=True)
            continue
        measured[name] = {key: fmean(seed[key] for seed in seeds) for key in seeds[0]}
        save(measured)
        print(name, measured[name], flush=True)
    return measured


def measure_fine_tuning(study: str, setting: Mapping[str, Any], cache: Path, seed: int) -> Features:
    """The rise of the validation NLL in one plain MAP training of a pretrained network, as the study trains it."""
    from studies.images import study as images
    from studies.images.task import load_task as load_images
    from studies.sentences import study as sentences
    from studies.sentences.task import load_task as load_sentences

    if study == "sentences":
        kind, words = sentences.Setting(setting["size"], setting["trained"]), load_sentences()
        builder, config, size = words.builders[kind.trained], kind.make_config(), sentences.BATCH_SIZE
        train = words.draw_training(kind.size, seed).make_loader(size)
        val = words.val.sort_into_batches()
    else:
        trained, per_class = setting["name"].split("-")
        level, pictures = images.Setting(trained, int(per_class)), load_images(trained, cache)
        builder, config = pictures.builder, level.make_adam_config(setting["selection"]["lr"])
        train = pictures.draw_training(level.per_class, seed).make_loader(images.BATCH_SIZE)
        val = pictures.sets["val"].make_batches()
    callback, config = RecordList(), config.with_options(num_validations=config.num_epochs)
    fit(builder, train, MAP(), Plain(), config, val=val, seed=seed, callback=callback, show_progress=False)
    return {"rise": compute_rise(callback.records)}


def compute_rise(records: list[Record]) -> float:
    """Validation NLL at the end minus the lowest one."""
    values = [record["val_nll"] for record in records if record.get("val_nll") is not None]
    return values[-1] - min(values)


def measure_plain(
    source: DataSource, model: Callable[..., torch.nn.Module], config: TrainingConfig, seed: int
) -> Features:
    """Features of one plain MAP training, by the names of `Twin`."""
    data, callback = source.load(seed), RecordList()
    fitted = fit(model, data, MAP(), Plain(), config, seed=seed, callback=callback, show_progress=False)
    network, train = fitted.states[0].model, data.train
    surface = LossSurface(network, fitted.likelihood.loss, [(fitted.preprocess(train.input_tensor), train.targets)])
    loss = surface.loss()
    return {
        "train_loss": loss,
        "gap": callback.records[-1]["val_nll"] - loss,
        "rise": compute_rise(callback.records),
        "sharpness": one_step_gap(surface, SHARPNESS_RHO),
        "weights_per_example": sum(p.numel() for p in surface.params) / len(train),
    }
