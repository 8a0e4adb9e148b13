"""Training data: data splits, or a user's loader."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DistributedSampler, IterableDataset

from flatbayes.core import Examples
from flatbayes.core.buffers import eval_mode
from flatbayes.core.input_trees import map_tensors, slice_examples
from flatbayes.core.networks import cast_inputs
from flatbayes.core.process_group import ProcessGroupInfo, contiguous_slice
from flatbayes.core.randomness import Stream, make_generator, preserve_rng, seeded_rng, spawn_seed
from flatbayes.data import DataSplits, LazyImages, Standardize
from flatbayes.data.fingerprint import compute_fingerprint
from flatbayes.likelihoods import Categorical, Gaussian, Likelihood
from flatbayes.training.batches import LoaderBatches, ShuffledBatches, TrainingBatches, fits_on_device
from flatbayes.training.config import TrainingConfig
from flatbayes.training.distributed.launch import get_fabric_process_group
from flatbayes.training.loader_pass import (
    LoaderPass,
    convert_integers,
    count_rows,
    read_pass,
    select_labelled,
    split_batch,
)

if TYPE_CHECKING:  # lightning_fabric takes a second to import: imported where it is used
    from lightning_fabric import Fabric

EVAL_BATCH_SIZE = 512
NUM_CHECK_EXAMPLES = 4
"""Examples on which a network is checked before training."""
MAX_CACHED_ELEMENTS = 2**26
"""Largest number of input elements that are kept transformed, where no augmentation comes before the transform."""


class TrainingData(ABC):
    """Training data and what is derived from them."""

    @property
    @abstractmethod
    def model_arguments(self) -> dict[str, Any]:
        """Arguments for a model: `input_shape`, `num_classes`, `num_outputs`; empty for a loader."""

    @property
    @abstractmethod
    def transform(self) -> Standardize | None:
        """Transform of the inputs; None for a loader, whose batches are ready."""

    @property
    @abstractmethod
    def info(self) -> dict[str, Any]:
        """Plain data about inputs and targets that predictions need: names of classes, shape of an input."""

    @property
    @abstractmethod
    def fingerprint(self) -> Any:
        """Plain data that differ between most data sets, and are fast to compute."""

    @abstractmethod
    def infer_likelihood(self) -> Likelihood:
        """Likelihood of the targets, if the data determine it."""

    @abstractmethod
    def make_batches(self, config: TrainingConfig, seed: int, fabric: "Fabric") -> TrainingBatches:
        """The batches of a training run; of several processes that train together, the share of this one."""

    @abstractmethod
    def iter_examples(self, device: torch.device) -> Examples:
        """All training examples in batches, transformed and not augmented."""

    @property
    @abstractmethod
    def example_batch(self) -> tuple[Any, Tensor]:
        """Inputs and targets of a few training examples, ready for the model; no random state changes."""

    @abstractmethod
    def sample_inputs(self, config: TrainingConfig, seed: int) -> list[Any]:
        """Batches of training inputs, before the transform, to re-estimate normalization statistics."""

    @abstractmethod
    def make_validator(
        self, likelihood: Likelihood, world: ProcessGroupInfo
    ) -> Callable[[nn.Module], dict[str, float]] | None:
        """Function that evaluates a network on the validation split, if there is one; each process on its share."""

    @property
    @abstractmethod
    def is_replicated(self) -> bool:
        """Whether every process gets the same from `iter_examples` and `sample_inputs`."""


def make_training_data(
    data: DataSplits | Iterable[Any],
    transform: Standardize | None = None,
    likelihood: Likelihood | None = None,
    num_data: int | None = None,
) -> TrainingData:
    """Training data from data splits or from a loader.

    Args:
        data: Data splits, or a loader.
        transform: Standardization of the inputs of data splits; by default that of the training split.
        likelihood: Likelihood of the targets of a loader.
        num_data: Number of labelled examples of a loader; None counts them in one pass.

    Raises:
        ValueError: `num_data` is given for data splits, or is below 1.
    """
    if num_data is not None and (num_data < 1 or isinstance(data, DataSplits)):
        raise ValueError(f"num_data is the number of labelled examples of a loader, at least 1; got {num_data}.")
    return InMemoryData(data, transform) if isinstance(data, DataSplits) else LoaderData(data, likelihood, num_data)


@dataclass(frozen=True, eq=False)
class InMemoryData(TrainingData):
    """Data splits in memory, or of lazy images.

    Attributes:
        splits: The splits.
        transform_override: Standardization of the inputs; by default that of the training split.
        standardize: The standardization that is used.
    """

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
        """Shape of an input, and number of outputs under both names that models have for it."""
        outputs = self.infer_likelihood().num_outputs
        return {"input_shape": self.splits.input_shape, "num_classes": outputs, "num_outputs": outputs}

    @property
    def transform(self) -> Standardize:
        """The standardization."""
        return self.standardize

    @property
    def info(self) -> dict[str, Any]:
        """Names of classes, targets and features, and shape of an input."""
        data = self.splits
        return {
            "class_names": list(data.class_names),
            "target_names": list(data.target_names),
            "feature_names": list(data.feature_names),
            "input_shape": list(data.input_shape),
            **({} if data.csv_format is None else {"csv_format": data.csv_format.to_dict()}),
        }

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Rows and checksum of the training and validation split, and the transform if it is overridden."""
        fingerprint: dict[str, Any] = {**compute_fingerprint(self.splits, ("train", "val"))}
        if self.transform_override is not None:
            transform = self.transform_override
            fingerprint |= {"mean": transform.mean.tolist(), "std": transform.std.tolist()}
        return fingerprint

    def infer_likelihood(self) -> Likelihood:
        """Categorical over the classes, or Gaussian in the scale of the training targets."""
        data = self.splits
        return Gaussian.fit(data.train.targets) if data.is_regression else Categorical(data.num_classes)

    is_replicated = True

    def make_batches(self, config: TrainingConfig, seed: int, fabric: "Fabric") -> TrainingBatches:
        """Shuffled and augmented batches, on the device if all examples fit there."""
        inputs, targets, augment = self.splits.train.inputs, self.splits.train.targets, self.splits.augment
        size, device, world = min(config.batch_size, len(inputs)), fabric.device, get_fabric_process_group(fabric)
        if isinstance(inputs, LazyImages):
            return ShuffledBatches(inputs, targets, size, seed, augment, self.standardize, world)
        is_transformed = augment is None and inputs.dtype == torch.float64  # takes less memory as float32
        inputs = self.standardize(inputs) if is_transformed else inputs
        if fits_on_device(inputs, device):
            inputs, targets = inputs.to(device), move_targets(targets, device)
        if is_transformed:
            return ShuffledBatches(inputs, targets, size, seed, world=world)
        if augment is None and inputs.numel() <= MAX_CACHED_ELEMENTS:
            return ShuffledBatches(self.standardize(inputs), targets, size, seed, world=world)
        return ShuffledBatches(inputs, targets, size, seed, augment, self.standardize, world)

    def iter_examples(self, device: torch.device) -> Examples:
        """All examples, standardized, in the order of the data."""
        train = self.splits.train
        for inputs, targets in zip(
            train.inputs.split(EVAL_BATCH_SIZE), train.targets.split(EVAL_BATCH_SIZE), strict=True
        ):
            yield standardize_on_device(self.standardize, inputs, device), move_targets(targets, device)

    @property
    def example_batch(self) -> tuple[Any, Tensor]:
        """The first examples of the training split."""
        train = self.splits.train
        return self.standardize(train.inputs[:NUM_CHECK_EXAMPLES]), train.targets[:NUM_CHECK_EXAMPLES]

    def sample_inputs(self, config: TrainingConfig, seed: int) -> list[Any]:
        """`num_norm_batches` random batches of full size, or as many as there are; not augmented."""
        inputs = self.splits.train.inputs
        size = min(config.batch_size, len(inputs))
        count = min(len(inputs) // size, config.collection.num_norm_batches) * size
        generator = make_generator(Stream.NORM_BATCHES, seed)
        return list(inputs[torch.randperm(len(inputs), generator=generator)[:count]].split(size))

    def make_validator(
        self, likelihood: Likelihood, world: ProcessGroupInfo
    ) -> Callable[[nn.Module], dict[str, float]] | None:
        """Function that gives `val_nll` and, for classes, `val_accuracy` of a network in eval mode."""
        val = self.splits.val
        if len(val) == 0:
            return None
        share = val if world.size == 1 else val.take(torch.arange(len(val))[contiguous_slice(len(val), world)])
        names = ("val_nll",) if self.splits.is_regression else ("val_nll", "val_accuracy")

        def validate(module: nn.Module) -> dict[str, float]:
            weight, metrics = next(module.parameters()), dict.fromkeys(names, math.nan)
            with eval_mode(module), torch.no_grad(), seeded_rng(spawn_seed(Stream.VALIDATION), module):
                batches = share.inputs.split(EVAL_BATCH_SIZE)
                on_device = (standardize_on_device(self.standardize, batch, weight.device) for batch in batches)
                ready = (cast_inputs(module, inputs) for inputs in on_device)
                if len(share):
                    outputs = torch.cat([module(inputs) for inputs in ready])
                    targets = move_targets(share.targets, weight.device)
                    metrics["val_nll"] = float(likelihood.loss(outputs, targets))
                    if "val_accuracy" in metrics:
                        metrics["val_accuracy"] = float((outputs.argmax(-1) == targets).double().mean())
            return {
                name: world.average_over_examples(value, len(share), weight.device) for name, value in metrics.items()
            }

        return validate


def move_targets(targets: Tensor, device: torch.device) -> Tensor:
    """Targets on a device, as float32 where there is no float64."""
    return targets.to(device, torch.float32 if device.type == "mps" and targets.is_floating_point() else None)


def standardize_on_device(standardize: Standardize, inputs: Tensor, device: torch.device) -> Tensor:
    """Standardized inputs on a device; float64 inputs are standardized before they are moved, as smaller float32."""
    if inputs.dtype == torch.float64:
        return standardize(inputs).to(device)
    return standardize(inputs.to(device))


@dataclass(frozen=True, eq=False)
class LoaderData(TrainingData):
    """A user's loader of ready batches.

    Of several processes that train together each reads its own batches, from a distributed sampler that the loader
    has or gets here; a step then takes one batch of each process.

    Attributes:
        loader: The loader.
        likelihood: Likelihood of the targets.
        given_num_data: Number of labelled examples; None counts them in one pass.
        converts_integers: Whether inputs that are integers become floating, for a network that takes no integers.
    """

    loader: Iterable[Any]
    likelihood: Likelihood | None = None
    given_num_data: int | None = None
    converts_integers: bool = False

    @cached_property
    def loader_pass(self) -> LoaderPass:
        """What one pass over the loader gives, which changes no random state."""
        likelihood = self.likelihood or self.infer_likelihood()
        batches = LoaderBatches(self.loader)
        random_state = batches.state_dict()
        try:
            with preserve_rng(None):
                return read_pass(self.loader, likelihood, first_only=self.given_num_data is not None)
        finally:
            batches.load_state_dict(random_state)

    def count_data(self, world: ProcessGroupInfo) -> int:
        """Number of labelled examples that a pass gives, of all processes together.

        Raises:
            ValueError: It is not known how several processes share the loader.
        """
        if self.given_num_data is not None:
            return self.given_num_data
        count, sampler = self.loader_pass.num_data, getattr(self.loader, "sampler", None)
        if world.size == 1:
            return count
        if isinstance(getattr(self.loader, "dataset", None), IterableDataset):
            raise ValueError(
                "The number of training examples of several processes is unknown for an iterable-style dataset: pass "
                "num_data, the number of labelled examples of all processes together."
            )
        if isinstance(sampler, DistributedSampler):  # of which each process has read its share
            return min(sum(world.all_gather(count)), len(sampler.dataset))  # type: ignore[arg-type]
        return count

    @property
    def model_arguments(self) -> dict[str, Any]:
        """Empty: the shapes are not known."""
        return {}

    @property
    def transform(self) -> None:
        """None: batches are ready for the model."""
        return

    @property
    def info(self) -> dict[str, Any]:
        """Shape of an example in one tensor, and whether inputs are floating, or integers that were converted."""
        inputs = self.loader_pass.example_batch[0]
        shape = {"example_shape": list(inputs.shape[1:])} if isinstance(inputs, Tensor) else {}
        if self.converts_integers:
            return {**shape, "inputs": "converted"}
        return {**shape, "inputs": "floating"} if isinstance(inputs, Tensor) and inputs.is_floating_point() else shape

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Number of examples and of batches."""
        num_data = self.given_num_data or self.loader_pass.num_data
        return {"examples": num_data, "batches": self._count_batches(self.loader)}

    def infer_likelihood(self) -> Likelihood:
        """Raise an error: a loader does not determine the likelihood.

        Raises:
            ValueError: Always, with what to pass.
        """
        raise ValueError(
            "A loader needs a likelihood of its targets: likelihood=Categorical(num_classes), or for numbers "
            "Gaussian.fit(targets)."
        )

    is_replicated = False  # a loader may shuffle

    def make_batches(self, config: TrainingConfig, seed: int, fabric: "Fabric") -> TrainingBatches:
        """The batches of the loader."""
        loader: Any = self.loader
        num_data = self.count_data(get_fabric_process_group(fabric))
        if fabric.world_size > 1:
            loader = fabric.setup_dataloaders(loader, move_to_device=False)
        return LoaderBatches(loader, num_data, self._count_batches(loader), self.likelihood, self.converts_integers)

    def _count_batches(self, loader: Any) -> int:
        if loader is self.loader and self.given_num_data is None:
            return self.loader_pass.num_batches
        try:
            return len(loader)
        except TypeError as error:
            raise ValueError("A loader without a length is counted in one pass: leave out num_data.") from error

    def iter_examples(self, device: torch.device) -> Examples:
        """The labelled examples of one pass over the loader."""
        for batch in self.loader:
            inputs, targets = self._prepare_batch(batch)
            if len(targets):
                yield map_tensors(lambda tensor: tensor.to(device), inputs), targets.to(device)

    def _prepare_batch(self, batch: Any) -> tuple[Any, Tensor]:
        likelihood = self.likelihood or self.infer_likelihood()
        inputs, targets = split_batch(batch)
        inputs, targets = select_labelled(likelihood, inputs, likelihood.prepare_targets(targets))
        return convert_integers(inputs) if self.converts_integers else inputs, targets

    @property
    def example_batch(self) -> tuple[Any, Tensor]:
        """The beginning of the first batch."""
        inputs, targets = self.loader_pass.example_batch
        inputs = convert_integers(inputs) if self.converts_integers else inputs
        return slice_examples(inputs, slice(NUM_CHECK_EXAMPLES)), targets[:NUM_CHECK_EXAMPLES]

    def sample_inputs(self, config: TrainingConfig, seed: int) -> list[Any]:
        """The inputs of its first `num_norm_batches` batches; batches of one example have no variance to estimate."""
        batches = islice(iter(self.loader), config.collection.num_norm_batches)
        inputs = [split_batch(batch)[0] for batch in batches]
        inputs = [convert_integers(batch) for batch in inputs] if self.converts_integers else inputs
        return [batch for batch in inputs if count_rows(batch) > 1] or inputs

    def make_validator(self, likelihood: Likelihood, world: ProcessGroupInfo) -> None:
        """None: there is no validation split."""
        return
