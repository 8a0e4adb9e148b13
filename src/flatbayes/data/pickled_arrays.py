"""Numbers and words in the pickles that CIFAR is published in, found without unpickling anything.

A pickle is a program, and running a stranger's is what this avoids: its instructions are listed by `pickletools`,
which executes none, and the constants among them are all that is needed.
"""

import pickletools
from pathlib import Path
from typing import Any

ENDS = frozenset({"APPENDS", "APPEND", "SETITEMS", "STOP"})


class PickledArrays:
    """The constants of one pickled dictionary, by its keys."""

    def __init__(self, content: bytes, path: Path | str) -> None:
        """List the instructions.

        Args:
            content: Of the file.
            path: For messages.

        Raises:
            ValueError: It is no whole pickle.
        """
        self.path = path
        try:
            self._found = [(code.name, argument) for code, argument, _ in pickletools.genops(content)]
        except Exception as error:  # damage is answered with exceptions of any kind
            raise ValueError(f"{path} is damaged: {error}. Download it again.") from error

    def numbers(self, key: str) -> list[int]:
        """The list of whole numbers under a key."""
        return [value for value in self._list(key) if isinstance(value, int)]

    def words(self, key: str) -> list[str]:
        """The list of words under a key."""
        return [value for value in self._list(key) if isinstance(value, str)]

    def longest(self) -> bytes:
        """The longest constant: the pixels."""
        longest = max((value for _, value in self._found if isinstance(value, str | bytes)), key=len, default=b"")
        return longest if isinstance(longest, bytes) else longest.encode("latin-1")

    def _list(self, key: str) -> list[Any]:
        start = next((i for i, (_, value) in enumerate(self._found) if value == key), None)
        if start is None:
            raise ValueError(f"{self.path} has nothing called {key!r}. Download it again.")
        values = []
        for name, value in self._found[start + 1 :]:
            if name in ENDS:
                break
            if "PUT" not in name:  # their arguments number what is remembered
                values.append(value)
        return values
