"""Damaged and hostile artefacts, from seeds: used as they were, or refused with an error of ours."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from damage import harness, refusals

FUZZ = harness()
KINDS = [kind for kind in FUZZ.KINDS if kind.startswith("artefact")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("num_seeds", [12, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_from_seeds(tmp_path, kind, num_seeds):
    refused = refusals(FUZZ, kind, tmp_path, num_seeds)
    assert len(refused) > num_seeds / 2
    assert all(len(message) < 2000 for message in refused)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_thousands_within_bounded_time_and_memory(tmp_path):
    script = Path(__file__).parents[1] / "reliability" / "fuzz.py"
    command = [sys.executable, str(script), "--count", "500", "--seed", "1", "--out", str(tmp_path / "found.json")]
    subprocess.run(command, check=True, timeout=600, capture_output=True)
    for kind, found in json.loads((tmp_path / "found.json").read_text())["kinds"].items():
        assert "crashed" not in found, (kind, found)
        assert not found.get("wrong"), (kind, found)
        assert found["slowest_seconds"] < FUZZ.SECONDS, (kind, found)
