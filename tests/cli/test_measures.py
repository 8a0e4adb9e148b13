"""Options of `compare` for additional evaluations."""

import pytest

from flatbayes.cli.aliases import resolve_arguments
from flatbayes.cli.compare import _select_evaluations, make_parser
from flatbayes.data import Digits


def measures(*arguments):
    asked = make_parser().parse_args(resolve_arguments(["--data", "digits", "--out", "x", *arguments]))
    return _select_evaluations(asked, Digits().load(0))


def test_no_additional_evaluations_by_default():
    result = measures()
    assert (result.calibration, result.shift, result.sharpness_rho) == (False, False, None)


def test_options_select_evaluations():
    result = measures("--diagnose")
    assert (result.calibration, result.shift, result.sharpness_rho) == (True, True, 0.05)
    result = measures(
        "--evaluations", "[calibration, sharpness]", "--max_examples", "50", "--num_sharpness_draws", "2"
    )
    assert (result.calibration, result.shift, result.sharpness_rho) == (True, False, 0.05)
    assert (result.max_examples, result.num_sharpness_draws) == (50, 2)


def test_zero_examples_are_refused():
    with pytest.raises(ValueError, match="examples must be at least 1, got 0"):
        measures("--diagnose", "--max_examples", "0")
