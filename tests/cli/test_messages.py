"""Every typical mistake has an answer in one or two lines; what is meant unambiguously is understood."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from flatbayes.cli import main
from flatbayes.cli.arguments import normalize_arguments
from flatbayes.cli.main import VERBS, load_verb
from flatbayes.core.spec import to_spec

sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "hooks"))
import mistakes

DUMPS = ("Union", "Namespace", "<class", "NestedArg", "typing.", "Parser key", "Traceback", "functools.partial")
MAX_LENGTH = 460


def read_options(monkeypatch, command):
    """Options of a command as plain data; nothing is run."""
    seen = []
    monkeypatch.setattr(importlib.import_module("flatbayes.cli.main"), "_run_verb", seen.append)
    assert main(shlex.split(command)) == 0
    verb = seen[0][seen[0].subcommand]
    return {name: value if name == "config" else str(value) for name, value in verb.as_dict().items()}


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda command: read_options(monkeypatch, command)


def test_the_page_shows_what_is_said_now():
    page = mistakes.PAGE.read_text(encoding="utf-8")
    rendered = mistakes.render_mistakes()
    assert f"{mistakes.START}\n\n{rendered}\n\n{mistakes.END}" in page, "run `python docs/hooks/mistakes.py`"
    rows = [line for line in rendered.splitlines() if line.startswith("| `")][1:]  # without the header
    assert len(rows) - len(mistakes.UNDERSTOOD) >= 40
    for row in rows[: len(mistakes.MISTAKES)]:
        answer = row.split("` | ", 1)[1]
        assert len(answer) < MAX_LENGTH, answer
        assert not any(dump in answer for dump in DUMPS), answer
        assert "/tmp" not in answer


@pytest.mark.parametrize(("typed", "meant"), mistakes.UNDERSTOOD, ids=[typed for typed, _ in mistakes.UNDERSTOOD])
def test_what_is_meant_is_understood(options, typed, meant):
    if typed.startswith("fit") and "SGVB" in typed:
        assert "lr=0.01" in options(typed)["optimizer"].replace("'lr': ", "lr=")
        return
    assert options(typed) == options(meant)


BOGUS = {"posterior": "SWGA", "flatness": "SMA", "data": "digist", "model": "MPL", "schedule": "cosin"}


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_every_verb_answers_wrong_names_and_values(tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    parser = load_verb(verb).make_parser()
    folders = [] if verb in ("fit", "compare", "tune", "reference") else ["run"]
    commands = [["--nonsense", "3"]] + ([] if verb == "diagnose" else [["surplus"]])
    for action in parser._actions:
        flag = next((text for text in action.option_strings if text.startswith("--")), "")
        option, hint = flag[2:], getattr(action, "_typehint", None)
        if not flag or option in ("help", "print_config") or option.endswith(".help"):
            continue
        commands += [[f"{flag}xq", "3"], [flag, ""]]
        if action.nargs != "*" and hint not in (
            str,
            Path,
            str | None,
            Path | None,
            str | list[str] | None,
            list[str],
        ):
            commands.append([flag, BOGUS.get(option, "{nonsense")])
    for command in commands:
        with pytest.raises(ValueError) as caught:
            normalize_arguments(verb, parser, [*folders, *command])
        message = str(caught.value)
        assert "\n" not in message
        assert len(message) < MAX_LENGTH + 100
        assert not any(dump in message for dump in DUMPS), message
        assert command[0].lstrip("-").removesuffix("xq").rpartition(".")[2] in message, (command, message)


CONFIGS = [
    ({"epcohs": 3}, "no option epcohs. Did you mean epochs?"),
    ({"Data": "digits"}, "Did you mean data?"),
    ({"epochs": "many"}, "epochs must be a whole number, got 'many'"),
    ({"epochs": True}, "epochs must be a whole number, got True"),
    ({"precision": {"compile": "maybe"}}, "precision.compile must be true or false, got 'maybe'"),
    ({"precision": {"mod": "32-true"}}, "precision has no option mod. Did you mean mode?"),
    ({"precision": "16-mixed"}, "precision is a group of options"),
    ({"flatness": {"class_path": "sam", "init_args": {"rho": "x"}}}, "rho of SAM must be a number or auto, got 'x'"),
    ({"flatness": {"roh": 0.1}}, "SAM has no option roh. Did you mean rho?"),
    ({"posterior": 3}, "posterior must be a name such as SWAG, got 3"),
    ({"posterior": {"ensemble": {"member": {"class_path": "swag", "init_args": {"rnk": 1}}}}},
     "SWAG has no option rnk. Did you mean rank?"),
    ({"data": {"path": "x.csv"}}, "data must be a name such as digits"),
    ({"schedule": "cosin"}, "Unknown schedule 'cosin'. Did you mean Cosine?"),
    ({"params": "all"}, "params could be flatness.params or posterior.params"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "message"), CONFIGS, ids=[str(config) for config, _ in CONFIGS])
def test_mistakes_in_a_configuration_file(tmp_path, monkeypatch, capsys, config, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"data": "digits", "out": "o", **config}))
    assert main(["fit", "--config", "c.yaml"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("flatbayes: c.yaml: ")


@pytest.mark.parametrize(
    ("config", "arguments"),
    [
        ({"flatness": "asam", "posterior": "swag"}, "--flatness ASAM --posterior SWAG"),
        ({"flatness": {"asam": {"rho": 0.2}}}, "--flatness ASAM --flatness.rho 0.2"),
        ({"flatness": {"rho": 0.2}, "rank": 3}, "--flatness.rho 0.2 --posterior.rank 3"),
        ({"flatness.rho": 0.2, "collection.start_fraction": 0.5}, "--rho 0.2 --collection.start_fraction 0.5"),
        ({"batch-size": 16}, "--batch_size 16"),
    ],
)
def test_names_in_a_configuration_file_are_completed_as_on_the_command_line(tmp_path, options, config, arguments):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"data": "digits", **config}))
    from_file = options("fit --config c.yaml --out o")
    from_file.pop("config")
    typed = options(f"fit --data digits {arguments} --out o")
    typed.pop("config")
    assert from_file == typed


@pytest.mark.parametrize("verb", ["fit", "compare", "tune"])
def test_help_lists_both_axes_and_describes_each_class(capsys, verb):
    from flatbayes.cli.aliases import list_names

    with pytest.raises(SystemExit):
        main([verb, "--help"])
    text = capsys.readouterr().out
    for axis in ("posterior", "flatness"):
        for name in list_names(axis):
            assert re.search(rf"^  {name} +[A-Z]", text, flags=re.MULTILINE)
    assert f"flatbayes {verb} --help SWAG" in text
    for name, option in {"SWAG": "rank", "asam": "rho", "mlp": "hidden", "cosine": "end_factor", "sgd": "lr"}.items():
        with pytest.raises(SystemExit) as stop:
            main([verb, "--help", name])
        shown = capsys.readouterr().out
        assert stop.value.code in (0, None)
        assert shown.startswith(f"usage: flatbayes {verb} --")
        assert re.search(rf"[\w.-]*{option} ", shown)


def test_help_of_a_class_where_colours_are_forced(capsys, monkeypatch):
    with pytest.raises(SystemExit):
        main(["fit", "--help", "SWAG"])
    plain = capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")  # which Python 3.14 reads
    with pytest.raises(SystemExit):
        main(["fit", "--help", "SWAG"])
    assert capsys.readouterr().out == plain


def test_models_of_the_working_folder_and_functions_without_annotations(tmp_path, options, monkeypatch):
    (tmp_path / "own_nets.py").write_text("def build(num_classes, width=3):\n    return None\n")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    assert "own_nets.build" in options("fit --data digits --out o --model own_nets.build --model.width 5")["model"]


def test_spec_of_a_table_row_is_a_valid_option(options):
    from flatbayes.posteriors import MAP, Ensemble

    posterior = options("fit --data digits --out o --posterior 'Ensemble(member=MAP(), size=3)'")["posterior"]
    assert str(to_spec(Ensemble(MAP(), 3))["init_args"]["size"]) in posterior
