"""Training with a recorded step: the conditions, the plumbing with a stand-in on the CPU, and CUDA graphs."""

import pytest
import torch
from torch import nn

from flatbayes.core.tensor_lists import flatten
from flatbayes.core.weights import trainable_parameters
from flatbayes.data import DataSplits, Split
from flatbayes.flatness import (
    ASAM,
    GSAM,
    LESAM,
    MSAM,
    SAM,
    WSAM,
    Delayed,
    FisherSAM,
    FriendlySAM,
    GaussianSmoothing,
    LookSAM,
    MSharpness,
    Periodic,
    Plain,
    RandomPerturbation,
    StableSAM,
    VaSSO,
)
from flatbayes.posteriors import IVON, LRT, MAP, SGHMC, SGLD, SGVB, SWAG
from flatbayes.training import TrainingConfig, fit, graph_capture, loop, setup
from flatbayes.training.graph_capture import check_graph_capture

GRAPHED = TrainingConfig(epochs=2, batch_size=16, num_validations=0).with_options(**{"precision.cuda_graph": True})
EAGER = GRAPHED.with_options(**{"precision.cuda_graph": False})
CUDA = torch.device("cuda")
GRAPHABLE = [Plain(), SAM(), ASAM(), FisherSAM(), LESAM(), SAM(params="norms"), WSAM(), GSAM(), StableSAM()]
GRAPHABLE += [MSharpness(num_sub_batches=2)]


def data(size=58):  # the last batch of an epoch is smaller
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(size, 6, generator=generator), torch.arange(size) % 3
    split = Split(inputs=inputs, targets=targets)
    return DataSplits(train=split, val=split, test=split, class_names=("a", "b", "c"), feature_names=(), augment=None)


class Net(nn.Sequential):
    def __init__(self, dropout=0.0):
        super().__init__(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(dropout), nn.ReLU(), nn.Linear(8, 3))


def weights(posterior, flatness, config, **options):
    torch.manual_seed(0)
    fitted = fit(Net(**options), data(), posterior, flatness, config, seed=1)
    model = fitted.states[0].model
    return flatten([*trainable_parameters(model), *(b.float() for b in model.buffers())]), fitted


@pytest.fixture
def recorded(monkeypatch):
    """A stand-in for CUDA graphs: gradients and loss are in the same memory in every step, as in a graph."""
    repeats, engines, create = [], [], graph_capture._RecordedStep.create

    def create_and_note(flatness, closure, *args):
        engines.append(closure.engine)
        return create(flatness, closure, *args)

    def record(step):
        loss, params = step().clone(), engines[-1].params
        memory = [param.grad for param in params]

        def repeat_step():
            repeats.append(step)
            value = step()
            for param, static in zip(params, memory, strict=True):
                static.copy_(param.grad)
                param.grad = None
            return loss.copy_(value)

        return repeat_step

    monkeypatch.setattr(graph_capture._RecordedStep, "create", staticmethod(create_and_note))
    monkeypatch.setattr(loop, "record_cuda_graph", record)
    monkeypatch.setattr(setup, "check_graph_capture", lambda *_: None)
    return repeats


@pytest.mark.parametrize(
    ("posterior", "flatness"),
    [
        (MAP(), Plain()),
        (MAP(prior_precision=2.0), SAM()),
        (SWAG(rank=2), ASAM()),
        (SGLD(prior_precision=1.0), FisherSAM()),
        (SGHMC(), SAM(params="norms")),
        (MAP(), LESAM()),
    ],
    ids=str,
)
def test_a_recorded_step_trains_as_an_eager_one(posterior, flatness, recorded):
    expected, _ = weights(posterior, flatness, EAGER)
    result, _ = weights(posterior, flatness, GRAPHED)
    assert len(recorded) == 6  # three whole batches in each of two epochs; the smaller one is eager
    assert torch.equal(result, expected)


def test_a_network_that_draws_random_numbers_is_refused(recorded):
    with pytest.raises(ValueError, match="Net draws random numbers in its forward pass, such as those of dropout"):
        weights(MAP(), SAM(), GRAPHED, dropout=0.1)


def test_a_step_that_cannot_be_recorded_is_refused(monkeypatch, recorded):
    def record(step):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(loop, "record_cuda_graph", record)
    with pytest.raises(ValueError, match="reads a value on the host.*not permitted.*Set precision.cuda_graph"):
        weights(MAP(), SAM(), GRAPHED)


def test_a_training_on_the_cpu_is_refused_before_the_first_step():
    with pytest.raises(ValueError, match="cannot be a CUDA graph: the training is on cpu"):
        weights(MAP(), SAM(), GRAPHED)


@pytest.mark.parametrize(
    ("posterior", "flatness", "options", "num_processes", "message"),
    [
        (MAP(), SAM(), {}, 2, "2 processes train together"),
        (MAP(), SAM(), {"precision.mode": "16-mixed"}, 1, "loss scaler"),
        (SGVB(), SAM(), {}, 1, "SGVB.* computes standard deviations"),
        (IVON(), SAM(), {}, 1, "IVON.* computes standard deviations"),
        (LRT(), SAM(), {}, 1, "LRT.* computes standard deviations"),
        *(
            (MAP(), flatness, {}, 1, "depends on the step of training")
            for flatness in (
                MSAM(),
                LookSAM(),
                Periodic(),
                Delayed(),
                GaussianSmoothing(),
                RandomPerturbation(),
                LESAM(anneal=0.5),
                VaSSO(),
                FriendlySAM(),
                MSharpness(VaSSO()),
            )
        ),
    ],
    ids=str,
)
def test_what_differs_between_steps_is_refused(posterior, flatness, options, num_processes, message):
    config = GRAPHED.with_options(**options)
    with pytest.raises(ValueError, match=message):
        check_graph_capture(posterior, flatness, config, CUDA, num_processes)
    check_graph_capture(
        posterior, flatness, config.with_options(**{"precision.cuda_graph": False}), CUDA, num_processes
    )


@pytest.mark.parametrize("flatness", GRAPHABLE, ids=str)
def test_what_is_the_same_in_every_step_is_accepted(flatness):
    check_graph_capture(MAP(), flatness, GRAPHED, CUDA, 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("flatness", GRAPHABLE, ids=str)
def test_a_cuda_graph_trains_as_eager_steps(flatness):
    options = {"distribution.accelerator": "cuda"}
    expected, _ = weights(SWAG(rank=2), flatness, EAGER.with_options(**options))
    result, _ = weights(SWAG(rank=2), flatness, GRAPHED.with_options(**options))
    torch.testing.assert_close(result, expected)
