"""Main path, configuration files, help and error messages of the command line."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from flatbayes.cli import main
from flatbayes.cli.aliases import list_names
from flatbayes.cli.main import _parse_verb, build_parser
from flatbayes.core.spec import to_spec
from flatbayes.experiments import Method
from flatbayes.flatness import ASAM, Delayed
from flatbayes.posteriors import SWAG
from flatbayes.training import TrainingConfig
from support import find_tensors_file

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = ["--data", "digits", "--data.train_size", "60", "--model", "mlp", "--model.hidden", "[16]",
        "--epochs", "3", "--batch_size", "20", "--collection.start_fraction", "0"]  # fmt: skip


class Own(nn.Module):
    """A network outside flatbayes.

    Args:
        num_classes: Outputs.
        width: Hidden units.
    """

    def __init__(self, num_classes: int, width: int = 5):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, num_classes))

    def forward(self, x):
        return self.layers(x)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fit(*more):
    return main(["fit", *TINY, "--posterior", "swag", "--posterior.rank", "2", "--num_draws", "3", *more])


def test_fit_evaluate_predict(here, capsys):
    assert fit("--out", "run", "--flatness.rho", "0.1") == 0
    assert {p.name for p in (here / "run").iterdir()} == {
        "config.json", "environment.json", "metrics.jsonl", "posterior.json", "results.json",
        find_tensors_file(here / "run").name,
    }  # fmt: skip
    assert len((here / "run" / "metrics.jsonl").read_text().splitlines()) == 3
    shown = capsys.readouterr().out
    assert "SWAG(rank=2) x SAM(rho=0.1)" in shown
    assert "val examples" in shown

    artefact = {p.name: p.read_bytes() for p in (here / "run").glob("posterior.*")}
    assert main(["evaluate", "run", "--num_draws", "3", "--seed", "5"]) == 0
    assert {p.name: p.read_bytes() for p in (here / "run").glob("posterior.*")} == artefact
    assert "test examples" in capsys.readouterr().out
    runs = json.loads((here / "run" / "results.json").read_text())["runs"]
    assert [run["split"] for run in runs] == ["val", "test"]
    assert runs[1]["posterior"] == "SWAG(rank=2)"
    assert runs[1]["cost"]["gradients"] == 18

    images = torch.randint(0, 17, (7, 8, 8)).to(torch.uint8).numpy()
    np.savez("new.npz", x=images)
    assert main(["predict", "run", "--input", "new.npz", "--output", "out.csv", "--num_draws", "3"]) == 0
    header, *rows = (here / "out.csv").read_text().splitlines()
    assert len(rows) == 7
    assert header.replace('"', "").startswith("class,confidence,entropy,mutual_information,probability_0")
    assert main(["predict", "run", "--input", "new.npz", "--output", "out.csv"]) == 2
    assert "out.csv exists" in capsys.readouterr().err
    assert main(["predict", "run", "--input", "new.npz", "--output", "out.parquet", "--overwrite"]) == 0


def test_compare_and_report_in_a_subprocess(here):
    command = [sys.executable, "-m", "flatbayes", "compare", *TINY, "--posteriors", "[MAP]", "--num_seeds", "2",
               "--num_draws", "2", "--out", "cmp", "--num_jobs", "1"]  # fmt: skip
    first = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert first.returncode == 0, first.stderr
    assert "results.json" in first.stdout
    assert "report.html" in first.stdout
    before = (here / "cmp" / "results.json").read_text()
    assert main(command[3:]) == 0
    assert (here / "cmp" / "results.json").read_text() == before
    (here / "cmp" / "report.html").unlink()
    assert main(["report", "cmp"]) == 0
    assert "<html" in (here / "cmp" / "report.html").read_text()


def test_model_outside_flatbayes_by_dotted_path(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "my_nets", sys.modules[__name__])
    monkeypatch.setattr(Own, "__module__", "my_nets")
    own = [a for a in TINY if a not in ("--model", "mlp", "--model.hidden", "[16]")]
    assert main(["fit", *own, "--model", "my_nets.Own", "--model.width", "9", "--num_draws", "2",
                 "--posterior", "map", "--out", "run"]) == 0  # fmt: skip
    assert main(["evaluate", "run"]) == 2
    assert "If you trust it: --model my_nets.Own" in capsys.readouterr().err
    assert main(["evaluate", "run", "--model", "my_nets.Own"]) == 0


def test_printed_config_gives_the_same_run(here, capsys):
    with pytest.raises(SystemExit):
        main(["fit", *TINY, "--flatness", "asam", "--out", "a", "--print_config"])
    (here / "a.yaml").write_text(capsys.readouterr().out)
    assert main(["fit", "--config", "a.yaml", "--num_draws", "2", "--posterior", "map"]) == 0
    config = json.loads((here / "a" / "config.json").read_text())
    assert config["flatness"]["class_path"] == "flatbayes.flatness.ASAM"
    assert config["config"]["epochs"] == 3


def test_nested_flatness(here, capsys):
    command = [
        "--flatness",
        "delayed",
        "--flatness.flatness",
        "asam",
        "--flatness.flatness.ascent_batch_fraction",
        "0.5",
    ]
    assert fit("--out", "run", *command, "--flatness.start", "0.6") == 0
    config = json.loads((here / "run" / "config.json").read_text())
    assert config["flatness"] == to_spec(Delayed(ASAM(ascent_batch_fraction=0.5), start=0.6))


def test_flatness_of_selected_parameters(here, capsys):
    assert fit("--out", "some", "--flatness.params", "[layers.*.weight]") == 0
    assert fit("--out", "none", "--flatness.params", "norms") == 2
    assert "params='norms' selects none" in capsys.readouterr().err


def test_help_lists_every_flatness_and_model(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for axis in ("flatness", "model"):
        assert ", ".join(list_names(axis)) in text


def test_interrupt_leaves_a_usable_folder(here, capsys, monkeypatch):
    from flatbayes.training.callbacks.loggers import JSONLinesLogger

    write = JSONLinesLogger.on_epoch_end

    def stop(self, record):
        write(self, record)
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(JSONLinesLogger, "on_epoch_end", stop)
    assert fit("--out", "run") == 130
    assert "the posterior fitted so far is in run" in capsys.readouterr().out
    assert main(["evaluate", "run", "--num_draws", "2"]) == 0


BAD = [
    (["fit", *TINY, "--data", "nonsense", "--out", "o"], "Unknown data 'nonsense'. Known: CIFAR10, CIFAR100, "),
    (["fit", *TINY, "--model", "nonsense", "--out", "o"], "Unknown model 'nonsense'. Known: ConvNet, DenseNet, MLP"),
    (
        ["fit", *TINY, "--posterior", "nonsense", "--out", "o"],
        "Unknown posterior 'nonsense'. Known: BLoB, BSAM, Ensemble, EntropyMCMC, IVON, LRT, Laplace, MAP, MCD",
    ),
    (
        ["fit", *TINY, "--flatness", "nonsense", "--out", "o"],
        "Unknown flatness 'nonsense'. Known: ASAM, Delayed, FisherSAM",
    ),
    (
        ["fit", *TINY, "--flatness", "periodic", "--flatness.flatness", "nonsense", "--out", "o"],
        "Unknown flatness 'nonsense'. Known: ASAM, Delayed, FisherSAM",
    ),
    (["fit", *TINY, "--posterior", "sgld", "--flatness", "msam", "--out", "o"], "SGLD does not go with MSAM"),
    (["compare", *TINY, "--posteriors", "[sgvb]", "--flatness", "looksam", "--out", "o"], "does not go with LookSAM"),
    (["fit", *TINY, "--flatness.rho", "-1", "--out", "o"], "rho is the radius of a ball"),
    (["fit", *TINY, "--flatness.rho", "inf", "--out", "o"], "--flatness.rho must be a number or auto, got 'inf'."),
    (["fit", "--data", "sales.XLSX", "--out", "o"], "Unknown data 'sales.XLSX': there is no such file or folder."),
    (["fit", *TINY, "--flatness.rho", "nan", "--out", "o"], "--flatness.rho must be a number or auto, got 'nan'."),
    (["fit", *TINY, "--optimizer.lr", "inf", "--out", "o"], "--optimizer.lr must be a number, got 'inf'."),
    (["fit", *TINY, "--epochs", "0", "--out", "o"], "epochs must be at least 1"),
    (["fit", *TINY, "--epochs", "many", "--out", "o"], "epochs"),
    (["fit", *TINY, "--num_draws", "0", "--out", "o"], "at least 1 draw"),
    (["fit", *TINY, "--data.val_size", "5000", "--out", "o"], "val_size"),
    (
        ["fit", *TINY, "--epochs", "1", "--collection.snapshots_per_epoch", "1", "--out", "o"],
        "at least 2 collected snapshots",
    ),
    (["fit", *TINY, "--unknown_option", "3", "--out", "o"], "unknown_option"),
    (["fit", *TINY], "out"),
    (["fit", "--out", "o"], "data"),
    (["fit", *TINY, "--model", "torch.nn.Identity", "--model.hidden", "3", "--out", "o"], "hidden"),
    (["fit", *TINY, "--out", "taken"], "already holds a run"),
    (["fit", "--data", "missing.parquet", "--out", "o"], "missing.parquet"),
    (["compare", *TINY, "--posteriors", "[map, nonsense]", "--out", "o"], "Unknown posterior 'nonsense'"),
    (["compare", *TINY, "--flatness", "plain", "--out", "o"], "against Plain"),
    (["compare", *TINY, "--num_seeds", "0", "--out", "o"], "at least 1 seed"),
    (["evaluate", "nowhere"], "holds no run"),
    (["evaluate", "damaged"], "damaged"),
    (["predict", "nowhere", "--input", "x.npz", "--output", "y.csv"], "no fitted posterior"),
    (["report", "nowhere"], "results.json"),
    (["nonsense"], "nonsense"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(a[0][-3:]) for a in BAD])
def test_invalid_input_gives_a_message_and_writes_nothing(here, capsys, arguments, message):
    if arguments[-1] == "taken":
        (here / "taken").mkdir()
        (here / "taken" / "results.json").write_text("{}")
    if arguments[-1] == "damaged":
        (here / "damaged").mkdir()
        for name in ("config.json", "posterior.json", "posterior.safetensors"):
            (here / "damaged" / name).write_text("{")
    before = sorted(here.rglob("*"))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert sorted(here.rglob("*")) == before  # nothing half-written


def test_class_name_has_the_defaults_of_its_class(here):
    assert fit("--flatness", "asam", "--posterior", "swag", "--posterior.rank", "3", "--out", "own") == 0
    config = json.loads((here / "own" / "config.json").read_text())
    assert config["flatness"] == to_spec(ASAM())
    assert config["posterior"] == to_spec(SWAG(rank=3))


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["fit", "--help"], ["compare", "--data.help", "digits"], ["fit", "--flatness.help", "asam"]],
)
def test_help_is_short(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code in (0, None)
    shown = capsys.readouterr().out
    assert "torch.nn.modules" not in shown
    assert len(shown) < 13_500


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert version("flatbayes") in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_of_the_repository_are_understood(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    verb = "compare" if any(line.startswith("posteriors:") for line in lines) else "fit"
    options = _parse_verb(build_parser(), [verb, "--config", str(path), "--out", "x"])[verb]
    assert options.config is not None
    if verb == "compare":
        assert all(method.name for method in options.posteriors if isinstance(method, Method))


@pytest.mark.parametrize("entry", ["MCDropout", "SWAG", "Ensemble"])
def test_a_method_of_a_list_replaces_the_default_posterior_at_its_place(here, entry):
    lines = (
        f"posteriors:\n- posterior: {{class_path: flatbayes.posteriors.{entry}}}\n  config_overrides:\n    "
        "optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1}}\n"
    )
    (here / "own.yaml").write_text(lines, encoding="utf-8")
    (method,) = _parse_verb(build_parser(), ["compare", "--data", "digits", "--config", "own.yaml", "--out", "x"])[
        "compare"
    ].posteriors
    assert method.apply_overrides(TrainingConfig()).optimizer.keywords["lr"] == 0.1
