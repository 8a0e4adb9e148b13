"""The section about the choice of hyperparameters: the right trials, and clear words for a damaged file."""

import json

import pytest

from flatbayes.reporting import write_report
from flatbayes.reporting.html import render_page
from flatbayes.reporting.selection import (
    TRIAL_KEYS,
    chosen_trials_table,
    read_selection,
    selection_section,
    trials_table,
)

from .test_html import Reader


def test_each_method_shows_its_trials_and_what_was_chosen(selection):
    rows = Reader(chosen_trials_table(selection)).rows
    assert rows[1:] == [
        ["MAP", "3 (1 failed)", "Point, weight_decay=2", "0.1000", "2", "SAM(rho=0.1)", "0.0800"],
        ["SWAG", "3", "Point, weight_decay=1", "0.2500", "2", "SAM(rho=0.1)", "0.0800"],
    ]
    assert rows[0][3] == rows[0][6] == "Validation nll"


def test_all_trials_are_listed_and_the_chosen_ones_marked(selection):
    rows = Reader(trials_table(selection)).rows[1:]
    assert len(rows) == len(selection["trials"]) == 10
    assert rows[0] == ["MAP", "plain", "Point, weight_decay=0, Plain", "–", ""]
    assert [row[4] == "best" for row in rows] == [trial["is_best"] for trial in selection["trials"]]


def test_the_prose_says_who_had_how_many_trials_of_what(selection):
    text = " ".join(Reader("".join(selection_section(selection))).text.split())
    for said in ("by nll, a mean over 3 seeds", "trained plainly (6 trials in all)", "to choose (4 trials)"):
        assert said in text


def test_the_trials_are_closed_until_asked_for(selection):
    reader = Reader("".join(selection_section(selection)))
    assert reader.tags.count("details") == 1
    assert "open" not in [key for _, key, _ in reader.attributes]


def test_a_setting_that_does_not_begin_as_the_plain_one_is_shown_whole(selection):
    selection["trials"] = [
        {**trial, "setting": "SAM of another kind"} if trial["variant"] == "flat" else trial
        for trial in selection["trials"]
    ]
    assert Reader(chosen_trials_table(selection)).rows[1][5] == "SAM of another kind"


def test_a_method_without_a_choice_has_dashes(selection):
    selection["trials"] = [{**trial, "is_best": False} for trial in selection["trials"]]
    assert Reader(chosen_trials_table(selection)).rows[1][2:] == ["–", "–", "2", "–", "–"]


def test_it_is_on_the_page_only_where_the_file_is(tmp_path, make_results, glossary, selection):
    results = make_results(seeds=2, posteriors=["Point()"], metrics=["nll"], epochs=2)
    (tmp_path / "results.json").write_text(json.dumps({**results, "selection": "not ours"}), encoding="utf-8")
    assert 'id="selection"' not in write_report(tmp_path, glossary).read_text(encoding="utf-8")
    (tmp_path / "selection.json").write_text(json.dumps(selection), encoding="utf-8")
    assert '<section id="selection">' in write_report(tmp_path, glossary).read_text(encoding="utf-8")


def test_hostile_text_stays_text(make_results, glossary, selection):
    hostile = "<script>alert(1)</script>"
    for trial in selection["trials"]:
        trial["method"] = trial["setting"] = hostile
    results = make_results(seeds=2, posteriors=["Point()"], metrics=["nll"], epochs=2)
    text = render_page({**results, "selection": {**selection, "metric": hostile}}, glossary)
    assert "<script" not in text
    assert Reader(text).text.count(hostile) > 20


def test_no_file_is_no_selection(tmp_path):
    assert read_selection(tmp_path) is None


TRIAL = {"method": "MAP", "setting": "Point, Plain", "variant": "plain", "score": 0.1, "is_best": True}


def record(**changes):
    """A selection of one trial, that trial changed."""
    return {"metric": "nll", "seeds": [0], "trials": [{**TRIAL, **changes}]}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "damaged"),
        ("[" * 100_000, "damaged"),
        ("[]", "expected an object, got list"),
        (json.dumps({**record(), "metric": None}), "'metric' should be the name of a metric"),
        (json.dumps({**record(), "seeds": []}), "'seeds' should be a list with at least one entry"),
        (json.dumps({**record(), "trials": {}}), "'trials' should be a list with at least one entry"),
        (json.dumps({**record(), "trials": [TRIAL, 3]}), r"trials\[1\] lacks 'method'"),
        *(
            (json.dumps({**record(), "trials": [{k: v for k, v in TRIAL.items() if k != key}]}), f"lacks '{key}'")
            for key in TRIAL_KEYS
        ),
        (json.dumps(record(score="low")), r"'score' of trials\[0\] should not be 'low'"),
        (json.dumps(record(variant="sharp")), r"'variant' of trials\[0\] should be plain or flat, got 'sharp'"),
    ],
)
def test_a_damaged_file_says_what_is_wrong_and_what_to_do(tmp_path, content, complaint):
    (tmp_path / "selection.json").write_text(content)
    with pytest.raises(ValueError, match=complaint) as caught:
        read_selection(tmp_path)
    assert "flatbayes.experiments.select" in str(caught.value)


def test_what_select_writes_is_understood(tmp_path):
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
    row = Reader(chosen_trials_table(read_selection(tmp_path))).rows[1]
    assert (row[0], row[1], row[2], row[4], row[5]) == ("MAP", "1", "MAP, epochs=2", "1", "SAM(rho=0.1)")
    assert method.name == "MAP"
