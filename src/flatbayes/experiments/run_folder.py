"""The folder of a run: everything needed to know what was done, and to use what came of it."""

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flatbayes.core.environment import describe_environment
from flatbayes.core.files import read_json, write_json
from flatbayes.core.lock import hold
from flatbayes.prediction import FittedPosterior
from flatbayes.training.callbacks.callback import JSONLinesLogger
from flatbayes.training.checkpoint import Checkpoints

RUN_FILES = ("config.json", "environment.json", "metrics.jsonl", "results.json", "posterior.json")
CONFIG_KEYS = ("data", "model", "posterior", "flatness", "recipe", "seed")
CONFIG_FILE, METRICS_FILE, RESULTS_FILE = "config.json", "metrics.jsonl", "results.json"
COMPARISON_RUNS_GLOB = f"runs/{'[0-9a-f]' * 16}.json"
CHECKPOINT_FOLDER, LOG_FOLDER = "checkpoints", "logs"
COMPARISON_CHECKPOINTS_GLOB = f"runs/{'[0-9a-f]' * 16}.{CHECKPOINT_FOLDER}"
ARTIFACT_FILES = (
    "posterior.safetensors",
    "report.html",
    "shift.json",
    "shift.svg",
    "diagnosis.json",
    "plane.svg",
    "slices.svg",
    "certificate.json",
    "tuned.yaml",
    "study.db",
)


def clear_folder(folder: Path) -> None:
    """Remove what a fit or a comparison has written there; files of others stay."""
    for old in [*(folder / name for name in (*RUN_FILES, *ARTIFACT_FILES)), *folder.glob(COMPARISON_RUNS_GLOB)]:
        old.unlink(missing_ok=True)
    for checkpoints in [folder / CHECKPOINT_FOLDER, *folder.glob(COMPARISON_CHECKPOINTS_GLOB)]:
        Checkpoints(checkpoints).remove()
    shutil.rmtree(folder / LOG_FOLDER, ignore_errors=True)


class RunFolder:
    """`config.json`, `environment.json`, `metrics.jsonl`, the fitted posterior, `results.json`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(
        cls, path: Path, config: dict[str, Any], *, overwrite: bool = False, resume: bool = False
    ) -> "RunFolder":
        """Claim a folder for a new run, or for one that goes on; no other process may have it until this one ends.

        Args:
            path: The folder; it is made if need be.
            config: What the run was asked to do.
            overwrite: Replace the run that is there; files that no run writes stay.
            resume: Go on with the run that is there, if there is one.

        Raises:
            ValueError: The folder already holds a run (with `resume`, one that was asked to do something else), or
                the path is a file, or another process is writing there.
        """
        if overwrite and resume:
            raise ValueError("--overwrite begins anew and --resume goes on: choose one of them.")
        hold(path)
        if resume and (path / CONFIG_FILE).is_file():
            found = read_json(path / CONFIG_FILE)
            other = sorted(key for key in config if not isinstance(found, dict) or found.get(key) != config[key])
            if other:
                raise ValueError(
                    f"{path} holds another run, so there is nothing to resume: it differs in {', '.join(other)}. "
                    "Choose another --out, or --overwrite."
                )
            return cls(path)
        held = [name for name in (*RUN_FILES, *ARTIFACT_FILES) if (path / name).exists()]
        if held and not overwrite:
            raise ValueError(
                f"{path} already holds a run ({', '.join(held)}): choose another --out, --resume to go on with it, "
                "or --overwrite."
            )
        if overwrite:
            clear_folder(path)
        write_json(path / CONFIG_FILE, config)
        write_json(path / "environment.json", describe_environment())
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """A folder that holds a run.

        Raises:
            FileNotFoundError: It does not.
        """
        if not (path / CONFIG_FILE).is_file():
            raise FileNotFoundError(f"{path} holds no run: there is no {CONFIG_FILE}. Make one with `flatbayes fit`.")
        return cls(path)

    def read_config(self) -> dict[str, Any]:
        """What the run was asked to do.

        Raises:
            ValueError: The folder is that of something else, such as a comparison.
        """
        found: dict[str, Any] = read_json(self.path / CONFIG_FILE)
        missing = [key for key in CONFIG_KEYS if key not in found]
        if missing:
            raise ValueError(
                f"{self.path} does not hold a single run: its {CONFIG_FILE} has no {', '.join(missing)}. "
                "Make one with `flatbayes fit`."
            )
        return found

    def open_metrics_log(self) -> JSONLinesLogger:
        """Writes every epoch to `metrics.jsonl`."""
        return JSONLinesLogger(self.path / METRICS_FILE)

    @property
    def checkpoint_folder(self) -> Path:
        """Where its checkpoints are."""
        return self.path / CHECKPOINT_FOLDER

    @property
    def log_folder(self) -> Path:
        """Where the logs of other tools are."""
        return self.path / LOG_FOLDER

    @property
    def is_fitted(self) -> bool:
        """Whether the posterior is there, and was not stopped on the way."""
        path = self.path / "posterior.json"
        if not path.is_file():
            return False
        described = read_json(path)
        return isinstance(described, dict) and "interrupted" not in described.get("info", {})

    @property
    def has_results(self) -> bool:
        """Whether it has results."""
        return (self.path / RESULTS_FILE).is_file()

    def save(self, fitted: FittedPosterior) -> None:
        """Keep the fitted posterior."""
        fitted.save(self.path)

    def add_result(self, run_result: dict[str, Any]) -> Path:
        """Keep the outcome of an evaluation in `results.json`, beside those of other parts of the data."""
        path = self.path / RESULTS_FILE
        earlier = read_json(path)["runs"] if path.is_file() else []
        results = {
            "flatbayes": version("flatbayes"),
            "environment": describe_environment(),
            "config": self.read_config(),
            "runs": [other for other in earlier if other.get("split") != run_result.get("split")] + [run_result],
            "summary": [],
        }
        write_json(path, results)
        return path
