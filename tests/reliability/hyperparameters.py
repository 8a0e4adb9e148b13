"""Every odd value for every hyperparameter: makes an object, or an error that users of Python expect.

Without the type checks of the tests, as users have it: it is called from a script.
"""

from dataclasses import fields, is_dataclass
from typing import Any

from flatbayes import flatness, posteriors
from flatbayes.training import TrainingConfig, schedules

METHODS: list[type] = [
    *(
        found
        for module in (posteriors, flatness, schedules)
        for found in vars(module).values()
        if isinstance(found, type) and is_dataclass(found)
    ),
    TrainingConfig,
]
ODD: list[Any] = [0, -1, 1.5, 2**63, 10**400, -(10**400), 5e-324, 1e308, float("nan"), float("inf"), None, True, "",
                  "x", b"a", [], [1], {}, {"a": 1}, {"a": 10**400}, {"a": float("nan")}, object()]  # fmt: skip


def main() -> dict[str, Any]:
    """Try them all."""
    tried, refused, bad = 0, 0, []
    for method in METHODS:
        for name in [field.name for field in fields(method) if field.init]:
            for value in ODD:
                tried += 1
                try:
                    method(**{name: value})
                except (ValueError, TypeError):
                    refused += 1
                except Exception as error:
                    bad.append(f"{method.__name__}({name}={value!r:.20}): {type(error).__name__} {error}")
    return {"tried": tried, "refused": refused, "bad": bad}
