"""A campaign against the commands: damaged inputs, killed runs, folders of another run. All of it is drawn by a seed.

It is short here. `MER_R1_CAMPAIGN=40 MER_R1_CAMPAIGN_SEED=7 pytest -s tests/test_campaign.py` draws 40 times as much
from another seed and prints its counts (docs/reliability.md). Every command runs in a fork of this process, with bounds
of time and memory. Whatever the input: it ends by itself with a status that the command knows, a refusal is one line,
and neither a traceback nor the key appears, on the screen or on the disk.
"""

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import damage
import numpy as np
import pytest
from docs_world import served, write_wheels
from layouts import write_set
from llm_server import Answer, Call, Server, said
from media_samples import tone, write_media
from safetensors import safe_open
from synthetic_run import write_run
from tqdm import tqdm

from mer_r1 import cli

TIMES = int(os.environ.get("MER_R1_CAMPAIGN", "1"))
SEED = os.environ.get("MER_R1_CAMPAIGN_SEED", "0")
EACH, SECONDS, GIBIBYTES = 8 * TIMES, 400, 4
"""Damaged inputs of each kind, and what a command may take for one of them."""
ESCAPED, HANGS = 99, "hangs"
KEY = "PLANTED-0123456789abcdef"
SMALL = ("--max-new-tokens", 12, "--batch-size", 2)


@pytest.fixture(autouse=True)
def planted_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("COLUMNS", "120")


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status, minus a signal's number, or `HANGS`; and what it printed."""

    status: int | str
    out: str
    err: str


def start(words: tuple[Any, ...], folder: Path, room: int | None = None) -> int:
    """Start a command in a fork of this process, which has imported everything; returns the process.

    No file that it writes becomes longer than `room`, as if the disk were full.
    """
    child = os.fork()
    if child:
        return child
    status = ESCAPED
    try:
        os.setpgid(0, 0)
        tqdm.set_lock(threading.RLock())  # its own lock is shared with this process, and a kill may leave it locked
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + GIBIBYTES * 2**30,) * 2)
        if room is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), number)
        with pytest.MonkeyPatch.context() as patch, open(1, "w") as out, open(2, "w") as err:
            for name, value in (("argv", ["mer-r1", *map(str, words)]), ("stdout", out), ("stderr", err)):
                patch.setattr(f"sys.{name}", value)
            try:
                cli.main()
                status = 0
            except SystemExit as stop:
                status = stop.code if isinstance(stop.code, int) else 0
            except BaseException:
                traceback.print_exc(file=err)
    finally:
        os._exit(status)


def wait(child: int, folder: Path, until: Callable[[], bool] = lambda: False, number: int = 0) -> Ended:
    """Wait for the end of a command; send it a signal as soon as a condition holds."""
    deadline = time.monotonic() + SECONDS
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
        if number and until():
            os.kill(child, number)
            number = 0
        time.sleep(0.002)
    printed = [(folder / name).read_text("utf-8", "replace") for name in ("out", "err")]
    return Ended(os.waitstatus_to_exitcode(ended[1]) if ended[0] else HANGS, *printed)


def run_in_fork(folder: Path, *words: Any) -> Ended:
    printed = folder.with_name(f"{folder.name}-printed")
    printed.mkdir(exist_ok=True)
    return wait(start(words, printed), printed)


def told(ended: Ended) -> list[str]:
    """The lines of an error message; notes, warnings and the library's bars are none."""
    none = ("INFO ", "WARNING ", "[transformers] ", "Loading weights: ", "Writing model shards: ")
    return [line for line in ended.err.splitlines() if line.strip() and not line.startswith(none)]


def require_sound_end(ended: Ended) -> None:
    assert ended.status in (0, 1, 2, 3), ended
    assert "Traceback" not in ended.out + ended.err
    assert KEY not in ended.out + ended.err
    if ended.status == 2 and "Usage:" not in ended.err:
        assert len(told(ended)) == 1, ended.err
        assert told(ended)[0].startswith("mer-r1: ")
        assert len(told(ended)[0]) < 2_500


def report(counts: str) -> None:
    print(f"\n{counts}", end=" ")  # noqa: T201


def no_key_below(folder: Path) -> bool:
    return not any(KEY.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())


# --- damaged inputs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A command, the file that is damaged before it runs, and how."""

    words: tuple[Any, ...]
    file: Path
    damage: damage.Damage


@pytest.fixture(scope="module")
def answered(taught_folder, corpus, tmp_path_factory):
    """A folder of an evaluation with sampled answers."""
    folder = tmp_path_factory.mktemp("campaign") / "answered"
    assert run_in_fork(folder, *evaluation(taught_folder, corpus, folder)).status == 0
    return folder


def evaluation(model: Path, manifest: Path, out: Path, *more: Any) -> tuple[Any, ...]:
    common = ("--features-dir", out.parent / "features", "--temperature", 1, "--split", "all", "--json", *SMALL)
    return "evaluate", "--manifest", manifest, "--model", model, "--out", out, *common, *more


def manifests(folder: Path, corpus: Path) -> Iterator[Target]:
    shutil.copytree(corpus.parent, folder / "corpus")
    file = folder / "corpus" / "manifest.jsonl"
    yield Target(("check", file, "--workers", 1, "--json"), file, damage.lines_of)
    yield Target(("evaluate", "--manifest", file, "--out", folder / "none"), file, damage.lines_of)


def media(folder: Path, corpus: Path) -> Iterator[Target]:
    sound = tone(1.0)
    for name, codecs in {
        **{"a.mp4": {"frames": 8, "video_codec": "libx264"}, "b.mkv": {"frames": 8}, "c.avi": {"frames": 8}},
        **{"d.wav": {"audio_codec": "pcm_s16le"}, "e.flac": {"audio_codec": "flac"}},
    }.items():
        file = write_media(folder / name, sound=sound, **codecs)
        manifest = folder / f"{name}.jsonl"
        manifest.write_text(json.dumps({"id": name, "video" if "frames" in codecs else "audio": name}) + "\n")
        yield Target(("check", manifest, "--workers", 1, "--json"), file, damage.bytes_of)


def releases(folder: Path, corpus: Path) -> Iterator[Target]:
    labels = write_set(folder, "meld", 3) / "label.npz"
    yield Target(("prepare", "meld", "--root", folder, "--allow-pickle"), labels, damage.member_of)
    np.savez(folder / "answers.npz", name2reason=np.array({"a": "<answer>happy</answer>"}, object))
    words = ("extract", "--predictions", folder / "answers.npz", "--out", folder / "out.jsonl", "--allow-pickle")
    yield Target(words, folder / "answers.npz", damage.member_of)


def answers(folder: Path, corpus: Path) -> Iterator[Target]:
    row = {"mode": "slow", "completion": "<think>x</think><answer>happy</answer>", "error": None, "notes": []}
    file = folder / "answers.jsonl"
    file.write_text("".join(json.dumps({"id": f"clip-{number}", **row}) + "\n" for number in range(3)))
    extract = ("extract", "--predictions", file, "--out", folder / "labels.jsonl")
    yield Target(extract, file, damage.lines_of)
    yield Target((*extract, "--kind", "sentiment", "--sentiment", "rules", "--json"), file, damage.lines_of)


def scores(folder: Path, corpus: Path) -> Iterator[Target]:
    given = {"gold": {"a": "[happy]", "b": "[sad]"}, "found": {"a": "[joy]", "b": "[]"}, "mood": {"a": 1.0, "b": -0.5}}
    for name, value in given.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    for name, gold in (("openset", "gold"), ("hit-rate", "gold"), ("sentiment", "mood")):
        pair = ("--gold", folder / f"{gold}.json", "--predictions", folder / "found.json")
        for file in pair[1::2]:
            yield Target(("score", name, *pair, "--json"), Path(file), damage.json_of)
    (folder / "judged").mkdir()
    row = {"video_id": "v", "ground_truth": "positive", "model_response": "Positive.", "step": "<step>Step 1: a</step>"}
    (folder / "judged" / "SA.json").write_text(json.dumps([{**row, "score": "<score>Step 1: 1/1</score>"}]))
    yield Target(
        ("score", "mme-emotion", "--predictions", folder / "judged"), folder / "judged" / "SA.json", damage.json_of
    )


def runs(folder: Path, corpus: Path) -> Iterator[Target]:
    run = write_run(folder / "run", clips=6, media=2)
    for name, how in {
        "run.json": damage.json_of,
        "rl/log.jsonl": damage.lines_of,
        "eval/rl.jsonl": damage.lines_of,
    }.items():
        yield Target(("report", run), run / name, how)


def wheels(folder: Path, corpus: Path) -> Iterator[Target]:
    write_wheels(folder / "wheels")
    for name, how in {
        "wheel1.xlsx": damage.member_of,
        "synonym.xlsx": damage.member_of,
        "format.csv": damage.bytes_of,
    }.items():
        yield Target(("map", "happy", "--wheels", folder / "wheels", "--json"), folder / "wheels" / name, how)


def recipes(folder: Path, corpus: Path) -> Iterator[Target]:
    common = {"output_dir": str(folder / "out"), "model": str(folder / "none"), "manifest": str(corpus)}
    common |= {"bf16": False, "use_cpu": True, "model_init_kwargs": None}
    stages = {"sft": {"learning_rate": 1e-3, "max_steps": 3}, "rl": {"method": "mer-r1", "num_generations": 4}}
    file = folder / "recipe.yaml"  # JSON is YAML
    file.write_text(json.dumps({"common": common, **stages}))
    for stage in stages:
        yield Target((stage, "--config", file), file, damage.json_of)
        yield Target((stage, "--config", file), file, damage.bytes_of)


def models(folder: Path, corpus: Path, checkpoint: Path) -> Iterator[Target]:
    shutil.copytree(checkpoint, folder / "model")
    clip = corpus.parent / "0.mp4"
    for file in sorted((folder / "model").iterdir()):
        how = damage.json_of if file.suffix == ".json" else damage.bytes_of
        yield Target(("predict", clip, "--model", folder / "model", "--think", "slow", *SMALL[:2]), file, how)


def damaged_and_run(kind: str, target: Target, rng: random.Random, folder: Path) -> Ended:
    """Damage a target's file, run its command, and put the file back as it was."""
    whole = target.file.read_bytes()
    target.file.write_bytes(target.damage(whole, rng))
    ended = run_in_fork(folder, *target.words)
    try:
        require_sound_end(ended)
    except AssertionError:
        shutil.copy(target.file, folder / f"failed-{kind}{target.file.suffix}")
        raise
    target.file.write_bytes(whole)
    return ended


KINDS = (manifests, media, releases, answers, scores, runs, wheels, recipes)


@pytest.mark.parametrize("kind", [*KINDS, models], ids=lambda kind: kind.__name__)
def test_a_damaged_input_ends_in_one_line(kind, corpus, taught_folder, run, tmp_path):
    rng = random.Random(f"{SEED} {kind.__name__}")
    targets = list(kind(tmp_path, corpus, *([taught_folder] if kind is models else [])))
    for words in dict.fromkeys(target.words for target in targets):
        # In this process, which imports what the forks need. A recipe's model and the results to score are missing.
        assert run(*words)[0] in ((2,) if kind is recipes or "evaluate" in words else (0,))
    statuses = Counter()
    for number in range(EACH):
        statuses[damaged_and_run(kind.__name__, targets[number % len(targets)], rng, tmp_path).status] += 1
    report(f"{kind.__name__}: {EACH} damaged inputs, by exit status {dict(sorted(statuses.items()))}")


def test_a_manifest_is_checked_row_by_row_whatever_its_damage(corpus, tmp_path):
    """Every row is counted once: as good, or with its problem."""
    rng, target = random.Random(f"{SEED} rows"), next(manifests(tmp_path, corpus))
    for _ in range(EACH):
        ended = damaged_and_run("rows", target, rng, tmp_path)
        if ended.status != 2:
            found = json.loads(ended.out)
            assert found["n_ok"] + len({problem[0] for problem in found["problems"]}) == found["n_rows"]


# --- replies ----------------------------------------------------------------------------------------------------------


def judged(folder: Path, url: str, out: Path, count: int) -> tuple[Any, ...]:
    """The command that has a server judge so many answers about one clip; its files are written if absent."""
    if not (folder / "manifest.jsonl").exists():
        write_media(folder / "clip.mp4", frames=4, fps=2)
        meta = {"dataset": "mme-emotion", "task": "SA", "question": "What is it?", "candidates": None}
        meta["gold"] = "positive"
        names = [f"v{number}.mp4" for number in range(count)]
        rows = [
            {"id": f"SA/{n}", "video": "clip.mp4", "labels": ["happy"], "meta": {**meta, "video_id": n}} for n in names
        ]
        (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "in").mkdir()
        given = [{"video_id": n, "ground_truth": "positive", "model_response": f"Answer about {n}."} for n in names]
        (folder / "in" / "SA.json").write_text(json.dumps(given))
    given = ("--manifest", folder / "manifest.jsonl", "--predictions", folder / "in", "--out", out)
    return (
        "eval",
        "mme-emotion",
        *given,
        "--judge",
        "m",
        "--judge-url",
        url,
        "--attempts",
        2,
        "--first-wait",
        0,
        "--json",
    )


def test_a_damaged_reply_is_no_answer_and_brings_no_key_to_disk(tmp_path, run):
    """A server that replies anything, the key among it; afterwards a proper one is asked for what is missing."""
    rng = random.Random(f"{SEED} replies")
    escaped = json.dumps("".join(f"\\u{ord(letter):04x}" for letter in KEY)).replace("\\\\", "\\").encode()

    def damaged(call: Call) -> Answer:
        proper, kind = said(served(call)), {"Content-Type": "application/json"}
        if rng.random() < 0.3:
            place = rng.choice((b'"stop"', b'"assistant"', b'"m"', json.dumps(served(call)).encode()))
            return Answer(rng.choice((200, 400)), proper.body.replace(place, escaped), kind)
        return Answer(rng.choice((200, 200, 400)), damage.json_of(proper.body, rng), kind)

    with Server(damaged) as server:
        words = judged(tmp_path, server.base_url, tmp_path / "out", EACH)
        require_sound_end(Ended(*run(*words)))
        damaged_ones = len(server.calls)
        assert damaged_ones >= EACH
        assert no_key_below(tmp_path)
        server.behave = served
        status, printed, _ = run(*words)
        assert (status, json.loads(printed)["overall"]["count"]) == (0, EACH)
        assert no_key_below(tmp_path)
    report(f"replies: {damaged_ones} damaged ones")


def test_a_damaged_cache_of_replies_is_one_line(tmp_path, run):
    rng = random.Random(f"{SEED} cache")
    (tmp_path / "answers.jsonl").write_text('{"id": "a", "completion": "He seems glad."}\n')
    with Server(served) as server:
        words = ("extract", "--predictions", tmp_path / "answers.jsonl", "--out", tmp_path / "out.jsonl")
        words += ("--reader", "m", "--reader-url", server.base_url)
        assert run(*words)[0] == 0
        cache = tmp_path / "llm-replies.sqlite"
        with sqlite3.connect(cache) as database:
            database.execute("pragma wal_checkpoint(truncate)")
            database.execute("pragma journal_mode=delete")
        database.close()
        whole, statuses = cache.read_bytes(), Counter()
        for _ in range(EACH):
            for left in tmp_path.glob("llm-replies.sqlite*"):
                left.unlink()
            cache.write_bytes(damage.bytes_of(whole, rng))
            ended = Ended(*run(*words))
            require_sound_end(ended)
            statuses[ended.status] += 1
    report(f"caches: {EACH} damaged ones, by exit status {dict(sorted(statuses.items()))}")


# --- kills ------------------------------------------------------------------------------------------------------------


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; a file may go while it is counted."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue
    return total


def rows_of(folder: Path, *left_out: str) -> dict[str, Any]:
    """All rows of a folder's JSON lines, without what differs between two equal runs, in any order."""
    without = {"seconds", "model", "cached", *left_out}
    rows = [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
    kept = [{name: value for name, value in row.items() if name not in without} for row in rows]
    return dict(Counter(json.dumps(row, sort_keys=True) for row in kept))


def trained(folder: Path) -> dict[str, Any]:
    """The weights, by their digest, and the log of a training run."""
    files = sorted((folder / "model").glob("*.safetensors"))
    timed = [name for line in (folder / "log.jsonl").read_text().splitlines() for name in json.loads(line)]
    clocks = [name for name in timed if name.endswith(("runtime", "per_second")) or "seconds" in name or "time" in name]
    return rows_of(folder, *clocks) | {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def training(stage: str, model: Path, manifest: Path, out: Path) -> tuple[Any, ...]:
    settings = {"manifest": manifest, "model": model, "output_dir": out, "features_dir": out.parent / "features"}
    settings |= {"max_steps": 4, "save_steps": 1, "logging_steps": 1, "save_strategy": "steps", "workers": 0}
    settings |= {"resume_from_checkpoint": "true", "learning_rate": 1e-3, "report_to": "none", "disable_tqdm": "true"}
    settings |= {"use_cpu": "true", "bf16": "false", "per_device_train_batch_size": 2}
    return stage, *(f"{name}={value}" for name, value in settings.items())


def digests(folder: Path) -> dict[str, Any]:
    """Digest of every file below a folder; what a kill left half written has a name with a dot in front."""
    files = sorted(path for path in folder.rglob("[!.]*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def shapes(folder: Path) -> dict[str, Any]:
    """Shape of every tensor of every entry; the values depend in the last digits on what was computed beside them."""
    found = {}
    for path in sorted(folder.rglob("[!.]*.safetensors")):
        with safe_open(path, "np") as entry:
            names = list(entry.keys())
            found[path.name] = {name: entry.get_slice(name).get_shape() for name in names}
    return found


def asked(kind: str, out: Path, url: str) -> tuple[Any, ...]:
    """Extraction from answers by a reader; the file of answers is written if absent."""
    file = out.parent / "answers.jsonl"
    file.write_text(
        "".join(json.dumps({"id": f"a{n}", "completion": f"He seems glad, {n}."}) + "\n" for n in range(60))
    )
    reader = ("--reader", "m", "--reader-url", url, "--concurrency", 1)
    return "extract", "--predictions", file, "--out", out / "labels.jsonl", "--kind", kind, *reader


def benchmark(model: Path, out: Path) -> tuple[Any, ...]:
    """An evaluation on a set of MER-UniBench; the set is written if absent."""
    data = out.parent / "sets"
    if not data.exists():
        clip = write_media(out.parent / "clip.mp4", frames=4, fps=2)
        sound = write_media(out.parent / "clip.wav", sound=tone(1.0), audio_codec="pcm_s16le")
        write_set(data, "meld", 6, [clip], [sound])
    words = ("eval", "mer-unibench", "--data", data, "--sets", "meld", "--model", model, "--out", out)
    sampling = ("--max-new-tokens", 24, "--batch-size", 2, "--temperature", 1)
    return *words, *sampling, "--resamples", 10, "--allow-pickle", "--json"


COMMANDS: dict[str, tuple[Callable[..., tuple[Any, ...]], Callable[[Path], dict[str, Any]]]] = {
    "evaluate": (lambda model, manifest, out, url: evaluation(model, manifest, out), rows_of),
    "sft": (lambda model, manifest, out, url: training("sft", model, manifest, out), trained),
    # Only in a longer campaign:
    "extract": (lambda model, manifest, out, url: asked("labels", out, url), rows_of),
    "evaluate --num-answers": (
        lambda model, manifest, out, url: evaluation(model, manifest, out, "--num-answers", 3),
        rows_of,
    ),
    "rl": (
        lambda model, manifest, out, url: (
            *training("rl", model, manifest, out),
            *("num_generations=2", "max_completion_length=12"),
        ),
        trained,
    ),
    "build": (
        lambda model, manifest, out, url: (
            *("build", "--tiny", "tiny={hidden_size: 32, num_layers: 1}", "vision_images=0", "audio_clips=0"),
            *(word for word in training("build", model, manifest, out)[1:] if not word.startswith("model=")),
            "text_steps=0",
        ),
        trained,
    ),
    "features": (
        lambda model, manifest, out, url: (
            *("features", "--manifest", manifest, "--model", model, "--features-dir", out, "--workers", 1),
        ),
        shapes,
    ),
    "scenes": (
        lambda model, manifest, out, url: ("scenes", "--out", out, "--num-clips", 6, "--seed", 3, "--workers", 2),
        digests,
    ),
    "eval mer-unibench": (lambda model, manifest, out, url: benchmark(model, out), lambda out: rows_of(out / "meld")),
    "eval mme-emotion": (lambda model, manifest, out, url: judged(out.parent, url, out, 30), rows_of),
}


OTHERS: dict[str, tuple[tuple[Any, ...], ...]] = {
    "evaluate --num-answers": (("--num-answers", 2), ("--seed", 1)),
    **dict.fromkeys(("sft", "rl", "build"), (("seed=9",), ("learning_rate=2e-3",), ("per_device_train_batch_size=4",))),
    "scenes": (("--seed", 4), ("--num-clips", 5)),
    "eval mer-unibench": (("--seed", 1), ("--temperature", 0.5), ("--max-new-tokens", 23)),
}
"""Options that make another run of a command."""


@pytest.mark.parametrize("name", list(COMMANDS)[: 2 if TIMES == 1 else None])
def test_a_broken_command_resumes_to_the_same_result_and_takes_no_other_run(name, taught_folder, corpus, tmp_path, run):
    """SIGKILL or SIGTERM as soon as a drawn share of the undisturbed run's bytes is on the disk; then a full disk.

    At last another run is started in the undisturbed one's folder.
    """
    make, result = COMMANDS[name]
    rng, printed, hits, full = random.Random(f"{SEED} {name}"), tmp_path / "printed", Counter(), Counter()
    printed.mkdir()
    with Server(served) as server:

        def command(out: Path) -> tuple[Any, ...]:
            return make(taught_folder, corpus, out, server.base_url)

        status = run(*command(tmp_path / "whole"))[0]
        assert status in (0, 1)  # nothing may be able to read what the tiny policy answers
        wanted, size = result(tmp_path / "whole"), size_of(tmp_path / "whole")
        longest = max(path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.is_file())
        assert wanted
        for number in range(2 * TIMES):
            out = tmp_path / f"broken-{number}"
            share, sent = rng.uniform(0.1, 0.95), rng.choice((signal.SIGKILL, signal.SIGTERM))
            if number < TIMES:
                ended = wait(start(command(out), printed), printed, lambda o=out, s=share * size: size_of(o) > s, sent)
                assert ended.status in (0, -signal.SIGKILL, 128 + signal.SIGTERM), ended
                hits[ended.status] += 1
            else:
                ended = wait(start(command(out), printed, int(share * longest)), printed)
                require_sound_end(ended)
                full[ended.status] += 1
            assert "Traceback" not in ended.err
            assert run_in_fork(out, *command(out)).status == status
            assert result(out) == wanted
            shutil.rmtree(out, ignore_errors=True)
        left = digests(tmp_path / "whole")
        for other in OTHERS.get(name, ()):
            ended = run_in_fork(tmp_path / "whole", *command(tmp_path / "whole"), *other)
            assert (ended.status, ended.out, len(told(ended))) == (2, "", 1), ended
            assert digests(tmp_path / "whole") == left
    others = f"{len(OTHERS.get(name, ()))} other runs refused"
    report(f"{name}: killed, by exit status {dict(hits)}; disk full {dict(full)}; resumed to the same result; {others}")


# --- folders of another run -------------------------------------------------------------------------------------------


def test_a_folder_of_another_run_is_refused_and_left_as_it_is(answered, taught_folder, corpus, tmp_path, run):
    before = (answered / "records.jsonl").read_bytes()
    other = tmp_path / "other" / "manifest.jsonl"
    shutil.copytree(corpus.parent, other.parent)
    (other.parent / "4.mp4").write_bytes((other.parent / "5.mp4").read_bytes())
    reworded = other.with_name("reworded.jsonl")
    reworded.write_text(corpus.read_text().replace("This is sentence 4.", "Quite other words."))
    model = tmp_path / "model"
    shutil.copytree(taught_folder, model)
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    for words, what in (
        (evaluation(model, corpus, answered), "weights: "),
        (evaluation(taught_folder, other, answered), "the media of clip-4"),
        (evaluation(taught_folder, reworded, answered), "the subtitle or question of clip-4"),
        (evaluation(taught_folder, corpus, answered, "--seed", 1), r"seed: 0, now 1"),
        (evaluation(taught_folder, corpus, answered, "--temperature", 0.5), "temperature: 1.0, now 0.5"),
        (evaluation(taught_folder, corpus, answered, "--split", "test"), "split: "),
        (evaluation(taught_folder, corpus, answered, "--exchange", "audio"), "exchange: None, now 'audio'"),
        (evaluation(taught_folder, corpus, answered, "--num-frames", 3), "num_frames"),
    ):
        status, printed, errors = run(*words)
        assert (status, printed, len(told(Ended(status, printed, errors)))) == (2, "", 1)
        assert what in errors
        assert (answered / "records.jsonl").read_bytes() == before


def test_gold_is_that_of_the_manifest_whenever_it_is_scored(answered, taught_folder, corpus, tmp_path, run):
    folder, relabelled = tmp_path / "answered", corpus.with_name("relabelled.jsonl")
    shutil.copytree(answered, folder)
    rows = [json.loads(line) | {"labels": ["disgusted"]} for line in corpus.read_text().splitlines()]
    relabelled.write_text("".join(json.dumps(row) + "\n" for row in rows[:5]))
    scored = ("evaluate", "--manifest", relabelled, "--out", folder, "--split", "all", "--json")
    summary = json.loads(run(*scored)[1])
    assert {mode["n"] for mode in summary["modes"].values()} == {5}
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert len(records) == 16
    assert summary["modes"] != json.loads((answered / "summary.json").read_text())["modes"]
    relabelled.unlink()
