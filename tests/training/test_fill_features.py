"""Filling the cache: shares, sizes said before, kills, broken clips, and the command."""

import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mer_r1.cli import app
from mer_r1.data.clip import Clip
from mer_r1.data.manifest import read_manifest, write_manifest
from mer_r1.errors import UserError
from mer_r1.model import features
from mer_r1.model.absent_towers import absent
from mer_r1.model.features import FeatureCache
from mer_r1.model.omni import load
from mer_r1.training import fill_features as fill
from mer_r1.training.fill_features import estimate, fill_share, require_room


@pytest.fixture(scope="module")
def clips(corpus):
    return read_manifest(corpus)


@pytest.fixture
def bare(taught_folder):
    return load(taught_folder, towers=False)


def entries(folder):
    return sorted(folder.rglob("*.safetensors"))


def test_shares_are_disjoint_and_together_whole(taught_folder, clips, tmp_path):
    shares = [fill_share(str(taught_folder), tmp_path, clips, rank, 3, workers=0) for rank in range(3)]
    assert shares == [(3, []), (3, []), (2, [])]
    cache = FeatureCache(load(taught_folder, towers=False), tmp_path)
    assert cache.missing(clips) == {}
    assert len(entries(tmp_path)) == 8
    assert fill_share(str(taught_folder), tmp_path, clips, 0, 1, workers=0) == (0, [])


def test_processes_make_what_one_makes(taught_folder, clips, tmp_path):
    done = []
    assert fill.fill(str(taught_folder), tmp_path / "one", clips, 1, workers=0) == []
    assert fill.fill(str(taught_folder), tmp_path / "two", clips, 2, workers=0, progress=done.append) == []
    assert sum(done) == len(clips)
    one, two = (FeatureCache(load(taught_folder), tmp_path / name) for name in ("one", "two"))
    for clip in clips:
        for name, value in one.get(clip).items():
            torch.testing.assert_close(two.get(clip)[name], value, atol=1e-5, rtol=0)
    assert two.tower_passes == 0


def test_features_of_other_limits_are_not_taken(taught_folder, clips, tmp_path):
    fill_share(str(taught_folder), tmp_path, clips, 0, 1, workers=0, limits={"num_frames": 2, "max_pixels": 900})
    same = FeatureCache(load(taught_folder, towers=False, limits={"num_frames": 2, "max_pixels": 900}), tmp_path)
    assert same.missing(clips) == {}
    for limits in ({}, {"num_frames": 2}, {"num_frames": 2, "max_pixels": 901}):
        assert len(FeatureCache(load(taught_folder, towers=False, limits=limits), tmp_path).missing(clips)) == 8


def test_the_size_is_estimated(bare, taught_folder, clips, tmp_path):
    cache = FeatureCache(bare, tmp_path)
    expected = estimate(cache, clips)
    assert (expected.clips, expected.missing, expected.sampled) == (8, 8, 8)
    assert len(absent(bare.model)) == 2, "no tower is needed to tell"
    fill_share(str(taught_folder), tmp_path, clips, 0, 1, workers=0)
    kept = [cache.get(clip) for clip in clips]
    vectors = [sum(len(entry[channel]) for channel in ("video", "audio") if channel in entry) for entry in kept]
    assert expected.tokens == pytest.approx(sum(vectors) / 8)
    assert sum(path.stat().st_size for path in entries(tmp_path)) <= expected.size
    assert estimate(cache, clips).missing == 0


def test_a_full_disk_is_refused_beforehand(bare, clips, tmp_path):
    expected = estimate(FeatureCache(bare, tmp_path), clips)
    require_room(expected)
    with pytest.raises(UserError, match=rf"need about ({expected.size / 1e6:.2f} MB) and \1 are free"):
        require_room(replace(expected, free=expected.size))


def test_broken_clips_are_listed_and_cost_no_other(taught_folder, clips, tmp_path):
    garbage = Clip("garbage", video=tmp_path / "garbage.mp4")
    garbage.video.write_bytes(b"no media at all")
    gone = Clip("gone", video=tmp_path / "gone.mp4")
    made, broken = fill_share(
        str(taught_folder), tmp_path / "cache", [clips[0], garbage, gone, clips[1]], 0, 1, workers=0
    )
    assert made == 2
    assert sorted(message.split(":")[0] for message in broken) == ["clip garbage", "clip gone"]


def test_only_old_half_written_entries_are_forgotten(taught_folder, clips, tmp_path):
    folder = FeatureCache(load(taught_folder, towers=False), tmp_path).folder
    old, new = folder / "a.1.partial", folder / ".tmpB2"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * fill.STALE_SECONDS,) * 2)
    fill_share(str(taught_folder), tmp_path, clips[:1], 0, 1, workers=0)
    assert not old.exists()
    assert new.exists()


def test_a_killed_run_goes_on(taught_folder, clips, tmp_path):
    """Killed between two entries and in the middle of writing one; nothing that was made is made again."""
    if not (child := os.fork()):
        original, left = features.save_file, [3]

        def save(tensors, path, **options):
            original(tensors, path, **options)
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

        features.save_file = save
        try:
            fill_share(str(taught_folder), tmp_path, clips, 0, 1, workers=0)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in entries(tmp_path)}
    assert len(before) == 2
    assert len(list(tmp_path.rglob("*.partial"))) == 1
    assert fill_share(str(taught_folder), tmp_path, clips, 0, 1, workers=0) == (6, [])
    after = {path: path.stat().st_mtime_ns for path in entries(tmp_path)}
    assert len(after) == 8
    assert {path: after[path] for path in before} == before


def test_a_process_that_dies_is_reported(clips, tmp_path):
    with pytest.raises(UserError, match="no model at"):
        fill.fill(str(tmp_path / "nowhere"), tmp_path, clips, 2, workers=0)

    class Dead:
        exitcode = -9

    class Silent:
        def get(self, timeout):
            raise fill.Empty

    with pytest.raises(UserError, match=r"process 0 of 2 ended with -9.*run the command again"):
        fill._listen(Silent(), [Dead(), Dead()], None)


# --- the command ------------------------------------------------------------------------------------------------------


def ask(*words):
    return CliRunner().invoke(app, ["features", *map(str, words)])


def test_the_command_announces_fills_and_goes_on(taught_folder, corpus, tmp_path):
    words = ["--manifest", corpus, "--model", taught_folder, "--features-dir", tmp_path, "--workers", 0]
    first = ask(*words, "--estimate")
    assert first.exit_code == 0, first.output
    assert "8 of 8 clips have no features yet; about 0." in first.stdout
    assert entries(tmp_path) == []
    second = ask(*words, "--processes", 1)
    assert second.exit_code == 0, second.output
    assert "8 of 8 clips have their features" in second.stdout
    assert "0 of 8 clips have no features yet" in ask(*words).stdout


def test_under_torchrun_each_process_takes_its_share(taught_folder, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        done = ask("--manifest", corpus, "--model", taught_folder, "--features-dir", tmp_path, "--workers", 0)
        assert done.exit_code == 0, done.output
        assert f"process {rank} of 2: 4 entries made" in done.stdout
    assert len(entries(tmp_path)) == 8


def test_the_command_ends_badly_with_broken_clips(taught_folder, corpus, tmp_path):
    folder = shutil.copytree(Path(corpus).parent, tmp_path / "corpus")
    rows = read_manifest(folder / "manifest.jsonl")
    rows[0].video.write_bytes(b"no media at all")
    write_manifest(folder / "manifest.jsonl", rows)
    done = ask("--manifest", folder / "manifest.jsonl", "--model", taught_folder, "--workers", 0, "--processes", 1)
    assert done.exit_code == 1
    assert "clip clip-0: " in done.stdout
    assert "7 of 8 clips have their features" in done.stdout
