"""Direction and definition of every metric, whatever the task; a report shows those that its runs have."""

from collections.abc import Mapping
from types import MappingProxyType

from flatbayes.metrics import classification, regression
from flatbayes.metrics.extra import METRIC_FAMILIES

HIGHER_IS_BETTER: Mapping[str, bool] = MappingProxyType(
    {
        **classification.CLASSIFICATION_HIGHER_IS_BETTER,
        **regression.REGRESSION_HIGHER_IS_BETTER,
        **{name: higher for family in METRIC_FAMILIES.values() for name, (higher, _) in family.items()},
    }
)
"""Direction of each metric that has one."""

DEFINITIONS: Mapping[str, str] = MappingProxyType(
    {
        **classification.CLASSIFICATION_DEFINITIONS,
        **regression.REGRESSION_DEFINITIONS,
        **{name: text for family in METRIC_FAMILIES.values() for name, (_, text) in family.items()},
        "nll": "NLL: mean negative log probability of the label, or log density of a number in its unit, in nats",
    }
)
"""One line on each metric, for reports."""
