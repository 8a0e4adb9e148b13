"""Losses of a training by epoch, which an artefact keeps."""

from collections.abc import Sequence
from statistics import fmean

from flatbayes.training.callbacks.callback import Record
from flatbayes.training.schedules import select_evenly_spaced_epochs

MAX_HISTORY_EPOCHS = 100
"""Number of evenly spaced epochs that an artefact keeps of a long training, and largest number of validated ones."""


def summarize_history(runs: Sequence[Sequence[Record]]) -> dict[str, list[float | None]]:
    """Columns `epoch`, `loss`, `lr` and `val_nll`, means over the members; None where there was no validation.

    Of a long training the first and evenly spaced epochs are kept, and all with a validation, up to the same number.

    >>> summarize_history([[{"epoch": 1, "loss": 2.0, "lr": 0.1}], [{"epoch": 1, "loss": 1.0, "lr": 0.1}]])
    {'epoch': [1], 'loss': [1.5], 'lr': [0.1], 'val_nll': [None]}
    """
    by_epoch: dict[int, list[Record]] = {}
    for records in runs:
        for record in records:
            by_epoch.setdefault(record["epoch"], []).append(record)
    epochs = sorted(by_epoch)
    if len(epochs) > MAX_HISTORY_EPOCHS:
        positions = select_evenly_spaced_epochs(len(epochs), MAX_HISTORY_EPOCHS)
        validated = [epoch for epoch in epochs if any("val_nll" in record for record in by_epoch[epoch])]
        kept = {epochs[0], *(epochs[k - 1] for k in positions), *validated[-MAX_HISTORY_EPOCHS:]}
        epochs = sorted(kept)
    columns: dict[str, list[float | None]] = {"epoch": list(epochs)}
    for name in ("loss", "lr", "val_nll"):
        values = [[record[name] for record in by_epoch[epoch] if name in record] for epoch in epochs]
        columns[name] = [fmean(entries) if entries else None for entries in values]
    return columns
