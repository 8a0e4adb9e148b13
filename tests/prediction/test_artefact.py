"""Saving and loading of fitted posteriors, damaged and older artefacts included."""

import itertools
import json
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from flatbayes import MLP, Categorical, Plain, TrainingConfig, fit
from flatbayes.posteriors import MAP, SWAG, Ensemble, MCDropout
from flatbayes.prediction import FittedPosterior, NetworkSampler, artefact
from flatbayes.prediction.artefact import load_posterior
from flatbayes.prediction.metadata import compute_file_checksum, compute_metadata_checksum
from support import batch, find_tensors_file, network


def inputs():
    return batch(3, size=20)[0]


def rewrite_metadata(folder, **changes):
    """Change entries of the metadata (None removes one), and update its checksum."""
    path = folder / "posterior.json"
    metadata = json.loads(path.read_text()) | changes
    metadata = {key: value for key, value in metadata.items() if value is not None and key != "checksum"}
    path.write_text(json.dumps({**metadata, "checksum": compute_metadata_checksum(metadata)}))


def test_loads_and_predicts_the_same(fitted, tmp_path):
    expected = fitted.predict(inputs(), 4).log_probs
    fitted.save(tmp_path / "ünïcode" / "x")
    for model in (network(), network):
        loaded = FittedPosterior.load(tmp_path / "ünïcode" / "x", model)
        assert torch.equal(loaded.predict(inputs(), 4).log_probs, expected)
    assert loaded.posterior == fitted.posterior
    assert loaded.info == fitted.info
    folder = tmp_path / "ünïcode" / "x"
    metadata = json.loads((folder / "posterior.json").read_text())
    files = {metadata[key] for key in ("tensors_file", "norm_file") if key in metadata}
    assert {path.name for path in folder.iterdir()} == {"posterior.json", *files}


def test_a_subclass_is_loaded_as_itself(make, tmp_path):
    class CustomPosterior(FittedPosterior):
        pass

    make(MAP()).save(tmp_path)
    assert type(CustomPosterior.load(tmp_path, network)) is CustomPosterior


def test_a_sampler_can_be_loaded_and_draws_the_same_networks(make, tmp_path):
    fitted = make(SWAG(rank=3))
    fitted.save(tmp_path)
    sampler = load_posterior(tmp_path, network, None)
    assert type(sampler) is NetworkSampler
    for expected, drawn in zip(fitted.sample_networks(2), sampler.sample_networks(2), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), drawn.parameters(), strict=True))


def test_file_size_is_that_of_the_tensors(make, tmp_path):
    fitted = make(SWAG(rank=3))
    fitted.save(tmp_path)
    tensors = load_file(find_tensors_file(tmp_path))
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    assert find_tensors_file(tmp_path).stat().st_size < total + 10_000


@pytest.mark.parametrize("posterior", [SWAG(rank=5), SWAG(rank=5, params=["9.*"]), Ensemble(size=2)], ids=repr)
def test_nothing_is_stored_twice(make, tmp_path, posterior):
    fitted = make(posterior)
    fitted.save(tmp_path)
    tensors = load_file(find_tensors_file(tmp_path))
    num_weights = sum(tensor.numel() for tensor in network().state_dict().values())
    num_selected = fitted.states[0].statistics.get("mean", torch.zeros(0)).numel()
    num_others = fitted.states[0].statistics.get("mean_of_others", torch.zeros(0)).numel()
    num_stored = sum(tensor.numel() for name, tensor in tensors.items() if name.startswith("run.0."))
    assert (
        num_stored == num_weights + (1 + 7 * num_selected if num_selected else 0) + num_others
    )  # count, mean, squares, five deviations


@pytest.mark.gpu
def test_loads_on_another_device(make, tmp_path):
    make(SWAG(rank=3)).save(tmp_path)
    loaded = FittedPosterior.load(tmp_path, network, device="cuda")
    assert loaded.device.type == "cuda"
    assert loaded.predict(inputs(), 4).mean.shape == (20, 3)


def test_loads_on_the_named_device(make, tmp_path):
    make(SWAG(rank=3)).save(tmp_path)
    loaded = FittedPosterior.load(tmp_path, network, device="meta")
    devices = {name: tensor.device.type for name, tensor in loaded.states[0].statistics.items()}
    assert devices.pop("count") == "cpu"  # read without waiting for a device
    assert set(devices.values()) == {"meta"}
    assert loaded.device.type == "meta"


def test_a_changed_digit_of_the_metadata_is_detected(make, tmp_path):
    make(MAP()).save(tmp_path)
    path = tmp_path / "posterior.json"
    path.write_text(path.read_text().replace('"num_data": [\n  36', '"num_data": [\n  37'))
    assert "37" in path.read_text()
    with pytest.raises(ValueError, match=r"posterior\.json is damaged: its checksum"):
        FittedPosterior.load(tmp_path, network)


def test_metadata_that_is_too_large_to_read_is_not_written(make, tmp_path):
    fitted = make(MAP())
    fitted.info["names"] = ["x" * 1000] * 17_000
    with pytest.raises(ValueError, match=r"at most 16777216 are read again.*`info`"):
        fitted.save(tmp_path)


def test_statistics_of_draws_are_saved(make, tmp_path, monkeypatch):
    fitted = make(SWAG(rank=3))
    expected = fitted.predict(inputs(), 4).log_probs
    fitted.save(tmp_path)
    loaded = FittedPosterior.load(tmp_path, network)
    monkeypatch.setattr(
        "flatbayes.prediction.sampling.reestimate_norm_statistics", lambda *a: pytest.fail("estimated again")
    )
    assert torch.equal(loaded.predict(inputs(), 4).log_probs, expected)


def test_saving_again_replaces(make, tmp_path):
    make(SWAG(rank=3)).save(tmp_path)
    make(MAP()).save(tmp_path)
    assert FittedPosterior.load(tmp_path, network).posterior == MAP()


def test_double_precision_survives(make, tmp_path):
    fitted = make(MAP())
    fitted.states[0].model.double()
    fitted.save(tmp_path)
    loaded = FittedPosterior.load(tmp_path, network)
    assert torch.equal(loaded.predict(inputs()).log_probs, fitted.predict(inputs()).log_probs)
    assert loaded.dtype == torch.float64


def test_tied_weights(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(self.one(x))

    from flatbayes.likelihoods import Categorical

    posterior = MAP()
    fitted = FittedPosterior(posterior, [posterior.init(Tied(), None, 5)], Categorical(3))
    fitted.save(tmp_path)
    names = load_file(find_tensors_file(tmp_path)).keys()
    assert {name for name in names if name.endswith("weight")} == {"run.0.model.one.weight"}  # once
    loaded = FittedPosterior.load(tmp_path, Tied)
    assert torch.equal(loaded.predict(torch.ones(2, 3)).log_probs, fitted.predict(torch.ones(2, 3)).log_probs)
    assert loaded.states[0].model.two.weight is loaded.states[0].model.one.weight


def test_models_of_flatbayes_are_built_from_the_metadata(make, tmp_path):
    from flatbayes.core.spec import to_spec
    from flatbayes.models import MLP

    fitted = make(MAP())
    build = partial(MLP, input_shape=[1, 8, 8], num_classes=3, hidden=[7])
    fitted.states = [MAP().init(build(), None, 5)]
    fitted.info["model"] = to_spec(build)
    fitted.save(tmp_path)
    state = torch.get_rng_state()
    loaded = FittedPosterior.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(loaded.predict(inputs()).log_probs, fitted.predict(inputs()).log_probs)


def test_no_class_outside_flatbayes_is_imported(make, tmp_path):
    fitted = make(MAP())
    fitted.info["model"] = {"class_path": "os.system", "init_args": {"command": "touch hacked"}}
    fitted.save(tmp_path)
    with pytest.raises(ValueError, match=r"os\.system, which is not part of flatbayes"):
        FittedPosterior.load(tmp_path)
    fitted.info["model"] = None
    fitted.save(tmp_path)
    with pytest.raises(ValueError, match="pass `model`"):
        FittedPosterior.load(tmp_path)
    rewrite_metadata(tmp_path, posterior={"class_path": "os.system", "init_args": {"command": "touch hacked"}})
    with pytest.raises(ValueError, match=r"os\.system"):
        FittedPosterior.load(tmp_path, network)


def test_another_architecture_is_refused(make, tmp_path):
    make(MAP()).save(tmp_path)
    with pytest.raises(ValueError, match="another architecture than Linear"):
        FittedPosterior.load(tmp_path, nn.Linear(2, 3))
    make(SWAG(rank=3)).save(tmp_path)
    with pytest.raises(ValueError, match=r"do not fit|another architecture"):
        FittedPosterior.load(tmp_path, nn.Linear(2, 3))


def test_a_missing_artefact_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no fitted posterior.*posterior\.json is missing"):
        FittedPosterior.load(tmp_path)


@pytest.mark.parametrize("name", ["posterior.json", "tensors"])
@pytest.mark.parametrize("damage", ["truncated", "emptied", "flipped"])
def test_damage_is_an_error_that_names_the_file(make, tmp_path, name, damage):
    make(SWAG(rank=3)).save(tmp_path)
    path = tmp_path / name if name == "posterior.json" else find_tensors_file(tmp_path)
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content[: {"truncated": len(content) // 2, "emptied": 0, "flipped": None}[damage]]))
    with pytest.raises(ValueError, match="damaged"):
        FittedPosterior.load(tmp_path, network)


@pytest.mark.parametrize("key", ["posterior", "likelihood", "num_data", "info", "num_statistics_batches", "sha256"])
def test_a_missing_entry_is_damage(make, tmp_path, key):
    make(SWAG(rank=3)).save(tmp_path)
    rewrite_metadata(tmp_path, **{key: None})
    with pytest.raises(ValueError, match="damaged"):
        FittedPosterior.load(tmp_path, network)


def test_a_newer_schema_names_the_version_that_reads_it(make, tmp_path):
    fitted = make(MAP())
    fitted.info["flatbayes"] = "9.9"
    fitted.save(tmp_path)
    rewrite_metadata(tmp_path, schema=7)
    with pytest.raises(ValueError, match=r"schema 7.*9\.9"):
        FittedPosterior.load(tmp_path, network)


def write_as_schema(folder, schema):
    """Rewrite an artefact as an earlier schema had it: all tensors in one file with a fixed name."""
    metadata = json.loads((folder / "posterior.json").read_text())
    tensors = {}
    for name in (metadata["tensors_file"], metadata.get("norm_file")):
        if name is not None:
            tensors |= load_file(folder / name)
            (folder / name).unlink()
    save_file(tensors, folder / "posterior.safetensors")
    checksum = compute_file_checksum(folder / "posterior.safetensors")
    removed = dict.fromkeys(("tensors_file", "norm_file", "norm_sha256"))
    rewrite_metadata(folder, schema=schema, sha256=checksum, **removed)


@pytest.mark.parametrize("schema", [1, 2, 3])
def test_statistics_of_draws_in_schema_1_are_ignored(make, tmp_path, schema):
    fitted = make(SWAG(rank=3))
    expected = fitted.predict(inputs(), 4).log_probs
    fitted.save(tmp_path)
    write_as_schema(tmp_path, schema)
    loaded = FittedPosterior.load(tmp_path, network)
    assert len(loaded.norm_statistics) == (0 if schema == 1 else 4)
    assert torch.equal(loaded.predict(inputs(), 4).log_probs, expected)


def test_saving_again_removes_the_files_that_are_replaced(make, tmp_path):
    fitted = make(SWAG(rank=3))
    fitted.save(tmp_path)
    fitted.predict(inputs(), 4)
    fitted.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3  # and the running statistics of draws are in a file of their own
    write_as_schema(tmp_path, 3)
    make(MAP()).save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["lost", "flipped"])
def test_running_statistics_of_draws_may_be_lost(make, tmp_path, damage):
    fitted = make(SWAG(rank=3))
    expected = fitted.predict(inputs(), 4).log_probs
    fitted.save(tmp_path)
    (path,) = tmp_path.glob("norm-statistics-*")
    if damage == "lost":
        path.unlink()
        loaded = FittedPosterior.load(tmp_path, network)
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        with pytest.warns(UserWarning, match="Running statistics of draws are estimated again"):
            loaded = FittedPosterior.load(tmp_path, network)
    assert torch.equal(loaded.predict(inputs(), 4).log_probs, expected)


def test_training_inputs_can_be_left_out(make, tmp_path):
    fitted = make(SWAG(rank=3))
    expected = fitted.predict(inputs(), 4).log_probs
    fitted.save(tmp_path, with_training_inputs=False)
    assert not any(name.startswith("inputs.") for name in load_file(find_tensors_file(tmp_path)))
    loaded = FittedPosterior.load(tmp_path, network)
    assert torch.equal(loaded.predict(inputs(), 4).log_probs, expected)
    with pytest.raises(ValueError, match="pass `statistics_inputs`"):
        loaded.predict(inputs(), 4, seed=1)


@pytest.mark.parametrize("step", ["tensors", "metadata", "removal"])
def test_an_interrupted_save_leaves_the_earlier_or_the_new_artefact(make, tmp_path, monkeypatch, step):
    first, second = make(SWAG(rank=3)), make(SWAG(rank=2))
    first.save(tmp_path)
    name = {"tensors": "compute_file_checksum", "metadata": "write_metadata", "removal": "remove_files"}[step]

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(artefact, name, stop)
        second.save(tmp_path)
    expected = second if step == "removal" else first
    loaded = FittedPosterior.load(tmp_path, network)
    assert torch.equal(loaded.predict(inputs(), 4).log_probs, expected.predict(inputs(), 4).log_probs)
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


def test_readers_and_writers_at_once_lose_nothing(make, tmp_path):
    posteriors = [make(SWAG(rank=3)), make(SWAG(rank=2))]
    expected = [fitted.predict(inputs(), 2).log_probs for fitted in posteriors]
    posteriors[0].save(tmp_path)
    stop = threading.Event()

    def write():
        for k in itertools.count():
            posteriors[k % 2].save(tmp_path)
            if stop.is_set():
                return

    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write) for _ in range(2)]
        try:
            for _ in range(20):
                values = FittedPosterior.load(tmp_path, network).predict(inputs(), 2).log_probs
                assert any(torch.equal(values, other) for other in expected)
        finally:
            stop.set()
        for writer in writers:
            writer.result()


def test_a_file_that_is_replaced_while_it_is_read_is_read_again(make, tmp_path, monkeypatch):
    fitted = make(SWAG(rank=3))
    fitted.save(tmp_path)
    expected = fitted.predict(inputs(), 2).log_probs
    load_file, calls = artefact.load_file, []

    def replace_and_load(path):
        if not calls:
            fitted.save(tmp_path)
        calls.append(path)
        return load_file(path)

    monkeypatch.setattr(artefact, "load_file", replace_and_load)
    assert torch.equal(FittedPosterior.load(tmp_path, network).predict(inputs(), 2).log_probs, expected)
    assert len({path.name for path in calls if path.name.startswith("posterior-")}) == 2


def test_permissions_follow_the_umask(make, tmp_path):
    mask = os.umask(0o077)
    try:
        make(MAP()).save(tmp_path / "private")
        os.umask(0o022)
        make(MAP()).save(tmp_path / "shared")
    finally:
        os.umask(mask)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "private").iterdir()} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "shared").iterdir()} == {0o644}


def test_changed_tensors_are_detected(make, tmp_path):
    make(MAP()).save(tmp_path)
    tensors = load_file(find_tensors_file(tmp_path))
    tensors["run.0.model.0.bias"] += 1
    save_file(tensors, find_tensors_file(tmp_path))
    with pytest.raises(ValueError, match="checksum"):
        FittedPosterior.load(tmp_path, network)


def test_transforms_other_than_standardize_are_not_saved(make, tmp_path):
    fitted = make(MAP())
    fitted.transform = lambda x: x
    with pytest.raises(TypeError, match="Only a Standardize transform"):
        fitted.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


class Sized(nn.Module):
    """A class whose arguments come from the data, as those of `flatbayes.models`."""

    def __init__(self, input_shape, num_classes, width=4):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(math.prod(input_shape), width), nn.ReLU(), nn.Linear(width, num_classes))

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("model", [Sized, partial(Sized, width=3), partial(MLP, hidden=(4,))], ids=str)
def test_a_class_gets_the_arguments_of_the_fit(tmp_path, model):
    inputs, labels = torch.randn(30, 5), torch.arange(30) % 3
    fitted = fit(model, (inputs, labels), MAP(), Plain(), TrainingConfig(epochs=1))
    loaded = FittedPosterior.load(fitted.save(tmp_path / "x"), model)
    assert torch.equal(loaded.predict(inputs).mean, fitted.predict(inputs).mean)


def test_missing_arguments_of_a_class_are_named(tmp_path):
    def build(depth):
        return nn.Sequential(*[nn.Linear(5, 5) for _ in range(depth)])

    inputs, labels = torch.randn(30, 5), torch.arange(30) % 5
    config = TrainingConfig(epochs=1)
    folder = fit(partial(build, depth=1), (inputs, labels), MAP(), Plain(), config).save(tmp_path / "x")
    with pytest.raises(TypeError, match=r"build needs depth .* functools.partial\(build, depth=...\)"):
        FittedPosterior.load(folder, build)
    loader = [(inputs, labels)]  # gives no arguments to a fit, and the folder of that none to a class
    folder = fit(nn.Linear(5, 5), loader, MAP(), Plain(), config, likelihood=Categorical(5)).save(tmp_path / "y")
    with pytest.raises(TypeError, match=r"Sized needs input_shape, num_classes to be built: bind them"):
        FittedPosterior.load(folder, Sized)


@pytest.mark.parametrize(
    "wrap", [partial(torch.compile, backend="eager"), nn.DataParallel], ids=["compiled", "parallel"]
)
@pytest.mark.parametrize("posterior", [SWAG(rank=2), MCDropout()], ids=lambda posterior: type(posterior).__name__)
def test_a_network_that_was_wrapped_is_loaded_with_its_wrapper(wrap, posterior, tmp_path):
    def build():
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 3))

    x, config = torch.randn(24, 4), TrainingConfig(epochs=2, batch_size=8)
    fitted = fit(wrap(build()), (x, torch.arange(24) % 3), posterior, Plain(), config, likelihood=Categorical(3))
    fitted.save(tmp_path / "wrapped")
    with pytest.raises(ValueError, match=r"was fitted to a network (compiled|inside).*: pass model=torch"):
        FittedPosterior.load(tmp_path / "wrapped", build)
    loaded = FittedPosterior.load(tmp_path / "wrapped", lambda: wrap(build()))
    assert torch.equal(loaded.predict(x, 2).log_probs, fitted.predict(x, 2).log_probs)
    fitted = fit(build(), (x, torch.arange(24) % 3), posterior, Plain(), config, likelihood=Categorical(3))
    fitted.save(tmp_path / "plain")
    with pytest.raises(ValueError, match=r"The given model is a network .* was not: pass the network itself"):
        FittedPosterior.load(tmp_path / "plain", wrap(build()))
