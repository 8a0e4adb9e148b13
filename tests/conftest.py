import os

import pytest
import torch


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
