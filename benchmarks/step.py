"""Time of a sharpness-aware step, in plain steps of SGD with momentum.

The limit of SAM is two gradients and one optimizer step. The wrapper is the usual PyTorch implementation (a loop over
parameters up, another down, weights restored from a copy), which does not restore weights after an exception, replay
dropout masks or avoid a second update of running statistics. pytorch_optimizer is measured if it is installed.
"""

from collections.abc import Callable

import torch
from timing import Work, row, threads
from torch import nn
from torch.nn import functional as F

from flatbayes import ASAM, MSAM, SAM, Flatness, GaussianSmoothing, LookSAM, Periodic, Plain, PreResNet
from flatbayes import flatness as flatnesses
from flatbayes.core import TrainingProgress

try:
    import pytorch_optimizer
except Exception:  # not installed, or its dependencies are broken
    pytorch_optimizer = None

RHO, RATE = 0.05, 1e-3
OTHERS = (
    ASAM(),
    flatnesses.FisherSAM(),
    flatnesses.LESAM(),
    flatnesses.RandomPerturbation(),
    SAM(params="norms"),
    MSAM(),
    LookSAM(period=5),
    Periodic(SAM(), period=5),
    GaussianSmoothing(),
)


def make_mlp():
    layers = [nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
    return nn.Sequential(*layers), torch.randn(64, 64)


def make_preresnet(depth: int, batch: int):
    return PreResNet((3, 32, 32), 10, depth=depth), torch.randn(batch, 3, 32, 32)


CASES = {
    "MLP 64-256-256-10, batch 64": (make_mlp, 2.15, 60),
    "PreResNet-20, batch 64": (lambda: make_preresnet(20, 64), 2.05, 7),
    "PreResNet-110, batch 4": (lambda: make_preresnet(110, 4), 2.03, 7),
}


class Setting:
    """A network with an optimizer and one batch, for the steps of a manual loop.

    Args:
        make: Makes the network and its inputs.
        device: Device of both.
        compiled: Compile the network.
        rate: Learning rate.
    """

    def __init__(self, make, device: str = "cpu", *, compiled: bool = False, rate: float = RATE) -> None:
        torch.manual_seed(0)
        model, inputs = make()
        self.model, self.inputs = model.to(device), inputs.to(device)
        self.targets = torch.randint(0, 10, (len(inputs),)).to(device)
        self.network = torch.compile(self.model) if compiled else self.model
        self.params = list(self.model.parameters())
        self.optimizer = torch.optim.SGD(self.params, lr=rate, momentum=0.9)

    def closure(self) -> torch.Tensor:
        """The gradient of the batch."""
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.network(self.inputs), self.targets)
        loss.backward()
        return loss.detach()

    def make_step(self, flatness: Flatness, total_steps: int = 10**9) -> Callable[[], torch.Tensor]:
        """A step of a manual loop with a flatness, which may depend on the number of steps."""
        progress = TrainingProgress(total_steps=total_steps)

        def step():
            loss = flatness(self.closure, self.model, progress)()
            self.optimizer.step()
            progress.advance()
            return loss

        return step


def make_gradients(setting: Setting, count: int) -> Work:
    """`count` gradients, and an optimizer step: two are what no implementation of SAM can avoid."""

    def work():
        for _ in range(count):
            setting.closure()
        setting.optimizer.step()

    return work


def make_wrapper_step(make) -> Work:
    """The usual implementation of SAM, one parameter at a time."""
    setting, saved = Setting(make), {}

    def work():
        setting.closure()
        with torch.no_grad():
            norm = torch.stack([p.grad.norm() for p in setting.params]).norm()
            for p in setting.params:
                saved[p] = p.clone()
                p.add_(p.grad * (RHO / (norm + 1e-12)))
        setting.closure()
        with torch.no_grad():
            for p in setting.params:
                p.copy_(saved[p])
        setting.optimizer.step()

    return work


def make_peer_step(setting: Setting) -> Work:
    """SAM of pytorch_optimizer, used as documented."""
    optimizer = pytorch_optimizer.SAM(setting.params, torch.optim.SGD, lr=RATE, momentum=0.9, rho=RHO)

    def work():
        setting.closure()
        optimizer.first_step(zero_grad=True)
        F.cross_entropy(setting.network(setting.inputs), setting.targets).backward()
        optimizer.second_step(zero_grad=True)

    return work


def rows(quick: bool) -> list[dict]:
    """SAM with its limit and peers, and the other flatness methods."""
    results = []
    for case, (make, target, rounds) in list(CASES.items())[: 1 if quick else None]:
        for count in (1,) if quick else (1, 2):
            with threads(count):
                peers = {"wrapper": make_wrapper_step(make)}
                if pytorch_optimizer is not None:
                    peers["pytorch_optimizer"] = make_peer_step(Setting(make))
                results.append(
                    row(
                        "step",
                        f"SAM, {case}",
                        Setting(make).make_step(SAM(RHO)),
                        Setting(make).make_step(Plain()),
                        rounds=3 if quick else rounds,
                        peers=peers,
                        least=make_gradients(Setting(make), 2),
                        target=target,
                        note="in plain steps",
                    )
                )
                if count == 1:
                    results += [measure_flatness(case, make, flatness, 3 if quick else rounds) for flatness in OTHERS]
    return results


def measure_flatness(case: str, make, flatness: Flatness, rounds: int) -> dict:
    """A row of a flatness other than SAM of all parameters."""
    has_norms = any(isinstance(module, nn.BatchNorm2d) for module in make()[0].modules())
    if flatness == SAM(params="norms") and not has_norms:
        flatness = SAM(params="last_layer")
    label = type(flatness).__name__ + (f"({flatness.params})" if isinstance(flatness, SAM) else "")
    period = getattr(flatness, "period", 1)
    return row(
        "step",
        f"{label}, {case}",
        repeat(Setting(make).make_step(flatness), period),
        repeat(Setting(make).make_step(Plain()), period),
        rounds=rounds,
        note=f"in plain steps; {flatness.gradients_per_step:g} gradients"
        + f"; cycles of {period} steps" * (period > 1),
    )


def repeat(work: Work, count: int) -> Work:
    """A work that does another one several times: a median of single steps would leave out the expensive ones."""

    def repeated():
        for _ in range(count):
            work()

    return repeated
