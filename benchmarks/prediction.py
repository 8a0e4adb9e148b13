"""What a prediction with 30 draws costs in 30 plain forward passes, and what one call for all networks saves.

The baseline runs the model in eval mode, without gradients, on the same batches. The limit adds what no draw can do
without: a normal number for each weight. Statistics of BatchNorm are in the cache, as in every call but the first.
"""

import torch
from timing import ratio, row, threads
from torch import nn

from flatbayes.likelihoods import Categorical
from flatbayes.models import ConvNet, PreResNet
from flatbayes.posteriors import SWAG
from flatbayes.prediction import FittedPosterior

DRAWS, CLASSES = 30, 10


def mlp(width: int) -> nn.Module:
    """64 numbers, two hidden layers."""
    layers = [nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES)]
    return nn.Sequential(*layers)


NETWORKS = {
    "MLP 64-256-256-10": (lambda: mlp(256), (64,)),
    "ConvNet, 8 x 8": (lambda: ConvNet((1, 8, 8), CLASSES), (1, 8, 8)),
    "ConvNet, 32 x 32": (lambda: ConvNet((3, 32, 32), CLASSES), (3, 32, 32)),
    "PreResNet-20, 32 x 32": (lambda: PreResNet((3, 32, 32), CLASSES, depth=20), (3, 32, 32)),
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
    return FittedPosterior(posterior, [state], Categorical(CLASSES), None, [torch.randn(64, *shape)])


def rows(quick: bool) -> list[dict]:
    """Every network with many examples, and the small ones with few, with one thread and two."""
    torch.manual_seed(0)
    found = []
    for name, (make, shape) in NETWORKS.items():
        posterior, large = fitted(make, shape), "32 x 32" in name
        draws, rounds = (2, 2) if quick else (5 if large else DRAWS, 3 if large else 15)
        examples = (64,) if quick else (256,) if large else (1000, 10_000) if "MLP" in name else (1000,)
        for count in (1, 2):
            with threads(count):
                found += [many(name, posterior, torch.randn(n, *shape), draws, rounds) for n in examples]
                found += few(name, posterior, torch.randn(1, *shape), draws, rounds)
    return found


def plain(posterior: FittedPosterior, batches, draws: int):
    """Forward passes alone."""
    network = posterior.states[0].model

    @torch.no_grad()
    def run():
        for _ in range(draws):
            torch.cat([network(batch) for batch in batches])

    return run


def many(name: str, posterior: FittedPosterior, inputs, draws: int, rounds: int) -> dict:
    """A network after the other, each drawn, installed and taken out again."""
    run, generator = plain(posterior, inputs.split(256), draws), torch.Generator().manual_seed(0)
    weights = len(posterior.states[0].statistics["mean"])

    def noise():
        for _ in range(draws):
            torch.randn(weights, generator=generator)

    limit = 1 + ratio(noise, run, rounds)
    return row(
        "prediction",
        f"{name}, {len(inputs)} examples",
        lambda: posterior.predict(inputs, draws, vectorized=False),
        run,
        rounds=rounds,
        limit=limit,
        target=1.03,
        note=f"{draws} draws",
    )


def few(name: str, posterior: FittedPosterior, inputs, draws: int, rounds: int) -> list[dict]:
    """One example: all networks in one call against one call for each."""
    run = plain(posterior, [inputs], draws)
    return [
        row(
            "prediction",
            f"{name}, 1 example, {how}",
            lambda batched=batched: posterior.predict(inputs, draws, vectorized=batched),
            run,
            rounds=rounds,
            note=f"{draws} draws",
        )
        for how, batched in (("in turn", False), ("one call", True))
    ]
