"""Training data: what training needs of them, and those of data splits."""

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from flatbayes.core import Examples
from flatbayes.core.buffers import eval_mode
from flatbayes.core.devices import move_tensor
from flatbayes.core.networks import cast_inputs
from flatbayes.core.process_group import ProcessGroupInfo, contiguous_slice
from flatbayes.core.randomness import Stream, make_generator, seeded_rng, spawn_seed
from flatbayes.data import DataSplits, LazyImages, Split, Standardize
from flatbayes.data.fingerprint import compute_fingerprint
from flatbayes.data.split_checks import describe_image_values
from flatbayes.data.standardize import SEQUENCE_AXES
from flatbayes.likelihoods import Bernoulli, Categorical, DenseCategorical, Gaussian, Likelihood
from flatbayes.likelihoods.custom import count_right
from flatbayes.training.batches import ShuffledBatches, TrainingBatches, fits_on_device
from flatbayes.training.config import TrainingConfig
from flatbayes.training.distributed.launch import get_fabric_process_group
from flatbayes.training.fabric import Fabric

EVAL_BATCH_SIZE = 512
MAX_EVAL_POSITIONS = 2**20
"""Largest number of positions, such as pixels, of a forward pass without a batch size."""
NUM_CHECK_EXAMPLES = 4
"""Examples on which a network is checked before training."""
MAX_CACHED_ELEMENTS = 2**26
"""Largest number of input elements that are kept transformed, where no augmentation comes before the transform."""


class TrainingData(ABC):
    """Training data and what is derived from them.

    Attributes:
        num_held_out: Number of validation examples that were training examples of the user.
    """

    num_held_out: int = 0

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
    def count_batches(self, config: TrainingConfig) -> int:
        """Number of training steps of an epoch."""

    @abstractmethod
    def make_batches(self, config: TrainingConfig, seed: int, fabric: Fabric) -> TrainingBatches:
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

    @property
    def raw_inputs(self) -> Tensor | LazyImages | None:
        """All training inputs before the transform; None for a loader, which is not read for them."""
        return None

    @abstractmethod
    def predict_validation(self, network: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        """Outputs of a network in eval mode, and targets, of all validation examples; nothing if there are none."""

    @abstractmethod
    def make_validator(
        self, likelihood: Likelihood, world: ProcessGroupInfo
    ) -> Callable[[nn.Module], dict[str, float]] | None:
        """Function that evaluates a network on the validation split, if there is one; each process on its share."""

    @abstractmethod
    def sample_validation(self, max_examples: int) -> Any:
        """Evenly spaced labelled validation examples for `evaluate`, about so many at most; None without any."""

    @property
    @abstractmethod
    def num_validation(self) -> int:
        """Number of validation examples; the batches of a loader are read, once."""

    @property
    @abstractmethod
    def has_validation(self) -> bool:
        """Whether there are validation examples; nothing is read."""

    @property
    @abstractmethod
    def is_replicated(self) -> bool:
        """Whether every process gets the same from `iter_examples` and `sample_inputs`."""


@dataclass(frozen=True, eq=False)
class InMemoryData(TrainingData):
    """Data splits in memory, or of lazy images.

    Attributes:
        splits: The splits.
        transform_override: Standardization of the inputs; by default that of the training split.
        num_held_out: Number of validation examples that were training examples of the user.
        scale_nlls: Training NLL of a trained network with its inputs as given and with standardized ones, if they are
            used as given.
        standardize: The standardization that is used.
    """

    splits: DataSplits
    transform_override: Standardize | None = None
    num_held_out: int = 0
    scale_nlls: tuple[float, float] | None = None
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
        return {"input_shape": self.input_shape, "num_classes": outputs, "num_outputs": outputs}

    @property
    def keeps_sequences(self) -> bool:
        """Whether the network gets sequences, [n, *axes], which the splits store as gray images, [n, 1, *axes]."""
        return self.standardize.mean.ndim == SEQUENCE_AXES

    @property
    def has_token_ids(self) -> bool:
        """Whether inputs are token ids, which stay integers."""
        return not self.standardize.mean.is_floating_point()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of an input of the network."""
        shape = self.splits.input_shape
        return shape[1:] if self.keeps_sequences and len(shape) == SEQUENCE_AXES + 1 else shape

    @property
    def transform(self) -> Standardize:
        """The standardization."""
        return self.standardize

    @property
    def info(self) -> dict[str, Any]:
        """Names of classes, targets and features, shape of an input, held-out examples, losses by input scale."""
        data = self.splits
        return {
            "class_names": list(data.class_names),
            "target_names": list(data.target_names),
            "feature_names": list(data.feature_names),
            "input_shape": list(self.input_shape),
            **self._describe_images(),
            **({"held_out": self.num_held_out} if self.num_held_out else {}),
            **({} if self.scale_nlls is None else {"scale_nlls": list(self.scale_nlls)}),
            **({} if data.csv_format is None else {"csv_format": data.csv_format.to_dict()}),
        }

    def _describe_images(self) -> dict[str, Any]:
        values = None if self.keeps_sequences else describe_image_values(self.splits.train.inputs)
        return {} if values is None else {"image_values": values}

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Rows and checksum of the training and validation split, and the transform if it is overridden."""
        fingerprint: dict[str, Any] = {**compute_fingerprint(self.splits, ("train", "val"))}
        if self.transform_override is not None:
            transform = self.transform_override
            fingerprint |= {"mean": transform.mean.tolist(), "std": transform.std.tolist()}
        return fingerprint

    def infer_likelihood(self) -> Likelihood:
        """Categorical over the classes, Bernoulli of several labels, or Gaussian in the scale of the targets.

        For a class at each position `DenseCategorical` with the default axis of the outputs.
        """
        data = self.splits
        if data.is_dense:
            return DenseCategorical(data.num_classes)
        if data.is_multi_label:
            return Bernoulli(len(data.target_names))
        return Gaussian.fit(data.train.targets) if data.is_regression else Categorical(data.num_classes)

    is_replicated = True

    @property
    def raw_inputs(self) -> Tensor | LazyImages:
        """Inputs of the training split."""
        return self.splits.train.inputs

    def count_batches(self, config: TrainingConfig) -> int:
        """Number of full batches."""
        return max(1, len(self.splits.train) // config.batch_size)

    def make_batches(self, config: TrainingConfig, seed: int, fabric: Fabric) -> TrainingBatches:
        """Shuffled and augmented batches, on the device if all examples fit there."""
        inputs, targets, augment = self.splits.train.inputs, self.splits.train.targets, self.splits.augment
        size, device, world = min(config.batch_size, len(inputs)), fabric.device, get_fabric_process_group(fabric)
        move_masks = None if augment is None or not self.splits.is_dense else augment.move_masks
        if isinstance(inputs, LazyImages):
            scale = self.standardize.to(device)
            return ShuffledBatches(inputs, targets, size, seed, augment, scale, world, move_masks)
        is_transformed = augment is None and inputs.dtype == torch.float64  # takes less memory as float32
        inputs = self.standardize(inputs) if is_transformed else inputs
        if fits_on_device(inputs, device) and fits_on_device(targets, device):
            inputs, targets = move_tensor(inputs, device), move_tensor(targets, device)
        if is_transformed:
            return ShuffledBatches(inputs, targets, size, seed, world=world)
        if augment is None and inputs.numel() <= MAX_CACHED_ELEMENTS:
            return ShuffledBatches(self.standardize(inputs), targets, size, seed, world=world)
        scale = self.standardize.to(device)
        return ShuffledBatches(inputs, targets, size, seed, augment, scale, world, move_masks)

    def iter_examples(self, device: torch.device) -> Examples:
        """All examples, standardized, in the order of the data."""
        train, standardize = self.splits.train, self.standardize.to(device)
        for inputs, targets in zip(
            train.inputs.split(self.eval_batch_size), train.targets.split(self.eval_batch_size), strict=True
        ):
            yield standardize_on_device(standardize, inputs, device), move_tensor(targets, device)

    @property
    def eval_batch_size(self) -> int:
        """Examples of a forward pass without a batch size: fewer where each has many positions."""
        num_positions = self.splits.train.targets[0].numel() if self.splits.is_dense else 1
        return max(1, min(EVAL_BATCH_SIZE, MAX_EVAL_POSITIONS // num_positions))

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

    @property
    def num_validation(self) -> int:
        """Size of the validation split."""
        return len(self.splits.val)

    @property
    def has_validation(self) -> bool:
        """Whether the validation split has examples."""
        return len(self.splits.val) > 0

    def sample_validation(self, max_examples: int) -> Split | None:
        """The validation split, or evenly spaced examples of it."""
        val = self.splits.val
        every = math.ceil(len(val) / max_examples)
        return (val if every == 1 else val.take(torch.arange(0, len(val), every))) if len(val) else None

    def make_validator(
        self, likelihood: Likelihood, world: ProcessGroupInfo
    ) -> Callable[[nn.Module], dict[str, float]] | None:
        """Function that gives `val_nll` and, for classes and labels, `val_accuracy` of a network in eval mode."""
        val = self.splits.val
        if len(val) == 0:
            return None
        share = val if world.size == 1 else val.take(torch.arange(len(val))[contiguous_slice(len(val), world)])
        has_accuracy = bool(self.splits.class_names) or self.splits.is_multi_label

        def validate(module: nn.Module) -> dict[str, float]:
            device, losses, counts = next(module.parameters()).device, list[float](), list[int]()
            num_right, num_predictions = 0, 0
            for outputs, targets in self._predict_split(module, share):
                losses.append(float(likelihood.loss(outputs, targets)))
                counts.append(likelihood.count_targets(targets))
                if has_accuracy:
                    right, predictions = count_right(likelihood, outputs, targets)
                    num_right, num_predictions = num_right + right, num_predictions + predictions
            loss = losses[0] if len(losses) == 1 else sum(map(operator.mul, losses, counts)) / max(1, sum(counts))
            metrics = {"val_nll": world.average_over_examples(loss, sum(counts), device)}
            if has_accuracy:
                accuracy = num_right / max(1, num_predictions)
                metrics["val_accuracy"] = world.average_over_examples(accuracy, num_predictions, device)
            return metrics

        return validate

    def predict_validation(self, network: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        """Those of the whole split at once; for a class at each position those of every batch."""
        return self._predict_split(network, self.splits.val)

    @torch.no_grad()
    def _predict_split(self, network: nn.Module, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
        if not len(split):
            return
        device = next(network.parameters()).device
        standardize = self.standardize.to(device)
        with eval_mode(network), seeded_rng(spawn_seed(Stream.VALIDATION), network):
            batches = split.inputs.split(self.eval_batch_size)
            on_device = (standardize_on_device(standardize, batch, device) for batch in batches)
            outputs = (network(cast_inputs(network, inputs)) for inputs in on_device)
            if self.splits.is_dense:  # outputs of all examples may be larger than the memory
                targets = split.targets.split(self.eval_batch_size)
                yield from zip(outputs, (move_tensor(batch, device) for batch in targets), strict=True)
            else:
                yield torch.cat(list(outputs)), move_tensor(split.targets, device)


def standardize_on_device(standardize: Standardize, inputs: Tensor, device: torch.device) -> Tensor:
    """Standardized inputs on a device; float64 inputs are standardized before they are moved, as smaller float32."""
    if inputs.dtype == torch.float64:
        return standardize(inputs).to(device)
    return standardize(inputs.to(device, non_blocking=True))
