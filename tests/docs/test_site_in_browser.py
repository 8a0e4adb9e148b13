"""What a browser makes of the site: on a small telephone, on a desktop, and opened from disk."""

import json
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from browsing import BROWSER, MAX_CODE_COLUMNS, opened

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium")

WIDTH, DESKTOP_WIDTH = 360, 1280
NUM_FRAMES = 16
"""Pages that are shown at once."""
FRAMES = """<!doctype html><html><body>%s<pre id="found">not measured</pre><script>
const scrolls = element => ["auto", "scroll", "hidden"].includes(getComputedStyle(element).overflowX);
const inBox = (element, top) => element !== top && (scrolls(element) || inBox(element.parentElement, top));
const measured = frame => {
  const view = frame.contentDocument, content = view.querySelector("article");
  const wide = [...content.querySelectorAll("*")].filter(element =>
    element.getBoundingClientRect().right > %d && !inBox(element.parentElement, content));
  const overflow = view.documentElement.scrollWidth - %d;
  return [frame.title, overflow, wide.map(element => element.outerHTML.slice(0, 60)).join("|")].join(";");
};
addEventListener("load", () => setTimeout(() => {
  found.textContent = [...document.querySelectorAll("iframe")].map(measured).join("\\n");
}, 500));
</script></body></html>"""


CODE = """<!doctype html><html><body><iframe src="examples.html" width="%d" height="900"></iframe>
<pre id="found">not measured</pre><script>
addEventListener("load", () => setTimeout(() => {
  const blocks = [...document.querySelector("iframe").contentDocument.querySelectorAll("article pre > code")];
  const widest = Math.max(...blocks.flatMap(code => code.textContent.split("\\n").map(line => line.length)));
  const cut = blocks.filter(code => code.scrollWidth > code.clientWidth + 1);
  found.textContent = `${blocks.length} ${widest} ${cut.length}`;
}, 500));
</script></body></html>"""


class Handler(SimpleHTTPRequestHandler):
    """Logs nothing, and has another index of the search."""

    def __init__(self, *args, index, **options):
        self.index = index
        super().__init__(*args, **options)

    def log_message(self, *_):
        """Nothing."""

    def translate_path(self, path):
        return str(self.index) if path.endswith("search_index.json") else super().translate_path(path)


@pytest.fixture(scope="module")
def address(site, tmp_path_factory):
    """The site as a browser gets it, and its pages; the index of the search, which each loads, has one section."""
    pages = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html") if path.name != "404.html")
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    short = tmp_path_factory.mktemp("search") / "search_index.json"
    short.write_text(json.dumps(index | {"docs": index["docs"][:1]}), encoding="utf-8")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=site, index=short)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", pages
        finally:
            server.shutdown()


def test_the_console_is_silent_and_nothing_scrolls_sideways(address, site, tmp_path):
    root, pages = address
    for start in range(0, len(pages), NUM_FRAMES):
        shown = pages[start : start + NUM_FRAMES]
        frames = "".join(f'<iframe src="{p}" title="{p}" width="{WIDTH}" height="700"></iframe>' for p in shown)
        (site / "frames.html").write_text(FRAMES % (frames, WIDTH, WIDTH), encoding="utf-8")
        document, said = opened(f"{root}/frames.html", tmp_path, "virtual-time-budget=5000", timeout=60)
        assert said == []
        found = re.search(r'<pre id="found">(.*?)</pre>', document, re.DOTALL)[1].splitlines()
        assert found == [f"{page};0;" for page in shown]
    (site / "frames.html").unlink()


def test_the_longest_lines_of_code_fit_a_desktop(address, site, tmp_path):
    """The page of the examples has lines of the width of the project, which is the limit in test_site.py."""
    (site / "code.html").write_text(CODE % DESKTOP_WIDTH, encoding="utf-8")
    document, _ = opened(f"{address[0]}/code.html", tmp_path, "virtual-time-budget=5000", timeout=120)
    (site / "code.html").unlink()
    count, longest, num_cut = map(int, re.search(r'<pre id="found">(.*?)</pre>', document)[1].split())
    assert count > 5
    assert longest >= MAX_CODE_COLUMNS - 3
    assert num_cut == 0


def test_the_search_works_on_pages_from_disk(site, tmp_path):
    page = (site / "index.html").as_uri()
    document, said = opened(f"{page}?q=laplace", tmp_path, "virtual-time-budget=15000", timeout=120)
    assert said == []
    assert re.search(r"\d+ matching documents", document)
    assert document.count("md-search-result__item") > 2
