"""Methods of a comparison: a posterior with its own flatness and training configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flatbayes.core.components import resolve_component
from flatbayes.core.display import format_fields
from flatbayes.core.spec import instantiate, short_name, to_spec
from flatbayes.flatness import Flatness, Plain
from flatbayes.posteriors import Posterior
from flatbayes.training import TrainingConfig


@dataclass(frozen=True)
class Method:
    """A posterior that differs from the others in training; its plain and its flat run are trained alike.

    Attributes:
        posterior: The posterior.
        flatness: Flatness of the flat run, by default that of the whole comparison.
        config_overrides: The training options that differ from the common ones, by name; those of a group in a
            mapping, `{"collection": {"start_fraction": 0.5}}`, or under a dotted name.
        name: Label in the results, by default the posterior with its hyperparameters.

    Examples:
        >>> method = Method(MAP(), SAM(rho=0.2), {"batch_size": 16}, name="MAP, small batches")
        >>> method.apply_overrides(config).batch_size
        16
        >>> results = compare(MLP, source, [method], config=config, num_seeds=1, num_jobs=1)
        >>> [(run.posterior, run.flatness) for run in results.runs]
        [('MAP, small batches', 'Plain'), ('MAP, small batches', 'SAM(rho=0.2)')]
    """

    posterior: Posterior
    flatness: Flatness | None = None
    config_overrides: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None

    __repr__ = format_fields

    def __post_init__(self) -> None:
        object.__setattr__(self, "posterior", resolve_component(self.posterior, Posterior, "posterior"))
        overrides = {name: _to_spec(value) for name, value in self.config_overrides.items()}
        object.__setattr__(self, "config_overrides", overrides)
        if self.flatness is not None:
            object.__setattr__(self, "flatness", resolve_component(self.flatness, Flatness, "flatness"))
        TrainingConfig().with_options(**_instantiate_overrides(self.config_overrides))
        if self.flatness == Plain():
            raise ValueError(
                f"{self.label} is compared with its plain run of the same seed: choose another flatness than Plain."
            )

    @property
    def label(self) -> str:
        """Label in the results."""
        return self.name or short_name(self.posterior)

    @property
    def setting(self) -> str:
        """The posterior with its hyperparameters, and the overrides of the training configuration."""
        overrides: dict[str, Any] = to_spec(dict(self.config_overrides))
        texts = [f"{name}={_format_override(value)}" for name, value in overrides.items()]
        return ", ".join([short_name(self.posterior), *texts])

    def apply_overrides(self, base_config: TrainingConfig) -> TrainingConfig:
        """The common training configuration with the overrides of this method."""
        return base_config.with_options(**_instantiate_overrides(self.config_overrides))


def _format_override(value: Any) -> str:
    is_group = isinstance(value, Mapping) and "class_path" not in value  # options by name, {"start_fraction": 0.5}
    return str(value) if is_group or not isinstance(value, Mapping) else short_name(value)


def _to_spec(value: Any) -> Any:
    """The specification of a class that a parser of arguments has read, without its arguments that are None."""
    if not hasattr(value, "as_dict"):
        return value
    spec = value.as_dict()  # all defaults are filled in; params of an optimizer is None
    return {**spec, "init_args": {name: v for name, v in spec.get("init_args", {}).items() if v is not None}}


def _instantiate_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    return {name: instantiate(value, bind=name == "optimizer") for name, value in overrides.items()}


def build_methods(posteriors: Sequence[Posterior | Method]) -> list[Method]:
    """Wrap posteriors as methods.

    Raises:
        ValueError: Two methods have the same label.
    """
    methods = [entry if isinstance(entry, Method) else Method(entry) for entry in posteriors]
    labels = [method.label for method in methods]
    repeated = sorted({label for label in labels if labels.count(label) > 1})
    if repeated:
        raise ValueError(f"Several methods are called {', '.join(repeated)}: give each a `name` of its own.")
    return methods
