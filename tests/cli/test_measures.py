"""What `compare` measures beside the usual metrics, as its options say."""

import pytest

from flatbayes.cli.compare import _measures, options
from flatbayes.cli.names import with_full_names
from flatbayes.data import Digits


def measures(*arguments):
    asked = options().parse_args(with_full_names(["--data", "digits", "--out", "x", *arguments]))
    return _measures(asked, Digits().load(0))


def test_nothing_unless_it_is_asked_for():
    found = measures()
    assert (found.calibration, found.shift, found.sharpness) == (False, False, None)


def test_all_of_it_or_some_on_as_much_as_is_said():
    found = measures("--diagnose")
    assert (found.calibration, found.shift, found.sharpness) == (True, True, 0.05)
    found = measures("--measures", "[calibration, sharpness]", "--examples", "50", "--sharpness_draws", "2")
    assert (found.calibration, found.shift, found.sharpness) == (True, False, 0.05)
    assert (found.examples, found.draws) == (50, 2)


def test_refuses_to_measure_on_nothing():
    with pytest.raises(ValueError, match="examples must be at least 1, got 0"):
        measures("--diagnose", "--examples", "0")
