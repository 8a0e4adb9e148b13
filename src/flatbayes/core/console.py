"""Output to terminals, on which text from files and names is text: no markup, emoji codes or control characters."""

import re
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""C0 and C1 control characters except tab and line feed, and those that change the direction of writing."""


def replace_controls(text: str) -> str:
    r"""Text with the replacement character in place of control characters.

    >>> replace_controls("\x1b[2J a\tb")
    '\ufffd[2J a\tb'
    """
    return CONTROL_CHARACTERS.sub("\ufffd", text)


class PlainConsole(Console):
    """A console of rich that prints strings as they are.

    Args:
        stderr: Write to standard error.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render, and replace control characters in the text."""
        for segment in super().render(renderable, options):
            is_clean = segment.control is not None or not CONTROL_CHARACTERS.search(segment.text)
            yield segment if is_clean else Segment(replace_controls(segment.text), segment.style)
