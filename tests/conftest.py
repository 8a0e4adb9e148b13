import gc
import os
import shutil

import pytest
import torch
from hypothesis import settings

import typecheck

# On a machine with an accelerator too, the suite trains on the CPU, whose results it compares, and so do the commands
# and workers that it starts. Tests marked `gpu` ask for the device themselves.
os.environ |= {"FLATBAYES_ACCELERATOR": "cpu", "ACCELERATE_USE_CPU": "true"}

settings.register_profile("fixed", derandomize=True, deadline=None)  # the same examples in every run
settings.load_profile("fixed")

typecheck.install()

IN_MEMORY = "/dev/shm"  # where a file is synced at once, not in milliseconds as on a disk; tests sync thousands


def has_room(folder):
    """Whether a folder is there, programs can be run in it, and it has more space than all temporary files take."""
    if not os.access(folder, os.W_OK) or os.statvfs(folder).f_flag & os.ST_NOEXEC:
        return False
    return shutil.disk_usage(folder).free > 4 * 2**30


if has_room(IN_MEMORY):
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", IN_MEMORY)

for absent in (torch.cuda, torch.xpu, torch.mtia):
    if not absent.is_available():  # a seed would be kept for later with a stack trace, in half a millisecond
        absent.manual_seed_all = lambda seed: None


def pytest_addoption(parser):
    parser.addoption(
        "--as-accelerator",
        action="store_true",
        help="run the code paths of an accelerator, with real numbers on the CPU",
    )


def pytest_collection_modifyitems(config, items):
    if not torch.cuda.is_available():
        absent = pytest.mark.skip(reason="there is no CUDA device")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(absent)
    if config.getoption("--as-accelerator"):
        skip = pytest.mark.skip(reason="checks what differs on an accelerator")
        for item in items:
            if item.get_closest_marker("cpu_path"):
                item.add_marker(skip)


def pytest_collection_finish():
    """Keep the garbage collector from visiting half a million objects of imported packages again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _as_accelerator(request):
    if not request.config.getoption("--as-accelerator"):
        yield
        return
    from flatbayes.core.devices import treat_cpu_as_accelerator  # after jaxtyping has set up its import hook

    with treat_cpu_as_accelerator():
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """With several processes, each gets consecutive tests: what a module or the session shares is made once."""
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist = "worksteal"


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
