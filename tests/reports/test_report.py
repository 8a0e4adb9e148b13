"""From folder to file, and what a browser makes of it."""

import json
import re
import shutil
import subprocess

import pytest

from flatbayes.reports import report, write_report
from flatbayes.reports.html import page
from flatbayes.reports.results import ROW_KEYS, RUN_KEYS

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = """<script>
const drawn = [...document.querySelectorAll("figure svg")].filter(f => f.getBoundingClientRect().height > 40);
const overflow = document.documentElement.scrollWidth - innerWidth;
console.log(`width ${innerWidth}: overflow ${overflow}, drawn ${drawn.length}`);
</script></html>"""
WIDTHS = (390, 1200)
FLAGS = (
    "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
    "disable-component-update disable-sync hide-scrollbars dump-dom enable-logging=stderr"
)


def console_of(page, profile):
    """What a browser's console says of a page."""
    done = subprocess.run(
        [BROWSER, *(f"--{flag}" for flag in FLAGS.split()), f"--user-data-dir={profile}", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "</html>" in done.stdout
    return re.findall(r'CONSOLE[^"]*"([^"]*)"', done.stderr)


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
    monkeypatch.setattr(report, "page", lambda *_: "\ud800")
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
            r"summary\[0\] lacks 'wins'",
        ),
    ],
)
def test_damaged_results_say_what_is_wrong_and_what_to_run(tmp_path, content, complaint):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=complaint) as caught:
        write_report(tmp_path)
    assert "flatbayes compare --out" in str(caught.value)


@pytest.mark.skipif(BROWSER is None, reason="no chromium")
def test_a_browser_renders_it_on_phone_and_desk_without_complaint(tmp_path, make_results, glossary):
    text = page(make_results(), glossary)
    policy = re.search(r"<meta http-equiv=[^>]*>", text)[0]
    (tmp_path / "report.html").write_text(text.replace(policy, "").replace("</html>", PROBE), encoding="utf-8")
    frames = "".join(f'<iframe src="report.html" width="{width}" height="900"></iframe>' for width in WIDTHS)
    (tmp_path / "frames.html").write_text(f"<!doctype html>{frames}", encoding="utf-8")
    said = console_of(tmp_path / "frames.html", tmp_path / "profile")
    assert sorted(said) == sorted(f"width {width}: overflow 0, drawn 20" for width in WIDTHS)


@pytest.mark.skipif(BROWSER is None, reason="no chromium")
def test_the_page_keeps_its_own_policy(folder, glossary):
    assert console_of(write_report(folder, glossary), folder / "profile") == []
