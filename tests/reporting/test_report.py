"""From folder to file."""

import json

import pytest

from flatbayes.reporting import report, write_report
from flatbayes.reporting.queries import ROW_KEYS, RUN_KEYS


@pytest.fixture
def folder(tmp_path, make_results):
    results = make_results(seeds=2, posteriors=["SWAG(rank=0)"], metrics=["accuracy", "nll"], epochs=3)
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return tmp_path


def test_write_report_says_where_the_page_is(folder, glossary):
    path = write_report(str(folder), glossary)
    assert path == folder / "report.html"
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert sorted(file.name for file in folder.iterdir()) == ["report.html", "results.json"]


def test_write_report_knows_the_library_s_metrics(folder):
    assert "lower is better" in write_report(folder).read_text(encoding="utf-8")


def test_a_failure_leaves_the_old_page_and_no_litter(folder, glossary, monkeypatch):
    (folder / "report.html").write_text("old")
    monkeypatch.setattr(report, "render_page", lambda *_: "\ud800")
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
        ("[]", "expected an object, got list"),
        ('{"runs": [], "summary": [1]}', "'runs' should be a list"),
        (json.dumps({"runs": [dict.fromkeys(RUN_KEYS[1:])], "summary": []}), r"runs\[0\] lacks 'posterior'"),
        (
            json.dumps({"runs": [dict.fromkeys(RUN_KEYS)], "summary": [dict.fromkeys(ROW_KEYS[:-1])]}),
            r"summary\[0\] lacks 'winner'",
        ),
    ],
)
def test_damaged_results_say_what_is_wrong_and_what_to_run(tmp_path, content, complaint):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=complaint) as caught:
        write_report(tmp_path)
    assert "flatbayes compare --out" in str(caught.value)
