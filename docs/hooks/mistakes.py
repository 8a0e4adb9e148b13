"""Table of typical mistakes on the command line with what is said, made by running them.

`python docs/hooks/mistakes.py` writes it into docs/messages.md, between its marks; a test compares.
"""

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

PAGE = Path(__file__).parents[1] / "messages.md"
START, END = "<!-- mistakes, written by docs/hooks/mistakes.py -->", "<!-- end of mistakes -->"

FILES = {
    "houses.csv": "area,rooms,price\n50,2,100\n80,3,170\n",
    "runs.txt": "not a folder\n",
    "nets.py": "from torch import nn\n\n\nclass Net(nn.Module):\n    pass\n\n\nclass Settings:\n    pass\n",
    "broken.py": "import package_that_is_missing\n",
    "key.yaml": "data: digits\nepoch: 3\n",
    "type.yaml": "data: digits\nepochs: many\n",
    "option.yaml": "data: digits\nflatness: {class_path: sam, init_args: {roh: 0.1}}\n",
    "class.yaml": "data: digits\nposterior: swga\n",
    "invalid.yaml": "data: digits\n  epochs: [3\n",
    "list.yaml": "- digits\n- swag\n",
}
"""Files in the folder in which the commands run."""

DIGITS = "fit --data digits --out runs/x"
MISTAKES = (
    "fti --data digits --out runs/x",
    "--data digits --out runs/x",
    "fit",
    "evaluate",
    "predict runs/x",
    "fit digits --out runs/x",
    f"{DIGITS} --epcohs 3",
    f"{DIGITS} --draws 3",
    f"{DIGITS} --params all",
    f"{DIGITS} -epochs 3",
    f"{DIGITS} --epochs",
    f"{DIGITS} --epochs 3 4",
    f"{DIGITS} --seed x",
    f"{DIGITS} --epochs -3",
    f"{DIGITS} --rho -1",
    f"{DIGITS} --new_head maybe",
    f"{DIGITS} --precision.mode bf16",
    f"{DIGITS} --collection 3",
    'fit --data digits --out ""',
    f"{DIGITS} --posterior SWGA",
    f"{DIGITS} --posterior SAM",
    f"{DIGITS} --posterior.rnk 3",
    f"{DIGITS} --temperature 0.5",
    f"{DIGITS} --flatness Plain --rho 0.1",
    f"{DIGITS} --hidden 64",
    f"{DIGITS} --help SWGA",
    "compare --data digits --out runs/x --posteriors SWAG,SGVBB",
    "compare --data digits --out runs/x --posteriors [SWAG",
    "compare --data digits --out runs/x --posteriors [SGVB,MAP] --lr 0.1",
    "compare --data digits --out runs/x --evaluations calibrations",
    "tune --data digits --out runs/x --metric acuracy",
    "fit --data hauses.csv --out runs/x",
    "fit --data houses.csv --out runs/x",
    "fit --data digits --out runs.txt/x",
    f"{DIGITS} --device cuda",
    "fit --config settings.yaml --out runs/x",
    "fit --config key.yaml --out runs/x",
    "fit --config type.yaml --out runs/x",
    "fit --config option.yaml --out runs/x",
    "fit --config class.yaml --out runs/x",
    "fit --config invalid.yaml --out runs/x",
    "fit --config list.yaml --out runs/x",
    f"{DIGITS} --model MPL",
    f"{DIGITS} --model nets.py",
    f"{DIGITS} --model nets.Nett",
    f"{DIGITS} --model nets.Settings",
    f"{DIGITS} --model networks.Net",
    f"{DIGITS} --model broken.Net",
    "evaluate runs/x --split tests",
    "export runs/x --format onxx --out x.onnx",
)
"""Command lines, without the name of the program, that are answered with a message."""

UNDERSTOOD = (
    ("fit --data digits --out x --rho 0.1", "fit --data digits --out x --flatness.rho 0.1"),
    ("fit --data digits --out x --scale 1", "fit --data digits --out x --posterior.scale 1"),
    ("fit --data digits --out x --num-draws 5", "fit --data digits --out x --num_draws 5"),
    ("fit --data digits --out x --accelerator cpu", "fit --data digits --out x --distribution.accelerator cpu"),
    ("fit --data digits --out x --precision bf16-mixed", "fit --data digits --out x --precision.mode bf16-mixed"),
    ("fit --data digits --out x --precision.compile", "fit --data digits --out x --precision.compile true"),
    ("fit --data digits --out x --resume yes", "fit --data digits --out x --resume"),
    (
        "fit --data digits --out x --posterior 'SWAG(rank=3, scale=1)'",
        "fit --data digits --out x --posterior SWAG --posterior.rank 3 --posterior.scale 1",
    ),
    (
        "fit --data digits --out x --rho 0.1 --flatness ASAM",
        "fit --data digits --out x --flatness ASAM --flatness.rho 0.1",
    ),
    (
        "fit --data digits --out x --posterior SGVB --lr 0.01",
        "fit --data digits --out x --posterior SGVB --optimizer Adam --optimizer.lr 0.01",
    ),
    (
        "fit --data digits --out x --model mlp --hidden 64 64",
        "fit --data digits --out x --model MLP --model.hidden [64,64]",
    ),
    (
        "compare --data digits --out x --posteriors SWAG MAP",
        'compare --data digits --out x --posteriors "[SWAG, MAP]"',
    ),
    (
        "compare --data digits --out x --posterior swag,map",
        'compare --data digits --out x --posteriors "[SWAG, MAP]"',
    ),
    ("shift runs/x --severities 1 3", "shift runs/x --severities [1,3]"),
)
"""Command lines as people type them, and how they are read."""


def answer(command: str) -> str:
    """What the program says to a command that it refuses, without its name in front.

    Args:
        command: The command line, run in the current folder.
    """
    from flatbayes.cli import main

    error = StringIO()
    with redirect_stderr(error), redirect_stdout(StringIO()), patch.dict(os.environ, {"COLUMNS": "1000"}):
        exit_code = main(shlex.split(command))
    if exit_code != 2:
        raise AssertionError(f"flatbayes {command} ended with {exit_code}: {error.getvalue()}")
    return error.getvalue().strip().removeprefix("flatbayes: ")


@contextmanager
def prepare_folder() -> Iterator[None]:
    """A temporary working folder with `FILES`, on a machine that seems to have no GPU."""
    previous, modules = Path.cwd(), set(sys.modules)
    with (
        TemporaryDirectory() as folder,
        patch("torch.cuda.is_available", return_value=False),
        patch("torch.version.cuda", None),
        patch("torch.backends.mps.is_available", return_value=False),
        patch.object(sys, "path", [folder, *sys.path]),
    ):
        os.chdir(folder)
        for name, content in FILES.items():
            Path(name).write_text(content, encoding="utf-8")
        try:
            yield
        finally:
            os.chdir(previous)
            for name in {"nets", "broken"} - modules:
                sys.modules.pop(name, None)


def render_mistakes() -> str:
    """The table of mistakes, and that of commands which are understood."""
    with prepare_folder():
        rows = [(f"`{command}`", answer(command)) for command in MISTAKES]
    understood = [(f"`{typed}`", f"`{meant}`") for typed, meant in UNDERSTOOD]
    return "\n\n".join(
        [
            _render_table(("`flatbayes` ...", "what is said"), rows),
            "Understood as it was meant:",
            _render_table(("typed", "read as"), understood),
        ]
    )


def _render_table(header: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    cells = [header, ("---", "---"), *((left.replace("|", "\\|"), _escape(right)) for left, right in rows)]
    return "\n".join(f"| {left} | {right} |" for left, right in cells)


def _escape(text: str) -> str:
    if text.startswith("`") and text.endswith("`"):
        return text
    for character, escaped in {"|": "\\|", "*": "\\*", "_": "\\_", "<": "&lt;", "\n": " "}.items():
        text = text.replace(character, escaped)
    return text


def update_page() -> None:
    """Write the tables into docs/messages.md."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(START)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{START}\n\n{render_mistakes()}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    update_page()
