"""Claims: a folder of results says what decided them, and takes no others.

What decides all results of a folder (the model by a digest of its weights, settings, seed, question, wheels, version of
the format) lies beside them in `claim.json`; of a training run, in a signed file (`model.checkpoints`). What decides
one result (the clip's media, its subtitle or question) is a key that the result holds. Whoever adds to a folder, or
scores it, is refused in one line that names what differs.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mer_r1.data.clip import Clip
from mer_r1.data.jsonl import read_object, write_atomically
from mer_r1.data.media.read import content_key
from mer_r1.errors import UserError, printable
from mer_r1.weights import model_path

CLAIM_FILE = "claim.json"
ANOTHER = "choose another folder, or ask anew with --overwrite"
_BLOCK, _BLOCKS = 1 << 16, 1 << 10
"""A file of up to 64 MiB enters the digest of a model whole, of a larger one 1,024 blocks at equal distances."""
_OF_MODEL = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.txt", "*.model")
_NOT_OF_MODEL = (CLAIM_FILE, "think_auto.json", "summary.json")


def claim(
    folder: Path,
    facts: Mapping[str, Any],
    results: Sequence[str] = ("*",),
    *,
    name: str = CLAIM_FILE,
    advice: str = ANOTHER,
) -> None:
    """Claim a folder for results that these facts decide, or check that those it has are such ones.

    Args:
        folder: created if absent.
        facts: JSON values by name.
        results: patterns of the folder's results; a folder that has some and no claim is refused.
        name: file of the claim.
        advice: end of the message of a refusal.

    Raises:
        UserError: the folder belongs to other facts, or it is unknown to which.
    """
    file = folder / name
    found = sorted(path for pattern in results for path in folder.glob(pattern) if path != file and path.stat().st_size)
    if not found:
        write_atomically(file, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    elif file.exists():
        check_claim(folder, read_claim(folder, name, advice), facts, advice)
    else:
        raise UserError(f"{printable(folder)} holds {found[0].name} and no {name}: unknown whose it is; {advice}")


def clear(folder: Path, results: Sequence[str]) -> None:
    """Delete the results in a folder (files and folders by patterns), so that it can be claimed anew."""
    for path in [path for pattern in results for path in folder.glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def read_claim(folder: Path, name: str = CLAIM_FILE, advice: str = ANOTHER) -> dict[str, Any]:
    """The facts that a folder is claimed for; none without a claim.

    Raises:
        UserError: the claim cannot be read.
    """
    try:
        return read_object(folder / name) if (folder / name).exists() else {}
    except UserError as error:
        raise UserError(f"{error}; {advice}") from None


def check_claim(where: Path, before: Mapping[str, Any], now: Mapping[str, Any], advice: str = ANOTHER) -> None:
    """Refuse other facts than those before.

    Raises:
        UserError: naming what differs.
    """
    if differing := differences(before, now):
        raise UserError(f"{printable(where)} was made with other settings ({differing}); {advice}")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Names and values of the facts that differ, at most three; "" if none does.

    A fact that is null is one that is not there. A model is the same under another name if its weights are.
    """
    old, new = _flat(before), _flat(json.loads(json.dumps(now)))
    same_model = new.get("weights") is not None and old.get("weights") == new["weights"]
    names = [name for name in {**new, **old} if old.get(name) != new.get(name) and not (name == "model" and same_model)]
    if "stage" in names:  # then nearly every setting of a training run differs
        names = ["stage"]
    named = [f"{name}: {old.get(name)!r:.80}, now {new.get(name)!r:.80}" for name in names[:3]]
    return "; ".join(named + [f"and {len(names) - 3} more"] * (len(names) > 3))


def _flat(facts: Any, prefix: str = "") -> dict[str, Any]:
    """Nested facts by dotted names."""
    if not isinstance(facts, dict):
        return {prefix.removesuffix("."): facts}
    return {name: value for key, inner in facts.items() for name, value in _flat(inner, f"{prefix}{key}.").items()}


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


def item_keys(
    clips: Sequence[Clip], ask: Callable[[Clip], str] | None = None, donors: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Clip id -> digests of its media and of its words.

    Args:
        clips: clips that a model is asked about.
        ask: the question about each; None takes the subtitle, if one question holds for the whole folder.
        donors: clip id -> id of the clip that one of its channels comes from.
    """
    media = {clip.id: media_digest(clip.video, clip.audio) for clip in clips}
    if donors:
        media = {name: _short_digest([own, media[donors[name]]]) for name, own in media.items()}
    return {clip.id: f"{media[clip.id]}-{_short_digest(ask(clip) if ask else clip.subtitle)}" for clip in clips}


def check_items(where: Path, before: Iterable[tuple[str, str]], now: Mapping[str, str]) -> None:
    """Refuse results about clips that have changed since.

    Args:
        where: their file.
        before: clip ids and keys of results; an empty key is unknown, a clip that is no more is not asked about.
        now: result of `item_keys`; media that are not here now count as unchanged.

    Raises:
        UserError: naming the first such clip, and whether its media or its words have changed.
    """
    changed = {}
    for name, key in before:
        old, new = (text.partition("-")[::2] for text in (key, now.get(name, "")))
        if all((key, name in now)) and (old[1] != new[1] or old[0] != new[0] != ""):
            changed[name] = "subtitle or question" if old[1] != new[1] else "media"
    for name, what in changed.items():
        raise UserError(
            f"{printable(where)}: {len(changed)} of its clips have changed since (first: the {what} of {name}); "
            f"{ANOTHER}"
        )


def media_digest(video: Path | None, audio: Path | None) -> str:
    """Digest of a clip's files; "" if one is not there."""
    try:
        return content_key(video, audio)[:16]
    except UserError:
        return "unreadable" if all(path.exists() for path in (video, audio) if path) else ""


def _short_digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=6).hexdigest()


def weights_digest(model: str | Path) -> str | None:
    """Digest of a model: weights, settings and tokenizer of a local folder, or the hub's commit; None if unknown.

    Retrained weights under the same path have another digest; a copy elsewhere has the same.
    """
    folder = Path(model_path(model))
    if not folder.is_dir():
        return _hub_commit(str(model))
    found = hashlib.blake2b(digest_size=8)
    files = {file for pattern in _OF_MODEL for file in folder.glob(pattern) if file.name not in _NOT_OF_MODEL}
    for path in sorted(files):
        size = path.stat().st_size
        found.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            for start in range(0, size, max(_BLOCK, size // _BLOCKS)):
                file.seek(start)
                found.update(file.read(_BLOCK))
    return found.hexdigest()


def _hub_commit(name: str) -> str | None:
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(name, "config.json")).parent.name
    except (ImportError, OSError, ValueError):  # not there: loading it says so
        return None
