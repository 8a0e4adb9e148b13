"""Networks, data and training steps that the GPU checks and benchmarks share."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatbayes import Flatness, PreResNet, TrainingConfig, ViT, flatness, posteriors
from flatbayes.core import TrainingProgress
from flatbayes.data import Augment, DataSplits, Split
from flatbayes.training import CollectionConfig, DistributionConfig

RATE = 0.02
POSTERIORS = {name: getattr(posteriors, name)() for name in posteriors.__all__ if name != "Posterior"}
POSTERIORS["Laplace"] = replace(POSTERIORS["Laplace"], tune="evidence")
POSTERIORS["MCDropout"] = replace(POSTERIORS["MCDropout"], rate=0.2)
POSTERIORS["SWAG"] = replace(POSTERIORS["SWAG"], rank=3)
POSTERIORS["Ensemble"] = replace(POSTERIORS["Ensemble"], size=2)
FLATNESSES = {name: getattr(flatness, name)() for name in flatness.__all__ if name != "Flatness"}
"""An instance of every exported method by name, with its defaults where a tiny network allows them."""


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


def make_mlp() -> tuple[nn.Module, Tensor]:
    """A small network, whose time is that of launches, and inputs."""
    layers = [nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
    return nn.Sequential(*layers), torch.randn(64, 64)


def make_preresnet(batch: int) -> tuple[nn.Module, Tensor]:
    """PreResNet-20 and images."""
    return PreResNet((3, 32, 32), 10, depth=20), torch.randn(batch, 3, 32, 32)


def make_vit(batch: int) -> tuple[nn.Module, Tensor]:
    """A vision transformer of 4 blocks and images."""
    return ViT((3, 32, 32), 10, patch=4, dim=64, depth=4, heads=4), torch.randn(batch, 3, 32, 32)


class Setting:
    """A network with an optimizer and one batch, for the steps of a manual loop.

    Args:
        make: Makes the network and its inputs.
        device: Device of both.
        compiled: Compile the network.
    """

    def __init__(self, make: Callable[[], tuple[nn.Module, Tensor]], device: str, *, compiled: bool = False) -> None:
        torch.manual_seed(0)
        module, inputs = make()
        self.module, self.inputs = module.to(device), inputs.to(device)
        self.targets = torch.randint(0, 10, (len(inputs),)).to(device)
        self.network = torch.compile(self.module) if compiled else self.module
        self.params = list(self.module.parameters())
        self.optimizer = torch.optim.SGD(self.params, lr=RATE, momentum=0.9)

    def closure(self) -> Tensor:
        """The gradient of the batch."""
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.network(self.inputs), self.targets)
        loss.backward()
        return loss.detach()

    def make_step(self, flat: Flatness, total_steps: int = 10**9) -> Callable[[], Tensor]:
        """A step of a manual loop with a flatness, which may depend on the number of steps."""
        progress = TrainingProgress(total_steps=total_steps)

        def step() -> Tensor:
            loss = flat(self.closure, self.module, progress)()
            self.optimizer.step()
            progress.advance()
            return loss

        return step
