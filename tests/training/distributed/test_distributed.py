"""Several processes on one network: they agree bit for bit, and with one process where mathematics says so."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import processes
from flatbayes.core.process_group import ProcessGroupInfo, contiguous_slice
from flatbayes.core.randomness import Stream, spawn_seed
from flatbayes.data import Augment
from flatbayes.flatness import SAM
from flatbayes.posteriors import IVON, MAP, SGVB, Ensemble, MCDropout
from flatbayes.training import DistributionConfig, fit
from flatbayes.training.batches import ShuffledBatches
from flatbayes.training.distributed.fsdp import check_fsdp
from flatbayes.training.distributed.gradient_averaging import iter_buckets, per_process_rng
from processes import CASES, CONFIG, SAME, data, smooth

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")]),
}


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def in_processes(size: int, folder: Path, arguments: list[str], timeout: float = 240) -> list[int]:
    """Run Python as so many processes, as torchrun would, and return how each has ended."""
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port()),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "TORCHELASTIC_RUN_ID": "test",
    }
    running = []
    for rank in range(size):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with (folder / f"{rank}.log").open("w") as log:
            program = [sys.executable, *arguments]
            running.append(
                subprocess.Popen(program, env=ENVIRONMENT | common | own, stdout=log, stderr=subprocess.STDOUT)
            )
    try:
        return [process.wait(timeout) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()


def run_cases(size: int, folder: Path) -> tuple[list[dict], list[int]]:
    codes = in_processes(size, folder, [str(ROOT / "tests" / "processes.py"), str(folder)])
    logs = [(folder / f"{rank}.log").read_text() for rank in range(size)]
    assert all((folder / f"{rank}.pt").exists() for rank in range(size)), logs
    return [torch.load(folder / f"{rank}.pt") for rank in range(size)], codes


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What came of every case in each of two processes, how these ended, and what they wrote."""
    folder = tmp_path_factory.mktemp("two")
    return *run_cases(2, folder), folder


@pytest.fixture(scope="module")
def one():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {name: processes.found(name) for name in [*SAME, "still", "local", "lrt", "laplace"]}
    torch.set_num_threads(threads)


def identical(ranks: list[dict], name: str) -> None:
    first, *others = (results[name] for results in ranks)
    for other in others:
        assert first.keys() == other.keys()
        for key in first.keys() - {"losses", "validation"}:
            assert torch.equal(first[key], other[key]), f"{name}: {key}"


@pytest.mark.parametrize("name", [*CASES, "loader"])
def test_all_processes_end_in_the_same_bits(two, name):
    identical(two[0], name)


@pytest.mark.parametrize("name", SAME)
def test_two_processes_are_as_one_on_the_same_batches(two, one, name):
    close(two[0][0][name], one[name])


def close(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        torch.testing.assert_close(
            tensor, expected[key], rtol=1e-6, atol=1e-9, msg=lambda text, k=key: f"{k}: {text}"
        )


def test_losses_are_those_of_the_whole_batch_and_only_the_first_process_is_watched(two, one):
    first, second = two[0]
    torch.testing.assert_close(first["unequal"]["losses"], one["unequal"]["losses"])
    torch.testing.assert_close(first["unequal"]["validation"], one["unequal"]["validation"])
    assert len(second["unequal"]["losses"]) == 0


@pytest.mark.parametrize("name", ["local", "local unequal"])
def test_a_local_ascent_goes_to_the_worst_point_of_every_share(two, one, name):
    config, images = CASES[name][3], data(augment=False)
    initial, order = (spawn_seed(stream, 3, 0) for stream in (Stream.INITIAL_WEIGHTS, Stream.BATCHES))
    torch.manual_seed(initial)
    model = smooth().double()
    mean, std = (
        images.train.inputs.double().mean((0, 2, 3)),
        images.train.inputs.double().std((0, 2, 3), correction=0),
    )
    inputs = (images.train.inputs.double() - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    batches = ShuffledBatches(inputs, images.train.targets, config.batch_size, order)
    params, optimizer = list(model.parameters()), config.optimizer(model.parameters())
    steps, step = config.epochs * len(batches), 0
    for epoch in range(config.epochs):
        for x, y in batches.iter_epoch(epoch):
            total = [torch.zeros_like(p) for p in params]
            for rank in range(2):
                own, labels = x[rank::2], y[rank::2]
                grads = torch.autograd.grad(F.cross_entropy(model(own), labels), params)
                norm = torch.cat([g.flatten() for g in grads]).norm()
                before = [p.detach().clone() for p in params]
                with torch.no_grad():
                    for p, g in zip(params, grads, strict=True):
                        p.add_(g * 0.5 / norm)
                grads = torch.autograd.grad(F.cross_entropy(model(own), labels), params)
                with torch.no_grad():
                    for p, w, t, g in zip(params, before, total, grads, strict=True):
                        p.copy_(w)
                        t.add_(g * len(own) / len(x))
            for p, t in zip(params, total, strict=True):
                p.grad = t
            optimizer.param_groups[0]["lr"] = 0.1 * config.schedule.factor(step, steps)
            optimizer.step()
            step += 1
    found = {key.removeprefix("0."): value for key, value in two[0][0][name].items()}
    for key, value in model.state_dict().items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-7)
    if name == "local":
        assert not torch.allclose(found["1.weight"], one["local"]["0.1.weight"], rtol=1e-3, atol=1e-4)


def test_in_a_loop_of_ones_own_the_ball_is_that_of_the_whole_batch(two):
    results, *_ = two
    identical(results, "own loop")
    torch.testing.assert_close(results[0]["own loop"], processes.own_loop())


def test_running_means_are_those_of_whole_batches(two, one):
    key = "0.2.running_mean"
    torch.testing.assert_close(two[0][0]["still"][key], one["still"][key])
    assert one["still"][key].abs().max() > 0.1


def test_standard_deviations_that_the_network_does_not_know_are_learnt_from_all_shares(two, one):
    name = "0.statistics.raw_scale.1.weight"
    here, there = one["lrt"][name], two[0][0]["lrt"][name]
    assert not torch.equal(here, there)  # the noise of examples is another one
    torch.testing.assert_close(there, here, rtol=0.02, atol=0.02)


def test_curvature_is_taken_on_all_examples(two, one):
    name = "0.statistics.scale"
    torch.testing.assert_close(two[0][0]["laplace"][name], one["laplace"][name])


def test_a_training_that_was_stopped_goes_on_bit_for_bit(two):
    for results in two[0]:
        for key, value in results["whole"].items():
            assert torch.equal(results["resumed"][key], value), key
    identical(two[0], "resumed")


def test_a_gradient_that_one_process_lacks_counts_as_zero(two):
    for rank in (0, 1):
        found = two[0][rank]["averaged"]
        assert found.keys() == {"loss", "0", "1"}  # nobody has one for the third
        torch.testing.assert_close(found["loss"], torch.tensor(2 / 3))
        torch.testing.assert_close(found["0"], torch.full((3,), 5 / 3))
        torch.testing.assert_close(found["1"], torch.full((3,), 10 / 3))


def test_what_the_first_process_cannot_do_stops_the_others_too(two):
    first, second = two[0]
    assert first["refused"] == "the folder is taken"
    assert second["refused"] == "elsewhere: the folder is taken"
    assert first["gathered"] == second["gathered"] == [{"rank": 0}, {"rank": 1}]


def test_an_error_in_one_process_ends_all(two):
    _, codes, folder = two
    assert all(code != 0 for code in codes)
    assert "broken on purpose" in (folder / "1.log").read_text()


@pytest.mark.slow
def test_four_processes_are_as_one(tmp_path, one):
    ranks, _ = run_cases(4, tmp_path)
    for name in CASES:
        identical(ranks, name)
    for name in SAME:
        if name != "part":  # at least two examples of each share aim: more than half of four
            close(ranks[0][name], one[name])


@pytest.mark.slow
@pytest.mark.parametrize("start", [[], ["-m", "torch.distributed.run", "--nproc_per_node=2"]])
def test_the_command_line_starts_processes_or_is_started_in_several(tmp_path, start):
    out = tmp_path / "run"
    options = [
        "--data",
        "digits",
        "--epochs",
        "8",
        "--distribution.accelerator",
        "cpu",
        "--num_draws",
        "2",
        "--out",
        str(out),
    ]
    command = [
        sys.executable,
        *start,
        "-m",
        "flatbayes",
        "fit",
        *options,
        *([] if start else ["--distribution.devices", "2"]),
    ]
    first = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("saved    ") == 1
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 8
    again = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert again.returncode != 0
    assert again.stderr.count("already holds a run") == 1


def test_shares_are_everything_once():
    for length in (0, 1, 2, 7, 64):
        for size in (1, 2, 3, 4):
            places = [
                list(range(length))[contiguous_slice(length, ProcessGroupInfo(rank, size))] for rank in range(size)
            ]
            assert list(chain(*places)) == list(range(length))
            assert max(map(len, places)) - min(map(len, places)) <= 1


@pytest.mark.parametrize("size", [2, 3])
def test_shares_of_a_batch_are_its_examples_as_they_were_augmented(size):
    part = data().train
    whole = ShuffledBatches(part.inputs, part.targets, 10, seed=1, augment=Augment(flip=True, pad=1))
    shares = [list(replace(whole, world=ProcessGroupInfo(rank, size)).iter_epoch(2)) for rank in range(size)]
    for k, (inputs, targets) in enumerate(whole.iter_epoch(2)):
        for rank in range(size):
            assert torch.equal(shares[rank][k][0], inputs[rank::size])
            assert torch.equal(shares[rank][k][1], targets[rank::size])


def test_a_batch_needs_an_example_for_every_process():
    with pytest.raises(ValueError, match="3 examples cannot be divided among 4 processes"):
        ShuffledBatches(torch.zeros(8, 2), torch.zeros(8), 3, seed=0, world=ProcessGroupInfo(0, 4))


def test_noise_is_a_process_own_inside_and_common_outside():
    module = nn.Linear(1, 1)

    def numbers(rank: int, used: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(5)
        with per_process_rng(rank, module):
            inside = torch.cat([torch.randn(1) for _ in range(used)] or [torch.zeros(0)])
        return inside, torch.randn(3)

    (here, after), (there, later) = numbers(0, 4), numbers(1, 7)
    assert not torch.equal(here, there[:4])
    assert torch.equal(after, later)
    assert not torch.equal(here[:3], after)
    torch.manual_seed(5)
    assert torch.equal(torch.randn(3), numbers(0, 0)[1])


def test_noise_inside_is_another_one_every_time():
    module, seen = nn.Linear(1, 1), []
    for _ in range(2):
        with per_process_rng(0, module):
            seen.append(torch.randn(3))
    assert not torch.equal(*seen)


def test_what_is_sent_is_cut_by_size_and_dtype(monkeypatch):
    monkeypatch.setattr("flatbayes.training.distributed.gradient_averaging.MAX_BUCKET_ELEMENTS", 10)
    tensors = [torch.zeros(n) for n in (4, 6, 1, 20, 3)] + [torch.zeros(2, dtype=torch.float64)]
    assert [[len(t) for t in group] for group in iter_buckets(tensors)] == [[4, 6], [1], [20], [3], [2]]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"devices": 0}, "devices"), ({"devices": "all"}, "devices"), ({"ascent_scope": "far"}, "ascent_scope")],
)
def test_a_recipe_says_what_it_cannot_do(options, message):
    with pytest.raises(ValueError, match=message):
        DistributionConfig(**options)


@pytest.mark.parametrize(
    ("posterior", "change", "message"),
    [
        (SGVB(), {}, "SGVB needs all weights in one process"),
        (IVON(), {}, "IVON needs all weights in one process"),
        (Ensemble(MCDropout(), size=2), {}, "Ensemble needs all weights in one process"),
        (MAP(), {"distribution.ascent_scope": "local"}, "set ascent_scope='synchronised'"),
        (MAP(), {"batch_size": 15}, "15 examples do not divide by 2 processes"),
        (MAP(), {"precision.mode": "16-mixed"}, "bf16-mixed"),
        (MAP(), {"precision.compile": True}, "not compiled"),
    ],
)
def test_what_does_not_go_with_divided_weights_is_said(posterior, change, message):
    config = processes.SHARDED.with_options(**change)
    check_fsdp(MAP(), processes.SHARDED, ProcessGroupInfo(0, 2))
    with pytest.raises(ValueError, match=message):
        check_fsdp(posterior, config, ProcessGroupInfo(0, 2))


def test_weights_are_not_divided_by_a_torch_that_does_it_wrongly(monkeypatch):
    monkeypatch.setattr("flatbayes.training.distributed.fsdp.MIN_TORCH_VERSION", "99.0")
    with pytest.raises(ValueError, match=r"is older than 99.0, the oldest tested"):
        check_fsdp(
            MAP(),
            CONFIG.with_options(distribution={"strategy": "fsdp", "ascent_scope": "synchronised"}),
            ProcessGroupInfo(0, 2),
        )


def test_weights_are_not_divided_in_one_process():
    with pytest.raises(ValueError, match="start several"):
        fit(smooth, data(), MAP(), SAM(), processes.SHARDED)


def test_one_process_does_not_stand_for_several():
    with pytest.raises(ValueError, match="torchrun --nproc_per_node 2"):
        fit(smooth, data(), MAP(), SAM(), CONFIG.with_options(distribution={"devices": 2}))


def test_several_processes_do_not_stack_networks(two):
    assert "several processes train one network at a time" in two[0][0]["together"]
