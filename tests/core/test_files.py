"""Atomic writes, and JSON with numbers that are not finite or damaged content."""

import math

import pytest

from flatbayes.core.files import atomic_write, read_json, write_json


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a" / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ArithmeticError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise ArithmeticError
    assert read_json(path) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


def test_numbers_that_are_not_finite_become_null(tmp_path):
    write_json(tmp_path / "x.json", {"a": [math.nan, math.inf, 1.5], "b": (2,)})
    assert read_json(tmp_path / "x.json") == {"a": [None, None, 1.5], "b": [2]}


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b""])
def test_the_error_for_a_damaged_file_names_it(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.json is damaged"):
        read_json(tmp_path / "x.json")
