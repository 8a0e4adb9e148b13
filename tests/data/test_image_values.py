"""Images as they are stored, from 0 to 255, in place of scaled ones, and the other way round."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flatbayes import MAP, FittedPosterior, TrainingConfig, evaluate, fit
from flatbayes.data.split_checks import check_image_values, describe_image_values

SCALED = torch.rand(16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
STORED = (255 * SCALED).to(torch.uint8)
LABELS = torch.arange(16) % 2
CONFIG = TrainingConfig(epochs=1, batch_size=8)
MESSAGES = {
    "scaled": "are uint8 images with values up to 25",
    "stored": "are floating-point images with values",
}


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))


def train(images, val=None):
    return fit(make_network(), (images, LABELS), MAP(), config=CONFIG, val=val)


@pytest.mark.parametrize(("images", "others"), [(SCALED, STORED), (STORED, SCALED)], ids=["scaled", "stored"])
def test_images_of_another_range_are_refused(images, others, tmp_path):
    kind = describe_image_values(images)
    fitted = train(images)
    assert fitted.info["image_values"] == kind
    loaded = FittedPosterior.load(fitted.save(tmp_path / "fitted"), make_network())
    calls = (
        lambda: fitted.predict(others),
        lambda: loaded.predict(others.permute(0, 2, 3, 1).numpy()),
        lambda: evaluate(fitted, (others, LABELS)),
        lambda: evaluate(fitted, DataLoader(TensorDataset(others, LABELS), 8)),
        lambda: train(images, val=(others, LABELS)),
        lambda: fit(
            make_network(), [(images.float(), LABELS)] if kind == "scaled" else [(images, LABELS)], MAP(),
            config=CONFIG, val=[(others, LABELS)],
        ),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(ValueError, match=MESSAGES[kind]):
            call()


def test_a_loader_of_stored_images_refuses_scaled_ones():
    fitted = fit(make_network(), DataLoader(TensorDataset(STORED, LABELS), 8), MAP(), config=CONFIG)
    fitted.predict(STORED.float())
    with pytest.raises(ValueError, match=MESSAGES["stored"]):
        fitted.predict(SCALED)


@pytest.mark.parametrize(
    ("expected", "images"),
    [
        ("scaled", SCALED.double() * 2 - 1),
        ("scaled", (STORED > 99).to(torch.uint8)),
        ("stored", STORED.float()),
        ("stored", torch.zeros(1, 3, 4, 4)),
        (None, STORED),
        ("scaled", STORED[:0]),
        ("stored", SCALED[0]),
    ],
)
def test_images_that_may_be_right_are_taken(expected, images):
    check_image_values(images, expected, "The inputs")


def test_other_inputs_have_no_range():
    for inputs in (SCALED[0], SCALED * 255, STORED.long(), {"pixel_values": SCALED}, SCALED[:0]):
        assert describe_image_values(inputs) is None
