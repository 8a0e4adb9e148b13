"""Encoded images (PNG, JPEG ...) to tensors: the one place that decodes.

They stay encoded until the rows of a part are known, so that only the images that are used are decoded, one
by one, into the tensor that holds them.
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from flatbayes.data.optional import require_package

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
PILLOW_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Kinds that are decoded, whatever the name says: Pillow knows others, some of which start programs."""
GREY_MODES = frozenset({"1", "L", "LA"})
HIGH_BIT_DEPTH_MODES = frozenset({"F", "I", "I;16", "I;16B", "I;16L", "I;16N"})

EncodedImage = tuple[str, bytes]
"""What to call an image in a message, and the content of its file."""


@dataclass(frozen=True, kw_only=True)
class ImageLayout:
    """What each image of a dataset is decoded to.

    Attributes:
        channels: 1 for grey images, 3 for colour.
        height: In pixels.
        width: In pixels.
        resize: Scale images of another size to this one, instead of refusing them.
        crop: Keep proportions where images are scaled: the shorter side to 8/7 of the size, and its middle is cut out
            (for 224 pixels the usual 256).
    """

    channels: int
    height: int
    width: int
    resize: bool
    crop: bool = False


def infer_layout(images: Iterable[EncodedImage], size: int | None, crop: bool = False) -> ImageLayout:
    """Colour if any image has colour; the size of the first one, or the one to resize to.

    Args:
        images: All there are; as few as needed are looked at, and only at their headers.
        size: Height and width to resize to; None leaves images as they are.
        crop: Keep proportions, and cut the middle out.

    Raises:
        ValueError: There are no images, the size is not positive, or there is a crop and no size.
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
    grey = mode in GREY_MODES and all(other in GREY_MODES for other, _ in headers)
    return ImageLayout(
        channels=1 if grey else 3, height=size or height, width=size or width, resize=size is not None, crop=crop
    )


def read_header(image: EncodedImage) -> tuple[str, tuple[int, int]]:
    """Mode and (width, height) of an image that is not decoded."""
    with open_image(image) as picture:
        return picture.mode, picture.size


def allocate_images(count: int, layout: ImageLayout) -> np.ndarray:
    """Room for so many images, [count, channels, height, width]."""
    return np.empty((count, layout.channels, layout.height, layout.width), dtype=np.uint8)


def decode_image(image: EncodedImage, layout: ImageLayout) -> np.ndarray:
    """The pixels, [channels, height, width], 0 to 255.

    Raises:
        ValueError: The image is damaged, or not of this layout.
    """
    name, _ = image
    with open_image(image) as picture:
        if picture.mode in HIGH_BIT_DEPTH_MODES:
            raise ValueError(f"{name} has more than 8 bits per pixel (mode {picture.mode}). Save it with 8 bits.")
        if layout.channels == 1 and picture.mode not in GREY_MODES:
            raise ValueError(
                f"{name} has colour (mode {picture.mode}), and grey images were expected. Convert it to grey."
            )
        found = (picture.height, picture.width)
        if found != (layout.height, layout.width) and not layout.resize:
            raise ValueError(
                f"{name} is {found[0]} x {found[1]} pixels (height x width), and {layout.height} x "
                f"{layout.width} were expected, as for the others. Scale all images to one size; for a "
                "dataset, the option size does so."
            )
        mode = "L" if layout.channels == 1 else "RGB"
        try:
            if layout.crop:
                picture.draft(mode, compute_resize_size(layout))  # a JPEG is decoded to a size near to what is needed
            picture = picture if picture.mode == mode else picture.convert(mode)
            if layout.crop:
                picture = center_crop(picture, layout)
            elif layout.resize:
                picture = picture.resize((layout.width, layout.height))
            pixels = np.asarray(picture)
        except Exception as error:  # decoders answer damage with exceptions of any kind
            raise ValueError(f"{name} is a damaged image: {error}. Replace it.") from error
    return pixels[None] if layout.channels == 1 else pixels.transpose(2, 0, 1)


def compute_resize_size(layout: ImageLayout) -> tuple[int, int]:
    """Width and height that an image is scaled to, at least, before its middle is cut out."""
    return round(layout.width * 8 / 7), round(layout.height * 8 / 7)


def center_crop(picture: Any, layout: ImageLayout) -> Any:
    """The middle of an image, scaled with its proportions kept."""
    width, height = compute_resize_size(layout)
    factor = max(width / picture.width, height / picture.height)
    picture = picture.resize((max(round(picture.width * factor), width), max(round(picture.height * factor), height)))
    left, top = (picture.width - layout.width) // 2, (picture.height - layout.height) // 2
    return picture.crop((left, top, left + layout.width, top + layout.height))


def open_image(image: EncodedImage) -> Any:
    """A Pillow image, its header read."""
    with require_package("data"):
        from PIL import Image
    name, content = image
    try:
        return Image.open(io.BytesIO(content), formats=PILLOW_FORMATS)
    except Exception as error:  # decoders answer damage with exceptions of any kind
        raise ValueError(f"{name} is not an image that can be read: {error}. Replace it or leave it out.") from error
