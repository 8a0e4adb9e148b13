"""Decoding of encoded images (PNG, JPEG and others) to uint8 arrays of one layout, with Pillow."""

import io
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from flatbayes.core.names import format_count
from flatbayes.core.optional import require_package
from flatbayes.data.size_limit import check_memory

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
PILLOW_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are decoded, whatever the suffix. Pillow has more, and some of them start other programs."""
GRAY_MODES = frozenset({"1", "L", "LA"})
HIGH_BIT_DEPTH_MODES = frozenset({"F", "I", "I;16", "I;16B", "I;16L", "I;16N"})

ORIENTATION_TAG = 0x0112
"""Number of the EXIF entry that says how an image is to be turned."""
SIDEWAYS = frozenset({5, 6, 7, 8})
"""Orientations in which width and height are exchanged."""

LARGE_IMAGE_PIXELS = 2**24
"""Images with more pixels are decoded by one thread at a time, so that memory does not grow with the threads."""
BYTES_PER_PIXEL = 8
"""Of an image while it is decoded: at most 4 channels, and a copy in another mode."""
_LARGE_IMAGE_LOCK = threading.Lock()

EncodedImage = tuple[str, bytes]
"""Name of an image for messages, and the content of its file."""
PillowImage = Any
"""`PIL.Image.Image`; Pillow is an optional dependency."""


@dataclass(frozen=True, kw_only=True)
class ImageLayout:
    """Shape that each image of a dataset is decoded to.

    Images of another size are resized, or else refused. With `crop` their shorter side is scaled to 8/7 of the size
    (256 for 224 pixels), and the center is cropped.
    """

    channels: int
    height: int
    width: int
    resize: bool
    crop: bool = False


def check_image_size(size: int | None, crop: bool) -> None:
    """Check the options `size` and `crop` of a source of images.

    Raises:
        ValueError: The size is not positive, or `crop` is set without a size.
    """
    if crop and size is None:
        raise ValueError("To crop images, say to which size: size=224 (on the command line, --data.size 224).")
    if size is not None and size < 1:
        raise ValueError(f"The size of images is a number of pixels, 1 or more, got {size}.")


def infer_layout(images: Iterable[EncodedImage], size: int | None, crop: bool = False) -> ImageLayout:
    """Infer the common layout of images: color if any image has color; the size of the first image, or `size`.

    Only headers are read, and no more of them than needed.

    Raises:
        ValueError: There are no images, the size is not positive, or `crop` is set without a size.
    """
    check_image_size(size, crop)
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
    """Read mode and (width, height) of an image, as it is shown, without decoding it."""
    name, _ = image
    with open_image(image) as picture:
        if picture.format == "TIFF" and read_orientation(picture) in SIDEWAYS:
            with wrap_decode_errors(name):
                picture.load()  # Pillow turns TIFF images itself
        width, height = picture.size
        return picture.mode, (height, width) if read_orientation(picture) in SIDEWAYS else (width, height)


def read_orientation(picture: PillowImage) -> int:
    """The EXIF orientation of an image, from 1 (upright) to 8; 1 if there is none, or damaged EXIF data."""
    if picture.format == "PNG" and "exif" not in picture.info:
        return 1  # Pillow would decode the whole image to look behind it
    try:
        orientation = picture.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # Pillow raises exceptions of many types for damaged EXIF data
        return 1
    return orientation if orientation in range(1, 9) else 1


def turn_upright(picture: PillowImage, orientation: int) -> PillowImage:
    """Turn and mirror an image as its EXIF orientation says, so that it has the pixels that viewers show."""
    with require_package("data"):
        from PIL.Image import Transpose
    operations = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return picture.transpose(operations[orientation]) if orientation in operations else picture


@contextmanager
def wrap_decode_errors(name: str) -> Iterator[None]:
    """Context that turns errors of Pillow's decoders into a ValueError with the name of the image."""
    try:
        yield
    except Exception as error:  # Pillow's decoders raise exceptions of many types for damaged files
        raise ValueError(f"{name} is a damaged image: {error}. Replace it.") from error


def allocate_images(count: int, layout: ImageLayout) -> np.ndarray:
    """Allocate an uninitialized uint8 array, [count, channels, height, width].

    Raises:
        ValueError: It would take more memory than the bound of `size_limit`.
    """
    size = count * layout.channels * layout.height * layout.width
    remedy = "Read them in smaller size (size=224), or when a batch needs them (stream=True)."
    check_memory(size, f"{format_count(count, 'image')} of {layout.height} x {layout.width} pixels", remedy)
    return np.empty((count, layout.channels, layout.height, layout.width), dtype=np.uint8)


def decode_image(image: EncodedImage, layout: ImageLayout) -> np.ndarray:
    """Decode an image to pixels from 0 to 255, [channels, height, width], turned as its EXIF orientation says.

    Raises:
        ValueError: The image is damaged, or does not fit the layout.
    """
    with open_image(image) as picture:
        is_large = picture.width * picture.height > LARGE_IMAGE_PIXELS
        with _LARGE_IMAGE_LOCK if is_large else nullcontext():
            return _decode_picture(picture, image, layout)


def _decode_picture(picture: PillowImage, image: EncodedImage, layout: ImageLayout) -> np.ndarray:
    name, _ = image
    if picture.mode in HIGH_BIT_DEPTH_MODES:
        raise ValueError(f"{name} has more than 8 bits per pixel (mode {picture.mode}). Save it with 8 bits.")
    if layout.channels == 1 and picture.mode not in GRAY_MODES:
        raise ValueError(
            f"{name} has color (mode {picture.mode}), and gray images were expected. Convert it to gray."
        )
    if picture.format == "TIFF":
        check_memory(BYTES_PER_PIXEL * picture.width * picture.height, name)
        with wrap_decode_errors(name):
            picture.load()  # Pillow turns TIFF images itself
    orientation = read_orientation(picture)
    height, width = picture.height, picture.width
    height, width = (width, height) if orientation in SIDEWAYS else (height, width)
    if (height, width) != (layout.height, layout.width) and not layout.resize:
        raise ValueError(
            f"{name} is {height} x {width} pixels (height x width), and {layout.height} x "
            f"{layout.width} were expected, as for the others. Scale all images to one size; for a "
            f"dataset, the option size does so: size={layout.height} (on the command line, --data.size "
            f"{layout.height})."
        )
    mode = "L" if layout.channels == 1 else "RGB"
    with wrap_decode_errors(name):
        if layout.crop:
            picture.draft(mode, compute_resize_size(layout))  # decodes a JPEG at a reduced size, which is faster
    check_memory(BYTES_PER_PIXEL * picture.width * picture.height, name)
    with wrap_decode_errors(name):
        picture = picture if picture.mode == mode else picture.convert(mode)
        picture = turn_upright(picture, orientation)
        if layout.crop:
            picture = center_crop(picture, layout)
        elif layout.resize:
            picture = picture.resize((layout.width, layout.height))
        pixels = np.asarray(picture)
    return pixels[None] if layout.channels == 1 else pixels.transpose(2, 0, 1)


def compute_resize_size(layout: ImageLayout) -> tuple[int, int]:
    """Width and height that an image must at least have before the center crop: 8/7 of the layout's size."""
    return round(layout.width * 8 / 7), round(layout.height * 8 / 7)


def center_crop(picture: PillowImage, layout: ImageLayout) -> PillowImage:
    """Resize an image with its aspect ratio kept, and crop the center to the size of the layout."""
    width, height = compute_resize_size(layout)
    factor = max(width / picture.width, height / picture.height)
    if factor**2 * picture.width * picture.height > LARGE_IMAGE_PIXELS:  # a strip that would become very long
        half_width, half_height = layout.width / factor / 2, layout.height / factor / 2
        center_x, center_y = picture.width / 2, picture.height / 2
        box = (center_x - half_width, center_y - half_height, center_x + half_width, center_y + half_height)
        return picture.resize((layout.width, layout.height), box=box)
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
        from PIL import Image, UnidentifiedImageError
    name, content = image
    try:
        return Image.open(io.BytesIO(content), formats=PILLOW_FORMATS)
    except Exception as error:  # Pillow's decoders raise exceptions of many types for damaged files
        # The message of Pillow on an unknown format is only the address of the buffer.
        reason = "its content has no format of an image" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"{name} is not an image that can be read: {reason}. Replace it or leave it out.") from error
