"""Verb `export`: the fitted posterior of a run as one file that predicts without flatbayes."""

import json
from pathlib import Path
from typing import Literal

import torch
from jsonargparse import ArgumentParser, Namespace

from flatbayes.cli.artifacts import check_output_file, console, load_on_cpu
from flatbayes.cli.options import add_model_path_options
from flatbayes.cli.parsing import new_parser
from flatbayes.core.names import format_count
from flatbayes.core.optional import require_package
from flatbayes.prediction import check_num_draws, export_onnx, export_torch, onnx_difference
from flatbayes.prediction.labelled import infer_task

InputType = Literal["float32", "float64", "uint8", "int32", "int64"]
ExportFormat = Literal["torch", "onnx"]
NAMES = {"feature_names": "features", "class_names": "classes", "target_names": "targets"}
"""Names of inputs and outputs in the metadata of an artefact that an exported file keeps, with what they are."""


def make_parser() -> ArgumentParser:
    """Options of `export`."""
    parser = new_parser(
        "export FOLDER --format onnx --out FILE [options]",
        "Write one file that predicts mean and uncertainty, with the weights of every network that is averaged.",
    )
    parser.add_argument("folder", type=Path, help="folder of a run")
    parser.add_argument(
        "--format", type=ExportFormat, required=True, help="torch: a program of torch.export; or onnx"
    )
    parser.add_argument(
        "--num_draws", type=int, default=30, help="networks to average; the size of the file is proportional to it"
    )
    parser.add_argument(
        "--dtype",
        type=InputType | None,
        default=None,
        help="type of the inputs, such as uint8 for images as they are stored; by default float32 or float64",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws")
    add_model_path_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="file to write, usually ending in .pt2 or .onnx")
    parser.add_argument("--overwrite", action="store_true", help="replace the file")
    return parser


def run(options: Namespace) -> None:
    """Write the compiled posterior of a run; the outputs of an ONNX file are compared with it."""
    target = Path(options.out)
    check_output_file(target, overwrite=options.overwrite)
    check_num_draws(options.num_draws)
    if options.format == "onnx":
        with require_package("export"):
            import onnxruntime  # noqa: F401
    fitted = load_on_cpu(Path(options.folder), options.model, options.trust)
    with console.status("exporting"):
        module = fitted.compile(options.num_draws, seed=options.seed)
        write = export_onnx if options.format == "onnx" else export_torch
        dtype = None if options.dtype is None else getattr(torch, options.dtype)
        names = {key: list(fitted.info[key]) for key in NAMES if fitted.info.get(key)}
        path = write(module, target, dtype=dtype, metadata={key: json.dumps(value) for key, value in names.items()})
    nouns = NAMES | ({"target_names": "labels"} if infer_task(fitted.likelihood) == "multi_label" else {})
    assert module.example is not None  # or the file would have been refused
    input_type, shape = options.dtype or str(module.example.dtype).removeprefix("torch."), module.example.shape[1:]
    console.print_text(
        f"{format_count(len(module.networks), 'network')} in {path}, {path.stat().st_size / 1e6:.1f} MB\n"
        f"input    inputs {list(shape)} of each example, {input_type}\n"
        f"outputs  {', '.join(module.output_names)}"
        + "".join(f"\n{nouns[key]:8} {', '.join(map(str, value))}" for key, value in names.items())
    )
    if options.format == "onnx":
        console.print(f"onnxruntime differs by {onnx_difference(module, path):.1e} at most", highlight=False)
