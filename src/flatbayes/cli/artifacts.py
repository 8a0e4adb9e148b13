"""Loading of fitted posteriors and data sources from run folders, for the verbs that read them."""

import json
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from flatbayes.cli.models import rebuild_model
from flatbayes.core.accelerators import select_device
from flatbayes.core.console import PlainConsole
from flatbayes.core.files import WriteError, read_json, replace_nonfinite
from flatbayes.core.spec import instantiate
from flatbayes.data import DataSource, DataSplits, Split
from flatbayes.data.checks import DataWarning
from flatbayes.data.fingerprint import FINGERPRINT_KEY, compute_fingerprint
from flatbayes.experiments.folder_lock import check_folder
from flatbayes.experiments.run_folder import CONFIG_FILE, RunFolder, check_fingerprint
from flatbayes.prediction import FittedPosterior
from flatbayes.prediction.metadata import read_metadata

console = PlainConsole()


def load_on_device(folder: Path, model: str | None, trusted: Collection[str] = ()) -> FittedPosterior:
    """The fitted posterior of a run, on the GPU if there is one that has the precision of its weights.

    `model` is the dotted path of `--model`, None for a model of flatbayes; `trusted` has the modules and paths of
    `--trust`.
    """
    fitted = load_on_cpu(folder, model, trusted)
    return fitted.to(select_device(dtypes={param.dtype for param in fitted.states[0].model.parameters()}))


def load_on_cpu(folder: Path, model: str | None, trusted: Collection[str] = ()) -> FittedPosterior:
    """The fitted posterior of a run, in main memory; arguments as in `load_on_device`."""
    info = read_metadata(folder)["info"]
    fitted = FittedPosterior.load(folder, rebuild_model(info.get("model"), model, trusted))
    if "interrupted" in info:
        PlainConsole(stderr=True).print_text(
            f"flatbayes: note: The training in {folder} was interrupted, and this is the posterior until then. "
            "The same flatbayes fit with --resume continues it."
        )
    return fitted


def check_output_file(path: Path, *, overwrite: bool, option: str = "--out") -> None:
    """Refuse a file that exists, before the work of which it is the result."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: choose the name of a file for {option}.")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists: choose another {option}, or --overwrite.")


def protect_results(path: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
    """Refuse to replace results that were made with other settings.

    The `settings` in the file are those of earlier results, which `overwrite` replaces nevertheless.
    """
    if overwrite or not path.is_file():
        return
    content = read_json(path)
    earlier = content.get("settings", {}) if isinstance(content, dict) else {}
    new = replace_nonfinite(settings)
    differing = [
        f"{name} {json.dumps(earlier.get(name))}, now {json.dumps(value)}"
        for name, value in new.items()
        if earlier.get(name) != value
    ]
    if differing:
        described = "; ".join(differing) if earlier else "they are not recorded"
        raise ValueError(
            f"{path} has results of other settings ({described}): --overwrite replaces them, and --out FOLDER writes "
            "elsewhere."
        )


@contextmanager
def tolerate_read_only() -> Iterator[None]:
    """Context of the writing of results that have been printed: where that is not allowed, a warning says so."""
    try:
        yield
    except WriteError as error:
        if not error.is_read_only:
            raise
        text = f"flatbayes: warning: {error} The results are printed only."
        PlainConsole(stderr=True).print_text(text)


def check_result_folder(folder: Path, out: Path | None) -> Path:
    """The folder for the results of a verb; one that the user names must be writable.

    Raises:
        ValueError: No folder can be made or written to there.
    """
    if out is not None:
        check_folder(out)
    return folder if out is None else out


@contextmanager
def explain_entry(name: str) -> Iterator[None]:
    """Context that uses an entry of a configuration, whose values may have any type.

    Raises:
        ValueError: The entry cannot be used, for a reason that no check has put into words.
    """
    try:
        yield
    except (TypeError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        raise ValueError(
            f"The entry {name!r} of {CONFIG_FILE} is damaged or was written for other data: {type(error).__name__} "
            f"{str(error)[:200]}."
        ) from error


def load_source(config: Mapping[str, Any], torch_dataset: str | None, trusted: Collection[str] = ()) -> DataSource:
    """The data source of a run.

    `torch_dataset` is the dotted path of `--data`, and the configuration may name no other; `trusted` has the modules
    and paths of `--trust`.

    Raises:
        ValueError: The source is outside flatbayes, and not named by the user; nothing is imported.
    """
    allowed_paths = [*trusted, *([] if torch_dataset is None else [torch_dataset])]
    with explain_entry("data"):
        source: DataSource = instantiate(
            config["data"], package="flatbayes.data", base_class=DataSource, allowed_paths=allowed_paths
        )
    return source


def load_run(options: Namespace) -> tuple[RunFolder, FittedPosterior, Split]:
    """The folder of a run, its posterior, and the split of its data that `--split` names."""
    folder = RunFolder.open(Path(options.folder))
    config = folder.read_config()
    fitted = load_on_device(folder.path, options.model, options.trust)
    source = load_source(config, options.data, options.trust)
    return folder, fitted, getattr(load_run_data(source, {folder.path: config}, options), options.split)


def load_run_data(source: DataSource, configs: Mapping[Path, Mapping[str, Any]], options: Namespace) -> DataSplits:
    """The splits of runs, after a comparison with those that they were trained on, unless `--allow_changed_data`.

    Raises:
        ValueError: The content differs from that of a configuration or an artefact.
    """
    with explain_entry("data"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # said when the run was made
        splits = source.load(next(iter(configs.values()))["seed"])
    if options.allow_changed_data:
        return splits
    remedy = "restore them, or give --allow_changed_data if rows of the training are not evaluated by that"
    current = compute_fingerprint(splits)
    for folder, config in configs.items():
        check_fingerprint(folder, config, {**current}, remedy)
        stored = read_metadata(folder)["info"].get(FINGERPRINT_KEY, {})  # of training and validation data
        trained = {name: checksum for name, checksum in stored.items() if name in current}
        check_fingerprint(folder, {FINGERPRINT_KEY: trained}, {name: current[name] for name in trained}, remedy)
    return splits
