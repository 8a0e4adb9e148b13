"""Figures of predictions: bands of a regression, and the most uncertain examples of classes and labels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flatbayes.core.names import format_count
from flatbayes.plotting import theme

if TYPE_CHECKING:  # slow to import
    from matplotlib.axes import Axes
    from matplotlib.text import Text

__all__ = ["plot_band", "plot_label_probabilities", "plot_uncertain"]

Numbers = NDArray[np.floating[Any]]
IMAGE_CHANNELS = (1, 3, 4)
MAX_CLASSES = 3
"""Classes that are named beside an uncertain example."""
MAX_UPRIGHT_CHARS = 10
"""Longest name of a label that fits below its column."""


def plot_band(
    mean: Numbers,
    aleatoric_std: Numbers,
    total_std: Numbers,
    x: Numbers | None = None,
    targets: Numbers | None = None,
    axes: "Axes | None" = None,
    *,
    target_name: str = "target",
) -> "Axes":
    """Draw predictions with 95 % bands: inner for noise alone, outer with the uncertainty about the network.

    Args:
        mean: Expected targets, shape (examples,).
        aleatoric_std: Standard deviation of the noise, same shape.
        total_std: Standard deviation of the target, same shape.
        x: Horizontal coordinates, same shape; by default examples are ordered by their predicted mean.
        targets: Observed targets, drawn as dots.
        axes: Where to draw; by default new axes.
        target_name: Label of the vertical axis.

    Raises:
        ImportError: matplotlib is not installed.

    Examples:
        >>> x = np.linspace(0, 1, 20)
        >>> axes = plot_band(
        ...     np.sin(x), np.full(20, 0.1), np.full(20, 0.2), x, target_name="height in m"
        ... )
        >>> axes.get_ylabel()
        'height in m'
    """
    order = np.argsort(mean if x is None else x, kind="stable")
    position = np.arange(len(mean)) if x is None else x[order]
    with theme.use_axes(axes, 6.4, 3.8) as target:
        for std, alpha, label in (
            (total_std, 0.18, "95 %, with epistemic uncertainty"),
            (aleatoric_std, 0.28, "95 %, aleatoric (noise)"),
        ):
            half = 1.96 * std[order]
            low, high = mean[order] - half, mean[order] + half
            target.fill_between(position, low, high, color=theme.FLAT, alpha=alpha, linewidth=0, label=label)
        target.plot(position, mean[order], color=theme.FLAT, linewidth=1.6, label="mean")
        if targets is not None:
            target.plot(position, targets[order], "o", color=theme.INK, markersize=3, alpha=0.7, label="observed")
        target.set_xlabel("examples, by predicted mean" if x is None else "input")
        target.set_ylabel(target_name)
        target.set_title(f"Predictions of {format_count(len(mean), 'example')} with 95 % intervals")
        target.legend(fontsize=9, framealpha=0.7)
        theme.style_axes(target)
        return target


def plot_uncertain(
    probs: Numbers,
    entropy: Numbers,
    class_names: Sequence[str],
    inputs: Numbers | None = None,
    targets: Sequence[int] | None = None,
    axes: "Axes | None" = None,
    *,
    num_examples: int = 8,
) -> "Axes":
    """Draw the examples with the highest entropy: their probabilities as bars, and their image if they are images.

    Args:
        probs: Class probabilities, shape (examples, classes).
        entropy: Entropy of each example in nats.
        class_names: Names of the classes.
        inputs: The examples; of shape (examples, channels, height, width) they are drawn as images.
        targets: Class of each example.
        axes: Where to draw; by default new axes.
        num_examples: Largest number of examples.

    Raises:
        ImportError: matplotlib is not installed.

    Examples:
        >>> predictive = fitted.predict(inputs[:20])
        >>> names = data.class_names
        >>> axes = plot_uncertain(
        ...     predictive.mean.numpy(), predictive.entropy.numpy(), names, num_examples=3
        ... )
    """
    rows = np.argsort(-entropy, kind="stable")[:num_examples]
    has_images = inputs is not None and inputs.ndim == 4 and inputs.shape[1] in IMAGE_CHANNELS
    with theme.use_axes(axes, 6.4, 0.9 + 0.55 * len(rows)) as target:
        labels, names = [], []
        for y, row in enumerate(rows):
            left = 0.0
            for rank, k in enumerate(np.argsort(-probs[row], kind="stable")[:MAX_CLASSES]):
                is_right = targets is not None and int(targets[row]) == k
                colour = theme.FLAT if is_right or targets is None else theme.PLAIN
                target.barh(y, probs[row, k], left=left, height=0.7, color=colour, alpha=0.75 - 0.22 * rank)
                center = left + probs[row, k] / 2
                name = target.text(center, y, class_names[k], ha="center", va="center", fontsize=9)
                names.append((name, float(probs[row, k])))
                left += float(probs[row, k])
            true_class = "" if targets is None else f": {class_names[int(targets[row])]}"
            labels.append(f"{row}{true_class}")
            if has_images and inputs is not None:
                _draw_image(target, inputs[row], y)
        target.set_xlim(-0.14 if has_images else 0, 1)
        target.set_ylim(len(rows) - 0.5, -0.5)
        target.set_yticks(range(len(rows)), labels)
        target.set_xlabel("probability of the likeliest classes")
        target.set_ylabel("example" if targets is None else "example and its class")
        target.set_title(f"The {len(rows)} most uncertain of {format_count(len(entropy), 'example')}")
        if targets is not None:
            _add_class_legend(target)
        theme.style_axes(target, grid="x")
        _shorten_texts(target, names)
        return target


def plot_label_probabilities(
    probs: Numbers,
    entropy: Numbers,
    label_names: Sequence[str],
    inputs: Numbers | None = None,
    targets: Numbers | None = None,
    axes: "Axes | None" = None,
    *,
    num_examples: int = 8,
) -> "Axes":
    """Draw the examples with the highest entropy: a cell with the probability of each label, and their image.

    Args:
        probs: Probabilities of the labels, shape (examples, labels).
        entropy: Entropy of each example in nats, summed over the labels.
        label_names: Names of the labels.
        inputs: The examples; of shape (examples, channels, height, width) they are drawn as images.
        targets: 1 where a label is there, shape (examples, labels); its cell has a frame.
        axes: Where to draw; by default new axes.
        num_examples: Largest number of examples.

    Raises:
        ImportError: matplotlib is not installed.

    Examples:
        >>> probs = np.array([[0.9, 0.4], [0.1, 0.2]])
        >>> axes = plot_label_probabilities(probs, np.array([1.0, 0.8]), ["red", "round"])
    """
    rows = np.argsort(-entropy, kind="stable")[:num_examples]
    has_images = inputs is not None and inputs.ndim == 4 and inputs.shape[1] in IMAGE_CHANNELS
    num_labels = probs.shape[1]
    with theme.use_axes(axes, 2.4 + 0.9 * num_labels, 0.9 + 0.55 * len(rows)) as target:
        for y, row in enumerate(rows):
            for k, prob in enumerate(probs[row].tolist()):
                is_there = targets is not None and targets[row, k] == 1
                target.barh(y, 0.92, left=k - 0.46, height=0.86, color=theme.FLAT, alpha=0.08 + 0.72 * prob)
                if is_there:
                    target.barh(y, 0.92, left=k - 0.46, height=0.86, fill=False, edgecolor=theme.INK, linewidth=1.6)
                target.text(k, y, f"{prob:.2f}", ha="center", va="center", fontsize=9)
            if has_images and inputs is not None:
                _draw_image(target, inputs[row], y, left=-1.4, width=0.8)
        target.set_xlim(-1.5 if has_images else -0.6, num_labels - 0.4)
        target.set_ylim(len(rows) - 0.5, -0.5)
        target.set_yticks(range(len(rows)), [str(row) for row in rows])
        is_long = max(map(len, label_names), default=0) > MAX_UPRIGHT_CHARS
        slant: dict[str, Any] = {"rotation": 30, "ha": "right"} if is_long else {}
        target.set_xticks(range(num_labels), list(label_names), **slant)
        target.set_xlabel(
            "probability of each label" if targets is None else "probability of each label; framed: true"
        )
        target.set_ylabel("example")
        target.set_title(f"The {len(rows)} most uncertain of {format_count(len(entropy), 'example')}")
        theme.style_axes(target)
        target.grid(False)
        return target


def scale_image(image: Numbers) -> Numbers:
    """Values from 0 to 1 as matplotlib draws them, (height, width) or (height, width, 3).

    Args:
        image: Of shape (channels, height, width), with any values.
    """
    low, high = float(image.min()), float(image.max())
    scaled = (image - low) / (high - low if high > low else 1.0)
    pixels: Numbers = scaled[0] if len(image) == 1 else scaled[:3].transpose(1, 2, 0)
    return pixels


def _shorten_texts(axes: "Axes", texts: Sequence[tuple["Text", float]]) -> None:
    """Cut texts at the end where they are wider than their space, which is in units of the horizontal axis."""
    axes.get_figure(root=True).draw_without_rendering()  # type: ignore[union-attr]  # the layout sets the width
    unit = axes.transData.transform((1, 0))[0] - axes.transData.transform((0, 0))[0]
    for text, space in texts:
        name = text.get_text()
        while name and text.get_window_extent().width > space * unit:
            name = name[:-1]
            text.set_text(f"{name.rstrip()}…" if name else "")


def _draw_image(axes: "Axes", image: Numbers, y: float, left: float = -0.13, width: float = 0.12) -> None:
    pixels = scale_image(image)
    inset = axes.inset_axes((left, y - 0.4, width, 0.8), transform=axes.transData)
    inset.imshow(pixels, cmap="gray", aspect="equal")
    inset.axis("off")


def _add_class_legend(axes: "Axes") -> None:
    """A key of the colours of the right class and of others, below the axes."""
    from matplotlib.patches import Patch

    handles = [
        Patch(color=theme.FLAT, alpha=0.75, label="right class"),
        Patch(color=theme.PLAIN, alpha=0.75, label="another class"),
    ]
    theme.add_legend_below(axes, handles=handles)
