"""Fine-tuning on few images: a whole setting with a tiny network, the summary and the page."""

import shutil

import pytest
import torch
from torch import nn

from flatbayes.core.files import read_json, write_json
from flatbayes.posteriors import IVON
from studies.fine_tuning.page import END, describe_devices
from studies.fine_tuning.selection import select_twins
from studies.images import study, summary
from studies.images.__main__ import main
from studies.images.study import Setting
from studies.images.task import CLASSES, CORRUPTIONS, Examples, LastBlock, Task, build_head, normalize

NUM_CLASSES = len(CLASSES)


def make_examples(count, seed, noise=0.5):
    """Features of 12 dimensions, around a centre for each class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % NUM_CLASSES
    centres = torch.randn(NUM_CLASSES, 12, generator=torch.Generator().manual_seed(9))
    return Examples(centres[labels] + noise * torch.randn(count, 12, generator=generator), labels)


def build_tiny_head():
    return build_head(12, NUM_CLASSES)


@pytest.fixture
def task():
    sets = {"pool": make_examples(160, 0), "val": make_examples(40, 1), "test": make_examples(80, 2)}
    sets |= {name: make_examples(24, 3, noise=3.0) for name in ("ood", *CORRUPTIONS)}
    return Task(sets, build_tiny_head)


def test_training_images_are_nested_and_balanced_and_those_of_seeds_differ(task):
    small, large, other = task.draw_training(2, 0), task.draw_training(6, 0), task.draw_training(2, 1)
    assert small.labels.bincount().tolist() == [2] * NUM_CLASSES
    rows = {tuple(row) for row in large.inputs.tolist()}
    assert {tuple(row) for row in small.inputs.tolist()} < rows
    assert not torch.equal(small.inputs, other.inputs)


def test_images_are_scaled_and_features_are_not():
    images = torch.tensor([0, 255], dtype=torch.uint8)
    assert normalize(images).tolist() == [-1, 1]
    features = torch.tensor([0.0, 255.0])
    assert normalize(features) is features


def test_the_last_block_is_the_end_of_the_network():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self._blocks = nn.ModuleList([nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)])
            self._conv_head, self._bn1, self._swish = nn.Conv2d(5, 6, 1), nn.BatchNorm2d(6), nn.ReLU6()
            self._dropout, self._fc = nn.Dropout(0.2), nn.Linear(6, 2)

    network, x = Network(), torch.randn(3, 3, 4, 4)
    last = LastBlock(network).eval()
    features = network._bn1(network._conv_head(network._blocks[1](network._blocks[0](x)))).clamp(0, 6).mean((2, 3))
    torch.testing.assert_close(last(network._blocks[0](x)), network._fc(features))


def test_lower_rates_are_tried_while_the_lowest_is_the_best():
    assert [*study.try_rates([0.9, 0.3], lambda rate: abs(rate - 0.1))] == pytest.approx([0.9, 0.3, 0.1, 0.1 / 3])
    assert [*study.try_rates([0.9, 0.3], lambda rate: -rate)] == [0.9, 0.3]
    assert len(study.try_rates([0.9], lambda rate: rate)) == 1 + study.MAX_EXTENSIONS


def test_the_flat_twin_has_the_best_radius_above_zero():
    nlls = {(0.0, 9): 0.5, **{(rho, 9): 0.7 for rho in study.RADII}, (0.1, 9): 0.6}
    record = select_twins({key: [{"val": {"MAP": {"nll": nll}}}] for key, nll in nlls.items()})
    assert (record["flat"]["rho"], record["is_flat_better"]) == (0.1, False)
    failed = {key: [{"val": {"MAP": {"nll": None if key[0] == 0.2 else 0.5}}}] for key in nlls}
    assert select_twins(failed)["candidates"][-1]["nll"] == float("inf")
    assert set(select_twins({(0.0, 9): failed[0.0, 9]})) == {"plain", "is_flat_better", "seeds", "candidates"}


def test_a_setting_is_trained_once_and_its_page_has_the_numbers(task, tmp_path, monkeypatch):
    setting = Setting("head", 4)
    changes = {
        "EPOCHS": {"head": {4: 3}},
        "RADII": (0.1,),
        "RATES": (1e-2,),
        "IVON_RATES": (0.1,),
        "IVON_TEMPERATURES": (0.1,),
        "MAX_EXTENSIONS": 0,
        "MAX_RADIUS": 0.2,
        "NUM_SEEDS": 1,
        "NUM_SELECTION_SEEDS": 1,
        "SHARED": {name: study.SHARED[name] for name in ("MAP", "SWAG")},
        "LAPLACE": {0.1: study.LAPLACE[0.1]},
        "load_task": lambda trained, cache: task,
    }
    for name, value in changes.items():
        monkeypatch.setattr(study, name, value)
    for module in (study, summary):
        monkeypatch.setattr(module, "SETTINGS", (setting,))
    study.run_setting(setting, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(study, "try_fit_together", None)
        study.run_setting(setting, tmp_path)  # everything has a file
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{summary.LABELS.start}\n{END}\nafter\n", encoding="utf-8")
    main([str(tmp_path), "--summary", str(tmp_path / "summary.json"), "--page", str(page)])
    data = read_json(tmp_path / "summary.json")
    assert data["finished_trainings"] == data["planned_trainings"] == 4
    (result,) = data["settings"]
    rows = {(row["posterior"], row["metric"]): row for row in result["rows"]}
    assert {name for name, _ in rows} == {"MAP", "SWAG", "Laplace", "Ensemble", "IVON"}
    assert {metric for _, metric in rows} == set(summary.METRICS)
    assert result["sharing_factor"] > 1
    radii, chosen = [c["rho"] for c in result["selection"]["candidates"]], result["selection"]["flat"]["rho"]
    assert radii == ([0, 0.1, 0.2] if chosen == 0.2 else [0, 0.1])
    flat = f"test-shared-0-{chosen:g}.json"
    training = read_json(tmp_path / "head-4" / flat)
    assert training["cost"]["gradients"] == 12  # of six steps
    assert training["law"]["weights_per_example"] == NUM_CLASSES * 13 / 32
    assert training["law"]["gap"] == pytest.approx(training["val"]["MAP"]["nll"] - training["law"]["train_loss"])
    assert training["law"]["sharpness"] > 0
    law = {record["method"]: record for record in data["law"]}
    assert law["IVON"]["setting"] == "head-4"
    assert law["MAP"]["flat_nll"] == [training["test"]["MAP"]["nll"]]
    text = page.read_text(encoding="utf-8")
    assert f"{rows['MAP', 'nll']['plain']:.3f} → {rows['MAP', 'nll']['flat']:.3f}" in text
    num_plain = int(not read_json(tmp_path / "head-4" / "selection.json")["is_flat_better"])
    assert f"Plain training has the lowest validation NLL in {num_plain} of 1 settings" in text
    assert text.endswith("after\n")


def test_nothing_is_chosen_in_a_setting_with_default_options(task, tmp_path, monkeypatch):
    setting = Setting("default", 4)
    assert setting.num_epochs == 150  # 300 steps
    config = study.FINE_TUNING.with_options(epochs=3, early_stopping=True)
    changes = {
        "NUM_SEEDS": 1,
        "FINE_TUNING": config,
        "DEFAULTS": {name: study.DEFAULTS[name] for name in ("MAP", "SWAG")},
        "load_task": lambda level, cache: {"all": task}[level],
    }
    for name, value in changes.items():
        monkeypatch.setattr(study, name, value)
    for module in (study, summary):
        monkeypatch.setattr(module, "SETTINGS", (setting,))
    study.run_setting(setting, tmp_path)
    data = summary.summarize_study(tmp_path)
    (result,) = data["settings"]
    assert data["finished_trainings"] == data["planned_trainings"] == 2
    assert [choice["rho"] for choice in result["selection"]["candidates"]] == [0, study.DEFAULT_RADIUS]
    training = read_json(tmp_path / "default-4" / "test-shared-0-0.05.json")
    assert training["cost"]["num_epochs"] >= 1  # early stopping needs validation images
    assert {row["posterior"] for row in result["rows"]} == {"MAP", "SWAG"}
    assert result["devices"] == [f"cpu, torch {torch.__version__}"]
    assert not describe_devices(result)
    assert describe_devices({"devices": ["cuda H100, torch 2"]}) == ", on cuda H100, torch 2"


def test_law_records_have_twins_of_the_same_seed(tmp_path):
    folder = tmp_path / "head-20"
    folder.mkdir()
    trials = {(rho, 30): [{"val": {"MAP": {"nll": 1.0}}}] for rho in (0.0, 0.1)}
    write_json(folder / "selection.json", select_twins(trials))
    for seed, rho, nll in ((0, 0.0, 0.7), (0, 0.1, 0.6), (1, 0.0, 0.8)):
        law = {"train_loss": 0.1 * seed, "gap": 1.0, "sharpness": 0.2, "weights_per_example": 3.0}
        entry = {"trained": "head", "size": 160, "seed": seed, "rho": rho, "law": law, "cpu_seconds": 60.0}
        entry |= {"cost": {"seconds_one_by_one": 8.0, "seconds_together": 2.0}}
        write_json(folder / f"test-shared-{seed}-{rho:g}.json", entry | {"val": {}, "test": {"MAP": {"nll": nll}}})
    data = summary.summarize_study(tmp_path)
    (record,) = data["law"]
    assert (record["plain_nll"], record["flat_nll"], record["train_loss"]) == ([0.7], [0.6], 0.05)
    assert data["settings"][0]["sharing_factor"] == 4
    assert data["cpu_minutes"] == 3
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    again = summary.summarize_study(elsewhere, data)  # a folder without runs changes nothing
    assert again == data
    copy = elsewhere / "head-20"
    shutil.copytree(folder, copy)
    (copy / "test-shared-1-0.json").unlink()
    assert summary.summarize_study(elsewhere, data) == data  # fewer trainings do not replace more
    entry = read_json(folder / "test-shared-1-0.json")
    for seed in (1, 2):
        write_json(copy / f"test-shared-{seed}-0.1.json", entry | {"seed": seed, "rho": 0.1})
        write_json(copy / f"test-shared-{seed}-0.json", entry | {"seed": seed})
    more = summary.summarize_study(elsewhere, data)
    assert (more["finished_trainings"], len(more["trainings"]), len(more["law"])) == (6, 6, 1)
    assert more["law"][0]["plain_nll"] == [0.7, 0.8, 0.8]


def test_every_setting_has_an_estimate_that_grows_with_the_number_of_images():
    minutes = {setting.name: study.estimate_minutes(setting) for setting in study.SETTINGS}
    for trained in ("default", "head", "block"):
        small, medium, large = (minutes[f"{trained}-{size}"] for size in (20, 50, 200))
        assert 0 < small <= medium < large  # default options: 300 steps at least
    assert isinstance(Setting("block", 20).make_ivon(0.1, 0.1)[0], IVON)
