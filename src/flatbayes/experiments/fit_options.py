"""Arguments of `fit` on network, targets and initial weights that all runs of an experiment have in common."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from flatbayes.core.display import format_fields
from flatbayes.core.names import format_suggestion
from flatbayes.core.network_interface import OutputSelector
from flatbayes.core.networks import fingerprint_weights, hash_tensors
from flatbayes.data import DataSource, Standardize
from flatbayes.data.readers import set_task
from flatbayes.likelihoods import Categorical, Likelihood
from flatbayes.prediction import FittedPosterior
from flatbayes.prediction.labelled import infer_task, names_likelihood
from flatbayes.prediction.metadata import METADATA_FILE, compute_file_checksum, read_metadata
from flatbayes.training.arguments import NetworkOptions
from flatbayes.training.model_builder import ModelFactory
from flatbayes.training.warm_start import PretrainedWeights, extract_mean_weights, list_sources


@dataclass(frozen=True)
class FitOptions:
    """Arguments of `fit` besides model, data, posterior, flatness and configuration.

    Attributes:
        likelihood: As for `fit`. A Gaussian, or a distribution of numbers, makes whole numbers regression targets.
        output: As for `fit`.
        init: As for `fit`.
        new_head: As for `fit`; every seed has another one.
        freeze: As for `fit`.
        transform: As for `fit`.

    Examples:
        >>> options = FitOptions(freeze=["*.bias"])
        >>> comparison = Comparison(source, MLP, [MAP()], config=config, num_seeds=1, options=options)
        >>> results = comparison.run(Path("runs"), jobs=1)
        >>> results.failures
        ()
    """

    content_fields: ClassVar[tuple[str, ...]] = ("init", "transform")

    likelihood: Likelihood | str | None = None
    output: OutputSelector | None = None
    init: PretrainedWeights | Sequence[PretrainedWeights] | None = None
    new_head: bool = False
    freeze: Sequence[str] = ()
    transform: Standardize | None = None

    @classmethod
    def from_keywords(cls, keywords: Mapping[str, Any], function: Callable[..., Any]) -> Self:
        """The options from further keyword arguments of a function.

        Args:
            keywords: Options by name.
            function: The function, whose own arguments are suggested for an unknown name.

        Raises:
            TypeError: There is no option of a name.
        """
        names = {field.name for field in fields(cls)}
        for name in keywords.keys() - names:
            suggestion = format_suggestion(name, sorted({*names, *signature(function).parameters} - {"options"}))
            text = f"{function.__name__}() got an unexpected keyword argument {name!r}. {suggestion}"
            raise TypeError(text.rstrip())
        return cls(**keywords)

    def __repr__(self) -> str:
        return format_fields(self)  # cut within that of a run

    def __post_init__(self) -> None:
        if isinstance(self.init, Path):
            object.__setattr__(self, "init", str(self.init))

    def list_set(self) -> list[str]:
        """Names of the fields that differ from their defaults."""
        return [f.name for f in fields(self) if getattr(self, f.name) is not f.default]

    def to_arguments(self) -> NetworkOptions:
        """The arguments of `fit`."""
        return NetworkOptions(
            likelihood=self.likelihood,
            output=self.output,
            init=self.init,
            new_head=self.new_head,
            freeze=self.freeze,
            transform=self.transform,
        )

    def apply_task(self, source: DataSource) -> DataSource:
        """The source with regression targets or classes, if it leaves this open and the likelihood says it."""
        is_categorical = names_likelihood(self.likelihood, Categorical)
        return set_task(source, "classification" if is_categorical else infer_task(self.likelihood))

    def fingerprint_start(self, model: nn.Module | ModelFactory) -> str | None:
        """Checksum of trained weights and of a given input transform; None if there are none.

        Args:
            model: A network, whose weights training starts from, or what builds one.
        """
        parts = [fingerprint_weights(model)] if isinstance(model, nn.Module) else []
        parts += [f"init {_hash_weights(source)[:16]}" for source in list_sources(self.init)]
        if self.transform is not None:
            parts.append(f"transform {hash_tensors(_list_statistics(self.transform))[:16]}")
        return ", ".join(parts) or None


def _list_statistics(transform: Standardize) -> Iterator[tuple[str, Tensor]]:
    yield "mean", transform.mean
    yield "std", transform.std


def _hash_weights(source: PretrainedWeights) -> str:
    """Checksum of a network, a state dict, a file with one, or a fitted posterior or its folder."""
    if isinstance(source, FittedPosterior):
        members = [extract_mean_weights(source.posterior, state) for state in source.states]
        named = [(f"{member}.{name}", weights[name]) for member, weights in enumerate(members) for name in weights]
        transform = _list_statistics(source.transform) if isinstance(source.transform, Standardize) else ()
        return hash_tensors([*named, *transform])
    if isinstance(source, nn.Module):
        source = source.state_dict()
    if isinstance(source, Mapping):
        return hash_tensors(sorted(source.items()))
    if (Path(source) / METADATA_FILE).is_file():
        return str(read_metadata(Path(source)).get("sha256"))
    return compute_file_checksum(Path(source))
