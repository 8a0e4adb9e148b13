"""The section on hyperparameter selection: the right trials, and clear errors for a damaged file."""

import json

import pytest

from flatbayes.experiments import ComparisonResult, SelectionRecord
from flatbayes.reporting import write_report
from flatbayes.reporting.html import make_environment, render_page
from flatbayes.reporting.selection import summarize_selection

from .test_html import Reader


def render_section(selection):
    summary = summarize_selection(SelectionRecord.from_dict(selection))
    return Reader(make_environment().get_template("selection.html.j2").render(selection=summary))


def test_each_method_has_its_trials_and_the_selected_setting(selection):
    rows = render_section(selection).rows
    assert rows[1:3] == [
        ["MAP", "3 (1 failed)", "MAP, weight_decay=2", "0.1000", "2", "SAM(rho=0.1)", "0.0800"],
        ["SWAG", "3", "MAP, weight_decay=1", "0.2500", "2", "SAM(rho=0.1)", "0.0800"],
    ]
    assert rows[0][3] == rows[0][6] == "Validation nll"


def test_all_trials_are_listed_and_the_best_ones_marked(selection):
    rows = render_section(selection).rows[4:]
    assert len(rows) == len(selection["trials"]) == 10
    assert rows[0] == ["MAP", "plain", "MAP, weight_decay=0, Plain", "–", ""]
    assert [row[4] == "best" for row in rows] == [trial["is_best"] for trial in selection["trials"]]


def test_the_text_has_the_number_of_trials_of_each_variant(selection):
    text = " ".join(render_section(selection).text.split())
    for phrase in ("by nll, the mean over 3 seeds", "plain training (6 trials in all)", "was selected (4 trials)"):
        assert phrase in text


def test_the_trials_are_collapsed(selection):
    reader = render_section(selection)
    assert reader.tags.count("details") == 1
    assert "open" not in [key for _, key, _ in reader.attributes]


def test_a_setting_that_does_not_begin_as_the_plain_one_is_shown_whole(selection):
    selection["trials"] = [
        {**trial, "setting": "SAM of another kind"} if trial["variant"] == "flat" else trial
        for trial in selection["trials"]
    ]
    assert render_section(selection).rows[1][5] == "SAM of another kind"


def test_a_method_without_a_best_trial_has_dashes(selection):
    selection["trials"] = [{**trial, "is_best": False} for trial in selection["trials"]]
    assert render_section(selection).rows[1][2:] == ["–", "–", "2", "–", "–"]


def test_it_is_on_the_page_only_where_the_file_is(tmp_path, make_results, glossary, selection):
    results = make_results(seeds=2, posteriors=["MAP()"], metrics=["nll"], epochs=2)
    (tmp_path / "results.json").write_text(json.dumps({**results, "selection": "not ours"}), encoding="utf-8")
    assert 'id="selection"' not in write_report(tmp_path, glossary).read_text(encoding="utf-8")
    (tmp_path / "selection.json").write_text(json.dumps(selection), encoding="utf-8")
    assert '<section id="selection">' in write_report(tmp_path, glossary).read_text(encoding="utf-8")


def test_hostile_text_stays_text(make_results, glossary, selection):
    hostile = "<script>alert(1)</script>"
    for trial in selection["trials"]:
        trial["method"] = trial["setting"] = hostile
    results = make_results(seeds=2, posteriors=["MAP()"], metrics=["nll"], epochs=2)
    record = SelectionRecord.from_dict({**selection, "metric": hostile})
    text = render_page(ComparisonResult.from_dict(results), glossary, record)
    assert "<script" not in text
    assert Reader(text).text.count(hostile) > 20


def test_no_file_is_no_selection(tmp_path):
    assert SelectionRecord.load(tmp_path) is None


TRIAL = {"method": "MAP", "setting": "MAP, Plain", "variant": "plain", "score": 0.1, "is_best": True}


def record(**changes):
    """A selection of one trial, that trial changed."""
    return {"schema": 2, "metric": "nll", "seeds": [0], "trials": [{**TRIAL, **changes}]}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "damaged"),
        ("[" * 100_000, "damaged"),
        ("[]", "the file should be an object, got list"),
        (json.dumps({**record(), "metric": None}), "the file lacks 'metric'"),
        (json.dumps({**record(), "seeds": []}), "'seeds' should be a list with at least one entry"),
        (json.dumps({**record(), "trials": {}}), "'trials' should be a list with at least one entry"),
        (json.dumps({**record(), "trials": [TRIAL, 3]}), r"trials\[1\] should be an object, got int"),
        *(
            (json.dumps({**record(), "trials": [{k: v for k, v in TRIAL.items() if k != key}]}), f"lacks '{key}'")
            for key in TRIAL
        ),
        (json.dumps(record(score="low")), r"'score' of trials\[0\] should not be 'low'"),
        (json.dumps(record(variant="sharp")), r"'variant' of trials\[0\] should be plain or flat, got 'sharp'"),
    ],
)
def test_errors_for_a_damaged_file_name_the_field_and_the_remedy(tmp_path, content, complaint):
    (tmp_path / "selection.json").write_text(content)
    with pytest.raises(ValueError, match=complaint) as caught:
        SelectionRecord.load(tmp_path)
    assert "flatbayes.experiments.select_methods" in str(caught.value)


def test_the_file_of_select_methods_is_read(tmp_path):
    from functools import partial

    from flatbayes.data import Digits
    from flatbayes.experiments import Comparison, Method, select_methods
    from flatbayes.flatness import SAM
    from flatbayes.models import MLP
    from flatbayes.posteriors import MAP
    from flatbayes.training import Constant, TrainingConfig

    common = Comparison(
        source=Digits(train_size=40, val_size=20),
        model=partial(MLP, hidden=(4,)),
        posteriors=(MAP(),),
        config=TrainingConfig(epochs=1, batch_size=20, num_validations=0, schedule=Constant()),
        num_seeds=1,
    )
    (method,) = select_methods(
        common,
        {"MAP": [Method(MAP(), config_overrides={"epochs": 2})]},
        [SAM(rho=0.1)],
        tmp_path,
        jobs=1,
        show_progress=False,
    )
    row = render_section(json.loads((tmp_path / "selection.json").read_text())).rows[1]
    assert (row[0], row[1], row[2], row[4], row[5]) == ("MAP", "1", "MAP, epochs=2", "1", "SAM(rho=0.1)")
    assert method.name == "MAP"
