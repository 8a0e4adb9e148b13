"""Scaling of time with the number of weights, draws, examples in a batch, and networks in an ensemble.

    python benchmarks/scaling.py docs/results/scaling.json docs/img/scaling.svg

Log-log plots, on one thread. A line of slope one goes through the last point of each panel's first curve: a flatter
curve has a fixed cost per call, a steeper one has tensors larger than a cache.
"""

import statistics
import sys
from functools import partial
from pathlib import Path

import torch
from timing import seconds, threads
from torch import nn
from torch.nn import functional as F

from flatbayes import MAP, MLP, SAM, SWAG, Ensemble, Plain, TrainingConfig, fit
from flatbayes.core.files import write_json, write_text
from flatbayes.data import DataSplits, Split
from flatbayes.experiments.run_folder import describe_environment
from flatbayes.likelihoods import Categorical
from flatbayes.plotting import theme
from flatbayes.plotting.scales import scale_axis
from flatbayes.prediction import FittedPosterior
from flatbayes.reporting import svg
from flatbayes.training import DistributionConfig

WEIGHTS = (10**4, 10**5, 10**6, 10**7, 10**8)
MAX_WEIGHTS_WITH_RANK = 3 * 10**7  # 22 vectors of a hundred million weights are 9 GB
DRAWS = (1, 3, 10, 30, 100)
BATCHES = (8, 32, 128, 512, 2048)
SIZES = (1, 2, 5, 10, 20)
Curves = dict[str, list[tuple[float, float]]]


def make_network(num_weights: int, layers: int = 4) -> nn.Sequential:
    """Square layers with about `num_weights` weights in all."""
    width = max(4, round((num_weights / layers) ** 0.5))
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))


def measure_median(work, rounds: int = 5) -> float:
    """Median seconds of a call; short calls are repeated."""
    work()
    calls = max(1, round(5e-3 / max(seconds(work), 1e-9)))
    return statistics.median(seconds(work, calls) for _ in range(rounds))


def make_step(model: nn.Module, flatness, batch: int):
    width = model[0].in_features
    inputs, targets = torch.randn(batch, width), torch.randint(0, width, (batch,))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss.detach()

    def work():
        flatness(closure, model)()
        optimizer.step()

    return work


def make_collected_state(model: nn.Module, rank: int):
    posterior = SWAG(rank=rank)
    state = posterior.init(model, None, 1000)
    for _ in range(3):
        posterior.collect(state)
        for param in model.parameters():
            param.data.mul_(1.01)
    if rank:
        state.statistics["count"].fill_(rank + 1)
    return posterior, state


def measure_by_weights() -> Curves:
    """A plain and a SAM step on eight examples, and a snapshot and a draw of SWAG."""
    curves: Curves = {"plain step": [], "SAM step": [], "SWAG snapshot": [], "SWAG draw, rank 20": []}
    for count in WEIGHTS:
        model = make_network(count)
        num_weights = sum(p.numel() for p in model.parameters())
        curves["plain step"].append((num_weights, measure_median(make_step(model, Plain(), 8))))
        curves["SAM step"].append((num_weights, measure_median(make_step(model, SAM(), 8))))
        rank = 20 if count <= MAX_WEIGHTS_WITH_RANK else 0
        posterior, state = make_collected_state(model, rank)
        curves["SWAG snapshot"].append((num_weights, measure_median(lambda p=posterior, s=state: p.collect(s))))
        if rank:
            generator = torch.Generator().manual_seed(0)

            def draw(posterior=posterior, state=state, generator=generator):
                with posterior.draw(state, generator):
                    pass

            curves["SWAG draw, rank 20"].append((num_weights, measure_median(draw)))
    return curves


def measure_by_draws() -> Curves:
    """A prediction for a thousand examples, without cached draws."""
    model = make_network(10**5)
    posterior, state = make_collected_state(model, 20)
    state.model.eval()
    width = model[0].in_features
    fitted = FittedPosterior(posterior, [state], Categorical(width))
    inputs = torch.randn(1000, width)
    return {
        "prediction": [(n, measure_median(lambda n=n: fitted.predict(inputs, n, vectorized=False))) for n in DRAWS]
    }


def measure_by_batch() -> Curves:
    """A step of a network of a hundred thousand weights."""
    return {
        name: [(batch, measure_median(make_step(make_network(10**5), flatness, batch))) for batch in BATCHES]
        for name, flatness in (("plain step", Plain()), ("SAM step", SAM()))
    }


def measure_by_ensemble_size() -> Curves:
    """Training of an ensemble of small networks, one by one and vectorized."""
    generator = torch.Generator().manual_seed(0)
    split = Split(inputs=torch.randn(512, 8, generator=generator), targets=torch.randn(512, generator=generator))
    data = DataSplits(
        train=split, val=split, test=split, class_names=(), feature_names=(), target_names=("y",), augment=None
    )
    curves: Curves = {}
    for members in ("one_by_one", "vectorized"):
        config = TrainingConfig(
            epochs=20,
            num_validations=0,
            distribution=DistributionConfig(members=members),
            optimizer=partial(torch.optim.SGD, lr=0.01),
        )
        run = partial(fit, partial(MLP, hidden=(50,)), data, flatness=SAM(), config=config, show_progress=False)
        curves[members.replace("_", " ")] = [
            (size, measure_median(lambda size=size, run=run: run(posterior=Ensemble(MAP(), size=size)), 3))
            for size in SIZES
        ]
    return curves


PANELS = {
    "weights": (measure_by_weights, "a step on 8 examples"),
    "draws": (measure_by_draws, "a prediction for 1,000 examples"),
    "examples in a batch": (measure_by_batch, "a step, 100,000 weights"),
    "networks in an ensemble": (measure_by_ensemble_size, "a training, MLP 8-50-2"),
}


def draw_figure(panels: dict[str, Curves]) -> str:
    """A panel per quantity, as an SVG file."""
    with svg.new_figure(1000, 600) as figure:
        figure.set_layout_engine("constrained")
        for axes, (what, curves) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
            for name, points in curves.items():
                axes.plot(*zip(*points, strict=True), "o-", label=name, markersize=4)
            (x, y), (first, _) = next(iter(curves.values()))[-1], next(iter(curves.values()))[0]
            axes.plot([first, x], [y * first / x, y], ":", color=theme.TIE, label="slope 1")
            columns = zip(*(point for points in curves.values() for point in points), strict=True)
            for axis, values in zip((axes.xaxis, axes.yaxis), columns, strict=True):
                scale_axis(axis, values)
            axes.set(xlabel=what, ylabel="seconds", title=PANELS[what][1])
            axes.legend(frameon=False, fontsize=9)
        return svg.to_svg_file(figure, "scaling", "Seconds by " + ", ".join(panels))


def main(out: Path, figure_path: Path) -> None:
    """Measure, write the numbers and draw the figure."""
    torch.manual_seed(0)
    with threads(1):
        panels = {what: measure() for what, (measure, _) in PANELS.items()}
    write_json(out, {"environment": describe_environment(), "panels": panels})
    write_text(figure_path, draw_figure(panels))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
