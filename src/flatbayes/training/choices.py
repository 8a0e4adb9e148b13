"""Choice of the strength of the prior and of the radius of a flatness on validation data, by one pilot.

    train with the given prior, and with radius 0 if the radius is to be chosen
    radius:  train with the usual radius, in fewer epochs where the gradients might not suffice otherwise, and with
             twice that radius; without early stopping from a step late in training on
    prior:   while early stopping has ended the best training, and the gradients suffice:
             train with a prior 10 times as strong

A training that overfits is stopped early, and saves the gradients that other trainings are tried with. The
training with the lowest validation NLL is the result; one with a radius above 0 or a stronger prior only if it is
lower by more than chance. Further members of an ensemble are trained alike.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flatbayes.core.files import JsonValue, read_json, write_json
from flatbayes.core.names import format_count
from flatbayes.flatness import Flatness, Plain
from flatbayes.training.callbacks.callback import Callback
from flatbayes.training.candidates import (
    MAX_WEIGHT_DECAY,
    MIN_FRACTION,
    PRIOR_STEP,
    Candidate,
    PriorChoice,
    compute_relative_score,
    compute_standard_error,
    describe_prior,
)
from flatbayes.training.checkpoint import CHOICES_FILE, CheckpointManager
from flatbayes.training.members import list_groups
from flatbayes.training.pilot import Pilot
from flatbayes.training.radius import (
    MAX_COST,
    MIN_GAIN,
    RADIUS_FACTORS,
    WHOLE_RADIUS_FACTORS,
    RadiusChoice,
    describe_radius,
    find_radius_name,
    get_active_flatness,
    select_radius,
)
from flatbayes.training.run_factory import RunFactory
from flatbayes.training.setup import TrainingSetup


def resolve_choices(
    setups: Sequence[TrainingSetup], manager: CheckpointManager, callback: Callback, progress: Callback
) -> Sequence[TrainingSetup]:
    """The prepared fits with the radius and the prior chosen on validation data, where they were to be chosen.

    The pilot trains the networks of the first group; the manager gets their state at the end of training. If the
    manager has a choice, it is taken; a pilot that was interrupted continues. `callback` gets a message about each
    choice, and `progress` every step of the pilot.

    Raises:
        RuntimeError: The first training diverges before radii differ.
    """
    factory = setups[0].factory
    if factory.auto_flatness is None and factory.auto_prior is None:
        return setups
    path = None if manager.checkpoints is None else manager.checkpoints.folder / CHOICES_FILE
    stored = setups[0].world.read_on_main(lambda: read_json(path) if path is not None and path.is_file() else None)
    choices: dict[str, Any] | None = stored if isinstance(stored, dict) else None
    if choices is None:
        index, members = list_groups(setups)[0]
        pilot = Pilot(setups, members, progress, manager)
        choices, best = choose_training(pilot, callback)
        if best in pilot.outcomes:
            manager.preload(index, pilot.get_result(best))
        if path is not None and manager.is_writer:
            write_json(path, choices)
        pilot.remove_checkpoints()
    for record in choices.values():
        callback.on_message(str(record["reason"]))
    radius, prior = choices.get("radius"), choices.get("prior")
    candidate = Candidate(
        None if radius is None else float(radius["value"]),
        0.0 if radius is None else float(radius["start"]),
        1.0 if prior is None else float(prior["factor"]),
        None if radius is None else radius["epochs"],
    )
    return [replace(setup, factory=candidate.apply_to(setup.factory), info=setup.info | choices) for setup in setups]


def choose_training(pilot: Pilot, callback: Callback) -> tuple[dict[str, Any], Candidate]:
    """Run the pilot; return its choices as plain data, and the best training."""
    factory = pilot.setups[0].factory
    flatness, asks_prior = factory.auto_flatness, factory.auto_prior == "asked"
    best = Candidate(None if flatness is None else 0.0)
    obstacle, weight_decay = pilot.obstacle, factory.compute_weight_decay(pilot.num_data)
    prior_obstacle = obstacle or find_prior_obstacle(factory, weight_decay)
    choices: dict[str, dict[str, JsonValue]] = {}
    if (flatness is not None and obstacle is None) or prior_obstacle is None:
        if flatness is not None:
            name = find_radius_name(flatness)
            callback.on_message(f"A pilot chooses {name} on validation data, 0 among the values.")
        pilot.train(best)
    if flatness is not None:
        reserve = compute_reserve(pilot, best) if prior_obstacle is None else 0.0
        best, radius = choose_radius(pilot, flatness, best, obstacle, reserve)
        choices["radius"] = radius.to_dict()
    if factory.auto_prior is not None:
        if prior_obstacle is None and best not in pilot.outcomes:
            prior_obstacle = "the budget does not allow for another training"
        if prior_obstacle is None:
            best, prior = choose_prior(pilot, best, weight_decay)
        else:
            prior = PriorChoice(1.0, weight_decay, (), f"prior_factor is 1: {prior_obstacle}.")
        if asks_prior or len(prior.scores) > 1:  # a default is recorded only if others were tried
            choices["prior"] = prior.to_dict()
    return choices, best


def compute_reserve(pilot: Pilot, plain: Candidate) -> float:
    """Gradients that plain training would have for stronger priors; radii are tried with the others.

    With a flatness that ends with radius 0, at least the priors that plain training would try are then tried.
    """
    outcome = pilot.outcomes[plain]
    left = MAX_COST * pilot.count_gradients(pilot.num_steps, Plain()) - outcome.num_gradients
    return left if outcome.stopped_early and left >= outcome.num_gradients else 0.0


def find_prior_obstacle(factory: RunFactory, weight_decay: float) -> str | None:
    """Why no stronger prior than this weight decay can be chosen; None if one can."""
    if factory.auto_prior is None:
        return "it is given"
    if not factory.config.stops_early:
        return "a stronger prior is tried with what early stopping saves, and the number of epochs is given"
    if weight_decay <= 0:
        return "the training has no prior, or one with the scale of the initial weights"
    return None


def choose_prior(pilot: Pilot, first: Candidate, weight_decay: float) -> tuple[Candidate, PriorChoice]:
    """Try stronger and stronger priors as long as they are better."""
    best, scores = first, {1.0: pilot.outcomes[first].score.best}
    while True:
        outcome, factor = pilot.outcomes[best], best.prior_factor * PRIOR_STEP
        if not outcome.stopped_early:
            obstacle = "training does not stop early, so that no stronger prior is needed"
        elif factor * weight_decay > MAX_WEIGHT_DECAY:
            obstacle = f"a stronger one would be a weight decay above {MAX_WEIGHT_DECAY:g}"
        elif not pilot.can_afford(outcome.num_gradients):
            obstacle = "the budget does not allow for another training"
        else:
            candidate = replace(best, prior_factor=factor)
            other = pilot.train(candidate)
            score, current = compute_relative_score(other.score, outcome.score), outcome.score.best
            if other.is_finished:
                scores[factor] = score
            obstacle = "the budget did not allow for another training"
            if score is not None and (current is None or score <= current - MIN_GAIN):
                best = candidate
                continue
        choice = PriorChoice(best.prior_factor, weight_decay * best.prior_factor, tuple(scores.items()), "")
        return best, replace(choice, reason=describe_prior(choice, obstacle))


def choose_radius(
    pilot: Pilot, flatness: Flatness, plain: Candidate, obstacle: str | None, reserve: float
) -> tuple[Candidate, RadiusChoice]:
    """Try radii, and take the best one.

    The pilot has trained the plain candidate, of radius 0, unless there is an obstacle. `reserve` is a number of
    gradients that are not for radii above 0.
    """
    name, usual, outcome = find_radius_name(flatness), flatness.reference_radius, pilot.outcomes.get(plain)
    if outcome is not None and obstacle is None:
        candidates = list_whole_trainings(pilot, flatness, plain, reserve) or list_ends(pilot, flatness, plain)
        if not candidates:
            obstacle = f"a training of {format_count(pilot.num_steps, 'step')} is too short to repeat its end"
    if outcome is None or obstacle is not None:
        reason = f"{name} is {usual:g}, its usual value: {obstacle}."
        return replace(plain, radius=usual), RadiusChoice(name, usual, 0.0, (), reason)
    scores: dict[float, float | None] = {0.0: outcome.score.best}
    errors: dict[float, float] = {}
    by_radius, last_cost = {0.0: plain}, 0.0
    for candidate in candidates:
        if candidate.radius is None or not pilot.can_afford(last_cost + reserve):
            break
        other = pilot.train(candidate, plain if candidate.start else None)
        last_cost = other.num_gradients
        if other.is_finished:
            by_radius[candidate.radius] = candidate
            scores[candidate.radius] = compute_relative_score(other.score, outcome.score)
            errors[candidate.radius] = compute_standard_error(other.score, outcome.score)
    best = by_radius[select_radius(scores, usual, errors)]
    value, start = best.radius or 0.0, candidates[0].start
    reason = describe_radius(name, value, start, scores, usual, errors)
    pairs = tuple(sorted(scores.items())), tuple(sorted(errors.items()))
    return best, RadiusChoice(name, value, start, pairs[0], reason, best.epochs, pairs[1])


def list_whole_trainings(pilot: Pilot, flatness: Flatness, plain: Candidate, reserve: float) -> list[Candidate]:
    """Trainings with a radius from the first step on, where training stops early; none if they would be too short.

    They have as many epochs as are left for one of them, even if it does not stop early.
    """
    config = pilot.setups[0].factory.config
    fraction = (pilot.budget - pilot.num_gradients - reserve) / pilot.count_gradients(pilot.num_steps, flatness)
    if not config.stops_early or fraction < MIN_FRACTION:
        return []
    epochs = None if fraction >= 1 else int(config.num_epochs * fraction)
    radii = [flatness.reference_radius * factor for factor in WHOLE_RADIUS_FACTORS]
    return [replace(plain, radius=radius, epochs=epochs) for radius in radii]


def list_ends(pilot: Pilot, flatness: Flatness, plain: Candidate) -> list[Candidate]:
    """Trainings with a radius from the branch on, as many as the budget allows; none if there is no branch."""
    checkpoints = pilot.outcomes[plain].checkpoints
    if checkpoints.branch is None:
        return []
    step, num_steps = checkpoints.branch_progress
    cost = pilot.count_gradients(num_steps - step, get_active_flatness(flatness))
    radii = [flatness.reference_radius * factor for factor in RADIUS_FACTORS]
    return [
        replace(plain, radius=radius, start=step / num_steps)
        for k, radius in enumerate(radii, 1)
        if pilot.can_afford(k * cost)
    ]
