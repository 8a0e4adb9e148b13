"""A certificate in words: what is promised, on what it rests, and what it does not say."""

import math

from flatbayes.certification.result import CertificationResult

ASSUMPTIONS = (
    "It supposes that the examples of the bound are independent and distributed like the new ones, and that nothing "
    "was chosen by them: not the model, the flatness, the recipe, the plan or the seed."
)
LIMITATIONS = (
    "It says nothing of any single network, nor of the average of the networks' predictions; the numbers on the test "
    "part are estimates."
)


def format_statement(result: CertificationResult) -> str:
    """The promise of the error certificate, with its suppositions and limits, as one paragraph."""
    found = result.error
    both = max(0.0, 2 * found.confidence - 1)
    weak = "" if found.bound < 1 else " That says nothing: no error rate is above 1."
    return (
        f"With probability at least {format_confidence(found.confidence)}, over the {found.num_data} examples of the bound "
        f"and the {found.num_draws} networks drawn: whoever answers every new question with a network freshly drawn "
        f"from the posterior errs at a rate of at most {format_upper_bound(found.bound)}.{weak} Their cross entropy, cut off "
        f"and divided to lie between 0 and 1, has a bound of {format_upper_bound(result.cross_entropy.bound)} with the same "
        f"probability; both hold at once with probability at least {format_confidence(both)}. {ASSUMPTIONS} {LIMITATIONS}"
    )


def format_upper_bound(bound: float) -> str:
    """An upper bound in four decimals, rounded up, so that it stays one.

    >>> format_upper_bound(0.12341)
    '0.1235'
    """
    return f"{min(1.0, math.ceil(bound * 1e4 - 1e-9) / 1e4):.4f}"


def format_confidence(probability: float) -> str:
    """A probability in per cent, rounded down.

    >>> format_confidence(0.9659), format_confidence(0.965)
    ('96.5%', '96.5%')
    """
    return f"{math.floor(probability * 1e3 + 1e-9) / 1e3:.1%}"
