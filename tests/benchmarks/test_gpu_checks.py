"""Parts of benchmarks/gpu.py: common random numbers, the comparison of two fits, and the readers of CIFAR-10."""

import importlib
import io
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def modules(monkeypatch):
    """Import modules of the folder of benchmarks."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.randn(3, 4),
        lambda: torch.rand(5, generator=torch.Generator().manual_seed(1)),
        lambda: torch.randn_like(torch.zeros(2, 3, dtype=torch.float64)),
        lambda: torch.zeros(7).normal_(2.0, 3.0),
        lambda: torch.zeros(7).uniform_(-1.0, 1.0),
        lambda: F.dropout(torch.ones(50), 0.4),
        lambda: torch.native_dropout(torch.ones(50), 0.4, True)[0],
    ],
    ids=["randn", "rand", "randn_like", "normal_", "uniform_", "dropout", "native_dropout"],
)
def test_common_noise_does_not_depend_on_generators(modules, draw):
    noise = modules("gpu_noise").CommonNoise
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        with noise():
            results.append(draw())
    assert torch.equal(*results)
    with noise(seed=1):
        assert not torch.equal(draw(), results[0])


def test_dropout_of_the_gpu_drops_the_same_elements(modules):
    noise = modules("gpu_noise").CommonNoise
    with noise():
        masks = F.dropout(torch.ones(1000), 0.3) > 0
    with noise():
        fused = torch.native_dropout(torch.ones(1000), 0.3, True)[0] > 0
    assert torch.equal(masks, fused)
    assert abs(float(masks.float().mean()) - 0.7) < 0.05


def test_a_pair_is_the_same_twice_and_other_noise_is_a_difference(modules, monkeypatch):
    pairs = modules("gpu_pairs")
    first, predictions = pairs.run_pair("SGLD", "SAM", "cpu")
    second, same_predictions = pairs.run_pair("SGLD", "SAM", "cpu")
    assert pairs.find_difference(first, second) == 0
    assert torch.equal(predictions, same_predictions)
    monkeypatch.setattr(pairs, "CommonNoise", lambda: modules("gpu_noise").CommonNoise(seed=1))
    third, _ = pairs.run_pair("SGLD", "SAM", "cpu")
    assert pairs.find_difference(first, third) > pairs.MAX_DIFFERENCE
    assert "does not go with" in pairs.run_pair("MAP", "PosteriorSAM", "cpu")


def make_images(count):
    images = np.random.default_rng(count).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    return images, np.arange(count, dtype=np.int64) % 10


def write_pickles(folder):
    batches = [(f"data_batch_{k}", make_images(k + 3)) for k in range(1, 6)]
    for name, (images, labels) in [*batches, ("test_batch", make_images(20))]:
        content = {b"data": images.reshape(len(images), -1), b"labels": labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    images, labels = (np.concatenate(arrays) for arrays in zip(*(pair for _, pair in batches), strict=True))
    return images, labels, *make_images(20)


@pytest.mark.parametrize("subfolder", [".", "cifar-10-batches-py"])
def test_pickles_and_the_arrays_written_from_them(modules, subfolder, tmp_path, capsys):
    data = modules("gpu_data")
    folder = tmp_path / subfolder
    folder.mkdir(exist_ok=True)
    expected = write_pickles(folder)
    arrays = data.read_arrays(tmp_path)
    data.main(str(tmp_path), str(tmp_path / "cifar10.npz"))
    assert "30 training and 20 test images" in capsys.readouterr().out
    for read in (arrays, data.read_arrays(tmp_path / "cifar10.npz")):
        for array, value in zip(read, expected, strict=True):
            assert np.array_equal(array, value)
            assert array.dtype == value.dtype


def test_images_in_parquet_files(modules, tmp_path):
    images, labels = make_images(20)
    encoded = []
    for pixels in images:
        stream = io.BytesIO()
        Image.fromarray(pixels.transpose(1, 2, 0)).save(stream, "PNG")
        encoded.append({"bytes": stream.getvalue(), "path": None})
    for name in ("train", "test"):
        pq.write_table(pa.table({"img": encoded, "label": labels}), tmp_path / f"{name}.parquet")
    arrays = modules("gpu_data").read_arrays(tmp_path)
    assert np.array_equal(arrays.x, images)
    assert np.array_equal(arrays.y_test, labels)


def test_a_pickle_with_other_objects_is_refused(modules, tmp_path):
    write_pickles(tmp_path)
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": Path("x"), b"labels": []}))
    with pytest.raises(ValueError, match=r"names pathlib.*it is not read"):
        modules("gpu_data").read_arrays(tmp_path)


def test_other_files_are_refused(modules, tmp_path):
    data = modules("gpu_data")
    with pytest.raises(ValueError, match="no source of CIFAR-10"):
        data.read_arrays(tmp_path)
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match=r"lacks the arrays \['y', 'x_test', 'y_test'\]"):
        data.read_arrays(tmp_path / "a.npz")
    small = np.zeros((2, 3, 8, 8), np.uint8)
    np.savez(tmp_path / "b.npz", x=small, y=np.zeros(2), x_test=small, y_test=np.zeros(2))
    with pytest.raises(ValueError, match=r"shape \(2, 3, 8, 8\)"):
        data.read_arrays(tmp_path / "b.npz")


def test_the_recipe_costs_what_its_page_says(modules):
    cost = modules("gpu_recipe_cost")
    recipe = cost.Recipe.load("cpu")
    assert recipe.config.precision.compile is False
    full = cost.Recipe.load("cuda")
    assert cost.count_forward_flops(full.model) == pytest.approx(10.49e9, rel=1e-3)
    assert cost.estimate_pflop(full, measuring=False) == pytest.approx(76.5, rel=1e-2)
    assert cost.estimate_pflop(full, training=False) == pytest.approx(4.76, rel=1e-2)
    pieces = {"startup_s": 30.0, "single_gradient_step_s": 0.05, "two_gradient_step_s": 0.1, "snapshot_s": 0.01,
              "statistics_s": 0.1, "forward_image_s": 1e-5}  # fmt: skip
    estimate = cost.extrapolate(full, pieces, 10.49e9)
    assert estimate["epoch_s"] == pytest.approx(88 * (0.65 * 0.05 + 0.35 * 0.1))
    assert estimate["training_s"] == pytest.approx(40 * estimate["epoch_s"] + 32 * 0.01 + 4 * 5000 * 1e-5 + 30)
    assert estimate["measuring_s"] == pytest.approx(30 * (0.1 + 0.1))
    assert estimate["step_tflop_s"] == pytest.approx(3 * 512 * 10.49e9 / 0.05 / 1e12)


def test_a_host_wait_is_recorded_with_its_place_and_other_errors_go_on(modules):
    checks, waits = modules("gpu_step_checks"), {}
    with checks.note_waits(waits, "SAM"):
        raise RuntimeError("called a synchronizing CUDA operation")
    assert waits["SAM"].startswith("test_gpu_checks.py:")
    assert 'raise RuntimeError("called a synchronizing' in waits["SAM"]
    with pytest.raises(RuntimeError, match="shapes"), checks.note_waits(waits, "MSAM"):
        raise RuntimeError("shapes do not match")
    assert list(waits) == ["SAM"]


@pytest.mark.parametrize(("copies", "is_too_much"), [(3.05, False), (3.2, True)])
def test_more_memory_than_documented_is_a_failure(modules, monkeypatch, copies, is_too_much):
    checks, runner = modules("gpu_step_checks"), modules("gpu_runner")
    monkeypatch.setattr(checks, "measure_peak", lambda *arguments: copies)
    rows = []
    task = runner.Task("memory", "gpu_step_checks:check_memory")
    record = runner.run_task(task, runner.Context("cpu", deadline=float("inf")), rows.append)
    assert record["status"] == ("failed" if is_too_much else "passed")
    assert ("'SAM': '3.20 instead of 3'" in record.get("message", "")) is is_too_much
    assert rows[-1][1]["summary"] == f"SAM {copies:.2f} copies beyond the weights"


def test_a_training_as_long_as_the_time_allows(modules, monkeypatch):
    recipe, runner = modules("gpu_recipe"), modules("gpu_runner")
    pieces = {"startup_s": 20.0, "single_gradient_step_s": 0.05, "two_gradient_step_s": 0.1, "snapshot_s": 0.0,
              "statistics_s": 0.1, "forward_image_s": 1e-5}  # fmt: skip
    epochs = []
    monkeypatch.setattr(recipe, "measure_pieces", lambda *arguments: pieces)
    monkeypatch.setattr(recipe, "read_arrays", lambda path: None)
    monkeypatch.setattr(recipe, "train_and_evaluate", lambda recipe, arrays, count: epochs.append(count) or RESULT)
    for seconds, expected in ((30.0, []), (100.0, [12]), (2000.0, [40])):
        epochs.clear()
        context = runner.Context("cuda", runner.time.monotonic() + seconds, data="folder")
        rows = {key: value for row in recipe.run_recipe(context) for key, value in row.items()}
        assert epochs == expected  # an epoch takes 5.94 s, starting 10 s, measuring 6 s
        assert ("skipped" in rows["training"]) is not bool(expected)
    without_images = runner.Context("cuda", runner.time.monotonic() + 2000)
    rows = {key: value for row in recipe.run_recipe(without_images) for key, value in row.items()}
    assert "--data" in rows["training"]["skipped"]


RESULT = {"test": {"accuracy": 0.97, "nll": 0.089, "ece": 0.004}}
