"""The training runs of one fit: each has initial weights, an order of batches and noise of its own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flatbayes.core import MakeOptimizer, State
from flatbayes.core.randomness import forked, spawn
from flatbayes.flatness import Flatness
from flatbayes.likelihoods import Likelihood
from flatbayes.posteriors import Posterior
from flatbayes.training.batches import Batches
from flatbayes.training.loop import Job, placed
from flatbayes.training.loss import training_loss
from flatbayes.training.material import Material
from flatbayes.training.processes.parallel import World
from flatbayes.training.recipe import Recipe
from flatbayes.training.stack import Stack, each_loss, state_together, states_apart
from flatbayes.training.start import Start

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Runs:
    """Makes the jobs of a fit.

    Attributes:
        posterior: What is fitted.
        flatness: Where gradients are taken.
        likelihood: How targets depend on outputs.
        source: The training data.
        recipe: How to train.
        build: Builds a network.
        seed: Decides everything random.
        start: What is done to a network before its training.
    """

    posterior: Posterior
    flatness: Flatness
    likelihood: Likelihood
    source: Material
    recipe: Recipe
    build: Callable[[], nn.Module]
    seed: int
    start: Start = Start()

    def network(self, run: int) -> nn.Module:
        """A network with the initial weights of a run."""
        with forked(self._seeds(run)[0], None):
            return self.start.put(self.build(), run)

    def job(self, runs: Sequence[int], fabric: "Fabric") -> Job:
        """One run alone, or several together."""
        return self.alone(runs[0], fabric) if len(runs) == 1 else self.together(runs, fabric)

    def alone(self, run: int, fabric: "Fabric") -> Job:
        """One run."""
        # A divided network computes in all processes at once, so each takes all of the validation part.
        world = World() if self.recipe.strategy == "fsdp" else World.of(fabric)
        validate = self.source.validator(self.likelihood, world)
        _, order, noise = self._seeds(run)
        batches = self.source.batches(self.recipe, order, fabric)
        return Job(
            module=self.network(run),
            start=lambda module: self._start(module, batches.num_data),
            posterior=self.posterior,
            flatness=self.flatness,
            loss_fn=training_loss(self.likelihood, self.recipe),
            batches=batches,
            recipe=self.recipe,
            seed=noise,
            validate=None if validate is None else lambda module: [validate(module)],
        )

    def together(self, runs: Sequence[int], fabric: "Fabric") -> Job:
        """Several runs as one.

        Raises:
            ValueError: The batches are a loader's.
            RuntimeError: The networks have different shapes.
        """
        recipe = self.recipe
        first = self.source.batches(recipe, 0, fabric)
        if not isinstance(first, Batches):
            raise ValueError("a loader of your own gives one batch at a time, and every network needs its own")
        stack = Stack([placed(self.network(run), fabric, recipe) for run in runs])
        validate = self.source.validator(self.likelihood, World.of(fabric))

        def start(network: nn.Module) -> State:
            return self._start(network, first.num_data)

        def measure(_: nn.Module) -> list[Mapping[str, float]]:
            return [] if validate is None else [validate(network) for network in stack.apart()]

        return Job(
            module=stack,
            start=lambda _: state_together(stack, start, self._optimizer),
            posterior=self.posterior,
            flatness=self.flatness,
            loss_fn=each_loss(training_loss(self.likelihood, recipe)),
            batches=BatchesTogether([first.seeded(self._seeds(run)[1]) for run in runs]),
            recipe=recipe,
            seed=self._seeds(runs[0])[2],
            validate=None if validate is None else measure,
            networks=len(runs),
            apart=lambda whole: states_apart(whole, stack, start),
        )

    @property
    def _optimizer(self) -> MakeOptimizer:
        return self.recipe.optimizer or self.posterior.default_optimizer

    def ended(self, run: int, saved: Mapping[str, Any], fabric: "Fabric") -> State:
        """The state in which a run ended, from `kept_of` it."""
        network = placed(self.network(run), fabric, self.recipe)
        state = self.posterior.init(network, None, saved["num_data"])
        state.load_state_dict({"optimizer": None, **saved})
        state.model.eval()
        return state

    def _start(self, network: nn.Module, num_data: int) -> State:
        return self.posterior.init(network, self._optimizer, num_data)

    def _seeds(self, run: int) -> list[int]:
        return spawn(self.seed, run, count=3)


@dataclass(frozen=True, eq=False)
class BatchesTogether:
    """The batches of several runs side by side: `[batch, networks, ...]`.

    Attributes:
        parts: The batches of each run, of the same examples.
    """

    parts: Sequence[Batches]

    def __len__(self) -> int:
        """Batches of one pass."""
        return len(self.parts[0])

    @property
    def num_data(self) -> int:
        """Number of examples that each run sees."""
        return self.parts[0].num_data

    @property
    def transform(self) -> Callable[[Tensor], Tensor] | None:
        """What inputs are still to go through, of all runs at once."""
        of_one = self.parts[0].transform
        return None if of_one is None else lambda x: of_one(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    skips = True

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Nothing to do."""

    def epoch(self, number: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one pass."""
        one = self.parts[0]
        if one.augment is None:
            orders, size = torch.stack([part.order(number) for part in self.parts], dim=1), one.batch_size
            for k in range(first, len(self)):
                chosen = orders[k * size : (k + 1) * size]
                yield one.inputs[chosen], one.targets[chosen]
            return
        for batches in zip(*(part.epoch(number, first) for part in self.parts), strict=True):
            yield torch.stack([x for x, _ in batches], dim=1), torch.stack([y for _, y in batches], dim=1)


def kept_of(states: Sequence[State], job: Job) -> dict[str, Any]:
    """What has come of a job, as tensors and plain data."""
    return {
        "states": [
            {"model": s.model.state_dict(), "statistics": dict(s.statistics), "num_data": s.num_data} for s in states
        ],
        "records": job.records,
        "gradients": job.gradients,
    }
