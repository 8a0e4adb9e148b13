"""Training on the pretend device: data, networks, methods, and the counts of a step."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
from lightning_fabric import Fabric
from lightning_fabric.accelerators import Accelerator
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.strategies import SingleDeviceStrategy

from accelerator.pretend_device import NAME, PretendDevice, pretend_device
from flatbayes import flatness, posteriors
from flatbayes.data import Augment, DataSplits, Split
from flatbayes.flatness import Flatness
from flatbayes.likelihoods import Categorical
from flatbayes.models import MLP, PreResNet, ViT
from flatbayes.posteriors import Posterior
from flatbayes.prediction import FittedPosterior
from flatbayes.training import Callback, TrainingConfig, data, fit, setup
from support import explain_refusal

BATCH_SIZE, NUM_CLASSES, STEPS_PER_EPOCH = 16, 10, 12
MEASURED_STEPS = range(2, 12)
"""Steps whose mean is taken: after the first ones, which make the state of the optimizer, and two cycles of five."""

CONFIG = TrainingConfig(epochs=1, batch_size=BATCH_SIZE, num_validations=0).with_options(
    **{"collection.start_fraction": 0.8, "collection.snapshots_per_epoch": STEPS_PER_EPOCH}
)

NETWORKS: dict[str, Any] = {
    "mlp": partial(MLP, hidden=(32, 32)),
    "preresnet20": partial(PreResNet, depth=20),
    "vit": partial(ViT, patch=8, dim=64, depth=4, heads=4),
}
FLATNESSES: dict[str, Flatness] = {
    "Plain": flatness.Plain(),
    "SAM": flatness.SAM(),
    "SAM of two steps": flatness.SAM(ascent_steps=2),
    "SAM on half a batch": flatness.SAM(ascent_batch_fraction=0.5),
    "ASAM": flatness.ASAM(),
    "FisherSAM": flatness.FisherSAM(),
    "LESAM": flatness.LESAM(),
    "MSAM": flatness.MSAM(),
    "LookSAM": flatness.LookSAM(),
    "RandomPerturbation": flatness.RandomPerturbation(),
    "GaussianSmoothing": flatness.GaussianSmoothing(),
    "Periodic": flatness.Periodic(),
    "Delayed": flatness.Delayed(start=0.0),
    "PosteriorSAM": flatness.PosteriorSAM(),
}
POSTERIORS: dict[str, Posterior] = {
    "MAP": posteriors.MAP(),
    "MAP with a prior": posteriors.MAP(prior_precision=1.0),
    "MCDropout": posteriors.MCDropout(),
    "SWAG": posteriors.SWAG(rank=4),
    "SGLD": posteriors.SGLD(),
    "SGHMC": posteriors.SGHMC(),
    "SGVB": posteriors.SGVB(),
    "SGVB of two samples": posteriors.SGVB(num_samples=2),
    "LRT": posteriors.LRT(),
    "LRT with flipout": posteriors.LRT(estimator="flipout"),
    "Laplace": posteriors.Laplace(prior_precision=1.0),
    "Ensemble": posteriors.Ensemble(size=2),
}


def list_pairs() -> dict[str, tuple[Posterior, Flatness]]:
    """Every posterior with every flatness, by `Posterior/Flatness`, without those that are refused."""
    pairs = {f"{p}/{f}": (POSTERIORS[p], FLATNESSES[f]) for p, f in product(POSTERIORS, FLATNESSES)}
    return {name: pair for name, pair in pairs.items() if explain_refusal(*pair, CONFIG) is None}


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
        return [torch.device(NAME, 0)]

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
    strategy = SingleDeviceStrategy(device=torch.device(NAME, 0), accelerator=PretendAccelerator())
    if mode.endswith("mixed"):
        return Fabric(strategy=strategy, plugins=MixedPrecision(mode, NAME))  # type: ignore[arg-type]
    return Fabric(strategy=strategy, precision=mode)


@contextmanager
def train_on_device() -> Iterator[None]:
    """Inside, `fit` trains on the pretend device, and data fit in its memory."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(setup, "make_fabric", make_pretend_fabric))
        stack.enter_context(patch.object(data, "fits_on_device", lambda tensor, device: True))
        yield


@dataclass
class StepCounter(Callback):
    """Keeps the counts of the device after every step.

    Attributes:
        device: The device.
        launches: Launches so far by place, after each step.
        waits: Waits so far by place, after each step.
    """

    device: PretendDevice
    launches: list[Counter[str]] = field(default_factory=list)
    waits: list[Counter[str]] = field(default_factory=list)

    def on_step_end(self, step: int, loss: Any, lr: float) -> None:
        """Keep the counts."""
        self.launches.append(self.device.launches.copy())
        self.waits.append(self.device.waits.copy())


@dataclass(frozen=True)
class StepCost:
    """Launches and waits of a training step by place, in the mean over `MEASURED_STEPS`."""

    launches: dict[str, float]
    waits: dict[str, float]

    @property
    def num_launches(self) -> float:
        """Launches of a step."""
        return sum(self.launches.values())

    @property
    def num_waits(self) -> float:
        """Waits of a step."""
        return sum(self.waits.values())


def make_splits(network: str) -> DataSplits:
    """Features for an MLP; images with augmentation for others."""
    num_examples = BATCH_SIZE * STEPS_PER_EPOCH
    targets = torch.arange(num_examples) % NUM_CLASSES
    generator = torch.Generator().manual_seed(0)
    if network == "mlp":
        inputs, augment = torch.randn(num_examples, 16, generator=generator), None
    else:
        shape = (num_examples, 3, 32, 32)
        inputs = torch.randint(0, 255, shape, generator=generator, dtype=torch.uint8)
        augment = Augment(flip=True, pad=4, cutout=8)
    few = Split(inputs=inputs[:BATCH_SIZE], targets=targets[:BATCH_SIZE])
    return DataSplits(
        train=Split(inputs=inputs, targets=targets),
        val=few,
        test=few,
        class_names=tuple("abcdefghij"),
        feature_names=(),
        augment=augment,
    )


def measure_step(network: str, posterior: Posterior, flat: Flatness, **options: Any) -> StepCost:
    """Launches and waits of a training step.

    Args:
        network: One of `NETWORKS`.
        posterior: The posterior.
        flat: The flatness.
        options: Options of the training.
    """
    with pretend_device() as device:
        counter = StepCounter(device)
        fit_on_device(network, posterior, flat, counter, **options)
    first, last = MEASURED_STEPS.start - 1, MEASURED_STEPS.stop - 1
    return StepCost(
        *(
            {place: count / len(MEASURED_STEPS) for place, count in (counts[last] - counts[first]).items()}
            for counts in (counter.launches, counter.waits)
        )
    )


def fit_on_device(
    network: str, posterior: Posterior, flat: Flatness, callback: Callback | None = None, **options: Any
) -> FittedPosterior:
    """Fit on the pretend device, inside of `pretend_device`."""
    has_dropout = isinstance(posterior, posteriors.MCDropout)
    with train_on_device():
        return fit(
            partial(NETWORKS[network], dropout=0.1) if has_dropout else NETWORKS[network],
            make_splits(network),
            posterior,
            flat,
            CONFIG.with_options(**options),
            likelihood=Categorical(NUM_CLASSES),
            show_progress=False,
            callback=callback,
        )
