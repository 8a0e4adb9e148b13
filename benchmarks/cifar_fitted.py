"""CIFAR-10 with a network that comes closer to fitting its 500 images than that of choose_cifar.py.

Twice as wide, trained for longer, at one radius that was not tuned: does flatness gain where more is to be had?

    FLATBAYES_DATA=... python benchmarks/cifar_fitted.py runs/cifar-fitted
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from choose_cifar import COMMON
from choose_digits import trained

from flatbayes.flatness import SAM
from flatbayes.models import ConvNet
from flatbayes.posteriors import SWAG, Point
from flatbayes.training import Cosine, SWALinear

COMPARISON = replace(
    COMMON,
    model=partial(ConvNet, width=16),
    posteriors=[
        replace(trained(Point(), 0.1, 1e-3, Cosine()), name="MAP"),
        replace(trained(SWAG(), 0.1, 1e-3, SWALinear(low=0.5)), name="SWAG"),
    ],
    flatness=SAM(rho=0.05),
    recipe=replace(COMMON.recipe, epochs=80),
    seeds=5,
)

if __name__ == "__main__":
    for row in COMPARISON.results(Path(sys.argv[1]), jobs=1)["summary"]:
        print(row["posterior"], row["metric"], row["plain"], row["flat"], row["interval"], row["wins"])
