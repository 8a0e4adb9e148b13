"""Fills generated parts into pages: README.md, the examples, and the tables of the axes and of renamed names.

A page holds a mark, such as `<!-- examples -->`, where the generated part goes.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

from flatbayes.core import renames

sys.path.insert(0, str(Path(__file__).parent))  # hooks are files, not a package
import axes

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def render_introduction() -> str:
    """README.md up to its first part."""
    return _read_readme().partition("\n## ")[0] + "\n"


def render_readme() -> str:
    """The parts of README.md, up to the one about contributing."""
    _, heading, text = _read_readme().partition("\n## ")
    return heading + text


def render_examples() -> str:
    """Heading, first sentence and code of every file of examples/."""
    return "\n".join(_render_example(path) for path in sorted(EXAMPLES.glob("*.py")))


def render_renamed_objects() -> str:
    """Table of renamed classes and functions."""
    rows = [
        (f"`{package}.{old}`", f"`{package}.{new}`")
        for package, names in renames.RENAMED_OBJECTS.items()
        for old, new in names.items()
    ]
    packages = [(f"`{old}`", f"`{new}`") for old, new in renames.RENAMED_PACKAGES.items()]
    return _render_table(("0.1", "0.2"), [*packages, *rows])


def render_renamed_arguments() -> str:
    """Table of renamed arguments and fields of classes, which are also their options."""
    rows = [
        (f"`{path.rpartition('.')[2]}`", f"`{old}`", f"`{new}`")
        for path, names in renames.RENAMED_ARGUMENTS.items()
        for old, new in names.items()
    ]
    return _render_table(("class", "0.1", "0.2"), rows)


def render_renamed_options() -> str:
    """Table of renamed options of the commands."""
    rows = [
        (f"`flatbayes {command}`", f"`--{old}`", f"`--{new}`")
        for command, names in renames.RENAMED_OPTIONS.items()
        for old, new in names.items()
    ]
    return _render_table(("command", "0.1", "0.2"), rows)


MARKS: dict[str, Callable[[], str]] = {
    "<!-- examples -->": render_examples,
    "<!-- axes -->": axes.render_axes,
    "<!-- integrations -->": axes.render_integrations,
    "<!-- methods -->": axes.render_methods,
    "<!-- readme -->": render_readme,
    "<!-- readme: introduction -->": render_introduction,
    "<!-- refused pairs -->": axes.render_refused_pairs,
    "<!-- renamed objects -->": render_renamed_objects,
    "<!-- renamed arguments -->": render_renamed_arguments,
    "<!-- renamed options -->": render_renamed_options,
}


def on_page_markdown(markdown: str, **_: object) -> str:
    """The page with every mark replaced by its generated part."""
    for mark, render in MARKS.items():
        if mark in markdown:
            markdown = markdown.replace(mark, render())
    return markdown


def on_serve(server: object, **_: object) -> object:
    """Rebuild the site after changes of the examples as well."""
    server.watch(str(EXAMPLES))  # type: ignore[attr-defined]
    return server


def _read_readme() -> str:
    """README.md without the part about contributing, with links that are right on the site."""
    text, _, _ = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Contributing\n")
    text = re.sub(r"<!-- [^>]* -->\n*", "", text)
    text = re.sub(r"\]\((?!https?:|#|docs/)", f"]({axes.REPOSITORY}/", text)
    return re.sub(r'(\]\(|srcset="|src=")docs/', r"\1", text)


def _render_example(path: Path) -> str:
    code = path.read_text(encoding="utf-8")
    summary = code.splitlines()[0].removeprefix("# %% ")
    return f'## {path.stem} {{#{path.stem}}}\n\n{summary}.\n\n```py title="examples/{path.name}"\n{code}```\n'


def _render_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"
