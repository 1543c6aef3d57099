"""Digests of media files, kept from run to run: a file is read anew only if its path, size or one of its times is new.

The table is in the user's cache folder, `MER_R1_CACHE_DIR` or `~/.cache/mer-r1`. All processes share it, and without it
(deleted, not writable) files are read again. `reread` compares a file with what the table says of it.
"""

import hashlib
import logging
import os
import sqlite3
import threading
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

TABLE_FILE = "media-digests.sqlite"
_SETTLED = 2_000_000_000
"""Nanoseconds after which another change of a file shows in its times; digests of files that are newer are not kept."""


def file_digest(path: Path) -> bytes:
    """Digest of a file's content, 32 bytes; raises OSError if it cannot be read."""
    status = path.stat()
    return _digest(os.path.abspath(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def reread(path: Path) -> bool:
    """Read a file again; whether its content is another one than the table has for the same size and time.

    The table then has the content of now. Raises OSError if the file cannot be read.
    """
    status, name = path.stat(), os.fsencode(os.path.abspath(path))
    same = (name, status.st_size, status.st_mtime_ns)
    before = _rows("select digest from files where (path, size, modified) = (?, ?, ?)", same)
    _rows("delete from files where path = ?", (name,))
    _digest.cache_clear()
    now = file_digest(path)
    return bool(before) and before[0][0] != now


@lru_cache(maxsize=1 << 17)
def _digest(path: str, size: int, modified: int, changed: int) -> bytes:
    state = (os.fsencode(path), size, modified, changed)
    known = _rows("select digest from files where (path, size, modified, changed) = (?, ?, ?, ?)", state)
    if known:
        return bytes(known[0][0])
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).digest()
    if time.time_ns() - max(modified, changed) > _SETTLED:
        _rows("insert or replace into files values (?, ?, ?, ?, ?)", (*state, digest))
    return digest


def _rows(statement: str, values: tuple[Any, ...]) -> list[Any]:
    database = _database(os.getpid(), threading.get_ident(), table_path())
    try:
        return database.execute(statement, values).fetchall() if database else []
    except sqlite3.Error as error:  # locked for long, or the disk is full: the file is read again next time
        logger.debug("%s: %s", TABLE_FILE, error)
        return []


def table_path() -> Path:
    """Path of the table, present or not."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mer-r1"
    return Path(os.environ.get("MER_R1_CACHE_DIR") or default) / TABLE_FILE


@lru_cache(maxsize=64)
def _database(process: int, thread: int, path: Path) -> sqlite3.Connection | None:
    # One connection per process and thread: SQLite's may not be shared, and not be used after a fork.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(path, timeout=10, isolation_level=None)
        database.execute("pragma synchronous = off")
        columns = "path blob primary key, size integer, modified integer, changed integer, digest blob"
        database.execute(f"create table if not exists files ({columns}) without rowid")
    except (sqlite3.Error, OSError) as error:
        logger.warning("%s cannot be used (%s): media files are read again at every start", path, error)
        return None
    return database
