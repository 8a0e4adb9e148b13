"""Output to terminals, on which text from files and names is text: no markup, emoji codes or control characters."""

import multiprocessing
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.progress import track
from rich.segment import Segment

MIN_ITEMS = 1000
"""Fewest items for which a progress bar is shown."""
Item = TypeVar("Item")

CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""C0 and C1 control characters except tab and line feed, and those that change the direction of writing."""


def replace_controls(text: str) -> str:
    r"""Text with the replacement character in place of control characters.

    >>> replace_controls("\x1b[2J a\tb")
    '\ufffd[2J a\tb'
    """
    return CONTROL_CHARACTERS.sub("\ufffd", text)


class PlainConsole(Console):
    """A console of rich that prints strings as they are."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False)

    def print_text(self, text: str) -> None:
        """Print text without colours, and without other line breaks than its own."""
        self.print(text, highlight=False, soft_wrap=True)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render, and replace control characters in the text."""
        for segment in super().render(renderable, options):
            is_clean = segment.control is not None or not CONTROL_CHARACTERS.search(segment.text)
            yield segment if is_clean else Segment(replace_controls(segment.text), segment.style)


def track_progress(items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
    """Iterate over items, with a progress bar if there are many and standard error is a terminal."""
    if total < MIN_ITEMS or not is_interactive():
        return iter(items)  # a progress bar that is not shown would still start a thread
    return iter(track(items, escape(description), total, console=PlainConsole(stderr=True), transient=True))


@contextmanager
def show_status(description: str, *, is_shown: bool = True) -> Iterator[None]:
    """Context with a spinner on standard error, if it is a terminal."""
    if is_shown and is_interactive():
        with PlainConsole(stderr=True).status(escape(description)):
            yield
    else:
        yield


def is_interactive() -> bool:
    """Whether standard error is a terminal, and this is no worker of another process."""
    return sys.stderr.isatty() and multiprocessing.current_process().name == "MainProcess"
