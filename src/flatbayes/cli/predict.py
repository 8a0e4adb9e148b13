"""`flatbayes predict`: predictions for new inputs, with uncertainty."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from flatbayes.cli.options import new_parser, run_options
from flatbayes.cli.runs import console, load
from flatbayes.data import PredictionWriter, read_inputs
from flatbayes.prediction import check_num_draws


def options() -> ArgumentParser:
    """Its options."""
    parser = new_parser(
        "predict FOLDER --input FILE --output FILE [options]",
        "Predict classes or numbers, with uncertainties, for new inputs.",
    )
    run_options(parser)
    parser.add_argument("--input", type=Path, required=True, help="parquet, CSV or npz file, or folder of images")
    parser.add_argument("--output", type=Path, required=True, help="parquet, CSV or npz file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the output file")
    return parser


def run(options: Namespace) -> None:
    """Class probabilities or numbers, with uncertainties, for every row of a file or image of a folder."""
    target = Path(options.output)
    if target.exists() and not options.overwrite:
        raise ValueError(f"{target} exists: choose another --output, or --overwrite.")
    check_num_draws(options.draws)
    writer = PredictionWriter(target)
    fitted = load(Path(options.folder), options.model)
    info, count = fitted.info, 0
    inputs = read_inputs(Path(options.input), tuple(info["input_shape"]), tuple(info["feature_names"]))
    with writer, console.status("predicting") as status:
        for names, examples in inputs:
            predictive = fitted.predict(examples, options.draws, batch_size=options.batch_size, seed=options.seed)
            columns = dict(predictive.columns(info["class_names"] or info["target_names"]))
            writer.write(columns if names is None else {"name": names, **columns})
            count += len(examples)
            status.update(f"predicting: {count} done")
    console.print(f"{count} predictions in {target}", highlight=False, soft_wrap=True)
