import numpy as np
import pytest
import torch

from flatbayes.data import ImageFolder, ImageNet, LazyImages, TinyImageNet
from flatbayes.data.images import ImageLayout, decode_image

WNIDS = ("n01443537", "n01629819")


def jpegs(folder, png, pixels, count, height, width, seed=0, prefix="a"):
    folder.mkdir(parents=True)
    for index, image in enumerate(pixels(count, height, width, seed)):
        (folder / f"{prefix}_{index}.JPEG").write_bytes(png(image, "JPEG"))


@pytest.fixture
def tiny(tmp_path, png, pixels):
    top = tmp_path / "tiny-imagenet-200"
    for seed, name in enumerate(WNIDS):
        jpegs(top / "train" / name / "images", png, pixels, 6, 64, 64, seed, name)
        (top / "train" / name / f"{name}_boxes.txt").write_text("boxes")
    jpegs(top / "val" / "images", png, pixels, 4, 64, 64, 9, "val")
    lines = [f"val_{i}.JPEG\t{WNIDS[i % 2]}\t0\t0\t62\t57" for i in range(4)]
    (top / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    (top / "words.txt").write_text("n00000001\tnothing\nn01443537\tgoldfish, Carassius\nn01629819\tsalamander\n")
    return top


@pytest.mark.parametrize("stream", [False, True])
def test_tiny_imagenet(tiny, stream):
    splits = TinyImageNet(root=str(tiny.parent), val_size=4, stream=stream).load(0)
    assert splits.class_names == ("goldfish", "salamander")
    assert (len(splits.train), len(splits.val), len(splits.test)) == (8, 4, 4)
    assert splits.input_shape == (3, 64, 64)
    assert splits.test.targets.tolist() == [0, 1, 0, 1]
    assert isinstance(splits.train.inputs, LazyImages) == stream


def test_tiny_imagenet_without_words(tiny):
    (tiny / "words.txt").unlink()
    assert TinyImageNet(root=str(tiny)).read().class_names == WNIDS


def test_invalid_annotations_are_located(tiny):
    path = tiny / "val" / "val_annotations.txt"
    good = path.read_text()
    path.write_text(good.replace("n01629819", "n9", 1))
    with pytest.raises(ValueError, match=r"Line 2 of .*val_annotations.txt must name .* a class"):
        TinyImageNet(root=str(tiny)).read()
    path.write_text(good + "val_9.JPEG\tn01443537\n")
    with pytest.raises(ValueError, match=r"Line 5 of .*val_annotations.txt"):
        TinyImageNet(root=str(tiny)).read()
    path.write_text("\n".join(good.splitlines()[:3]))
    with pytest.raises(ValueError, match=r"no line for 1 image, such as val_3.JPEG"):
        TinyImageNet(root=str(tiny)).read()
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*val_annotations.txt"):
        TinyImageNet(root=str(tiny)).read()
    with pytest.raises(FileNotFoundError, match=r"Unpack tiny-imagenet-200.zip"):
        TinyImageNet(root=str(tiny / "val")).read()


@pytest.fixture
def large(tmp_path, png, pixels):
    for split_name, count in (("train", 5), ("val", 2)):
        for seed, name in enumerate(WNIDS):
            jpegs(tmp_path / split_name / name, png, pixels, count, 40 + 10 * seed, 60, seed, name)
    return tmp_path


def test_imagenet_is_streamed_and_cropped(large):
    splits = ImageNet(root=str(large), size=16, val_size=2, pad=2).load(0)
    assert isinstance(splits.train.inputs, LazyImages)
    assert splits.input_shape == (3, 16, 16)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (8, 2, 4)
    assert splits.test.targets.tolist() == [0, 0, 1, 1]
    in_memory = ImageNet(root=str(large), size=16, val_size=2, stream=False).load(0)
    assert torch.equal(in_memory.train.inputs, splits.train.inputs[:])


def test_imagenet_without_class_folders_is_refused(large):
    for folder in (large / "val").iterdir():
        for file in folder.iterdir():
            file.rename(large / "val" / f"{folder.name}{file.name}")
        folder.rmdir()
    with pytest.raises(ValueError, match=r"val has no folders of classes. Sort its images"):
        ImageNet(root=str(large)).read()
    for file in (large / "val").iterdir():
        file.unlink()
    (large / "val").rmdir()
    with pytest.raises(FileNotFoundError, match=r"no folder .*val. Unpack"):
        ImageNet(root=str(large)).read()


@pytest.mark.parametrize(("height", "width"), [(24, 48), (48, 24), (8, 8), (300, 17)])
def test_the_center_crop_keeps_the_aspect_ratio(png, height, width):
    # Brightness grows from left to right: the middle of the image stays in the middle, whatever its shape.
    ramp = np.broadcast_to(np.linspace(0, 250, width)[None, :, None], (height, width, 3)).astype(np.uint8)
    layout = ImageLayout(channels=3, height=14, width=14, resize=True, crop=True)
    cropped = decode_image(("ramp", png(ramp)), layout).astype(float)
    assert cropped.shape == (3, 14, 14)
    assert cropped.mean() == pytest.approx(125, abs=4)
    slope = (cropped[..., -3] - cropped[..., 2]).mean() / 9 * max(16 / height, 16 / width)
    assert slope == pytest.approx(250 / (width - 1), rel=0.2)


def test_a_crop_needs_a_size(large):
    with pytest.raises(ValueError, match="To crop images, say to which size"):
        ImageFolder(path=str(large), crop=True).read()
