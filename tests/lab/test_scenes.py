"""The written corpus: files, determinism, interruption, folders. Six small clips are made once for most tests."""

import json
from collections import Counter
from functools import partial
from importlib.util import find_spec

import av
import numpy as np
import pytest

from mer_r1.emotions.thinking import channels_of
from mer_r1.errors import UserError

if find_spec("anny") is None or find_spec("espeakng_loader") is None:
    pytest.skip("the extra `scenes` is not installed", allow_module_level=True)

from mer_r1.lab.scenes import acting, clip, write
from mer_r1.lab.scenes import write_scenes as write_any
from mer_r1.lab.scenes.story.sentences import SPLITS, split_of
from mer_r1.lab.scenes.story.world import Cue, GoldWord, Scene

CLIPS = 6
SHARES = {"train": 0.5, "val": 0.2, "test": 0.3}
write_scenes = partial(write_any, missing=0.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    out = tmp_path_factory.mktemp("scenes") / "one"
    done = []
    summary = write_scenes(out, CLIPS, seed=7, splits=SHARES, workers=1, progress=done.append)
    assert sum(done) == CLIPS
    return out, summary


def rows(out):
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def decoded(path):
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        sound = [frame.to_ndarray() for frame in container.decode(audio=0)]
    return np.stack(frames), np.concatenate(sound, axis=1)[0]


def test_summary_counts_the_splits(corpus):
    out, summary = corpus
    assert summary["splits"] == {"train": 3, "val": 1, "test": 2}
    assert summary["written"] == CLIPS
    assert summary["kept"] == 0
    assert Counter(row["split"] for row in rows(out)) == summary["splits"]
    assert {path.name for path in out.iterdir()} == {"clips", "manifest.jsonl", "scenes.json"}


def test_rows_have_what_training_needs(corpus):
    for row in rows(corpus[0]):
        assert 1 <= len(row["labels"]) <= 4
        assert row["reasoning"]
        assert row["subtitle"]
        assert row["audio"] is None
        assert not row["video"].startswith("/")
        meta = row["meta"]
        assert meta["generated"] is True
        assert set(meta["careful_labels"]) <= set(row["labels"])
        assert meta["careful_labels"]
        assert meta["broad_labels"]
        assert meta["description"]
        assert meta["remark"]
        assert meta["identity"].startswith(row["split"])
        assert set(meta["cues"]) == {"face", "voice", "theme", "signs", "modifier", "conflict"}
        assert split_of(row["subtitle"]) == row["split"]


def test_clips_are_real_files_of_the_promised_kind(corpus):
    out, _ = corpus
    for row in rows(out):
        path = out / row["video"]
        with av.open(str(path)) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            assert video.codec.name in ("h264", "mpeg4")
            assert audio.codec.name == "aac"
            assert (video.width, video.height) == (128, 128)
            assert video.average_rate == 8
            assert audio.rate == 16_000
        frames, sound = decoded(path)
        assert 2.0 <= len(frames) / 8 <= 4.0
        assert len(sound) / 16_000 == pytest.approx(len(frames) / 8, abs=0.15)  # AAC pads to blocks of 1024
        assert frames.std() > 10  # a picture
        assert frames.astype(float).std(axis=0).mean() > 0.5  # that moves
        assert 0.002 < np.sqrt((sound**2).mean()) < 0.3  # audible, not overdriven
        assert np.abs(sound).max() <= 1.05


def test_same_seed_same_content_with_any_number_of_workers(corpus, tmp_path):
    out, _ = corpus
    again = tmp_path / "two"
    write_scenes(again, CLIPS, seed=7, splits=SHARES, workers=2)
    assert (again / "manifest.jsonl").read_bytes() == (out / "manifest.jsonl").read_bytes()
    for row in rows(out):
        one, two = decoded(out / row["video"]), decoded(again / row["video"])
        assert np.array_equal(one[0], two[0]), row["id"]
        assert np.array_equal(one[1], two[1]), row["id"]


def test_training_clips_may_lack_channels_and_their_texts_then_speak_of_the_others_only(tmp_path):
    out = tmp_path / "incomplete"
    write_any(out, 14, seed=7, splits={"train": 12, "val": 1, "test": 1}, workers=1, missing=1.0)
    lacking = Counter()
    for row in rows(out):
        missing = set(row["meta"]["missing"])
        assert bool(missing) == (row["split"] == "train")
        lacking.update(missing)
        path = out / (row["video"] or row["audio"])
        with av.open(str(path)) as container:
            assert bool(container.streams.video) == ("video" not in missing) == (row["video"] is not None)
            assert bool(container.streams.audio) == ("audio" not in missing)
        assert (row["subtitle"] == "") == ("subtitle" in missing)
        assert missing.isdisjoint(channels_of(row["reasoning"] + row["meta"]["remark"])), row["reasoning"]
        assert len(row["meta"]["description"].split(": ")) == (4 - len(missing) if row["split"] == "train" else 4)
    assert min(lacking.values()) >= 2
    assert len(lacking) == 3


def test_another_seed_gives_another_corpus(corpus):
    theirs = [clip.script(8, "train", index).row() for index in range(3)]
    ours = [row for row in rows(corpus[0]) if row["split"] == "train"]
    assert [row["subtitle"] for row in theirs] != [row["subtitle"] for row in ours]


def test_an_interrupted_run_is_continued(corpus, tmp_path):
    out = tmp_path / "broken"

    class StopError(Exception):
        pass

    def stop_after_two(done, seen=[]):  # noqa: B006 - the list is the memory
        seen.append(done)
        if sum(seen) == 2:
            raise StopError

    with pytest.raises(StopError):
        write_scenes(out, CLIPS, seed=7, splits=SHARES, workers=1, progress=stop_after_two)
    assert not (out / "manifest.jsonl").exists()
    (out / "clips" / ".train-000002.mp4.99.partial").write_bytes(b"half a clip")
    times = {path.name: path.stat().st_mtime_ns for path in (out / "clips").glob("[!.]*.mp4")}
    assert len(times) == 2
    told = []
    summary = write_scenes(out, CLIPS, seed=7, splits=SHARES, workers=1, progress=told.append)
    assert summary["kept"] == 2
    assert sum(told) == CLIPS
    assert (out / "manifest.jsonl").read_bytes() == (corpus[0] / "manifest.jsonl").read_bytes()
    assert {name: (out / "clips" / name).stat().st_mtime_ns for name in times} == times
    assert not list((out / "clips").glob(".*"))


def test_other_folders_are_refused(corpus, tmp_path):
    out, _ = corpus
    with pytest.raises(
        UserError, match=r"was made with other settings \(seed: 7, now 8\); expected a new or empty folder"
    ):
        write_scenes(out, CLIPS, seed=8, splits=SHARES, workers=1)
    (tmp_path / "precious.txt").write_text("keep me")
    with pytest.raises(UserError, match=r"holds precious\.txt and no scenes\.json"):
        write_scenes(tmp_path, 1, workers=1)
    with pytest.raises(UserError, match="is a file"):
        write_scenes(tmp_path / "precious.txt", 1, workers=1)
    assert (tmp_path / "precious.txt").read_text() == "keep me"


@pytest.mark.parametrize(
    ("clips", "seed", "splits", "workers"),
    [(0, 0, None, 1), (1, -1, None, 1), (1, 0, {"dev": 1.0}, 1), (1, 0, {"train": -1.0}, 1), (1, 0, None, 0)],
)
def test_bad_numbers_are_named(tmp_path, clips, seed, splits, workers):
    with pytest.raises(UserError, match="scenes: expected"):
        write_scenes(tmp_path / "new", clips, seed, splits=splits, workers=workers)
    assert not (tmp_path / "new").exists()


def test_split_counts_sum_to_the_clips():
    for clips in (1, 2, 7, 100, 4001):
        assert sum(write.split_counts(clips, write.DEFAULT_SPLITS).values()) == clips
    assert write.split_counts(4000, write.DEFAULT_SPLITS) == {"train": 3200, "val": 240, "test": 560}


def test_a_corpus_may_have_more_or_fewer_people():
    drawn = {
        people: {clip.script(0, "train", index, 0.0, people).person for index in range(300)} for people in (2, 600)
    }
    assert drawn[2] == {"train-00", "train-01"}
    assert len(drawn[600]) > 200
    assert clip.script(0, "train", 5).row() == clip.script(0, "train", 5, 0.0, clip.PERSONS["train"]).row()


def test_splits_share_no_person():
    people = {split: [clip.person(0, split, number) for number in range(clip.PERSONS[split])] for split in SPLITS}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not {repr(p.identity) for p in people[one]} & {repr(p.identity) for p in people[other]}
        assert not {p.voice.variant for p in people[one]} & {p.voice.variant for p in people[other]}
    assert len({repr(p.identity) for p in people["train"]}) == clip.PERSONS["train"]


def scene(face="plain", voice="plain", strength="evident", signs=()):
    cue = Cue
    return Scene("joy", None, None, cue(face, strength, None), cue(voice, strength, None), "talk", None,
                 tuple(cue(sign, "evident", None) for sign in signs), None, (GoldWord("happy", "joy"),))  # fmt: skip


def mean_action(name, mouth=None, **kinds):
    """The mean of one action over a clip of 3 s, averaged over ten performances."""
    mouth = np.zeros((150, 4)) if mouth is None else mouth
    means = []
    for seed in range(10):
        acted = acting.poses(scene(**kinds), mouth, 24, 8, np.random.default_rng(seed))
        means.append(np.mean([pose.actions.get(name, 0.0) for pose in acted]))
    return float(np.mean(means))


def test_a_stronger_cue_is_acted_more_strongly():
    smiles = [mean_action("mouthSmileLeft", face="open_smile", strength=s) for s in ("faint", "moderate", "evident")]
    assert 0 < smiles[0] < smiles[1] < smiles[2]
    assert mean_action("mouthSmileLeft", face="frown") == 0
    assert mean_action("browDownLeft", face="frown") > 0.7


def test_the_mouth_follows_the_speech():
    speaking = np.zeros((150, 4))
    speaking[50:100, 0] = 1.0
    acted = acting.poses(scene(), speaking, 24, 8, np.random.default_rng(0))
    jaw = np.array([pose.actions["jawOpen"] for pose in acted])
    assert jaw[8:16].min() > 0.4
    assert jaw[:8].max() == jaw[16:].max() == 0


def test_signs_move_eyes_and_head():
    rng = np.random.default_rng
    down = acting.poses(scene(signs=("gaze_down",)), np.zeros((150, 4)), 24, 8, rng(0))
    assert np.median([pose.gaze_y for pose in down]) < -0.5
    shaken = [acting.poses(scene(signs=("shake",)), np.zeros((150, 4)), 24, 8, rng(seed)) for seed in range(5)]
    still = [acting.poses(scene(), np.zeros((150, 4)), 24, 8, rng(seed)) for seed in range(5)]
    spread = [np.mean([np.std([pose.yaw for pose in one]) for one in group]) for group in (shaken, still)]
    assert spread[0] > 3 * spread[1]
    assert (
        np.median([pose.tears for pose in acting.poses(scene(signs=("tears",)), np.zeros((9, 4)), 24, 8, rng(0))]) > 0.5
    )


def test_prosody_follows_the_voice_pattern():
    rng = np.random.default_rng
    harsh, weak, flat = (acting.prosody(scene(voice=name), rng(0)) for name in ("harsh", "weak", "flat"))
    assert harsh.loudness > 5 > -5 > weak.loudness
    assert weak.tempo < 0.9 < harsh.tempo
    assert flat.range < 0.3
    faint = acting.prosody(scene(voice="harsh", strength="faint"), rng(0))
    assert 0 < faint.loudness < 0.6 * harsh.loudness
