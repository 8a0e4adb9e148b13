"""Words of a study on its page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HIGHER_IS_BETTER = {
    "accuracy": True,
    "nll": False,
    "ece": False,
    "brier": False,
    "aurc": False,
    "nll_calibrated": False,
}
"""Direction of the metrics of both studies."""
METRIC_LABELS = {
    "accuracy": "accuracy",
    "nll": "NLL",
    "ece": "ECE",
    "brier": "Brier",
    "aurc": "AURC",
    "nll_calibrated": "NLL, scaled",
}


@dataclass(frozen=True)
class Labels:
    """Words of a study.

    Attributes:
        study: Name of its folder.
        unit: What examples are, in the plural.
        trained: Text by what is trained.
        metrics: Heading of a column by name of the metric.
        packages: Packages whose versions are shown.
    """

    study: str
    unit: str
    trained: Mapping[str, str]
    metrics: Mapping[str, str]
    packages: Sequence[str] = ()

    @property
    def start(self) -> str:
        """Mark before the tables."""
        return f"<!-- tables, written by python -m studies.{self.study} -->"

    def describe(self, setting: Mapping[str, Any]) -> str:
        """Size of a setting and what is trained in it."""
        return f"{setting['size']:,} {self.unit}, {self.describe_trained(setting)}"

    def describe_trained(self, setting: Mapping[str, Any]) -> str:
        """What is trained in a setting, and whether default options had no warm-up."""
        return self.trained[setting["trained"]] + (", no warm-up" if is_without_warmup(setting) else "")


def is_default(setting: Mapping[str, Any]) -> bool:
    """Whether nothing is chosen by the study in a setting, since every option has its default."""
    return str(setting["trained"]).startswith("default")


def is_without_warmup(setting: Mapping[str, Any]) -> bool:
    """Whether the default learning rate of a setting was constant, as it was before it had a warm-up."""
    return is_default(setting) and not setting.get("warmup")
