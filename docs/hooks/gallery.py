"""Runs the notebooks of the gallery, and writes a page with outputs and pictures for each.

`python docs/hooks/gallery.py [NAME ...]` needs the extra `gallery`. Pages and pictures are committed, so building the
site runs no notebook. A source is a script in cells, which Jupyter opens with jupytext; the title of a cell
(`# %% title`) describes its picture in words.
"""

import io
import os
import re
import sys
import tomllib
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
GALLERY = ROOT / "docs" / "gallery"
NAMES = ("tabular", "regression", "images", "sentences", "out_of_distribution", "active_learning")
NUM_COLOURS = 256
"""Colours of a picture: figures have few, and files become a third as large."""

TEMPLATE = """
{%- extends 'markdown/index.md.j2' -%}
{%- block input %}
```py
{{ cell.source }}
```
{% endblock input -%}
{%- block stream %}{% if output.name == 'stdout' %}
```{ .text .output .no-copy }
{{ output.text | strip_ansi | trim }}
```
{% endif %}{% endblock stream -%}
{%- block data_text scoped %}
```{ .text .output .no-copy }
{{ output.data['text/plain'] | strip_ansi }}
```
{% endblock data_text -%}
{%- block data_html scoped %}
<div class="output">{{ output.data['text/html'] | tidy_table }}</div>
{% endblock data_html -%}
{%- block data_png %}
![{{ cell.metadata.title }}]({{ output.metadata.filenames['image/png'] | path2url }})
{{- "{ width=" }}{{ output.metadata['image/png'].width }} }
{% endblock data_png -%}
"""


def read_cells(source: Path) -> list[tuple[str, str]]:
    """Kind (`code` or `markdown`) and text of every cell of a script in percent format.

    Args:
        source: The script.
    """
    cells = re.split(r"^# %%(.*)\n", source.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return [
        ("markdown", re.sub(r"^# ?", "", text, flags=re.MULTILINE).strip())
        if "[markdown]" in title
        else ("code", text.strip())
        for title, text in zip(cells[::2], cells[1::2], strict=True)
    ]


def tidy_table(html: str) -> str:
    """A table of pandas without its own style, on one line: Markdown would take empty lines for its end.

    Args:
        html: What an object shows in a notebook.
    """
    html = re.sub(r"<style.*?</style>|<p>\d+ rows × \d+ columns</p>", "", html, flags=re.DOTALL)
    html = re.sub(r' (?:border="1"|class="[^"]*"|id="[^"]*")', "", html)
    return re.sub(r"\s*\n\s*", "", html)


def render(name: str) -> None:
    """Run a notebook, and write its page and pictures.

    Args:
        name: Name of the source without its suffix.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed.
        ValueError: A cell with a picture has no title.
    """
    import jupytext
    from nbclient import NotebookClient
    from nbconvert import MarkdownExporter

    source = GALLERY / f"{name}.py"
    notebook = jupytext.read(source)
    seconds_before = sum(os.times()[2:4])
    options = ["--InlineBackend.figure_formats=['retina']"]
    client = NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(GALLERY)}}, extra_arguments=options
    )
    client.execute()
    seconds = sum(os.times()[2:4]) - seconds_before
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output.get("name") == "stderr":
                sys.stderr.write(f"{name} wrote to stderr: {output.text}")
            if "image/png" in output.get("data", ()):
                output.data.pop("text/html", None)
                if not cell.metadata.get("title"):
                    raise ValueError(f"A cell with a picture needs a title, `# %% What it shows`: {cell.source}")
    exporter = MarkdownExporter(raw_template=TEMPLATE, filters={"tidy_table": tidy_table})
    resources = {"output_files_dir": "img", "unique_key": name}
    body, resources = exporter.from_notebook_node(notebook, resources)
    for old in (GALLERY / "img").glob(f"{name}_*.png"):
        old.unlink()
    for path, data in resources["outputs"].items():
        (GALLERY / path).parent.mkdir(exist_ok=True)
        (GALLERY / path).write_bytes(compress_png(data))
    heading, rest = body.strip().split("\n", 1)
    # Outside of code, empty lines of the template are left out.
    parts = re.split(r"(^```py\n.*?^```\n)", rest, flags=re.DOTALL | re.MULTILINE)
    rest = "".join(part if index % 2 else re.sub(r"\n{3,}", "\n\n", part) for index, part in enumerate(parts))
    page = f"{heading}\n\n{describe_run(name, seconds)}\n{rest.strip()}\n"
    (GALLERY / f"{name}.md").write_text(page, encoding="utf-8")
    sys.stdout.write(f"{name}: {seconds:.0f} s\n")


def describe_run(name: str, seconds: float) -> str:
    """When and with what the outputs of a page were made, and where its source is.

    Args:
        name: Name of the source without its suffix.
        seconds: Time of the processor that the notebook took.
    """
    own_version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    day = f"{datetime.now(tz=UTC):%d %B %Y}".lstrip("0")
    return (
        f'<p class="output-note">Outputs of {day}, made in {seconds:.0f} seconds of one CPU core with '
        f"flatbayes {own_version} and torch "
        f'{version("torch").split("+")[0]}. Source: <a href="{name}.py">{name}.py</a>, a script that Jupyter opens '
        f"as a notebook with jupytext.</p>\n"
    )


def compress_png(data: bytes) -> bytes:
    """The same picture with few colours.

    Args:
        data: A PNG file.
    """
    from PIL import Image

    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image.quantize(NUM_COLOURS, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def read_page_code(page: str) -> list[str]:
    """The code cells of a page, in order.

    Args:
        page: Text that `render` wrote.
    """
    return [code.strip() for code in re.findall(r"^```py\n(.*?)^```", page, re.DOTALL | re.MULTILINE)]


if __name__ == "__main__":
    for notebook_name in sys.argv[1:] or NAMES:
        render(notebook_name)
