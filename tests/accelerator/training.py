"""Training on the pretend device: data, networks, posteriors, flatnesses, and the fit of a pair of them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
from lightning_fabric import Fabric
from lightning_fabric.accelerators import Accelerator
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.strategies import SingleDeviceStrategy
from torch import Tensor

from accelerator.pretend_device import DEVICE, NAME
from flatbayes import flatness, posteriors
from flatbayes.data import Augment, DataSplits, Split
from flatbayes.flatness import Flatness, LookSAM, Periodic
from flatbayes.likelihoods import Categorical, Likelihood
from flatbayes.models import MLP, PreResNet, ViT
from flatbayes.posteriors import Posterior
from flatbayes.prediction import FittedPosterior
from flatbayes.training import Callback, TrainingConfig, data, fit, setup
from flatbayes.training.compatibility import check_compatibility

BATCH_SIZE, NUM_CLASSES = 16, 10
NUM_WARMUP_STEPS, NUM_COLLECTION_STEPS = 2, 2
"""Steps before the measured ones, in which the optimizer makes its state; and after them, with a snapshot each."""

NETWORKS: dict[str, Any] = {
    "mlp": partial(MLP, hidden=(32, 32)),
    "preresnet20": partial(PreResNet, depth=20),
    "vit": partial(ViT, patch=8, dim=64, depth=4, heads=4),
}
FLATNESSES: dict[str, Flatness] = {
    "Plain": flatness.Plain(),
    "SAM": flatness.SAM(),
    "SAM, 2 ascent steps": flatness.SAM(ascent_steps=2),
    "SAM, half a batch": flatness.SAM(ascent_batch_fraction=0.5),
    "SAM, last layer": flatness.SAM(params="last_layer"),
    "ASAM": flatness.ASAM(),
    "FisherSAM": flatness.FisherSAM(),
    "LESAM": flatness.LESAM(),
    "MSAM": flatness.MSAM(),
    "LookSAM": flatness.LookSAM(),
    "FriendlySAM": flatness.FriendlySAM(),
    "VaSSO": flatness.VaSSO(),
    "WSAM": flatness.WSAM(),
    "GSAM": flatness.GSAM(),
    "StableSAM": flatness.StableSAM(),
    "MSharpness": flatness.MSharpness(num_sub_batches=2),
    "RandomPerturbation": flatness.RandomPerturbation(),
    "GaussianSmoothing": flatness.GaussianSmoothing(),
    "Periodic": flatness.Periodic(),
    "Delayed": flatness.Delayed(start=0.0),
    "PosteriorSAM": flatness.PosteriorSAM(),
}
POSTERIORS: dict[str, Posterior] = {
    "MAP": posteriors.MAP(),
    "MAP, prior": posteriors.MAP(prior_precision=1.0),
    "MCDropout": posteriors.MCDropout(),
    "SWAG": posteriors.SWAG(rank=4),
    "SGLD": posteriors.SGLD(),
    "SGLD, lattice": posteriors.SGLD(noise="lattice"),
    "EntropyMCMC": posteriors.EntropyMCMC(),
    "SVGD": posteriors.SVGD(num_particles=2),
    "SGHMC": posteriors.SGHMC(),
    "SGVB": posteriors.SGVB(),
    "SGVB, 2 samples": posteriors.SGVB(num_samples=2),
    "BSAM": posteriors.BSAM(num_sub_batches=2),
    "IVON": posteriors.IVON(),
    "IVON, 2 samples": posteriors.IVON(num_samples=2, params="last_layer"),
    "LRT": posteriors.LRT(),
    "LRT, flipout": posteriors.LRT(estimator="flipout"),
    "Laplace": posteriors.Laplace(prior_precision=1.0),
    "Laplace, kron": posteriors.Laplace("kron", prior_precision=1.0),
    "Ensemble": posteriors.Ensemble(size=2),
}


def count_measured_steps(flat: Flatness) -> int:
    """Number of steps whose mean cost is that of a step: a whole period if steps differ."""
    return flat.period if isinstance(flat, LookSAM | Periodic) else 1


def make_config(flat: Flatness, **options: Any) -> TrainingConfig:
    """One epoch of steps to warm up, measured steps, and steps with a snapshot."""
    num_steps = NUM_WARMUP_STEPS + count_measured_steps(flat) + NUM_COLLECTION_STEPS
    collection = {"start_fraction": 1 - NUM_COLLECTION_STEPS / num_steps, "snapshots_per_epoch": num_steps}
    config = TrainingConfig(epochs=1, batch_size=BATCH_SIZE, num_validations=0)
    return config.with_options(collection={**collection, "num_norm_batches": 2}, **options)


def list_pairs() -> dict[str, tuple[Posterior, Flatness]]:
    """Every posterior with every flatness, by `Posterior/Flatness`, without those that `fit` refuses."""
    pairs = {}
    for posterior, flat in product(POSTERIORS, FLATNESSES):
        try:
            check_compatibility(POSTERIORS[posterior], FLATNESSES[flat], make_config(FLATNESSES[flat]))
        except ValueError:
            continue
        pairs[f"{posterior}/{flat}"] = POSTERIORS[posterior], FLATNESSES[flat]
    return pairs


def choose_flatness(name: str) -> Flatness:
    """SAM, or Plain where SAM is refused."""
    return FLATNESSES["SAM" if f"{name}/SAM" in list_pairs() else "Plain"]


class PretendAccelerator(Accelerator):
    """The pretend device for Lightning Fabric."""

    def setup_device(self, device: torch.device) -> None:
        pass

    def teardown(self) -> None:
        pass

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [DEVICE]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return NAME


def make_pretend_fabric(config: TrainingConfig, **_: Any) -> Fabric:
    """Lightning Fabric on the pretend device, in the precision of a configuration."""
    mode = config.precision.mode
    strategy = SingleDeviceStrategy(device=DEVICE, accelerator=PretendAccelerator())
    if mode.endswith("mixed"):
        return Fabric(strategy=strategy, plugins=MixedPrecision(mode, NAME))
    return Fabric(strategy=strategy, precision=mode)


@contextmanager
def train_on_device(*, with_trial: bool) -> Iterator[None]:
    """Inside, `fit` trains on the pretend device, whose memory holds the training data.

    Args:
        with_trial: Whether `fit` takes its trial step before.
    """
    with ExitStack() as stack:
        stack.enter_context(patch.object(setup, "make_fabric", make_pretend_fabric))
        stack.enter_context(patch.object(data, "fits_on_device", lambda tensor, device: True))
        if not with_trial:
            stack.enter_context(patch("flatbayes.training.fit.run_trial", lambda factory, fabric: None))
        yield


def make_inputs(network: str, count: int) -> Tensor:
    """Features for an MLP, images for other networks."""
    generator = torch.Generator().manual_seed(0)
    if network == "mlp":
        return torch.randn(count, 16, generator=generator)
    return torch.randint(0, 255, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)


def make_splits(network: str, num_examples: int = BATCH_SIZE) -> DataSplits:
    """Features, or images with augmentation, in ten classes."""
    train = Split(inputs=make_inputs(network, num_examples), targets=torch.arange(num_examples) % NUM_CLASSES)
    few = Split(inputs=train.inputs[:BATCH_SIZE], targets=train.targets[:BATCH_SIZE])
    names = tuple("abcdefghij")
    augment = None if network == "mlp" else Augment(flip=True, pad=4, cutout=8)
    return DataSplits(train=train, val=few, test=few, class_names=names, feature_names=(), augment=augment)


def make_regression_splits(network: str, num_examples: int) -> DataSplits:
    """Features with one number as target."""
    inputs = make_inputs(network, num_examples)
    train = Split(inputs=inputs, targets=torch.linspace(-1, 1, num_examples, dtype=torch.float64))
    few = Split(inputs=inputs[:BATCH_SIZE], targets=train.targets[:BATCH_SIZE])
    return DataSplits(
        train=train, val=few, test=few, class_names=(), feature_names=(), augment=None, target_names=("y",)
    )


def fit_on_device(
    network: str,
    posterior: Posterior,
    flat: Flatness,
    *,
    callback: Callback | None = None,
    with_trial: bool = False,
    make_data: Callable[[str, int], DataSplits] | None = None,
    likelihood: Likelihood = Categorical(NUM_CLASSES),
    **options: Any,
) -> FittedPosterior:
    """Fit on the pretend device, inside of `pretend_device`.

    Args:
        network: One of `NETWORKS`.
        posterior: The posterior.
        flat: The flatness.
        callback: Called after every step.
        with_trial: Whether `fit` takes its trial step before.
        make_data: Makes the data from the name of the network and the number of examples; by default ten classes.
        likelihood: Distribution of the targets.
        options: Options of the training.
    """
    config = make_config(flat, **options)
    num_steps = config.collection.snapshots_per_epoch
    assert num_steps is not None
    build = NETWORKS[network]
    if isinstance(posterior, posteriors.MCDropout):
        build = partial(build, dropout=0.1)
    with train_on_device(with_trial=with_trial):
        return fit(
            build,
            (make_data or make_splits)(network, BATCH_SIZE * num_steps),
            posterior,
            flat,
            config,
            likelihood=likelihood,
            show_progress=False,
            callback=callback,
        )
