"""Atomic writes, and JSON with numbers that are not finite or damaged content."""

import json
import math
import os

import pytest

from flatbayes.core.files import atomic_write, list_temporary_files, parse_json, read_json, write_json


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a" / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ArithmeticError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise ArithmeticError
    assert read_json(path) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


def test_temporary_files_of_killed_processes_are_removed(tmp_path):
    child = os.fork()
    if child == 0:
        with atomic_write(tmp_path / "x.json"):
            os._exit(9)
    os.waitpid(child, 0)
    (left,) = list_temporary_files(tmp_path)
    foreign = tmp_path / f".x.json.{'0' * 8}.{child}.{child}.tmp"  # of another machine, where it may be written now
    foreign.touch()
    write_json(tmp_path / "y.json", 1)
    assert left.exists()
    with atomic_write(tmp_path / "x.json") as temporary:
        assert set(list_temporary_files(tmp_path)) == {temporary, foreign}
        assert not left.exists()


def test_content_is_on_the_disk_before_its_name(tmp_path, monkeypatch):
    events = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda number: events.append(os.readlink(f"/proc/self/fd/{number}")) or sync(number)
    )
    monkeypatch.setattr(os, "replace", lambda *names: events.append("rename") or replace(*names))
    with atomic_write(tmp_path / "new" / "x.json") as temporary:
        temporary.write_text("1")
    assert events == [str(tmp_path), str(temporary), "rename", str(tmp_path / "new")]


def test_a_link_in_place_of_the_temporary_file_is_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("text")
    with atomic_write(tmp_path / "x") as temporary:
        pass
    temporary.symlink_to(precious)
    with atomic_write(tmp_path / "x") as temporary:
        temporary.write_text("other")
    assert precious.read_text() == "text"


def test_numbers_that_are_not_finite_become_null(tmp_path):
    write_json(tmp_path / "x.json", {"a": [math.nan, math.inf, 1.5], "b": (2,)})
    assert read_json(tmp_path / "x.json") == {"a": [None, None, 1.5], "b": [2]}


def test_nested_json_is_read_to_a_depth_that_recursive_functions_can_process():
    assert parse_json("[" * 200 + "1" + "]" * 200) != []
    for opening, closing in ("[", "]"), ('{"a":', "}"):
        for depth in (201, 1_000, 100_000):
            with pytest.raises(json.JSONDecodeError, match="nested deeper than 200"):
                parse_json(opening * depth + "1" + closing * depth)
    with pytest.raises(json.JSONDecodeError, match="Expecting value"):
        parse_json(b"[?]")


@pytest.mark.parametrize(
    "content", [b"{", b"\xff\xfe", b"", b"[" * 201 + b"]" * 201, b'{"a":' * 300 + b"1" + b"}" * 300]
)
def test_the_error_for_a_damaged_file_names_it(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.json is damaged"):
        read_json(tmp_path / "x.json")
