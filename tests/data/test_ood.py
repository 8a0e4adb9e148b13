import numpy as np
import pytest
import torch
from PIL import Image

from flatbayes.data import CIFAR10, Digits, Table, load_ood_inputs, match_input_format


def bytes_of(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


COLOR = bytes_of(5, 3, 32, 32)
GRAY = torch.randint(0, 17, (7, 1, 8, 8), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def test_gray_is_repeated_and_white_is_scaled():
    reference = bytes_of(5, 3, 8, 8)
    converted = match_input_format(GRAY, reference)
    assert torch.equal(converted, (GRAY.double() * 255 / 16).round().to(torch.uint8).expand(-1, 3, -1, -1))


def test_colors_are_averaged_and_scaled_to_small_ranges():
    converted = match_input_format(bytes_of(4, 3, 8, 8), GRAY)
    assert torch.equal(
        converted, (bytes_of(4, 3, 8, 8).double().mean(1, keepdim=True) * 16 / 255).round().to(torch.uint8)
    )
    assert converted.max() <= 16


@pytest.mark.parametrize("size", [(16, 16), (8, 8), (64, 48)])
def test_resizing_equals_pillow(size):
    converted = match_input_format(COLOR, torch.full((2, 3, *size), 255, dtype=torch.uint8))
    for before, after in zip(COLOR, converted, strict=True):
        picture = Image.fromarray(before.permute(1, 2, 0).numpy()).resize(size[::-1], Image.Resampling.BILINEAR)
        assert np.abs(np.asarray(picture).astype(int) - after.permute(1, 2, 0).numpy()).max() <= 1


def test_floating_point_is_not_rounded():
    converted = match_input_format(COLOR, torch.rand(4, 3, 32, 32))
    assert converted.dtype == torch.float32
    torch.testing.assert_close(converted, COLOR.float() / 255)


def test_matching_inputs_are_returned_unchanged():
    assert match_input_format(COLOR, bytes_of(2, 3, 32, 32, seed=1)) is COLOR
    features = torch.randn(4, 3)
    assert match_input_format(features, torch.randn(9, 3)) is features


@pytest.mark.parametrize(
    ("ood", "reference", "message"),
    [
        (torch.zeros(2, 4), torch.zeros(2, 5), r"shape \(4,\), and the model's inputs \(5,\)"),
        (torch.zeros(2, 4), GRAY, r"shape \(4,\), and the model's inputs \(1, 8, 8\)"),
        (COLOR, torch.zeros(2, 4), r"shape \(3, 32, 32\), and the model's inputs \(4,\)"),
        (COLOR, torch.zeros(2, 4, 8, 8), r"3 channels .* and the model's inputs 4"),
    ],
)
def test_refuses_other_shapes(ood, reference, message):
    with pytest.raises(ValueError, match=message):
        match_input_format(ood, reference)


def test_ood_inputs_are_the_test_split_of_a_source(tmp_path, write_parquet, pixels):
    expected = Digits().load(0).test.inputs
    assert torch.equal(load_ood_inputs(Digits(), GRAY), expected)
    write_parquet(tmp_path / "train.parquet", pixels(10), list(range(10)))
    write_parquet(tmp_path / "test.parquet", pixels(10, seed=1), list(range(10)))
    converted = load_ood_inputs(CIFAR10(root=str(tmp_path)), bytes_of(3, 3, 4, 4))
    assert torch.equal(converted, torch.from_numpy(pixels(10, seed=1)).permute(0, 3, 1, 2))


def test_a_table_for_an_image_model_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b,y\n" + "".join(f"{k + 2},{k * k},{k % 2}\n" for k in range(40)))
    with pytest.raises(ValueError, match=r"\(2,\), and the model's inputs \(1, 8, 8\)"):
        load_ood_inputs(Table(path=str(path), target="y"), GRAY)
