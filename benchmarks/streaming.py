"""Prediction of files by the command line: reading, 30 networks, and writing, against the same written by hand.

By hand, the file is read with pyarrow in chunks of 65,536 rows, the 30 networks are drawn once, and probabilities,
entropies and mutual information are computed in single precision and written with pyarrow. It checks nothing. Reading
is that of `InputReader` against pyarrow and numpy.
"""

import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from timing import row, threads
from torch import Tensor

from flatbayes.data import InputReader, PredictionWriter
from flatbayes.prediction import FittedPosterior
from flatbayes.prediction.inputs import count_chunk_examples
from prediction import NUM_CLASSES, fitted, mlp

NUM_DRAWS, NUM_FEATURES, CHUNK = 30, 64, 2**16
NAMES = tuple(f"f{k}" for k in range(NUM_FEATURES))


def rows(quick: bool) -> list[dict]:
    """Parquet and CSV, read alone, and predicted."""
    torch.manual_seed(0)
    results = []
    num_rows, rounds = (2_000, 1) if quick else (16_384, 3)
    with tempfile.TemporaryDirectory() as folder, threads(1):
        posterior = fitted(lambda: mlp(256), (NUM_FEATURES,))
        paths = write_inputs(Path(folder), num_rows)
        for path in paths:
            results.append(
                row(
                    "read",
                    f"{path.suffix[1:]}, {num_rows} rows of {NUM_FEATURES} features",
                    lambda path=path: [len(inputs) for _, inputs in make_reader(path).iter_chunks()],
                    lambda path=path: [len(inputs) for inputs in read_by_hand(path)],
                    rounds=rounds,
                )
            )
            target = Path(folder) / f"predictions{path.suffix}"
            results.append(
                row(
                    "predict",
                    f"{path.suffix[1:]}, MLP 64-256-256-10, {NUM_DRAWS} draws",
                    lambda path=path, target=target: predict(posterior, path, target),
                    lambda path=path, target=target: predict_by_hand(posterior, path, target),
                    rounds=rounds,
                    target=1.2,
                )
            )
    return results


def write_inputs(folder: Path, num_rows: int) -> list[Path]:
    """A parquet file and a CSV file of random features."""
    values = np.random.default_rng(0).normal(size=(num_rows, NUM_FEATURES)).astype(np.float32)
    table = pa.table({name: values[:, k] for k, name in enumerate(NAMES)})
    pq.write_table(table, folder / "inputs.parquet")
    pa.csv.write_csv(table, folder / "inputs.csv")
    return [folder / "inputs.parquet", folder / "inputs.csv"]


def make_reader(path: Path) -> InputReader:
    """The reader of `flatbayes predict`."""
    chunk_size = count_chunk_examples(32 * NUM_FEATURES + 64 * NUM_CLASSES)
    return InputReader(path=path, input_shape=(NUM_FEATURES,), feature_names=NAMES, chunk_size=chunk_size)


def predict(posterior: FittedPosterior, path: Path, target: Path) -> None:
    """The loop of `flatbayes predict`."""
    with PredictionWriter(target) as writer:
        for _, inputs in make_reader(path).iter_chunks():
            writer.write(posterior.predict(inputs, NUM_DRAWS).columns())


def read_by_hand(path: Path) -> Iterator[Tensor]:
    """Chunks of features in single precision."""
    if path.suffix == ".parquet":
        tables = (pa.Table.from_batches([batch]) for batch in pq.ParquetFile(path).iter_batches(CHUNK))
    else:
        table = pa.csv.read_csv(path)
        tables = (table.slice(start, CHUNK) for start in range(0, len(table), CHUNK))
    for table in tables:
        yield torch.from_numpy(np.stack([column.to_numpy() for column in table.columns], 1).astype(np.float32))


@torch.no_grad()
def predict_by_hand(posterior: FittedPosterior, path: Path, target: Path) -> None:
    """The same columns, with networks that are drawn once."""
    networks = [deepcopy(network) for network in posterior.sample_networks(NUM_DRAWS)]
    writer: pq.ParquetWriter | pa.csv.CSVWriter | None = None
    make_writer: Callable = pq.ParquetWriter if path.suffix == ".parquet" else pa.csv.CSVWriter
    for inputs in read_by_hand(path):
        mean, entropy = torch.zeros(len(inputs), NUM_CLASSES), torch.zeros(len(inputs))
        for network in networks:
            probs = torch.cat([network(batch) for batch in inputs.split(256)]).softmax(-1)
            mean += probs / NUM_DRAWS
            entropy -= (probs * probs.log()).sum(-1) / NUM_DRAWS
        total = -(mean * mean.log()).sum(-1)
        confidence, top = mean.max(-1)
        columns = {"class": top, "confidence": confidence, "entropy": total, "mutual_information": total - entropy}
        columns |= {f"probability_{k}": mean[:, k] for k in range(NUM_CLASSES)}
        table = pa.table({name: values.numpy() for name, values in columns.items()})
        writer = make_writer(target, table.schema) if writer is None else writer
        writer.write_table(table)
    if writer is not None:
        writer.close()
