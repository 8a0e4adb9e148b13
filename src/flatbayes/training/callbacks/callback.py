"""Training callbacks: the interface, a list of callbacks, and the history of a training."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from torch import Tensor

from flatbayes.training.schedules import select_evenly_spaced_epochs

Record = dict[str, Any]
"""Numbers of an epoch: `epoch`, `step`, `loss` (mean training loss) and `lr`; with vectorized networks `member`;
after a validation `val_nll` and, for classes and labels, `val_accuracy`."""
MAX_HISTORY_EPOCHS = 100
"""Number of evenly spaced epochs that an artefact keeps of a long training, and largest number of validated ones."""


class Callback:
    """Called during training. The base class does nothing.

    Examples:
        >>> class CountSteps(Callback):
        ...     count = 0
        ...
        ...     def on_step_end(self, step, loss, lr):
        ...         self.count += 1
        >>> counter = CountSteps()
        >>> fitted = fit(MLP, data, MAP(), config=config, callback=counter)
        >>> counter.count
        12
    """

    def on_run_start(self, member: int, num_members: int, total_steps: int) -> None:
        """A run starts.

        Args:
            member: Index of the member that is trained; 0 if several are vectorized.
            num_members: Number of members that are trained one after the other.
            total_steps: Number of steps of the run.
        """

    def on_step_end(self, step: int, loss: Tensor, lr: float) -> None:
        """A step ended. Reading the loss waits for the device, so a callback should read it rarely.

        Args:
            step: Number of steps done.
            loss: Loss of the batch.
            lr: Learning rate of the step.
        """

    def on_epoch_end(self, record: Record) -> None:
        """An epoch ended; with vectorized networks, called once for each."""

    def on_resume(self, records: Sequence[Record]) -> None:
        """The run continues from a checkpoint, or is complete, with the records of these epochs."""

    def on_rollback(self, records: Sequence[Record], total_steps: int) -> None:
        """Early stopping went back to an earlier epoch, and the later ones do not belong to the training, or ends it.

        Args:
            records: Records of the run up to this epoch.
            total_steps: Number of steps of the run from now on; those done if it ends.
        """

    def on_message(self, text: str) -> None:
        """There is something to report before the first step."""


class CallbackList(Callback):
    """Passes every call on to several callbacks.

    Examples:
        >>> history, lines = History(), []
        >>> callbacks = CallbackList([history, ConsoleLogger(lines.append)])
        >>> fitted = fit(MLP, data, MAP(), config=config, callback=callbacks)
        >>> len(history.records), len(lines)
        (2, 2)
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        for callback in callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(
                    "A callback is an instance of a subclass of flatbayes.training.Callback, which has all methods "
                    f"that are called; got {callback!r}."
                )
        self._callbacks = callbacks

    def on_run_start(self, member: int, num_members: int, total_steps: int) -> None:
        """Pass it on."""
        for callback in self._callbacks:
            callback.on_run_start(member, num_members, total_steps)

    def on_step_end(self, step: int, loss: Tensor, lr: float) -> None:
        """Pass it on."""
        for callback in self._callbacks:
            callback.on_step_end(step, loss, lr)

    def on_epoch_end(self, record: Record) -> None:
        """Pass it on."""
        for callback in self._callbacks:
            callback.on_epoch_end(record)

    def on_resume(self, records: Sequence[Record]) -> None:
        """Pass it on."""
        for callback in self._callbacks:
            callback.on_resume(records)

    def on_rollback(self, records: Sequence[Record], total_steps: int) -> None:
        """Pass it on."""
        for callback in self._callbacks:
            callback.on_rollback(records, total_steps)

    def on_message(self, text: str) -> None:
        """Pass it on."""
        for callback in self._callbacks:
            callback.on_message(text)


class MemberCallback(Callback):
    """A callback that stores which member is trained."""

    def __init__(self) -> None:
        self._member, self._num_members = 0, 1

    def on_run_start(self, member: int, num_members: int, total_steps: int) -> None:
        """Store the index of the member and their number."""
        self._member, self._num_members = member, num_members


class History(MemberCallback):
    """Stores the records of all epochs, each with its `member`.

    Attributes:
        records: The records, in order.

    Examples:
        >>> history = History()
        >>> fitted = fit(MLP, data, MAP(), config=config, callback=history)
        >>> [record["epoch"] for record in history.records]
        [1, 2]
    """

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Record] = []

    def on_epoch_end(self, record: Record) -> None:
        """Store it."""
        self.records.append({"member": self._member, **record})

    def on_resume(self, records: Sequence[Record]) -> None:
        """Store them."""
        for record in records:
            self.on_epoch_end(record)

    def on_rollback(self, records: Sequence[Record], total_steps: int) -> None:
        """Store them in place of those of this member."""
        self.records = [record for record in self.records if record["member"] != self._member]
        self.on_resume(records)


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
