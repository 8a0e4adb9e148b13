import os
import signal
from contextlib import contextmanager

import pytest

from flatbayes.core.lock import NAME, hold, let_go


@contextmanager
def another_process(folder):
    """One that holds the folder, until it is killed at the end."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            hold(folder)
            os.write(writing, b"held")
            signal.pause()
        finally:
            os._exit(1)
    assert os.read(reading, 4) == b"held"
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)


def test_one_process_at_a_time_and_a_killed_one_no_more(tmp_path):
    with (
        another_process(tmp_path / "run") as child,
        pytest.raises(ValueError, match=f"written to by process {child} on"),
    ):
        hold(tmp_path / "run")
    assert (tmp_path / "run" / NAME).exists()  # what SIGKILL leaves
    hold(tmp_path / "run")
    hold(tmp_path / "run" / ".." / "run")  # again, by another name
    assert str(os.getpid()) in (tmp_path / "run" / NAME).read_text()
    let_go(tmp_path / "run")
    assert not (tmp_path / "run" / NAME).exists()
    with another_process(tmp_path / "run"):
        pass


def test_letting_go_of_everything_and_of_nothing(tmp_path):
    for name in "ab":
        hold(tmp_path / name)
    let_go(tmp_path / "other")
    let_go()
    with another_process(tmp_path / "a"), another_process(tmp_path / "b"):
        let_go()
        assert (tmp_path / "a" / NAME).exists()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file, not a folder"):
        hold(tmp_path / "file")


def test_a_lock_that_its_holder_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    import flatbayes.core.lock as lock

    is_there, first = lock._is_there, []

    def removed(descriptor, path):
        if not first:
            first.append(path.unlink())
        return is_there(descriptor, path)

    monkeypatch.setattr(lock, "_is_there", removed)
    hold(tmp_path)
    assert (tmp_path / NAME).exists()
    let_go()


def test_without_locks_nothing_is_locked(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError("not supported")

    monkeypatch.setattr("flatbayes.core.lock.fcntl.flock", flock)
    hold(tmp_path)
    let_go()
