"""Manifests: strict reading with the place of each mistake, exact round trips, checks that miss nothing."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from crashing import crash_on_bad
from hypothesis import given, settings
from hypothesis import strategies as st
from media_samples import tone, write_media

from mer_r1.data import check as checks
from mer_r1.data.check import CheckReport, check_manifest
from mer_r1.data.clip import KEYS, Clip, parse_row
from mer_r1.data.manifest import read_manifest, write_manifest
from mer_r1.data.media.notes import count_notes
from mer_r1.emotions import wheels as taxonomy
from mer_r1.emotions.thinking import question
from mer_r1.errors import UserError
from mer_r1.model.prompts import conversation


def manifest(folder: Path, *rows: object, name: str = "m.jsonl") -> Path:
    """A manifest of these rows: objects as JSON, text and bytes as they are."""
    path = folder / name
    lines = [
        row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode() for row in rows
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def problem_of(folder: Path, row: object, **options: bool) -> str:
    """The message about the second row, after a good one."""
    with pytest.raises(UserError) as caught:
        read_manifest(manifest(folder, {"id": "good", "subtitle": "hi"}, row), **options)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'm.jsonl'}:2: ")
    assert "\n" not in message
    return message.split(":2: ", 1)[1]


# --- reading


def test_a_row_with_everything_and_one_with_little(tmp_path: Path) -> None:
    full = {
        "id": "train-1",
        "video": "clips/a.mp4",
        "audio": "b.wav",
        "subtitle": "Oh — nein!",
        "labels": ["happy", "ill at ease"],
        "reasoning": "The mouth smiles.",
        "split": "train",
        "meta": {"seed": 1, "cues": {"face": ["smile"]}},
    }
    little = {"id": "2", "video": None, "subtitle": "only words", "labels": None}
    assert read_manifest(manifest(tmp_path, full, little)) == [
        Clip(
            id="train-1",
            video=tmp_path / "clips/a.mp4",
            audio=tmp_path / "b.wav",
            subtitle="Oh — nein!",
            labels=("happy", "ill at ease"),
            reasoning="The mouth smiles.",
            split="train",
            meta={"seed": 1, "cues": {"face": ["smile"]}},
        ),
        Clip(id="2", subtitle="only words"),
    ]


def test_byte_order_mark_empty_lines_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": "1", "subtitle": "a"}\r\n\r\n  \n{"id": "2", "subtitle": "b"}')
    assert [clip.id for clip in read_manifest(path)] == ["1", "2"]


def test_splits(tmp_path: Path) -> None:
    rows = [{"id": str(n), "subtitle": "a", "split": split} for n, split in enumerate(["train", "test", None, "train"])]
    path = manifest(tmp_path, *rows)
    assert [clip.id for clip in read_manifest(path, splits=["train"])] == ["0", "3"]
    assert len(read_manifest(path)) == 4
    with pytest.raises(UserError, match=r"m\.jsonl: none of its 4 rows is of the split val"):
        read_manifest(path, splits=["val"])
    with pytest.raises(UserError, match="splits: got 'dev', expected some of train, val, test"):
        read_manifest(path, splits=["dev"])


def test_manifests_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl: the manifest cannot be read \(No such file"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"the manifest cannot be read \(Is a directory"):
        read_manifest(tmp_path)
    with pytest.raises(UserError, match=r"m\.jsonl: no rows in it"):
        read_manifest(manifest(tmp_path, ""))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"id": "1", ', "not JSON (Expecting property name"),
        ("hello", "not JSON (Expecting value, column 1)"),
        (b'{"id": "\xff"}', "not UTF-8 (byte 9 of the line)"),
        ("[1, 2]", 'got [1, 2], expected an object like {"id": ...}'),
        ("[" * 100000, "not JSON that can be read (nested too deeply)"),
        ('{"id": "1", "subtitle": "a", "meta": {"x": NaN}}', "not JSON that can be read (NaN is no JSON value)"),
        ('{"id": "1", "id": "2", "subtitle": "a"}', "not JSON that can be read (the key 'id' is there twice)"),
        ('{"id": "1", "meta": {"n": ' + "9" * 5000 + "}}", "not JSON that can be read (Exceeds the limit"),
        ({"subtitle": "a"}, "id: got nothing, expected a unique text"),
        ({"id": 5, "subtitle": "a"}, "id: got 5, expected a unique text"),
        ({"id": " ", "subtitle": "a"}, 'id: got " ", expected a unique text'),
        ({"id": "a\nb", "subtitle": "a"}, 'id: got "a\\nb", expected at most 200 printable characters'),
        ({"id": "a" * 201, "subtitle": "a"}, "expected at most 200 printable characters"),
        ({"id": "good", "subtitle": "a"}, "id: got 'good' again, expected unique ids (first in line 1)"),
        ({"id": "1", "vidoe": "a.mp4"}, "unknown key \"vidoe\"; did you mean 'video'?"),
        ({"id": "1", "subtitle": "", "zzz": 1}, 'unknown key "zzz"; expected one of id, video, audio'),
        ({"id": "1", "video": 3}, "video: got 3, expected a path or null"),
        ({"id": "1", "video": ""}, 'video: got "", an empty path'),
        ({"id": "1", "audio": "../a.wav"}, "a path with '..', expected one that stays in the manifest's folder"),
        ({"id": "1", "audio": "b/../../a.wav"}, "a path with '..'"),
        ({"id": "1", "video": "/a.mp4"}, 'video: got "/a.mp4", an absolute path, expected one relative to the'),
        ({"id": "1", "video": "http://a/b.mp4"}, "an address, expected a path to a local file"),
        ({"id": "1", "video": "a\0b.mp4"}, "not a possible file name (embedded null byte)"),
        ({"id": "1", "video": "\ud800.mp4"}, "not a possible file name"),
        ({"id": "1", "subtitle": 7}, "subtitle: got 7, expected a text or null"),
        ({"id": "1", "subtitle": "\ud83d"}, "expected text without half characters (lone surrogates)"),
        ({"id": "1", "subtitle": "a", "labels": "happy"}, 'labels: got "happy", expected a list of emotion words, or'),
        ({"id": "1", "subtitle": "a", "labels": []}, "labels: got [], expected a list of emotion words, or null"),
        ({"id": "1", "subtitle": "a", "labels": ["sad", ""]}, 'labels: got "" in the list, expected an emotion word'),
        ({"id": "1", "subtitle": "a", "labels": [1]}, "labels: got 1 in the list, expected an emotion word"),
        ({"id": "1", "subtitle": "a", "reasoning": ["x"]}, 'reasoning: got ["x"], expected a text or null'),
        ({"id": "1", "subtitle": "a", "split": "dev"}, 'split: got "dev", expected one of train, val, test or null'),
        ({"id": "1", "subtitle": "a", "split": ["train"]}, 'split: got ["train"], expected one of train, val, test'),
        ({"id": "1", "subtitle": "a", "meta": []}, "meta: got [], expected an object"),
        ({"id": "1"}, "video, audio and subtitle are all empty, expected at least one of them"),
        ({"id": "1", "video": None, "subtitle": " "}, "video, audio and subtitle are all empty"),
    ],
)
def test_broken_rows_name_the_field_what_came_and_what_was_expected(tmp_path: Path, row: object, message: str) -> None:
    assert message in problem_of(tmp_path, row)


def test_all_problems_of_a_row_are_found(tmp_path: Path) -> None:
    row = {"id": 1, "video": "../x", "labels": [], "split": "x", "meta": 1, "foo": 1}
    clip, clip_id, problems = parse_row(json.dumps(row).encode(), tmp_path)
    assert clip is clip_id is None
    assert [problem.split(":")[0].split(" ")[0] for problem in problems] == [
        "unknown",
        "id",
        "video",
        "labels",
        "split",
        "meta",
    ]


def test_no_link_leads_out_of_the_folder(tmp_path: Path) -> None:
    inside, outside = tmp_path / "set", tmp_path / "elsewhere"
    inside.mkdir(), outside.mkdir()
    (outside / "secret.mp4").touch()
    (inside / "real.mp4").touch()
    (inside / "out").symlink_to(outside)
    (inside / "file.mp4").symlink_to(outside / "secret.mp4")
    (inside / "near.mp4").symlink_to(inside / "real.mp4")
    for name in ("out/secret.mp4", "file.mp4"):
        assert "a link that leads out of the manifest's folder" in problem_of(inside, {"id": "1", "video": name})
    assert read_manifest(manifest(inside, {"id": "1", "video": "near.mp4"}))[0].video == inside / "near.mp4"
    # A folder whose name only begins alike is outside too.
    (tmp_path / "set-2").mkdir()
    (inside / "twin").symlink_to(tmp_path / "set-2")
    assert "leads out" in problem_of(inside, {"id": "1", "video": "twin/x.mp4"})


def test_a_manifest_reached_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    manifest(tmp_path / "set", {"id": "1", "video": "a.mp4"})
    (tmp_path / "alias").symlink_to(tmp_path / "set")
    assert read_manifest(tmp_path / "alias" / "m.jsonl")[0].video == tmp_path / "alias" / "a.mp4"


def test_absolute_paths_on_request(tmp_path: Path) -> None:
    path = manifest(tmp_path, {"id": "1", "video": str(tmp_path / "x" / "a.mp4")})
    assert read_manifest(path, allow_absolute=True)[0].video == tmp_path / "x" / "a.mp4"
    row = {"id": "1", "video": str(tmp_path / ".." / "a.mp4")}
    assert "a path with '..'" in problem_of(tmp_path, row, allow_absolute=True)


# --- writing

names = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=20).filter(
    lambda name: name.strip() and name not in (".", "..")
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
clips_in = st.builds(
    Clip,
    id=st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=20),
    video=st.none() | names.map(Path),
    audio=st.none() | names.map(Path),
    subtitle=texts.filter(str.strip),
    labels=st.none() | st.lists(words, min_size=1, max_size=4).map(tuple),
    reasoning=st.none() | texts,
    split=st.sampled_from([None, "train", "val", "test"]),
    meta=st.dictionaries(texts, values, max_size=3),
)


@settings(max_examples=150, deadline=None)
@given(clips=st.lists(clips_in, min_size=1, max_size=5, unique_by=lambda clip: clip.id))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, clips: list[Clip]) -> None:
    folder = tmp_path_factory.getbasetemp() / "trip"

    def placed(clip: Clip) -> Clip:
        return replace(clip, video=clip.video and folder / clip.video, audio=clip.audio and folder / clip.audio)

    clips = [placed(clip) for clip in clips]
    write_manifest(folder / "m.jsonl", clips)
    first = (folder / "m.jsonl").read_bytes()
    assert read_manifest(folder / "m.jsonl") == clips
    write_manifest(folder / "m.jsonl", read_manifest(folder / "m.jsonl"))
    assert (folder / "m.jsonl").read_bytes() == first
    assert first.count(b"\n") == len(clips)


def test_written_paths_are_relative_and_file_names_may_be_any_bytes(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.mp4")
    clip = Clip("1", video=tmp_path / "set" / "clips" / odd)
    write_manifest(tmp_path / "set" / "m.jsonl", [clip])
    row = json.loads((tmp_path / "set" / "m.jsonl").read_text("ascii"))
    assert list(row) == list(KEYS)
    assert row["video"] == f"clips/{odd}"
    assert read_manifest(tmp_path / "set" / "m.jsonl") == [clip]


def test_relative_clips_are_written_relative_to_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_manifest("set/m.jsonl", [Clip("1", video=Path("set/a.mp4"))])
    assert read_manifest("set/m.jsonl") == [Clip("1", video=Path("set/a.mp4"))]


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ([Clip("1", video=Path("elsewhere.mp4"))], "clip 1 cannot be written .*a path with '..'"),
        ([Clip("1", subtitle="a"), Clip("1", subtitle="b")], "id: it is there twice"),
        ([Clip("1")], "video, audio and subtitle are all empty"),
        ([Clip("1", subtitle="a", split="dev")], 'split: got "dev"'),
        ([Clip("1", subtitle="a", meta={"x": float("nan")})], "clip 1: not JSON values"),
        ([Clip("1", subtitle="a", meta={"x": {1, 2}})], "clip 1: not JSON values"),
        ([Clip("1", subtitle="a", labels=())], r"labels: got \[\]"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clips: list[Clip], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = manifest(tmp_path, {"id": "old", "subtitle": "a"})
    (tmp_path / "set").mkdir()
    path = path.rename(tmp_path / "set" / "m.jsonl")
    before = path.read_bytes()
    with pytest.raises(UserError, match=message):
        write_manifest(path, clips)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["m.jsonl"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = manifest(tmp_path, {"id": "old", "subtitle": "a"})

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_manifest(path, [Clip("new", subtitle="b")])
    assert read_manifest(path)[0].id == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.jsonl"]


# --- any bytes


@settings(max_examples=300, deadline=None)
@given(line=st.binary(max_size=200))
def test_any_bytes_are_a_clip_or_problems(line: bytes) -> None:
    clip, _, problems = parse_row(line, Path("set"))
    assert (clip is None) == bool(problems)
    for problem in problems:
        problem.encode("utf-8")
        assert problem.isprintable()


any_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(row=st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=6), any_value, max_size=8))
def test_any_row_is_a_clip_or_problems(row: dict[str, object]) -> None:
    clip, _, problems = parse_row(json.dumps(row).encode(), Path("set"))
    assert (clip is None) == bool(problems)
    for problem in problems:
        problem.encode("utf-8")
        assert problem.isprintable()


# --- conversations


def kinds(clip: Clip, **known: bool) -> list[str]:
    [message] = conversation(clip, **known)
    assert message["role"] == "user"
    assert message["content"][-1]["text"] == question(clip.subtitle)
    return [part["type"] for part in message["content"]]


def test_conversations_have_a_part_for_each_channel_that_is_there() -> None:
    video, audio = Path("a.mp4"), Path("a.wav")
    assert kinds(Clip("1", video, audio, "hi")) == ["video", "audio", "text"]
    assert kinds(Clip("1", video, None, "hi")) == ["video", "audio", "text"]
    assert kinds(Clip("1", None, audio, "hi")) == ["audio", "text"]
    assert kinds(Clip("1", None, None, "hi")) == ["text"]
    assert kinds(Clip("1", video, None, "hi"), has_sound=False) == ["video", "text"]
    assert kinds(Clip("1", video, None, "hi"), has_picture=False) == ["audio", "text"]


# --- checking


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A manifest with 3 good rows, 3 broken rows, 3 broken files and 1 row of unknown labels."""
    write_media(tmp_path / "good.mp4", frames=16, fps=8, sound=tone(2))
    write_media(tmp_path / "mute.mp4", frames=8, fps=8)
    write_media(tmp_path / "a.wav", sound=tone(1), audio_codec="pcm_s16le")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video")
    return manifest(
        tmp_path,
        {"id": "1", "video": "good.mp4", "labels": ["happy"], "split": "train"},
        {"id": "2", "video": "mute.mp4", "audio": "a.wav", "labels": ["sad", "zzyzx"], "split": "train"},
        {"id": "3", "subtitle": "words", "split": "test", "labels": ["happy"], "reasoning": "A smile."},
        {"id": "4", "video": "missing.mp4"},
        {"id": "5", "video": "empty.mp4", "labels": ["zzyzx"]},
        {"id": "6", "video": "text.mp4"},
        {"id": "7", "video": "../a.mp4", "splitt": "x"},
        "not json",
        {"id": "1", "subtitle": "again"},
        {"id": "10", "video": "good.mp4", "labels": ["zzyzx", "qwrt"]},
    )


EXPECTED = [
    (4, "4", "missing.mp4: no such file"),
    (5, "5", "empty.mp4: the file is empty"),
    (5, "5", "labels: no wheel has any of zzyzx"),
    (6, "6", "text.mp4: no readable video or sound in it"),
    (7, "7", "unknown key"),
    (7, "7", "video: got"),
    (8, None, "not JSON"),
    (9, "1", "id: got '1' again, expected unique ids (first in line 1)"),
    (10, "10", "labels: no wheel has any of zzyzx, qwrt"),
]


@pytest.mark.parametrize("workers", [1, 2])
def test_every_broken_row_and_every_broken_file_is_reported(mixed: Path, workers: int) -> None:
    steps = []
    report = check_manifest(
        mixed,
        is_known=taxonomy.builtin().knows,
        workers=workers,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert [(line, clip_id) for line, clip_id, _ in report.problems] == [(line, name) for line, name, _ in EXPECTED]
    for (_, _, problem), (_, _, part) in zip(report.problems, EXPECTED, strict=True):
        assert part in problem
    assert (report.n_rows, report.n_ok) == (10, 3)
    assert report.counts == {"row": 3, "id": 1, "file": 3, "labels": 2}
    assert report.notes == {"a gold label is on no wheel": 1}
    assert report.splits == {"train": 2, "test": 1, "none": 4}
    assert report.channels == {"picture": 3, "sound": 3, "subtitle": 1, "labels": 4, "reasoning": 1}
    assert report.seconds["longest"] == pytest.approx(2, abs=0.1)
    assert report.seconds["shortest"] == pytest.approx(1, abs=0.1)
    assert report.seconds["total"] == pytest.approx(5, abs=0.2)
    assert steps == [(1, 7)] * 7
    assert json.loads(json.dumps(report.to_dict()))["n_ok"] == 3


def test_a_good_manifest_has_no_problems(tmp_path: Path) -> None:
    report = check_manifest(manifest(tmp_path, {"id": "1", "subtitle": "hi"}), workers=1)
    assert report == CheckReport(
        n_rows=1,
        n_ok=1,
        splits={"none": 1},
        channels={"picture": 0, "sound": 0, "subtitle": 1, "labels": 0, "reasoning": 0},
    )


def test_checking_a_manifest_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl: the manifest cannot be read"):
        check_manifest(tmp_path / "none.jsonl")


def test_notes_are_counted_by_kind() -> None:
    one = ["cut to the first 30 s of 600 s", "no sound", "named .mp4 but holds AVI"]
    noted = [("a", one), ("b", ("cut to the first 30 s of 31.5 s",)), ("a", one), ("c", "a text"), ("d", None)]
    cut = "cut to the first … s of … s"
    assert count_notes(noted) == {cut: 2, "named .mp4 but holds AVI": 1, "no sound": 1}
    assert next(iter(count_notes(noted))) == cut, "the most frequent first"


def test_processes_start_only_where_they_pay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "available_cores", lambda: 4)
    with (tmp_path / "big.mp4").open("wb") as file:
        file.truncate(8_000_000)  # 2 s of reading, at 0.25 us per byte
    small, big = Clip("1", subtitle="a"), Clip("1", tmp_path / "big.mp4")
    numbers = [
        checks._workers_that_pay([clip] * count) for clip, count in ((small, 8), (small, 500), (big, 1), (big, 9))
    ]
    assert numbers == [1, 2, 2, 4]  # 0.04, 2.5, 2.005 and 18 s
    assert checks._workers_that_pay([Clip("1", tmp_path / "none.mp4")]) == 1


def test_many_rows_resolve_their_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = []
    realpath = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path: resolved.append(str(path)) or realpath(path))
    (tmp_path / "link.mp4").symlink_to(tmp_path / "0.mp4")
    rows = [{"id": str(n), "video": f"clips/{n}.mp4"} for n in range(50)] + [{"id": "l", "video": "link.mp4"}]
    clips = read_manifest(manifest(tmp_path, *rows))
    assert clips[7].video == tmp_path / "clips" / "7.mp4"
    # clips/ and the folder itself, each with what it must stay in; and the link, which is looked at itself
    assert len(resolved) == 6


def test_a_link_is_found_among_many_files(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "out.mp4").symlink_to(tmp_path / "elsewhere.mp4")
    files = [{"id": str(n), "video": f"{n}.mp4"} for n in range(300)]
    for place in (0, 50, 98, 99, 100, 299):
        rows = [*files[:place], {"id": "link", "video": "out.mp4"}, *files[place:]]
        with pytest.raises(UserError, match=rf"m\.jsonl:{place + 1}: video: got .out\.mp4., a link that leads out"):
            read_manifest(manifest(tmp_path / "set", *rows))
    assert len(read_manifest(manifest(tmp_path / "set", *files))) == 300


@pytest.mark.parametrize(
    ("meta", "message"),
    [('{"a": {"x": 1, "x": 2}}', "meta: the key 'x' is there twice"), ("[" * 600 + "]" * 600, "meta: ")],
)
def test_mistakes_inside_a_field(tmp_path: Path, meta: str, message: str) -> None:
    assert message in problem_of(tmp_path, f'{{"id": "1", "subtitle": "a", "meta": {meta}}}')


def test_a_crashing_decoder_is_one_clips_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "probe_clip", crash_on_bad)
    clips = [Clip("bad" if index == 3 else str(index), subtitle="a") for index in range(8)]
    steps = []
    probes = checks.probe_clips(clips, workers=2, progress=lambda done, total: steps.append(done))
    assert [probe.problem for probe in probes] == [None] * 3 + ["reading it crashes the decoder"] + [None] * 4
    assert sum(steps) == 8
