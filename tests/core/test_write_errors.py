"""Errors of every library that writes files, in our words."""

import errno
import os
import resource

import numpy as np
import pyarrow as pa
import pytest
import torch

from flatbayes.core.files import WriteError, atomic_write, explain_write_errors, write_json, write_text
from flatbayes.data import PredictionWriter
from flatbayes.prediction.artefact import _write_tensors
from flatbayes.training.callbacks.loggers import JSONLinesLogger

SIZE = 50_000


def write_predictions(path):
    with PredictionWriter(path) as writer:
        for _ in range(2):
            random = np.random.default_rng(0).normal(size=SIZE)
            writer.write({"p": random, "id": pa.array([f"{number:x}" for number in range(SIZE)])})


def save_with_torch(path):
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        torch.save({"a": torch.zeros(SIZE)}, file)


def log_epoch(path):
    logger = JSONLinesLogger(path)
    for _ in range(300):
        logger.on_epoch_end({"epoch": 1.0, "loss": 0.123456789, "step": 1.0})


def open_database(path):
    sqlalchemy = pytest.importorskip("sqlalchemy")
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    with explain_write_errors(path), engine.begin() as connection:
        connection.execute(sqlalchemy.text("create table a (b text)"))
        connection.execute(sqlalchemy.text(f"insert into a values ('{'x' * SIZE}')"))


WRITERS = {
    "a.json": lambda path: write_json(path, ["x"] * SIZE),
    "a.svg": lambda path: write_text(path, "x" * SIZE),
    "a.jsonl": log_epoch,
    "a.csv": write_predictions,
    "a.npz": write_predictions,
    "a.parquet": write_predictions,
    "a.safetensors": lambda path: _write_tensors(path.parent, "a", {"a": torch.zeros(SIZE)}),
    "a.pt": save_with_torch,
    "a.db": open_database,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_cannot_grow_gives_our_message(tmp_path, name):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(
            WriteError, match=r"/a.* cannot be written: .*\. (Free some space|Check the folder)"
        ) as caught:
            WRITERS[name](tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_messages_name_the_file_the_reason_and_what_to_do(tmp_path, monkeypatch, number):
    def refuse(path, **_):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("pathlib.Path.touch", refuse)
    with pytest.raises(WriteError, match=f"a.json cannot be written: {os.strerror(number)}") as caught:
        write_json(tmp_path / "a.json", {})
    assert caught.value.errno == number
    assert caught.value.is_read_only == (number in (errno.EROFS, errno.EACCES))


def test_other_errors_stay_as_they_are(tmp_path):
    failures = (
        ValueError("a"),
        FileNotFoundError("There is no file x."),
        FileNotFoundError(errno.ENOENT, "No such file", "/data/x.csv"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    )
    for failure in failures:
        with pytest.raises(type(failure)) as caught, atomic_write(tmp_path / "a"):
            raise failure
        assert caught.value is failure
