"""m-sharpness: the mean of the gradients of sub-batches."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatbayes.core import TrainingProgress, subset_batch
from flatbayes.core.context import SubBatch
from flatbayes.flatness import SAM, MSharpness, Plain, VaSSO

X = torch.randn(11, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.arange(11) % 3


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()


def make_closure(model, x, y, sizes):
    def closure():
        inputs, targets = subset_batch(x, y)
        sizes.append(len(inputs))
        model.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss.detach()

    return closure


def compute_step(flat, rows=slice(None), model=None):
    model, sizes = make_model() if model is None else model, []
    loss = flat(make_closure(model, X[rows], Y[rows], sizes), model, TrainingProgress(seed=0))()
    return loss, torch.cat([p.grad.flatten() for p in model.parameters()]), sizes, model


@pytest.mark.parametrize("inner", [SAM(rho=0.3), SAM(rho=0.3, ascent_batch_fraction=0.5)], ids=["whole", "half"])
def test_the_gradient_is_the_mean_over_the_examples_of_all_sub_batches(inner):
    loss, grad, sizes, model = compute_step(MSharpness(inner, 3))
    rows = [slice(0, 3), slice(3, 7), slice(7, 11)]
    single = make_model()
    parts = [compute_step(inner, part, single) for part in rows]  # in turn, so that BatchNorm advances three times
    weights = [3 / 11, 4 / 11, 4 / 11]
    torch.testing.assert_close(grad, sum(w * part[1] for w, part in zip(weights, parts, strict=True)))
    torch.testing.assert_close(loss, sum(w * part[0] for w, part in zip(weights, parts, strict=True)))
    assert sizes == [size for part in parts for size in part[2]]
    for buffer, expected in zip(model.buffers(), single.buffers(), strict=True):
        assert torch.equal(buffer, expected)


def test_without_batch_statistics_the_sub_batches_of_plain_training_are_the_batch():
    _, grad, _, _ = compute_step(MSharpness(Plain(), 4), model=make_model().eval())
    torch.testing.assert_close(grad, compute_step(Plain(), model=make_model().eval())[1])


@pytest.mark.parametrize(("num_rows", "expected"), [(11, [2, 2, 2, 2, 3]), (5, [2, 3]), (3, [3])])
def test_no_sub_batch_has_a_single_example(num_rows, expected):
    assert compute_step(MSharpness(Plain(), 8), slice(num_rows))[2] == expected


def test_one_sub_batch_is_the_inner_flatness():
    assert torch.equal(compute_step(MSharpness(SAM(0.3), 1))[1], compute_step(SAM(0.3))[1])


def test_sub_batches_share_the_state_of_the_inner_flatness():
    model, progress = make_model(), TrainingProgress(seed=0)
    MSharpness(VaSSO(), 3)(make_closure(model, X, Y, []), model, progress)()
    assert len(progress.flatness_state) == len(list(model.parameters()))
    assert all(name.startswith("flatness/vasso/") for name in progress.flatness_state)


def test_a_closure_that_ignores_sub_batches_is_refused():
    model = make_model()

    def closure():
        model.zero_grad()
        loss = F.cross_entropy(model(X), Y)
        loss.backward()
        return loss.detach()

    with pytest.raises(ValueError, match="subset_batch"):
        MSharpness()(closure, model)()


def test_the_number_of_sub_batches_is_checked():
    with pytest.raises(ValueError, match="num_sub_batches must be"):
        MSharpness(num_sub_batches=0)


def test_processes_with_unequal_shares_have_equally_many_sub_batches_of_equal_weights():
    sizes, weights, rows = (8, 7), [], []
    for size in sizes:
        parts = [SubBatch(k, 8, batch_sizes=sizes) for k in range(3)]
        rows.append([k for part in parts for k in range(size)[part.select_rows(size)]])
        assert [part.num_sub_batches for part in parts] == [3, 3, 3]
        weights.append([part.weight for part in parts])
    assert rows == [list(range(8)), list(range(7))]
    assert weights[0] == weights[1] == [4 / 15, 5 / 15, 6 / 15]
