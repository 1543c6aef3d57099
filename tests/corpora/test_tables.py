"""CSV tables and the items of MME-Emotion: encodings, broken rows, duplicates, other spellings."""

import json

import pytest
from layouts import write_csv, write_set

from mer_r1.corpora.prepare import read_set
from mer_r1.corpora.tables import MISSING_CELLS, read_table
from mer_r1.errors import UserError


def read(name, root, split=None, **options):
    return read_set(name, root, split, **{"allow_pickle": True, **options})


def fails(match, name, root, split=None, **options):
    with pytest.raises(UserError, match=match) as caught:
        read(name, root, split, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- tables -----------------------------------------------------------------------------------------------------------


def test_the_cells_that_are_missing_are_those_of_pandas():
    parsers = pytest.importorskip("pandas._libs.parsers")

    assert MISSING_CELLS == parsers.STR_NA_VALUES


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_unicode_with_and_without_byte_order_mark(encoding, tmp_path):
    path = write_csv(tmp_path / "t.csv", ["name", "chinese"], [("a", "你好，\n再见")], encoding)
    assert read_table(path, ["chinese"]) == ({"a": {"chinese": "你好，\n再见"}}, 0)


def test_another_encoding_must_be_named(tmp_path):
    # 14 bytes "name,chinese", 9 bytes "a,hello" (both with CR LF), "b,": the first Chinese byte is the 26th
    path = write_csv(tmp_path / "t.csv", ["name", "chinese"], [("a", "hello"), ("b", "你好")], "gb18030")
    with pytest.raises(UserError, match=r"t.csv:3: not utf-8 \(byte 26 of the file\).*--encoding .*gb18030"):
        read_table(path, ["chinese"])
    assert read_table(path, ["chinese"], "gb18030")[0]["b"] == {"chinese": "你好"}
    with pytest.raises(UserError, match="encoding: got 'klingon', expected one that Python knows"):
        read_table(path, ["chinese"], "klingon")


def test_the_encoding_reaches_every_table(tmp_path):
    folder = write_set(tmp_path, "mer2024", 2)
    table = folder / "transcription_merge.csv"
    table.write_bytes(table.read_text(encoding="utf-8").encode("gb18030"))
    fails("not utf-8", "mer2024", tmp_path)
    assert read("mer2024", tmp_path, encoding="gb18030").clips[0].subtitle == "第 2 句"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "empty, expected a header with name, english"),
        ("name;english\na;b\n", "no column 'name', 'english', found name;english"),
        ("name,english,english\na,b,c\n", "the column 'english' is there more than once"),
        ("name,english\na,b\n\nc\n", r"t.csv:4: 1 cells, expected 2 as in the header"),
        ("name,english\na,b,c\n", r"t.csv:2: 3 cells, expected 2"),
        ("name,english\n,b\n", r"t.csv:2: name: got an empty cell"),
        ("name,english\na,b\na,c\n", r"t.csv:3: name: 'a' is there twice, and the rows differ"),
    ],
)
def test_tables_that_are_wrong(content, match, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=match) as caught:
        read_table(path, ["english"])
    assert "\n" not in str(caught.value)


def test_rows_that_are_there_again_are_counted(tmp_path):
    folder = write_set(tmp_path, "ovmerdplus", 2)
    with (folder / "ovlabel.csv").open("a", encoding="utf-8") as file:
        file.write('samplenew3_00000000,"[happy, surprised]"\n')
    loaded = read("ovmerdplus", tmp_path)
    assert len(loaded.clips) == 2
    assert "rows that are in ovlabel.csv again: 1" in loaded.warnings


def test_other_columns_are_ignored_and_blanks_around_names_of_columns_too(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(" name ,x, english\na,1,NA\n", encoding="utf-8")
    assert read_table(path, ["english"]) == ({"a": {"english": ""}}, 0)


# --- MME-Emotion ------------------------------------------------------------------------------------------------------


def test_mme_emotion_items(tmp_path):
    write_set(tmp_path, "mme-emotion", 2)
    loaded = read("mme-emotion", tmp_path)
    clips = {clip.id: clip for clip in loaded.clips}
    assert clips["ER-Lab/ER_Lab-0"].meta == {
        "dataset": "mme-emotion",
        "part": "ER-Lab",
        "task": "ER-Lab",
        "video_id": "ER_Lab-0",
        "gold": "Happiness",
        "question": "What does the person show in clip 0?",
        "candidates": ["Happiness", "Anger"],
    }
    assert clips["ML-ER/ML_ER-0.mp4"].labels == ("happiness", "surprise")
    assert clips["ML-ER/ML_ER-0.mp4"].meta["gold"] == "happiness, surprise"
    assert clips["FG-SA/FG_SA-1.mp4"].labels is None
    assert clips["FG-SA/FG_SA-1.mp4"].meta["gold"] == "strong negative"
    assert all(clip.video.is_file() for clip in loaded.clips)
    assert [clip.meta["task"] for clip in loaded.clips[::2]] == [
        "ER-Lab", "ER-Wild", "ML-ER", "FG-ER", "Noise-ER", "IR", "SA", "FG-SA",
    ]  # fmt: skip


def test_mme_emotion_one_task_and_missing_ones(tmp_path):
    folder = write_set(tmp_path, "mme-emotion", 2)
    assert {clip.meta["task"] for clip in read("mme-emotion", tmp_path, "SA").clips} == {"SA"}
    (folder / "FG_SA.json").write_text("")
    (folder / "IR.json").unlink()
    warnings = read("mme-emotion", tmp_path).warnings
    assert "task FG-SA: 0 items, expected at least 500" in warnings
    assert "task IR: no IR.json, expected at least 500" in warnings
    fails(r"no IR.json in it", "mme-emotion", tmp_path, "IR")


@pytest.mark.parametrize(
    ("items", "match"),
    [
        ({}, "SA.json: expected a JSON array of objects"),
        (["x"], "SA.json: expected a JSON array of objects"),
        ([{"ground_truth": "a"}], "item 1: no video_id .*found ground_truth"),
        ([{"video_id": "a"}], "item 1: no ground_truth .*found video_id"),
        ([{"video_id": 5, "ground_truth": "a"}], "item 1: video_id: got 5, expected a text"),
        ([{"video_id": "a", "ground_truth": " , "}], "item 1: ground_truth: got ' , '"),
        (
            [{"video_id": "a", "ground_truth": "x"}, {"video_id": "a", "ground_truth": "y"}],
            "item 2: .*'a' is there twice",
        ),
        ([{"video_id": "../a.mp4", "ground_truth": "x"}], "the clip name"),
    ],
)
def test_mme_emotion_items_that_are_wrong(items, match, tmp_path):
    folder = write_set(tmp_path, "mme-emotion", 1)
    (folder / "SA.json").write_text(json.dumps(items))
    fails(match, "mme-emotion", tmp_path)


def test_mme_emotion_other_spellings(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"video": "a.avi", "answer": ["joy", "hope"], "prompt": "?", "options": "joy, 'hope'", "transcript": "Hi."}]
    (folder / "fg-er.json").write_text(json.dumps(rows + rows))
    (folder / "videos").mkdir()
    (folder / "videos" / "a.avi").touch()
    loaded = read("mme-emotion", folder)
    (clip,) = loaded.clips
    assert (clip.labels, clip.meta["gold"], clip.meta["candidates"]) == (
        ("joy", "hope"),
        ["joy", "hope"],
        ["joy", "hope"],
    )
    assert (clip.subtitle, clip.meta["question"], clip.video.name, loaded.folder.no_video) == ("Hi.", "?", "a.avi", [])
    assert "items that are in fg-er.json again: 1" in loaded.warnings
