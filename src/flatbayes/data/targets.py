"""Numbers to predict: told from classes, and what they must satisfy."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

TaskType = Literal["classification", "regression"] | None
"""What is asked for; None tells by the targets."""


def holds_fractions(values: NDArray[np.floating[Any]], description: str) -> bool:
    """Whether these floating-point numbers are ones to predict, which fractions show.

    Args:
        values: Without those that are missing.
        description: Where they are, for the message.

    Raises:
        ValueError: They are whole numbers written with a point (1.0), which may be classes too.
    """
    if np.array_equal(values, np.round(values)):
        raise ValueError(
            f"{description} holds whole numbers as {values.dtype}: are they classes, or numbers to predict? Write classes "
            "as whole numbers (integers), or say task=regression."
        )
    return True


def check_targets(splits: Mapping[str, Tensor], names: Sequence[str]) -> None:
    """Floating-point, one column for each name, finite; none of them the same in all examples of a part.

    Args:
        splits: The targets of each part, by its name.
        names: One per number to predict.

    Raises:
        ValueError: Says what is wrong, and where.
    """
    for part, targets in splits.items():
        if not targets.is_floating_point() or targets.shape[1:].numel() != len(names):
            raise ValueError(
                f"The targets of the {part} examples must be floating-point numbers, {len(names)} for each example "
                f"{list(names)}, got {targets.dtype} of the shape {tuple(targets.shape)}."
            )
        rows = targets.reshape(len(targets), len(names))
        bad = (~rows.isfinite()).nonzero().tolist()
        if bad:
            row, column = bad[0]
            raise ValueError(
                f"The {part} examples have {len(bad)} targets that are missing or not finite; the first is "
                f"{float(rows[row, column])} in row {row} (counted from 0), target {names[column]!r}. Leave those "
                "examples out."
            )
        for column, name in enumerate(names):
            if len(rows) > 1 and bool((rows[:, column] == rows[0, column]).all()):
                raise ValueError(
                    f"Target {name!r} is {float(rows[0, column]):g} in all {len(rows)} {part} examples: there is "
                    "nothing to predict. Check that it is read from the right column."
                )
