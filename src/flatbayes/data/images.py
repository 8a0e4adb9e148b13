"""Decoding of encoded images (PNG, JPEG and others) to uint8 arrays of one layout, with Pillow."""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from flatbayes.core.optional import require_package

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
PILLOW_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are decoded, whatever the suffix. Pillow has more, and some of them start other programs."""
GRAY_MODES = frozenset({"1", "L", "LA"})
HIGH_BIT_DEPTH_MODES = frozenset({"F", "I", "I;16", "I;16B", "I;16L", "I;16N"})

EncodedImage = tuple[str, bytes]
"""Name of an image for messages, and the content of its file."""
PillowImage = Any
"""`PIL.Image.Image`; Pillow is an optional dependency."""


@dataclass(frozen=True, kw_only=True)
class ImageLayout:
    """Shape that each image of a dataset is decoded to.

    Attributes:
        channels: 1 for grayscale images, 3 for color.
        height: In pixels.
        width: In pixels.
        resize: Resize images of another size, instead of refusing them.
        crop: Keep the aspect ratio of resized images: scale the shorter side to 8/7 of the size (256 for 224 pixels),
            and crop the center.
    """

    channels: int
    height: int
    width: int
    resize: bool
    crop: bool = False


def infer_layout(images: Iterable[EncodedImage], size: int | None, crop: bool = False) -> ImageLayout:
    """Infer the common layout of images: color if any image has color; the size of the first image, or `size`.

    Args:
        images: All images. Only headers are read, and no more of them than needed.
        size: Height and width to resize to; None keeps the size of the images.
        crop: Keep the aspect ratio and crop the center.

    Raises:
        ValueError: There are no images, the size is not positive, or `crop` is set without a size.
    """
    if crop and size is None:
        raise ValueError("To crop images, say to which size.")
    if size is not None and size < 1:
        raise ValueError(f"The size of images is a number of pixels, 1 or more, got {size}.")
    headers = (read_header(image) for image in images)
    first = next(headers, None)
    if first is None:
        raise ValueError("There are no images to read. Check the path.")
    mode, (width, height) = first
    is_gray = mode in GRAY_MODES and all(other_mode in GRAY_MODES for other_mode, _ in headers)
    return ImageLayout(
        channels=1 if is_gray else 3, height=size or height, width=size or width, resize=size is not None, crop=crop
    )


def read_header(image: EncodedImage) -> tuple[str, tuple[int, int]]:
    """Read mode and (width, height) of an image without decoding it."""
    with open_image(image) as picture:
        return picture.mode, picture.size


def allocate_images(count: int, layout: ImageLayout) -> np.ndarray:
    """Allocate an uninitialized uint8 array, [count, channels, height, width]."""
    return np.empty((count, layout.channels, layout.height, layout.width), dtype=np.uint8)


def decode_image(image: EncodedImage, layout: ImageLayout) -> np.ndarray:
    """Decode an image to pixels from 0 to 255, [channels, height, width].

    Raises:
        ValueError: The image is damaged, or does not fit the layout.
    """
    name, _ = image
    with open_image(image) as picture:
        if picture.mode in HIGH_BIT_DEPTH_MODES:
            raise ValueError(f"{name} has more than 8 bits per pixel (mode {picture.mode}). Save it with 8 bits.")
        if layout.channels == 1 and picture.mode not in GRAY_MODES:
            raise ValueError(
                f"{name} has color (mode {picture.mode}), and gray images were expected. Convert it to gray."
            )
        if (picture.height, picture.width) != (layout.height, layout.width) and not layout.resize:
            raise ValueError(
                f"{name} is {picture.height} x {picture.width} pixels (height x width), and {layout.height} x "
                f"{layout.width} were expected, as for the others. Scale all images to one size; for a "
                "dataset, the option size does so."
            )
        mode = "L" if layout.channels == 1 else "RGB"
        try:
            if layout.crop:
                picture.draft(mode, compute_resize_size(layout))  # decodes a JPEG at a reduced size, which is faster
            picture = picture if picture.mode == mode else picture.convert(mode)
            if layout.crop:
                picture = center_crop(picture, layout)
            elif layout.resize:
                picture = picture.resize((layout.width, layout.height))
            pixels = np.asarray(picture)
        except Exception as error:  # Pillow's decoders raise exceptions of many types for damaged files
            raise ValueError(f"{name} is a damaged image: {error}. Replace it.") from error
    return pixels[None] if layout.channels == 1 else pixels.transpose(2, 0, 1)


def compute_resize_size(layout: ImageLayout) -> tuple[int, int]:
    """Width and height that an image must at least have before the center crop: 8/7 of the layout's size."""
    return round(layout.width * 8 / 7), round(layout.height * 8 / 7)


def center_crop(picture: PillowImage, layout: ImageLayout) -> PillowImage:
    """Resize an image with its aspect ratio kept, and crop the center to the size of the layout."""
    width, height = compute_resize_size(layout)
    factor = max(width / picture.width, height / picture.height)
    picture = picture.resize((max(round(picture.width * factor), width), max(round(picture.height * factor), height)))
    left, top = (picture.width - layout.width) // 2, (picture.height - layout.height) // 2
    return picture.crop((left, top, left + layout.width, top + layout.height))


def open_image(image: EncodedImage) -> PillowImage:
    """Open an image with Pillow, which reads its header.

    Raises:
        ValueError: The content is not an image of a known format.
        ImportError: Pillow is not installed.
    """
    with require_package("data"):
        from PIL import Image
    name, content = image
    try:
        return Image.open(io.BytesIO(content), formats=PILLOW_FORMATS)
    except Exception as error:  # Pillow's decoders raise exceptions of many types for damaged files
        raise ValueError(f"{name} is not an image that can be read: {error}. Replace it or leave it out.") from error
