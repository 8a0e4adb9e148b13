"""Folders of runs: reserved, continued, refused, cleared."""

import json

import pytest

from flatbayes.experiments import ComparisonResult, RunResult, claim_folder
from flatbayes.experiments.folder_lock import unlock_folders
from flatbayes.experiments.run_folder import ARTIFACT_FILES, CONFIG_KEYS, RunFolder, clear_folder

SPEC = {"class_path": "flatbayes.posteriors.MAP", "init_args": {}}
CONFIG = dict.fromkeys(CONFIG_KEYS, SPEC) | {"config": {}, "seed": 0}


@pytest.fixture(autouse=True)
def unlocked():
    yield
    unlock_folders()


def test_only_extendable_keys_may_differ_when_a_run_is_continued(tmp_path):
    claim_folder(tmp_path, {"seeds": 1, "data": "a"}, ("seeds",))
    claim_folder(tmp_path, {"seeds": 2, "data": "a"}, ("seeds",))
    assert json.loads((tmp_path / "config.json").read_text())["seeds"] == 2
    with pytest.raises(ValueError, match=r"another run \(it differs in data\)"):
        claim_folder(tmp_path, {"seeds": 2, "data": "b"}, ("seeds",))
    with pytest.raises(ValueError, match=r"it differs in seeds"):
        claim_folder(tmp_path, {"seeds": 1, "data": "a"})
    claim_folder(tmp_path, {"seeds": 1, "data": "b"}, overwrite=True)


def test_a_folder_of_flatbayes_0_1_is_not_continued(tmp_path):
    (tmp_path / "config.json").write_text('{"recipe": {}, "seeds": 2}')
    with pytest.raises(ValueError, match="a run of flatbayes 0.1"):
        claim_folder(tmp_path, {"config": {}, "num_seeds": 2})


def test_a_new_run_needs_an_empty_folder(tmp_path):
    folder = RunFolder.create(tmp_path, CONFIG)
    assert folder.read_config() == CONFIG
    with pytest.raises(ValueError, match=r"already holds a run \(config.json, environment.json\)"):
        RunFolder.create(tmp_path, CONFIG)
    RunFolder.create(tmp_path, CONFIG, resume=True)
    with pytest.raises(ValueError, match="it differs in seed"):
        RunFolder.create(tmp_path, CONFIG | {"seed": 1}, resume=True)
    with pytest.raises(ValueError, match="choose one of them"):
        RunFolder.create(tmp_path, CONFIG, resume=True, overwrite=True)


def test_the_configuration_of_flatbayes_0_1_is_read_under_its_new_key(tmp_path):
    old = {("recipe" if key == "config" else key): value for key, value in CONFIG.items()}
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert RunFolder.open(tmp_path).read_config() == CONFIG


def test_results_of_several_splits_stand_beside_each_other(tmp_path):
    folder = RunFolder.create(tmp_path, CONFIG)
    for split, nll in (("val", 1.0), ("test", 2.0), ("val", 3.0)):
        folder.add_result(RunResult("MAP", "Plain", 0, {"nll": nll}, split=split))
    runs = ComparisonResult.load(tmp_path).runs
    assert [(run.split, run.metrics["nll"]) for run in runs] == [("test", 2.0), ("val", 3.0)]


def test_every_file_of_a_command_is_cleared(tmp_path):
    for name in (*ARTIFACT_FILES, "own.txt"):
        (tmp_path / name).write_text("")
    clear_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["own.txt"]
