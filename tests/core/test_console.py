"""Terminals show text from files as it is."""

import io
import sys

import pytest
from rich.table import Table
from rich.text import Text

from flatbayes.core.console import PlainConsole, show_status, track_progress

TEXTS = {
    "[red]x[/red]": "[red]x[/red]",
    "[/x]": "[/x]",
    ":smile:": ":smile:",
    "\x1b[2Jx": "\ufffd[2Jx",
    "\x1b]0;title\x07x": "\ufffd]0;title\ufffdx",
    "a\u202eb": "a\ufffdb",
    "\x9bx": "\ufffdx",
}


@pytest.mark.parametrize("text", TEXTS, ids=repr)
@pytest.mark.parametrize("wrap", [str, Text, lambda text: _table(text)], ids=["string", "text", "table"])
def test_text_is_printed_as_it_is(capsys, text, wrap):
    PlainConsole().print(wrap(text), highlight=False)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    printed = printed.replace("\ufffd]0;title\ufffdx", "\ufffd]0;titlex")  # rich drops a bell in some objects
    assert TEXTS[text].replace("title\ufffdx", "titlex") in printed


def _table(text):
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    return table


class Terminal(io.StringIO):
    def __init__(self, is_terminal):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


@pytest.mark.parametrize(
    ("is_terminal", "total", "is_shown"), [(True, 2000, True), (True, 20, False), (False, 2000, False)]
)
def test_progress_is_shown_on_a_terminal_only(monkeypatch, is_terminal, total, is_shown):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal(is_terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(track_progress(range(total), "reading images", total)) == list(range(total))
    assert ("reading images" in stream.getvalue()) == is_shown


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_status_is_shown_on_a_terminal_only(monkeypatch, is_terminal):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal(is_terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    with show_status("reading t.csv"):
        pass
    with show_status("reading small.csv", is_shown=False):
        pass
    assert ("reading t.csv" in stream.getvalue()) == is_terminal
    assert "small" not in stream.getvalue()
