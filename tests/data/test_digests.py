"""Kept digests of media: read once, again when a file changes, and compared on demand."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from mer_r1.data.check import check_manifest
from mer_r1.data.claim import check_items, item_keys
from mer_r1.data.clip import Clip
from mer_r1.data.media import digests
from mer_r1.data.media.digests import file_digest, reread, table_path
from mer_r1.errors import UserError


@pytest.fixture(autouse=True)
def own_table(tmp_path, monkeypatch):
    """A table of this test's own, which keeps the digests of new files too."""
    monkeypatch.setenv("MER_R1_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_SETTLED", -1)
    digests._digest.cache_clear()
    yield
    digests._digest.cache_clear()


@pytest.fixture
def read(monkeypatch):
    """Names of the files that were read whole."""
    names = []
    whole = digests.hashlib.file_digest

    def noted(file, how):
        names.append(Path(file.name).name)
        return whole(file, how)

    monkeypatch.setattr(digests.hashlib, "file_digest", noted)
    return names


def file(path: Path, content: bytes, time: int = 1_000_000_000) -> Path:
    path.write_bytes(content)
    os.utime(path, ns=(time, time))
    return path


def hashed(content: bytes) -> bytes:
    return digests.hashlib.blake2b(content, digest_size=32).digest()


def another_start() -> None:
    """Forget what a process that starts does not know."""
    digests._digest.cache_clear()


def test_a_file_is_read_once_by_all_processes(tmp_path, read):
    a = file(tmp_path / "a.wav", b"1234")
    assert file_digest(a) == hashed(b"1234")
    another_start()
    assert file_digest(a) == hashed(b"1234")
    assert read == ["a.wav"]
    # Another process, which cannot read files whole, knows it too.
    script = f"""import hashlib; from pathlib import Path; from mer_r1.data.media.digests import file_digest
hashlib.file_digest = None; print(file_digest(Path({str(a)!r})).hex())"""
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == hashed(b"1234").hex()


@pytest.mark.parametrize("change", ["size", "time", "time put back"])
def test_a_changed_file_is_read_again(tmp_path, read, change):
    a = file(tmp_path / "a.wav", b"1234")
    file_digest(a)
    now = b"12345" if change == "size" else b"5678"
    file(a, now, 1_000_000_001 if change == "time" else 1_000_000_000)
    another_start()
    assert file_digest(a) == hashed(now)
    assert read == ["a.wav", "a.wav"]


def test_results_of_other_media_under_the_same_path_are_refused(tmp_path):
    clips = [Clip("1", audio=file(tmp_path / "a.wav", b"1234"))]
    before = item_keys(clips)
    another_start()
    check_items(tmp_path, before.items(), item_keys(clips))
    file(tmp_path / "a.wav", b"5678")
    with pytest.raises(UserError, match="the media of 1"):
        check_items(tmp_path, before.items(), item_keys(clips))


def test_a_file_that_may_still_change_unseen_is_not_kept(tmp_path, monkeypatch, read):
    monkeypatch.setattr(digests, "_SETTLED", 3600 * 10**9)
    a = file(tmp_path / "a.wav", b"1234")  # its time of change is now
    file_digest(a)
    another_start()
    file_digest(a)
    assert read == ["a.wav", "a.wav"]


def test_the_content_is_checked_on_demand(tmp_path):
    a = file(tmp_path / "a.wav", b"1234")
    (tmp_path / "m.jsonl").write_text('{"id": "1", "audio": "a.wav"}\n')
    assert not reread(a)  # nothing is known of it
    assert not reread(a)
    file(a, b"5678")
    with sqlite3.connect(table_path()) as table:  # as on a file system that keeps no time of change
        table.execute("update files set changed = ? where path = ?", (a.stat().st_ctime_ns, os.fsencode(a)))
    another_start()
    assert file_digest(a) == hashed(b"1234")
    problem = "a.wav: another content than before, under the same size and time"
    assert not any(problem in text for _, _, text in check_manifest(tmp_path / "m.jsonl").problems)
    assert any(problem in text for _, _, text in check_manifest(tmp_path / "m.jsonl", content=True).problems)
    assert file_digest(a) == hashed(b"5678")
    assert not reread(a)


def test_without_a_table_files_are_read_again(tmp_path, read, caplog):
    table_path().parent.mkdir()
    table_path().write_text("no database" * 100)
    a = file(tmp_path / "a.wav", b"1234")
    for _ in range(2):
        file_digest(a)
        another_start()
    assert read == ["a.wav", "a.wav"]
    assert "media files are read again at every start" in caplog.text
