"""Generated parts of the documentation are up to date."""

import importlib.util
import json
import textwrap
from pathlib import Path

import yaml

from flatbayes.core.files import read_json
from flatbayes.experiments import ComparisonResult
from flatbayes.reporting.queries import list_posteriors, list_seeds
from flatbayes.reporting.terminal_table import format_tables

HOOKS = Path(__file__).parents[2] / "docs" / "hooks"


def load_hook(name):
    spec = importlib.util.spec_from_file_location(name, HOOKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_package_map_shows_the_layers_of_pyproject():
    package_map = load_hook("package_map")
    assert package_map.PICTURE.read_text(encoding="utf-8") == package_map.render_map(), (
        "run `python docs/hooks/package_map.py`"
    )


def test_every_mark_of_a_page_is_filled():
    pages = load_hook("pages")
    docs = HOOKS.parent
    used = {mark for page in docs.rglob("*.md") for mark in pages.MARKS if mark in page.read_text(encoding="utf-8")}
    assert used == set(pages.MARKS)
    for page in docs.rglob("*.md"):
        filled = pages.on_page_markdown(page.read_text(encoding="utf-8"))
        assert not any(mark in filled for mark in pages.MARKS)


def test_the_migration_page_lists_renamed_names():
    filled = load_hook("pages").on_page_markdown((HOOKS.parent / "migration.md").read_text(encoding="utf-8"))
    assert "| `flatbayes.training.Recipe` | `flatbayes.training.TrainingConfig` |" in filled
    assert "| `SAM` | `part` | `ascent_batch_fraction` |" in filled
    assert "| `flatbayes compare` | `--outside` | `--ood` |" in filled


def test_the_names_of_the_methods_in_the_readme_are_current():
    load_hook("pages")  # makes the hooks importable
    import axes

    assert axes.render_names() in axes.README.read_text(encoding="utf-8"), "run `python docs/hooks/axes.py`"


def test_the_table_of_methods():
    """Every method has its cost, a test that names it, and a paragraph `Use it ...` in the docstring of its class."""
    load_hook("pages")
    import axes

    header, _, *lines = axes.render_methods().splitlines()
    rows = {cells[0].strip("`"): cells for cells in ([c.strip() for c in line.split("|")[1:-1]] for line in lines)}
    posteriors, flatness = axes.flatbayes.posteriors, axes.flatbayes.flatness
    methods = [*axes.list_methods(posteriors, axes.Posterior), *axes.list_methods(flatness, axes.Flatness)]
    assert set(rows) == {kind.__name__ for kind in methods}
    assert header.count("|") == 7
    for kind in methods:
        name, _, _, _, test, usage = rows[kind.__name__]
        assert usage, f"{name}: write a paragraph `Use it ...` after the first one of its docstring"
        path = HOOKS.parents[1] / test.partition("/blob/main/")[2].rstrip(")")
        assert kind.__name__ in path.read_text(encoding="utf-8"), f"no test names {name}"
    assert rows["MAP"][2:4] == ["1", "1"]  # the momentum of SGD
    assert rows["SWAG"][3] == "23"  # momentum, mean, squares and twenty deviations
    assert rows["SGLD"][3] == "30"
    assert rows["Ensemble"][2:4] == ["5", "9"]  # four more networks, and five momenta
    assert rows["SAM"][2:4] == ["2", "0"]
    assert rows["MSAM"][2:4] == ["1", "1"]


def test_the_table_of_launches_is_current():
    launches = load_hook("launches")
    page = launches.PAGE.read_text(encoding="utf-8")
    assert launches.insert_launches(page) == page, "run `python docs/hooks/launches.py`"


def test_the_tables_of_benchmarks_are_those_of_the_results():
    benchmarks = load_hook("benchmarks")
    page = benchmarks.PAGE.read_text(encoding="utf-8")
    assert benchmarks.insert_tables(page) == page, "run `python docs/hooks/benchmarks.py`"
    assert page.count("<!-- benchmark: ") == len(json.loads(benchmarks.RESULTS.read_text(encoding="utf-8"))["parts"])


def test_every_export_of_an_axis_is_in_its_table():
    load_hook("pages")
    import axes

    for name in ("SWAG", "SGVB", "IVON", "Laplace", "MCDropout"):
        assert f"| `{name}` | yes | yes |" in axes.render_integrations()
    assert "| `Ensemble` | refused | one loop per member | A Trainer trains one network" in axes.render_integrations()
    for name in ("SWAG", "Laplace", "Ensemble", "SAM", "Delayed", "PosteriorSAM"):
        assert f"| `{name}` |" in axes.render_axes()
    assert "`MSAM`, `Periodic`, `StableSAM`, `VaSSO` | a sampler needs" in axes.render_refused_pairs()


def test_the_readme_shows_the_table_of_the_demo():
    root = HOOKS.parents[1]
    results = ComparisonResult.from_dict(read_json(root / "docs" / "results" / "demo.json"))
    table, _, verdict = format_tables(results, 80).rpartition("\n\n")
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert textwrap.indent(table, "    ") in readme
    assert " ".join(verdict.split()) in " ".join(readme.split())


def test_the_table_of_the_demo_is_that_of_its_configuration():
    root = HOOKS.parents[1]
    config = yaml.safe_load((root / "configs" / "demo.yaml").read_text(encoding="utf-8"))
    results = ComparisonResult.from_dict(read_json(root / "docs" / "results" / "demo.json"))
    assert [method["name"] for method in config["posteriors"]] == list_posteriors(results)
    assert config["num_seeds"] == len(list_seeds(results))
    rhos = {m["name"]: m["flatness"]["init_args"]["rho"] for m in config["posteriors"]}
    assert {run.flatness for run in results.runs} == {"Plain", *(f"SAM(rho={rho})" for rho in rhos.values())}


def test_the_figures_of_the_readme_are_those_of_the_demo():
    for path, text in load_hook("figures").render_figures().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run `python docs/hooks/figures.py`"
