"""Figure of a class at each position: maps of classes and of their uncertainty, for images and texts."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flatbayes.core.names import format_count
from flatbayes.plotting import theme
from flatbayes.plotting.predictions import IMAGE_CHANNELS, scale_image

if TYPE_CHECKING:  # slow to import
    from matplotlib.axes import Axes

__all__ = ["plot_positions"]


def plot_positions(
    classes: NDArray[np.integer[Any]],
    entropy: NDArray[np.floating[Any]],
    num_classes: int,
    inputs: NDArray[np.floating[Any]] | None = None,
    targets: NDArray[np.integer[Any]] | None = None,
    axes: "Axes | None" = None,
    *,
    num_examples: int = 4,
) -> "Axes":
    """Draw the examples with the highest mean entropy: most probable classes and entropy of each position.

    Args:
        classes: Most probable class, shape (examples, height, width) or (examples, length); -100 for none.
        entropy: Entropy in nats, same shape.
        num_classes: Number of classes.
        inputs: The examples; of shape (examples, channels, height, width) they are drawn as images.
        targets: Class of each position, drawn beside the predicted one; -100 where it is not known.
        axes: Where to draw; by default new axes.
        num_examples: Largest number of examples.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: Examples have three or more axes of positions.

    Examples:
        >>> classes = np.array([[[0, 1], [1, 2]]])
        >>> axes = plot_positions(classes, np.ones((1, 2, 2)), num_classes=3, targets=classes)
        >>> [label.get_text() for label in axes.get_xticklabels()]
        ['target', 'most probable class', 'entropy']
    """
    if classes.ndim not in (2, 3):
        raise ValueError(
            f"Positions in a line or in an image are drawn, got the shape {classes.shape}. Select a part of them."
        )
    means = np.nanmean(entropy.reshape(len(entropy), -1), 1)
    rows = np.argsort(-means, kind="stable")[:num_examples]
    has_images = inputs is not None and inputs.ndim == 4 and inputs.shape[1] in IMAGE_CHANNELS
    highest = float(np.nanmax(entropy[rows]))
    maps = {"input": has_images, "target": targets is not None, "most probable class": True, "entropy": True}
    columns = [name for name, is_there in maps.items() if is_there]
    colours, num_colours = ("tab10", 10) if num_classes <= 10 else ("tab20", 20)
    with theme.use_axes(
        axes, 0.8 + 1.7 * len(columns), 0.9 + (1.6 if classes.ndim == 3 else 0.5) * len(rows)
    ) as target:
        for y, row in enumerate(rows):
            for x, name in enumerate(columns):
                inset = target.inset_axes((x - 0.46, y - 0.46, 0.92, 0.92), transform=target.transData)
                if name == "input" and inputs is not None:
                    inset.imshow(scale_image(inputs[row]), cmap="gray", aspect="auto")
                elif name == "entropy":
                    values = np.atleast_2d(entropy[row])
                    inset.imshow(values, cmap="magma", vmin=0, vmax=max(highest, 1e-12), aspect="auto")
                else:
                    labels = targets[row] if name == "target" and targets is not None else classes[row]
                    values = np.ma.masked_less(np.atleast_2d(labels), 0)
                    inset.imshow(values % num_colours, cmap=colours, vmin=-0.5, vmax=num_colours - 0.5, aspect="auto")
                inset.axis("off")
        target.set_xlim(-0.5, len(columns) - 0.5)
        target.set_ylim(len(rows) - 0.5, -0.5)
        target.set_xticks(range(len(columns)), columns)
        target.set_yticks(range(len(rows)), [str(row) for row in rows])
        target.set_ylabel("example")
        count = format_count(len(classes), "example")
        target.set_title(f"The {len(rows)} most uncertain of {count}, entropy 0 to {highest:.2g} nats")
        theme.style_axes(target)
        target.grid(False)
        return target
