"""What is said and decided about accelerators, on a machine that may have none."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from flatbayes.core import accelerators, process_group
from flatbayes.core.accelerators import (
    ACCELERATOR_VARIABLE,
    count_accelerators,
    describe_device,
    get_free_memory,
    select_device,
)
from flatbayes.core.devices import move_tensor, treat_cpu_as_accelerator
from flatbayes.core.networks import check_one_device
from flatbayes.core.process_group import ProcessGroupInfo
from flatbayes.experiments.run_folder import describe_environment
from flatbayes.flatness import SAM
from flatbayes.posteriors import MAP
from flatbayes.training import TrainingConfig
from flatbayes.training.distributed.launch import check_accelerator, choose_accelerator
from flatbayes.training.engine import place_module


@pytest.fixture
def machine(monkeypatch):
    """Sets the accelerator of this machine, and the number of its devices."""

    def have(kind, count=1):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: kind and torch.device(kind))
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: kind == "cuda")
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: kind == "mps")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "H100")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))

    monkeypatch.delenv(ACCELERATOR_VARIABLE, raising=False)
    return have


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        (None, "auto", "cpu"),
        ("cuda", "auto", "cuda"),
        ("cuda", "cpu", "cpu"),
        ("cuda", "gpu", "cuda"),
        ("mps", "auto", "mps"),
    ],
)
def test_the_device_of_a_configuration(machine, kind, name, expected):
    machine(kind, 2)
    assert select_device(name).type == expected
    assert count_accelerators(name) == (0 if expected == "cpu" else 2)


def test_networks_of_float64_stay_on_the_cpu_of_a_mac(machine):
    machine("mps")
    assert select_device(dtypes=[torch.float32, torch.float64]).type == "cpu"
    machine("cuda")
    assert select_device(dtypes=[torch.float32, torch.float64]).type == "cuda"


def test_the_environment_variable_is_the_default_only(machine, monkeypatch):
    machine("cuda")
    monkeypatch.setenv(ACCELERATOR_VARIABLE, "cpu")
    assert select_device().type == "cpu"
    assert select_device("cuda").type == "cuda"
    assert choose_accelerator(TrainingConfig()) == "cpu"
    assert choose_accelerator(TrainingConfig(distribution={"accelerator": "cuda"})) == "cuda"
    monkeypatch.setenv(ACCELERATOR_VARIABLE, "mps")
    with pytest.raises(ValueError, match="mps is not available"):
        check_accelerator(TrainingConfig())
    with pytest.raises(ValueError, match=f"use cpu or cuda, .* {ACCELERATOR_VARIABLE}"):
        select_device()


def test_double_precision_on_a_mac_is_for_the_cpu(machine):
    machine("mps")
    double = TrainingConfig(precision={"mode": "64-true"})
    check_accelerator(double)
    assert choose_accelerator(double) == "cpu"
    assert choose_accelerator(TrainingConfig()) == "auto"
    with pytest.raises(ValueError, match=r"Apple GPUs have no numbers of 64 bits: use --precision.mode 32-true"):
        check_accelerator(double.with_options(distribution={"accelerator": "mps"}))
    machine("cuda")
    assert choose_accelerator(double) == "auto"


def test_a_network_of_float64_is_refused_where_there_is_none():
    fabric = SimpleNamespace(device=torch.device("cpu"), to_device=lambda module: module)
    network = nn.Linear(2, 2).double()
    with treat_cpu_as_accelerator(has_float64=False):
        with pytest.raises(ValueError, match=r"Linear has weights of float64.* network\.float\(\)"):
            place_module(network, fabric, TrainingConfig())
        place_module(network.float(), fabric, TrainingConfig())


def test_a_network_on_two_devices_is_refused_in_plain_words():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    fabric = SimpleNamespace(device=torch.device("cpu"), to_device=lambda module: module)
    message = "The parameters of Sequential are on several devices, cpu and meta.* Move it with"
    with pytest.raises(ValueError, match=message):
        check_one_device(network)
    with pytest.raises(ValueError, match=message):
        place_module(network, fabric, TrainingConfig())
    with pytest.raises(ValueError, match=message):
        MAP().init(network, None, 10)
    with pytest.raises(ValueError, match=message):
        SAM()(lambda: torch.zeros(()), network)()


def test_tensors_of_float64_are_narrowed_only_where_there_is_none():
    values = torch.tensor([1.0], dtype=torch.float64)
    assert move_tensor(values, "cpu").dtype == torch.float64
    with treat_cpu_as_accelerator(has_float64=False):
        assert move_tensor(values, "cpu").dtype == torch.float32
        assert move_tensor(torch.tensor([1]), "cpu").dtype == torch.int64


def test_what_is_said_about_devices_and_their_memory(monkeypatch):
    cuda = SimpleNamespace(mem_get_info=lambda device: (7, 9), get_device_name=lambda device: f"H{device.index}")
    monkeypatch.setattr(torch, "cuda", cuda)
    assert describe_device(torch.device("cpu")) == "cpu"
    assert describe_device(torch.device("cuda", 1)) == "cuda H1"
    assert get_free_memory(torch.device("cuda", 1)) == 7
    monkeypatch.setattr(torch, "mps", SimpleNamespace(recommended_max_memory=lambda: 9, driver_allocated_memory=int))
    assert get_free_memory(torch.device("mps")) == 9
    assert get_free_memory(torch.device("cpu")) > 1e30


def test_the_environment_names_the_device_that_a_run_uses(machine):
    machine("cuda", 2)
    on_cpu = describe_environment({"config": {"distribution": {"accelerator": "cpu"}}})
    on_gpu = describe_environment({"config": {"distribution": {"accelerator": "auto"}}})
    assert (on_cpu["device"], on_gpu["device"]) == ("cpu", "cuda H100")
    assert on_gpu["num_accelerators"] == 2
    assert on_gpu["float32_precision"].keys() == {"matmul", "convolutions"}
    assert {"cuda", "cudnn"} <= on_gpu.keys()
    assert json.loads(json.dumps(on_gpu)) == on_gpu
    machine(None)
    elsewhere = describe_environment({"config": {"distribution": {"accelerator": "cuda"}}})
    assert elsewhere["device"] == "cuda"  # of results that are summarized on another machine
    assert elsewhere["float32_precision"] is None


@pytest.mark.parametrize("operation", ["all_gather", "broadcast"])
def test_what_processes_exchange_is_in_main_memory(monkeypatch, operation):
    """A pickled tensor of a device opens this device in every process."""
    sent = []

    class OnDevice(torch.Tensor):
        def cpu(self):
            return torch.ones(2)

    def exchange(*objects):
        sent.append(objects)

    monkeypatch.setattr(process_group.dist, "all_gather_object", lambda values, value: exchange(value))
    monkeypatch.setattr(process_group.dist, "broadcast_object_list", lambda values: exchange(values[0]))
    value = {"buffers": [torch.zeros(2).as_subclass(OnDevice)], "step": 3}
    getattr(ProcessGroupInfo(0, 2), operation)(value)
    ((content,),) = sent
    assert content["step"] == 3
    assert type(content["buffers"][0]) is torch.Tensor
    assert content["buffers"][0].tolist() == [1, 1]


def test_nothing_here_initializes_a_device(machine, monkeypatch):
    module = SimpleNamespace(is_initialized=lambda: False)
    machine("cuda", 2)
    monkeypatch.setattr(torch, "get_device_module", lambda kind: module)
    assert accelerators.list_initialized_accelerators() == []
    module.is_initialized = lambda: True
    assert accelerators.list_initialized_accelerators() == [torch.device("cuda", 0), torch.device("cuda", 1)]
