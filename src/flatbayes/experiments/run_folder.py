"""The folder of a run: configuration, environment, training log, fitted posterior and results."""

import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from flatbayes.core.accelerators import count_accelerators, describe_device, get_float32_precision, select_device
from flatbayes.core.files import JsonValue, list_temporary_files, read_json, remove_files, write_json
from flatbayes.core.optional import get_version
from flatbayes.data.fingerprint import FINGERPRINT_KEY, explain_change
from flatbayes.experiments.folder_lock import check_unlocked, lock_folder, update_lock
from flatbayes.experiments.results import RESULTS_FILE, ComparisonResult
from flatbayes.experiments.run_result import RunResult
from flatbayes.prediction import FittedPosterior
from flatbayes.prediction.metadata import list_orphaned_files
from flatbayes.training.callbacks.loggers import JSONLinesLogger
from flatbayes.training.checkpoint import Checkpoints

CONFIG_FILE, METRICS_FILE, ENVIRONMENT_FILE = "config.json", "metrics.jsonl", "environment.json"
REPORT_FILE, TUNED_CONFIG_FILE, TUNING_FILE, STUDY_FILE = "report.html", "tuned.yaml", "tuning.json", "study.db"
SHIFT_FILE, SHIFT_FIGURE_FILE = "shift.json", "shift.svg"
DIAGNOSIS_FILE, PLANE_FIGURE_FILE, SLICES_FIGURE_FILE = "diagnosis.json", "plane.svg", "slices.svg"
CERTIFICATE_FILE = "certificate.json"
THRESHOLDS_FILE = "calibration.json"
RUN_FILES = (CONFIG_FILE, ENVIRONMENT_FILE, METRICS_FILE, RESULTS_FILE, "posterior.json")
ARTIFACT_FILES = (
    REPORT_FILE,
    SHIFT_FILE,
    SHIFT_FIGURE_FILE,
    DIAGNOSIS_FILE,
    PLANE_FIGURE_FILE,
    SLICES_FIGURE_FILE,
    CERTIFICATE_FILE,
    THRESHOLDS_FILE,
    TUNED_CONFIG_FILE,
    TUNING_FILE,
    STUDY_FILE,
)
OTHER_FOLDER_ADVICE = "choose another folder (--out), or overwrite this one (--overwrite)"
CONFIG_KEYS = ("data", "model", "posterior", "flatness", "config", "seed")
CHECKPOINT_FOLDER, LOG_FOLDER = "checkpoints", "logs"
COMPARISON_RUNS_GLOB = f"runs/{'[0-9a-f]' * 16}.json"
COMPARISON_CHECKPOINTS_GLOB = f"runs/{'[0-9a-f]' * 16}.{CHECKPOINT_FOLDER}"


def describe_environment(config: object = None) -> dict[str, JsonValue]:
    """Versions and hardware, as plain data.

    The device is the accelerator of the configuration of a run, or else that which evaluations use.
    """
    cudnn_version: int | None = torch.backends.cudnn.version()
    return {
        "flatbayes": get_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "platform": platform.platform(),
        "processor": _read_processor_name(),
        "cores": os.cpu_count(),
        "device": _describe_used_device(config),
        "num_accelerators": count_accelerators(),
        "cuda": torch.version.cuda,
        "cudnn": cudnn_version,
        "float32_precision": get_float32_precision() if torch.cuda.is_available() else None,
    }


def _describe_used_device(config: object) -> str:
    for key in ("config", "distribution", "accelerator"):
        config = config.get(key) if isinstance(config, Mapping) else None
    name = config if isinstance(config, str) else "auto"
    try:
        return describe_device(select_device(name))
    except ValueError:  # finished results are summarized on another machine
        return name


def _read_processor_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def clear_folder(folder: Path) -> None:
    """Delete the files that the commands of flatbayes write to a folder; other files stay."""
    paths = [*(folder / name for name in (*RUN_FILES, *ARTIFACT_FILES)), *folder.glob(COMPARISON_RUNS_GLOB)]
    remove_files([*paths, *list_temporary_files(folder)])
    remove_files(list_orphaned_files(folder))  # once `posterior.json` is gone, all files with tensors
    for checkpoints in [folder / CHECKPOINT_FOLDER, *folder.glob(COMPARISON_CHECKPOINTS_GLOB)]:
        Checkpoints(checkpoints).remove()
    shutil.rmtree(folder / LOG_FOLDER, ignore_errors=True)


def claim_folder(
    folder: Path,
    config: Mapping[str, JsonValue],
    extendable_keys: Sequence[str] = (),
    *,
    overwrite: bool = False,
    resume: bool = True,
    allow_changed_data: bool = False,
) -> None:
    """Reserve a folder for a run, and write its configuration; no other process may use it until this one ends.

    Args:
        folder: The folder; it is created if necessary.
        config: Configuration of the run, as plain data.
        extendable_keys: Keys of the configuration that may differ when the run in the folder is continued.
        overwrite: Delete the run in the folder first; files that flatbayes does not write stay.
        resume: Continue the run in the folder, if there is one and `overwrite` is not set.
        allow_changed_data: Continue it although the content of the data has changed.

    Raises:
        ValueError: The folder holds a run (with `resume`, one with another configuration), or the path is a file, or
            another process is writing there.

    Examples:
        >>> claim_folder(Path("runs"), {"posterior": "SWAG", "seed": 0})
        >>> try:
        ...     claim_folder(Path("runs"), {"posterior": "SWAG", "seed": 1})
        ... except ValueError as error:
        ...     print("refused")
        refused
    """
    lock_folder(folder)
    if overwrite:
        clear_folder(folder)
    elif resume and (folder / CONFIG_FILE).is_file():
        _check_same_config(folder, config, [*extendable_keys, *([FINGERPRINT_KEY] if allow_changed_data else [])])
    elif not resume:
        check_free_folder(folder)
    remove_files([*list_temporary_files(folder), *list_orphaned_files(folder)])  # left by killed processes
    write_json(folder / CONFIG_FILE, dict(config))


def check_free_folder(folder: Path) -> None:
    """Refuse a folder that holds a run, or that another process is writing to."""
    check_unlocked(folder)
    present = [name for name in (*RUN_FILES, *ARTIFACT_FILES) if (folder / name).exists()]
    if present:
        raise ValueError(
            f"{folder} already holds a run ({', '.join(present)}): choose another folder (--out), go on with this "
            "run (--resume), or overwrite it (--overwrite)."
        )


def _check_same_config(folder: Path, config: Mapping[str, JsonValue], extendable_keys: Sequence[str]) -> None:
    present = read_json(folder / CONFIG_FILE)
    if isinstance(present, dict) and "recipe" in present:
        raise ValueError(
            f"{folder} holds a run of flatbayes 0.1, which this version cannot continue: {OTHER_FOLDER_ADVICE}."
        )
    fixed_keys = [key for key in config if key not in extendable_keys]
    differing = [key for key in fixed_keys if not isinstance(present, dict) or present.get(key) != config[key]]
    if differing == [FINGERPRINT_KEY]:
        check_fingerprint(folder, present, config[FINGERPRINT_KEY], OTHER_FOLDER_ADVICE)
    if differing:
        raise ValueError(
            f"{folder} already holds another run (it differs in {', '.join(differing)}): {OTHER_FOLDER_ADVICE}."
        )


def check_fingerprint(folder: Path, config: Mapping[str, JsonValue], current: JsonValue, remedy: str) -> None:
    """Compare the content of the data with that of a run; a run of flatbayes 0.1 has no fingerprint and passes.

    Raises:
        ValueError: The data have changed.
    """
    stored = config.get(FINGERPRINT_KEY)
    if isinstance(stored, dict) and isinstance(current, dict) and stored != current:
        change = explain_change(*({key: str(value) for key, value in entry.items()} for entry in (stored, current)))
        raise ValueError(f"The data of {folder} have changed since its training: {change}. To go on, {remedy}.")


def _check_entry(path: Path, key: str, value: JsonValue) -> None:
    """Check that an entry of a configuration has the type that `fit` writes."""
    if key == "seed":
        is_valid, expected = type(value) is int and value >= 0, "a whole number of at least 0"
    elif key == "config":
        is_valid, expected = isinstance(value, dict), "an object with training options"
    else:
        expected = "an object with a class_path and its init_args"
        is_valid = isinstance(value, dict) and isinstance(value.get("class_path"), str)
        is_valid = is_valid and isinstance(value, dict) and isinstance(value.get("init_args", {}), dict)
    if not is_valid:
        raise ValueError(f"{path} is damaged: {key!r} must be {expected}, got {str(value)[:80]!r}.")


class RunFolder:
    """Folder with `config.json`, `environment.json`, `metrics.jsonl`, the fitted posterior and `results.json`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(
        cls,
        path: Path,
        config: Mapping[str, JsonValue],
        *,
        overwrite: bool = False,
        resume: bool = False,
        allow_changed_data: bool = False,
    ) -> "RunFolder":
        """Reserve a folder for a new or resumed run; no other process may use it until this one ends.

        With `overwrite` the run in the folder is deleted first, and files that flatbayes does not write stay. With
        `resume` it is continued, and with `allow_changed_data` also if the content of the data has changed.

        Raises:
            ValueError: The folder holds a run (with `resume`, one with another configuration), or the path is a file,
                or another process is writing there.
        """
        if overwrite and resume:
            raise ValueError("--overwrite begins anew and --resume goes on: choose one of them.")
        claim_folder(path, config, overwrite=overwrite, resume=resume, allow_changed_data=allow_changed_data)
        if not (path / ENVIRONMENT_FILE).is_file():
            write_json(path / ENVIRONMENT_FILE, describe_environment(config))
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """A folder that holds a run.

        Raises:
            FileNotFoundError: The folder holds no run.
        """
        if not (path / CONFIG_FILE).is_file():
            raise FileNotFoundError(f"{path} holds no run: there is no {CONFIG_FILE}. Make one with `flatbayes fit`.")
        return cls(path)

    def read_config(self) -> dict[str, Any]:
        """Read the configuration of the run.

        Raises:
            ValueError: The folder holds something else, such as a comparison.
        """
        config: Any = read_json(self.path / CONFIG_FILE)
        if not isinstance(config, dict):
            raise ValueError(f"{self.path / CONFIG_FILE} is damaged: it holds no settings.")
        if "recipe" in config:  # written by flatbayes 0.1
            config["config"] = config.pop("recipe")
        missing = [key for key in CONFIG_KEYS if key not in config]
        if missing:
            raise ValueError(
                f"{self.path} does not hold a single run: its {CONFIG_FILE} has no {', '.join(missing)}. "
                "Make one with `flatbayes fit`."
            )
        for key in CONFIG_KEYS:
            _check_entry(self.path / CONFIG_FILE, key, config[key])
        return config

    def open_metrics_log(self) -> JSONLinesLogger:
        """Callback that writes a line for every epoch to `metrics.jsonl`."""
        return JSONLinesLogger(self.path / METRICS_FILE)

    @property
    def checkpoint_folder(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / CHECKPOINT_FOLDER

    @property
    def log_folder(self) -> Path:
        """Folder of the logs of other tools."""
        return self.path / LOG_FOLDER

    @property
    def is_fitted(self) -> bool:
        """Whether the folder holds a posterior whose training was not interrupted."""
        path = self.path / "posterior.json"
        if not path.is_file():
            return False
        metadata = read_json(path)
        info = metadata.get("info") if isinstance(metadata, dict) else None
        return not (isinstance(info, dict) and "interrupted" in info)  # loading explains what is damaged

    @property
    def has_results(self) -> bool:
        """Whether the folder holds results."""
        return (self.path / RESULTS_FILE).is_file()

    def save(self, fitted: FittedPosterior, *, with_training_inputs: bool = True) -> None:
        """Write the fitted posterior, with or without the batches of training inputs that it has."""
        fitted.save(self.path, with_training_inputs=with_training_inputs)

    def add_result(self, run_result: RunResult) -> int:
        """Add the result of an evaluation to `results.json`, in place of an earlier one with the same settings.

        Returns:
            The number of results on the split that the file has now, one for each choice of settings.
        """
        results = ComparisonResult(self.read_config(), (run_result,), environment=describe_environment())
        key = (run_result.split, dict(run_result.settings))
        with update_lock(self.path):
            if self.has_results:
                runs = ComparisonResult.load(self.path).runs
                earlier = [run for run in runs if (run.split, dict(run.settings)) != key]
                results = replace(results, runs=(*earlier, run_result))
            results.save(self.path)
        return sum(run.split == run_result.split for run in results.runs)
