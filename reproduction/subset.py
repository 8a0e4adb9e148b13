"""A source whose test part is cut down, so that a table can be tried in minutes on a CPU."""

from dataclasses import dataclass, fields, replace

import torch

from flatbayes.data import CIFAR10, DataSource
from flatbayes.data.source import RawSplits


@dataclass(frozen=True, kw_only=True)
class SourceSubset(DataSource):
    """Another source with a few of its test examples, the same for every seed.

    Attributes:
        source: Where examples come from; how they are split and augmented is said here.
        max_test_examples: Test examples to keep, where the source has a test part of its own.
    """

    source: DataSource = CIFAR10()
    max_test_examples: int = 1000

    def read(self) -> RawSplits:
        """The source's examples, a random few of them to test on."""
        raw = self.source.read()
        if raw.test is None or len(raw.test) <= self.max_test_examples:
            return raw
        order = torch.randperm(len(raw.test), generator=torch.Generator().manual_seed(self.split_seed))
        return replace(raw, test=raw.test.take(order[: self.max_test_examples].sort().values))


def subset_source(source: DataSource, max_examples: int) -> SourceSubset:
    """At most so many examples in each part of a source."""
    held_out = min(max_examples, source.val_size) if source.val_size >= 1 else source.val_size
    same = {f.name: getattr(source, f.name) for f in fields(DataSource)}
    return SourceSubset(
        source=source, max_test_examples=max_examples, **{**same, "train_size": max_examples, "val_size": held_out}
    )
