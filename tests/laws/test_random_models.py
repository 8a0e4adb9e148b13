"""Random networks with random posteriors and flatnesses work, or are refused before the first step."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fit_checks import check_fit
from flatbayes import flatness, posteriors
from random_fits import FLATNESS_NAMES, POSTERIOR_NAMES, FitSpec, fit_specs, spec_from_seed

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]
NUM_EXAMPLES = 40
WITHOUT_RANDOM_NETWORKS = {"TFB"}
"""Posteriors of networks with adapters."""


def test_random_fits_have_every_posterior_and_flatness():
    wrappers = {"Delayed", "Periodic", "FlatnessWrapper", "Flatness"}
    assert {*posteriors.__all__} - {*POSTERIOR_NAMES, "Posterior", "Ensemble"} <= WITHOUT_RANDOM_NETWORKS
    assert {name for name in flatness.__all__ if name[0].isupper()} - {*FLATNESS_NAMES} <= wrappers


@settings(max_examples=NUM_EXAMPLES, suppress_health_check=[HealthCheck.too_slow], report_multiple_bugs=False)
@given(spec=fit_specs())
def test_a_random_fit_works_or_is_refused(spec: FitSpec):
    with tempfile.TemporaryDirectory() as folder:
        check_fit(spec, Path(folder))


@pytest.mark.slow
@given(seed=st.integers(0, 2**32))
@settings(max_examples=1000)
def test_many_random_fits_work_or_are_refused(seed: int):
    with tempfile.TemporaryDirectory() as folder:
        check_fit(spec_from_seed(seed), Path(folder))
