"""Terminals show text from files as it is."""

import pytest
from rich.table import Table
from rich.text import Text

from flatbayes.core.console import PlainConsole

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
