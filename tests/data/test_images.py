import io

import numpy as np
import pytest
import torch
from PIL import Image

from flatbayes.data.images import ImageLayout, decode_image, infer_layout
from flatbayes.data.splits import EncodedSplit


def layout(**changes):
    return ImageLayout(**({"channels": 3, "height": 4, "width": 5, "resize": False} | changes))


def test_color_images_are_decoded(png, pixels):
    image = pixels(1, 4, 5)[0]
    assert np.array_equal(decode_image(("a", png(image)), layout()), image.transpose(2, 0, 1))


def test_gray_images_are_decoded_to_one_or_three_channels(png, pixels):
    gray = pixels(1, 4, 5)[0, :, :, 0]
    assert np.array_equal(decode_image(("a", png(gray)), layout(channels=1)), gray[None])
    assert np.array_equal(decode_image(("a", png(gray)), layout()), np.stack([gray] * 3))


def test_the_layout_is_gray_only_if_all_images_are(png, pixels):
    color = pixels(1)[0]
    gray = color[:, :, 0]
    assert infer_layout([("a", png(gray)), ("b", png(gray))], None).channels == 1
    assert infer_layout([("a", png(gray)), ("b", png(gray)), ("c", png(color))], None).channels == 3
    assert infer_layout([("a", png(color)), ("b", png(gray))], None).channels == 3


def test_the_layout_has_the_size_of_the_first_image_or_the_option(png, pixels):
    image = ("a", png(pixels(1, 4, 5)[0]))
    assert infer_layout([image], None) == layout()
    assert infer_layout([image], 7) == layout(height=7, width=7, resize=True)
    with pytest.raises(ValueError, match="1 or more, got 0"):
        infer_layout([image], 0)
    with pytest.raises(ValueError, match="no images"):
        infer_layout([], None)


def test_another_size_is_refused_or_scaled(png, pixels):
    image = ("row 7", png(np.full((8, 6, 3), 77, dtype=np.uint8)))
    with pytest.raises(ValueError, match=r"row 7 is 8 x 6 pixels .* 4 x 5 were expected"):
        decode_image(image, layout())
    assert np.array_equal(decode_image(image, layout(resize=True)), np.full((3, 4, 5), 77))


def test_color_images_are_refused_by_a_gray_layout(png, pixels):
    with pytest.raises(ValueError, match=r"x has color \(mode RGB\)"):
        decode_image(("x", png(pixels(1, 4, 5)[0])), layout(channels=1))


def test_images_of_more_than_8_bits_are_refused(png):
    with pytest.raises(ValueError, match="more than 8 bits"):
        decode_image(("x", png(np.zeros((4, 5), dtype=np.uint16))), layout())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF"])
def test_damage_names_the_image(png, kind):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    content = png(noise, kind)
    for keep in (0, 2, 20, len(content) // 2):
        with pytest.raises(ValueError, match="broken"):
            decode_image(("broken", content[:keep]), layout(height=32, width=32))


def test_flipped_bits_raise_only_value_errors(png):
    generator = np.random.default_rng(0)
    content = png(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    messages = []
    for _ in range(300):
        damaged = bytearray(content)
        damaged[generator.integers(len(content))] ^= 1 << generator.integers(8)
        try:
            decode_image(("x", bytes(damaged)), layout(height=8, width=8))
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert all(message.startswith("x ") for message in messages)


def test_palettes_and_transparency_are_converted_to_color(png, pixels):
    image = Image.fromarray(pixels(1, 4, 5)[0])
    for mode in ("P", "RGBA", "CMYK"):
        converted = image.convert(mode)
        with_format = "TIFF" if mode == "CMYK" else "PNG"
        stream = io.BytesIO()
        converted.save(stream, with_format)
        decoded = decode_image(("a", stream.getvalue()), layout())
        assert np.array_equal(decoded, np.asarray(converted.convert("RGB")).transpose(2, 0, 1))


def test_only_the_taken_rows_are_decoded_and_keep_their_order(png, pixels):
    images = pixels(6)
    requested_rows = []

    def encoded(rows):
        requested_rows.extend(rows.tolist())
        return ((str(row), png(images[row])) for row in rows)

    split = EncodedSplit(read_encoded=encoded, layout=layout(width=4), targets=torch.arange(6) * 10)
    taken = split.take(torch.tensor([4, 0, 2]))
    assert requested_rows == [0, 2, 4]
    assert taken.targets.tolist() == [40, 0, 20]
    assert torch.equal(taken.inputs, torch.from_numpy(images[[4, 0, 2]].transpose(0, 3, 1, 2)))
    assert len(split) == 6
    assert split.take(torch.arange(0)).inputs.shape == (0, 3, 4, 4)
