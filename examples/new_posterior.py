# %% A posterior of your own in forty lines: the last solutions of a cyclical learning rate, all with the same weight
# Snapshot ensembles (Huang et al., ICLR 2017). Nothing has to be registered, and every flatness goes with it at once.
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from flatbayes import MLP, SAM, Cyclical, Digits, Plain, Posterior, TrainingConfig, evaluate, fit
from flatbayes.core.buffers import eval_mode
from flatbayes.core.weights import flatten, swap_values, trainable_parameters, unflatten
from flatbayes.posteriors.optimization import default_sgd, init_state, step_optimizer
from flatbayes.training import CollectionConfig


@dataclass(frozen=True)
class Solutions(Posterior):
    """Attributes: max_snapshots: Solutions to keep, the last ones."""

    max_snapshots: int = 4

    # What others need to know of it.
    num_members = 1  # all of them come from one training
    stochastic = True  # two draws may be two solutions
    needs_norm_reestimation = True  # BatchNorm statistics are those of the end of training, not of the solution drawn
    shardable = False  # that each process holds a part of the weights would want a test of its own
    requires_stationary_loss = "never"  # whatever leads to good weights will do
    default_optimizer = default_sgd(prior_precision=None)

    @property
    def snapshot_requirements(self):
        return 1, self.max_snapshots  # one at least before a draw; no use is made of more than `max_snapshots`

    def init(self, model, make_optimizer, num_data):
        state = init_state(model, make_optimizer, num_data, prior_precision=None)
        weights = flatten(trainable_parameters(model))
        state.statistics = {"count": torch.tensor(0), "rows": weights.new_zeros(self.max_snapshots, len(weights))}
        return state

    def step(self, state, closure):
        return step_optimizer(state, closure, prior_precision=None)  # the prior is the optimiser's weight decay

    def collect(self, state):
        count = int(state.statistics["count"].add_(1))
        state.statistics["rows"][(count - 1) % self.max_snapshots] = flatten(trainable_parameters(state.model))

    def finalize(self, state, examples, loss_fn):
        """Nothing: no last look at the data is needed."""

    @contextmanager
    def draw(self, state, generator) -> Iterator[nn.Module]:
        held = min(int(state.statistics["count"]), self.max_snapshots)
        if held == 0:
            raise RuntimeError("Solutions needs at least 1 collected snapshot before a draw, got 0; train longer.")
        row = int(torch.randint(held, (), generator=generator, device=generator.device))
        params = trainable_parameters(state.model)
        with swap_values(params, unflatten(state.statistics["rows"][row], params)), eval_mode(state.model):
            yield state.model


# %% Four waves of the learning rate, snapshots at the end of each; one seed shows that it works, not who is better
data = Digits(train_size=300).load(seed=0)
recipe = TrainingConfig(epochs=24, schedule=Cyclical(num_cycles=4), collection=CollectionConfig(start_fraction=0.9))
for name, flatness in {"plain": Plain(), "flat": SAM(rho=0.1)}.items():
    fitted = fit(MLP, data, Solutions(), flatness, recipe)
    predictive = fitted.predict(data.test.inputs, num_draws=12)
    nll = evaluate(fitted, data.test.inputs, data.test.targets, num_draws=12).metrics["nll"]
    print(f"{name}: NLL {nll:.3f}, mutual information {predictive.mutual_information.mean():.4f}")
