"""A reference: predictions of networks from long chains of the exact posterior, kept in one file."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flatbayes.core.display import format_entries, format_number
from flatbayes.core.files import JsonValue, atomic_write, parse_json, replace_nonfinite
from flatbayes.core.names import format_count
from flatbayes.core.optional import get_version
from flatbayes.core.spec import instantiate, to_spec
from flatbayes.data.fingerprint import explain_change
from flatbayes.likelihoods import (
    BernoulliPredictive,
    CategoricalPredictive,
    DistributionPredictive,
    GaussianPredictive,
    Likelihood,
    Predictive,
)
from flatbayes.metrics import agreement, total_variation, wasserstein_distance
from flatbayes.reference.config import ReferenceConfig
from flatbayes.reference.diagnostics import ReferenceDiagnostics

NUM_SAMPLES = 1000
"""Samples of a distance between predictions that are no mixtures of normal distributions."""
METADATA_KEY = "flatbayes_reference"
SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Reference:
    """Outputs of networks drawn from the exact posterior, and what they belong to.

    Attributes:
        outputs: Outputs of every network that was kept, for the examples of one split.
        likelihood: Distribution of the targets given the outputs.
        config: The density and the sampler.
        model: Description of the network.
        fingerprint: Fingerprints of the training split and of the split of the predictions.
        split: Name of the split of the predictions.
        seed: Seed of the data and of the chains.
        num_weights: Trainable weights of the network.
        num_data: Training examples.
        diagnostics: How well the chains have mixed.
        version: Version of flatbayes.

    Examples:
        >>> reference = sample_reference(MLP, data, reference_config)
        >>> reference.predictive.mean.shape == (len(data.test), 10)
        True
        >>> sorted(reference.measure(reference.predictive))
        ['agreement', 'tv']
        >>> path = reference.save("reference.safetensors")
        >>> Reference.load(path).config == reference.config
        True
    """

    outputs: Float[Tensor, "chains draws examples outputs"]
    likelihood: Likelihood
    config: ReferenceConfig
    model: JsonValue
    fingerprint: Mapping[str, str]
    split: str
    seed: int
    num_weights: int
    num_data: int
    diagnostics: ReferenceDiagnostics = field(repr=False)
    version: str = get_version()

    def __repr__(self) -> str:
        chains, draws, examples, _ = self.outputs.shape
        kind = f"rho {self.config.rho:g}" if self.config.rho else "plain"
        size = f"{format_count(chains, 'chain')} of {format_count(draws, 'draw')}"
        return f"<Reference: {kind}, {size}, {format_count(examples, f'{self.split} example')}>"

    @property
    def predictive(self) -> Predictive:
        """The mixture of the predictions of all networks."""
        return self.likelihood.predictive(self.outputs.flatten(0, 1))

    def measure(self, predictive: Predictive) -> dict[str, float]:
        """Distances of predictions of the same examples to those of the reference.

        Args:
            predictive: Predictions for the split of the reference.

        Returns:
            `agreement` and `tv` (total variation) for classes, and for several labels their means over the labels;
            `w1` (1-Wasserstein distance) for numbers.

        Raises:
            ValueError: The predictions are of other examples or targets.
            TypeError: There is no distance for this kind of predictions.
        """
        return measure_distances(predictive, self.predictive)

    def measure_noise(self) -> dict[str, float]:
        """Distances of the predictions of the first half of the chains to those of the second half.

        They bound what can be resolved: two exact posteriors with half as many draws each have these distances. With
        one chain, the halves are those of the chain.
        """
        axis = 0 if len(self.outputs) > 1 else 1
        halves = self.outputs.chunk(2, dim=axis)
        first, second = (self.likelihood.predictive(half.flatten(0, 1)) for half in halves)
        return measure_distances(first, second)

    def explain_mismatch(self, model: JsonValue, fingerprint: Mapping[str, str], split: str) -> str | None:
        """Why predictions of another network or for other data cannot be compared with this; None if they can.

        Args:
            model: Description of the network by `describe_network`.
            fingerprint: Fingerprints of the splits by name.
            split: Name of the split of the predictions.
        """
        if split != self.split:
            return f"it predicts the {self.split} split, and the comparison the {split} split"
        change = explain_change(self.fingerprint, {name: fingerprint[name] for name in ("train", split)})
        if change is not None:
            return f"it was sampled with other data: {change}"
        if model != self.model:
            return f"it has another network: {json.dumps(self.model)} instead of {json.dumps(model)}"
        return None

    def summary(self) -> str:
        """Density, network, sampler and diagnostics as text."""
        config, diagnostics = self.config, self.diagnostics
        noise = ", ".join(f"{name} {format_number(value)}" for name, value in self.measure_noise().items())
        r_hats = [_format_optional(value) for value in (diagnostics.r_hat_median, diagnostics.r_hat_max)]
        sizes = [_format_optional(value) for value in (diagnostics.ess_median, diagnostics.ess_min)]
        entries = {
            "density": f"prior precision {config.prior_precision:g}, temperature {config.temperature:g}, "
            f"rho {config.rho:g}, {format_count(self.num_data, 'training example')}",
            "network": format_count(self.num_weights, "weight"),
            "sampler": f"{config.sampler}, {format_count(config.num_chains, 'chain')}, seed {self.seed}, "
            f"{format_count(diagnostics.num_gradients, 'gradient')}, {diagnostics.seconds:.0f} s",
            "step size": ", ".join(f"{value:.3g}" for value in diagnostics.step_sizes),
            "R-hat": f"median {r_hats[0]}, largest {r_hats[1]}",
            "effective draws": f"median {sizes[0]}, smallest {sizes[1]}",
            "potential": ", ".join(f"{value:.1f}" for value in diagnostics.mean_potentials),
            "two halves": noise,
        }
        if config.sampler == "mclmc":
            values = [value for value in diagnostics.energy_variances if value is not None]
            entries["energy variance"] = ", ".join(f"{value:.2g}" for value in values) + " for each weight"
            lengths = [value for value in diagnostics.decoherence_lengths if value is not None]
            entries["decoherence"] = ", ".join(f"{value:.3g}" for value in lengths)
        else:
            entries["acceptance"] = ", ".join(f"{value:.2f}" for value in diagnostics.acceptances)
        if diagnostics.ascent_residual is not None:
            entries["ascent residual"] = f"{diagnostics.ascent_residual:.2g}"
        for number, problem in enumerate(diagnostics.list_problems(), 1):
            entries[f"problem {number}"] = problem
        if diagnostics.num_divergent:
            entries["not finite"] = format_count(diagnostics.num_divergent, "step")
        return format_entries(repr(self), entries)

    def describe(self) -> dict[str, JsonValue]:
        """Everything but the outputs as plain data."""
        description: dict[str, JsonValue] = replace_nonfinite(
            {
                "schema": SCHEMA,
                "flatbayes": self.version,
                "likelihood": to_spec(self.likelihood),
                "config": asdict(self.config),
                "model": self.model,
                "fingerprint": dict(self.fingerprint),
                "split": self.split,
                "seed": self.seed,
                "num_weights": self.num_weights,
                "num_data": self.num_data,
                "diagnostics": asdict(self.diagnostics),
            }
        )
        return description

    def save(self, path: str | Path) -> Path:
        """Write the outputs and the description to a file of safetensors, and return its path.

        Args:
            path: The file.

        Raises:
            OSError: It cannot be written.
        """
        path = Path(path)
        with atomic_write(path) as temporary:
            metadata = {METADATA_KEY: json.dumps(self.describe())}
            save_file({"outputs": self.outputs.contiguous()}, temporary, metadata=metadata)
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Reference":
        """Read a file of `save`.

        Args:
            path: The file.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is damaged, of a newer version, or no reference.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no reference {path}: `flatbayes reference --out {path}` writes one.")
        try:
            with safe_open(path, "pt") as file:
                description = parse_json((file.metadata() or {})[METADATA_KEY])
                outputs = file.get_tensor("outputs")
            if description["schema"] > SCHEMA:
                version = description["flatbayes"]
                raise ValueError(f"{path} is from flatbayes {version}: upgrade flatbayes to read it.")
            return cls._from_description(outputs, description)
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no reference of flatbayes, or is damaged: {error}.") from error

    @classmethod
    def _from_description(cls, outputs: Tensor, description: Mapping[str, Any]) -> "Reference":
        diagnostics: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in description["diagnostics"].items()
        }
        if outputs.ndim != 4:
            raise KeyError("outputs of the shape (chains, draws, examples, outputs)")
        return cls(
            outputs=outputs,
            likelihood=instantiate(description["likelihood"], package="flatbayes.likelihoods", base_class=Likelihood),
            config=ReferenceConfig(**description["config"]),
            model=description["model"],
            fingerprint=description["fingerprint"],
            split=description["split"],
            seed=description["seed"],
            num_weights=description["num_weights"],
            num_data=description["num_data"],
            diagnostics=ReferenceDiagnostics(**diagnostics),
            version=description["flatbayes"],
        )


def measure_distances(predictive: Predictive, reference: Predictive) -> dict[str, float]:
    """Distances of predictions to those of a reference, for the same examples.

    Args:
        predictive: The predictions.
        reference: Those of the reference.

    Raises:
        ValueError: The predictions are of other examples or targets.
        TypeError: There is no distance for these kinds of predictions.

    Examples:
        >>> predictive = fitted.predict(inputs)
        >>> measure_distances(predictive, predictive)
        {'agreement': 1.0, 'tv': 0.0}
    """
    predictive, reference = predictive.flatten(), reference.flatten()
    match predictive, reference:
        case CategoricalPredictive(), CategoricalPredictive():
            return {
                "agreement": agreement(predictive.mean, reference.mean),
                "tv": total_variation(predictive.mean, reference.mean),
            }
        case BernoulliPredictive(), BernoulliPredictive():
            probs, reference_probs = (values.log_probs.exp().flatten(0, 1) for values in (predictive, reference))
            return {
                "agreement": agreement(probs, reference_probs),
                "tv": total_variation(probs, reference_probs),
            }
        case GaussianPredictive(), GaussianPredictive():
            parameters = (predictive.member_means, predictive.member_stds)
            distance = wasserstein_distance(*parameters, reference.member_means, reference.member_stds)
            return {"w1": distance}
        case DistributionPredictive(), DistributionPredictive():
            samples, reference_samples = (each.sample(NUM_SAMPLES).sort(0).values for each in (predictive, reference))
            return {"w1": float((samples - reference_samples).abs().mean())}
        case _:
            raise TypeError(
                f"There is no distance of a {type(predictive).__name__} to a reference of "
                f"{type(reference).__name__}: both must be predictions of classes, of labels or of numbers."
            )


def _format_optional(value: float | None) -> str:
    """A number with four digits, or `undefined`."""
    return "undefined" if value is None else f"{value:.4g}"
