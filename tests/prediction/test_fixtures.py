"""Artefacts that were written in earlier schemas load, and predict the stored values."""

import json
from pathlib import Path

import pytest
import torch

from flatbayes.prediction import FittedPosterior

FIXTURES = Path(__file__).parent / "fixtures"
ARTEFACTS = sorted(path.parent for path in FIXTURES.glob("*/*/posterior.json"))


@pytest.mark.parametrize("folder", ARTEFACTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_predictions_equal_the_stored_values(folder):
    expected = json.loads(folder.with_suffix(".json").read_text())
    predictive = FittedPosterior.load(folder).predict(torch.tensor(expected["inputs"]), 4, seed=1)
    for name in ("mean", "variance", "mutual_information"):
        values = torch.tensor(expected[name], dtype=torch.float64)
        torch.testing.assert_close(getattr(predictive, name), values, rtol=1e-6, atol=1e-6)


def test_every_schema_since_the_second_has_fixtures():
    from flatbayes.prediction.metadata import READABLE_SCHEMAS

    assert {path.parent.name for path in ARTEFACTS} == {
        f"schema-{number}" for number in READABLE_SCHEMAS if number > 1
    }
    for schema in {path.parent for path in ARTEFACTS}:
        assert sum(file.stat().st_size for file in schema.rglob("*.*") if file.is_file()) < 25_000


def test_an_artefact_of_an_older_schema_keeps_its_draws_when_it_is_saved_again(tmp_path):
    folder = FIXTURES / "schema-4" / "swag"
    loaded = FittedPosterior.load(folder)
    assert loaded.draw_rule == 1
    again = FittedPosterior.load(loaded.save(tmp_path / "again"))
    inputs = torch.tensor(json.loads(folder.with_suffix(".json").read_text())["inputs"])
    assert torch.equal(again.predict(inputs, 4, seed=1).mean, loaded.predict(inputs, 4, seed=1).mean)
    again.draw_rule = 2
    assert not torch.equal(again.predict(inputs, 4, seed=1).mean, loaded.predict(inputs, 4, seed=1).mean)
