"""`flatbayes diagnose`: how sharp the loss is at the networks of one or more runs."""

import math
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.table import Table

from flatbayes.cli.options import PartName, new_parser
from flatbayes.cli.runs import console, load
from flatbayes.core.environment import environment
from flatbayes.core.files import replacing, write_json
from flatbayes.core.spec import build, label
from flatbayes.data import Dataset, Part, Source
from flatbayes.diagnostics import (
    MEASURES,
    PosteriorSharpness,
    Probe,
    compare_sharpness,
    plane_of_solutions,
    slices_of_draws,
)
from flatbayes.diagnostics.landscape import check_steps
from flatbayes.diagnostics.views import check_same_shapes
from flatbayes.prediction import FittedPosterior, check_num_draws
from flatbayes.reports.landscape import plane_figure, slices_figure
from flatbayes.training.run_folder import RunFolder

STATISTICS_EXAMPLES = 512


def options() -> ArgumentParser:
    """Its options."""
    parser = new_parser(
        "diagnose FOLDER [FOLDER ...] [options]",
        "Measure how sharp the loss is at trained networks and at draws of their posteriors. Nothing is trained.",
    )
    parser.add_argument(
        "folders", type=Path, nargs="+", help="folders of runs; all are measured on the first one's data"
    )
    parser.add_argument("--part", type=PartName, default="train", help="the part of the data whose loss is meant")
    parser.add_argument("--examples", type=int, default=1000, help="at most so many of them, chosen by the seed")
    parser.add_argument("--rho", type=float, default=0.05, help="radius of the ball")
    parser.add_argument("--adaptive_rho", type=float, default=0.5, help="radius of the adaptive ball")
    parser.add_argument("--draws", type=int, default=10, help="networks to draw from each posterior")
    parser.add_argument(
        "--hessian", action="store_true", help="also eigenvalues and trace of the Hessian, which is slow"
    )
    parser.add_argument(
        "--landscape", action="store_true", help="also draw slices of the loss, and a plane of solutions"
    )
    parser.add_argument("--steps", type=int, default=21, help="points on each side of a landscape")
    parser.add_argument("--batch_size", type=int, default=256, help="examples in a forward pass")
    parser.add_argument("--seed", type=int, default=0, help="decides examples, draws and directions")
    parser.add_argument(
        "--model", type=str | None, default=None, help="dotted path of the model, if it is not part of flatbayes"
    )
    parser.add_argument(
        "--out", type=Path | None, default=None, help="folder to write to; by default the first run's"
    )
    return parser


def run(options: Namespace) -> None:
    """A table, `diagnosis.json`, and figures if they were asked for."""
    check_num_draws(options.draws)
    if options.examples < 1:
        raise ValueError(f"--examples must be at least 1, got {options.examples}.")
    probe = Probe(rho=options.rho, adaptive_rho=options.adaptive_rho, seed=options.seed)
    configs = {str(path): RunFolder.open(path).config() for path in options.folders}
    if len(configs) < len(options.folders):
        raise ValueError("A run is named twice; name each folder once.")
    names, first = list(configs), next(iter(configs.values()))
    for name, config in configs.items():
        if config["data"] != first["data"]:
            raise ValueError(f"{name} was fitted to other data than {names[0]}, so their losses cannot be compared.")
    fitteds = {name: load(Path(name), options.model) for name in names}
    if options.landscape:  # before hours of measuring
        check_same_shapes(fitteds)
        check_steps(options.steps)
    source: Source = build(first["data"], within="flatbayes.data")
    dataset = source.load(first["seed"])
    part, total = chosen(dataset, options.part, options.examples, options.seed)
    show = sys.stderr.isatty()
    found = compare_sharpness(
        fitteds,
        part.tensor,
        part.targets,
        probe,
        options.draws,
        batch_size=options.batch_size,
        seed=options.seed,
        hessian=options.hessian,
        progress=show,
    )
    out = Path(options.out) if options.out is not None else Path(names[0])
    title = f"Loss of {len(part)} of {total} {options.part} examples, rho = {probe.rho:g}"
    console.print(table_of(found, configs, title))
    for note in dict.fromkeys([*notes_on(configs, options.part), *(n for one in found.values() for n in one.notes)]):
        console.print(note, highlight=False)
    diagnosis: dict[str, Any] = {
        "flatbayes": version("flatbayes"),
        "environment": environment(),
        "data": label(first["data"]),
        "part": options.part,
        "num_examples": len(part),
        "measures": MEASURES,
        "runs": {name: described(configs[name]) | found[name].to_dict() for name in names},
    }
    if options.landscape:
        write_json(out / "diagnosis.json", diagnosis)  # whatever happens to the figures
        diagnosis["landscape"] = landscape(fitteds, configs, dataset, part, options, out)
    write_json(out / "diagnosis.json", diagnosis)
    console.print(f"kept in  {out / 'diagnosis.json'}", highlight=False, soft_wrap=True)


def chosen(dataset: Dataset, name: str, examples: int, seed: int) -> tuple[Part, int]:
    """Some examples of a part, and how many there were."""
    part: Part = getattr(dataset, name)
    return part.some(examples, seed), len(part)


def notes_on(configs: dict[str, dict[str, Any]], part: str) -> list[str]:
    """What to know of the examples where runs had other ones."""
    seeds = [config["seed"] for config in configs.values()]
    if len(set(seeds)) == 1 or part == "test":
        return []
    return [
        f"The examples are those of {next(iter(configs))}; runs of other seeds have split the data in another way."
    ]


def described(config: dict[str, Any]) -> dict[str, Any]:
    """What a run was, in labels."""
    return {key: label(config[key]) for key in ("model", "posterior", "flatness")} | {"seed": config["seed"]}


def table_of(found: dict[str, PosteriorSharpness], configs: dict[str, dict[str, Any]], title: str) -> Table:
    """A row for each measure; for each run its trained network, and the mean ± sd over its draws."""
    table = Table(title=title)
    table.add_column("measure")
    for name, one in found.items():
        run = described(configs[name])
        heading = f"{name}\n{run['posterior']}\nx {run['flatness']}"
        table.add_column(f"{heading}\ntrained", justify="right")
        table.add_column(f"\n\n\n{len(one.draws)} draws", justify="right")
    columns = [one.rows for one in found.values()]
    for rows in zip(*columns, strict=True):
        cells = [cell for row in rows for cell in (f"{row.trained:.3g}", spread(row.mean, row.sd))]
        table.add_row(rows[0].measure, *cells)
    return table


def spread(mean: float, sd: float) -> str:
    """Mean ± standard deviation over draws, the mean alone for a single one."""
    return f"{mean:.3g}" if math.isnan(sd) else f"{mean:.3g} ± {sd:.1g}"


def landscape(
    fitteds: dict[str, FittedPosterior],
    configs: dict[str, dict[str, Any]],
    dataset: Dataset,
    part: Part,
    options: Namespace,
    out: Path,
) -> dict[str, Any]:
    """Both views as figures beside the diagnosis; returns their data."""
    flat = {name: not config["flatness"]["class_path"].endswith(".Plain") for name, config in configs.items()}
    shared: dict[str, Any] = {
        "steps": options.steps,
        "batch_size": options.batch_size,
        "seed": options.seed,
        "progress": sys.stderr.isatty(),
    }
    slices = slices_of_draws(fitteds, part.tensor, part.targets, **shared)
    sample, _ = chosen(dataset, "train", STATISTICS_EXAMPLES, options.seed)
    statistics = sample.tensor.split(options.batch_size)
    plane = plane_of_solutions(fitteds, part.tensor, part.targets, options.draws, statistics=statistics, **shared)
    for name, drawn in (("slices.svg", slices_figure(slices, flat)), ("plane.svg", plane_figure(plane, flat))):
        with replacing(out / name) as temporary:
            temporary.write_text(drawn, encoding="utf-8", newline="\n")
        console.print(f"figure   {out / name}", highlight=False, soft_wrap=True)
    lines = {
        name: [{"distances": list(one.distances), "losses": list(one.losses)} for one in some]
        for name, some in slices.items()
    }
    return {"slices": lines, "plane": plane.to_dict()}
