"""Sections of a recording: the frames and samples of the wanted seconds, as of a short clip, in no more memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from media_samples import gray_steps, write_media

from mer_r1.data.clip import Clip
from mer_r1.data.manifest import write_manifest
from mer_r1.data.media.container import MediaLimits
from mer_r1.data.media.read import check_readable, media_seconds, read_clip, read_media
from mer_r1.errors import UserError

RATE = 16000
SECONDS = 24


def steps(seconds: int = SECONDS) -> np.ndarray:
    """(1, S) sound whose loudness in second n is (n + 1) / 50: the loudness says which second it is."""
    time = np.arange(seconds * RATE) / RATE
    return (np.sin(2 * np.pi * 400 * time) * (np.floor(time) + 1) / 50)[None].astype(np.float32)


def loudness(waveform: np.ndarray) -> list[int]:
    """Which second each whole second of a waveform is."""
    return [
        round(float(np.abs(waveform[at + 4000 : at + 12000]).max()) * 50) - 1 for at in range(0, len(waveform), RATE)
    ]


@pytest.fixture(scope="module", params=["mp4", "mkv", "avi"])
def recording(request, tmp_path_factory) -> Path:
    """Frame n is gray of level 10 n + 20, one per second; keyframes lie 12 s apart."""
    path = tmp_path_factory.mktemp("long") / f"a.{request.param}"
    codecs = {"audio_codec": "pcm_s16le" if request.param == "avi" else "aac"}
    write_media(path, frames=SECONDS, fps=1, picture=gray_steps, sound=steps(), **codecs)
    return path


@pytest.mark.parametrize("section", [(0.0, 3.0), (5.0, 9.0), (14.0, 16.0), (21.0, 24.0)])
def test_a_section_holds_its_seconds_and_no_others(recording, section):
    first, last = section
    media = read_media(recording, limits=MediaLimits(max_frames=int(last - first)), section=section)
    levels = media.frames.mean(axis=(1, 2, 3))
    assert np.abs(levels - [min(10 * n + 20, 255) for n in range(int(first), int(last))]).max() < 4
    assert loudness(media.waveform) == list(range(int(first), int(last)))
    assert abs(len(media.waveform) - (last - first) * RATE) <= 0.03 * RATE
    assert media.notes == ()
    assert media.frame_seconds[0] == pytest.approx(0.5, abs=0.1), "times begin with the section"


def test_a_section_begins_at_its_sample(tmp_path):
    path = write_media(tmp_path / "a.wav", sound=steps(), audio_codec="pcm_s16le")
    whole = read_media(None, path).waveform
    for first in (0.013, 3.217, 17.9):
        part = read_media(None, path, section=(first, first + 1.5)).waveform
        at = round(first * RATE)
        assert np.abs(part - whole[at : at + len(part)]).max() < 0.02, first
        assert len(part) == 1.5 * RATE


def test_a_section_longer_than_the_limit_is_cut_and_says_so(recording):
    clip = Clip("a", recording, section=(2.0, 12.0))
    assert read_clip(clip, MediaLimits(max_seconds=4)).notes == ("cut to the first 4 s of 10 s",)


def test_a_section_behind_the_end_is_an_error(recording):
    with pytest.raises(UserError, match="nothing in it can be decoded"):
        read_media(recording, section=(60.0, 62.0))


def test_the_length_is_known_with_and_without_a_header(recording, tmp_path):
    assert media_seconds(recording) == pytest.approx(SECONDS, abs=0.2)
    path = write_media(tmp_path / "a.aac", sound=steps(), audio_codec="aac", container_format="adts")
    assert media_seconds(path) == pytest.approx(SECONDS, abs=0.5)


def test_files_are_checked_without_decoding(recording, tmp_path):
    check_readable(Clip("a", recording))
    (tmp_path / "b.mp4").write_bytes(b"no media")
    for path in (tmp_path / "b.mp4", tmp_path / "gone.mp4"):
        with pytest.raises(UserError, match=path.name):
            check_readable(Clip("b", recording, path))


def test_a_section_has_no_place_in_a_manifest(recording):
    with pytest.raises(UserError, match="section of a recording"):
        write_manifest(recording.parent / "m.jsonl", [Clip("a", recording, section=(0.0, 1.0))])


def test_a_section_of_a_long_recording_takes_no_more_memory(tmp_path):
    """20 MB of samples lie before the section: none of them are held."""
    long = write_media(tmp_path / "a.wav", sound=np.tile(steps(60), 11), audio_codec="pcm_s16le")
    script = (
        "import resource, sys; from mer_r1.data.media.read import read_media; read_media(None, sys.argv[1], "
        "section=tuple(map(float, sys.argv[2:]))); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for section in (("1", "3"), ("650", "652")):
        done = subprocess.run(
            [sys.executable, "-c", script, str(long), *section], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] + 4_000, "kilobytes"
