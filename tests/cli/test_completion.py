"""The completion script, run by bash."""

import shutil
import subprocess

import pytest

from flatbayes.cli import main


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    from flatbayes.cli.completion import render_completion
    from flatbayes.cli.main import VERBS, load_verb

    path = tmp_path_factory.mktemp("completion") / "script.sh"
    path.write_text(render_completion({verb: load_verb(verb).make_parser() for verb in VERBS}))
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash")
@pytest.mark.parametrize(
    ("words", "expected", "unexpected"),
    [
        (["flatbayes", "ev"], "evaluate", "fit"),
        (["flatbayes", "fit", "--posterior", "SW"], "SWAG", "SAM"),
        (["flatbayes", "fit", "--flatness", ""], "ASAM", "SWAG"),
        (["flatbayes", "fit", "--posterior.r"], "--posterior.rank", "--flatness.rho"),
        (["flatbayes", "fit", "--data", "digits", "--ep"], "--epochs", "--out"),
        (["flatbayes", "evaluate", "run", "--"], "--num_draws", "--epochs"),
    ],
)
def test_bash_completes(script, words, expected, unexpected):
    line = " ".join(f"'{word}'" for word in words)
    command = f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _flatbayes; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=20)
    completions = done.stdout.split()
    assert expected in completions
    assert unexpected not in completions


def test_the_option_prints_the_script(capsys):
    assert main(["--completion"]) == 0
    assert "complete -o default -F _flatbayes flatbayes" in capsys.readouterr().out
