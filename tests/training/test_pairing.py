"""Which pairs are refused, and what is said."""

import pytest

from flatbayes.flatness import ASAM, LESAM, MSAM, SAM, Every, Late, LookSAM, Smoothing
from flatbayes.posteriors import LRT, SGHMC, SGLD, SGVB, SWAG, Ensemble, Laplace, MCDropout, Point
from flatbayes.training import Cyclical, Recipe
from flatbayes.training.pairing import check_pair

RECIPE = Recipe(collect_from=0.6)
NO_LOSS = [MSAM(), LookSAM(), Every(SAM()), LESAM(anneal=0.2), Late(MSAM(), 0.1)]
LOSS = [SAM(part=0.25), ASAM(params="norms"), Smoothing(), LESAM(), Late(SAM(), 0.6), Every(SAM(), 1)]


@pytest.mark.parametrize("flat", NO_LOSS, ids=str)
def test_samplers_and_bounds_are_not_for_gradients_of_no_loss(flat):
    for posterior in (SGLD(), SGHMC(), SGVB(), LRT(), Ensemble(SGLD())):
        with pytest.raises(
            ValueError, match=rf"^{type(posterior).__name__}.* does not go with {type(flat).__name__}.*Use SAM"
        ):
            check_pair(posterior, flat, RECIPE)
    for posterior in (Point(), SWAG(), MCDropout(), Laplace(), Ensemble(SWAG())):
        check_pair(posterior, flat, RECIPE)


@pytest.mark.parametrize("flat", LOSS, ids=str)
def test_gradients_of_a_loss_are_for_all(flat):
    for posterior in (SGLD(), SGHMC(), SGVB(), LRT(), Point(), SWAG()):
        check_pair(posterior, flat, RECIPE)


def test_a_late_loss_is_one_for_snapshots_collected_later():
    late = Late(SAM(), 0.8)
    check_pair(SGVB(), late, RECIPE)  # what counts is the end
    check_pair(SGLD(), late, Recipe(collect_from=0.8))
    for recipe in (RECIPE, Recipe(collect_from=0.9, schedule=Cyclical(times=4))):
        with pytest.raises(ValueError, match=r"one loss from 0\.8 .*Collect from 0\.8 on"):
            check_pair(SGLD(), late, recipe)
