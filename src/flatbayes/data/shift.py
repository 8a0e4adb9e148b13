"""Examples from elsewhere, in the form that a network knows: same shape, same range of values.

Normalisation is left to the fitted posterior, which applies the statistics of its own training data (methods that
normalise examples from outside by their own statistics report numbers that cannot be compared).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from flatbayes.data.corruptions.corrupt import white_of
from flatbayes.data.dataset import Part
from flatbayes.data.source import Source, whole
from flatbayes.data.stored import StoredImages

CHUNK = 1000


def outside_inputs(source: Source, inside: Tensor | StoredImages) -> Tensor:
    """Inputs of a source's test part, shaped like these.

    Args:
        source: Where the examples from outside come from.
        inside: Raw inputs of the kind that was trained on.

    Raises:
        ValueError: They cannot be shaped so.
    """
    return shaped_like(held_out(source).tensor, inside)


def held_out(source: Source) -> Part:
    """The examples to report on; others are not decoded where the source keeps them apart."""
    raw = source.read()
    return source.load(0).test if raw.test is None else whole(raw.test)


def shaped_like(outside: Tensor, inside: Tensor | StoredImages) -> Tensor:
    """Images with the channels, the size, the range of values and the dtype of others.

    Grey images are repeated for each channel, and colours averaged where there is one; sizes change by bilinear
    interpolation, of which the larger image is smoothed first; white becomes white. Features must have the same
    number, and stay what they are.

    Args:
        outside: Images, [n, channels, height, width], or features, [n, features]; raw.
        inside: Many examples of the wanted form.

    Raises:
        ValueError: Features meet images or other features, or 3 channels meet another number above 1.
    """
    if isinstance(inside, StoredImages):
        inside = inside[:CHUNK]
    found, wanted = tuple(outside.shape[1:]), tuple(inside.shape[1:])
    if len(found) != 3 or len(wanted) != 3:
        if found != wanted:
            raise ValueError(
                f"Inputs from outside have the shape {found}, and those inside {wanted}. Only images can be brought "
                "into the shape of other images; give examples with the same features."
            )
        return outside
    if found[0] != wanted[0] and 1 not in (found[0], wanted[0]):
        raise ValueError(
            f"Images from outside have {found[0]} channels (shape {found}), and those inside {wanted[0]} (shape "
            f"{wanted}). Channels can be repeated from 1 or averaged to 1, nothing else."
        )
    scale = white_of(inside) / white_of(outside)
    if found == wanted and scale == 1 and outside.dtype == inside.dtype:
        return outside
    return torch.cat([_shaped(chunk, inside, scale) for chunk in outside.split(CHUNK)])


def _shaped(chunk: Tensor, inside: Tensor, scale: float) -> Tensor:
    images = scale * chunk.float()
    if inside.shape[1] == 1:
        images = images.mean(1, keepdim=True)
    images = images.expand(-1, inside.shape[1], -1, -1)
    if images.shape[2:] != inside.shape[2:]:
        size = tuple(inside.shape[2:])
        images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
    return images.to(inside.dtype) if inside.is_floating_point() else images.round().to(inside.dtype)
