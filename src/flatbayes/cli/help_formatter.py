"""Help texts for people: what an option means and its default, without the machinery of types."""

from argparse import SUPPRESS, Action
from typing import Any

from jsonargparse import DefaultHelpFormatter, Namespace

from flatbayes.core.spec import short_name


class HelpFormatter(DefaultHelpFormatter):
    """Keeps the line breaks of descriptions, and shows defaults as one would write them."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in text.splitlines())

    def _expand_help(self, action: Action) -> str:
        text = (action.help or "").replace("%%", "%")
        if not action.option_strings or action.default in (None, False, SUPPRESS) or action.nargs == 0:
            return text
        return f"{text} (default: {format_default(action.default)})"


def format_default(value: Any) -> str:
    """A default as it reads in prose: `SWAG(rank=0)` for a description of one, lists by their items."""
    plain = value.as_dict() if isinstance(value, Namespace) else value
    if isinstance(plain, dict) and "class_path" in plain:
        return short_name({"init_args": {}, **plain})
    if isinstance(plain, list | tuple):
        return ", ".join(format_default(item) for item in plain)
    return str(plain)
