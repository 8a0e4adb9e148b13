"""What `compare` measures beside the usual metrics, as its options say."""

import pytest

from flatbayes.cli.aliases import resolve_arguments
from flatbayes.cli.compare import _select_evaluations, make_parser
from flatbayes.data import Digits


def measures(*arguments):
    asked = make_parser().parse_args(resolve_arguments(["--data", "digits", "--out", "x", *arguments]))
    return _select_evaluations(asked, Digits().load(0))


def test_nothing_unless_it_is_asked_for():
    found = measures()
    assert (found.calibration, found.shift, found.sharpness_rho) == (False, False, None)


def test_all_of_it_or_some_on_as_much_as_is_said():
    found = measures("--diagnose")
    assert (found.calibration, found.shift, found.sharpness_rho) == (True, True, 0.05)
    found = measures(
        "--evaluations", "[calibration, sharpness]", "--max_examples", "50", "--num_sharpness_draws", "2"
    )
    assert (found.calibration, found.shift, found.sharpness_rho) == (True, False, 0.05)
    assert (found.max_examples, found.num_sharpness_draws) == (50, 2)


def test_refuses_to_measure_on_nothing():
    with pytest.raises(ValueError, match="examples must be at least 1, got 0"):
        measures("--diagnose", "--max_examples", "0")
