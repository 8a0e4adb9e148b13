"""Out-of-distribution (OOD) inputs in the format of a model's inputs: same shape, value range and dtype.

Standardization is left to the fitted posterior, which applies the statistics of its own training data. Standardizing
OOD inputs by their own statistics would give numbers that cannot be compared.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from flatbayes.core.names import format_count
from flatbayes.data.corruptions.corrupt import infer_white_value
from flatbayes.data.lazy_images import LazyImages
from flatbayes.data.source import DataSource, take_all
from flatbayes.data.splits import Split

IMAGES_PER_CHUNK = 1000


def load_ood_inputs(source: DataSource, reference: Tensor | LazyImages) -> Tensor:
    """Load the test inputs of a source in the format of other inputs.

    Args:
        source: Source of the OOD examples.
        reference: Raw inputs in the format of the training data.

    Raises:
        ValueError: The inputs cannot be converted to this format.

    Examples:
        >>> reference = torch.randint(0, 256, (50, 3, 32, 32), dtype=torch.uint8)  # as CIFAR-10
        >>> ood_inputs = load_ood_inputs(Digits(), reference)
        >>> ood_inputs.shape[1:], ood_inputs.dtype
        (torch.Size([3, 32, 32]), torch.uint8)
    """
    return match_input_format(load_test_split(source).input_tensor, reference)


def load_test_split(source: DataSource) -> Split:
    """Load the test split of a source; if the source has one of its own, other examples are not decoded.

    Examples:
        >>> load_test_split(Digits()).inputs.shape
        torch.Size([898, 1, 8, 8])
    """
    raw = source.read()
    return source.load(0).test if raw.test is None else take_all(raw.test)


def match_input_format(ood: Tensor, reference: Tensor | LazyImages) -> Tensor:
    """Convert images to the channels, size, value range and dtype of other images.

    Grayscale images are repeated for each channel; color images are averaged for one channel. Sizes change by
    bilinear interpolation with antialiasing, and the white value is scaled to that of the reference. Features must
    have the same number and are returned unchanged.

    Args:
        ood: Raw images, [n, channels, height, width], or features, [n, features].
        reference: Many examples of the target format.

    Raises:
        ValueError: One input is an image and the other is not, the number of features differs, or the numbers of
            channels differ and neither is 1.

    Examples:
        >>> gray, color = torch.rand(5, 1, 28, 28), torch.rand(50, 3, 32, 32)
        >>> match_input_format(gray, color).shape
        torch.Size([5, 3, 32, 32])
    """
    if isinstance(reference, LazyImages):
        reference = reference[:IMAGES_PER_CHUNK]
    ood_shape, reference_shape = tuple(ood.shape[1:]), tuple(reference.shape[1:])
    if len(ood_shape) != 3 or len(reference_shape) != 3:
        if ood_shape != reference_shape:
            raise ValueError(
                f"Out-of-distribution inputs have the shape {ood_shape}, and the model's inputs {reference_shape}. "
                "Only images can be converted to the shape of other images; give examples with the same features."
            )
        return ood
    if ood_shape[0] != reference_shape[0] and 1 not in (ood_shape[0], reference_shape[0]):
        raise ValueError(
            f"Out-of-distribution images have {format_count(ood_shape[0], 'channel')} (shape {ood_shape}), and the "
            f"model's inputs {reference_shape[0]} (shape {reference_shape}). Channels can be repeated from 1 or "
            "averaged to 1, nothing else."
        )
    scale = infer_white_value(reference) / infer_white_value(ood)
    if ood_shape == reference_shape and scale == 1 and ood.dtype == reference.dtype:
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
