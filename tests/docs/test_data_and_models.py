"""The tables of docs/data-and-models.md hold what the code says."""

import ast
import re
from pathlib import Path

import torch

from flatbayes import data, models
from flatbayes.cli.aliases import list_names
from flatbayes.core.names import list_classes

TEXT = (Path(__file__).parents[2] / "docs" / "data-and-models.md").read_text(encoding="utf-8")


def rows(first):
    lines = iter(TEXT.splitlines())
    next(line for line in lines if line.startswith(f"| {first} |"))
    next(lines)
    table = []
    for line in lines:
        if not line.startswith("|"):
            return table
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table


def arguments(text):
    call = ast.parse(f"f({text.strip('`')})", mode="eval").body
    return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}


def test_every_source_has_a_row():
    assert sorted(row[0].strip("`") for row in rows("source")) == list(list_classes(data, data.DataSource))


def test_every_model_has_a_row():
    assert {row[0].strip("`") for row in rows("model")} == set(list_names("model"))


def test_parameters_are_counted():
    table = rows("model")
    assert len(table) > 10
    for name, options, image, classes, count in table:
        shape = tuple(int(size) for size in re.findall(r"\d+", image))
        with torch.device("meta"):
            network = getattr(models, name.strip("`"))(shape, int(classes), **arguments(options))
        assert sum(param.numel() for param in network.parameters()) == int(count.replace(",", "")), (name, options)
