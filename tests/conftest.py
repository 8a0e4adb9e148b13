import os

import pytest
import torch
from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None)  # the same examples in every run
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def real_data():
    """Folder of real data, named by FLATBAYES_DATA."""
    folder = os.environ.get("FLATBAYES_DATA")
    if not folder:
        pytest.skip("FLATBAYES_DATA does not name a folder of real data")
    return folder
