"""Time of `fit` relative to a loop written by hand, for the same steps on the same batches.

The hand-written loop keeps the standardised data in memory, splits a permutation into batches, and is that of a
tutorial: forward, loss, backward, step, and a learning rate set directly.
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


def make_data(shape: tuple[int, ...], size: int) -> DataSplits:
    """Noise in the batches of one epoch."""
    generator = torch.Generator().manual_seed(0)
    train = Split(inputs=torch.randn(size, *shape, generator=generator), targets=torch.arange(size) % 10)
    small = train.take(torch.arange(10))
    names = tuple(map(str, range(10)))
    return DataSplits(train=train, val=small, test=small, class_names=names, feature_names=(), augment=None)


def make_manual_loop(make, dataset: DataSplits, config: TrainingConfig, flatness):
    """The loop of a tutorial, with a closure for the flatness."""
    inputs, targets = dataset.train.inputs, dataset.train.targets
    inputs = (inputs - inputs.mean(0)) / inputs.std(0)

    def work():
        model = make(input_shape=dataset.input_shape, num_classes=10).train()
        optimizer = OPTIMIZER(model.parameters())
        total = config.epochs * len(inputs) // config.batch_size
        step = 0
        for _ in range(config.epochs):
            for indices in torch.randperm(len(inputs)).split(config.batch_size):
                optimizer.param_groups[0]["lr"] = 0.01 * (1 + math.cos(math.pi * step / total)) / 2
                x, y = inputs[indices], targets[indices]

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
    """Plain and sharpness-aware training from initial weights."""
    results = []
    for case, (make, shape, size, target) in list(CASES.items())[: 1 if quick else None]:
        dataset = make_data(shape, size)
        config = TrainingConfig(epochs=2 if quick else 4, batch_size=64, num_validations=0, optimizer=OPTIMIZER)
        for flatness in (Plain(), SAM()):
            for count in (1,) if quick else (1, 2):
                with threads(count):
                    results.append(
                        row(
                            "loop",
                            f"{type(flatness).__name__}, {case}",
                            lambda make=make, dataset=dataset, config=config, flatness=flatness: fit(
                                make,
                                dataset,
                                MAP(),
                                flatness,
                                config,
                                likelihood=Categorical(10),
                                show_progress=False,
                            ),
                            make_manual_loop(make, dataset, config, flatness),
                            rounds=3 if quick else 9,
                            limit=1.0,
                            target=target,
                            note="in hand-written loops; both build the network",
                        )
                    )
    return results
