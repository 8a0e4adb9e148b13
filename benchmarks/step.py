"""What a sharpness-aware step costs in plain steps of SGD with momentum.

The limit of exact SAM is what nobody can do without: the gradient twice, and the optimiser once. The wrapper is the
usual PyTorch implementation (a loop over parameters up, another down, weights put back from a copy), which does not
restore on an exception, replay dropout masks or keep running statistics from moving twice. pytorch_optimizer is
measured where it is installed.
"""

import torch
from timing import Work, row, threads
from torch import nn
from torch.nn import functional as F

from flatbayes import ASAM, MSAM, SAM, Flatness, GaussianSmoothing, LookSAM, Periodic, Plain, PreResNet
from flatbayes.core import TrainingProgress

try:
    import pytorch_optimizer
except Exception:  # not installed, or broken by what it drags along
    pytorch_optimizer = None

RHO, RATE = 0.05, 1e-3
OTHERS = (ASAM(), SAM(params="norms"), MSAM(), LookSAM(period=5), Periodic(SAM(), period=5), GaussianSmoothing())


def mlp():
    layers = [nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
    return nn.Sequential(*layers), torch.randn(64, 64)


def preresnet(depth: int, batch: int):
    return PreResNet((3, 32, 32), 10, depth=depth), torch.randn(batch, 3, 32, 32)


CASES = {
    "MLP 64-256-256-10, batch 64": (mlp, 2.15, 60),
    "PreResNet-20, batch 64": (lambda: preresnet(20, 64), 2.05, 7),
    "PreResNet-110, batch 4": (lambda: preresnet(110, 4), 2.03, 7),
}


class Setting:
    """A network with its optimiser, in a state of its own."""

    def __init__(self, make) -> None:
        torch.manual_seed(0)
        self.model, self.inputs = make()
        self.targets = torch.randint(0, 10, (len(self.inputs),))
        self.params = list(self.model.parameters())
        self.optimizer = torch.optim.SGD(self.params, lr=RATE, momentum=0.9)

    def closure(self) -> torch.Tensor:
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(self.inputs), self.targets)
        loss.backward()
        return loss.detach()


def gradients(make, count: int) -> Work:
    """So many gradients, and a step of the optimiser."""
    own = Setting(make)

    def work():
        for _ in range(count):
            own.closure()
        own.optimizer.step()

    return work


def flat(make, flatness: Flatness) -> Work:
    """A step as anyone's own loop takes it."""
    own, course = Setting(make), TrainingProgress(total_steps=10**9)

    def work():
        flatness(own.closure, own.model, course)()
        own.optimizer.step()
        course.advance()

    return work


def wrapper(make) -> Work:
    """The usual implementation, one parameter at a time."""
    own, old = Setting(make), {}

    def work():
        own.closure()
        with torch.no_grad():
            norm = torch.stack([p.grad.norm() for p in own.params]).norm()
            for p in own.params:
                old[p] = p.clone()
                p.add_(p.grad * (RHO / (norm + 1e-12)))
        own.closure()
        with torch.no_grad():
            for p in own.params:
                p.copy_(old[p])
        own.optimizer.step()

    return work


def peer(make) -> Work:
    """pytorch_optimizer's, driven as its documentation says."""
    own = Setting(make)
    optimizer = pytorch_optimizer.SAM(own.params, torch.optim.SGD, lr=RATE, momentum=0.9, rho=RHO)

    def work():
        own.closure()
        optimizer.first_step(zero_grad=True)
        F.cross_entropy(own.model(own.inputs), own.targets).backward()
        optimizer.second_step(zero_grad=True)

    return work


def rows(quick: bool) -> list[dict]:
    """Exact SAM against its limit and its peers, and what the others cost."""
    found = []
    for case, (make, target, rounds) in list(CASES.items())[: 1 if quick else None]:
        for count in (1,) if quick else (1, 2):
            with threads(count):
                peers = {"wrapper": wrapper(make)}
                if pytorch_optimizer is not None:
                    peers["pytorch_optimizer"] = peer(make)
                found.append(
                    row(
                        "step",
                        f"SAM, {case}",
                        flat(make, SAM(RHO)),
                        flat(make, Plain()),
                        rounds=3 if quick else rounds,
                        peers=peers,
                        least=gradients(make, 2),
                        target=target,
                        note="in plain steps",
                    )
                )
                if count == 1:
                    found += [other(case, make, flatness, 3 if quick else rounds) for flatness in OTHERS]
    return found


def other(case: str, make, flatness: Flatness, rounds: int) -> dict:
    """A flatness that is not exact SAM."""
    norms = any(isinstance(module, nn.BatchNorm2d) for module in make()[0].modules())
    if flatness == SAM(params="norms") and not norms:
        flatness = SAM(params="last_layer")
    shown = type(flatness).__name__ + (f"({flatness.params})" if isinstance(flatness, SAM) else "")
    return row(
        "step",
        f"{shown}, {case}",
        flat(make, flatness),
        flat(make, Plain()),
        rounds=rounds,
        note=f"in plain steps; {flatness.gradients_per_step:g} gradients",
    )
