"""Puts every file of examples/ on the page of examples, so that none is forgotten and none is written twice."""

from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
MARK = "<!-- every file of examples/ -->"


def on_page_markdown(markdown: str, **_: object) -> str:
    """The page with the examples in the place of the mark."""
    if MARK not in markdown:
        return markdown
    return markdown.replace(MARK, "\n".join(section(path) for path in sorted(EXAMPLES.glob("*.py"))))


def section(path: Path) -> str:
    """Heading, first sentence, and code of an example."""
    code = path.read_text(encoding="utf-8")
    about = code.splitlines()[0].removeprefix("# %% ")
    return f'## {path.stem} {{#{path.stem}}}\n\n{about}.\n\n```py title="examples/{path.name}"\n{code}```\n'


def on_serve(server: object, **_: object) -> object:
    """Also look at the examples for changes."""
    server.watch(str(EXAMPLES))  # type: ignore[attr-defined]
    return server
