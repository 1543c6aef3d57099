"""What a person types becomes clips: files, folders, patterns and tables; a slip is said before any model is loaded."""

from pathlib import Path

import pytest

from mer_r1.data.clip import Clip
from mer_r1.data.inputs import cues_of, find_clips, unreadable
from mer_r1.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("b.mp4", "a.WAV", "deep/c.mkv", "notes.txt", "a.srt", ".hidden.mp4"):
        (tmp_path / "in" / name).touch()
    return tmp_path


def names(*inputs, **settings):
    return [clip.id for clip in find_clips(inputs, **settings)]


def test_files_folders_and_patterns_each_file_once(folder):
    assert names("in") == ["in/a.WAV", "in/b.mp4", "in/deep/c.mkv"]
    assert names("in/*.mp4", "in/b.mp4", "in") == ["in/b.mp4", "in/a.WAV", "in/deep/c.mkv"]
    assert names("in/**/*.mkv") == ["in/deep/c.mkv"]
    assert names("in/*") == ["in/a.WAV", "in/b.mp4", "in/deep/c.mkv"], "words beside clips are no clips"
    (folder / "x[1].mp4").touch()
    assert names("x[1].mp4") == ["x[1].mp4"], "a file of that name is no pattern"
    assert names("x*.mp4") == ["x[1].mp4"]
    assert names("gone.mp4") == ["gone.mp4"], "its absence is found by the check"


@pytest.mark.parametrize(
    "text",
    [
        "path,subtitle,mood\nin/b.mp4,Hello.,x\n/there/c.mp4,,y\n",
        "﻿file;text\nin/b.mp4;Hello.\n/there/c.mp4;\n",
        'Video\tSentence\r\nin/b.mp4\t"Hello."\r\n\r\n/there/c.mp4\t\r\n',
    ],
)
def test_a_table_gives_files_and_words(folder, text):
    (folder / "t.csv").write_text(text, encoding="utf-8")
    clips = find_clips(["t.csv"], subtitle="For all.")
    assert [(clip.video, clip.subtitle) for clip in clips] == [
        (Path("in/b.mp4"), "Hello."),
        (Path("/there/c.mp4"), "For all."),
    ]


def test_json_lines_give_names_sounds_and_labels_too(folder):
    (folder / "t.jsonl").write_text(
        '{"id": "one", "video": "in/b.mp4", "audio": "in/a.WAV", "labels": ["sad"], "split": "test"}\n'
        '{"path": "in/b.mp4", "words": "Oh."}\n'
    )
    assert find_clips(["t.jsonl"]) == [
        Clip("one", Path("in/b.mp4"), Path("in/a.WAV"), labels=("sad",)),
        Clip("in/b.mp4", Path("in/b.mp4"), subtitle="Oh."),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "path,subtitel\na.mp4,x\n", "did you mean 'subtitle'"),
        ("t.csv", "film,subtitle\na.mp4,x\n", "no column for the file"),
        ("t.csv", "path,subtitle\na.mp4,one, two\n", "line 2: 3 cells, expected 2"),
        ("t.csv", 'path,subtitle\na.mp4,"one\n', "line 2: unexpected end"),
        ("t.csv", "path\na.mp4\na.mp4\n", "line 3: a.mp4 again"),
        ("t.csv", "path,subtitle\n,\n,\n", "no rows"),
        ("t.csv", "path,id\n,x\n", "line 2: neither a file nor words"),
        ("t.csv", "path\nhttps://x/a.mp4\n", "an address"),
        ("t.csv", "", "no rows"),
        ("t.jsonl", '{"path": 3}\n', "line 1: path: got 3"),
        ("t.jsonl", "[]\n", "expected a row as one JSON object"),
        ("gone.csv", None, "cannot be read"),
        ("*.avi", None, "no file matches"),
        ("empty", None, "no media file in this folder"),
    ],
)
def test_slips_are_said_in_one_line(folder, name, text, message):
    (folder / "empty").mkdir()
    if text is not None:
        (folder / name).write_text(text)
    with pytest.raises(UserError, match=message):
        find_clips([name])


def test_a_sound_of_its_own_goes_with_one_clip(folder):
    assert find_clips(["in/b.mp4"], audio=Path("s.wav"))[0].audio == Path("s.wav")
    with pytest.raises(UserError, match="exactly one clip, got 3"):
        find_clips(["in"], audio=Path("s.wav"))


def test_words_beside_a_clip(folder):
    (folder / "in" / "a.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nHello.\n")
    sound, other, _ = find_clips(["in"])
    assert [cue.text for cue in cues_of(sound)] == ["Hello."]
    assert cues_of(other) == []


def test_files_that_cannot_be_opened_are_known_before_anything_is_asked(folder):
    problems = unreadable(find_clips(["in/b.mp4", "gone.mp4"]))
    assert problems.keys() == {"in/b.mp4", "gone.mp4"}
    assert "gone.mp4: no such file" in problems["gone.mp4"]
    assert "empty" in problems["in/b.mp4"]
