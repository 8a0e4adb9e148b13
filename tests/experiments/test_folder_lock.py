"""One process at a time in a folder."""

import errno
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import filelock
import pytest

from flatbayes.experiments.folder_lock import (
    HOLDER_FILE,
    LOCK_FILE,
    UPDATE_LOCK_FILE,
    lock_folder,
    unlock_folders,
    update_lock,
)


@contextmanager
def another_process(folder):
    """A process that holds the folder until it is killed at the end."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            lock_folder(folder)
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


def test_a_second_process_is_refused_and_a_killed_holder_is_not(tmp_path):
    with (
        another_process(tmp_path / "run") as child,
        pytest.raises(ValueError, match=f"written to by process {child} on"),
    ):
        lock_folder(tmp_path / "run")
    assert (tmp_path / "run" / LOCK_FILE).exists()  # left by SIGKILL
    lock_folder(tmp_path / "run")
    lock_folder(tmp_path / "run" / ".." / "run")  # again, by another name
    assert str(os.getpid()) in (tmp_path / "run" / HOLDER_FILE).read_text()
    unlock_folders(tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())
    with another_process(tmp_path / "run"):
        pass


def test_all_folders_are_released_and_only_those_of_this_process(tmp_path):
    for name in "ab":
        lock_folder(tmp_path / name)
    unlock_folders(tmp_path / "other")
    unlock_folders()
    with another_process(tmp_path / "a"), another_process(tmp_path / "b"):
        unlock_folders()
        assert (tmp_path / "a" / HOLDER_FILE).exists()
        with pytest.raises(ValueError, match="is being written to by"):
            lock_folder(tmp_path / "b")


def test_a_forked_child_does_not_hold_the_folder_of_its_parent(tmp_path):
    lock_folder(tmp_path)
    child = os.fork()
    if child == 0:
        unlock_folders()
        try:
            lock_folder(tmp_path)
        except ValueError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert (tmp_path / HOLDER_FILE).exists()
    unlock_folders()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file, not a folder"):
        lock_folder(tmp_path / "file")


@pytest.mark.parametrize(("code", "ignored"), [(errno.ENOTSUP, True), (errno.EACCES, False)])
def test_only_a_file_system_without_locks_is_ignored(tmp_path, monkeypatch, code, ignored):
    def acquire(*_, **__):
        raise OSError(code, "no lock")

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    if ignored:
        lock_folder(tmp_path)
        unlock_folders()
    else:
        with pytest.raises(OSError, match="Permission denied"):
            lock_folder(tmp_path)


@pytest.mark.parametrize("name", [LOCK_FILE, HOLDER_FILE, UPDATE_LOCK_FILE])
def test_a_link_in_place_of_a_lock_changes_no_other_file(tmp_path, name):
    (tmp_path / "precious").write_text("text")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "precious")
    try:
        lock_folder(tmp_path / "run")
        with update_lock(tmp_path / "run"):
            pass
    except OSError:
        pass  # the link is refused
    finally:
        unlock_folders(tmp_path / "run")
    assert (tmp_path / "precious").read_text() == "text"


def test_updates_of_several_threads_are_not_lost(tmp_path):
    path = tmp_path / "count"
    path.write_text("0")

    def count():
        for _ in range(20):
            with update_lock(tmp_path):
                path.write_text(str(int(path.read_text()) + 1))

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(count) for _ in range(4)]:
            future.result()
    assert path.read_text() == "80"
    assert [item.name for item in tmp_path.iterdir()] == ["count"]
