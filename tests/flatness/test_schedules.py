"""Whose turn it is at which step."""

import pytest

from flatbayes.core import TrainingProgress
from flatbayes.flatness import MSAM, SAM, Delayed, LookSAM, Periodic, Plain
from support import Counted, batch, network


def calls(flat, steps, total=None):
    model, course = network(), TrainingProgress(total_steps=total)
    counts = []
    for _ in range(steps):
        closure = Counted(model, *batch())
        flat(closure, model, course)()
        counts.append(closure.calls)
        course.advance()
    return counts


def test_every_so_many_steps_from_the_first_on():
    assert calls(Periodic(SAM(), 3), 7) == [2, 1, 1, 2, 1, 1, 2]
    assert Periodic(SAM(), 4).gradients_per_step == 1.25


def test_late_begins_at_its_share_of_training():
    assert calls(Delayed(SAM(ascent_steps=2), 0.5), 6, total=6) == [1, 1, 1, 3, 3, 3]
    assert calls(Delayed(SAM(), 0.7), 10, total=10) == [1] * 7 + [2] * 3
    assert calls(Delayed(SAM(), 0.0), 2, total=2) == [2, 2]
    assert Delayed(SAM(), 0.75).gradients_per_step == 1.25


def test_before_late_comes_what_is_named():
    staged = Delayed(SAM(ascent_steps=2), 0.5, before=SAM())
    assert calls(staged, 6, total=6) == [2, 2, 2, 3, 3, 3]
    assert staged.gradients_per_step == 2.5
    assert Delayed(SAM(), 0.5, before=MSAM()).stationary_after == 0.5
    model, course = network(), TrainingProgress(total_steps=4)
    closure = Counted(model, *batch())
    for _ in range(2):  # the second step asks where the first one's gradient says
        Delayed(SAM(), 0.5, before=MSAM(rho=3.0))(closure, model, course)()
        course.advance()
    plain = Counted(model, *batch())
    plain()
    here = [p.grad.clone() for p in model.parameters()]
    Delayed(SAM(), 0.9, before=MSAM(rho=3.0))(closure, model, course)()
    assert any((a - p.grad).abs().max() > 1e-6 for a, p in zip(here, model.parameters(), strict=True))


def test_in_its_turn_it_is_the_flatness_with_the_same_course():
    assert calls(Periodic(LookSAM(period=4), 2), 5) == [2, 1, 1, 1, 2]
    assert calls(Delayed(Periodic(SAM(), 2), 0.5), 8, total=8) == [1, 1, 1, 1, 2, 1, 2, 1]
    model = network()
    closure = Counted(model, *batch())
    assert Periodic(SAM())(closure, model, TrainingProgress(step=1)) is closure


def test_gradients_are_those_of_one_loss_as_the_pieces_are():
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


def test_says_when_the_length_of_training_is_missing():
    model = network()
    with pytest.raises(ValueError, match=r"Delayed needs the number of steps .* TrainingProgress\(total_steps=...\)"):
        Delayed()(Counted(model, *batch()), model, TrainingProgress())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Periodic(period=0), "period must be at least 1"),
        (lambda: Delayed(start=1.0), "start is a share"),
        (lambda: Delayed(start=-0.1), "start is a share"),
    ],
)
def test_refuses_hyperparameters_without_meaning(make, message):
    with pytest.raises(ValueError, match=message):
        make()
