"""Networks, data and methods that the GPU checks and benchmarks share."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from flatbayes import SAM, Flatness, Plain, Posterior, TrainingConfig, ViT, flatness, posteriors
from flatbayes.data import Augment, DataSplits, Split
from flatbayes.training import CollectionConfig, DistributionConfig

POSTERIORS = {name: getattr(posteriors, name)() for name in posteriors.__all__ if name != "Posterior"}
POSTERIORS["Laplace"] = replace(POSTERIORS["Laplace"], tune="evidence")
POSTERIORS["MCDropout"] = replace(POSTERIORS["MCDropout"], rate=0.2)
POSTERIORS["SWAG"] = replace(POSTERIORS["SWAG"], rank=3)
POSTERIORS["Ensemble"] = replace(POSTERIORS["Ensemble"], size=2)
FLATNESSES = {name: getattr(flatness, name)() for name in flatness.__all__ if name != "Flatness"}
FLATNESSES["MSharpness"] = replace(FLATNESSES["MSharpness"], num_sub_batches=2)
"""An instance of every exported method by name, with its defaults where a tiny network allows them.

Sub-batches of two examples would be chaotic: BatchNorm returns the sign of their difference, whatever the weights.
"""


def choose_flatness(posterior: Posterior) -> Flatness:
    """SAM, or Plain for a posterior that perturbs the weights itself."""
    return Plain() if posterior.perturbs_weights else SAM()


def make_network() -> nn.Module:
    """Convolution, BatchNorm and dropout on 1 x 8 x 8 images in 3 classes."""
    convolution = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.1), nn.Flatten()]
    return nn.Sequential(*convolution, nn.Linear(288, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def make_splits(shape: tuple[int, ...] = (1, 8, 8), num_classes: int = 3, num_train: int = 240) -> DataSplits:
    """Random images, each with the mean brightness of its class, with random flips and shifts in training."""
    generator = torch.Generator().manual_seed(0)
    splits = []
    for count in (num_train, 60, 60):
        targets = torch.arange(count) % num_classes
        noise = torch.randint(0, 128, (count, *shape), generator=generator, dtype=torch.int64)
        brightness = (targets * (127 // max(1, num_classes - 1))).view(-1, *[1] * len(shape))
        splits.append(Split(inputs=(noise + brightness).to(torch.uint8), targets=targets))
    names = tuple(f"class {k}" for k in range(num_classes))
    return DataSplits(
        train=splits[0],
        val=splits[1],
        test=splits[2],
        class_names=names,
        feature_names=(),
        augment=Augment(flip=True, pad=1),
    )


def make_config(device: str, **options) -> TrainingConfig:
    """A short training on a device; other options as in `TrainingConfig.with_options`."""
    config = TrainingConfig(
        epochs=2,
        batch_size=40,
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=5e-4),
        num_validations=1,
        collection=CollectionConfig(start_fraction=0.0, snapshots_per_epoch=4),
        distribution=DistributionConfig(accelerator=device),
    )
    return config.with_options(**options)


def make_vit(batch: int) -> tuple[nn.Module, Tensor]:
    """A vision transformer of 4 blocks and images."""
    return ViT((3, 32, 32), 10, patch=4, dim=64, depth=4, heads=4), torch.randn(batch, 3, 32, 32)
