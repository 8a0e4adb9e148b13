"""The report of `gpu.py`: plain data that is written to a file after every change."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass
class Report:
    """The results so far, written to a file after every change.

    Attributes:
        path: JSON file; None writes nothing.
        content: Plain data.
    """

    path: Path | None
    content: Row

    def write(self) -> None:
        """Replace the file as a whole, so that a reader never sees half of it."""
        if self.path is not None:
            temporary = self.path.with_name(f".{self.path.name}.tmp")
            temporary.write_text(json.dumps(make_plain(self.content), indent=1) + "\n", encoding="utf-8")
            os.replace(temporary, self.path)


def make_plain(value: Any) -> Any:
    """Plain data for JSON: floats are rounded, those that are not finite become None, other objects become texts."""
    match value:
        case dict():
            return {str(key): make_plain(item) for key, item in value.items()}
        case list() | tuple():
            return [make_plain(item) for item in value]
        case bool() | int() | str() | None:
            return value
        case float():
            return float(f"{value:.6g}") if abs(value) < float("inf") else None
        case _:
            return str(value)
