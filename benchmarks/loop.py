"""What our training loop costs beside one written by hand for the same steps on the same batches.

The hand-written loop holds the standardised data in memory, cuts a permutation into batches, and does what every
tutorial does: forward, loss, backward, step, and a learning rate set by hand.
"""

import math
from functools import partial

import torch
from timing import row, threads
from torch.nn import functional as F

from flatbayes import MAP, MLP, SAM, Categorical, Plain, PreResNet, TrainingConfig, fit
from flatbayes.data import DataSplits, Split

OPTIMIZER = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
CASES = {
    "MLP 64-256-256-10, batch 64": (partial(MLP, hidden=(256, 256)), (64,), 64 * 60, 1.10),
    "PreResNet-20, batch 64": (partial(PreResNet, depth=20), (3, 32, 32), 64 * 3, 1.03),
}


def data(shape: tuple[int, ...], size: int) -> DataSplits:
    """Noise, in one epoch's worth of batches."""
    generator = torch.Generator().manual_seed(0)
    part = Split(inputs=torch.randn(size, *shape, generator=generator), targets=torch.arange(size) % 10)
    few = part.take(torch.arange(10))
    names = tuple(map(str, range(10)))
    return DataSplits(train=part, val=few, test=few, class_names=names, feature_names=(), augment=None)


def by_hand(make, dataset: DataSplits, recipe: TrainingConfig, flatness):
    """The loop of a tutorial; with SAM, in its usual two calls."""
    inputs, targets = dataset.train.inputs, dataset.train.targets
    inputs = (inputs - inputs.mean(0)) / inputs.std(0)

    def work():
        model = make(input_shape=dataset.input_shape, num_classes=10).train()
        optimizer = OPTIMIZER(model.parameters())
        total = recipe.epochs * len(inputs) // recipe.batch_size
        step = 0
        for _ in range(recipe.epochs):
            for chosen in torch.randperm(len(inputs)).split(recipe.batch_size):
                optimizer.param_groups[0]["lr"] = 0.01 * (1 + math.cos(math.pi * step / total)) / 2
                x, y = inputs[chosen], targets[chosen]

                def closure(x=x, y=y):
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()
                    return loss.detach()

                flatness(closure, model)()
                optimizer.step()
                step += 1

    return work


def rows(quick: bool) -> list[dict]:
    """Plain and sharp training, both sides starting from nothing."""
    found = []
    for case, (make, shape, size, target) in list(CASES.items())[: 1 if quick else None]:
        dataset = data(shape, size)
        recipe = TrainingConfig(epochs=2 if quick else 4, batch_size=64, num_validations=0, optimizer=OPTIMIZER)
        for flatness in (Plain(), SAM()):
            for count in (1,) if quick else (1, 2):
                with threads(count):
                    found.append(
                        row(
                            "loop",
                            f"{type(flatness).__name__}, {case}",
                            lambda make=make, dataset=dataset, recipe=recipe, flatness=flatness: fit(
                                make,
                                dataset,
                                MAP(),
                                flatness,
                                recipe,
                                likelihood=Categorical(10),
                                show_progress=False,
                            ),
                            by_hand(make, dataset, recipe, flatness),
                            rounds=3 if quick else 9,
                            limit=1.0,
                            target=target,
                            note="in loops by hand; both build the network",
                        )
                    )
    return found
