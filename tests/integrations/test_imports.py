import subprocess
import sys

import pytest

HIDDEN = """
import sys
for package in {packages!r}:
    sys.modules[package] = None
import flatbayes.integrations.{name}
"""


@pytest.mark.parametrize(
    ("name", "packages"),
    [("lightning", ["lightning.pytorch", "pytorch_lightning"]), ("transformers", ["transformers"])],
)
def test_a_missing_package_names_its_extra(name, packages):
    script = HIDDEN.format(name=name, packages=packages)
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert f"pip install 'flatbayes[{name}]'" in found.stderr


def test_flatbayes_needs_neither():
    script = "import sys, flatbayes; print({'lightning', 'transformers', 'accelerate'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
