from pathlib import Path

from flatbayes.core.files import read_json
from studies.fine_tuning.__main__ import RESULTS, is_finished, main, render_tables

ROOT = Path(__file__).parents[2]


def test_the_pages_say_what_the_results_say():
    tables = render_tables(*(read_json(RESULTS / f"{name}.json") for name in ("sentences", "images")))
    pages = {"fine-tuning": ROOT / "README.md", "fine-tuning-settings": ROOT / "docs" / "fine-tuning.md"}
    for name, page in pages.items():
        assert tables[name] in page.read_text(encoding="utf-8"), (
            "run `python -m studies.fine_tuning README.md docs/fine-tuning.md`"
        )


def test_the_marks_of_a_page_are_filled_again(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- begin fine-tuning -->\nearlier text\n<!-- end fine-tuning -->\nafter\n", encoding="utf-8"
    )
    main([str(page)])
    text = page.read_text(encoding="utf-8")
    assert "earlier text" not in text
    assert "| Posterior |" in text
    assert text.endswith("after\n")
    main([str(page)])
    assert page.read_text(encoding="utf-8") == text


def test_a_setting_without_all_seeds_is_not_on_the_page():
    setting = {"rows": [{}], "finished_trainings": 10, "planned_trainings": 10}
    assert is_finished(setting)
    assert not is_finished(setting | {"finished_trainings": 6})
    assert not is_finished(setting | {"rows": []})
