"""Time of a prediction with 30 draws relative to 30 forward passes, one by one and vectorized.

The baseline runs the model in eval mode, without gradients, on the same batches. The limit adds a normal random
number per weight and draw. A first call draws the networks, a repeated one has those that are kept. Statistics of
BatchNorm are cached, as in every call but the first.
"""

import itertools

import torch
from timing import ratio, row, threads
from torch import nn

from flatbayes.likelihoods import Categorical
from flatbayes.models import ConvNet, PreResNet
from flatbayes.posteriors import MAP, SWAG, Ensemble
from flatbayes.prediction import FittedPosterior

NUM_DRAWS, NUM_CLASSES = 30, 10


def mlp(width: int, num_classes: int = NUM_CLASSES) -> nn.Module:
    """A network of 64 inputs and two hidden layers."""
    layers = [nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, num_classes)]
    return nn.Sequential(*layers)


NETWORKS = {
    "MLP 64-256-256-10": (lambda: mlp(256), (64,)),
    "ConvNet, 8 x 8": (lambda: ConvNet((1, 8, 8), NUM_CLASSES), (1, 8, 8)),
    "ConvNet, 32 x 32": (lambda: ConvNet((3, 32, 32), NUM_CLASSES), (3, 32, 32)),
    "PreResNet-20, 32 x 32": (lambda: PreResNet((3, 32, 32), NUM_CLASSES, depth=20), (3, 32, 32)),
}


def fitted(make, shape: tuple[int, ...]) -> FittedPosterior:
    """SWAG of full rank around random weights."""
    posterior = SWAG()
    state = posterior.init(make(), None, 1000)
    for _ in range(posterior.rank + 1):
        with torch.no_grad():
            for param in state.model.parameters():
                param.add_(0.01 * torch.randn_like(param))
        posterior.collect(state)
    state.model.eval()
    return FittedPosterior(posterior, [state], Categorical(NUM_CLASSES), None, [torch.randn(64, *shape)])


def rows(quick: bool) -> list[dict]:
    """Every network with many examples and with one, on one and two threads."""
    torch.manual_seed(0)
    results = []
    for name, (make, shape) in NETWORKS.items():
        posterior, large = fitted(make, shape), "32 x 32" in name
        draws, rounds = (2, 2) if quick else (5 if large else NUM_DRAWS, 3 if large else 15)
        examples = (64,) if quick else (256,) if large else (1000, 10_000) if "MLP" in name else (1000,)
        for count in (1, 2):
            with threads(count):
                results += [r for n in examples for r in many(name, posterior, torch.randn(n, *shape), draws, rounds)]
                results += few(name, posterior, torch.randn(1, *shape), draws, rounds)
    return [*results, members(5 if quick else 61)]


def plain(posterior: FittedPosterior, batches, draws: int):
    """The forward passes alone."""
    network = posterior.states[0].model

    @torch.no_grad()
    def run():
        for _ in range(draws):
            torch.cat([network(batch) for batch in batches])

    return run


def many(name: str, posterior: FittedPosterior, inputs, draws: int, rounds: int) -> list[dict]:
    """Networks one by one: drawn and swapped in by a first call, and swapped in by a repeated one."""
    run, generator = plain(posterior, inputs.split(256), draws), torch.Generator().manual_seed(0)
    weights, seeds = len(posterior.states[0].statistics["mean"]), itertools.count(1)

    def noise():
        for _ in range(draws):
            torch.randn(weights, generator=generator)

    def again():
        posterior.predict(inputs, draws, vectorized=False)

    def first():
        seed = next(seeds)
        posterior.norm_statistics.update({(seed, 0, k): statistics for (_, _, k), statistics in cached})
        posterior.predict(inputs, draws, seed=seed, vectorized=False)
        for k in range(draws):
            posterior.norm_statistics.pop((seed, 0, k), None)

    again()
    cached = list(posterior.norm_statistics.items())

    limit = 1 + ratio(noise, run, rounds)
    case, note = f"{name}, {len(inputs)} examples", f"{draws} draws"
    return [
        row("prediction", case, first, run, rounds=rounds, limit=limit, target=1.6, note=note),
        row("prediction", f"{case}, again", again, run, rounds=rounds, limit=1.0, target=1.2, note=note),
    ]


def few(name: str, posterior: FittedPosterior, inputs, draws: int, rounds: int) -> list[dict]:
    """One example: all networks in one vectorized call, and one by one."""
    run = plain(posterior, [inputs], draws)
    return [
        row(
            "prediction",
            f"{name}, 1 example, {how}",
            lambda vectorized=vectorized: posterior.predict(inputs, draws, vectorized=vectorized),
            run,
            rounds=rounds,
            note=f"{draws} draws",
        )
        for how, vectorized in (("in turn", False), ("one call", True))
    ]


def members(rounds: int) -> dict:
    """One example and an ensemble of ten networks, relative to a loop over the networks."""
    posterior, inputs = Ensemble(MAP(), size=10), torch.randn(1, 64)
    states = [posterior.init(mlp(256).eval(), None, 1000) for _ in range(10)]
    ensemble = FittedPosterior(posterior, states, Categorical(NUM_CLASSES))

    @torch.no_grad()
    def loop():
        return torch.stack([state.model(inputs).softmax(-1) for state in states]).mean(0)

    return row(
        "prediction",
        "MLP 64-256-256-10, 1 example, 10 members",
        lambda: ensemble.predict(inputs, 10),
        loop,
        rounds=rounds,
        target=1.1,
        note="relative to a loop over the networks",
    )
