"""Verb `diagnose`: sharpness and loss landscape at the networks of one or more runs."""

import math
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.table import Table

from flatbayes.cli.artifacts import (
    check_result_folder,
    console,
    load_on_device,
    load_run_data,
    load_source,
    protect_results,
    tolerate_read_only,
)
from flatbayes.cli.options import SplitName, add_data_path_option, add_model_path_options, add_result_options
from flatbayes.cli.parsing import new_parser
from flatbayes.core.files import write_json, write_text
from flatbayes.core.names import format_count
from flatbayes.core.optional import get_version
from flatbayes.core.spec import short_name
from flatbayes.data import DataSplits, Split
from flatbayes.diagnostics import (
    SHARPNESS_MEASURES,
    Evidence,
    PosteriorSharpness,
    SharpnessConfig,
    compare_sharpness,
    compute_draw_slices,
    compute_solution_plane,
    estimate_evidence,
)
from flatbayes.diagnostics.landscape import check_steps
from flatbayes.diagnostics.posterior_landscape import check_same_shapes
from flatbayes.experiments.folder_lock import check_folder
from flatbayes.experiments.run_folder import (
    DIAGNOSIS_FILE,
    PLANE_FIGURE_FILE,
    SLICES_FIGURE_FILE,
    RunFolder,
    describe_environment,
)
from flatbayes.posteriors.curvature import CurvatureStructure
from flatbayes.prediction import FittedPosterior, check_num_draws
from flatbayes.reporting.landscape import draw_plane, draw_slices

NUM_STATISTICS_EXAMPLES = 512
SETTINGS = (
    "split",
    "max_examples",
    "rho",
    "adaptive_rho",
    "num_draws",
    "hessian",
    "landscape",
    "num_grid_points",
    "seed",
)
"""Options that the results depend on."""


def make_parser() -> ArgumentParser:
    """Options of `diagnose`."""
    parser = new_parser(
        "diagnose FOLDER [FOLDER ...] [options]",
        "Measure how sharp the loss is at trained networks and at draws of their posteriors. Nothing is trained.",
    )
    parser.add_argument(
        "folders", type=Path, nargs="+", help="folders of runs; all are measured on the data of the first"
    )
    parser.add_argument("--split", type=SplitName, default="train", help="split on which the loss is measured")
    parser.add_argument("--max_examples", type=int, default=1000, help="largest number of examples, a random subset")
    parser.add_argument("--rho", type=float, default=0.05, help="radius of the Euclidean ball")
    parser.add_argument("--adaptive_rho", type=float, default=0.5, help="radius of the adaptive ball")
    parser.add_argument("--num_draws", type=int, default=10, help="networks to draw from each posterior")
    parser.add_argument(
        "--hessian", action="store_true", help="also compute eigenvalues and trace of the Hessian, which is slow"
    )
    parser.add_argument(
        "--evidence",
        type=CurvatureStructure | None,
        help="also estimate the log evidence, with this curvature: last_layer, last_layer_kron, kron or diag",
    )
    parser.add_argument(
        "--landscape", action="store_true", help="also draw slices of the loss and the plane through solutions"
    )
    parser.add_argument("--num_grid_points", type=int, default=21, help="points on each side of a landscape")
    parser.add_argument("--batch_size", type=int, default=256, help="examples in a forward pass")
    parser.add_argument("--seed", type=int, default=0, help="seed of examples, draws and directions")
    add_model_path_options(parser)
    add_data_path_option(parser)
    add_result_options(parser)
    return parser


def run(options: Namespace) -> None:
    """Print a table, and write `diagnosis.json` and, with `--landscape`, figures."""
    check_num_draws(options.num_draws)
    if options.max_examples < 1:
        raise ValueError(f"--max_examples must be at least 1, got {options.max_examples}.")
    if options.evidence and options.split != "train":
        raise ValueError(
            f"--evidence is that of training examples: leave out --split {options.split}, or --evidence."
        )
    sharpness_config = SharpnessConfig(rho=options.rho, adaptive_rho=options.adaptive_rho, seed=options.seed)
    configs = {str(path): RunFolder.open(path).read_config() for path in options.folders}
    if len(configs) < len(options.folders):
        raise ValueError("A folder is given twice; give each folder once.")
    names, first = list(configs), next(iter(configs.values()))
    for name, config in configs.items():
        if config["data"] != first["data"]:
            raise ValueError(f"{name} was fitted to other data than {names[0]}, so their losses cannot be compared.")
    source = load_source(first, options.data, options.trust)
    out_folder = check_result_folder(Path(names[0]), options.out)
    if options.landscape:  # its figures are files only
        check_folder(out_folder)
    described = {name: options[name] for name in SETTINGS} | {"folders": names}
    if options.evidence:
        described["evidence"] = options.evidence
    protect_results(out_folder / DIAGNOSIS_FILE, described, overwrite=options.overwrite)
    posteriors = {name: load_on_device(Path(name), options.model, options.trust) for name in names}
    if options.landscape:  # checked before the measurement, which may take hours
        check_same_shapes(posteriors)
        check_steps(options.num_grid_points)
    same_seed = {Path(name): config for name, config in configs.items() if config["seed"] == first["seed"]}
    dataset = load_run_data(source, same_seed, options)
    whole_split: Split = getattr(dataset, options.split)
    split = whole_split.subsample(options.max_examples, options.seed)
    evidence = {
        name: [
            estimate_evidence(
                fitted,
                split.input_tensor,
                split.targets,
                structure=options.evidence,
                member=k,
                batch_size=options.batch_size,
            )
            for k in range(len(fitted.states))
        ]
        for name, fitted in posteriors.items()
        if options.evidence
    }
    sharpness = compare_sharpness(
        posteriors,
        split.input_tensor,
        split.targets,
        sharpness_config,
        options.num_draws,
        batch_size=options.batch_size,
        seed=options.seed,
        hessian=options.hessian,
        show_progress=sys.stderr.isatty(),
    )
    total = format_count(len(whole_split), f"{options.split} example")
    title = f"Loss of {len(split)} of {total}, rho = {sharpness_config.rho:g}"
    console.print(sharpness_table(sharpness, configs, title))
    if evidence:
        console.print(evidence_table(evidence, options.evidence))
    notes = [note for measured in sharpness.values() for note in measured.notes]
    for note in dict.fromkeys([*note_split_seeds(configs, options.split), *notes]):
        console.print(note, highlight=False)
    diagnosis: dict[str, Any] = {
        "flatbayes": get_version(),
        "environment": describe_environment(),
        "settings": described,
        "data": short_name(first["data"]),
        "split": options.split,
        "num_examples": len(split),
        "measures": SHARPNESS_MEASURES,
        "runs": {name: describe_run(configs[name]) | sharpness[name].to_dict() for name in names},
    }
    for name, estimates in evidence.items():
        terms = [asdict(estimate) | {"log_evidence": estimate.log_evidence} for estimate in estimates]
        diagnosis["runs"][name]["evidence"] = terms
    if options.landscape:
        write_json(out_folder / DIAGNOSIS_FILE, diagnosis)  # kept if drawing fails
        diagnosis["landscape"] = draw_landscape(posteriors, configs, dataset, split, options, out_folder)
    with tolerate_read_only():
        write_json(out_folder / DIAGNOSIS_FILE, diagnosis)
        console.print_text(f"saved    {out_folder / DIAGNOSIS_FILE}")


def note_split_seeds(configs: dict[str, dict[str, Any]], split_name: str) -> list[str]:
    """A note if the runs have different seeds, and so different splits."""
    seeds = [config["seed"] for config in configs.values()]
    if len(set(seeds)) == 1 or split_name == "test":
        return []
    return [f"The examples are those of {next(iter(configs))}; runs with other seeds have other splits."]


def describe_run(config: dict[str, Any]) -> dict[str, Any]:
    """Short names of model, posterior and flatness of a run, and its seed."""
    return {key: short_name(config[key]) for key in ("model", "posterior", "flatness")} | {"seed": config["seed"]}


def sharpness_table(
    sharpness: dict[str, PosteriorSharpness], configs: dict[str, dict[str, Any]], title: str
) -> Table:
    """One row for each measure; for each run a column of the trained network, and one of mean ± sd over draws."""
    table = Table(title=title)
    table.add_column("measure")
    for name, measured in sharpness.items():
        run = describe_run(configs[name])
        heading = f"{name}\n{run['posterior']}\nx {run['flatness']}"
        table.add_column(f"{heading}\ntrained", justify="right")
        table.add_column(f"\n\n\n{format_count(len(measured.draws), 'draw')}", justify="right")
    columns = [measured.rows for measured in sharpness.values()]
    for rows in zip(*columns, strict=True):
        cells = [cell for row in rows for cell in (f"{row.trained:.3g}", format_draw_mean(row.mean, row.sd))]
        table.add_row(rows[0].measure, *cells)
    return table


def evidence_table(evidence: dict[str, list[Evidence]], structure: str) -> Table:
    """One row for each run: log evidence and its terms, in nats for each training example, mean over members."""
    table = Table(title=f"Log evidence by {structure}, in nats for each training example")
    for heading in ("run", "log evidence", "log likelihood", "log Occam factor", "effective weights"):
        table.add_column(heading, justify="left" if heading == "run" else "right")
    for name, estimates in evidence.items():
        terms = [(e.log_evidence, e.log_likelihood, e.log_occam_factor) for e in estimates]
        cells = [f"{fmean(values) / estimates[0].num_data:.4g}" for values in zip(*terms, strict=True)]
        weights = fmean(estimate.effective_params for estimate in estimates)
        table.add_row(name, *cells, f"{weights:.3g} of {estimates[0].num_params:,}")
    return table


def format_draw_mean(mean: float, sd: float) -> str:
    """Mean ± standard deviation over draws; the mean alone for a single draw."""
    return f"{mean:.3g}" if math.isnan(sd) else f"{mean:.3g} ± {sd:.1g}"


def draw_landscape(
    posteriors: dict[str, FittedPosterior],
    configs: dict[str, dict[str, Any]],
    dataset: DataSplits,
    split: Split,
    options: Namespace,
    out_folder: Path,
) -> dict[str, Any]:
    """Draw slices and plane into SVG files, and return their data for `diagnosis.json`."""
    flat = {name: not config["flatness"]["class_path"].endswith(".Plain") for name, config in configs.items()}
    shared: dict[str, Any] = {
        "num_steps": options.num_grid_points,
        "batch_size": options.batch_size,
        "seed": options.seed,
        "show_progress": sys.stderr.isatty(),
    }
    slices = compute_draw_slices(posteriors, split.input_tensor, split.targets, **shared)
    sample = dataset.train.subsample(NUM_STATISTICS_EXAMPLES, options.seed)
    statistics = sample.input_tensor.split(options.batch_size)
    plane = compute_solution_plane(
        posteriors, split.input_tensor, split.targets, options.num_draws, norm_batches=statistics, **shared
    )
    figures = {SLICES_FIGURE_FILE: draw_slices(slices, flat), PLANE_FIGURE_FILE: draw_plane(plane, flat)}
    for name, svg in figures.items():
        write_text(out_folder / name, svg)
        console.print_text(f"figure   {out_folder / name}")
    slice_data = {
        name: [{"distances": list(line.distances), "losses": list(line.losses)} for line in lines]
        for name, lines in slices.items()
    }
    return {"slices": slice_data, "plane": plane.to_dict()}
