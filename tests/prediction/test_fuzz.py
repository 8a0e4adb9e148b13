"""Damaged and hostile artefacts, from seeds: used as they were, or refused with an error of ours."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from damage import harness

FUZZ = harness()
KINDS = [kind for kind in FUZZ.KINDS if kind.startswith("artefact")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_from_seeds(tmp_path, kind):
    make, use = FUZZ.KINDS[kind]
    contents = make(tmp_path / "whole")
    use(tmp_path / "whole")
    refused = []

    @settings(max_examples=40)
    @given(st.integers(0, 2**32))
    def tried(seed):
        shutil.rmtree(tmp_path / "damaged", ignore_errors=True)
        contents(tmp_path / "damaged", Random(seed))
        try:
            use(tmp_path / "damaged")
        except FUZZ.EXPECTED as error:
            refused.append(str(error))

    tried()
    assert len(refused) > 20
    assert all(len(message) < 2000 for message in refused)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_thousands_within_bounded_time_and_memory(tmp_path):
    script = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"
    command = [sys.executable, str(script), "--count", "500", "--seed", "1", "--out", str(tmp_path / "found.json")]
    subprocess.run(command, check=True, timeout=600, capture_output=True)
    for kind, found in json.loads((tmp_path / "found.json").read_text())["kinds"].items():
        assert "crashed" not in found, (kind, found)
        assert not found.get("wrong"), (kind, found)
        assert found["slowest_seconds"] < FUZZ.SECONDS, (kind, found)
