# %% A new posterior in 40 lines: a snapshot ensemble (Huang et al., ICLR 2017)
# It stores the last solutions of a cyclical learning rate and draws them with equal probability. Three methods are
# required (init, step, draw). No registration is needed, and the posterior works with every flatness.
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from flatbayes import MLP, SAM, Cyclical, Digits, Plain, Posterior, TrainingConfig, evaluate, fit
from flatbayes.core.buffers import eval_mode
from flatbayes.core.tensor_lists import flatten, unflatten
from flatbayes.core.weights import swap_values, trainable_parameters
from flatbayes.posteriors.optimization import init_state, step_optimizer
from flatbayes.posteriors.posterior import SnapshotRequirements
from flatbayes.training import CollectionConfig


@dataclass(frozen=True)
class SnapshotEnsemble(Posterior):
    """Attributes: max_snapshots: Number of solutions to store, the last ones."""

    max_snapshots: int = 4

    @property
    def snapshot_requirements(self):
        return SnapshotRequirements(min_count=1, max_used=self.max_snapshots)

    # The other attributes keep their defaults: one run, stochastic draws, BatchNorm statistics re-estimated for every
    # draw, no sharding, any gradients, SGD with momentum.

    def init(self, model, make_optimizer, num_data):
        state = init_state(model, make_optimizer, num_data, prior_precision=None)
        weights = flatten(trainable_parameters(model))
        state.statistics = {"count": torch.tensor(0), "rows": weights.new_zeros(self.max_snapshots, len(weights))}
        return state

    def step(self, state, closure):
        return step_optimizer(state, closure, prior_precision=None)  # the optimizer's weight decay is the prior

    def collect(self, state):
        count = int(state.statistics["count"].add_(1))
        state.statistics["rows"][(count - 1) % self.max_snapshots] = flatten(trainable_parameters(state.model))

    @contextmanager
    def draw(self, state, generator) -> Iterator[nn.Module]:
        num_stored = min(int(state.statistics["count"]), self.max_snapshots)
        if num_stored == 0:
            raise RuntimeError("SnapshotEnsemble needs at least 1 collected snapshot, got 0; train longer.")
        row = int(torch.randint(num_stored, (), generator=generator, device=generator.device))
        params = trainable_parameters(state.model)
        with swap_values(params, unflatten(state.statistics["rows"][row], params)), eval_mode(state.model):
            yield state.model


# %% Four cycles of the learning rate, with snapshots at the end of each; one seed is no comparison of the two
data = Digits(train_size=300).load(seed=0)
config = TrainingConfig(epochs=24, schedule=Cyclical(num_cycles=4), collection=CollectionConfig(start_fraction=0.9))
for name, flatness in {"plain": Plain(), "flat": SAM(rho=0.1)}.items():
    fitted = fit(MLP, data, SnapshotEnsemble(), flatness, config)
    predictive = fitted.predict(data.test.inputs, num_draws=12)
    nll = evaluate(fitted, data.test, num_draws=12).metrics["nll"]
    print(f"{name}: NLL {nll:.3f}, mutual information {predictive.mutual_information.mean():.4f}")
