"""A source whose test part is cut down, so that a table can be tried in minutes on a CPU."""

from dataclasses import dataclass, fields, replace

import torch

from flatbayes.data import CIFAR10, Source
from flatbayes.data.source import Raw


@dataclass(frozen=True, kw_only=True)
class FewTests(Source):
    """Another source with a few of its test examples, the same for every seed.

    Attributes:
        source: Where examples come from; how they are split and augmented is said here.
        tests: Test examples to keep, where the source has a test part of its own.
    """

    source: Source = CIFAR10()
    tests: int = 1000

    def read(self) -> Raw:
        """The source's examples, a random few of them to test on."""
        raw = self.source.read()
        if raw.test is None or len(raw.test) <= self.tests:
            return raw
        order = torch.randperm(len(raw.test), generator=torch.Generator().manual_seed(self.split_seed))
        return replace(raw, test=raw.test.take(order[: self.tests].sort().values))


def few_of(source: Source, examples: int) -> FewTests:
    """At most so many examples in each part of a source."""
    held_out = min(examples, source.val_size) if source.val_size >= 1 else source.val_size
    same = {f.name: getattr(source, f.name) for f in fields(Source)}
    return FewTests(source=source, tests=examples, **{**same, "train_size": examples, "val_size": held_out})
