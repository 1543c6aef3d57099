"""What decides a content, written beside it, so that no other content is taken for it."""

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mer_r1.data.jsonl import read_object, write_atomically
from mer_r1.errors import UserError


def digest(content: bytes | str) -> str:
    """Digest of a content, 32 hexadecimal digits."""
    return hashlib.blake2b(content.encode() if isinstance(content, str) else content, digest_size=16).hexdigest()


def digests(files: Iterable[Path]) -> list[str]:
    """Digest of each file's content; several files are read at a time."""

    def of_one(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(of_one, files))


def write_signed(file: Path, **content: Any) -> None:
    """Write an object as JSON, with a digest of itself."""
    text = json.dumps(content)
    write_atomically(file, json.dumps({**content, "digest": digest(text)}) + "\n")


def read_signed(file: Path) -> dict[str, Any]:
    """The object of `write_signed`; empty if the file is not there or not as it was written."""
    try:
        content = read_object(file)
    except UserError:
        return {}
    return content if content.pop("digest", None) == digest(json.dumps(content)) else {}


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Names and values that differ, in a few words; "" if nothing does."""
    names = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    if "stage" in names:  # then nearly every setting differs
        names = ["stage"]
    named = [f"{name}: {before.get(name)!r:.60}, now {now.get(name)!r:.60}" for name in names[:3]]
    return "; ".join(named + [f"and {len(names) - 3} more"] * (len(names) > 3))
