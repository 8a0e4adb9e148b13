"""What plain MAP training shows on data sets whose studies did not write it: the UCI sets and 500 CIFAR-10 images."""

from collections.abc import Callable, Iterator
from statistics import fmean
from typing import Any

import torch

from flatbayes.data import UCI, DataSource
from flatbayes.diagnostics import LossSurface
from flatbayes.diagnostics.sharpness import one_step_gap
from flatbayes.experiments import Method
from flatbayes.flatness import Plain
from flatbayes.posteriors import MAP
from flatbayes.training import Callback, TrainingConfig, fit
from flatbayes.training.callbacks.callback import Record
from studies.hyperparameters import cifar10
from studies.uci import study as uci

UCI_NAMES = ("concrete", "energy", "kin8nm", "power-plant", "wine-quality-red")
NUM_TASKS = len(UCI_NAMES) + 1
SHARPNESS_RHO, NUM_SEEDS, VAL_SIZE = 0.05, 3, 0.2
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


def measure_all(measured: dict[str, dict[str, float]], save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Measure the data sets that are missing.

    Args:
        measured: What earlier calls have measured, by name.
        save: Called after each data set.
    """
    torch.set_num_threads(1)
    for name, (source, model, method, config) in list_tasks():
        if name not in measured:
            config = method.apply_overrides(config).with_options(num_validations=10)
            seeds = [measure_plain(source, model, config, seed) for seed in range(NUM_SEEDS)]
            measured[name] = {key: fmean(seed[key] for seed in seeds) for key in seeds[0]}
            save(measured)
            print(name, measured[name], flush=True)
    return measured


def measure_plain(
    source: DataSource, model: Callable[..., torch.nn.Module], config: TrainingConfig, seed: int
) -> dict[str, float]:
    """Features of one plain MAP training, by the names of `Twin`."""
    data, callback = source.load(seed), RecordList()
    fitted = fit(model, data, MAP(), Plain(), config, seed=seed, callback=callback, show_progress=False)
    vals = [record["val_nll"] for record in callback.records if record.get("val_nll") is not None]
    network, train = fitted.states[0].model, data.train
    surface = LossSurface(network, fitted.likelihood.loss, [(fitted.preprocess(train.input_tensor), train.targets)])
    loss = surface.loss()
    return {
        "train_loss": loss,
        "gap": vals[-1] - loss,
        "rise": vals[-1] - min(vals),
        "sharpness": one_step_gap(surface, SHARPNESS_RHO),
        "weights_per_example": sum(p.numel() for p in surface.params) / len(train),
    }
