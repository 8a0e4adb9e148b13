"""The training runs of one fit: each has initial weights, an order of batches and noise of its own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flatbayes.core import OptimizerFactory, State, TrainingProgress
from flatbayes.core.randomness import seeded_rng, spawn_seeds
from flatbayes.flatness import Flatness
from flatbayes.likelihoods import Likelihood
from flatbayes.posteriors import Posterior
from flatbayes.training.batches import ShuffledBatches
from flatbayes.training.config import TrainingConfig
from flatbayes.training.data import TrainingData
from flatbayes.training.distributed.process_group import ProcessGroupInfo
from flatbayes.training.loop import TrainingRun, place_module
from flatbayes.training.loss import make_training_loss
from flatbayes.training.vectorized import VectorizedNetworks, stack_state, unstack_states, vectorize_loss
from flatbayes.training.warm_start import WarmStart

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class RunFactory:
    """Makes the jobs of a fit.

    Attributes:
        posterior: What is fitted.
        flatness: Where gradients are taken.
        likelihood: How targets depend on outputs.
        training_data: The training data.
        config: How to train.
        build_model: Builds a network.
        seed: Decides everything random.
        warm_start: What is done to a network before its training.
    """

    posterior: Posterior
    flatness: Flatness
    likelihood: Likelihood
    training_data: TrainingData
    config: TrainingConfig
    build_model: Callable[[], nn.Module]
    seed: int
    warm_start: WarmStart = WarmStart()

    def init_network(self, member: int) -> nn.Module:
        """A network with the initial weights of a run."""
        with seeded_rng(self._spawn_member_seeds(member)[0], None):
            return self.warm_start.apply_to(self.build_model(), member)

    def create_run(self, members: Sequence[int], fabric: "Fabric") -> TrainingRun:
        """One run alone, or several together."""
        return (
            self.create_single_run(members[0], fabric)
            if len(members) == 1
            else self.create_vectorized_run(members, fabric)
        )

    def create_single_run(self, member: int, fabric: "Fabric") -> TrainingRun:
        """One run."""
        # A divided network computes in all processes at once, so each takes all of the validation part.
        world = (
            ProcessGroupInfo()
            if self.config.distribution.strategy == "fsdp"
            else ProcessGroupInfo.from_fabric(fabric)
        )
        validate = self.training_data.make_validator(self.likelihood, world)
        _, order, noise = self._spawn_member_seeds(member)
        batches = self.training_data.make_batches(self.config, order, fabric)
        return TrainingRun(
            module=self.init_network(member),
            init_state=lambda module: self._init_state(module, batches.num_data),
            posterior=self.posterior,
            flatness=self.flatness,
            loss_fn=make_training_loss(self.likelihood, self.config),
            batches=batches,
            config=self.config,
            seed=noise,
            validate=None if validate is None else lambda module: [validate(module)],
            progress=TrainingProgress(seed=self.seed, members=(member,)),
        )

    def create_vectorized_run(self, members: Sequence[int], fabric: "Fabric") -> TrainingRun:
        """Several runs as one.

        Raises:
            ValueError: The batches are a loader's.
            RuntimeError: The networks have different shapes.
        """
        recipe = self.config
        first = self.training_data.make_batches(recipe, 0, fabric)
        if not isinstance(first, ShuffledBatches):
            raise ValueError("a loader of your own gives one batch at a time, and every network needs its own")
        stack = VectorizedNetworks([place_module(self.init_network(run), fabric, recipe) for run in members])
        validate = self.training_data.make_validator(self.likelihood, ProcessGroupInfo.from_fabric(fabric))

        def init_state(network: nn.Module) -> State:
            return self._init_state(network, first.num_data)

        def validate_members(_: nn.Module) -> list[Mapping[str, float]]:
            return [] if validate is None else [validate(network) for network in stack.unstack()]

        return TrainingRun(
            module=stack,
            init_state=lambda _: stack_state(stack, init_state, self._make_optimizer),
            posterior=self.posterior,
            flatness=self.flatness,
            loss_fn=vectorize_loss(make_training_loss(self.likelihood, recipe)),
            batches=VectorizedBatches([first.with_seed(self._spawn_member_seeds(run)[1]) for run in members]),
            config=recipe,
            seed=self._spawn_member_seeds(members[0])[2],
            validate=None if validate is None else validate_members,
            num_networks=len(members),
            progress=TrainingProgress(seed=self.seed, members=tuple(members)),
            split_state=lambda whole: unstack_states(whole, stack, init_state),
        )

    @property
    def _make_optimizer(self) -> OptimizerFactory:
        return self.config.optimizer or self.posterior.default_optimizer

    def restore_state(self, member: int, state_dict: Mapping[str, Any], fabric: "Fabric") -> State:
        """The state in which a run ended, from `export_run_result` it."""
        network = place_module(self.init_network(member), fabric, self.config)
        state = self.posterior.init(network, None, state_dict["num_data"])
        state.load_state_dict({"optimizer": None, **state_dict})
        state.model.eval()
        return state

    def _init_state(self, network: nn.Module, num_data: int) -> State:
        return self.posterior.init(network, self._make_optimizer, num_data)

    def _spawn_member_seeds(self, member: int) -> list[int]:
        return spawn_seeds(self.seed, member, count=3)


@dataclass(frozen=True, eq=False)
class VectorizedBatches:
    """The batches of several runs side by side: `[batch, networks, ...]`.

    Attributes:
        member_batches: The batches of each run, of the same examples.
    """

    member_batches: Sequence[ShuffledBatches]

    def __len__(self) -> int:
        """Batches of one pass."""
        return len(self.member_batches[0])

    @property
    def num_data(self) -> int:
        """Number of examples that each run sees."""
        return self.member_batches[0].num_data

    @property
    def transform(self) -> Callable[[Tensor], Tensor] | None:
        """What inputs are still to go through, of all runs at once."""
        of_one = self.member_batches[0].transform
        return None if of_one is None else lambda x: of_one(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    can_skip_batches = True

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Nothing to do."""

    def iter_epoch(self, epoch: int, first_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one pass."""
        one = self.member_batches[0]
        if one.augment is None:
            orders, size = (
                torch.stack([part.shuffle_indices(epoch) for part in self.member_batches], dim=1),
                one.batch_size,
            )
            for k in range(first_batch, len(self)):
                chosen = orders[k * size : (k + 1) * size]
                yield one.inputs[chosen], one.targets[chosen]
            return
        for batches in zip(*(part.iter_epoch(epoch, first_batch) for part in self.member_batches), strict=True):
            yield torch.stack([x for x, _ in batches], dim=1), torch.stack([y for _, y in batches], dim=1)


def export_run_result(states: Sequence[State], run: TrainingRun) -> dict[str, Any]:
    """What has come of a job, as tensors and plain data."""
    return {
        "states": [
            {"model": s.model.state_dict(), "statistics": dict(s.statistics), "num_data": s.num_data} for s in states
        ],
        "records": run.records,
        "gradients": run.num_gradients,
    }
