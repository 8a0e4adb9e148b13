"""Random fits: a random network with a random posterior, flatness and training configuration."""

import random
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from hypothesis import strategies as st

from flatbayes import flatness, posteriors
from flatbayes.training import CollectionConfig, Cyclical, OptimizationConfig, TrainingConfig
from flatbayes.training.compatibility import check_compatibility
from flatbayes.training.config_groups import PrecisionConfig
from random_models import NUM_CLASSES, ModelSpec, Pick, pick_model

POSTERIOR_NAMES = ["MAP", "SWAG", "SGLD", "SGHMC", "SGVB", "IVON", "BSAM", "LRT", "Laplace", "MCDropout"]
POSTERIOR_NAMES += ["EntropyMCMC", "SVGD", "TFB", "BLoB"]
FLATNESS_NAMES = ["Plain", "SAM", "ASAM", "FisherSAM", "LESAM", "LookSAM", "MSAM", "RandomPerturbation"]
FLATNESS_NAMES += [
    "GaussianSmoothing",
    "PosteriorSAM",
    "FriendlySAM",
    "VaSSO",
    "WSAM",
    "GSAM",
    "StableSAM",
    "MSharpness",
]
SELECTIONS = ["weights", "no_biases", "biases", "norms", "last_layer", "all", ["head.*"], ["*weight"]]


@dataclass(frozen=True)
class FitSpec:
    """A fit in plain data."""

    model: ModelSpec
    is_instance: bool
    posterior: Any
    flatness: Any
    likelihood: str
    num_examples: int
    batch_size: int
    data_dtype: str
    config: TrainingConfig
    output: int | None = None

    def __str__(self) -> str:
        config = ", ".join(
            f"{f.name}={getattr(self.config, f.name)}"
            for f in fields(self.config)
            if getattr(self.config, f.name) != getattr(TrainingConfig(), f.name) and f.name != "optimizer"
        )
        return (
            f"{'network' if self.is_instance else 'function'} [{self.model}], {self.posterior}, {self.flatness}, "
            f"{self.likelihood}, {self.num_examples} examples of {self.data_dtype} by {self.batch_size}; {config}"
        )


def pick_posterior(pick: Pick, *, may_nest: bool = True) -> Any:
    """A posterior with random valid options."""
    match pick([*POSTERIOR_NAMES, "Ensemble"] if may_nest else POSTERIOR_NAMES):
        case "MAP":
            return posteriors.MAP(pick([None, 2.0]))
        case "SWAG":
            options = {
                "storage": pick(["device", "cpu"]),
                "bfloat16": pick([False, True]),
                "params": pick(SELECTIONS),
            }
            return posteriors.SWAG(pick([0, 2, 20]), pick([0.5, 0.0]), pick([None, 1.0]), **options)
        case "SGLD":
            options = {"storage": pick(["device", "cpu"]), "noise": pick(["gaussian", "lattice"])}
            return posteriors.SGLD(pick([None, 2.0]), pick([1.0, 0.1]), pick([30, 2]), **options)
        case "EntropyMCMC":
            options = {"storage": pick(["device", "cpu"]), "decay_anchor": pick([False, True])}
            return posteriors.EntropyMCMC(
                pick([0.1, 1.0]), pick([None, 2.0]), pick([1.0, 0.1]), pick([15, 2]), **options
            )
        case "SVGD":
            options = {"norm": pick(["euclidean", "rkhs"]), "initial_std": pick([None, 0.1])}
            return posteriors.SVGD(pick([2, 1]), pick([1.0, 10.0]), rho=pick([0.0, 0.1]), **options)
        case "TFB":
            return posteriors.TFB(pick(["auto", 0.01]), prior_precision=pick([None, 2.0]))
        case "BLoB":
            options = {"kl_lr": pick([None, 0.01]), "signs": pick(["tokens", "examples"])}
            return posteriors.BLoB(pick([0.2, 1.0]), pick([1.0, 0.1]), **options)
        case "SGHMC":
            return posteriors.SGHMC(pick([0.1, 1.0]), pick([None, 2.0]), pick([1.0, 0.1]), pick([30, 2]))
        case "SGVB":
            prior = pick([1.0, "initial", {"*bias": 2.0, "*": 0.5}])
            options = {"params": pick(SELECTIONS), "prior_mean": pick(["zero", "initial"])}
            return posteriors.SGVB(prior, pick([1.0, 0.1]), num_samples=pick([1, 2]), **options)
        case "BSAM":
            return posteriors.BSAM(
                pick([0.01, 0.0]), pick([None, 2.0]), pick([1.0, 0.1]), num_sub_batches=pick([1, 2])
            )
        case "IVON":
            options = {"num_samples": pick([1, 2]), "hessian_estimator": pick(["price", "gradsq"])}
            return posteriors.IVON(pick([None, 2.0]), pick([1.0, 0.1]), params=pick(SELECTIONS), **options)
        case "LRT":
            return posteriors.LRT(pick([1.0, "initial"]), estimator=pick(["local", "flipout"]))
        case "Laplace":
            tune = pick(["none", "evidence"])
            precision = None if tune == "evidence" else pick([None, 2.0])
            predictive = pick(["linearised", "sampled"])
            structure = pick(["last_layer", "last_layer_kron", "diag", "kron"])
            return posteriors.Laplace(structure, predictive, precision, tune)
        case "MCDropout":
            return posteriors.MCDropout(pick([None, 0.2]), pick([None, 1.0]))
    return posteriors.Ensemble(pick_posterior(pick, may_nest=False), 2)


def pick_flatness(pick: Pick, *, may_wrap: bool = True) -> Any:
    """A flatness with random valid options."""
    name = pick([*FLATNESS_NAMES, "Delayed", "Periodic"] if may_wrap else FLATNESS_NAMES)
    if name in ("SAM", "ASAM"):
        part = {"ascent_batch_fraction": pick([1.0, 0.5]), "params": pick(["all", *SELECTIONS[:-3], ["head.*"]])}
        steps = {"ascent_steps": pick([1, 2]), "resample_noise": pick([False, True])}
        return getattr(flatness, name)(pick([0.05, 0.0, 1.0]), **steps, **part)
    if name == "Delayed":
        inner, before = (pick_flatness(pick, may_wrap=False) for _ in range(2))
        return flatness.Delayed(inner, pick([0.5, 0.0]), before)
    if name == "Periodic":
        return flatness.Periodic(pick_flatness(pick, may_wrap=False), pick([2, 1]))
    options = {"LookSAM": {"period": pick([2, 1, 5])}, "PosteriorSAM": {"geometry": pick(["std", "mean_over_std"])}}
    return getattr(flatness, name)(**options.get(name, {}))


def make_compatible(flat: Any, posterior: Any) -> Any:
    """The flatness, or SAM with its first options where the posterior refuses it."""
    collection = TrainingConfig(collection=CollectionConfig(start_fraction=0.0))
    try:
        check_compatibility(posterior, flat, collection)
    except ValueError:
        return flatness.SAM()
    return flat


def pick_fit(pick: Pick) -> FitSpec:
    """A random fit of two to eight steps."""
    likelihood = pick(["classes", "classes", "number", "two_numbers", "weighted_classes"])
    num_outputs = {"number": 2, "two_numbers": 4}.get(likelihood, NUM_CLASSES)
    model = pick_model(pick, num_outputs)
    posterior, flat = pick_posterior(pick), pick_flatness(pick)
    rare = pick([0, 0, 0, 1, 2, 3, 4, 5])
    config = TrainingConfig(
        epochs=2,
        batch_size=4,
        optimizer=pick([make_sgd, make_sgd, None, make_adam, make_decayed_sgd]),
        schedule=Cyclical(2) if rare == 1 else TrainingConfig().schedule,
        collection=CollectionConfig(start_fraction=pick([0.0, 0.5])),
        precision=PrecisionConfig(
            mode=["32-true", "64-true", "bf16-mixed"][(0, 1, 2)[rare - 2] if rare in (3, 4) else 0]
        ),
        optimization=OptimizationConfig(
            clip_norm=1.0 if rare == 2 else None,
            accumulation_steps=2 if rare == 5 else 1,
        ),
    )
    spec = FitSpec(
        model=model,
        is_instance=pick([False, True]),
        posterior=posterior,
        flatness=flat,
        likelihood=likelihood,
        num_examples=pick([8, 9, 7, 6]),
        batch_size=4,
        data_dtype=pick(["match", "match", "match", "match", "match", "match", "match", "float32", "float64"]),
        config=config,
    )
    return make_valid(spec) if pick([True, True, True, True, False]) else spec


def make_valid(spec: FitSpec) -> FitSpec:
    """The fit without what the documentation rules out: options of the posterior, then what goes with it."""
    model = replace(spec.model, dtype="float32" if spec.model.parametrization == "orthogonal" else spec.model.dtype)
    posterior, flat, optimizer = spec.posterior, spec.flatness, spec.config.optimizer
    is_ensemble = isinstance(posterior, posteriors.Ensemble)
    member = posterior.member if is_ensemble else posterior
    has_only_kfac_layers = (
        model.inputs != "tokens"
        and model.parametrization == "none"
        and set(model.blocks) <= {"linear", "residual", "gated", "convolution"}
    )
    match member:
        case posteriors.SVGD():
            optimizer = pick_other(optimizer, make_decayed_sgd, make_sgd)
        case (
            posteriors.SGLD() | posteriors.SGHMC() | posteriors.EntropyMCMC() | posteriors.IVON() | posteriors.BSAM()
        ):
            optimizer = make_sgd if member.prior_precision is not None else pick_other(optimizer, make_adam, None)
            optimizer = make_weakly_decayed_sgd if optimizer is make_decayed_sgd else optimizer
        case posteriors.BLoB() if has_only_kfac_layers and model.sharing == "none":
            optimizer = pick_other(optimizer, make_decayed_sgd, make_sgd)
        case posteriors.BLoB():
            member = posteriors.SGVB()
        case posteriors.LRT() if not has_only_kfac_layers or model.sharing != "none":
            member = posteriors.SGVB(prior_precision=member.prior_precision)
        case posteriors.Laplace():
            is_supported = has_only_kfac_layers and model.sharing == "none" and model.unused == "nothing"
            structure = "diag" if member.structure == "kron" and not is_supported else member.structure
            member = replace(member, structure=structure)
            if member.prior_precision is None and member.tune == "none":
                optimizer = make_decayed_sgd
            model = replace(model, norm="none" if model.norm == "batch_no_statistics" else model.norm)
        case posteriors.MCDropout():
            model = replace(model, dropout="channels" if model.inputs == "image" else "dropout")
    if getattr(member, "params", "all") not in ("weights", "last_layer", "all"):
        member = replace(member, params="all")
    if isinstance(member, posteriors.SGVB) and isinstance(member.prior_precision, dict):
        member = replace(member, params="all")
    if getattr(member, "prior_precision", None) is not None and optimizer is make_decayed_sgd:
        optimizer = make_sgd
    if getattr(flat, "params", "all") in ("norms", "biases"):
        flat = replace(flat, params="all")
    if member.perturbs_weights:
        flat = flatness.Plain()
    posterior = posteriors.Ensemble(member, 2) if is_ensemble else member
    has_batch_norm = model.norm.startswith("batch")
    return replace(
        spec,
        model=model,
        posterior=posterior,
        flatness=make_compatible(flat, posterior),
        output=0 if model.output == "tuple" else None,
        config=spec.config.with_options(optimizer=optimizer),
        is_instance=spec.is_instance and not is_ensemble,
        data_dtype="match" if model.dtype == "mixed" else spec.data_dtype,
        num_examples=spec.num_examples if spec.num_examples != 9 or not has_batch_norm else 8,
    )


def pick_other(value: Any, unwanted: Any, other: Any) -> Any:
    """The value, or another in place of an unwanted one."""
    return other if value is unwanted else value


def make_sgd(params: Any) -> torch.optim.Optimizer:
    """SGD without momentum, which samplers take too."""
    return torch.optim.SGD(params, lr=0.01)


def make_adam(params: Any) -> torch.optim.Optimizer:
    """Adam."""
    return torch.optim.Adam(params, lr=0.01)


def make_decayed_sgd(params: Any) -> torch.optim.Optimizer:
    """SGD with momentum and weight decay, which is a prior."""
    return torch.optim.SGD(params, lr=0.01, momentum=0.9, weight_decay=0.1)


def make_weakly_decayed_sgd(params: Any) -> torch.optim.Optimizer:
    """SGD with weight decay and without momentum."""
    return torch.optim.SGD(params, lr=0.01, weight_decay=0.1)


@st.composite
def fit_specs(draw: st.DrawFn) -> FitSpec:
    """Strategy of random fits."""
    return pick_fit(lambda options: draw(st.sampled_from(list(options))))


def spec_from_seed(seed: int) -> FitSpec:
    """The random fit of a seed."""
    return pick_fit(random.Random(seed).choice)
