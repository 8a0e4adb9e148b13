"""Every mutant of the source is detected by its test."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mutation.mutants import MUTANTS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "flatbayes"


def run_tests(nodes, folder):
    """Run tests with the package in `folder`; return the exit code, the output and the failures by message."""
    report = folder / "report.xml"
    options = ["-q", "-n", "0", "-p", "no:cacheprovider", f"--junitxml={report}"]
    env = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", *options, *nodes]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)
    output = done.stdout + done.stderr
    assert report.is_file(), output
    suite = ElementTree.parse(report).getroot()
    assert not list(suite.iter("error")), output
    return done.returncode, output, [failure.get("message") for failure in suite.iter("failure")]


def copy_package(folder):
    shutil.copytree(PACKAGE, folder / "flatbayes")
    return folder / "flatbayes"


def test_every_mutant_has_one_place_and_a_test():
    assert len(set(MUTANTS)) == len(MUTANTS) >= 23
    for mutant in MUTANTS:
        source = (PACKAGE / mutant.file).read_text()
        assert source.count(mutant.original) == 1, mutant
        assert mutant.original != mutant.mutated
        ast.parse(source.replace(mutant.original, mutant.mutated))
        path, name = mutant.test.split("::")
        assert f"def {name}(" in (ROOT / path).read_text(), mutant


@pytest.mark.slow  # a minute: every named test once, in a process of its own
def test_the_tests_pass_without_a_mutant(tmp_path):
    copy_package(tmp_path)
    code, output, _ = run_tests(sorted({mutant.test for mutant in MUTANTS}), tmp_path)
    assert code == 0, output


@pytest.mark.slow  # each starts Python and runs a test of several seconds
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.file}: {m.mutated}")
def test_the_test_fails_with_the_mutant(mutant, tmp_path):
    path = copy_package(tmp_path) / mutant.file
    path.write_text(path.read_text().replace(mutant.original, mutant.mutated))
    code, output, messages = run_tests([mutant.test], tmp_path)
    assert code == 1, output
    assert re.search(rf"^FAILED {re.escape(mutant.test)}", output, re.MULTILINE), output
    assert any(re.match(r"(AssertionError|assert |Failed: )", message) for message in messages), output
