"""Thousands of damaged and hostile files, each of which must end in an error of ours, soon and without much memory.

    python tests/reliability/fuzz.py --count 2000 --out docs/results/fuzz-artefact.json

Every kind of file has a process of its own, with a limit on its memory, so that a crash is seen and counted.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from random import Random

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

MEMORY, SECONDS = 2 * 2**30, 20.0
"""Address space beyond what the process had before the first file, and time for one file."""
FIXTURES = ROOT / "tests" / "prediction" / "fixtures" / "schema-4"
EXPECTED = (ValueError, FileNotFoundError)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="files of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=sorted(KINDS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(tried(options.only, options.count, options.seed)))
        return
    found = {}
    for kind in KINDS:
        command = [
            sys.executable,
            __file__,
            "--only",
            kind,
            "--count",
            str(options.count),
            "--seed",
            str(options.seed),
        ]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        last = ended.stdout.strip().splitlines()[-1:] or ["{}"]
        found[kind] = (
            json.loads(last[0])
            if ended.returncode == 0
            else {"crashed": ended.returncode, "error": ended.stderr[-500:]}
        )
        print(f"{kind:22} {found[kind]}", flush=True)
    if options.out:
        import flatbayes.experiments.run_folder as about

        record = {
            "memory_limit_bytes": MEMORY,
            "seed": options.seed,
            "environment": about.describe_environment(),
            "kinds": found,
        }
        options.out.write_text(json.dumps(record) + "\n")


def tried(kind: str, count: int, seed: int) -> dict:
    """How many files of a kind ended how, and what the worst of them took."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    make, use = KINDS[kind]
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        contents = make(here / "whole")
        use(here / "whole")  # whole it can be used; and now everything is imported
        limit()
        ends, wrong, slowest = Counter(), [], 0.0
        for number in range(count):
            random = Random(f"{seed} {kind} {number}")
            place = here / "damaged"
            shutil.rmtree(place, ignore_errors=True)
            contents(place, random)
            start = time.perf_counter()
            try:
                use(place)
                ends["used"] += 1
            except EXPECTED:
                ends["refused"] += 1
            except BaseException as error:
                ends["wrong"] += 1
                wrong.append(f"{number}: {type(error).__name__} {str(error)[:150]}")
            slowest = max(slowest, time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "files": count,
        **ends,
        "slowest_seconds": round(slowest, 3),
        "peak_resident_bytes": peak,
        "examples": wrong[:5],
    }


def limit() -> None:
    """No more address space than there is now, and a little."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def artefact(name: str, how: str):
    """An artefact: damaged bytes; or hostile, with checksums as they should be."""
    from damage import damaged, distorted
    from flatbayes.prediction import FittedPosterior
    from flatbayes.prediction.metadata import compute_file_checksum, compute_metadata_checksum
    from support import find_tensors_file

    def make(whole: Path):
        shutil.copytree(FIXTURES / name, whole)

        def contents(place: Path, random: Random) -> None:
            shutil.copytree(whole, place)
            description, tensors = place / "posterior.json", find_tensors_file(place)
            if how == "damaged":
                path = random.choice([description, tensors])
                path.write_bytes(damaged(path.read_bytes(), random))
                return
            plain = json.loads(description.read_text())
            if random.random() < 0.4:
                tensors.write_bytes(damaged(tensors.read_bytes(), random))
            if random.random() < 0.8:
                plain = distorted(plain, random)
            if isinstance(plain, dict):
                plain["sha256"] = compute_file_checksum(tensors)
                plain.pop("checksum", None)
                try:
                    plain["checksum"] = compute_metadata_checksum(plain)
                except (ValueError, RecursionError):
                    plain["checksum"] = "0" * 64
            description.write_text(json.dumps(plain))

        return contents

    def use(place: Path) -> None:
        import torch

        fitted = FittedPosterior.load(place)
        if how == "damaged":  # and not refused, so it must not matter: space between words of JSON
            tensors_file = find_tensors_file(FIXTURES / name).name
            for name_of_file, parse in (("posterior.json", json.loads), (tensors_file, bytes)):
                before, after = (parse((folder / name_of_file).read_bytes()) for folder in (FIXTURES / name, place))
                if before != after:
                    raise AssertionError(f"{name_of_file} is damaged, and was not refused")
        try:
            fitted.predict(torch.zeros(3, 4), 2)
        except RuntimeError as error:  # of torch, for shapes that go together and with no input
            raise ValueError(str(error)) from error

    return make, use


def file(suffix: str, write, use):
    """One file with a suffix."""
    from damage import damaged

    def make(whole: Path):
        whole.mkdir()
        path = whole / f"a{suffix}"
        write(path)
        content = path.read_bytes()

        def contents(place: Path, random: Random) -> None:
            place.mkdir()
            (place / f"a{suffix}").write_bytes(damaged(content, random))

        return contents

    return make, lambda place: use(place / f"a{suffix}")


def table(path: Path) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    random = np.random.default_rng(0)
    columns = pa.table({"a": random.normal(size=300), "b": np.arange(300), "y": ["cat", "dog", "owl"] * 100})
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(columns, path)
    else:
        pq.write_table(columns, path, row_group_size=100, compression=random.choice(["snappy"]))


def arrays(path: Path) -> None:
    import numpy as np

    x = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
    np.savez_compressed(path, x=x, y=np.arange(300) % 3)


def pictures(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = [{"bytes": picture(k, "PNG" if k % 2 else "JPEG"), "path": None} for k in range(30)]
    pq.write_table(pa.table({"img": column, "label": [k % 3 for k in range(30)]}), path, row_group_size=10)


def picture(number: int, kind: str) -> bytes:
    import io

    import numpy as np
    from PIL import Image

    stream = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def read(shape: tuple[int, ...], **options):
    """Read as inputs to predict on, and as data to train on."""
    from flatbayes.data import make_source, read_inputs

    def use(path: Path) -> None:
        for _ in read_inputs(path, shape, ("a", "b") if len(shape) == 1 else (), chunk_size=50):
            pass
        make_source(str(path), **options).load(0)

    return use


def one_picture(kind: str):
    """A folder with one damaged image among whole ones."""
    from flatbayes.data import read_inputs

    def use(path: Path) -> None:
        for resize in (False, True):
            list(read_inputs(path.parent, (3, 8, 8), (), resize=resize))

    suffix = f".{kind.lower()}"
    return file(suffix, lambda path: path.write_bytes(picture(0, kind)), use)


def checkpoint(suffix: str):
    from safetensors.torch import save_file

    from flatbayes.models import MLP
    from flatbayes.training.warm_start import match_weights
    from flatbayes.training.weight_files import read_weights

    def write(path: Path) -> None:
        import torch

        weights = MLP((4,), 3, hidden=(5,)).state_dict()
        save_file(weights, path) if suffix == ".safetensors" else torch.save({"state_dict": weights}, path)

    return file(
        suffix, write, lambda path: match_weights(read_weights(path), MLP((4,), 3, hidden=(5,)), new_head=False)
    )


class Lazily(dict):
    """Kinds by name, made when they are asked for."""

    def __getitem__(self, name: str):
        return super().__getitem__(name)()


KINDS = Lazily(
    {
        **{f"artefact, {n}, {how}": (lambda n=n, how=how: artefact(n, how))
           for n in ("swag", "laplace", "lrt", "ensemble", "regression") for how in ("damaged", "hostile")},
        "table.parquet": lambda: file(".parquet", table, read((2,), target="y")),
        "table.csv": lambda: file(".csv", table, read((2,), target="y")),
        "arrays.npz": lambda: file(".npz", arrays, read((2,))),
        "images.parquet": lambda: file(".parquet", pictures, read((3, 8, 8))),
        "image.png": lambda: one_picture("PNG"),
        "image.jpeg": lambda: one_picture("JPEG"),
        "image.gif": lambda: one_picture("GIF"),
        "image.tiff": lambda: one_picture("TIFF"),
        "image.webp": lambda: one_picture("WEBP"),
        "checkpoint.pt": lambda: checkpoint(".pt"),
        "checkpoint.safetensors": lambda: checkpoint(".safetensors"),
    }
)  # fmt: skip

if __name__ == "__main__":
    main()
