"""Sharpness-aware Bayesian posteriors for any PyTorch model."""

from typing import TYPE_CHECKING

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
    "Arrays",
    "Categorical",
    "CategoricalPredictive",
    "Closure",
    "Comparison",
    "ComparisonResult",
    "CompiledPosterior",
    "ConformalPosterior",
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
    "TuningResult",
    "ViT",
    "WideResNet",
    "compare",
    "conformalize",
    "distill",
    "evaluate",
    "export_onnx",
    "export_torch",
    "fit",
    "tune",
]

if TYPE_CHECKING:
    from flatbayes.core import Closure, State, TrainingProgress
    from flatbayes.data import (
        CIFAR10,
        CIFAR100,
        UCI,
        Arrays,
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
    from flatbayes.distillation.distill import distill
    from flatbayes.experiments import Comparison, ComparisonResult, TuningResult, compare, tune
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
    from flatbayes.prediction import (
        CompiledPosterior,
        ConformalPosterior,
        FittedPosterior,
        conformalize,
        evaluate,
        export_onnx,
        export_torch,
    )
    from flatbayes.training import (
        Constant,
        Cosine,
        Cyclical,
        Interrupted,
        Polynomial,
        Schedule,
        SWALinear,
        TrainingConfig,
    )
    from flatbayes.training.fit import fit
else:
    from flatbayes.core.lazy import export_lazily

    __getattr__, __dir__ = export_lazily(
        __name__,
        {
            "flatbayes.core": "Closure State TrainingProgress",
            "flatbayes.data": "Arrays CIFAR10 CIFAR100 DataSource DataSplits Diabetes Digits ImageFolder ImageNet "
            "ImageParquet Npz Split Table TinyImageNet TorchDataset UCI",
            "flatbayes.distillation.distill": "distill",
            "flatbayes.experiments": "Comparison ComparisonResult TuningResult compare tune",
            "flatbayes.flatness": "ASAM Delayed FisherSAM Flatness GaussianSmoothing LESAM LookSAM MSAM Periodic "
            "Plain PosteriorSAM RandomPerturbation SAM",
            "flatbayes.likelihoods": "Categorical CategoricalPredictive Custom Gaussian GaussianPredictive "
            "Likelihood Predictive",
            "flatbayes.models": "ConvNet DenseNet MLP PreResNet ResNet VGG ViT WideResNet",
            "flatbayes.posteriors": "Ensemble LRT Laplace MAP MCDropout Posterior SGHMC SGLD SGVB SWAG",
            "flatbayes.prediction": "CompiledPosterior ConformalPosterior FittedPosterior conformalize evaluate "
            "export_onnx export_torch",
            "flatbayes.training": "Constant Cosine Cyclical Interrupted Polynomial SWALinear Schedule TrainingConfig",
            "flatbayes.training.fit": "fit",
        },
        "calibration certification cli core data diagnostics distillation estimators experiments flatness "
        "integrations likelihoods metrics models plotting posteriors prediction reporting theory training",
    )
