"""Training runs of a fit, each with its own initial weights, batch order and noise."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flatbayes.core import LossFn, OptimizerFactory, State, TrainingProgress
from flatbayes.core.buffers import list_buffers, load_buffers
from flatbayes.core.display import format_number
from flatbayes.core.networks import copy_network
from flatbayes.core.process_group import ProcessGroupInfo
from flatbayes.core.randomness import Stream, seeded_rng, spawn_seed
from flatbayes.core.weights import trainable_parameters
from flatbayes.flatness import Flatness
from flatbayes.likelihoods import Bernoulli, Categorical, DenseCategorical, Gaussian, Likelihood
from flatbayes.likelihoods.custom import unwrap_custom
from flatbayes.posteriors import Ensemble, Posterior
from flatbayes.posteriors.draw_options import get_option, replace_option
from flatbayes.posteriors.optimization import build_optimizer, find_weight_decay, resolve_temperature
from flatbayes.posteriors.prior_precision import scale_precision
from flatbayes.prediction.network_tensors import check_storable, refuse_torchscript
from flatbayes.training.batches import LoaderBatches, ShuffledBatches, VectorizedBatches
from flatbayes.training.config import TrainingConfig
from flatbayes.training.data import TrainingData
from flatbayes.training.distributed.launch import get_fabric_process_group
from flatbayes.training.engine import place_module
from flatbayes.training.fabric import Fabric
from flatbayes.training.identity import describe_branch
from flatbayes.training.optimizers import (
    MAX_TABLE_LEARNING_RATE,
    MIN_PRIOR_PRECISION,
    limit_learning_rate,
    make_scaled_optimizer,
    strengthen_prior,
)
from flatbayes.training.run import Branch, RunStatus, TrainingRun
from flatbayes.training.vectorized import VectorizedNetworks, stack_state, unstack_states, vectorize_loss
from flatbayes.training.warm_start import WarmStart

NLL_LIKELIHOODS = (Bernoulli, Categorical, DenseCategorical, Gaussian)
"""Likelihoods whose loss is a negative log likelihood, in nats."""
MAX_STANDARDIZED_TARGET = 20.0
"""Largest median of the absolute standardized targets that are no cause of a divergence."""


@dataclass(frozen=True)
class RunFactory:
    """Makes the training runs of a fit.

    Attributes:
        posterior: Takes the steps.
        flatness: Computes the gradients.
        likelihood: Distribution of the targets given the outputs.
        training_data: Training data.
        config: Training hyperparameters; a number of epochs that depends on the data is resolved.
        build_model: Builds a network.
        seed: Seed of everything random.
        warm_start: Pretrained weights and frozen parameters.
        auto_flatness: The flatness before its radius is chosen on validation data; None if the radius is a number.
        is_automatic: Whether the number of epochs was left to the data.
        auto_prior: Whether the user asks for a strength of the prior that is chosen on validation data, or it is by
            default; None if it is not chosen.
        weight_decay_factor: Factor on the weight decay of the optimizer.
        is_trained: Whether the networks have trained weights before training.
        default_optimizer: Optimizer where the configuration has none; None for that of the posterior.
    """

    posterior: Posterior
    flatness: Flatness
    likelihood: Likelihood
    training_data: TrainingData
    config: TrainingConfig
    build_model: Callable[[], nn.Module]
    seed: int
    warm_start: WarmStart = WarmStart()
    auto_flatness: Flatness | None = None
    is_automatic: bool = False
    auto_prior: Literal["asked", "default"] | None = None
    weight_decay_factor: float = 1.0
    is_trained: bool = False
    default_optimizer: OptimizerFactory | None = None

    def __post_init__(self) -> None:
        config = self.config.resolve_clip_norm(self.likelihood)
        if config.epochs is None:
            object.__setattr__(self, "is_automatic", True)
            config = config.resolve_epochs(self.training_data.count_batches(config))
        object.__setattr__(self, "config", config)
        object.__setattr__(self, "seed", int(self.seed))  # of NumPy, which JSON does not take

    def init_network(self, member: int) -> nn.Module:
        """A network with the initial weights of a member."""
        with seeded_rng(spawn_seed(Stream.INITIAL_WEIGHTS, self.seed, member), None):
            network = self.build_model()
        refuse_torchscript(network)
        with seeded_rng(spawn_seed(Stream.INITIAL_HEAD, self.seed, member), None):  # the builder may set the seed
            network = self.warm_start.apply_to(network, member)
        check_storable(network)
        return network

    def create_run(
        self, members: Sequence[int], fabric: Fabric, followers: Sequence["RunFactory"] = ()
    ) -> TrainingRun:
        """The run of one member, or the vectorized run of several.

        `followers` are factories of other posteriors of the same trajectory, which the run serves too.
        """
        if len(members) == 1:
            return self.create_single_run(members[0], fabric, followers)
        return self.create_vectorized_run(members, fabric, followers)

    def create_single_run(self, member: int, fabric: Fabric, followers: Sequence["RunFactory"] = ()) -> TrainingRun:
        """The run of one member."""
        # A sharded network computes in all processes at once, so each evaluates the whole validation split.
        is_sharded = self.config.distribution.strategy == "fsdp"
        world = ProcessGroupInfo() if is_sharded else get_fabric_process_group(fabric)
        validate = self.training_data.make_validator(self.likelihood, world)
        batches = self.training_data.make_batches(self.config, self._spawn_batches_seed(member), fabric)
        may_lack_labels = isinstance(batches, LoaderBatches)
        return TrainingRun(
            module=self.init_network(member),
            branches=[factory.make_branch(batches.num_data) for factory in (self, *followers)],
            flatness=self.flatness,
            loss_fn=make_training_loss(self.likelihood, self.config, all_labelled=not may_lack_labels),
            batches=batches,
            config=self.config,
            seed=spawn_seed(Stream.TRAINING_NOISE, self.seed, member),
            validate=None if validate is None else lambda module: [validate(module)],
            find_labelled=find_loss_terms(self.likelihood, may_lack_labels=may_lack_labels),
            loss_is_nll=isinstance(self.likelihood, NLL_LIKELIHOODS),
            suggest_data_change=self.suggest_data_change,
            status=RunStatus(progress=TrainingProgress(seed=self.seed, members=(member,))),
        )

    def create_vectorized_run(
        self, members: Sequence[int], fabric: Fabric, followers: Sequence["RunFactory"] = ()
    ) -> TrainingRun:
        """The vectorized run of several members.

        Raises:
            ValueError: The batches are those of a loader.
            RuntimeError: The networks have different shapes.
        """
        config = self.config.with_options(precision={"channels_last": False})
        batches = self.training_data.make_batches(config, 0, fabric)
        if not isinstance(batches, ShuffledBatches):
            raise ValueError("a loader of your own gives one batch at a time, and every network needs its own")
        stack = VectorizedNetworks([place_module(self.init_network(k), fabric, config) for k in members])
        validate = self.training_data.make_validator(self.likelihood, get_fabric_process_group(fabric))

        def validate_members(_: nn.Module) -> list[Mapping[str, float]]:
            return [] if validate is None else [validate(network) for network in stack.unstack()]

        return TrainingRun(
            module=stack,
            branches=[factory.make_branch(batches.num_data, stack) for factory in (self, *followers)],
            flatness=self.flatness,
            loss_fn=vectorize_loss(make_training_loss(self.likelihood, config, all_labelled=True)),
            batches=VectorizedBatches([batches.with_seed(self._spawn_batches_seed(k)) for k in members]),
            config=config,
            seed=spawn_seed(Stream.TRAINING_NOISE, self.seed, members[0]),
            validate=None if validate is None else validate_members,
            find_labelled=find_loss_terms(self.likelihood, may_lack_labels=False),
            loss_is_nll=isinstance(self.likelihood, NLL_LIKELIHOODS),
            suggest_data_change=self.suggest_data_change,
            num_networks=len(members),
            status=RunStatus(progress=TrainingProgress(seed=self.seed, members=tuple(members))),
        )

    def suggest_data_change(self) -> str | None:
        """What to change in the data if a training diverges; None for nothing."""
        return suggest_standardization(self.likelihood, self.training_data.example_batch[1])

    def make_branch(self, num_data: int, stack: VectorizedNetworks | None = None) -> Branch:
        """The branch of a run for the posterior; `stack` has the vectorized networks if the run has several."""
        make_optimizer = partial(build_optimizer, self._get_optimizer_factory(num_data))

        def init_state(network: nn.Module) -> State:
            return self.posterior.init(network, make_optimizer, num_data)

        name = describe_branch(self.posterior, self.config)
        if stack is None:
            return Branch(name, self.posterior, self.config, init_state)
        return Branch(
            name,
            self.posterior,
            self.config,
            init_state=lambda _: stack_state(stack, init_state, make_optimizer),
            split_state=lambda stacked: unstack_states(stacked, stack, init_state),
        )

    def restore_state(self, member: int, state_dict: Mapping[str, Any], fabric: Fabric) -> State:
        """The final state of a member, from one of the states of a `GroupResult`."""
        network = place_module(self.init_network(member), fabric, self.config)
        state = self.posterior.init(network, None, state_dict["num_data"])
        state.load_state_dict({"optimizer": None, **state_dict})
        state.model.eval()
        return state

    def copy_trained(self, network: nn.Module, member: int, fabric: Fabric) -> nn.Module:
        """A copy of a trained network: built anew, with the tensors of its state dict, where it cannot be copied."""
        try:
            return copy_network(network)
        except ValueError:
            copy = place_module(self.init_network(member), fabric, self.config).eval()
            weights = network.state_dict()
            load_buffers(copy, list_buffers(network), weights)
            copy.load_state_dict(weights)
            return copy

    @property
    def has_table(self) -> bool:
        """Whether inputs are rows of numbers."""
        inputs = self.training_data.raw_inputs
        return isinstance(inputs, Tensor) and inputs.ndim == 2 and inputs.is_floating_point()

    @property
    def has_default_training(self) -> bool:
        """Whether a table is fitted from fresh weights in an automatic number of epochs, with validation rows.

        Options that are not set are then chosen on these rows.
        """
        has_choice = self.is_automatic and self.has_table and not self.is_trained
        return has_choice and self.training_data.has_validation

    def with_prior_factor(self, factor: float) -> "RunFactory":
        """The factory with a stronger or weaker prior, be it that of the posterior or the weight decay.

        Raises:
            ValueError: The prior has no precision that could be multiplied.
        """
        path = find_prior_precision(self.posterior)
        if factor == 1:
            return self
        if path is None:
            return replace(self, weight_decay_factor=self.weight_decay_factor * factor)
        precision = scale_precision(get_option(self.posterior, path), factor)
        return replace(self, posterior=replace_option(self.posterior, path, precision))

    def compute_weight_decay(self, num_data: int) -> float:
        """The weight decay that has the effect of the prior, the largest one of several; 0 without precisions."""
        path = find_prior_precision(self.posterior)
        if path is None:
            params = trainable_parameters(self.init_network(0))
            return find_weight_decay(self._get_optimizer_factory(num_data), params)
        precision, owner = get_option(self.posterior, path), path.rpartition(".")[0]
        if isinstance(precision, str):  # the scale of the initial weights
            return 0.0
        temperature = resolve_temperature(getattr(get_option(self.posterior, owner), "temperature", 1.0))
        largest = max(precision.values()) if isinstance(precision, Mapping) else precision
        return float(largest * temperature / num_data)

    def _get_optimizer_factory(self, num_data: int) -> OptimizerFactory:
        """The optimizer of the configuration, or the default one, whose weight decay is stronger for few examples."""
        make_optimizer = self.config.optimizer
        if make_optimizer is None:
            make_optimizer = self.default_optimizer or self.posterior.default_optimizer
            if self.is_automatic and not self.is_trained:
                make_optimizer = strengthen_prior(make_optimizer, MIN_PRIOR_PRECISION / num_data)
                if self.has_table:
                    make_optimizer = limit_learning_rate(make_optimizer, MAX_TABLE_LEARNING_RATE)
        if self.weight_decay_factor == 1:
            return make_optimizer
        return partial(make_scaled_optimizer, make_optimizer, self.weight_decay_factor)

    def _spawn_batches_seed(self, member: int) -> int:
        return spawn_seed(Stream.BATCHES, self.seed, member)


def find_prior_precision(posterior: Posterior) -> str | None:
    """Dotted name of the option that is the prior; None where the weight decay of the optimizer is."""
    if isinstance(posterior, Ensemble):
        path = find_prior_precision(posterior.member)
        return None if path is None else f"member.{path}"
    return None if getattr(posterior, "prior_precision", None) is None else "prior_precision"


def is_prior_given(factory: RunFactory) -> bool:
    """Whether the user has set the prior: an optimizer, or the option of the posterior that is the prior."""
    path = find_prior_precision(factory.posterior)
    if path is None:
        return factory.config.optimizer is not None
    method = get_option(factory.posterior, path.rpartition(".")[0])
    return bool(get_option(factory.posterior, path) != getattr(type(method), "prior_precision", None))


def find_loss_terms(likelihood: Likelihood, *, may_lack_labels: bool) -> Callable[[Tensor], Tensor | None]:
    """A function that says which targets of a batch the loss is the mean over: of examples, or of their positions."""
    return likelihood.find_targets if may_lack_labels or likelihood.has_positions else lambda _: None


def make_training_loss(likelihood: Likelihood, config: TrainingConfig, *, all_labelled: bool = False) -> LossFn:
    """The negative log likelihood, with label smoothing if the configuration has any.

    Raises:
        ValueError: There is label smoothing, and the likelihood is not categorical.
    """
    if all_labelled and isinstance(likelihood, Categorical):
        likelihood = replace(likelihood, ignore_index=None)
    label_smoothing = config.optimization.label_smoothing
    if not label_smoothing:
        return likelihood.loss
    if not isinstance(likelihood, Categorical | DenseCategorical):
        raise ValueError(
            f"label_smoothing is for classes, and the likelihood is {type(likelihood).__name__}: leave it out."
        )
    return likelihood.make_smoothed_loss(label_smoothing)


def suggest_standardization(likelihood: Likelihood, targets: Tensor) -> str | None:
    """A remedy where targets are far from those that a Gaussian likelihood expects; None where they are not."""
    gaussian = unwrap_custom(likelihood)
    if not isinstance(gaussian, Gaussian) or not targets.numel():
        return None
    rows = targets.detach().double().cpu().reshape(len(targets), -1)
    location, scale = (torch.tensor(values, dtype=torch.float64) for values in (gaussian.location, gaussian.scale))
    sizes = ((rows - location) / scale).abs().median(0).values
    target = int(sizes.argmax())
    if not sizes[target] > MAX_STANDARDIZED_TARGET:
        return None
    expected = [format_number(float(values[target])) for values in (location, scale)]
    which = "one" if rows.shape[1] == 1 else f"one of target {target}, counted from 0,"
    return (
        f"likelihood=Gaussian.fit(targets), which standardizes the targets ({which} is "
        f"{format_number(float(rows[0, target]))}, and {type(gaussian).__name__} expects values around {expected[0]} "
        f"with a standard deviation of {expected[1]})"
    )
