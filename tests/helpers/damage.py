"""Damaged inputs, drawn by a seed: bytes, JSON values, JSON lines and members of zip archives."""

import io
import json
import random
import zipfile
from collections.abc import Callable
from typing import Any

Damage = Callable[[bytes, random.Random], bytes]

ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 2.5, 1e308, float("nan"), float("-inf"), 10**30, [], {}, [[]], [None], {"a": {"b": 1}}),
    *(
        "",
        " ",
        "x" * 3000,
        "a\nb",
        "a\x00b",
        "\ud83d",
        "\u202e",
        "[",
        "<b>",
        "[bold]x[/bold]",
        "../..",
        "/dev/null",
        "--help",
    ),
)
"""Values that no reader expects."""
EXTREMES = (0, 1, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def bytes_of(content: bytes, rng: random.Random) -> bytes:
    """Flips bits, cuts, zeroes, overwrites, removes, inserts, repeats, or writes an extreme number."""
    data, place = bytearray(content), rng.randrange(max(1, len(content)))
    length = rng.choice((1, 4, 32, 500))
    match rng.randrange(8):
        case 0:
            for _ in range(rng.choice((1, 10, 200))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 1:
            del data[place:]
        case 2:
            data[place : place + length] = bytes(len(data[place : place + length]))
        case 3:
            data[place : place + length] = rng.randbytes(len(data[place : place + length]))
        case 4:
            del data[place : place + length]
        case 5:
            data[place:place] = rng.randbytes(length)
        case 6:
            data[place:place] = data[place : place + length] * rng.choice((1, 40))
        case _:
            place = rng.randrange(min(len(data), rng.choice((64, 4096))))
            data[place : place + 4] = rng.choice(EXTREMES).to_bytes(4, rng.choice(("big", "little")))
    return bytes(data)


def value_of(value: Any, rng: random.Random) -> Any:
    """A JSON value of which one part, at any depth, is removed, doubled, renamed or replaced by an odd one."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return rng.choice(ODD)
    places: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    changed, place = value.copy(), rng.choice(places)
    match rng.randrange(6):
        case 0:
            del changed[place]
        case 1 if isinstance(changed, dict):
            changed[rng.choice(("", "more", f"{place} "))] = changed.pop(place)
        case 1:
            changed.append(changed[place])
        case _:
            changed[place] = value_of(value[place], rng)
    return changed


def json_of(content: bytes, rng: random.Random) -> bytes:
    """A JSON text with a damaged value, one time in five with damaged bytes."""
    if rng.random() < 0.2:
        return bytes_of(content, rng)
    text = json.dumps(value_of(json.loads(content), rng), ensure_ascii=rng.random() < 0.5)
    return text.encode("utf-8", "surrogatepass")


def lines_of(content: bytes, rng: random.Random) -> bytes:
    """JSON lines of which one is damaged."""
    lines = content.splitlines()
    place = rng.randrange(len(lines))
    lines[place] = json_of(lines[place], rng)
    return b"\n".join(lines) + rng.choice((b"\n", b""))


def member_of(content: bytes, rng: random.Random) -> bytes:
    """A zip archive of which one member is damaged, one time in four the archive itself."""
    if rng.random() < 0.25:
        return bytes_of(content, rng)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(members))
    members[name] = bytes_of(members[name], rng)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return made.getvalue()
