"""What training knows of its data: a data set held in memory, or a user's loader; the loop sees no difference."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from flatbayes.core import Examples
from flatbayes.core.buffers import evaluating
from flatbayes.core.randomness import spawn
from flatbayes.data import Dataset, Standardize, StoredImages
from flatbayes.likelihoods import Categorical, Gaussian, Likelihood
from flatbayes.training.batches import Batches, Loaded, TrainingBatches, fits
from flatbayes.training.processes.parallel import World, share
from flatbayes.training.recipe import Recipe

if TYPE_CHECKING:
    from lightning_fabric import Fabric

WHOLE_BATCH = 512
AT_ONCE = 2**26
"""Numbers that are worth keeping transformed, where nothing random comes before the transform."""


class Material(ABC):
    """Training data, and what comes with it."""

    @property
    @abstractmethod
    def known(self) -> dict[str, Any]:
        """Arguments that a model may take: facts about the data."""

    @property
    @abstractmethod
    def transform(self) -> Standardize | None:
        """What inputs go through on their way to the network."""

    @property
    @abstractmethod
    def info(self) -> dict[str, Any]:
        """Plain data about inputs and targets that predictions need."""

    @property
    @abstractmethod
    def identity(self) -> Any:
        """Plain data that tells these data from others, as far as that is quick to know."""

    @abstractmethod
    def likelihood(self) -> Likelihood:
        """How targets depend on outputs, if the data says so."""

    @abstractmethod
    def batches(self, recipe: Recipe, seed: int, fabric: "Fabric") -> TrainingBatches:
        """The batches of a training run; where several processes train together, this one's share of each."""

    @abstractmethod
    def examples(self, device: torch.device) -> Examples:
        """All training examples in batches as the model takes them, not augmented."""

    @abstractmethod
    def sample(self, recipe: Recipe, seed: int) -> list[Tensor]:
        """Batches of training inputs, before the transform, to re-estimate running statistics on."""

    @abstractmethod
    def validator(self, likelihood: Likelihood, world: World) -> Callable[[nn.Module], dict[str, float]] | None:
        """Measures a network on held-out data, if there is any; each process on a share of it."""

    @property
    @abstractmethod
    def is_common(self) -> bool:
        """Whether every process is sure to get the same from `examples` and `sample`."""


def material(data: Dataset | DataLoader[Any], transform: Standardize | None = None) -> Material:
    """The material of either kind of data.

    Args:
        data: A data set, or a loader.
        transform: What inputs of the former are standardised by, instead of the statistics of its training part.
    """
    return Held(data, transform) if isinstance(data, Dataset) else Streamed(data)


@dataclass(frozen=True, eq=False)
class Held(Material):
    """A data set in memory, or of stored images; standardised by its training part unless that is given."""

    data: Dataset
    given: Standardize | None = None
    scale: Standardize = field(init=False)

    def __post_init__(self) -> None:
        inputs, scale = self.data.train.inputs, self.given
        if scale is None:
            scale = inputs.scale if isinstance(inputs, StoredImages) else Standardize.fit(inputs)
        object.__setattr__(self, "scale", scale)

    @property
    def known(self) -> dict[str, Any]:
        """Shape of an input, and how many outputs the data need, under both names that networks call it by."""
        outputs = self.likelihood().num_outputs
        return {"input_shape": self.data.input_shape, "num_classes": outputs, "num_outputs": outputs}

    @property
    def transform(self) -> Standardize:
        """Standardisation, with the statistics of the training part unless others were given."""
        return self.scale

    @property
    def info(self) -> dict[str, Any]:
        """Names of classes, targets and features, shape of an input."""
        data = self.data
        return {
            "class_names": list(data.class_names),
            "target_names": list(data.target_names),
            "feature_names": list(data.feature_names),
            "input_shape": list(data.input_shape),
        }

    @property
    def identity(self) -> dict[str, Any]:
        """Their number, the shape of an input, and a checksum of the targets."""
        targets = self.data.train.targets.contiguous()
        checksum = hashlib.sha256(targets.numpy().tobytes()).hexdigest()
        return {"examples": len(targets), "input_shape": list(self.data.input_shape), "targets": checksum}

    def likelihood(self) -> Likelihood:
        """Categorical over the data's classes; Gaussian in the scale of the training targets."""
        data = self.data
        return Gaussian.fit(data.train.targets) if data.is_regression else Categorical(data.num_classes)

    is_common = True  # the data are in the order they have

    def batches(self, recipe: Recipe, seed: int, fabric: "Fabric") -> TrainingBatches:
        """Shuffled and augmented, on the device if they fit."""
        inputs, targets, augment = self.data.train.inputs, self.data.train.targets, self.data.augment
        size, device, world = min(recipe.batch_size, len(inputs)), fabric.device, World.of(fabric)
        if isinstance(inputs, StoredImages):
            return Batches(inputs, targets, size, seed, augment, self.scale, world)
        if fits(inputs, device):
            inputs, targets = inputs.to(device), targets.to(device)
        ready = augment is None and inputs.numel() <= AT_ONCE
        return Batches(
            self.scale(inputs) if ready else inputs,
            targets,
            size,
            seed,
            augment,
            None if ready else self.scale,
            world,
        )

    def examples(self, device: torch.device) -> Examples:
        """Standardised, in the order of the data."""
        train = self.data.train
        for inputs, targets in zip(train.inputs.split(WHOLE_BATCH), train.targets.split(WHOLE_BATCH), strict=True):
            yield self.scale(inputs.to(device)), targets.to(device)

    def sample(self, recipe: Recipe, seed: int) -> list[Tensor]:
        """Random whole batches, not augmented."""
        inputs = self.data.train.inputs
        size = min(recipe.batch_size, len(inputs))
        count = min(len(inputs) // size, recipe.statistics_batches) * size
        generator = torch.Generator().manual_seed(spawn(seed, count=1)[0])
        return list(inputs[torch.randperm(len(inputs), generator=generator)[:count]].split(size))

    def validator(self, likelihood: Likelihood, world: World) -> Callable[[nn.Module], dict[str, float]] | None:
        """Loss of the network in eval mode on the validation part, as `val_nll`, and `val_accuracy` of classes."""
        val = self.data.val
        if len(val) == 0:
            return None
        own = val if world.size == 1 else val.take(torch.arange(len(val))[share(len(val), world)])
        names = ("val_nll",) if self.data.is_regression else ("val_nll", "val_accuracy")

        def validate(module: nn.Module) -> dict[str, float]:
            weight, found = next(module.parameters()), dict.fromkeys(names, math.nan)
            with evaluating(module), torch.no_grad():
                batches = own.inputs.split(WHOLE_BATCH)
                ready = (self.scale(inputs.to(weight.device)).to(weight.dtype) for inputs in batches)
                if len(own):
                    outputs = torch.cat([module(inputs) for inputs in ready])
                    targets = own.targets.to(weight.device)
                    found["val_nll"] = float(likelihood.loss(outputs, targets))
                    if "val_accuracy" in found:
                        found["val_accuracy"] = float((outputs.argmax(-1) == targets).double().mean())
            return {name: world.mean(value, len(own), weight.device) for name, value in found.items()}

        return validate


@dataclass(frozen=True, eq=False)
class Streamed(Material):
    """A user's loader of ready batches.

    Where several processes train together each reads its own, from a distributed sampler that the loader has or is
    given here; batches are then those of a process, and a step sees one of each.
    """

    loader: DataLoader[Any]

    @property
    def known(self) -> dict[str, Any]:
        """Nothing: the user's function knows its data."""
        return {}

    @property
    def transform(self) -> None:
        """None: batches come ready."""
        return

    @property
    def info(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    @property
    def identity(self) -> dict[str, Any]:
        """Numbers of examples and batches."""
        return {"examples": len(self.loader.dataset), "batches": len(self.loader)}  # type: ignore[arg-type]

    def likelihood(self) -> Likelihood:
        """Not to be known from a loader.

        Raises:
            ValueError: Always; it says what to pass.
        """
        raise ValueError(
            "With a loader, say what the targets are: likelihood=Categorical(num_classes), or for numbers "
            "Gaussian.fit(targets)."
        )

    is_common = False  # a loader may shuffle

    def batches(self, recipe: Recipe, seed: int, fabric: "Fabric") -> TrainingBatches:
        """The loader's own."""
        if fabric.world_size == 1:
            return Loaded(self.loader)
        own: Any = fabric.setup_dataloaders(self.loader, move_to_device=False)
        return Loaded(own)

    def examples(self, device: torch.device) -> Examples:
        """One pass over the loader."""
        return ((inputs.to(device), targets.to(device)) for inputs, targets in self.loader)

    def sample(self, recipe: Recipe, seed: int) -> list[Tensor]:
        """Its first batches."""
        batches: Iterator[Any] = iter(self.loader)
        return [inputs for _, (inputs, *_) in zip(range(recipe.statistics_batches), batches, strict=False)]

    def validator(self, likelihood: Likelihood, world: World) -> None:
        """None: nothing is held out."""
        return
