import json

import torch

from flatbayes.core.environment import describe_environment


def test_names_versions_and_hardware_as_plain_data():
    found = describe_environment()
    assert found["torch"] == torch.__version__
    assert found["processor"]
    assert json.loads(json.dumps(found)) == found
