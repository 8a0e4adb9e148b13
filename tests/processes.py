"""What is run in several processes at once, and in one, to compare: trainings that each take a moment.

As a program it is one of the processes: `python processes.py FOLDER`, in the environment that torchrun makes, writes
what came of every case to a file of its own, and ends in an error on purpose.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from flatbayes.core.process_group import RemoteProcessError, get_process_group_info
from flatbayes.data import Augment, DataSplits, Split
from flatbayes.flatness import ASAM, MSAM, SAM, GaussianSmoothing, LookSAM, MSharpness, Plain
from flatbayes.likelihoods import Categorical
from flatbayes.posteriors import (
    BSAM,
    IVON,
    LRT,
    MAP,
    SGHMC,
    SGLD,
    SGVB,
    SVGD,
    SWAG,
    BLoB,
    Ensemble,
    EntropyMCMC,
    Laplace,
    MCDropout,
)
from flatbayes.prediction.distributed import predict_distributed
from flatbayes.training import (
    Callback,
    Checkpoints,
    CollectionConfig,
    DistributionConfig,
    PrecisionConfig,
    TrainingConfig,
    fit,
)
from flatbayes.training.distributed import fsdp
from flatbayes.training.distributed.gradient_averaging import all_reduce_gradients

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-3)
CONFIG = TrainingConfig(
    epochs=2,
    batch_size=16,
    optimizer=SGD,
    collection=CollectionConfig(start_fraction=0.0),
    num_validations=2,
    precision=PrecisionConfig(mode="64-true"),
    distribution=DistributionConfig(accelerator="cpu"),
)
SLOW_SGD = replace(CONFIG, optimizer=partial(torch.optim.SGD, lr=0.05))
ADAM = replace(CONFIG, optimizer=partial(torch.optim.Adam, lr=0.01))
STILL = replace(CONFIG, optimizer=partial(torch.optim.SGD, lr=0.0))

SHARDED = CONFIG.with_options(
    distribution={"strategy": "fsdp", "ascent_scope": "synchronised"}, optimization={"clip_norm": 1.0}
)
SHARDED_ADAM = ADAM.with_options(distribution={"strategy": "fsdp", "ascent_scope": "synchronised"})


def data(augment: bool = True) -> DataSplits:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(70) % 3
    inputs = 100 + 20 * torch.randn(70, 2, 4, 4, generator=generator) + 30 * targets.view(-1, 1, 1, 1)
    part = Split(inputs=inputs.clamp(0, 255).byte(), targets=targets)
    return DataSplits(
        train=part,
        val=part.take(torch.arange(33)),
        test=part.take(torch.arange(17)),
        class_names=("a", "b", "c"),
        feature_names=(),
        augment=Augment(flip=True, pad=1) if augment else None,
    )


def smooth() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 3))


def normalised() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def dropping() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))


class PartlyUnused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network, self.unused = smooth(), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


SAME = {
    "plain": (smooth, MAP(), Plain(), CONFIG),
    "synchronised": (smooth, MAP(), SAM(rho=0.5), CONFIG.with_options(distribution={"ascent_scope": "synchronised"})),
    "three ascents": (
        smooth,
        MAP(),
        SAM(rho=0.5, ascent_steps=3),
        CONFIG.with_options(distribution={"ascent_scope": "synchronised"}),
    ),
    "part": (
        smooth,
        MAP(),
        SAM(rho=0.5, ascent_batch_fraction=0.5),
        CONFIG.with_options(distribution={"ascent_scope": "synchronised"}),
    ),
    "one layer": (
        smooth,
        MAP(),
        SAM(rho=0.5, params="last_layer"),
        CONFIG.with_options(distribution={"ascent_scope": "synchronised"}),
    ),
    "unequal": (
        smooth,
        MAP(),
        SAM(rho=0.5),
        CONFIG.with_options(distribution={"ascent_scope": "synchronised"}, batch_size=15),
    ),
    "accumulated": (
        smooth,
        MAP(),
        SAM(rho=0.5),
        CONFIG.with_options(distribution={"ascent_scope": "synchronised"}, optimization={"accumulation_steps": 3}),
    ),
    "clipped": (
        smooth,
        MAP(),
        ASAM(rho=0.5),
        CONFIG.with_options(distribution={"ascent_scope": "synchronised"}, optimization={"clip_norm": 0.1}),
    ),
    "momentum": (smooth, MAP(), MSAM(rho=0.5), CONFIG.with_options(distribution={"ascent_scope": "synchronised"})),
    "smoothing": (smooth, MAP(), GaussianSmoothing(std=0.05), CONFIG),
    "m-sharpness": (
        smooth,
        MAP(),
        MSharpness(Plain()),
        CONFIG.with_options(distribution={"ascent_scope": "synchronised"}, batch_size=15),
    ),
    "swag": (smooth, SWAG(rank=3), Plain(), CONFIG),
    "flat swag": (
        smooth,
        SWAG(rank=3),
        SAM(rho=0.5),
        CONFIG.with_options(distribution={"ascent_scope": "synchronised"}),
    ),
    "sgvb": (smooth, SGVB(num_samples=2), Plain(), ADAM),
    "flat sgvb": (
        smooth,
        SGVB(),
        SAM(rho=0.5),
        ADAM.with_options(distribution={"ascent_scope": "synchronised"}, batch_size=15),
    ),
    "flat ivon": (
        smooth,
        IVON(prior_precision=1.0, beta2=0.9),
        SAM(rho=0.5),
        SLOW_SGD.with_options(distribution={"ascent_scope": "synchronised"}),
    ),
    "sgld": (smooth, SGLD(prior_precision=1.0), Plain(), SLOW_SGD),
    "sghmc": (smooth, SGHMC(prior_precision=1.0), Plain(), replace(SLOW_SGD, batch_size=15)),
    "flat lattice": (
        smooth,
        SGLD(prior_precision=1.0, noise="lattice"),
        SAM(rho=0.5),
        SLOW_SGD.with_options(distribution={"ascent_scope": "synchronised"}, batch_size=15),
    ),
    "flat entropy": (
        smooth,
        EntropyMCMC(prior_precision=1.0, coupling=0.1),
        SAM(rho=0.5),
        SLOW_SGD.with_options(distribution={"ascent_scope": "synchronised"}),
    ),
    "flat svgd": (
        smooth,
        SVGD(num_particles=2),
        SAM(rho=0.5),
        ADAM.with_options(distribution={"ascent_scope": "synchronised"}, batch_size=15),
    ),
    "particles together": (smooth, SVGD(num_particles=2, rho=0.5), Plain(), ADAM),
    "bsam": (smooth, BSAM(prior_precision=1.0, num_sub_batches=1), Plain(), SLOW_SGD),
    "unused": (PartlyUnused, SGLD(prior_precision=1.0), Plain(), SLOW_SGD),
    "sharded": (smooth, MAP(), SAM(rho=0.5), SHARDED),
    "sharded swag": (
        smooth,
        SWAG(rank=3),
        SAM(rho=0.5),
        SHARDED.with_options(optimization={"accumulation_steps": 2}),
    ),
    "sharded adam": (smooth, Ensemble(SWAG(prior_precision=1.0), size=2), ASAM(rho=0.5), SHARDED_ADAM),
    "ensemble": (smooth, Ensemble(size=2), Plain(), CONFIG),
}
"""One process and several give the same, up to rounding."""

OTHER = {
    "local": (smooth, MAP(), SAM(rho=0.5), CONFIG),
    "local unequal": (smooth, MAP(), SAM(rho=0.5), replace(CONFIG, batch_size=15)),
    "look": (smooth, MAP(), LookSAM(rho=0.5, period=3), CONFIG),
    "local swag": (normalised, SWAG(rank=3), SAM(rho=0.5), CONFIG),
    "local sgvb": (dropping, SGVB(), SAM(rho=0.5), replace(ADAM, batch_size=15)),
    "local sgld": (dropping, SGLD(prior_precision=1.0), SAM(rho=0.5), replace(SLOW_SGD, batch_size=15)),
    "dropout": (dropping, MCDropout(), SAM(rho=0.5, resample_noise=True), CONFIG),
    "local entropy": (dropping, EntropyMCMC(prior_precision=1.0, coupling=0.1), SAM(rho=0.5), SLOW_SGD),
    "local svgd": (dropping, SVGD(num_particles=2), SAM(rho=0.5), ADAM),
    "sub-batches": (smooth, BSAM(prior_precision=1.0, num_sub_batches=2), Plain(), SLOW_SGD),
    "unequal sub-batches": (smooth, BSAM(prior_precision=1.0), Plain(), replace(SLOW_SGD, batch_size=15)),
    "lrt": (smooth, LRT(), SAM(rho=0.5), ADAM),
    "blob": (smooth, BLoB(), SAM(rho=0.5), ADAM),
    "flipout": (
        smooth,
        LRT(estimator="flipout"),
        SAM(rho=0.5),
        ADAM.with_options(distribution={"ascent_scope": "synchronised"}),
    ),
    "single precision": (normalised, SWAG(rank=3), SAM(rho=0.5), CONFIG.with_options(precision={"mode": "32-true"})),
    "bf16": (smooth, MAP(), SAM(rho=0.5), CONFIG.with_options(precision={"mode": "bf16-mixed"})),
    "sharded norms": (normalised, SWAG(rank=2), SAM(rho=0.5), SHARDED),
    "laplace": (smooth, Laplace(prior_precision=1.0), Plain(), SLOW_SGD),
    "still": (normalised, MAP(), Plain(), STILL),
}
"""They do not, and the processes agree all the same."""

CASES = SAME | OTHER


class Seen(Callback):
    """A watch that keeps the losses."""

    def __init__(self) -> None:
        self.losses, self.validation = [], []

    def on_step_end(self, step, loss, lr) -> None:
        self.losses.append(float(loss))

    def on_epoch_end(self, record) -> None:
        self.validation.append([record["val_nll"], record["val_accuracy"]])


def found(name: str) -> dict[str, Tensor]:
    """What comes of a case, in this process."""
    model, posterior, flatness, config = CASES[name]
    if get_process_group_info().size == 1:
        config = config.with_options(distribution={"strategy": "ddp"})
    watch = Seen()
    augment = not name.startswith("local")
    fitted = fit(model, data(augment), posterior, flatness, config, seed=3, show_progress=False, callback=watch)
    tensors = {"losses": torch.tensor(watch.losses), "validation": torch.tensor(watch.validation)}
    for k, state in enumerate(fitted.states):
        tensors |= {f"{k}.{key}": value for key, value in state.model.state_dict().items()}
        tensors |= {f"{k}.statistics.{key}": value for key, value in state.statistics.items()}
    predictive = predict_distributed(fitted, data().test.inputs, 2, keep_members=True)
    tensors["predictions"] = predictive.member_probs
    return {key: value.detach().clone() for key, value in tensors.items()}


def loader(unlike: int = 0) -> dict[str, Tensor]:
    """Training on a loader, the network and the order of which are other ones in every process."""
    torch.manual_seed(get_process_group_info().rank + unlike)
    part = data().train
    examples = TensorDataset(part.inputs.float() / 50, part.targets)
    fitted = fit(
        normalised(),
        DataLoader(examples, batch_size=8, shuffle=True),
        SWAG(rank=2),
        SAM(),
        CONFIG.with_options(precision={"mode": "32-true"}),
        likelihood=Categorical(3),
        show_progress=False,
    )
    (state,) = fitted.states
    tensors = {**state.model.state_dict(), **state.statistics}
    return tensors | {f"input {k}": value for k, value in enumerate(fitted.statistics_inputs)}


def own_loop() -> dict[str, Tensor]:
    """A loop of one's own on several processes: torch wraps the network, and a flatness is one line."""
    world = get_process_group_info()
    torch.manual_seed(3)
    network = smooth().double()
    wrapped = nn.parallel.DistributedDataParallel(network) if world.size > 1 else network
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
    inputs, targets = data().train.inputs.double() / 50, data().train.targets
    for place in torch.arange(64).split(16):
        own = place[world.rank :: world.size]

        def closure(own: Tensor = own) -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(wrapped(inputs[own]), targets[own])
            loss.backward()
            return loss.detach()

        SAM(rho=0.5)(closure, wrapped)()
        optimizer.step()
    return network.state_dict()


def averaged() -> dict[str, Tensor]:
    """Gradients that some processes have and others do not."""
    world = get_process_group_info()
    params = [nn.Parameter(torch.zeros(3)) for _ in range(3)]
    params[0].grad = torch.full((3,), float(world.rank + 1))
    if world.rank == 1:
        params[1].grad = torch.full((3,), 5.0)
    loss = all_reduce_gradients(torch.tensor(float(world.rank)), params, 1 + world.rank)
    return {"loss": loss, **{str(k): p.grad for k, p in enumerate(params) if p.grad is not None}}


STOPS = {"at": -1, "passes": 0}


def stop(module: nn.Module, _) -> None:
    STOPS["passes"] += module.training
    if STOPS["passes"] == STOPS["at"]:
        raise RuntimeError("stopped on purpose")


def stoppable() -> nn.Module:
    model = nn.Sequential(normalised(), nn.Dropout(0.2))
    model.register_forward_pre_hook(stop)
    return model


def resumed(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A training, and the same that was stopped within an epoch and has gone on."""
    ends = []
    for name, stops in (("whole", [-1]), ("stopped", [7, -1])):
        for at in stops:
            STOPS.update(at=at, passes=0)
            try:
                fitted = fit(
                    stoppable,
                    data(),
                    SWAG(rank=2),
                    MSAM(rho=0.5),
                    CONFIG,
                    show_progress=False,
                    checkpoints=Checkpoints(folder / name, every_n_steps=3, min_interval_seconds=0),
                )
            except RuntimeError as error:
                if "stopped on purpose" not in str(error):
                    raise
        assert STOPS["passes"] == (8 if name == "whole" else 2)
        (state,) = fitted.states
        ends.append({**state.model.state_dict(), **state.statistics})
    return ends[0], ends[1]


def refusing() -> None:
    raise ValueError("the folder is taken")


def breaks(model: nn.Module) -> nn.Module:
    """Fails in a later step of one process only."""
    passes = iter(range(1000))

    def fail(*_) -> None:
        if next(passes) == 5 and get_process_group_info().rank == 1:
            raise RuntimeError("broken on purpose")

    model.register_forward_pre_hook(fail)
    return model


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    fsdp.MIN_SHARD_PARAMETERS = 50  # or these networks would be sent whole
    results = {name: found(name) for name in CASES} | {
        "loader": loader(),
        "averaged": averaged(),
        "own loop": own_loop(),
    }
    results["whole"], results["resumed"] = resumed(folder)
    world = get_process_group_info()
    try:
        results["done"] = world.run_on_main(refusing)
    except RemoteProcessError as error:
        results["refused"] = f"elsewhere: {error}"
    except ValueError as error:
        results["refused"] = str(error)
    try:
        fit(
            smooth,
            data(),
            Ensemble(size=2),
            Plain(),
            CONFIG.with_options(distribution={"members": "vectorized"}),
            show_progress=False,
        )
    except ValueError as error:
        results["together"] = str(error)
    results["gathered"] = world.all_gather({"rank": world.rank})
    torch.save(results, folder / f"{world.rank}.pt")
    fit(breaks(smooth()), data(), MAP(), SAM(), CONFIG, show_progress=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
