"""Readers of the data sets: every layout as it should be, and the facts of the specification."""

import re

import pytest
from layouts import NINE, OPEN, OTHERS, SAYING, SIX, write_csv, write_set

from mer_r1.corpora.prepare import DATA_SETS, named, read_set
from mer_r1.errors import UserError


def read(name, root, split=None, **options):
    return read_set(name, root, split, **{"allow_pickle": True, **options})


def fails(match, name, root, split=None, **options):
    with pytest.raises(UserError, match=match) as caught:
        read(name, root, split, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the facts --------------------------------------------------------------------------------------------------------


def test_folders_counts_files_and_columns_are_those_of_the_specification(shared):
    """Each row of the table in section 1 of the specification, held against ours."""
    text = (shared / "benchmarks" / "mer_unibench.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in text.splitlines() if re.match(r"\| \w+ \(`", line)]
    assert len(rows) == len(NINE)
    for name, cells in zip(NINE, rows, strict=True):
        where, kind, clips, gold, media, subtitles = (cell.strip() for cell in cells)
        data = DATA_SETS[name]
        part = next(iter(data.parts.values()))
        assert f"(`{data.folder}`)" in where
        assert data.kind == {"discrete": "discrete", "sentiment": "sentiment"}.get(kind, "open-set")
        assert part.clips == int(clips)
        assert f"`{data.labels}`" in gold
        assert not part.key or f"`{part.key}`" in gold
        video, audio = media.split(" / ")
        assert video.startswith(f"`{data.video[0]}/")
        assert re.search(rf"{data.suffixes[0]}\b", video)
        assert audio.startswith(f"`{data.audio[0]}/")
        if "same" not in subtitles.split(",")[0]:
            assert subtitles.startswith(f"`{data.subtitles[0]}`")
        else:
            assert data.subtitles[0] == DATA_SETS["meld"].subtitles[0]
        assert f"`{data.subtitles[1]}`" in subtitles
    assert DATA_SETS["mer2024"].parts["train"].clips == 5030
    assert DATA_SETS["mer2024"].parts["test2"].clips == 1170
    assert DATA_SETS["meld"].vocabulary == ("anger", "joy", "sadness", "neutral", "disgust", "fear", "surprise")
    assert DATA_SETS["iemocap"].vocabulary == ("happy", "sad", "neutral", "anger")
    # happy, sad, neutral, anger of the whole corpus
    assert sum(part.clips for part in DATA_SETS["iemocap"].parts.values()) == 1636 + 1084 + 1708 + 1103
    assert sum(next(iter(DATA_SETS[name].parts.values())).clips for name in NINE) == 12799


@pytest.mark.parametrize(
    ("spelt", "name"),
    [
        ("MER2023", "mer2023"),
        ("OV-MERD+", "ovmerdplus"),
        ("OV-MERD", "ovmerd"),
        ("CH-SIMS v2", "simsv2"),
        ("MOSI", "cmumosi"),
        ("MER-Caption+", "mercaptionplus"),
        ("MME-Emotion", "mme-emotion"),
        ("IEMOCAPFour", "iemocap"),
        ("sims", "sims"),
    ],
)
def test_names_as_people_write_them(spelt, name):
    assert named(spelt).name == name


def test_a_name_that_no_data_set_has():
    with pytest.raises(UserError, match="got 'mer2022', expected one of mer2023, mer2024, meld"):
        named("mer2022")


def test_the_builder_knows_all_data_sets():
    assert {*NINE, *OTHERS} == set(DATA_SETS)


# --- right layouts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NINE, *OTHERS])
def test_every_layout_is_read_from_its_folder_or_from_the_one_above(name, tmp_path):
    folder = write_set(tmp_path, name, 4)
    loaded = read(name, tmp_path)
    assert loaded == read(name, folder)
    assert len(loaded.clips) == (32 if name == "mme-emotion" else 4)
    assert loaded.folder.no_video == loaded.folder.no_audio == []
    for clip in loaded.clips:
        assert clip.meta["dataset"] == name
        assert clip.video.is_file()
        assert clip.video.is_relative_to(folder)
        assert (clip.audio is None) == (name == "mme-emotion")
        assert clip.split == ("train" if name in ("mercaptionplus", "emer") else "test")
    assert "results do not compare" in loaded.warnings[0]


@pytest.mark.parametrize(
    ("name", "gold"),
    [
        ("mer2023", SIX),
        ("mer2024", SIX),
        ("meld", ("anger", "joy", "sadness", "neutral", "disgust", "fear", "surprise")),
        ("iemocap", ("happy", "sad", "neutral", "anger")),
    ],
)
def test_discrete_gold(name, gold, tmp_path):
    write_set(tmp_path, name, 7)
    found = [clip.labels for clip in read(name, tmp_path).clips]
    assert found == [(gold[i % len(gold)],) for i in range(7)]


@pytest.mark.parametrize("name", ["cmumosi", "cmumosei", "sims", "simsv2"])
def test_sentiment_gold(name, tmp_path):
    write_set(tmp_path, name, 3)
    clips = read(name, tmp_path).clips
    assert [clip.meta["sentiment"] for clip in clips] == [1.5, -0.5, 0.0]
    assert all(type(clip.meta["sentiment"]) is float and clip.labels is None for clip in clips)


@pytest.mark.parametrize("name", ["ovmerdplus", "ovmerd", "mercaptionplus"])
def test_open_set_gold(name, tmp_path):
    write_set(tmp_path, name, len(OPEN))
    loaded = read(name, tmp_path)
    assert [clip.labels for clip in loaded.clips] == [
        ("happy", "surprised"),
        ("sad", "lonely"),
        ("angry", "frustrated"),
        ("neutral",),
        ("nervous",),
    ]
    assert "clips whose label string holds no word (their gold is 'neutral'): 1" in loaded.warnings


def test_open_set_gold_keeps_the_reference_s_oddities_where_scores_depend_on_them(tmp_path):
    folder = write_set(tmp_path, "ovmerdplus", 1)
    name = "samplenew3_00000000"
    write_csv(folder / "ovlabel.csv", ["name", "openset"], [(name, "[[don't know, happy; sad]]")])
    assert read("ovmerdplus", folder).clips[0].labels == ("[don", "t know", "happy; sad]")


def test_training_words_are_those_that_an_answer_can_carry(tmp_path):
    folder = write_set(tmp_path, "mercaptionplus", 2)
    rows = [("samplenew_00000000", "[[don't know, Happy, happy, a; b]]"), ("samplenew_00000001", "[a; b]")]
    write_csv(folder / "track2_train_mercaptionplus.csv", ["name", "openset"], rows)
    loaded = read("mercaptionplus", folder)
    assert [clip.labels for clip in loaded.clips] == [("t know", "Happy"), ("neutral",)]
    assert "words with brackets or separators, which an answer cannot carry (left out): 3" in loaded.warnings
    assert "clips without a word that an answer can carry (their gold is 'neutral'): 1" in loaded.warnings


@pytest.mark.parametrize("name", [*NINE, "ovmerd", "mercaptionplus"])
def test_subtitles(name, tmp_path):
    write_set(tmp_path, name, 5)
    found = [clip.subtitle for clip in read(name, tmp_path).clips]
    if name == "mer2024":  # its other parts come first in the table
        assert found == [f"第 {i} 句" for i in range(5, 10)]
    else:
        assert sorted(found) == sorted(SAYING)


def test_a_cell_that_pandas_calls_missing_is_an_empty_subtitle(tmp_path):
    folder = write_set(tmp_path, "ovmerdplus", 2)
    rows = [("samplenew3_00000000", "None"), ("samplenew3_00000001", "None.")]
    write_csv(folder / "subtitle_eng.csv", ["name", "sentence"], rows)
    assert [clip.subtitle for clip in read("ovmerdplus", folder).clips] == ["", "None."]


def test_iemocap_s_fifth_session_is_the_test(tmp_path):
    write_set(tmp_path, "iemocap", 3)
    assert {clip.id[:5] for clip in read("iemocap", tmp_path).clips} == {"Ses05"}
    train = read("iemocap", tmp_path, "train")
    assert {(clip.id[:5], clip.split) for clip in train.clips} == {("Ses01", "train")}
    assert (train.expected, read("iemocap", tmp_path).expected) == (4290, 1241)


def test_other_parts(tmp_path):
    write_set(tmp_path, "mer2024", 3)
    clips = read("mer2024", tmp_path, "train").clips
    assert {(clip.split, clip.meta["part"], clip.id[:8]) for clip in clips} == {("train", "train", "sample_9")}
    assert read("mer2024", tmp_path, "test2").expected == 1170
    fails("split: got 'test3', MER2024 has test1, test2, train", "mer2024", tmp_path, "test3")


def test_the_ending_that_a_release_does_not_use_is_found_too(tmp_path):
    folder = write_set(tmp_path, "mer2023", 2)
    (folder / "video" / "sample_00000000.mp4").rename(folder / "video" / "sample_00000000.avi")
    loaded = read("mer2023", tmp_path)
    assert [clip.video.suffix for clip in loaded.clips] == [".avi", ".mp4"]
    assert loaded.folder.no_video == []


def test_an_archive_unpacked_into_a_folder_of_its_own_name(tmp_path):
    folder = write_set(tmp_path, "mercaptionplus", 2)
    (folder / "video").rename(folder / "inner")
    (folder / "video").mkdir()
    (folder / "inner").rename(folder / "video" / "video")
    loaded = read("mercaptionplus", tmp_path)
    assert loaded.folder.no_video == []
    assert loaded.clips[0].video == folder / "video" / "video" / "samplenew_00000000.mp4"


def test_reasoning_texts(tmp_path):
    write_set(tmp_path, "mercaptionplus", 2)
    assert read("mercaptionplus", tmp_path).clips[1].reasoning.endswith("samplenew_00000001")
    folder = tmp_path / "mer2025-dataset"
    rows = [("samplenew_00000000", "He <think> aloud."), ("other", "x")]
    write_csv(folder / "track3_train_mercaptionplus.csv", ["name", "reason"], rows)
    loaded = read("mercaptionplus", tmp_path)
    assert [clip.reasoning for clip in loaded.clips] == [None, None]
    assert "reasoning texts with think or answer tags (left out): 1" in loaded.warnings
    assert "clips without a reasoning text (SFT cannot use them): 1" in loaded.warnings


def test_emer_in_its_three_releases(tmp_path):
    write_set(tmp_path, "emer", 2)
    newest = read("emer", tmp_path)
    assert (newest.part, newest.clips[0].labels) == ("mer2025", ("happy", "surprised"))
    v1 = tmp_path / "v1"
    write_csv(
        v1 / "gt-eng.csv", ["names", "emotions", "subtitles", "reasons"], [("sample_1", "angry", "Go!", "He roars.")]
    )
    loaded = read("emer", v1)
    (clip,) = loaded.clips
    assert (loaded.part, loaded.expected) == ("v1", 100)
    assert (clip.labels, clip.subtitle, clip.reasoning, clip.split) == (("angry",), "Go!", "He roars.", "train")
    v2 = tmp_path / "v2"
    write_csv(v2 / "final-EMER-reason.csv", ["name", "chinese", "english"], [("sample_1", "他怒吼。", "He roars.")])
    (clip,) = read("emer", v2).clips
    assert (clip.labels, clip.reasoning, clip.meta["part"]) == (None, "He roars.", "v2")
    assert "clips without open-set labels (neither SFT nor RL can use them): 1" in read("emer", v2).warnings
    write_csv(v2 / "ovlabel.csv", ["name", "openset"], [("sample_1", "[angry, furious]")])
    assert read("emer", v2).clips[0].labels == ("angry", "furious")
    empty = tmp_path / "empty"
    empty.mkdir()
    fails("no track3_train_ovmerd.csv and no track2", "emer", empty)
