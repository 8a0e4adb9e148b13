import math
from functools import partial

import pytest

from flatbayes.training import CollectionConfig, Constant, Cosine, Cyclical, Polynomial, SWALinear, TrainingConfig
from flatbayes.training.schedules import (
    get_automatic_snapshots_per_epoch,
    is_collection_step,
    select_evenly_spaced_epochs,
)


def test_a_short_training_collects_oftener_unless_it_is_told():
    def found(steps, **more):
        config = TrainingConfig(**more).resolve_epochs(steps)
        return sum(config.is_collection_step(step, steps) for step in range(steps * config.epochs))

    assert found(8, epochs=60) == 18
    assert found(60) == 18  # the smallest number of epochs reaches the smallest number of steps
    assert found(8) == 57  # of 375 epochs, one in two
    assert found(1) == 100  # of 3,000 epochs, one in nine
    assert found(1, collection=CollectionConfig(snapshots_per_epoch=1)) == 900
    assert found(100, epochs=10) == 12
    assert found(100, epochs=2) == 11
    assert found(8, epochs=2) == 5  # every step that there is
    assert found(8, epochs=2, collection=CollectionConfig(snapshots_per_epoch=1)) == 1


def curve(schedule, total=100):
    return [schedule.factor(step, total) for step in range(total)]


def test_constant():
    assert curve(Constant()) == [1.0] * 100


def test_cosine_goes_from_one_to_the_last_factor():
    factors = curve(Cosine(end_factor=0.1), 1000)
    assert factors[0] == 1
    assert factors[500] == pytest.approx(0.55)
    assert factors[-1] == pytest.approx(0.1, abs=1e-4)
    assert factors == sorted(factors, reverse=True)


def test_swa_linear_is_high_then_falls_then_low():
    factors = curve(SWALinear(decay_start=0.5, decay_end=0.9, end_factor=0.2))
    assert factors[:50] == [1.0] * 50
    assert factors[70] == pytest.approx(0.6)
    assert factors[90:] == [0.2] * 10


def test_polynomial_falls_as_langevin_dynamics_asks():
    factors = curve(Polynomial(power=0.6, offset=0.25), 1000)
    assert factors[0] == 1
    assert factors[250] == pytest.approx(2**-0.6)
    assert factors[750] == pytest.approx(4**-0.6)


def test_cyclical_starts_over():
    factors = curve(Cyclical(num_cycles=4, end_factor=0.2), 400)
    assert factors[:100] == pytest.approx(curve(Cosine(end_factor=0.2)))
    assert factors == pytest.approx(factors[:100] * 4)


def test_snapshots_late_in_every_cycle():
    found = [s for s in range(80) if is_collection_step(s, 5, 80, 0.75, 1, num_cycles=2)]
    assert found == [34, 39, 74, 79]
    assert [s for s in range(100) if is_collection_step(s, 10, 100, 0.7, 1, num_cycles=8)][-1] == 99
    assert (
        len([s for s in range(100) if is_collection_step(s, 10, 100, 0.9, 1, num_cycles=8)]) >= 8
    )  # the end of every wave
    assert when(1) == [step for step in range(40) if is_collection_step(step, 10, 40, 0.5, 1, num_cycles=1)]


@pytest.mark.parametrize("make", [Constant, Cosine, SWALinear, partial(SWALinear, 0.0, 0.0)])
def test_warmup_rises_from_zero(make):
    factors = curve(make(warmup=0.1))
    assert factors[0] == pytest.approx(0.1 * curve(make())[0])
    assert factors[:10] == sorted(factors[:10])
    assert factors[10] == pytest.approx(curve(make())[10])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Cosine(end_factor=-0.1),
        lambda: SWALinear(end_factor=1.5),
        lambda: Constant(warmup=math.nan),
        lambda: SWALinear(decay_start=0.8, decay_end=0.5),
        lambda: Cyclical(num_cycles=0),
        lambda: Cyclical(end_factor=2),
        lambda: Polynomial(power=0.5),
        lambda: Polynomial(offset=0),
    ],
)
def test_refuses_what_is_no_schedule(make):
    with pytest.raises(ValueError, match=r"must lie between 0 and 1|must not come after|must be"):
        make()


def when(per_epoch, steps=10, epochs=4, collect_from=0.5):
    total = steps * epochs
    return [step for step in range(total) if is_collection_step(step, steps, total, collect_from, per_epoch)]


def test_snapshots_at_the_end_of_epochs_of_the_last_part():
    assert when(1) == [29, 39]
    assert when(1, collect_from=0.0) == [9, 19, 29, 39]
    assert when(2) == [24, 29, 34, 39]
    assert when(4) == [22, 24, 27, 29, 32, 34, 37, 39]


def test_the_start_of_collection_is_not_rounded_down():
    for steps in range(1, 101):
        for start in range(steps):  # in floating point 0.29 * 100 < 29
            first = next(step for step in range(steps) if is_collection_step(step, 1, steps, start / steps, 1))
            assert first == start


def test_the_automatic_number_of_snapshots_is_the_smallest_that_gives_ten():
    assert get_automatic_snapshots_per_epoch(10, 0.9) == 10  # in floating point 10 / (10 * (1 - 0.9)) is above 10
    assert get_automatic_snapshots_per_epoch(5, 0.8) == 10
    assert get_automatic_snapshots_per_epoch(10, 0.7) == 4
    assert get_automatic_snapshots_per_epoch(100, 0.5) == 1


def test_no_more_snapshots_than_steps():
    assert when(7, steps=3, epochs=1, collect_from=0.0) == [0, 1, 2]


def test_validations_are_evenly_spaced_and_end_with_the_last_epoch():
    assert (
        select_evenly_spaced_epochs(60, 3)
        == TrainingConfig(epochs=60, num_validations=3).validation_epochs()
        == {20, 40, 60}
    )
    assert select_evenly_spaced_epochs(2, 20) == {1, 2}
    assert select_evenly_spaced_epochs(5, 0) == set()
    assert TrainingConfig(epochs=7, validate_every_n_epochs=3).validation_epochs() == {3, 6, 7}
    assert TrainingConfig(epochs=6, validate_every_n_epochs=3).validation_epochs() == {3, 6}
    assert TrainingConfig(epochs=2, validate_every_n_epochs=3).validation_epochs() == {2}
