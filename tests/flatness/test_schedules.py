"""Which flatness a schedule runs at which step, at what cost, and with what state."""

import pytest
import torch

from flatbayes.core import TrainingProgress
from flatbayes.flatness import MSAM, SAM, Delayed, LookSAM, Periodic, Plain
from support import Counted, batch, network


def count_calls(flat, steps, total=None):
    model, progress = network(), TrainingProgress(total_steps=total)
    counts = []
    for _ in range(steps):
        closure = Counted(model, *batch())
        flat(closure, model, progress)()
        counts.append(closure.calls)
        progress.advance()
    return counts


def test_periodic_runs_from_the_first_step_on():
    assert count_calls(Periodic(SAM(), 3), 7) == [2, 1, 1, 2, 1, 1, 2]
    assert Periodic(SAM(), 4).gradients_per_step == 1.25


def test_delayed_begins_at_its_fraction_of_training():
    assert count_calls(Delayed(SAM(ascent_steps=2), 0.5), 6, total=6) == [1, 1, 1, 3, 3, 3]
    assert count_calls(Delayed(SAM(), 0.7), 10, total=10) == [1] * 7 + [2] * 3
    assert count_calls(Delayed(SAM(), 0.0), 2, total=2) == [2, 2]
    assert Delayed(SAM(), 0.75).gradients_per_step == 1.25


def test_delayed_runs_another_flatness_before():
    staged = Delayed(SAM(ascent_steps=2), 0.5, before=SAM())
    assert count_calls(staged, 6, total=6) == [2, 2, 2, 3, 3, 3]
    assert staged.gradients_per_step == 2.5
    assert Delayed(SAM(), 0.5, before=MSAM()).stationary_after == 0.5
    model, progress = network(), TrainingProgress(total_steps=4)
    closure = Counted(model, *batch())
    for _ in range(2):  # the second step perturbs along the first one's gradient
        Delayed(SAM(), 0.5, before=MSAM(rho=3.0))(closure, model, progress)()
        progress.advance()
    plain = Counted(model, *batch())
    plain()
    plain_grads = [p.grad.clone() for p in model.parameters()]
    Delayed(SAM(), 0.9, before=MSAM(rho=3.0))(closure, model, progress)()
    assert any((a - p.grad).abs().max() > 1e-6 for a, p in zip(plain_grads, model.parameters(), strict=True))


def test_schedules_nest_and_count_the_same_steps():
    assert count_calls(Periodic(LookSAM(period=4), 2), 5) == [2, 1, 1, 1, 2]
    assert count_calls(Delayed(Periodic(SAM(), 2), 0.5), 8, total=8) == [1, 1, 1, 1, 2, 1, 2, 1]
    model = network()
    closure = Counted(model, *batch())
    assert Periodic(SAM())(closure, model, TrainingProgress(step=1)) is closure


def test_gradients_are_stationary_as_those_of_the_parts_are():
    never = float("inf")
    assert [f.stationary_after for f in (Periodic(SAM(), 2), Periodic(SAM(), 1), Periodic(MSAM(), 1))] == [
        never,
        0,
        never,
    ]
    assert [f.stationary_after for f in (Delayed(SAM(), 0.6), Delayed(LookSAM(), 0.6), Delayed(Plain(), 0.0))] == [
        0.6,
        never,
        0,
    ]


def test_the_error_without_total_steps_gives_the_code_to_write():
    model = network()
    with pytest.raises(ValueError, match=r"Delayed needs the number of steps .* TrainingProgress\(total_steps=...\)"):
        Delayed()(Counted(model, *batch()), model, TrainingProgress())


@pytest.mark.parametrize("outer", [lambda flat: flat, lambda flat: Periodic(flat, 1)], ids=["alone", "nested"])
def test_the_two_parts_of_delayed_share_no_state(outer):
    delayed = outer(Delayed(MSAM(rho=3.0), 0.5, before=MSAM(rho=3.0, momentum=0.0)))
    model, progress = network(), TrainingProgress(total_steps=2)
    closure = Counted(model, *batch(), seen=[])
    for _ in range(2):
        delayed(closure, model, progress)()
        progress.advance()
    # The second step is the first one of the second MSAM: it has no momentum yet, so the weights are unperturbed.
    assert all(torch.equal(*weights) for weights in zip(*closure.seen, strict=True))
    assert len(progress.flatness_state) == 2 * len(list(model.parameters()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Periodic(period=0), "period must be at least 1"),
        (lambda: Delayed(start=1.0), "start is a fraction"),
        (lambda: Delayed(start=-0.1), "start is a fraction"),
    ],
)
def test_invalid_hyperparameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


NESTED = [
    Delayed(MSAM(), start=0.5, before=MSAM()),
    Delayed(LookSAM(), start=0.5, before=LookSAM()),
    Delayed(Delayed(MSAM(), start=0.0), start=0.5, before=MSAM()),
    Delayed(Periodic(MSAM(), period=1), start=0.5, before=Periodic(MSAM(), period=1)),
    Periodic(Delayed(MSAM(), start=0.5, before=MSAM()), period=1),
]


@pytest.mark.parametrize("flat", NESTED, ids=str)
def test_the_later_instance_begins_without_state_and_leaves_that_of_the_earlier_one(flat):
    model, progress = network(), TrainingProgress(total_steps=4)
    for step in range(4):
        flat(Counted(model, *batch()), model, progress)()
        progress.advance()
        if step == 1:
            earlier = {name: tensor.clone() for name, tensor in progress.flatness_state.items()}
    assert earlier
    assert all(torch.equal(progress.flatness_state[name], tensor) for name, tensor in earlier.items())
    assert len(progress.flatness_state) == 2 * len(earlier)
    restored = TrainingProgress()
    restored.load_state_dict(progress.state_dict())
    assert restored.flatness_state.keys() == progress.flatness_state.keys()
