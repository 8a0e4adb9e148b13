"""Self-checks that failed in the runs of a comparison."""

from flatbayes.experiments.results import ComparisonResult
from flatbayes.experiments.run_result import RunResult
from flatbayes.reporting.remarks import describe_failed_checks


def run(seed, flatness="Plain", posterior="SWAG", **failed):
    return RunResult(posterior, flatness, seed, {"nll": 0.1}, failed_checks=failed)


def test_a_check_is_named_if_it_fails_in_half_of_the_runs_of_a_posterior():
    runs = [run(seed, flatness, one_network="All the same") for seed in (0, 1) for flatness in ("Plain", "SAM")]
    runs += [run(0, posterior="MAP", confidence="Overconfident"), run(1, posterior="MAP"), run(2, posterior="MAP")]
    results = ComparisonResult({}, tuple(RunResult.from_dict(entry.to_dict()) for entry in runs))
    text = describe_failed_checks(results)
    assert text == "Check one_network failed: SWAG (4 of 4 runs); such as: All the same."
    assert describe_failed_checks(ComparisonResult({}, (run(0), run(1)))) == ""
