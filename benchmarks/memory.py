"""Peak memory of a step, in copies of the weights: what methods and flatnesses add to plain training.

Measured as the largest resident memory of a process of its own, beyond what it had with the weights alone, on a
network so large that its weights outweigh everything else. Plain SGD with momentum holds a gradient and a momentum
beside the weights.
"""

import json
import subprocess
import sys

import torch
from torch import nn
from torch.nn import functional as F

from flatbayes import ASAM, LRT, SAM, SGVB, SWAG, LookSAM, Plain, Point
from flatbayes.core import Course
from flatbayes.training.cost import Meter

WIDTH, LAYERS = 2000, 6  # 24 million weights, 96 MB a copy
CASES = {
    "Plain": (Point(), Plain(), 2, None),
    "SAM": (Point(), SAM(), 3, 3.1),
    "ASAM": (Point(), ASAM(), 3, None),
    "LookSAM": (Point(), LookSAM(every=2), 4, None),
    "SWAG-Diag, SAM": (SWAG(rank=0), SAM(), 5, None),
    "SWAG, rank 20, SAM": (SWAG(rank=20), SAM(), 25, None),
    "SGVB, SAM": (SGVB(), SAM(), 8, None),
    "SGVB-LRT, SAM": (LRT(), SAM(), 7, None),
}


def peak(posterior, flatness, width: int) -> float:
    """Largest memory beyond the weights over a few steps, in copies of the weights."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(LAYERS)))
    inputs, targets = torch.randn(2, width), torch.zeros(2, dtype=torch.int64)
    copy_mb = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    meter = Meter(torch.device("cpu"))
    before = meter.peak_memory_mb()
    momentum = 0.0 if isinstance(posterior, SGVB | LRT) else 0.9
    state = posterior.init(model, lambda params: torch.optim.SGD(params, lr=1e-4, momentum=momentum), 100)
    network, course = state.model.train(), Course(total_steps=100)

    def closure():
        state.optimizer.zero_grad()
        loss = F.cross_entropy(network(inputs), targets)
        loss.backward()
        return loss.detach()

    for _ in range(4):
        posterior.step(state, flatness(closure, network, course))
        posterior.collect(state)
        course.advance()
    return (meter.peak_memory_mb() - before) / copy_mb


def rows(quick: bool) -> list[dict]:
    """Every case in a process of its own."""
    found = []
    for name in list(CASES)[: 2 if quick else None]:
        _, _, expected, target = CASES[name]
        command = [sys.executable, __file__, name, str(500 if quick else WIDTH)]
        copies = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        found.append(
            {
                "group": "memory",
                "case": name,
                "threads": 1,
                "ours": None,
                "baseline": None,
                "ratio": copies,
                "limit": expected,
                "target": target,
                "peers": {},
                "note": "copies of the weights, beside the weights",
            }
        )
    return found


if __name__ == "__main__":
    chosen_posterior, chosen_flatness, *_ = CASES[sys.argv[1]]
    print(json.dumps(peak(chosen_posterior, chosen_flatness, int(sys.argv[2]))))
