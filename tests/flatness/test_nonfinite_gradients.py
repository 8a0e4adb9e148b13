"""One rule for a gradient that is not finite, on the CPU and on the code paths of an accelerator."""

import math
from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F

from flatbayes.core import TrainingProgress, subset_batch
from flatbayes.core.devices import treat_cpu_as_accelerator
from flatbayes.core.weights import trainable_parameters
from flatbayes.flatness import MSAM, FriendlySAM, LookSAM, VaSSO
from flatbayes.flatness.gradient_average import accumulate_gradients
from flatbayes.flatness.looksam import orthogonal_direction
from support import FLATNESSES, distribute_all_weights, named, network, snapshot

PATHS = {"cpu": nullcontext, "accelerator": treat_cpu_as_accelerator}
every_path = pytest.mark.parametrize("path", PATHS)
WITH_STATE = [MSAM(), LookSAM(period=2), VaSSO(), FriendlySAM()]
every_bad = pytest.mark.parametrize("bad", [math.nan, math.inf])


def make_closure(model, factor=1.0):
    generator = torch.Generator().manual_seed(3)
    inputs, targets = torch.randn(12, 1, 8, 8, generator=generator), torch.arange(12) % 3

    def closure():
        model.zero_grad()
        x, y = subset_batch(inputs, targets)
        loss = F.cross_entropy(model(x), y) * factor
        loss.backward()
        return loss.detach()

    return closure


@pytest.mark.cpu_path
@pytest.mark.parametrize("flat", FLATNESSES, ids=named(FLATNESSES))
@every_path
@every_bad
def test_the_gradient_of_the_step_is_not_finite_and_nothing_else_changes(flat, path, bad):
    model, progress = network().train(), TrainingProgress(total_steps=4, seed=0)
    with PATHS[path](), distribute_all_weights(model):
        for _ in range(2):
            flat(make_closure(model), model, progress)()
            progress.advance()
        progress.step = 0  # the step of LookSAM that stores a direction
        before = snapshot(model)["weights"]
        state = {name: tensor.clone() for name, tensor in progress.flatness_state.items()}
        flat(make_closure(model, bad), model, progress)()
        grads = [p.grad for p in trainable_parameters(model) if p.grad is not None]
        assert not all(grad.isfinite().all() for grad in grads)
        after = snapshot(model)["weights"]
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert progress.flatness_state.keys() == state.keys()
        assert all(torch.equal(progress.flatness_state[name], value) for name, value in state.items())


@pytest.mark.cpu_path
@pytest.mark.parametrize("flat", WITH_STATE, ids=named(WITH_STATE))
@every_path
def test_training_goes_on_as_if_the_step_had_not_been(flat, path):
    results = []
    for factors in ([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, math.inf, 1.0, 1.0]):
        model, progress = network().eval(), TrainingProgress(total_steps=9, seed=0)
        with PATHS[path]():
            for factor in factors:
                flat(make_closure(model, factor), model, progress)()
                progress.step += factor == 1.0
        results.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.cpu_path
@every_path
@every_bad
def test_state_is_kept_whole_if_one_entry_is_not_finite(path, bad):
    with PATHS[path]():
        velocities = [torch.tensor([1.0, 2.0]), torch.tensor([3.0])]
        accumulate_gradients(velocities, [torch.tensor([bad, 1.0]), torch.tensor([1.0])], 0.5)
        assert [v.tolist() for v in velocities] == [[1, 2], [3]]
        accumulate_gradients(velocities, [torch.tensor([1.0, 1.0]), torch.tensor([1.0])], 0.5)
        assert [v.tolist() for v in velocities] == [[1.5, 2], [2.5]]
        previous = [torch.tensor([0.6, 0.0]), torch.tensor([0.8])]
        grads = [torch.tensor([1.0, 0.0]), torch.tensor([0.0])]
        for flat_grads in ([torch.tensor([bad, 1.0]), torch.tensor([1.0])], [torch.tensor([1.0, bad]), grads[1]]):
            kept = orthogonal_direction(grads, flat_grads, previous)
            assert [d.tolist() for d in kept] == [d.tolist() for d in previous]
        moved = orthogonal_direction(grads, [torch.tensor([1.0, 3.0]), torch.tensor([4.0])], previous)
        torch.testing.assert_close(torch.cat(moved), torch.tensor([0.0, 0.6, 0.8]))
