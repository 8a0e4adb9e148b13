"""The report file of a folder: written atomically, and clear errors for damaged results."""

import json

import pytest

from flatbayes.reporting import html, write_report

RUN = {"posterior": "MAP", "flatness": "Plain", "seed": 0, "metrics": {}}
ROW = {"posterior": "MAP", "metric": "nll", "plain": 0.1, "flat": 0.1, "winner": "tie"}


def without(entry, key):
    return {k: v for k, v in entry.items() if k != key}


@pytest.fixture
def folder(tmp_path, make_results):
    results = make_results(seeds=2, posteriors=["SWAG(rank=0)"], metrics=["accuracy", "nll"], epochs=3)
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return tmp_path


def test_the_path_of_the_page_is_returned(folder, glossary):
    path = write_report(str(folder), glossary)
    assert path == folder / "report.html"
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert sorted(file.name for file in folder.iterdir()) == ["report.html", "results.json"]


def test_the_default_glossary_has_the_metrics_of_the_package(folder):
    assert "lower is better" in write_report(folder).read_text(encoding="utf-8")


def test_a_failure_keeps_the_old_page_and_leaves_no_temporary_file(folder, glossary, monkeypatch):
    (folder / "report.html").write_text("old")
    monkeypatch.setattr(html, "render_page", lambda *_: "\ud800")
    with pytest.raises(UnicodeEncodeError):
        write_report(folder, glossary)
    assert (folder / "report.html").read_text() == "old"
    assert sorted(file.name for file in folder.iterdir()) == ["report.html", "results.json"]


def test_missing_results_say_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"flatbayes compare --out"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "damaged"),
        ("[]", "the file should be an object, got list"),
        ('{"runs": [], "summary": [1]}', r"summary\[0\] should be an object, got int"),
        ('{"runs": []}', "'summary' should be a list"),
        ('{"runs": [], "summary": []}', "'runs' should be a list"),
        (json.dumps({"runs": [RUN], "summary": []}), "'summary' should be a list"),
        *((json.dumps({"runs": [without(RUN, k)], "summary": []}), rf"runs\[0\] lacks '{k}'") for k in RUN),
        *((json.dumps({"runs": [RUN], "summary": [without(ROW, k)]}), rf"summary\[0\] lacks '{k}'") for k in ROW),
    ],
)
def test_damaged_results_say_what_is_wrong_and_what_to_run(tmp_path, content, complaint):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=complaint) as caught:
        write_report(tmp_path)
    assert "flatbayes compare --out" in str(caught.value)
