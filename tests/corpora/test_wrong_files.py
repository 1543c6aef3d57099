"""Layouts that are wrong in every way: one clear line each, or a warning that counts."""

import re
import shutil

import numpy as np
import pytest
from layouts import NINE, NPZ_SETS, labels_of, write_csv, write_set

from mer_r1.corpora.prepare import DATA_SETS, read_set
from mer_r1.errors import UserError


def read(name, root, split=None, **options):
    return read_set(name, root, split, **{"allow_pickle": True, **options})


def fails(match, name, root, split=None, **options):
    with pytest.raises(UserError, match=match) as caught:
        read(name, root, split, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- wrong layouts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NINE)
def test_each_missing_file_is_named(name, tmp_path):
    folder = write_set(tmp_path, name, 2)
    for file in [path for path in folder.iterdir() if path.is_file()]:
        kept = file.read_bytes()
        file.unlink()
        message = fails(f"no {re.escape(file.name)} in it", name, tmp_path)
        assert DATA_SETS[name].folder in message
        file.write_bytes(kept)
    read(name, tmp_path)


def test_a_folder_that_is_not_there(tmp_path):
    fails(r"no folder, expected the data of MELD \(meld-process\)", "meld", tmp_path / "none")


@pytest.mark.parametrize("name", [*NINE, "ovmerd", "mercaptionplus"])
def test_a_missing_column_is_named(name, tmp_path):
    folder = write_set(tmp_path, name, 2)
    data = DATA_SETS[name]
    table = folder / data.subtitles[0]
    text = table.read_text(encoding="utf-8")
    table.write_text(text.replace(data.subtitles[1], "other", 1), encoding="utf-8")
    assert "found name, " in fails(f"no column '{data.subtitles[1]}'", name, tmp_path)
    table.write_text(text.replace("name", "Name", 1), encoding="utf-8")
    fails("no column 'name'", name, tmp_path)


@pytest.mark.parametrize("name", list(NPZ_SETS))
def test_pickled_labels_need_the_flag(name, tmp_path):
    write_set(tmp_path, name, 2)
    message = fails("is a pickle", name, tmp_path, allow_pickle=False)
    assert DATA_SETS[name].labels in message
    assert "--allow-pickle" in message


@pytest.mark.parametrize(
    ("name", "label", "match"),
    [
        ("mer2023", {"emo": "contempt"}, "emo: got 'contempt', expected one of neutral, angry, happy"),
        ("mer2023", {"emo": 2}, "emo: got 2, expected one of neutral"),
        ("mer2023", {"val": 1.0}, "emo: got None"),
        ("meld", {"emo": 7}, "emo: got 7, expected one of anger, joy.*0 to 6"),
        ("meld", {"emo": -1}, "emo: got -1"),
        ("meld", {"emo": True}, "emo: got True"),
        ("iemocap", {"emo": 4}, "emo: got 4, expected one of happy, sad, neutral, anger, or 0 to 3"),
        ("cmumosi", {"val": np.nan}, "val: got nan, expected a number"),
        ("cmumosi", {"emo": 1}, "val: got None"),
        ("sims", {"val": "0.5"}, "val: got '0.5'"),
    ],
)
def test_gold_that_is_none(name, label, match, tmp_path):
    folder = write_set(tmp_path, name, 1)
    key = next(iter(DATA_SETS[name].parts.values())).key
    np.savez(folder / DATA_SETS[name].labels, **{key: {"Ses05F_x": label}})
    fails(f"'Ses05F_x': {match}", name, tmp_path)


@pytest.mark.parametrize("value", [["a", "b"], {"a": "happy"}, {1: {"emo": 1}}, 5])
def test_labels_that_are_no_mapping(value, tmp_path):
    folder = write_set(tmp_path, "meld", 1)
    np.savez(folder / "label.npz", test_corpus=np.array(value, object))
    fails(r"expected name -> \{'emo'", "meld", tmp_path)


def test_a_part_that_the_labels_lack(tmp_path):
    folder = write_set(tmp_path, "meld", 1)
    np.savez(folder / "label.npz", train_corpus=labels_of("meld", ["a"]))
    fails("no entry 'test_corpus', found train_corpus", "meld", tmp_path)
    np.savez(folder / "label.npz", test_corpus={})
    fails("no clips in the part 'test' of MELD", "meld", tmp_path)


def test_a_name_without_label_string(tmp_path):
    folder = write_set(tmp_path, "ovmerdplus", 2)
    write_csv(folder / "ovlabel.csv", ["name", "openset"], [("samplenew3_00000000", "[happy]"), ("other", "[sad]")])
    fails("ovlabel.csv: no row for 'samplenew3_00000001' of subtitle_eng.csv", "ovmerdplus", tmp_path)


def test_a_label_string_that_the_reference_cannot_read_either(tmp_path):
    folder = write_set(tmp_path, "ovmerdplus", 1)
    write_csv(folder / "ovlabel.csv", ["name", "openset"], [("samplenew3_00000000", "[")])
    fails("ovlabel.csv: 'samplenew3_00000000': openset: labels: '\\[' opens a list", "ovmerdplus", tmp_path)


def test_a_clip_without_subtitle_row_is_counted(tmp_path):
    folder = write_set(tmp_path, "meld", 3)
    write_csv(folder / "transcription-engchi-polish.csv", ["name", "english"], [("test_dia0_utt1", "Hi.")])
    loaded = read("meld", tmp_path)
    assert [clip.subtitle for clip in loaded.clips] == ["", "Hi.", ""]
    assert "clips that transcription-engchi-polish.csv lacks (their subtitle is empty): 2" in loaded.warnings


def test_absent_media_are_counted_and_listed_and_nothing_vanishes(tmp_path):
    folder = write_set(tmp_path, "cmumosei", 5)
    shutil.rmtree(folder / "subaudio")
    for index in range(1, 5):
        (folder / "subvideo_new" / f"-3g5yACwYnA_{index}.mp4").unlink()
    loaded = read("cmumosei", tmp_path)
    assert len(loaded.clips) == 5
    assert loaded.folder.no_video == [f"-3g5yACwYnA_{index}" for index in range(1, 5)]
    assert len(loaded.folder.no_audio) == 5
    assert loaded.clips[4].video == folder / "subvideo_new" / "-3g5yACwYnA_4.mp4"  # fails later, with this path
    assert loaded.clips[0].audio is None
    said = "\n".join(loaded.warnings)
    assert "4 of 5 clips without a video file (-3g5yACwYnA_1, -3g5yACwYnA_2, -3g5yACwYnA_3, ...)" in said
    assert "5 of 5 clips without a sound file" in said


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "a/../../b", "a\0b"])
def test_a_name_that_leads_out_of_the_folder(name, tmp_path):
    folder = write_set(tmp_path, "meld", 1)
    np.savez(folder / "label.npz", test_corpus={name: {"emo": 0}})
    fails("the clip name", "meld", tmp_path)
