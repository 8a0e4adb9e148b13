"""Training data from a user's loader of ready batches."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DistributedSampler, IterableDataset

from flatbayes.core import Examples
from flatbayes.core.batch_targets import split_batch
from flatbayes.core.buffers import eval_mode
from flatbayes.core.input_trees import cast_integers, count_examples, move_batch, slice_examples
from flatbayes.core.networks import cast_inputs
from flatbayes.core.process_group import ProcessGroupInfo
from flatbayes.core.randomness import Stream, seeded_rng, spawn_seed
from flatbayes.data.split_checks import check_image_values, describe_image_values
from flatbayes.likelihoods import Bernoulli, Categorical, DenseCategorical, Likelihood
from flatbayes.likelihoods.custom import count_right, unwrap_custom
from flatbayes.prediction.labelled import select_labelled
from flatbayes.training.batches import (
    LoaderBatches,
    SpacedBatches,
    TrainingBatches,
    preserve_loader,
    preserve_loader_state,
    set_epoch,
)
from flatbayes.training.config import TrainingConfig
from flatbayes.training.data import NUM_CHECK_EXAMPLES, TrainingData
from flatbayes.training.distributed.launch import get_fabric_process_group, get_process_layout
from flatbayes.training.fabric import Fabric, SingleDevice
from flatbayes.training.loader_pass import LoaderPass, read_pass


@dataclass(frozen=True, eq=False)
class LoaderData(TrainingData):
    """A user's loader of ready batches.

    Of several processes that train together each reads its own batches, from a distributed sampler that the loader
    has or gets here; a step then takes one batch of each process.

    Attributes:
        loader: The loader.
        given_num_data: Number of labelled examples; None counts them in one pass.
        val: Validation batches; None for no validation.
        likelihood: Likelihood of the targets; the batches cannot be read without it.
        converts_integers: Whether inputs that are integers become floating, for a network that takes no integers.
        num_held_out: Number of validation examples that were training examples of the user.
        class_names: Names of the classes, if they are known.
    """

    loader: Iterable[Any]
    given_num_data: int | None = None
    val: Iterable[Any] | None = None
    likelihood: Likelihood | None = None
    converts_integers: bool = False
    num_held_out: int = 0
    class_names: tuple[str, ...] = ()

    @cached_property
    def loader_pass(self) -> LoaderPass:
        """What one pass over the loader gives, which changes no random state."""
        with preserve_loader(self.loader):
            return read_pass(self.loader, self.infer_likelihood(), first_only=self.given_num_data is not None)

    def with_changes(self, **changes: Any) -> "LoaderData":
        """The same data with other fields, such as another likelihood of the same targets; the loader is not read."""
        other = replace(self, **changes)
        vars(other)["loader_pass"] = self.loader_pass
        return other

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
        """Shape and range of an example, names of classes, held-out examples, whether integers were converted."""
        inputs = self.loader_pass.example_batch[0]
        shape: dict[str, Any] = {"example_shape": list(inputs.shape[1:])} if isinstance(inputs, Tensor) else {}
        values = describe_image_values(inputs)
        if values is not None:
            shape["image_values"] = values
        if self.class_names:
            shape["class_names"] = list(self.class_names)
        if self.num_held_out:
            shape["held_out"] = self.num_held_out
        if self.converts_integers:
            return {**shape, "inputs": "converted"}
        return {**shape, "inputs": "floating"} if isinstance(inputs, Tensor) and inputs.is_floating_point() else shape

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Number of examples and of batches."""
        num_data = self.given_num_data or self.loader_pass.num_data
        return {"examples": num_data, "batches": self._count_batches(self.loader)}

    def infer_likelihood(self) -> Likelihood:
        """The likelihood that was given or inferred: targets alone do not determine it."""
        assert self.likelihood is not None
        return self.likelihood

    def check_batches(self) -> None:
        """Read the loader and the validation batches once."""
        _ = self.loader_pass
        if self.val is None:
            return
        try:
            with preserve_loader(self.val):
                val_inputs = read_pass(self.val, self.infer_likelihood()).example_batch[0]
            expected = describe_image_values(self.loader_pass.example_batch[0])
            check_image_values(val_inputs, expected, "The inputs of the first batch")
        except ValueError as error:
            raise ValueError(f"The validation data: {error}") from error

    is_replicated = False  # a loader may shuffle

    def count_batches(self, config: TrainingConfig) -> int:
        """Number of batches of the loader, or of the share of a process of a loader that is divided among several."""
        is_shared = isinstance(getattr(self.loader, "sampler", None), DistributedSampler) or isinstance(
            getattr(self.loader, "dataset", None), IterableDataset
        )
        num_processes = 1 if is_shared else math.prod(get_process_layout(config))
        return math.ceil(self._count_batches(self.loader) / num_processes)

    def make_batches(self, config: TrainingConfig, seed: int, fabric: Fabric) -> TrainingBatches:
        """The batches of the loader."""
        loader: Any = self.loader
        num_data = self.count_data(get_fabric_process_group(fabric))
        if not isinstance(fabric, SingleDevice) and fabric.world_size > 1:
            # Without the wrapper of Fabric, which counts epochs by passes, so that a resumed training would restart.
            wrapper: Any = fabric.setup_dataloaders(loader, move_to_device=False)
            loader = wrapper._dataloader
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
        with preserve_loader_state(self.loader):
            set_epoch(self.loader, 0)  # whatever was trained before
            for batch in self.loader:
                labelled = self._prepare_batch(batch)
                if len(labelled[1]):
                    yield move_batch(labelled, device)

    def _prepare_batch(self, batch: Any) -> tuple[Any, Tensor]:
        likelihood = self.infer_likelihood()
        inputs, targets = split_batch(batch)
        inputs, targets = select_labelled(likelihood, inputs, likelihood.prepare_targets(targets))
        return cast_integers(inputs) if self.converts_integers else inputs, targets

    @property
    def example_batch(self) -> tuple[Any, Tensor]:
        """The beginning of the first batch."""
        inputs, targets = self.loader_pass.example_batch
        inputs = cast_integers(inputs) if self.converts_integers else inputs
        return slice_examples(inputs, slice(NUM_CHECK_EXAMPLES)), targets[:NUM_CHECK_EXAMPLES]

    def sample_inputs(self, config: TrainingConfig, seed: int) -> list[Any]:
        """The inputs of its first `num_norm_batches` batches; batches of one example have no variance to estimate."""
        with preserve_loader(self.loader):
            set_epoch(self.loader, 0)
            batches = islice(iter(self.loader), config.collection.num_norm_batches)
            inputs = [split_batch(batch)[0] for batch in batches]
        inputs = [cast_integers(batch) for batch in inputs] if self.converts_integers else inputs
        return [batch for batch in inputs if count_examples(batch) > 1] or inputs

    @cached_property
    def num_validation(self) -> int:
        """Number of examples of the validation batches, counted in one pass over them."""
        if self.val is None:
            return 0
        with preserve_loader(self.val):
            return sum(count_examples(split_batch(batch)[0]) for batch in self.val)

    @property
    def has_validation(self) -> bool:
        """Whether there are validation batches."""
        return self.val is not None

    def sample_validation(self, max_examples: int) -> Iterable[Any] | None:
        """The validation batches, or evenly spaced ones."""
        spacing = math.ceil(self.num_validation / max_examples)
        return self.val if self.val is None or spacing <= 1 else SpacedBatches(self.val, spacing)

    def make_validator(
        self, likelihood: Likelihood, world: ProcessGroupInfo
    ) -> Callable[[nn.Module], dict[str, float]] | None:
        """Function that gives `val_nll` and, for classes and labels, `val_accuracy` of a network in eval mode.

        Every process reads all validation batches.
        """
        if self.val is None:
            return None

        def validate(module: nn.Module) -> dict[str, float]:
            count, loss, totals = 0, 0.0, [0, 0]
            has_accuracy = isinstance(unwrap_custom(likelihood), Bernoulli | Categorical | DenseCategorical)
            for outputs, targets in self.predict_validation(module):
                num_targets = likelihood.count_targets(targets)
                loss += float(likelihood.loss(outputs, targets)) * num_targets
                if has_accuracy:
                    totals = [a + b for a, b in zip(totals, count_right(likelihood, outputs, targets), strict=True)]
                count += num_targets
            return {"val_nll": loss / count, **({"val_accuracy": totals[0] / totals[1]} if totals[1] else {})}

        return validate

    @torch.no_grad()
    def predict_validation(self, network: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        """Those of the labelled examples of every batch."""
        if self.val is None:
            return
        device = next(network.parameters()).device
        with (
            eval_mode(network),
            preserve_loader_state(self.val),
            seeded_rng(spawn_seed(Stream.VALIDATION), network),
        ):
            for batch in self.val:
                labelled = self._prepare_batch(batch)
                if len(labelled[1]):
                    inputs, targets = move_batch(labelled, device)
                    yield network(cast_inputs(network, inputs)), targets
