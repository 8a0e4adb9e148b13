"""Base class of posteriors whose temperature depends on the training where none is set."""

from dataclasses import replace
from typing import ClassVar

from flatbayes.posteriors.optimization import resolve_temperature
from flatbayes.posteriors.posterior import Posterior


class TemperedPosterior(Posterior):
    """A posterior with a temperature T in its density, p(w) exp(-num_data / T * mean NLL(w)).

    A subclass is a dataclass with the field `temperature`.

    Attributes:
        temperature: The temperature; None is 1, or one of the two others.
        automatic_temperature: That of a new network with an automatic number of epochs; None for 1.
        fine_tuning_temperature: That of a trained network with an automatic number of epochs; None for 1.
    """

    temperature: float | None
    automatic_temperature: ClassVar[float | None] = None
    fine_tuning_temperature: ClassVar[float | None] = None

    @property
    def _temperature(self) -> float:
        return resolve_temperature(self.temperature)

    def with_automatic_options(self, *, is_trained: bool = False) -> Posterior:
        """Return this posterior, at the temperature of such a training if none is set."""
        temperature = self.fine_tuning_temperature if is_trained else self.automatic_temperature
        is_set = self.temperature is not None or temperature is None
        return self if is_set else replace(self, temperature=temperature)  # type: ignore[type-var]
