"""Malicious artefacts with valid checksums are refused quickly and without large allocations."""

import json
import os
import shutil
import time
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flatbayes.models import MLP
from flatbayes.prediction import FittedPosterior
from flatbayes.prediction.metadata import compute_file_checksum, compute_metadata_checksum
from support import find_tensors_file

FIXTURES = Path(__file__).parent / "fixtures" / "schema-4"


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(FIXTURES / "swag", tmp_path / "a")
    return tmp_path / "a"


def read_raw_metadata(folder):
    return json.loads((folder / "posterior.json").read_text())


def write_sealed_metadata(folder, metadata):
    metadata = {key: value for key, value in metadata.items() if key != "checksum"}
    metadata["sha256"] = compute_file_checksum(find_tensors_file(folder))
    (folder / "posterior.json").write_text(json.dumps({**metadata, "checksum": compute_metadata_checksum(metadata)}))


def assert_refused(folder, match, model=None):
    tracemalloc.start()
    began = time.perf_counter()
    with pytest.raises(ValueError, match=match):
        FittedPosterior.load(folder, model)
    assert time.perf_counter() - began < 20  # type checking and a shared core slow this down
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()


POSTERIORS = [
    ("os.system", {"command": "touch hacked"}, "is not part of flatbayes"),
    ("flatbayes.core.files.write_json", {"path": "hacked", "data": 1}, "is not part of flatbayes"),
    ("flatbayes.likelihoods.Categorical", {"num_classes": 3}, "is not part of flatbayes"),
    ("flatbayes.posteriors.Posterior", {}, "TypeError Can't instantiate abstract"),
    ("flatbayes.posteriors.swag.gaussian_sample", {}, "does not lead to a class"),
    ("flatbayes.posteriors.ggn.torch.load", {}, "does not lead to a class"),
    ("flatbayes.posteriors..", {}, "does not lead to a class"),
    ("flatbayes.posteriors.SWAG", {"rank": 10**9}, "larger than the tensors"),
    ("flatbayes.posteriors.SWAG", {"rank": 10**12, "storage": "cpu"}, "larger than the tensors"),
    ("flatbayes.posteriors.SWAG", {"rank": 5}, "do not fit this posterior"),
    ("flatbayes.posteriors.SWAG", {"rank": {"class_path": "flatbayes.posteriors.SWAG"}}, "damaged: Type"),
    ("flatbayes.posteriors.Laplace", {"temperature": 10**400}, "larger than the tensors"),
    ("flatbayes.posteriors.SGLD", {"max_snapshots": 10**9}, "larger than the tensors"),
    ("flatbayes.posteriors.SGHMC", {"max_snapshots": 10**18}, "larger than the tensors"),
]


@pytest.mark.parametrize(("path", "arguments", "match"), POSTERIORS, ids=[f"{p} {a}"[:60] for p, a, _ in POSTERIORS])
@pytest.mark.parametrize("model", [None, MLP((4,), 3, hidden=(5,))], ids=["ours", "given"])
def test_malicious_posteriors_are_refused(folder, tmp_path, monkeypatch, path, arguments, match, model):
    monkeypatch.chdir(tmp_path)
    metadata = read_raw_metadata(folder)
    write_sealed_metadata(folder, {**metadata, "posterior": {"class_path": path, "init_args": arguments}})
    assert_refused(folder, match, model)
    assert not (tmp_path / "hacked").exists()


MODELS = [
    ("flatbayes.models.replace_head", {"model": 1, "num_outputs": 3}, "is not a subclass of Module"),
    ("flatbayes.models.residual.ResidualNet", {}, "does not lead to a class"),
    ("flatbayes.models.MLP", {"hidden": [10**9]}, "larger than the tensors"),
    ("flatbayes.models.MLP", {"hidden": [1] * 1200}, "larger than the tensors"),
    ("flatbayes.models.MLP", {"hidden": [1] * 22_000}, "longer than 65536 characters"),
    ("flatbayes.models.MLP", {"hidden": [6]}, "do not fit this posterior"),
    ("flatbayes.models.MLP", {"input_shape": [10**18] * 1000}, "cannot be built|larger than"),
    ("flatbayes.models.MLP", {"input_shape": [10**400]}, "larger than the tensors"),
    ("flatbayes.models.MLP", {"num_classes": 2**62}, "larger than the tensors"),
    ("flatbayes.models.MLP", {"unknown": 1}, "cannot be built"),
    ("flatbayes.models.PreResNet", {"input_shape": [3, 32, 32], "depth": 9992}, "larger than the tensors"),
    ("flatbayes.models.ViT", {"input_shape": [3, 32, 32], "depth": 10**9}, "larger than the tensors"),
    ("flatbayes.models.ViT", {"input_shape": [3, 2**20, 2**20], "patch": 1}, "larger than the tensors"),
    ("flatbayes.models.DenseNet", {"input_shape": [3, 32, 32], "growth": 10**9}, "cannot be built|larger than"),
    ("flatbayes.models.WideResNet", {"input_shape": [3, 32, 32], "width": 10**8}, "larger than the tensors"),
    ("flatbayes.models.VGG", {"input_shape": [3, 32, 32], "hidden": [10**9]}, "larger than the tensors"),
]


@pytest.mark.parametrize(("path", "arguments", "match"), MODELS, ids=[f"{p} {a}"[:60] for p, a, _ in MODELS])
def test_malicious_models_are_refused(folder, path, arguments, match):
    metadata = read_raw_metadata(folder)
    usual = {"input_shape": [4], "num_classes": 3}
    metadata["info"]["model"] = {"class_path": path, "init_args": {**usual, **arguments}}
    write_sealed_metadata(folder, metadata)
    assert_refused(folder, match)


ENTRIES = [
    (
        {"likelihood": {"class_path": "flatbayes.likelihoods.Gaussian", "init_args": {"num_targets": 10**10}}},
        "larger",
    ),
    ({"likelihood": {"class_path": "os.system", "init_args": {}}}, "is not part of flatbayes"),
    ({"likelihood": {"num_classes": 3}}, "names no likelihood"),
    ({"posterior": {"rank": 2}}, "names no posterior"),
    ({"num_data": []}, "numbers of training examples"),
    ({"num_data": [96] * 10**4}, "numbers of training examples"),
    ({"num_data": ["96"]}, "numbers of training examples"),
    ({"num_data": [0]}, "numbers of training examples"),
    ({"num_statistics_batches": 10**12}, "damaged: KeyError"),
    ({"num_statistics_batches": True}, "'num_statistics_batches' must be a whole number, got 'True'"),
    ({"num_statistics_batches": -1}, "'num_statistics_batches' must be a whole number, got '-1'"),
    ({"info": []}, "'info' must be an object, got"),
    ({"frozen": "layers.0.weight"}, "'frozen' must be a list of texts, got 'layers.0.weight'"),
    ({"buffers": [1]}, "'buffers' must be a list of texts"),
    ({"updated_buffers": ["a"]}, "'updated_buffers' must be a list with a list of texts or null"),
    ({"interface": []}, "'interface' must be an object"),
    ({"info": {"model": {"class_path": "flatbayes.models.MLP", "init_args": []}}}, "does not say what its model is"),
    ({"schema": [3]}, "was written in schema"),
    ({"schema": 10**9}, "was written in schema"),
]


@pytest.mark.parametrize(("changes", "match"), ENTRIES, ids=[str(changes)[:50] for changes, _ in ENTRIES])
def test_invalid_entries_are_refused(folder, changes, match):
    write_sealed_metadata(folder, read_raw_metadata(folder) | changes)
    assert_refused(folder, match)


INFO = [
    ("feature_names", [1, 2, 3, 4]),
    ("feature_names", {"a": 1}),
    ("feature_names", None),
    ("class_names", "abc"),
    ("class_names", ["a", None, "c"]),
    ("class_names", [["a"]]),
    ("target_names", 3),
    ("input_shape", "4"),
    ("input_shape", [4.0]),
    ("input_shape", [True]),
    ("input_shape", [-4]),
    ("input_shape", [10**9, 10**9]),
    ("input_shape", [1] * 1000),
    ("example_shape", {}),
    ("inputs", "other"),
    ("inputs", []),
    ("csv_format", {"decimal": 1}),
    ("csv_format", "comma"),
    ("cost", {"gradients": "many"}),
    ("cost", 3),
    ("members", 1),
    ("interrupted", True),
    ("flatbayes", []),
    ("model", "flatbayes.models.MLP"),
]


@pytest.mark.parametrize(("key", "value"), INFO, ids=[f"{key} {value}"[:40] for key, value in INFO])
def test_entries_of_info_with_another_type_are_refused(folder, key, value):
    metadata = read_raw_metadata(folder)
    metadata["info"][key] = value
    write_sealed_metadata(folder, metadata)
    assert_refused(folder, f"posterior.json is damaged: the entry of 'info' '{key}' must be ")


@pytest.mark.parametrize(("key", "value"), [("class_names", [0, 1, 2]), ("feature_names", "abcd"), ("cost", 1.5)])
def test_what_could_not_be_loaded_is_not_saved(folder, tmp_path, key, value):
    fitted = FittedPosterior.load(folder)
    fitted.info[key] = value
    with pytest.raises(ValueError, match=f"cannot be saved: the entry '{key}' must be "):
        fitted.save(tmp_path / "b")
    assert not (tmp_path / "b").exists()
    fitted.info |= {
        "class_names": ("a", "b", "c"),
        "feature_names": ["p", "q", "r", "s"],
        "cost": {},
        "own": [1, None],
    }
    assert FittedPosterior.load(fitted.save(tmp_path / "b")).info["class_names"] == ["a", "b", "c"]


TEXTS = [
    ("[" * 100_000, "it is not JSON"),
    ('{"schema": 3, "info": ' + '{"a":' * 5000 + "1" + "}" * 5001, "it is not JSON|checksum"),
    ('{"schema": NaN}', "NaN is not a number of JSON"),
    ('{"schema": 3, "num_data": [1e999]}', "checksum|damaged"),
    ('{"schema": ' + "9" * 10_000 + "}", "it is not JSON"),
    ("[]", "does not describe a fitted posterior"),
    ("\ufeff{}", "it is not JSON"),
    (" " * (2**24 + 1), "at most 16777216 are read"),
]


@pytest.mark.parametrize(("text", "match"), TEXTS, ids=[text[:15].strip() or "large" for text, _ in TEXTS])
def test_invalid_metadata_is_refused(folder, text, match):
    (folder / "posterior.json").write_text(text)
    assert_refused(folder, match)


def header(length, text=b""):
    return length.to_bytes(8, "little") + text


SHAPE = b'{"run.0.model.x":{"dtype":"F32","shape":[%d,4],"data_offsets":[0,%d]}}'
HEADERS = [
    header(2**63),
    header(2**64 - 1),
    header(100, b"{}"),
    header(0),
    b"",
    header(len(SHAPE % (10**12, 16 * 10**12)), SHAPE % (10**12, 16 * 10**12)),
    header(len(SHAPE % (2**62, 16)), SHAPE % (2**62, 16)) + bytes(16),
    header(200_000, b"[" * 200_000),
]


@pytest.mark.parametrize("content", HEADERS, ids=lambda content: repr(content[:12]))
def test_invalid_tensor_headers_are_refused(folder, content):
    find_tensors_file(folder).write_bytes(content)
    write_sealed_metadata(folder, read_raw_metadata(folder))
    assert_refused(folder, "damaged: SafetensorError")


TENSORS = [
    ({"run.0.model.layers.1.weight": torch.zeros(7, 4)}, "another architecture than MLP"),
    ({"run.0.model.layers.1.weight": None}, "another architecture than MLP"),
    ({"run.0.model.layers.1.weight": torch.full((5, 4), torch.nan)}, "holds values that are not numbers"),
    ({"run.0.statistics.mean": torch.zeros(3)}, "do not fit this posterior"),
    ({"run.0.statistics.other": torch.zeros(3)}, "do not fit this posterior"),
    ({"run.0.other": torch.zeros(3)}, "neither weights nor statistics"),
    ({"run.1.model.layers.1.weight": torch.zeros(5, 4)}, "belong to nothing, such as 'run.1.model"),
    ({"../../x": torch.zeros(1)}, "belong to nothing"),
    ({"draw.0.0.0.layers.1.weight": torch.zeros(5, 4)}, "damaged: KeyError"),
    ({"draw.a.b": torch.zeros(1)}, "cannot be used"),
    ({"standardize.std": torch.zeros(4)}, "no mean and standard deviation"),
    ({"standardize.std": None}, "damaged: KeyError"),
    ({"standardize.mean": torch.zeros(4, 4)}, "no mean and standard deviation"),
]


@pytest.mark.parametrize(("changes", "match"), TENSORS, ids=[next(iter(changes)) for changes, _ in TENSORS])
def test_invalid_tensors_are_refused(folder, changes, match):
    tensors = load_file(find_tensors_file(folder)) | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, find_tensors_file(folder))
    write_sealed_metadata(folder, read_raw_metadata(folder))
    assert_refused(folder, match)


@pytest.mark.parametrize("kind", ["metadata", "tensors"])
def test_links_out_of_the_folder_are_refused(folder, tmp_path, kind):
    path = folder / "posterior.json" if kind == "metadata" else find_tensors_file(folder)
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    assert_refused(folder, "is a link out of its folder")


@pytest.mark.parametrize("key", ["tensors_file", "norm_file"])
@pytest.mark.parametrize(
    "name", ["../posterior-0123456789abcdef.safetensors", "/etc/passwd", "posterior.json", "", None, 3, ["a"], {}]
)
def test_names_of_files_are_names_of_an_artefact(folder, key, name):
    metadata = read_raw_metadata(folder)
    write_sealed_metadata(folder, metadata | {key: name})
    assert_refused(folder, "names of files")


def test_a_pipe_is_refused(folder):
    path = find_tensors_file(folder)
    path.unlink()
    os.mkfifo(path)  # reading it would block
    with pytest.raises(FileNotFoundError, match="is missing"):
        FittedPosterior.load(folder)


def test_a_link_to_the_folder_is_accepted(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    FittedPosterior.load(tmp_path / "link")
