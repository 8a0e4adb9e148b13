"""Words of a study on its page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


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
        """Size and what is trained.

        Args:
            setting: Summary of a setting.
        """
        return f"{setting['size']:,} {self.unit}, {self.describe_trained(setting)}"

    def describe_trained(self, setting: Mapping[str, Any]) -> str:
        """What is trained, and whether default options had no warm-up.

        Args:
            setting: Summary of a setting.
        """
        return self.trained[setting["trained"]] + (", no warm-up" if is_without_warmup(setting) else "")


def is_default(setting: Mapping[str, Any]) -> bool:
    """Whether nothing is chosen by the study in a setting, since every option has its default.

    Args:
        setting: Summary of the setting.
    """
    return str(setting["trained"]).startswith("default")


def is_without_warmup(setting: Mapping[str, Any]) -> bool:
    """Whether the default learning rate of a setting was constant, as it was before it had a warm-up.

    Args:
        setting: Summary of the setting.
    """
    return is_default(setting) and not setting.get("warmup")
