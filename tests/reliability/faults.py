"""Faults of single operations on files, in every verb that writes: run by `measure.py faults` or the tests.

A library that is compiled here (`fault_shim.c`) lets the n-th `write`, `open`, `rename`, `fsync`, `unlink` or `mkdir`
below the folder fail with EIO, ENOSPC (and all that follow) or EINTR, or kills the process there. After each fault
the artefact that was there, or the new one, loads and predicts the same numbers, and the same command ends with the
result of an undisturbed one.
"""

import ctypes
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

HERE = Path(__file__).resolve().parent
ERRORS = {
    "EIO": (errno.EIO, False),
    "ENOSPC": (errno.ENOSPC, True),
    "EINTR": (errno.EINTR, False),
    "SIGKILL": (0, False),
}
"""Error number, and whether all later operations fail too."""
EXHAUSTIVE = ("evaluate", "shift", "predict")
BATCH_NORM = ["--data=digits", "--data.train_size=60", "--model=convnet", "--model.width=2", "--batch_size=20",
              "--num_draws=2", "--collection.start_fraction=0", "--posterior.rank=2"]  # fmt: skip


def compile_shim(folder: Path) -> Path:
    """Compile the library; needs a C compiler."""
    library = folder / "fault_shim.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(HERE / "fault_shim.c"), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return library


def main(names: list[str], most: int, seed: int) -> dict[str, Any]:
    """Inject faults into each command; this process must have been started with the shim.

    Args:
        names: Cases; empty for all of them, those of `EXHAUSTIVE` with a fault at every operation.
        most: Largest number of faults of a case, at random operations.
        seed: Of the operations.
    """
    from cases import COMPARE, FIT, Case, complaints, goes_on, whole
    from forked import call, run

    keep = ["--checkpoint_steps=1", "--checkpoint_seconds=0", "--resume"]
    fit_norm = ["fit", *BATCH_NORM, "--epochs=3", *keep, "--out=run"]
    data_and_model = [option for option in BATCH_NORM if not option.startswith("--posterior.")]
    compare_norm = ["compare", *data_and_model, "--posteriors=[SWAG(rank=2)]", "--epochs=2", "--num_seeds=2",
                    "--num_jobs=1", "--out=cmp"]  # fmt: skip
    shift = ["--num_draws=2", "--max_examples=16", "--corruptions=gaussian_noise"]
    predict = ["--input=new.npz", "--output=out.csv", "--overwrite", "--num_draws=3"]
    cases = {
        "fit, MLP": Case(FIT, []),
        "fit, BatchNorm": Case(fit_norm, []),
        "evaluate, MLP": Case(["evaluate", "run", "--num_draws=3"], [FIT]),
        "evaluate, BatchNorm": Case(["evaluate", "run", "--num_draws=3"], [fit_norm]),
        "shift, MLP": Case(["shift", "run", *shift], [FIT]),
        "shift, BatchNorm": Case(["shift", "run", *shift], [fit_norm]),
        "predict, MLP": Case(["predict", "run", *predict], [FIT]),
        "predict, BatchNorm": Case(["predict", "run", *predict], [fit_norm]),
        "compare, MLP": Case(COMPARE, []),
        "compare, BatchNorm": Case(compare_norm, []),
    }
    shim = ctypes.CDLL(os.environ["LD_PRELOAD"])
    random, bad, counts = Random(seed), [], {}
    with tempfile.TemporaryDirectory() as below:
        for name in names or list(cases):
            case = cases[name]
            done = whole(case, Path(below) / name.replace(", ", "-"))
            expected = predict_with_artefact(done.folder)
            folder, faults = Path(below) / "counted", []
            for kind, (error, _) in ERRORS.items():
                shutil.copytree(done.folder, folder)

                def count_operations(words: list[str] = case.words) -> int:
                    from flatbayes.cli import main as command

                    code = command(words)
                    (Path(below) / "count").write_text(str(shim.fault_count()))
                    return code

                count = (shim, folder, 10**9, error, False)
                run(count_operations, folder, before=lambda arm=count: _arm(*arm))
                faults += [(kind, number) for number in range(int((Path(below) / "count").read_text()))]
                shutil.rmtree(folder)
            random.shuffle(faults)
            ends: Counter[str] = Counter(operations=len(faults))
            for kind, number in faults if not names and name.startswith(EXHAUSTIVE) else faults[:most]:
                folder = Path(below) / "disturbed"
                shutil.copytree(done.folder, folder)
                arm = (shim, folder, number, *ERRORS[kind])
                ended = call(case.words, folder, before=lambda arm=arm: _arm(*arm))
                wrong = []
                if kind != "SIGKILL":
                    wrong += [text for text in complaints(folder, ended) if kind != "EIO" or "is left" not in text]
                if expected is not None and predict_with_artefact(folder) != expected:
                    wrong.append("the artefact is lost or changed")
                wrong += goes_on(case, done, folder)
                wrong += [f"{path.name} is left for good" for path in folder.rglob("*.tmp")]
                ends[
                    "ended well" if ended.code == 0 else "ended with a message" if ended.code == 2 else "killed"
                ] += 1
                ends["wrong"] += bool(wrong)
                if wrong:
                    bad.append(f"{name}, {kind} at {number}: {'; '.join(wrong)}\n{ended.err[-1500:]}")
                shutil.rmtree(folder)
            counts[name] = dict(ends)
    return {"counts": counts, "bad": bad}


def _arm(shim: ctypes.CDLL, folder: Path, number: int, error: int, persistent: bool) -> None:
    shim.fault_arm(str(folder).encode(), ctypes.c_long(number), error, int(persistent))


def predict_with_artefact(folder: Path) -> str | None:
    """Predictions of the artefact of a folder, None if there is none."""
    import torch

    from flatbayes.prediction import FittedPosterior

    if not (folder / "run" / "posterior.json").is_file():
        return None
    try:
        fitted = FittedPosterior.load(folder / "run")
        inputs = torch.arange(2 * 64).view(2, 1, 8, 8) % 17
        return str(fitted.predict(inputs.to(torch.uint8), 2).mean.tolist())
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def run_with_shim(most: int, seed: int, names: Sequence[str] = ()) -> dict[str, Any]:
    """Run `main` in a process that is started with the library."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"LD_PRELOAD": str(compile_shim(Path(folder)))}
        command = [sys.executable, str(HERE / "faults.py"), str(most), str(seed), *names]
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    counts: dict[str, Any] = json.loads(done.stdout)
    return counts


if __name__ == "__main__":
    number, first, chosen = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    has_shim = "LD_PRELOAD" in os.environ
    json.dump(main(chosen, number, first) if has_shim else run_with_shim(number, first, chosen), sys.stdout, indent=1)
