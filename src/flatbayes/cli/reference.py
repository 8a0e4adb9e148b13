"""Verb `reference`: sample the exact posterior of a small network, and keep its predictions."""

from dataclasses import fields
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from flatbayes.cli.artifacts import check_output_file, console
from flatbayes.cli.options import SplitName, add_data_options, make_model
from flatbayes.cli.parsing import new_parser
from flatbayes.reference import ReferenceConfig, sample_reference


def make_parser() -> ArgumentParser:
    """Options of `reference`."""
    parser = new_parser(
        "reference --data DATA --out FILE [options]",
        "Sample the exact posterior of a small network by long chains with gradients of all training examples, and\n"
        "keep its predictions, for compare --reference.",
    )
    add_data_options(parser)
    parser.add_class_arguments(ReferenceConfig, None)
    parser.add_argument("--split", type=SplitName, default="test", help="split to predict")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the training and validation split, and of the chains"
    )
    parser.add_argument("--out", type=Path, required=True, help="file to write, usually ending in .safetensors")
    parser.add_argument("--overwrite", action="store_true", help="replace the file")
    (parser.groups or {})["ReferenceConfig"].title = "density and sampler"
    return parser


def run(options: Namespace) -> None:
    """Sample, write the file, and print the diagnostics."""
    target = Path(options.out)
    check_output_file(target, overwrite=options.overwrite)
    config = ReferenceConfig(**{field.name: getattr(options, field.name) for field in fields(ReferenceConfig)})
    splits = options.data.load(options.seed)
    reference = sample_reference(make_model(options, splits), splits, config, split=options.split, seed=options.seed)
    path = reference.save(target)
    console.print_text(reference.summary())
    console.print_text(f"\nreference  {path}, {path.stat().st_size / 1e6:.1f} MB")
