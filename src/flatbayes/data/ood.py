"""Examples from elsewhere, in the form that a network knows: same shape, same range of values.

Normalisation is left to the fitted posterior, which applies the statistics of its own training data (methods that
normalise examples from outside by their own statistics report numbers that cannot be compared).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from flatbayes.data.corruptions.corrupt import infer_white_value
from flatbayes.data.lazy_images import LazyImages
from flatbayes.data.source import DataSource, take_all
from flatbayes.data.splits import Split

IMAGES_PER_CHUNK = 1000


def load_ood_inputs(source: DataSource, reference: Tensor | LazyImages) -> Tensor:
    """Inputs of a source's test part, shaped like these.

    Args:
        source: Where the examples from outside come from.
        reference: Raw inputs of the kind that was trained on.

    Raises:
        ValueError: They cannot be shaped so.
    """
    return match_input_format(load_test_split(source).input_tensor, reference)


def load_test_split(source: DataSource) -> Split:
    """The examples to report on; others are not decoded where the source keeps them apart."""
    raw = source.read()
    return source.load(0).test if raw.test is None else take_all(raw.test)


def match_input_format(ood: Tensor, reference: Tensor | LazyImages) -> Tensor:
    """Images with the channels, the size, the range of values and the dtype of others.

    Grey images are repeated for each channel, and colours averaged where there is one; sizes change by bilinear
    interpolation, of which the larger image is smoothed first; white becomes white. Features must have the same
    number, and stay what they are.

    Args:
        ood: Images, [n, channels, height, width], or features, [n, features]; raw.
        reference: Many examples of the wanted form.

    Raises:
        ValueError: Features meet images or other features, or 3 channels meet another number above 1.
    """
    if isinstance(reference, LazyImages):
        reference = reference[:IMAGES_PER_CHUNK]
    found, wanted = tuple(ood.shape[1:]), tuple(reference.shape[1:])
    if len(found) != 3 or len(wanted) != 3:
        if found != wanted:
            raise ValueError(
                f"Inputs from outside have the shape {found}, and those inside {wanted}. Only images can be brought "
                "into the shape of other images; give examples with the same features."
            )
        return ood
    if found[0] != wanted[0] and 1 not in (found[0], wanted[0]):
        raise ValueError(
            f"Images from outside have {found[0]} channels (shape {found}), and those inside {wanted[0]} (shape "
            f"{wanted}). Channels can be repeated from 1 or averaged to 1, nothing else."
        )
    scale = infer_white_value(reference) / infer_white_value(ood)
    if found == wanted and scale == 1 and ood.dtype == reference.dtype:
        return ood
    return torch.cat([_convert_chunk(chunk, reference, scale) for chunk in ood.split(IMAGES_PER_CHUNK)])


def _convert_chunk(chunk: Tensor, reference: Tensor, scale: float) -> Tensor:
    images = scale * chunk.float()
    if reference.shape[1] == 1:
        images = images.mean(1, keepdim=True)
    images = images.expand(-1, reference.shape[1], -1, -1)
    if images.shape[2:] != reference.shape[2:]:
        size = tuple(reference.shape[2:])
        images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
    return images.to(reference.dtype) if reference.is_floating_point() else images.round().to(reference.dtype)
