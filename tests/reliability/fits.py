"""Random fits of many seeds, counted by what they are made of."""

import collections
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from fit_checks import check_fit
from random_fits import FitSpec, spec_from_seed

WORDS_BEFORE_A_MESSAGE_OF_TORCH = (" ends in ", " cannot differentiate ", " that creates their weights failed for ")


def main(first: int, number: int) -> dict[str, Any]:
    """Fit with the seeds from `first` on; what went wrong is in `bad`, one line each."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    by: dict[str, dict[str, collections.Counter[str]]] = collections.defaultdict(dict)
    counts: collections.Counter[str] = collections.Counter()
    bad: list[str] = []
    messages: collections.Counter[str] = collections.Counter()
    for seed in range(first, first + number):
        spec = spec_from_seed(seed)
        outcome, reasons = "bad", list[str]()
        with tempfile.TemporaryDirectory() as folder:
            try:
                outcome = check_fit(spec, Path(folder), reasons)
            except Exception as error:
                bad.append(f"seed {seed}: {type(error).__name__}: {str(error).splitlines()[0][:300]}; {spec}")
                sys.stderr.write(f"{bad[-1]}\n")
        for words in WORDS_BEFORE_A_MESSAGE_OF_TORCH:
            messages.update(re.sub(r"[0-9]+", "#", text.split(words)[1])[:120] for text in reasons if words in text)
        counts[outcome] += 1
        for kind, value in describe(spec):
            by[kind].setdefault(value, collections.Counter())[outcome] += 1
    return {
        "fits": number,
        "counts": dict(counts),
        "refused with a message of torch": messages.total(),
        "messages of torch": dict(messages.most_common(10)),
        "by": by,
        "bad": bad,
    }


def describe(spec: FitSpec) -> list[tuple[str, str]]:
    """What a fit is made of, as pairs of a kind and a value."""
    model = spec.model
    properties = ("container", "norm", "dropout", "activation", "parametrization", "sharing", "frozen", "unused")
    properties = (*properties, "buffer", "dtype", "output", "lazy")
    return [
        ("posterior", type(spec.posterior).__name__),
        ("flatness", type(spec.flatness).__name__),
        ("pair", f"{type(spec.posterior).__name__} {type(spec.flatness).__name__}"),
        ("likelihood", spec.likelihood),
        ("data type", spec.data_dtype),
        ("precision", spec.config.precision.mode),
        ("inputs", model.inputs),
        *((("block"), block) for block in model.blocks),
        *((name, str(getattr(model, name))) for name in properties),
    ]
