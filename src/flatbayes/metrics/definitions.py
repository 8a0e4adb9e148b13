"""Direction and definition of every metric, whatever the task; a report shows those that its runs have."""

from collections.abc import Mapping
from types import MappingProxyType

from flatbayes.metrics import classification, regression
from flatbayes.metrics.extra import FAMILIES

HIGHER_IS_BETTER: Mapping[str, bool] = MappingProxyType(
    {
        **classification.HIGHER_IS_BETTER,
        **regression.HIGHER_IS_BETTER,
        **{name: higher for family in FAMILIES.values() for name, (higher, _) in family.items()},
    }
)
"""Direction of each metric that has one."""

DEFINITIONS: Mapping[str, str] = MappingProxyType(
    {
        **classification.DEFINITIONS,
        **regression.DEFINITIONS,
        **{name: text for family in FAMILIES.values() for name, (_, text) in family.items()},
        "nll": "NLL: mean negative log probability of the label, or log density of a number in its unit, in nats",
    }
)
"""One line on each metric, for reports."""
