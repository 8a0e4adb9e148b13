import json

import torch

from flatbayes.core.environment import environment


def test_names_versions_and_hardware_as_plain_data():
    found = environment()
    assert found["torch"] == torch.__version__
    assert found["processor"]
    assert json.loads(json.dumps(found)) == found
