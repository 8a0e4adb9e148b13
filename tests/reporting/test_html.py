"""The HTML page: the right numbers, no external resources, escaped text, and missing or damaged values."""

import math
import re
from html.parser import HTMLParser

import pytest

from flatbayes.experiments import ComparisonResult
from flatbayes.reporting.html import break_label, render_page

HOSTILE = "<script>alert(1)</script>&\"'$x$"
VOID = {"br", "meta", "wbr"}


class Reader(HTMLParser):
    """Collects tags, attributes, table rows and text; fails on unbalanced tags."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.rows, self.text = [], [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
            if "td" in self.open or "th" in self.open:
                self.rows[-1][-1] += data

    def values(self, key):
        return [value for _, name, value in self.attributes if name == key]


def render(results, glossary, selection=None):
    return render_page(ComparisonResult.from_dict(results), glossary, selection)


@pytest.fixture(scope="module")
def whole(make_results, glossary):
    text = render(make_results(), glossary)
    return text, Reader(text)


def test_bytes_are_reproducible(whole, make_results, glossary):
    assert render(make_results(), glossary) == whole[0]


def test_every_posterior_and_metric_is_there_with_its_definition(whole, results, glossary):
    _, reader = whole
    for row in results["summary"]:
        assert row["posterior"] in reader.text
        assert row["metric"] in reader.text
        assert glossary.definitions[row["metric"]] in reader.text


def test_results_table_has_the_right_numbers(whole, results):
    _, reader = whole
    rows = [row for row in reader.rows if len(row) == 8 and "±" in row[1]]
    assert len(rows) == len(results["summary"])
    words = {"flat": "flat better", "plain": "plain better", "tie": "within noise"}
    for shown, row in zip(rows, results["summary"], strict=True):
        metric, plain, flat, difference, interval, holm, effect, verdict = shown
        assert metric.split()[0] == row["metric"]
        for text, side in ((plain, "plain"), (flat, "flat")):
            assert [float(number) for number in text.split("±")] == pytest.approx(
                [row[side], row[f"{side}_sd"]], abs=5.1e-5
            )
        assert float(difference.replace("−", "-")) == pytest.approx(row["difference"], abs=5.1e-5)
        ends = interval.replace("−", "-").strip("[]").split(",")
        assert [float(end) for end in ends] == pytest.approx(row["interval"], abs=5.1e-5)
        assert verdict == words[row["winner"]]
        assert (holm, effect) == ("0.012" if row["winner"] != "tie" else "0.500", "+1.2")


def test_cost_table_has_means_and_ratios(whole):
    _, reader = whole
    ensemble = next(row for row in reader.rows if row[0].startswith("Ensemble") and len(row) == 10)
    assert ensemble[4:7] == ["1,440", "2,880", "2.00×"]
    assert float(ensemble[3].rstrip("×")) == pytest.approx(17.4 / 9.3, rel=0.03)


def test_every_run_is_listed(whole, results):
    _, reader = whole
    runs = [row for row in reader.rows if len(row) > 8 and row[1] in ("Plain", "SAM(rho=0.1)")]
    assert len(runs) == len(results["runs"])
    run = results["runs"][7]
    assert runs[7][:3] == [run["posterior"], run["flatness"], str(run["seed"])]
    assert float(runs[7][4]) == pytest.approx(run["metrics"]["nll"], abs=5.1e-5)


def test_the_page_has_no_external_resources(whole):
    text, reader = whole
    assert not re.search(r"https?:|//[a-z]|@import|<script|<link|<iframe|<img", text)
    assert all(value.startswith("#") for value in reader.values("href"))


def test_ids_are_unique_and_every_reference_has_its_target(whole):
    text, reader = whole
    ids = reader.values("id")
    assert len(ids) == len(set(ids))
    targets = {value[1:] for value in reader.values("href")} | set(re.findall(r"url\(#([\w-]+)\)", text))
    assert targets <= set(ids)


def test_it_is_accessible(whole):
    _, reader = whole
    assert ("html", "lang", "en") in reader.attributes
    assert reader.tags.count("title") == reader.tags.count("h1") == reader.tags.count("main") == 1
    assert reader.tags.count("caption") == reader.tags.count("table")
    labelled = [value for tag, key, value in reader.attributes if tag == "svg" and key == "aria-label"]
    assert len(labelled) == reader.tags.count("svg") == 20
    scopes = [value for tag, key, value in reader.attributes if tag == "th" and key == "scope"]
    assert len(scopes) == reader.tags.count("th")


def test_figures_follow_the_theme_of_the_page(whole):
    text, _ = whole
    figures = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert "currentColor" in figures
    assert "var(--flat)" in figures
    assert not re.search(r"#[0-9a-f]{6}\b", figures)


def test_the_evaluated_split_is_named(make_results, glossary):
    results = make_results(seeds=1, posteriors=["MAP()"], metrics=["nll"], epochs=1)
    assert "measured on the test split" in render(results, glossary)
    results["config"]["split"] = "val"
    assert "measured on the validation split" in render(results, glossary)


def test_the_page_has_the_caveats(whole):
    _, reader = whole
    for phrase in (
        "same 5 seeds",
        "initial weights",
        "test split is fixed",
        "corrected for the number of comparisons",
    ):
        assert phrase in " ".join(reader.text.split())


def test_hostile_text_stays_text(make_results, glossary):
    results = make_results(seeds=2, posteriors=[HOSTILE], metrics=["nll", "<b onload=x>"], epochs=5)
    for run in results["runs"]:
        run["data"] = run["model"] = HOSTILE
        run["flatness"] = run["flatness"].replace("SAM", HOSTILE)
    results["config"] = {HOSTILE: {HOSTILE: [HOSTILE]}}
    results["environment"] = {"processor": HOSTILE}
    results["flatbayes"] = HOSTILE
    text = render(results, glossary)
    reader = Reader(text)
    assert "<script" not in text
    assert not {"script", "b onload"} & set(reader.tags)
    assert "onload" not in [key for _, key, _ in reader.attributes]
    assert reader.text.count(HOSTILE) > 10


@pytest.mark.parametrize("posteriors", [1, 8])
def test_one_seed_has_no_interval_and_no_verdict(make_results, glossary, posteriors):
    labels = [f"Posterior(number={k})" for k in range(posteriors)]
    reader = Reader(render(make_results(seeds=1, posteriors=labels, metrics=["nll", "ece"], epochs=3), glossary))
    assert "Over 1 seed on" in reader.text
    assert "a verdict needs at least 3 seeds" in reader.text
    assert "flat better" not in [cell for row in reader.rows for cell in row]
    assert "±" not in "".join(cell for row in reader.rows for cell in row)
    assert "within noise, or not judged" in reader.text


def test_missing_numbers_are_dashes(make_results, glossary):
    results = make_results(posteriors=["MAP()"])
    row = results["summary"][1]
    row.update(
        difference=math.nan,
        interval=None,
        p_holm=None,
        effect_size=None,
        plain=None,
        plain_sd=None,
        num_seeds=0,
        winner="tie",
    )
    for run in results["runs"]:
        run["metrics"]["nll"] = None if run["seed"] else math.nan
        run["history"]["val_nll"] = [None] * 30
        run["cost"]["peak_memory_mb"] = None
    results["runs"][0]["reliability"] = None
    flat = f"{row['flat']:.4f} ± {row['flat_sd']:.4f}"
    text = render(results, glossary)
    reader = Reader(text)
    assert ["nll ↓", "–", flat, "–", "–", "–", "–", "no interval"] in reader.rows
    assert not re.search(r"\b(nan|None|inf)\b", reader.text, flags=re.IGNORECASE)
    assert not re.search(r"[\s\"](nan|inf)\b", "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)))


def test_sections_without_data_are_left_out(make_results, glossary):
    results = make_results(seeds=2, posteriors=["MAP()"], metrics=["nll"], epochs=2)
    for run in results["runs"]:
        for key in ("reliability", "history", "cost"):
            del run[key]
    reader = Reader(render(results, glossary))
    assert "Learning curves" not in reader.text
    assert "Reliability" not in reader.text
    assert "Cost" not in reader.text


def test_an_unknown_metric_has_no_direction(make_results, glossary):
    reader = Reader(render(make_results(seeds=2, posteriors=["MAP()"], metrics=["novelty"], epochs=2), glossary))
    assert "No definition is recorded." in reader.text
    assert "is better" not in reader.text.split("novelty", 1)[1].split("Means and seeds")[0]


def test_with_several_flatnesses_each_posterior_names_its_own(make_results, glossary):
    results = make_results(seeds=2, metrics=["nll"], epochs=2)
    for run in results["runs"]:
        run["flatness"] = run["flatness"].replace("0.1", str(len(run["posterior"])))
    reader = Reader(render(results, glossary))
    (title,) = re.findall(r"<h1>(.*?)</h1>", render(results, glossary))
    assert title == "Flat against plain training"
    assert ["Metric", "Plain", "Flat", "Difference"] in [row[:4] for row in reader.rows]
    for posterior in {run["posterior"] for run in results["runs"]}:
        assert [f"{posterior} flat: SAM(rho={len(posterior)})"] in reader.rows
        assert f"SAM(rho={len(posterior)})" in reader.text.split("Over 2 seeds")[0]


def test_labels_may_be_broken_after_brackets_and_are_escaped():
    assert break_label("SWAG(rank=0, <b>)") == "SWAG(<wbr>rank=0,<wbr> &lt;b&gt;)"
    assert break_label("ece_scaled", "_") == "ece_<wbr>scaled"
    assert break_label("a(b", "") == "a(b"
