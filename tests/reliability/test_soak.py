import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.fixture(scope="module")
def soak():
    spec = importlib.util.spec_from_file_location("soak", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.soak


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read in /proc")
@pytest.mark.parametrize("cycles", [10, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:.torch.distributed.reduce_op:FutureWarning")  # of looking at every object
def test_nothing_grows(soak, cycles):
    found = soak(cycles, warm=10)
    first, last = found["first"], found["last"]
    for kind in ("open_files", "threads", "tensors", "temporary_files"):
        assert last[kind] <= first[kind], found
    assert last["memory_kib"] - first["memory_kib"] < 8 * 1024, found
