"""`mer-r1 prepare`: manifests that read back, paths that stay below them, the two parts of the training data."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from layouts import NINE, OTHERS, REASON, write_csv, write_set, write_unibench
from media_samples import gray_steps, tone, write_media

from mer_r1.corpora.prepare import DATA_SETS, expected_files, prepare, read_set, split_clips
from mer_r1.data.check import check_manifest
from mer_r1.data.clip import Clip
from mer_r1.data.manifest import read_manifest
from mer_r1.errors import UserError


def made(n: int, unlabelled: int = 0, silent: int = 0) -> list[Clip]:
    """Clips with subtitles, the last ones without labels, and before them some without reasoning."""
    return [
        Clip(
            f"clip-{i:03d}",
            subtitle="Well.",
            labels=None if i >= n - unlabelled else ("happy",),
            reasoning=None if n - unlabelled - silent <= i else REASON,
            split="train",
        )
        for i in range(n)
    ]


# --- manifests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NINE, *OTHERS])
def test_the_manifest_is_what_was_read(name, tmp_path):
    folder = write_set(tmp_path, name, 3)
    summary = prepare(name, tmp_path, allow_pickle=True)
    assert summary["manifests"] == {str(folder / f"{name}.jsonl"): summary["clips"]}
    assert read_manifest(folder / f"{name}.jsonl") == read_set(name, tmp_path, allow_pickle=True).clips
    assert json.loads(json.dumps(summary)) == summary


def test_all_nine_with_real_media_pass_the_check(tmp_path):
    video = write_media(tmp_path / "v.mp4", frames=4, picture=gray_steps, sound=tone(0.4))
    sound = write_media(tmp_path / "s.wav", sound=tone(0.4), audio_codec="pcm_s16le")
    write_unibench(tmp_path / "data", 2, [video], [sound])
    for name in NINE:
        (manifest,) = prepare(name, tmp_path / "data", allow_pickle=True)["manifests"]
        report = check_manifest(manifest, workers=1)
        assert (report.n_ok, report.n_rows, report.problems) == (2, 2, [])
        assert report.channels["picture"] == report.channels["sound"] == 2


def test_the_same_folder_gives_the_same_bytes_wherever_it_lies(tmp_path):
    found = []
    for place in ("one", "two"):
        write_set(tmp_path / place, "meld", 3)
        (manifest,) = prepare("meld", tmp_path / place, allow_pickle=True)["manifests"]
        with open(manifest, "rb") as file:
            found.append(file.read())
    assert found[0] == found[1]
    assert str(tmp_path).encode() not in found[0]


def test_a_manifest_above_the_data(tmp_path):
    write_set(tmp_path, "meld", 2)
    prepare("meld", tmp_path, tmp_path / "meld.jsonl", allow_pickle=True)
    row = json.loads((tmp_path / "meld.jsonl").read_text().splitlines()[0])
    assert row["video"] == "meld-process/subvideo/test_dia0_utt0.mp4"
    assert row["audio"] == "meld-process/subaudio/test_dia0_utt0.wav"


def test_a_manifest_elsewhere_needs_absolute_paths(tmp_path):
    write_set(tmp_path / "data", "meld", 2)
    out = tmp_path / "lists" / "meld.jsonl"
    with pytest.raises(UserError, match="--absolute") as caught:
        prepare("meld", tmp_path / "data", out, allow_pickle=True)
    assert not out.exists()
    assert "\n" not in str(caught.value)
    prepare("meld", tmp_path / "data", out, allow_pickle=True, absolute=True)
    with pytest.raises(UserError, match="absolute path"):
        read_manifest(out)
    assert read_manifest(out, allow_absolute=True) == read_set("meld", tmp_path / "data", allow_pickle=True).clips


def test_absolute_paths_from_a_relative_root(tmp_path, monkeypatch):
    write_set(tmp_path / "data", "meld", 1)
    monkeypatch.chdir(tmp_path)
    prepare("meld", "data", "lists/meld.jsonl", allow_pickle=True, absolute=True)
    (clip,) = read_manifest("lists/meld.jsonl", allow_absolute=True)
    assert clip.video == tmp_path / "data" / "meld-process" / "subvideo" / "test_dia0_utt0.mp4"


def test_media_behind_a_link(tmp_path):
    """A link that leads out of the manifest's folder cannot be followed later, so it is said now."""
    folder = write_set(tmp_path / "data", "meld", 1)
    (folder / "subvideo").rename(tmp_path / "disk")
    os.symlink(tmp_path / "disk", folder / "subvideo")
    with pytest.raises(UserError, match=r"a link that leads out .*--absolute"):
        prepare("meld", folder, allow_pickle=True)
    prepare("meld", folder, allow_pickle=True, absolute=True)
    assert read_manifest(folder / "meld.jsonl", allow_absolute=True)[0].video.is_file()


def test_clips_without_video_are_kept_or_left_out_as_asked(tmp_path):
    folder = write_set(tmp_path, "mer2023", 3)
    (folder / "video" / "sample_00000001.mp4").unlink()
    kept = prepare("mer2023", tmp_path, allow_pickle=True)
    assert kept["missing_video"] == ["sample_00000001"]
    assert [clip.id[-1] for clip in read_manifest(folder / "mer2023.jsonl")] == ["0", "1", "2"]
    report = check_manifest(folder / "mer2023.jsonl", workers=1)
    assert any(
        "sample_00000001.mp4" in problem and "no such file" in problem.lower() for *_, problem in report.problems
    )
    left = prepare("mer2023", tmp_path, allow_pickle=True, drop_missing=True)
    assert "1 clips without a video file are left out" in left["warnings"]
    assert [clip.id[-1] for clip in read_manifest(folder / "mer2023.jsonl")] == ["0", "2"]


def test_labels_alone_make_a_gold_manifest(tmp_path):
    """Scoring saved predictions needs no media."""
    folder = write_set(tmp_path, "cmumosi", 3)
    for place in ("subvideo", "subaudio"):
        for file in (folder / place).iterdir():
            file.unlink()
    summary = prepare("cmumosi", tmp_path, allow_pickle=True)
    assert len(summary["missing_video"]) == 3
    assert [clip.meta["sentiment"] for clip in read_manifest(folder / "cmumosi.jsonl")] == [1.5, -0.5, 0.0]
    assert summary["gold"] == {"positive": 1, "negative": 1, "neutral": 1}


def test_the_right_count_is_no_warning(tmp_path):
    write_set(tmp_path, "emer", 332)
    summary = prepare("emer", tmp_path)
    assert (summary["clips"], summary["expected"]) == (332, 332)
    assert not any("expected" in warning for warning in summary["warnings"])


def test_an_interrupted_or_failed_run_leaves_the_old_manifest(tmp_path):
    folder = write_set(tmp_path, "ovmerdplus", 2)
    prepare("ovmerdplus", tmp_path)
    before = (folder / "ovmerdplus.jsonl").read_bytes()
    write_csv(folder / "ovlabel.csv", ["name", "openset"], [("other", "[sad]")])
    with pytest.raises(UserError):
        prepare("ovmerdplus", tmp_path)
    assert (folder / "ovmerdplus.jsonl").read_bytes() == before


# --- the two parts of the training data -------------------------------------------------------------------------------


def test_split_sft_writes_both_parts(tmp_path):
    folder = write_set(tmp_path, "mercaptionplus", 12)
    summary = prepare("mercaptionplus", tmp_path, split_sft=5, seed=3)
    sft, rl = folder / "mercaptionplus-sft.jsonl", folder / "mercaptionplus-rl.jsonl"
    assert summary["manifests"] == {str(sft): 5, str(rl): 7}
    first, rest = read_manifest(sft, splits=["train"]), read_manifest(rl, splits=["train"])
    assert {clip.id for clip in first}.isdisjoint(clip.id for clip in rest)
    assert {clip.id for clip in (*first, *rest)} == {f"samplenew_{i:08d}" for i in range(12)}
    assert all(clip.labels and clip.reasoning for clip in first)  # what SFT needs
    assert not (folder / "mercaptionplus.jsonl").exists()


def test_the_seed_decides_and_the_order_of_the_rows_does_not(tmp_path):
    folder = write_set(tmp_path, "mercaptionplus", 12)
    chosen = {}
    for seed in (0, 0, 1):
        prepare("mercaptionplus", tmp_path, split_sft=5, seed=seed)
        ids = {clip.id for clip in read_manifest(folder / "mercaptionplus-sft.jsonl")}
        assert chosen.setdefault(seed, ids) == ids
    assert chosen[0] != chosen[1]
    table = folder / "track2_train_mercaptionplus.csv"
    header, *rows = table.read_text(encoding="utf-8").splitlines()
    table.write_text("\n".join([header, *reversed(rows)]), encoding="utf-8")
    prepare("mercaptionplus", tmp_path, split_sft=5, seed=0)
    assert {clip.id for clip in read_manifest(folder / "mercaptionplus-sft.jsonl")} == chosen[0]


@given(st.integers(2, 40), st.integers(0, 5), st.integers(0, 5), st.integers(0, 10**6), st.data())
def test_the_two_parts_are_a_partition_of_what_can_be_trained_on(n, unlabelled, silent, seed, data):
    clips = made(n + unlabelled + silent, unlabelled, silent)
    wanted = data.draw(st.integers(1, n - 1))
    first, rest = split_clips(clips, wanted, seed)
    assert len(first) == wanted
    assert all(clip.reasoning for clip in first)
    usable = [clip for clip in clips if clip.labels]
    assert sorted((*first, *rest), key=lambda clip: clip.id) == usable
    assert first == [clip for clip in clips if clip in first]  # both in the order of the clips


@pytest.mark.parametrize(
    ("n_sft", "match"),
    [
        (9, "--split-sft 9: 8 of 12 clips have a reasoning text and labels"),
        (0, "--split-sft 0: 8 of 12"),
        (-1, "--split-sft -1"),
    ],
)
def test_more_than_there_is(n_sft, match):
    with pytest.raises(UserError, match=match):
        split_clips(made(12, unlabelled=2, silent=2), n_sft)


def test_nothing_left_for_rl():
    with pytest.raises(UserError, match="nothing is left for RL, expected fewer than 4"):
        split_clips(made(4), 4)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_did(run, tmp_path):
    write_set(tmp_path, "mer2023", 3)
    (tmp_path / "mer2023-dataset-process" / "video" / "sample_00000002.mp4").unlink()
    status, out, err = run("prepare", "MER2023", "--root", tmp_path, "--allow-pickle")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "mer2023, test1: 3 clips, expected 411",
        "gold: happy 1, angry 1, sad 1",
        "warning: 3 clips, expected 411: results do not compare with published ones",
        "warning: 1 of 3 clips without a video file (sample_00000002): their rows are kept and will fail; "
        "--drop-missing leaves them out",
        f"{tmp_path / 'mer2023-dataset-process' / 'mer2023.jsonl'}: 3 rows",
    ]


def test_the_command_for_machines(run, tmp_path):
    write_set(tmp_path, "mercaptionplus", 6)
    out_path = tmp_path / "train.jsonl"
    words = ("prepare", "mercaptionplus", "--root", tmp_path, "--out", out_path, "--split-sft", "2", "--seed", "7")
    status, out, err = run(*words, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["manifests"] == {str(tmp_path / "train-sft.jsonl"): 2, str(tmp_path / "train-rl.jsonl"): 4}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "prepare needs a data set and its folder"),
        (["meld"], "prepare needs a data set and its folder"),
        (["mer2022", "--root", "."], "got 'mer2022', expected one of mer2023"),
        (["meld", "--root", "nowhere"], "nowhere: no folder"),
        (["meld", "--root", "."], "no label.npz and no transcription-engchi-polish.csv in it"),
    ],
)
def test_what_goes_wrong_is_one_line(run, words, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run("prepare", *words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert expected in err


def test_the_flag_s_help_names_the_risk(run):
    _, out, _ = run("prepare", "--help")
    assert "A pickle can run code" in " ".join(out.replace("│", " ").split())


def test_the_list_names_every_data_set_with_files_and_counts(run):
    status, out, _ = run("prepare", "--list")
    assert status == 0
    for data in DATA_SETS.values():
        assert f"{data.name}: {data.title}" in out
        assert all(file in out for file in expected_files(data))
    assert "test1 (1169), test2 (1170), train (5030)" in out
    assert "all (at least 4000), ER-Lab (at least 500)" in out
    rows = json.loads(run("prepare", "--list", "--json")[1])
    assert [row["name"] for row in rows] == list(DATA_SETS)
    assert len(json.loads(run("prepare", "iemocap", "--list", "--json")[1])) == 1
