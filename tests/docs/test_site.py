"""The built site: every link leads somewhere, nothing is loaded from elsewhere, and all that is exported is there."""

import html
import importlib
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import flatbayes
from browsing import MAX_CODE_COLUMNS

PACKAGES = sorted(
    path.parent.name for path in Path(flatbayes.__file__).parent.glob("*/__init__.py") if path.parent.name != "cli"
)
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "use": "href"}


def exports(package):
    """Public names of a package; one of optional parts has none itself."""
    return getattr(importlib.import_module(f"flatbayes.{package}"), "__all__", [])


class Page(HTMLParser):
    """What a page links to, what it loads, its anchors and its title."""

    def __init__(self, path):
        super().__init__()
        self.path, self.links, self.loads, self.anchors, self.title, self._in_title = path, [], [], set(), "", False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag in LOADED and found.get(LOADED[tag]):
            self.loads.append(found[LOADED[tag]])
        self._in_title = tag == "title" and not self.title

    def handle_data(self, data):
        if self._in_title:
            self.title += data

    def target(self, link):
        """The file and the anchor that a link of this page leads to."""
        parts = urlsplit(link)
        path = self.path if not parts.path else (self.path.parent / unquote(parts.path)).resolve()
        return path / "index.html" if path.is_dir() else path, unquote(parts.fragment)


@pytest.fixture(scope="module")
def pages(site):
    found = {path.resolve(): Page(path.resolve()) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(found) > 25
    return found


def test_links_lead_somewhere(pages):
    dead = []
    for page in pages.values():
        for link in page.links:
            if urlsplit(link).scheme:
                continue
            path, anchor = page.target(link)
            known = pages[path].anchors if path in pages else set()
            if not path.exists() or (anchor and path in pages and anchor not in known):
                dead.append(f"{page.path.name} links to {link}")
    assert dead == []


def test_nothing_is_loaded_from_elsewhere(pages, site):
    outside = {
        load for page in pages.values() for load in page.loads if urlsplit(load).scheme or load.startswith("//")
    }
    assert outside == set()
    lost = {load for page in pages.values() for load in page.loads if not page.target(load)[0].exists()}
    assert lost == set()
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", text), style.name


def test_every_page_has_a_title_of_its_own(pages):
    titles = [page.title.strip() for page in pages.values()]
    assert all(titles)
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("package", PACKAGES)
def test_whatever_is_exported_is_documented(pages, site, package):
    module = importlib.import_module(f"flatbayes.{package}")
    there = pages[(site / "api" / f"{package}.html").resolve()].anchors
    missing = []
    for name in exports(package):
        defined = f"{getattr(getattr(module, name), '__module__', '')}.{name}"  # where a module has the same name
        if not {f"flatbayes.{package}.{name}", defined} & there:
            missing.append(f"write '::: {defined}' in docs/api/{package}.md, as for others there")
    assert missing == []


def test_what_can_be_imported_from_the_top_is_exported_below():
    below = {name for package in PACKAGES for name in exports(package)}
    assert set(flatbayes.__all__) <= below


def test_docstrings_read_as_meant(pages):
    text = "".join(path.read_text(encoding="utf-8") for path in pages if path.parent.name == "api")
    assert "<blockquote" not in text  # a doctest that is not in a section of examples


def test_every_example_is_on_its_page(pages, site):
    examples = Path(__file__).parents[2] / "examples"
    assert {path.stem for path in examples.glob("*.py")} <= pages[(site / "examples.html").resolve()].anchors


def test_no_line_of_code_is_wider_than_a_desktop(pages):
    long = [
        f"{path.name}: {line}"
        for path in pages
        for block in re.findall(r"<pre[^>]*>(.*?)</pre>", path.read_text(encoding="utf-8"), re.DOTALL)
        for line in html.unescape(re.sub(r"<[^>]+>", "", block)).splitlines()
        if len(line) > MAX_CODE_COLUMNS
    ]
    assert long == []
