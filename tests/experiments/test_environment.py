import json

import torch

from flatbayes.experiments.run_folder import describe_environment


def test_names_versions_and_hardware_as_plain_data():
    environment = describe_environment()
    assert environment["torch"] == torch.__version__
    assert environment["processor"]
    assert json.loads(json.dumps(environment)) == environment
