"""What is compared: a posterior, with whatever is special about how it is trained and flattened."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flatbayes.core.spec import instantiate, short_name
from flatbayes.flatness import Flatness, Plain
from flatbayes.posteriors import Posterior
from flatbayes.training import TrainingConfig


@dataclass(frozen=True)
class Method:
    """A posterior that is not trained like the others: both of its twins are trained as it says.

    Attributes:
        posterior: The posterior.
        flatness: The flat version, if it is not that of the whole comparison.
        config_overrides: The training options that differ from the common ones, by name; those of a group in a
            mapping, `{"collection": {"start_fraction": 0.5}}`, or under a dotted name.
        name: What to call it; by default the posterior with its hyperparameters.
    """

    posterior: Posterior
    flatness: Flatness | None = None
    config_overrides: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None

    def __post_init__(self) -> None:
        TrainingConfig().with_options(**_instantiate_overrides(self.config_overrides))
        if self.flatness == Plain():
            raise ValueError(f"{self.label} is compared with its plain twin: choose another flatness than Plain.")

    @property
    def label(self) -> str:
        """What it is called in tables."""
        return self.name or short_name(self.posterior)

    def apply_overrides(self, base_config: TrainingConfig) -> TrainingConfig:
        """The common recipe with this method's changes."""
        return base_config.with_options(**_instantiate_overrides(self.config_overrides))


def _instantiate_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    return {name: instantiate(value, bind=name == "optimizer") for name, value in overrides.items()}


def build_methods(posteriors: Sequence[Posterior | Method]) -> list[Method]:
    """All of them as methods.

    Raises:
        ValueError: Two of them go by the same name.
    """
    found = [one if isinstance(one, Method) else Method(one) for one in posteriors]
    names = [method.label for method in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"Several methods are called {', '.join(twice)}: give each a `name` of its own.")
    return found
