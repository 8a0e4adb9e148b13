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
from flatbayes.core.buffers import eval_mode
from flatbayes.core.randomness import spawn_seeds
from flatbayes.data import DataSplits, LazyImages, Standardize
from flatbayes.likelihoods import Categorical, Gaussian, Likelihood
from flatbayes.training.batches import LoaderBatches, ShuffledBatches, TrainingBatches, fits_on_device
from flatbayes.training.config import TrainingConfig
from flatbayes.training.distributed.process_group import ProcessGroupInfo, contiguous_slice

if TYPE_CHECKING:
    from lightning_fabric import Fabric

EVAL_BATCH_SIZE = 512
MAX_CACHED_ELEMENTS = 2**26
"""Numbers that are worth keeping transformed, where nothing random comes before the transform."""


class TrainingData(ABC):
    """Training data, and what comes with it."""

    @property
    @abstractmethod
    def model_arguments(self) -> dict[str, Any]:
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
    def fingerprint(self) -> Any:
        """Plain data that tells these data from others, as far as that is quick to know."""

    @abstractmethod
    def infer_likelihood(self) -> Likelihood:
        """How targets depend on outputs, if the data says so."""

    @abstractmethod
    def make_batches(self, config: TrainingConfig, seed: int, fabric: "Fabric") -> TrainingBatches:
        """The batches of a training run; where several processes train together, this one's share of each."""

    @abstractmethod
    def iter_examples(self, device: torch.device) -> Examples:
        """All training examples in batches as the model takes them, not augmented."""

    @abstractmethod
    def sample_inputs(self, config: TrainingConfig, seed: int) -> list[Tensor]:
        """Batches of training inputs, before the transform, to re-estimate running statistics on."""

    @abstractmethod
    def make_validator(
        self, likelihood: Likelihood, world: ProcessGroupInfo
    ) -> Callable[[nn.Module], dict[str, float]] | None:
        """Measures a network on held-out data, if there is any; each process on a share of it."""

    @property
    @abstractmethod
    def is_replicated(self) -> bool:
        """Whether every process is sure to get the same from `examples` and `sample`."""


def make_training_data(data: DataSplits | DataLoader[Any], transform: Standardize | None = None) -> TrainingData:
    """The material of either kind of data.

    Args:
        data: A data set, or a loader.
        transform: What inputs of the former are standardised by, instead of the statistics of its training part.
    """
    return InMemoryData(data, transform) if isinstance(data, DataSplits) else LoaderData(data)


@dataclass(frozen=True, eq=False)
class InMemoryData(TrainingData):
    """A data set in memory, or of stored images; standardised by its training part unless that is given."""

    splits: DataSplits
    transform_override: Standardize | None = None
    standardize: Standardize = field(init=False)

    def __post_init__(self) -> None:
        inputs, scale = self.splits.train.inputs, self.transform_override
        if scale is None:
            scale = inputs.standardization if isinstance(inputs, LazyImages) else Standardize.fit(inputs)
        object.__setattr__(self, "standardize", scale)

    @property
    def model_arguments(self) -> dict[str, Any]:
        """Shape of an input, and how many outputs the data need, under both names that networks call it by."""
        outputs = self.infer_likelihood().num_outputs
        return {"input_shape": self.splits.input_shape, "num_classes": outputs, "num_outputs": outputs}

    @property
    def transform(self) -> Standardize:
        """Standardisation, with the statistics of the training part unless others were given."""
        return self.standardize

    @property
    def info(self) -> dict[str, Any]:
        """Names of classes, targets and features, shape of an input."""
        data = self.splits
        return {
            "class_names": list(data.class_names),
            "target_names": list(data.target_names),
            "feature_names": list(data.feature_names),
            "input_shape": list(data.input_shape),
        }

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Their number, the shape of an input, and a checksum of the targets."""
        targets = self.splits.train.targets.contiguous()
        checksum = hashlib.sha256(targets.numpy().tobytes()).hexdigest()
        return {"examples": len(targets), "input_shape": list(self.splits.input_shape), "targets": checksum}

    def infer_likelihood(self) -> Likelihood:
        """Categorical over the data's classes; Gaussian in the scale of the training targets."""
        data = self.splits
        return Gaussian.fit(data.train.targets) if data.is_regression else Categorical(data.num_classes)

    is_replicated = True  # the data are in the order they have

    def make_batches(self, config: TrainingConfig, seed: int, fabric: "Fabric") -> TrainingBatches:
        """Shuffled and augmented, on the device if they fit."""
        inputs, targets, augment = self.splits.train.inputs, self.splits.train.targets, self.splits.augment
        size, device, world = min(config.batch_size, len(inputs)), fabric.device, ProcessGroupInfo.from_fabric(fabric)
        if isinstance(inputs, LazyImages):
            return ShuffledBatches(inputs, targets, size, seed, augment, self.standardize, world)
        if fits_on_device(inputs, device):
            inputs, targets = inputs.to(device), targets.to(device)
        ready = augment is None and inputs.numel() <= MAX_CACHED_ELEMENTS
        return ShuffledBatches(
            self.standardize(inputs) if ready else inputs,
            targets,
            size,
            seed,
            augment,
            None if ready else self.standardize,
            world,
        )

    def iter_examples(self, device: torch.device) -> Examples:
        """Standardised, in the order of the data."""
        train = self.splits.train
        for inputs, targets in zip(
            train.inputs.split(EVAL_BATCH_SIZE), train.targets.split(EVAL_BATCH_SIZE), strict=True
        ):
            yield self.standardize(inputs.to(device)), targets.to(device)

    def sample_inputs(self, config: TrainingConfig, seed: int) -> list[Tensor]:
        """Random whole batches, not augmented."""
        inputs = self.splits.train.inputs
        size = min(config.batch_size, len(inputs))
        count = min(len(inputs) // size, config.collection.num_norm_batches) * size
        generator = torch.Generator().manual_seed(spawn_seeds(seed, count=1)[0])
        return list(inputs[torch.randperm(len(inputs), generator=generator)[:count]].split(size))

    def make_validator(
        self, likelihood: Likelihood, world: ProcessGroupInfo
    ) -> Callable[[nn.Module], dict[str, float]] | None:
        """Loss of the network in eval mode on the validation part, as `val_nll`, and `val_accuracy` of classes."""
        val = self.splits.val
        if len(val) == 0:
            return None
        own = val if world.size == 1 else val.take(torch.arange(len(val))[contiguous_slice(len(val), world)])
        names = ("val_nll",) if self.splits.is_regression else ("val_nll", "val_accuracy")

        def validate(module: nn.Module) -> dict[str, float]:
            weight, found = next(module.parameters()), dict.fromkeys(names, math.nan)
            with eval_mode(module), torch.no_grad():
                batches = own.inputs.split(EVAL_BATCH_SIZE)
                ready = (self.standardize(inputs.to(weight.device)).to(weight.dtype) for inputs in batches)
                if len(own):
                    outputs = torch.cat([module(inputs) for inputs in ready])
                    targets = own.targets.to(weight.device)
                    found["val_nll"] = float(likelihood.loss(outputs, targets))
                    if "val_accuracy" in found:
                        found["val_accuracy"] = float((outputs.argmax(-1) == targets).double().mean())
            return {
                name: world.average_over_examples(value, len(own), weight.device) for name, value in found.items()
            }

        return validate


@dataclass(frozen=True, eq=False)
class LoaderData(TrainingData):
    """A user's loader of ready batches.

    Where several processes train together each reads its own, from a distributed sampler that the loader has or is
    given here; batches are then those of a process, and a step sees one of each.
    """

    loader: DataLoader[Any]

    @property
    def model_arguments(self) -> dict[str, Any]:
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
    def fingerprint(self) -> dict[str, Any]:
        """Numbers of examples and batches."""
        return {"examples": len(self.loader.dataset), "batches": len(self.loader)}  # type: ignore[arg-type]

    def infer_likelihood(self) -> Likelihood:
        """Not to be known from a loader.

        Raises:
            ValueError: Always; it says what to pass.
        """
        raise ValueError(
            "With a loader, say what the targets are: likelihood=Categorical(num_classes), or for numbers "
            "Gaussian.fit(targets)."
        )

    is_replicated = False  # a loader may shuffle

    def make_batches(self, config: TrainingConfig, seed: int, fabric: "Fabric") -> TrainingBatches:
        """The loader's own."""
        if fabric.world_size == 1:
            return LoaderBatches(self.loader)
        own: Any = fabric.setup_dataloaders(self.loader, move_to_device=False)
        return LoaderBatches(own)

    def iter_examples(self, device: torch.device) -> Examples:
        """One pass over the loader."""
        return ((inputs.to(device), targets.to(device)) for inputs, targets in self.loader)

    def sample_inputs(self, config: TrainingConfig, seed: int) -> list[Tensor]:
        """Its first batches."""
        batches: Iterator[Any] = iter(self.loader)
        return [inputs for _, (inputs, *_) in zip(range(config.collection.num_norm_batches), batches, strict=False)]

    def make_validator(self, likelihood: Likelihood, world: ProcessGroupInfo) -> None:
        """None: nothing is held out."""
        return
