"""Cache of prompts and replies in one SQLite file, so that nothing is asked twice.

A reply depends on the model, on every word and image of the prompt, on its decoding, and on the version of the
instruction. All of that, and nothing else, is the key (`reply_key`). The server is not part of it, and neither is any
credential: no function of this module takes one. Images and audio enter the key and the file as hashes only.

Each reply is committed the moment it arrives: an interrupted run resumes there. Failures are not kept but retried.
"""

import hashlib
import json
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from mer_r1.errors import UserError
from mer_r1.evaluation.llm.chat import ChatPrompt, Decoding, OnReply, Reply

LAYOUT = 1
"""Number of the table's layout, kept in the file as SQLite's `user_version`."""
_FAILURES = (sqlite3.Error, OSError, OverflowError, UnicodeError)
_TABLE = """
create table if not exists replies (
    key text primary key, model text not null, version text not null, parameters text not null,
    messages text not null, text text not null, finish_reason text not null, structured integer not null,
    prompt_tokens integer not null, completion_tokens integer not null, seconds real not null, created real not null
)
"""
_COLUMNS = ",".join(re.findall(r"(\w+) (?:text|integer|real)", _TABLE))


def reply_key(model: str, prompt: ChatPrompt, decoding: Decoding, version: str) -> str:
    """Hash (64 hexadecimal digits) of everything that a reply depends on.

    >>> asked = ChatPrompt.user("[joyful]")
    >>> reply_key("m", asked, Decoding(), "1") == reply_key("m", asked, Decoding(), "2")
    False
    """
    parts = {
        "layout": LAYOUT,
        "model": model,
        "version": version,
        "decoding": decoding.settings,
        "messages": without_media(prompt.messages),
        "schema": prompt.schema,
        "repeat": prompt.repeat,
    }
    return hashlib.sha256(_canonical(parts).encode()).hexdigest()


def without_media(value: Any) -> Any:
    """A copy of messages in which every data URL and every `input_audio` is replaced by the hash of its content.

    >>> without_media({"url": "data:image/jpeg;base64,AAAA"})
    {'url': 'data:image/jpeg;base64,sha256:63c1dd951ffedf6f7fd968ad4efa39b8ed584f162f46e715114ee184f8de9201'}
    """
    if isinstance(value, str):
        head, comma, content = value.partition(",")
        return f"{head},{_sha(content)}" if comma and head.startswith("data:") else value
    if isinstance(value, Mapping):
        copy = {name: without_media(item) for name, item in value.items()}
        sound = value.get("input_audio")
        if isinstance(sound, Mapping) and isinstance(sound.get("data"), str):
            copy["input_audio"] = {**sound, "data": _sha(sound["data"])}
        return copy
    if isinstance(value, list | tuple):
        return [without_media(item) for item in value]
    return value


class ReplyCache(AbstractContextManager["ReplyCache"]):
    """Replies in an SQLite file; several processes may share it."""

    def __init__(self, path: str | Path) -> None:
        """Open the file, or create it.

        Args:
            path: the file; ":memory:" for a temporary one.

        Raises:
            UserError: it cannot be opened, is another kind of file, or was written by a later version.
        """
        self.path = path
        try:
            if str(path) != ":memory:":
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            found = int(self._database.execute("pragma user_version").fetchone()[0])
            if found not in (0, LAYOUT):
                raise UserError(f"cache {path}: its layout is number {found}, this version reads {LAYOUT}")
            self._database.execute("pragma journal_mode = wal")
            self._database.execute("pragma synchronous = normal")
            if found != LAYOUT:  # writing it again would change a file that is only read
                self._database.execute(_TABLE)
                self._database.execute(f"pragma user_version = {LAYOUT}")
        except _FAILURES as error:
            raise UserError(f"cache {path}: cannot be used as a file of replies: {error}") from error
        if self._rows("select group_concat(name) from pragma_table_info('replies')") != [(_COLUMNS,)]:
            raise UserError(f"cache {path}: its table has other columns than {_COLUMNS}")

    def get(self, key: str) -> Reply | None:
        """The reply under `key` (see `reply_key`), marked as cached; None if there is none."""
        columns = "text, finish_reason, structured, prompt_tokens, completion_tokens, seconds"
        rows = self._rows(f"select {columns} from replies where key = ?", (key,))
        if not rows:
            return None
        if tuple(map(type, rows[0])) != (str, str, int, int, int, float):
            raise UserError(f"cache {self.path}: a reply in it is damaged; delete the file to ask again")
        text, finish_reason, structured, read, written, seconds = rows[0]
        return Reply(text, None, finish_reason, bool(structured), read, written, seconds, cached=True)

    def _rows(self, statement: str, values: Sequence[object] = ()) -> list[Any]:
        try:
            return self._database.execute(statement, values).fetchall()
        except _FAILURES as error:
            raise UserError(f"cache {self.path}: {error} (replies so far are kept)") from error

    def put(self, key: str, reply: Reply, model: str, prompt: ChatPrompt, decoding: Decoding, version: str) -> None:
        """Keep a reply, committed at once; an existing one under the key stays, unless a fresh one was asked for.

        Raises:
            ValueError: the reply has no text: failures are not kept.
        """
        if reply.text is None:
            raise ValueError(f"only replies with a text are kept, got the error {reply.error!r}")
        row = (
            key, model, version, _canonical(decoding.settings | {"schema": prompt.schema, "repeat": prompt.repeat}),
            _canonical(without_media(prompt.messages)), reply.text, reply.finish_reason, int(reply.structured),
            reply.prompt_tokens, reply.completion_tokens, reply.seconds, time.time(),
        )  # fmt: skip
        place = "replace" if prompt.fresh else "ignore"
        self._rows(f"insert or {place} into replies values ({', '.join('?' * len(row))})", row)

    def __len__(self) -> int:
        return int(self._rows("select count(*) from replies")[0][0])

    def __bool__(self) -> bool:
        return True  # an empty cache is still a cache

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Every kept reply with its model, version, parameters and messages, oldest first, for inspection."""
        cursor = self._database.execute("select * from replies order by created, key")
        names = [column[0] for column in cursor.description]
        for row in cursor:
            yield dict(zip(names, row, strict=True))

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def __exit__(self, *_: object) -> None:
        self.close()


class Replies:
    """The replies to a list of prompts: from the cache, then as they arrive. Equal prompts share one reply.

    Attributes:
        cached: replies that were in the cache, one per different prompt.
        missing: keys of the other prompts, for `prompt` and `arrived`.
        n_cached: prompts with a cached reply, equal ones counted each.
    """

    def __init__(
        self,
        prompts: Sequence[ChatPrompt],
        cache: ReplyCache,
        model: str,
        decoding: Decoding,
        version: str,
        on_reply: OnReply | None = None,
    ) -> None:
        """Look the prompts up; the arguments are those of `reply_key` and of `chat.TextModel.complete`."""
        self._prompts, self._cache, self._on_reply = prompts, cache, on_reply
        self._asked = (model, decoding, version)
        self._replies: dict[int, Reply] = {}
        self._places: dict[str, list[int]] = {}
        for index, prompt in enumerate(prompts):
            self._places.setdefault(reply_key(model, prompt, decoding, version), []).append(index)
        self.cached: list[Reply] = []
        self.missing: list[str] = []
        for key in self._places:
            known = None if self.prompt(key).fresh else cache.get(key)
            if known is None or known.finish_reason not in ("stop", "length"):  # broken, of an earlier version
                self.missing.append(key)
            else:
                self.cached.append(known)
                self._deliver(key, known)
        self.n_cached = len(prompts) - sum(len(self._places[key]) for key in self.missing)

    def prompt(self, key: str) -> ChatPrompt:
        """The prompt with that key."""
        return self._prompts[self._places[key][0]]

    def arrived(self, key: str, reply: Reply) -> None:
        """Keep a reply in the cache unless it is an error, and pass it on."""
        model, decoding, version = self._asked
        if reply.text is not None:
            self._cache.put(key, reply, model, self.prompt(key), decoding, version)
        self._deliver(key, reply)

    def in_order(self) -> list[Reply]:
        """All replies, in the prompts' order."""
        return [self._replies[index] for index in range(len(self._prompts))]

    def _deliver(self, key: str, reply: Reply) -> None:
        for index in self._places[key]:
            self._replies[index] = reply
            if self._on_reply:
                self._on_reply(index, reply)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _sha(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
