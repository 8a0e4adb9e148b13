"""Sharpness-aware Bayesian posteriors for any PyTorch model."""

from typing import NoReturn

from flatbayes.core import Closure, State, TrainingProgress
from flatbayes.core.renames import explain_name
from flatbayes.data import (
    CIFAR10,
    CIFAR100,
    UCI,
    DataSource,
    DataSplits,
    Diabetes,
    Digits,
    ImageFolder,
    ImageNet,
    ImageParquet,
    Npz,
    Split,
    Table,
    TinyImageNet,
    TorchDataset,
)
from flatbayes.distillation import distill
from flatbayes.experiments import Comparison
from flatbayes.flatness import (
    ASAM,
    LESAM,
    MSAM,
    SAM,
    Delayed,
    FisherSAM,
    Flatness,
    GaussianSmoothing,
    LookSAM,
    Periodic,
    Plain,
    PosteriorSAM,
    RandomPerturbation,
)
from flatbayes.likelihoods import (
    Categorical,
    CategoricalPredictive,
    Custom,
    Gaussian,
    GaussianPredictive,
    Likelihood,
    Predictive,
)
from flatbayes.models import MLP, VGG, ConvNet, DenseNet, PreResNet, ResNet, ViT, WideResNet
from flatbayes.posteriors import LRT, MAP, SGHMC, SGLD, SGVB, SWAG, Ensemble, Laplace, MCDropout, Posterior
from flatbayes.prediction import CompiledPosterior, FittedPosterior, evaluate, export_onnx, export_torch
from flatbayes.training import (
    Constant,
    Cosine,
    Cyclical,
    Interrupted,
    Polynomial,
    Schedule,
    SWALinear,
    TrainingConfig,
    fit,
)

__all__ = [
    "ASAM",
    "CIFAR10",
    "CIFAR100",
    "LESAM",
    "LRT",
    "MAP",
    "MLP",
    "MSAM",
    "SAM",
    "SGHMC",
    "SGLD",
    "SGVB",
    "SWAG",
    "UCI",
    "VGG",
    "Categorical",
    "CategoricalPredictive",
    "Closure",
    "Comparison",
    "CompiledPosterior",
    "Constant",
    "ConvNet",
    "Cosine",
    "Custom",
    "Cyclical",
    "DataSource",
    "DataSplits",
    "Delayed",
    "DenseNet",
    "Diabetes",
    "Digits",
    "Ensemble",
    "FisherSAM",
    "FittedPosterior",
    "Flatness",
    "Gaussian",
    "GaussianPredictive",
    "GaussianSmoothing",
    "ImageFolder",
    "ImageNet",
    "ImageParquet",
    "Interrupted",
    "Laplace",
    "Likelihood",
    "LookSAM",
    "MCDropout",
    "Npz",
    "Periodic",
    "Plain",
    "Polynomial",
    "Posterior",
    "PosteriorSAM",
    "PreResNet",
    "Predictive",
    "RandomPerturbation",
    "ResNet",
    "SWALinear",
    "Schedule",
    "Split",
    "State",
    "Table",
    "TinyImageNet",
    "TorchDataset",
    "TrainingConfig",
    "TrainingProgress",
    "ViT",
    "WideResNet",
    "distill",
    "evaluate",
    "export_onnx",
    "export_torch",
    "fit",
]


def __getattr__(name: str) -> NoReturn:
    reason = explain_name(name)
    if reason is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    raise ImportError(reason)  # an AttributeError would lose its message in `from flatbayes import ...`
