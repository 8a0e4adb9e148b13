"""What every source's examples must satisfy, said in words where they do not."""

from collections.abc import Sequence

import torch
from torch import Tensor

EXAMPLES_PER_CHUNK = 4096  # examples looked at together


def check_labels(splits: dict[str, Tensor], class_names: tuple[str, ...]) -> None:
    """Labels count from 0 to the number of classes, at least 2, and every class has an example somewhere.

    Args:
        splits: The labels of each part, by its name.
        class_names: One per class.

    Raises:
        ValueError: They do not.
    """
    num_classes = len(class_names)
    if num_classes < 2:
        raise ValueError(
            f"A classification task needs at least 2 classes, got {num_classes} {list(class_names)}. "
            "Check that the labels are read from the right column or folders."
        )
    seen = torch.zeros(num_classes, dtype=torch.bool)
    for name, targets in splits.items():
        wrong = ((targets < 0) | (targets >= num_classes)).nonzero().flatten()
        if len(wrong):
            raise ValueError(
                f"{len(wrong)} labels of the {name} examples are out of range: labels go from 0 to "
                f"{num_classes - 1}, and the first wrong one is {int(targets[wrong[0]])} in row "
                f"{int(wrong[0])} (counted from 0). Correct them, or leave out examples without a label."
            )
        seen[targets] = True
    if not seen.all():
        missing = [class_names[index] for index in (~seen).nonzero().flatten().tolist()]
        raise ValueError(
            f"{len(missing)} of the {num_classes} classes have no example; the first is {missing[0]!r}. "
            f"Leave such classes out, and number the others without gaps, 0 to {int(seen.sum()) - 1}."
        )


def make_class_names(targets: Sequence[Tensor]) -> tuple[str, ...]:
    """Names of classes that have none: their numbers, from 0 to the highest.

    Args:
        targets: The labels of each part.

    Raises:
        ValueError: The highest label is beyond what so few examples can have without gaps.
    """
    highest = max((int(labels.max()) for labels in targets if len(labels)), default=-1)
    total = sum(len(labels) for labels in targets)
    if highest >= total:
        raise ValueError(
            f"The highest label is {highest}, and there are only {total} examples. Labels number the classes "
            "from 0 without gaps; check that they are read from the right column or array."
        )
    return tuple(str(label) for label in range(highest + 1))


def check_finite(inputs: Tensor, description: str, feature_names: tuple[str, ...] = (), first_row: int = 0) -> None:
    """No NaN and no infinity.

    Args:
        inputs: [n, ...].
        description: The examples, for the message.
        feature_names: One per feature, if known.
        first_row: Number of the first example, where earlier ones were looked at before.

    Raises:
        ValueError: Says how many there are, and where the first is.
    """
    if not inputs.is_floating_point():
        return
    bad = [int((~chunk.isfinite()).sum()) for chunk in torch.split(inputs, EXAMPLES_PER_CHUNK)]
    if not any(bad):
        return
    chunk = next(index for index, number in enumerate(bad) if number)
    row, *place = (
        (~inputs[chunk * EXAMPLES_PER_CHUNK : (chunk + 1) * EXAMPLES_PER_CHUNK].isfinite()).nonzero()[0].tolist()
    )
    row += chunk * EXAMPLES_PER_CHUNK
    value = float(inputs[(row, *place)])
    where = f"pixel {tuple(place)} (channel, row, column)"
    if len(place) == 1:
        where = f"feature {feature_names[place[0]]!r}" if feature_names else f"feature {place[0]}"
    raise ValueError(
        f"The {description} hold {sum(bad)} values that are missing or not finite; the first is {value} in row "
        f"{first_row + row} (counted from 0), {where}. Fill them in or leave those examples out."
    )


def check_same_length(name: str, num_inputs: int, num_targets: int) -> None:
    """As many inputs as labels."""
    if num_inputs != num_targets:
        raise ValueError(
            f"The {name} examples have {num_inputs} inputs and {num_targets} labels; there must be one "
            "label for each input."
        )
