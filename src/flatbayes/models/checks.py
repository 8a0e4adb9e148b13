"""What every architecture refuses."""

import math
from collections.abc import Sequence


def check_arguments(input_shape: Sequence[int], num_classes: int, dropout: float) -> None:
    """Refuse what no network can be built from.

    Raises:
        ValueError: A size is not positive, or the dropout rate is outside [0, 1).
    """
    check_sizes("input_shape", input_shape)
    check_sizes("num_classes", [num_classes])
    if not 0 <= dropout < 1:
        raise ValueError(f"The dropout rate must be at least 0 and below 1, got {dropout}.")


def check_image_shape(input_shape: Sequence[int], model_name: str) -> int:
    """The number of channels.

    Raises:
        ValueError: The input is not an image.
    """
    if len(input_shape) != 3:
        raise ValueError(
            f"{model_name} needs images, an input shape of (channels, height, width), got {tuple(input_shape)}. "
            "Use MLP for inputs of any other shape, or reshape them: one grey image of 8 x 8 is (1, 8, 8)."
        )
    return input_shape[0]


def check_sizes(name: str, sizes: Sequence[int]) -> None:
    """Refuse sizes that are not positive, and no sizes at all.

    Raises:
        ValueError: See above.
    """
    if not sizes or min(sizes) < 1:
        got = sizes[0] if len(sizes) == 1 else tuple(sizes)
        raise ValueError(f"{name} must be made of whole numbers from 1, got {got}.")


def check_depth(model_name: str, depth: int, valid_depths: Sequence[int]) -> None:
    """Refuse a depth that the architecture cannot have.

    Raises:
        ValueError: The depth is not among the valid ones, of which the nearest are named.
    """
    if depth in valid_depths:
        return
    below = max((d for d in valid_depths if d < depth), default=-math.inf)
    above = min((d for d in valid_depths if d > depth), default=math.inf)
    nearest = " or ".join(str(d) for d in (below, above) if math.isfinite(d))
    raise ValueError(f"{model_name} cannot have depth {depth}: the nearest possible depth is {nearest}.")
