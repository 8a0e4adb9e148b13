"""EXIF orientation: every reader of images gives the pixels that viewers show."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from flatbayes.data import ImageFolder, ImageNet, ImageParquet, TorchDataset, load_test_split, read_inputs
from flatbayes.data.images import decode_image, infer_layout

SHOWN = np.random.default_rng(0).integers(0, 256, (12, 8, 3), dtype=np.uint8)
INVERSE = {  # what turns an upright image into one that is stored with this orientation
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
ORIENTATIONS = pytest.mark.parametrize("orientation", INVERSE)


def encode(orientation, kind="PNG", shown=SHOWN):
    picture = Image.fromarray(shown)
    stored = picture if INVERSE[orientation] is None else picture.transpose(INVERSE[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    stored.save(stream, kind, exif=exif, **options)
    return stream.getvalue()


@ORIENTATIONS
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("gray", [False, True])
def test_images_are_decoded_as_viewers_show_them(orientation, kind, gray):
    image = ("a", encode(orientation, kind, SHOWN[:, :, 0] if gray else SHOWN))
    layout = infer_layout([image], None)
    assert (layout.height, layout.width) == (12, 8)
    decoded = decode_image(image, layout)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(image[1]))))
    if kind not in ("JPEG", "WEBP") or (kind == "WEBP" and not gray):
        assert np.array_equal(expected, SHOWN[:, :, 0] if gray else SHOWN)
    assert np.array_equal(decoded, expected[None] if gray and expected.ndim == 2 else expected.transpose(2, 0, 1))


@pytest.mark.parametrize("value", [0, 9, 77])
def test_other_orientations_are_ignored(value):
    exif = Image.Exif()
    exif[0x0112] = value
    stream = io.BytesIO()
    Image.fromarray(SHOWN).save(stream, "PNG", exif=exif)
    image = ("a", stream.getvalue())
    assert np.array_equal(decode_image(image, infer_layout([image], None)), SHOWN.transpose(2, 0, 1))


def write_folder(folder, **options):
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for index in range(14):
            (folder / name / f"{index}.png").write_bytes(encode(1 + index % 8))
    return ImageFolder(path=str(folder), **options)


def write_imagenet(folder):
    for split in ("train", "val"):
        write_folder(folder / split)
    return ImageNet(root=str(folder), size=7, val_size=4, stream=False)


def write_images_in_parquet(write_parquet, folder, **options):
    images = [encode(1 + index % 8) for index in range(28)]
    write_parquet(folder / "t.parquet", images, [index % 2 for index in range(28)])
    return ImageParquet(path=str(folder / "t.parquet"), **options)


class Photos(torch.utils.data.Dataset):
    def __len__(self):
        return 28

    def __getitem__(self, index):
        return Image.open(io.BytesIO(encode(1 + index % 8))), index % 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("source", ["folder", "parquet", "torch", "imagenet"])
def test_all_sources(tmp_path, write_parquet, monkeypatch, source, stream):
    monkeypatch.setenv("FLATBAYES_CACHE", str(tmp_path / "cache"))
    expected = torch.from_numpy(SHOWN.transpose(2, 0, 1).copy())
    match source:
        case "folder":
            data = write_folder(tmp_path / "set", stream=stream)
        case "parquet":
            data = write_images_in_parquet(write_parquet, tmp_path, stream=stream)
        case "torch":
            data = TorchDataset(Photos())
        case "imagenet":
            data = write_imagenet(tmp_path / "set")
            image = ("a", encode(1))
            expected = torch.from_numpy(decode_image(image, infer_layout([image], 7, crop=True)).copy())
    splits = data.load(0)
    assert splits.input_shape == tuple(expected.shape)
    for split in (splits.train, splits.val, splits.test, load_test_split(data)):
        images = split.inputs[torch.arange(len(split))]
        assert torch.equal(images, expected.expand(len(split), *expected.shape))


@pytest.mark.parametrize("source", ["folder", "parquet"])
def test_predictions(tmp_path, write_parquet, source):
    if source == "folder":
        write_folder(tmp_path / "set")
    else:
        write_images_in_parquet(write_parquet, tmp_path)
    path = tmp_path / ("set" if source == "folder" else "t.parquet")
    images = torch.cat([inputs for _, inputs in read_inputs(path, (3, 12, 8), ())])
    assert torch.equal(images, torch.from_numpy(SHOWN.transpose(2, 0, 1).copy()).expand(28, 3, 12, 8))
