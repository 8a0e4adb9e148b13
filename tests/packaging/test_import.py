"""What `import flatbayes`, training and the help of the command line import, and how long they take."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import flatbayes

SLOW = ["matplotlib", "sklearn", "scipy", "joblib", "lightning_fabric", "lightning", "transformers", "accelerate",
        "ray", "optuna", "onnx", "onnxruntime", "pyarrow", "pandas", "PIL", "tensorboard", "wandb", "torchmetrics",
        "jinja2"]  # fmt: skip
"""Packages that most programs do not use."""
COMMAND_LINE = ["jsonargparse", "yaml", "docstring_parser"]

FIT = """
import torch
from flatbayes import *

train = Digits(train_size=40).load(seed=0).train
inputs, targets = train.inputs.float(), train.targets
for posterior, options in (
    (SWAG(), {"epochs": 4}),
    (Ensemble(size=2), {"epochs": 2, "precision": {"mode": "64-true"}, "distribution": {"members": "auto"}}),
):
    fitted = fit(MLP, (inputs, targets), posterior, SAM(), TrainingConfig(**options))
    assert evaluate(fitted, inputs, targets).metrics["auroc_correct"] > 0
    assert fitted.predict(inputs).mean.shape == (40, 10)
"""
COMMANDS = """
from contextlib import suppress
from flatbayes.cli import main

for arguments in {arguments!r}:
    with suppress(SystemExit):
        main(arguments)
"""
OVERVIEW = COMMANDS.format(arguments=[["--help"], ["help"], [], ["--version"], ["fitt"], ["paper"]])
HELP_OF_A_VERB = COMMANDS.format(arguments=[["fit", "--help"], ["fit", "--epoch", "3"]])
PROGRAMS = {
    "import": ("", [*SLOW, *COMMAND_LINE, "torch", "numpy", "rich"]),
    "fit": (FIT, [*SLOW, *COMMAND_LINE]),
    "overview": (OVERVIEW, [*SLOW, "torch", "numpy"]),
    "help of a verb": (HELP_OF_A_VERB, [*SLOW, "torch._dynamo", "flatbayes.reporting", "flatbayes.theory"]),
}
"""Programs, and what they must not import."""


@pytest.mark.parametrize(("program", "forbidden"), PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_imports_only_what_it_uses(program, forbidden):
    code = f"import sys, flatbayes\n{program}\nprint([name for name in {forbidden} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


@pytest.mark.parametrize("package", ["flatbayes", "flatbayes.core", "flatbayes.experiments"])
def test_type_checkers_see_what_a_package_exports_lazily(package):
    module = import_module(package)
    checked, run = next(
        (node.body, node.orelse)
        for node in ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body
        if isinstance(node, ast.If)
    )
    homes = ast.literal_eval(run[-1].value.args[1])
    lazy = {home: set(names.split()) for home, names in homes.items()}
    assert lazy == {node.module: {alias.name for alias in node.names} for node in checked}
    assert set.union(*lazy.values()) == set(module.__all__) <= set(dir(module))
    for home, names in lazy.items():
        for name in names:
            assert getattr(module, name) is getattr(import_module(home), name)
    modules = {path.stem for path in Path(module.__file__).parent.iterdir()}
    assert not modules & set(module.__all__)  # an imported module is an attribute of its package


def test_every_package_is_an_attribute():
    folder = Path(flatbayes.__file__).parent
    for package in folder.glob("*/__init__.py"):
        assert getattr(flatbayes, package.parent.name).__file__ == str(package)
    with pytest.raises(AttributeError, match="has no attribute 'fitt'"):
        _ = flatbayes.fitt
    code = "import flatbayes; print(flatbayes.plotting.__name__, 'plotting' in dir(flatbayes))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["flatbayes.plotting", "True"]
