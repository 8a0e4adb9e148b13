import subprocess
import sys

import pytest

HIDDEN = """
import sys
sys.modules[{package!r}] = None
import flatbayes.integrations.{name}
"""


@pytest.mark.parametrize(("name", "package"), [("lightning", "lightning.pytorch"), ("transformers", "transformers")])
def test_a_missing_package_names_its_extra(name, package):
    script = HIDDEN.format(name=name, package=package)
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert f"pip install 'flatbayes[{name}]'" in found.stderr


def test_flatbayes_needs_neither():
    script = "import sys, flatbayes; print({'lightning', 'transformers', 'accelerate'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
