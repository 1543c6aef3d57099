"""Objects and lines: what is read, what is dropped, what is refused, and that nothing ended is ever lost."""

import errno
import json
import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mer_r1.data.jsonl import append_line, object_of, read_lines, read_object, repair_end, write_atomically
from mer_r1.errors import UserError

ROWS = st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=5) | st.integers() | st.none(), max_size=3))


@given(rows=ROWS, cut=st.integers(0, 60))
def test_a_kill_costs_the_last_line_at_most(tmp_path_factory, rows, cut):
    path = tmp_path_factory.mktemp("lines") / "rows.jsonl"
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    content = content[: max(0, len(content) - cut)]
    path.write_bytes(content)
    whole = content.count(b"\n")
    found = list(read_lines(path, object_of))
    assert found[:whole] == rows[:whole]
    assert len(found) in (whole, whole + 1)  # the last line may lack nothing but its end
    repair_end(path, object_of)
    with path.open("ab") as file:
        file.write(b'{"new": 1}\n')
    assert list(read_lines(path, object_of)) == [*found, {"new": 1}]


def test_a_half_written_line_is_dropped_with_a_word(tmp_path, caplog):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"b": "\xc3')
    with caplog.at_level(logging.WARNING):
        assert list(read_lines(path, object_of)) == [{"a": 1}]
    assert "rows.jsonl: line 3 was only half written" in caplog.text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": 1}\n[2]\n', "rows.jsonl line 2: expected a row as one JSON object, got \\[2\\]"),
        (b'{"a"\n{}\n', "rows.jsonl line 1: expected a row as one JSON object, got '{\"a\"'"),
        ('{"a": "é"}\n{}\n'.encode("latin-1"), "rows.jsonl: expected UTF-8 text"),
        (b"[" * 5000 + b"\n{}\n", "rows.jsonl line 1: expected a row"),
    ],
)
def test_other_lines_are_refused(tmp_path, content, said):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        list(read_lines(path, object_of))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "a.json: cannot be read .No such file"),
        (b"{", "a.json is no JSON"),
        (b"[1]", "a.json: expected an object, name -> value, got list"),
        (b"\xff{}", "a.json is no JSON"),
    ],
)
def test_what_is_no_object_is_said(tmp_path, content, said):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_object(path)


def test_an_object_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_object(tmp_path / "a.json") == {"a": 1}
    assert object_of(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "rows.json"
    write_atomically(path, "old é")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"

    def fails(partial):
        partial.write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_atomically(path, fails)
    assert path.read_bytes() == b"new"
    write_atomically(path, lambda partial: partial.write_text("third"))
    assert [file.read_text() for file in path.parent.iterdir()] == ["third"]


@pytest.mark.parametrize("fits", [0, 5])
def test_a_full_disk_costs_only_the_line_that_does_not_fit(tmp_path, monkeypatch, fits):
    path, write = tmp_path / "rows.jsonl", os.write

    def full(number, content):
        if fits and len(content) == len(b'{"b": 2}\n'):
            return write(number, content[:fits])
        raise OSError(errno.ENOSPC, "No space left on device")

    with path.open("a", encoding="utf-8") as file:
        append_line(file, '{"a": 1}')
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left") as caught:
            append_line(file, '{"b": 2}')
        monkeypatch.undo()
        append_line(file, '{"c": "é"}')
    assert caught.value.filename == str(path)
    assert path.read_text(encoding="utf-8") == '{"a": 1}\n{"c": "é"}\n'


def test_a_disk_that_can_only_be_read_is_told_of_the_file_that_was_meant(tmp_path, monkeypatch):
    def refuse(path, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OSError, match="Read-only") as caught:
        write_atomically(tmp_path / "a.json", "new")
    assert caught.value.filename == str(tmp_path / "a.json")


def test_a_file_that_does_not_fit_leaves_the_old_one_and_is_named(tmp_path):
    def full(partial):
        partial.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a.json").write_text("old", encoding="utf-8")
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(tmp_path / "a.json", full)
    assert caught.value.filename == str(tmp_path / "a.json")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "old"
