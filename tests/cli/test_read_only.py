"""Verbs that read a run show its numbers where the folder cannot be written to."""

import errno
import os
import pathlib

import pytest

from flatbayes.cli import main

TINY = ["--data=digits", "--data.train_size=60", "--model=mlp", "--model.hidden=[8]", "--epochs=1", "--num_draws=2"]
FEW = ["--num_draws=2", "--max_examples=16"]
COMMANDS = {
    "evaluate": (["run", "--num_draws=2"], "accuracy"),
    "shift": (["run", *FEW, "--corruptions=fog", "--severities=[1]"], "Temperature"),
    "diagnose": (["run", *FEW], "Loss of 16"),
    "certify": (["run", "--num_draws=9", "--num_trial_draws=2", "--num_test_draws=2"], "bound"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("read-only")
    assert main(["fit", *TINY, "--posterior=map", "--out", str(folder / "run")]) == 0
    compare = ["compare", *TINY, "--posteriors=[map]", "--num_seeds=1", "--num_jobs=1", "--out", str(folder / "cmp")]
    assert main(compare) == 0
    return folder


@pytest.fixture
def refuse(folder, monkeypatch):
    """Refuse the creation of files, as for a file system that is mounted read-only (root ignores permissions)."""
    monkeypatch.chdir(folder)

    def start(number):
        def touch(path, **_):
            raise OSError(number, os.strerror(number), str(path))

        monkeypatch.setattr(pathlib.Path, "touch", touch)
        monkeypatch.setattr("filelock.FileLock.acquire", lambda lock, **_: touch(lock.lock_file))
        monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)

    return start


@pytest.mark.parametrize("verb", COMMANDS)
def test_numbers_are_shown_with_a_warning(refuse, capsys, verb):
    words, shown = COMMANDS[verb]
    before = sorted(pathlib.Path("run").iterdir())
    refuse(errno.EROFS)
    assert main([verb, *words]) == 0
    printed = capsys.readouterr()
    assert shown in printed.out
    assert "flatbayes: warning: " in printed.err
    assert "cannot be written: Read-only file system" in printed.err
    assert printed.err.count("\n") == 1
    assert sorted(pathlib.Path("run").iterdir()) == before


@pytest.mark.parametrize("verb", ["evaluate", "shift"])
def test_a_full_disk_is_an_error_after_the_numbers(refuse, capsys, verb):
    words, shown = COMMANDS[verb]
    refuse(errno.ENOSPC)
    assert main([verb, *words]) == 2
    printed = capsys.readouterr()
    assert shown in printed.out
    assert printed.err.startswith("flatbayes: ")
    assert "cannot be written: No space left on device. Free some space." in printed.err


def test_a_report_that_cannot_be_written_shows_its_table(refuse, capsys):
    refuse(errno.EROFS)
    assert main(["report", "cmp"]) == 2
    printed = capsys.readouterr()
    assert "MAP" in printed.out
    assert printed.err.startswith("flatbayes: cmp/report.html cannot be written: Read-only file system")


def test_a_folder_that_the_user_names_must_be_writable(refuse, capsys):
    refuse(errno.EROFS)
    for verb in ("shift", "diagnose"):
        assert main([verb, *COMMANDS[verb][0], "--out=elsewhere"]) == 2
        assert "There is no permission to write" in capsys.readouterr().err
