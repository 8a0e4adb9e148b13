"""The study of interpolating networks on a tiny setting: order, choice, summary and page."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from flatbayes.core.files import read_json
from flatbayes.data import Digits
from flatbayes.experiments import Comparison, Method, SummaryRow
from flatbayes.experiments.summary import add_adjusted_p_values
from flatbayes.models import MLP
from flatbayes.posteriors import MAP, Ensemble, Laplace
from flatbayes.training import TrainingConfig
from studies.interpolation.merge import RECORDS, merge_settings
from studies.interpolation.network import SmallResNet
from studies.interpolation.page import END, START, update_page
from studies.interpolation.settings import MAKERS, Setting, get_setting
from studies.interpolation.study import group_methods, list_evaluations, list_judges, run_setting, select_radii
from studies.interpolation.summary import summarize

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "interpolation.json"

SETTING = Setting(
    "tiny",
    "digits, MLP",
    Comparison(
        Digits(train_size=40, val_size=20, test_size=200),
        partial(MLP, hidden=(4,)),
        [MAP()],
        config=TrainingConfig(epochs=2, num_validations=2),
        num_seeds=2,
        num_draws=2,
    ),
    {"MAP": [Method(MAP())], "Laplace": [Method(Laplace(temperature=t)) for t in (0.1, 1.0)],
     "Ensemble": [Method(Ensemble(size=2))]},
    radii=(0.05, 0.1),
    num_selection_seeds=1,
    input_shape=(1, 8, 8),
    train_size=40,
    observed=("MAP",),
)  # fmt: skip


@pytest.mark.slow
def test_a_study_runs_resumes_and_is_summarized(tmp_path, monkeypatch):
    assert run_setting(SETTING, tmp_path / "tiny") == []
    files = sorted(path.stat().st_mtime_ns for path in (tmp_path / "tiny" / "runs").glob("*.json"))
    assert run_setting(SETTING, tmp_path / "tiny") == []  # nothing is trained again
    assert files == sorted(path.stat().st_mtime_ns for path in (tmp_path / "tiny" / "runs").glob("*.json"))

    results = summarize(tmp_path, [SETTING])
    tiny = results["settings"]["tiny"]
    assert (tiny["finished"], tiny["planned"]) == (12, 12)
    assert len(set(tiny["selected"].values())) == 1  # one radius for the shared training
    assert summarize(tmp_path / "elsewhere", [SETTING], results)["settings"] == results["settings"]
    assert tiny["counts"]["usual"]["comparisons"] == 15
    laplace = next(record for record in tiny["law"] if record["method"] == "Laplace")
    first = next(record for record in tiny["law"] if record["method"] == "MAP")
    assert laplace["train_loss"] == first["train_loss"]
    assert laplace["gap"] != first["gap"]
    assert first["sharpness"] is not None
    assert len(first["plain_nll"]) == 2
    assert tiny["sharing"]["gradients_alone"] == 2 * tiny["sharing"]["gradients_shared"]
    trials = [trial for trial in tiny["trials"] if trial["variant"] == "flat"]
    assert {trial["method"] for trial in trials} == {"MAP", "Laplace"}  # the ensemble takes the radius of its member

    page = tmp_path / "page.md"
    page.write_text(f"above\n{START}\n{END}\nbelow\n")
    update_page(page, results)
    assert "12 of 12 trainings have finished" in page.read_text()


def test_the_choice_does_not_read_test_results(tmp_path, monkeypatch):
    def evaluate(setting, name, method, flatness, seed):
        return {"val": next(iter(list_evaluations(setting, name, method, flatness, seed).values()))}

    scores = {0.05: 0.4, 0.1: 0.3}

    class Result:
        def __init__(self, run):
            self.metrics = {"nll": scores.get(run.flatness.radius, 0.35)}

    monkeypatch.setattr("studies.interpolation.study.list_evaluations", evaluate)
    monkeypatch.setattr("flatbayes.experiments.ExperimentRun.load_result", lambda run, folder: Result(run))
    choice = select_radii(SETTING, tmp_path)
    assert {method.flatness.radius for method in choice.methods.values()} == {0.1}
    assert choice.unpaid == ()
    scores[0.1] = 0.36
    choice = select_radii(SETTING, tmp_path)
    assert set(choice.unpaid) == {"MAP", "Laplace"}


@pytest.mark.parametrize("name", MAKERS)
def test_settings_have_ten_methods(name):
    setting = get_setting(name)
    assert len(setting.candidates) == 10
    groups = group_methods(setting, {name: methods[0] for name, methods in setting.candidates.items()})
    plain = {name: (methods[0], ()) for name, methods in setting.candidates.items()}
    judges = [name for names in groups.values() for name in list_judges(setting, names, plain)]
    if name == "cifar10":
        assert len(groups) == 5
        assert "Ensemble" not in judges
        assert setting.num_weights == 1_228_970
    else:
        assert len(groups) == len(judges) == 10


def test_with_several_seeds_of_the_selection_every_method_has_its_own_radius():
    setting = replace(SETTING, num_selection_seeds=2)
    assert len(group_methods(setting, {name: m[0] for name, m in setting.candidates.items()})) == 3


@pytest.mark.parametrize("name", MAKERS)
def test_methods_of_two_machines_make_one_table(name):
    whole = read_json(RESULTS)["settings"][name]
    parts = [select_methods(whole, keep) for keep in (lambda i: i % 2, lambda i: not i % 2)]
    merged = merge_settings(*parts, get_setting(name).candidates)
    by_method = {
        key: lambda r, label=label: list(whole["selected"]).index(r[label]) for key, label in RECORDS.items()
    }
    expected = {**whole, **{key: sorted(whole[key], key=order) for key, order in by_method.items()}}
    del merged["sharing"], expected["sharing"]
    merged = {**merged, **{key: sorted(merged[key], key=order) for key, order in by_method.items()}}
    assert merged == expected
    assert merge_settings(whole, parts[0], get_setting(name).candidates)["selected"] == whole["selected"]


def select_methods(setting, keep):
    """A part of a summary, as if the other methods had never been trained."""
    names = [name for i, name in enumerate(setting["selected"]) if keep(i)]
    records = {key: [r for r in setting[key] if r[label] in names] for key, label in RECORDS.items()}
    rows = add_adjusted_p_values([SummaryRow.from_dict(row) for row in records["rows"]])
    return {
        **setting,
        **records,
        "rows": [row.to_dict() for row in rows],
        "finished": setting["finished"] * len(names) // len(setting["selected"]),
        "selected": {key: value for key, value in setting["selected"].items() if key in names},
        "plain_is_best_on_validation": [n for n in setting["plain_is_best_on_validation"] if n in names],
    }


def test_the_network_halves_images_four_times_and_drops_as_asked():
    network = SmallResNet((3, 32, 32), 10, widths=(4, 6, 8, 10), dropout=0.5)
    inputs = torch.randn(2, 3, 32, 32)
    assert network.blocks(network.stem(inputs)).shape == (2, 10, 2, 2)
    assert network(inputs).shape == (2, 10)
    assert [m.p for m in network.modules() if isinstance(m, torch.nn.Dropout)] == [0.5] * 4
