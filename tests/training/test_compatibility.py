"""Which pairs are refused, and what is said."""

import pytest

from flatbayes.flatness import (
    ASAM,
    GSAM,
    LESAM,
    MSAM,
    SAM,
    WSAM,
    Delayed,
    FriendlySAM,
    GaussianSmoothing,
    LookSAM,
    MSharpness,
    Periodic,
    PosteriorSAM,
    StableSAM,
    VaSSO,
)
from flatbayes.posteriors import IVON, LRT, MAP, SGHMC, SGLD, SGVB, SWAG, BLoB, Ensemble, Laplace, MCDropout
from flatbayes.training import CollectionConfig, Cyclical, TrainingConfig
from flatbayes.training.compatibility import check_compatibility

CONFIG = TrainingConfig(collection=CollectionConfig(start_fraction=0.6))
NO_LOSS = [MSAM(), LookSAM(), Periodic(SAM()), LESAM(anneal=0.2), Delayed(MSAM(), 0.1)]
NO_LOSS += [FriendlySAM(), VaSSO(), StableSAM(), GSAM(), MSharpness(GSAM())]
LOSS = [
    SAM(ascent_batch_fraction=0.25),
    ASAM(params="norms"),
    GaussianSmoothing(),
    LESAM(),
    Delayed(SAM(), 0.6),
    Periodic(SAM(), 1),
    WSAM(),
    MSharpness(),
]


@pytest.mark.parametrize("flat", NO_LOSS, ids=str)
def test_samplers_and_bounds_are_not_for_gradients_of_no_loss(flat):
    for posterior in (SGLD(), SGHMC(), SGVB(), LRT(), IVON(), Ensemble(SGLD())):
        with pytest.raises(
            ValueError, match=rf"^{type(posterior).__name__}.* does not go with {type(flat).__name__}.*Use SAM"
        ):
            check_compatibility(posterior, flat, CONFIG)
    for posterior in (MAP(), SWAG(), MCDropout(), Laplace(), Ensemble(SWAG())):
        check_compatibility(posterior, flat, CONFIG)


@pytest.mark.parametrize("flat", LOSS, ids=str)
def test_gradients_of_a_loss_are_for_all(flat):
    for posterior in (SGLD(), SGHMC(), SGVB(), LRT(), MAP(), SWAG()):
        check_compatibility(posterior, flat, CONFIG)


def test_a_late_loss_is_one_for_snapshots_collected_later():
    late = Delayed(SAM(), 0.8)
    check_compatibility(SGVB(), late, CONFIG)  # what counts is the end
    check_compatibility(SGLD(), late, TrainingConfig(collection=CollectionConfig(start_fraction=0.8)))
    for config in (
        CONFIG,
        TrainingConfig(collection=CollectionConfig(start_fraction=0.9), schedule=Cyclical(num_cycles=4)),
    ):
        with pytest.raises(ValueError, match=r"one loss before 0\.8 .*Collect from 0\.8 on"):
            check_compatibility(SGLD(), late, config)


@pytest.mark.parametrize(
    "flat", [PosteriorSAM(), Periodic(PosteriorSAM(), 1), Delayed(SAM(), before=PosteriorSAM())], ids=str
)
def test_the_geometry_of_a_posterior_needs_a_variational_one(flat):
    for posterior in (MAP(), MCDropout(), Laplace(), SGLD(), Ensemble()):
        with pytest.raises(
            ValueError, match=r"does not go with .*PosteriorSAM.*Gaussian.*Use SGVB, LRT, IVON, SWAG, BLoB"
        ):
            check_compatibility(posterior, flat, CONFIG)
    for posterior in (SGVB(), LRT(), IVON(), SWAG(), BLoB(), Ensemble(LRT())):
        check_compatibility(posterior, flat, CONFIG)


def test_a_loss_scaler_and_noise_in_every_step_do_not_go_together():
    scaled = CONFIG.with_options(**{"precision.mode": "16-mixed"})
    for posterior in (SGLD(), SGHMC(), IVON(), BLoB(kl_lr=0.01), Ensemble(SGLD()), Ensemble(BLoB(kl_lr=0.01))):
        with pytest.raises(ValueError, match=r"loss scaler .* leaves out steps .* Use bf16-mixed"):
            check_compatibility(posterior, SAM(), scaled)
    for posterior in (MAP(), SWAG(), SGVB(), BLoB(), Laplace()):
        check_compatibility(posterior, SAM(), scaled)


def test_components_that_cannot_be_written_down_as_data_are_refused_by_the_name_of_their_class():
    class OwnPosterior(SGLD):
        pass

    class OwnFlatness(MSAM):
        pass

    with pytest.raises(ValueError, match=r"^OwnPosterior does not go with OwnFlatness"):
        check_compatibility(OwnPosterior(), OwnFlatness(), CONFIG)
    with pytest.raises(ValueError, match=r"^OwnPosterior changes more than the optimizer"):
        check_compatibility(OwnPosterior(), SAM(), CONFIG.with_options(precision={"mode": "16-mixed"}))
