"""Media: what is read of good files is known by formula; every bad file ends in a clear error or a stated limit."""

import os
import struct
import subprocess
import sys
import zlib
from bisect import bisect_right
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import recordings
from hypothesis import given, settings
from hypothesis import strategies as st
from media_samples import quarters, tone, with_display_matrix, without_decoder, write_media
from recordings import muxed

from mer_r1.data.media import container as containers
from mer_r1.data.media import picture as pictures
from mer_r1.data.media import read as media
from mer_r1.data.media.container import MediaLimits
from mer_r1.data.media.picture import PictureTrack
from mer_r1.data.media.read import Media, content_key, read_media
from mer_r1.data.media.track import Track
from mer_r1.errors import UserError

LEVEL_TOLERANCE = 3


def levels(clip: Media) -> list[int]:
    """Index of each frame: `gray_steps` writes level 10 * index + 20, and coding changes it a little."""
    assert clip.frames is not None
    values = clip.frames.mean(axis=(1, 2, 3))
    indices = np.round((values - 20) / 10).astype(int)
    assert np.abs(values - 10 * indices - 20).max() < LEVEL_TOLERANCE
    return indices.tolist()


def pitch(clip: Media) -> float:
    """Frequency of the strongest component, in Hz."""
    assert clip.waveform is not None
    spectrum = np.abs(np.fft.rfft(clip.waveform * np.hanning(len(clip.waveform))))
    return float(np.argmax(spectrum) * clip.sampling_rate / len(clip.waveform))


# --- what is read


def test_frames_are_those_shown_at_evenly_spaced_moments(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", frames=24, fps=8, sound=tone(3))
    clip = read_media(path)
    # 3 s in 8 equal parts of 0.375 s; moments are their middles; frame n starts at n/8 s: 0.1875 -> 1 ...
    assert np.allclose(clip.frame_seconds, [0.1875 + 0.375 * part for part in range(8)])
    assert levels(clip) == [1, 4, 7, 10, 13, 16, 19, 22]
    assert clip.fps == pytest.approx(7 / (clip.frame_seconds[-1] - clip.frame_seconds[0]))
    assert clip.frames.shape == (8, 3, 48, 64)
    assert clip.frames.dtype == np.uint8
    assert clip.frames.flags["C_CONTIGUOUS"]
    assert clip.waveform.dtype == np.float32
    assert abs(len(clip.waveform) - 3 * 16000) <= 1024  # AAC works in blocks of 1024 samples
    assert pitch(clip) == pytest.approx(440, abs=1)
    assert clip.notes == ()


@pytest.mark.parametrize(("wanted", "fps", "expected"), [(24, None, 24), (100, None, 24), (1, None, 1), (100, 2.0, 6)])
def test_number_of_frames(tmp_path: Path, wanted: int, fps: float | None, expected: int) -> None:
    path = write_media(tmp_path / "a.mp4", frames=24, fps=8)
    clip = read_media(path, limits=MediaLimits(max_frames=wanted, fps=fps))
    assert len(clip.frames) == expected
    assert clip.fps == pytest.approx(expected / 3)
    if expected == 24:
        assert levels(clip) == list(range(24))


def test_a_single_picture_has_no_rate(tmp_path: Path) -> None:
    clip = read_media(write_media(tmp_path / "a.mkv", frames=1, fps=8, video_codec="ffv1", pix_fmt="bgr0"))
    assert levels(clip) == [0]
    assert clip.fps is None or clip.fps == pytest.approx(1 / clip.seconds)


@pytest.mark.parametrize(
    ("name", "video_codec", "audio_codec", "rate"),
    [
        ("a.mp4", "libx264", "aac", 44100),
        ("a.mkv", "libx264", "libopus", 48000),
        ("a.avi", "mjpeg", "pcm_s16le", 44100),
        ("a.webm", "libvpx-vp9", "libopus", 48000),
        ("a.mov", "mpeg4", "pcm_s16le", 22050),
        ("a.flv", "flv", "mp3", 44100),
        ("a.ts", "libx264", "aac", 48000),
    ],
)
def test_video_formats(tmp_path: Path, name: str, video_codec: str, audio_codec: str, rate: int) -> None:
    pix_fmt = "yuvj420p" if video_codec == "mjpeg" else "yuv420p"
    path = write_media(
        tmp_path / name, frames=24, fps=8, sound=tone(3, rate), rate=rate,
        video_codec=video_codec, audio_codec=audio_codec, pix_fmt=pix_fmt,
    )  # fmt: skip
    clip = read_media(path)
    assert levels(clip) == [1, 4, 7, 10, 13, 16, 19, 22]
    assert clip.fps == pytest.approx(8 / 3, rel=1e-3)
    assert clip.seconds == pytest.approx(3, abs=0.07)
    assert pitch(clip) == pytest.approx(440, abs=1)
    assert clip.notes == ()


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [("a.wav", "pcm_s16le", 16000), ("f.wav", "pcm_f32le", 11025), ("a.mp3", "mp3", 44100), ("a.flac", "flac", 48000),
     ("a.ogg", "libopus", 48000), ("a.m4a", "aac", 22050), ("a.aac", "aac", 44100)],
)  # fmt: skip
def test_sound_formats_beside_a_silent_video(tmp_path: Path, name: str, codec: str, rate: int) -> None:
    video = write_media(tmp_path / "mute.mp4", frames=24, fps=8)
    sound = write_media(tmp_path / name, sound=tone(3, rate), rate=rate, audio_codec=codec)
    clip = read_media(video, sound)
    assert levels(clip) == [1, 4, 7, 10, 13, 16, 19, 22]
    assert pitch(clip) == pytest.approx(440, abs=1)
    assert len(clip.waveform) == pytest.approx(48000, abs=1000)
    assert clip.notes == ()
    alone = read_media(None, sound)
    assert alone.frames is alone.frame_seconds is alone.fps is None
    assert np.array_equal(alone.waveform, clip.waveform)


def test_the_audio_file_is_heard_instead_of_the_videos_sound(tmp_path: Path) -> None:
    video = write_media(tmp_path / "a.mp4", frames=24, fps=8, sound=tone(3, hertz=440))
    sound = write_media(tmp_path / "a.wav", sound=tone(3, hertz=880), audio_codec="pcm_s16le")
    assert pitch(read_media(video)) == pytest.approx(440, abs=1)
    assert pitch(read_media(video, sound)) == pytest.approx(880, abs=1)
    assert pitch(read_media(None, video)) == pytest.approx(440, abs=1)


def test_text_only() -> None:
    clip = read_media(None, None)
    assert clip == Media()
    assert clip.seconds == 0


def test_no_sound_and_silence_differ(tmp_path: Path) -> None:
    mute = read_media(write_media(tmp_path / "mute.mp4", frames=8, fps=8))
    assert mute.waveform is None
    assert mute.notes == ("no sound",)
    silent = read_media(write_media(tmp_path / "silent.mp4", frames=8, fps=8, sound=np.zeros((1, 16000), np.float32)))
    assert silent.waveform is not None
    assert not silent.waveform.any()
    assert silent.notes == ("the sound is silent",)


def test_a_sound_file_given_as_video(tmp_path: Path) -> None:
    sound = write_media(tmp_path / "a.wav", sound=tone(1), audio_codec="pcm_s16le")
    assert read_media(sound).notes == ("no picture",)
    with pytest.raises(UserError, match=r"a\.wav: no picture in it"):
        read_media(sound, sound)


def test_a_mute_video_given_as_audio(tmp_path: Path) -> None:
    mute = write_media(tmp_path / "mute.mp4", frames=8, fps=8)
    with pytest.raises(UserError, match=r"mute\.mp4: no sound in it"):
        read_media(None, mute)


# --- sound: channels, rates, places in time


@pytest.mark.parametrize("rate", [2000, 7350, 8000, 11025, 12345, 22050, 32000, 44100, 48000, 96000, 192000])
def test_sampling_rates(tmp_path: Path, rate: int) -> None:
    clip = read_media(None, write_media(tmp_path / "a.wav", sound=tone(2, rate), rate=rate, audio_codec="pcm_s16le"))
    assert clip.sampling_rate == 16000
    assert len(clip.waveform) == pytest.approx(32000, abs=20)
    assert pitch(clip) == pytest.approx(440, abs=1)
    middle = clip.waveform[8000:24000]
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("layout", "heard_on", "expected"),
    [
        ("mono", {0: 0.6}, 0.6),
        ("stereo", {0: 0.6}, 0.3),  # each of two equal channels weighs a half
        ("stereo", {0: 0.6, 1: 0.6}, 0.6),
        ("stereo", {0: 0.6, 1: -0.6}, 0.0),  # opposite phases cancel
        # 5.1: weights FL .7071 FR .7071 FC 1 LFE 0 BL .5 BR .5 sum to 3.4142
        ("5.1", {2: 0.6}, 0.6 / 3.4142),
        ("5.1", {0: 0.6}, 0.6 * 0.7071 / 3.4142),
        ("5.1", {3: 0.6}, 0.0),  # no subwoofer
        ("5.1", {0: 0.6, 1: 0.6, 2: 0.6, 4: 0.6, 5: 0.6}, 0.6),
    ],
)
def test_channels_are_mixed_to_mono(tmp_path: Path, layout: str, heard_on: dict[int, float], expected: float) -> None:
    channels = {"mono": 1, "stereo": 2, "5.1": 6}[layout]
    sound = np.zeros((channels, 16000), np.float32)
    for channel, amplitude in heard_on.items():
        sound[channel] = tone(1, amplitude=amplitude)[0]
    clip = read_media(None, write_media(tmp_path / "a.wav", sound=sound, layout=layout, audio_codec="pcm_s16le"))
    assert np.abs(clip.waveform).max() == pytest.approx(expected, abs=2e-3)
    assert clip.notes == (() if expected else ("the sound is silent",))


def test_too_many_channels_and_impossible_rates_are_refused(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.wav", sound=tone(1), audio_codec="pcm_s16le")
    many = bytearray(path.read_bytes())
    struct.pack_into("<H", many, 22, 16)  # channels
    struct.pack_into("<H", many, 32, 32)  # bytes a sample of all channels
    path.write_bytes(many)
    with pytest.raises(UserError, match=r"a\.wav: sound with 16 channels, expected at most 8"):
        read_media(None, path)
    slow = bytearray(write_media(tmp_path / "b.wav", sound=tone(1), audio_codec="pcm_s16le").read_bytes())
    struct.pack_into("<I", slow, 24, 1)
    (tmp_path / "b.wav").write_bytes(slow)
    with pytest.raises(UserError, match=r"b\.wav: sound with a sampling rate of 1 Hz, expected 2000 to 768000 Hz"):
        read_media(None, tmp_path / "b.wav")


def test_a_late_start_is_silence(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mkv", frames=24, fps=8, sound=tone(2), sound_start=1.0, audio_codec="pcm_s16le")
    clip = read_media(path)
    assert np.abs(clip.waveform[: 16000 - 200]).max() == 0
    assert np.abs(clip.waveform[16000:17000]).max() > 0.45
    assert len(clip.waveform) == pytest.approx(48000, abs=50)


def test_sound_longer_than_the_picture_is_kept_and_said(tmp_path: Path) -> None:
    clip = read_media(write_media(tmp_path / "a.mp4", frames=8, fps=8, sound=tone(3)))
    assert len(clip.waveform) >= 48000
    assert clip.frame_seconds[-1] < 1
    assert clip.seconds == pytest.approx(3, abs=0.07)
    assert clip.notes[0].startswith("the picture lasts 1 s, the sound 3")
    beside = read_media(
        write_media(tmp_path / "mute.mp4", frames=8, fps=8),
        write_media(tmp_path / "a.wav", sound=tone(3), audio_codec="pcm_s16le"),
    )
    assert beside.notes == ("the picture lasts 1 s, the sound 3 s",)


def test_not_a_number_in_the_sound(tmp_path: Path) -> None:
    sound = tone(1)
    sound[0, 5000:5010] = np.nan
    sound[0, 6000] = np.inf
    clip = read_media(None, write_media(tmp_path / "a.wav", sound=sound, audio_codec="pcm_f32le"))
    assert np.isfinite(clip.waveform).all()
    assert clip.notes == ("1 damaged packets left out",)


# --- picture: time, orientation, size


def test_variable_frame_rate_goes_by_the_time_stamps(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.2, 2.0, 2.1, 2.2, 2.3, 3.9]
    clip = read_media(write_media(tmp_path / "a.mkv", frames=8, times=times, video_codec="libx264"))
    # A steady picture from 0.2 to 2.0 s is seen there as often as a moving one would be.
    assert levels(clip) == [bisect_right(times, moment) - 1 for moment in clip.frame_seconds]
    assert levels(clip)[1:4] == [2, 2, 2]
    assert np.allclose(np.diff(clip.frame_seconds), 1 / clip.fps)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((1, 0, 0, 1), "RGBW"),
        ((0, 1, -1, 0), "BRWG"),  # a quarter turn clockwise: the left column becomes the top row
        ((-1, 0, 0, -1), "WBGR"),
        ((0, -1, 1, 0), "GWRB"),
        ((-1, 0, 0, 1), "GRWB"),  # mirrored left-right
        ((1, 0, 0, -1), "BWRG"),
        ((0, 1, 1, 0), "RBGW"),
        ((0, -1, -1, 0), "WGBR"),
    ],
)
def test_rotated_pictures_are_turned_upright(tmp_path: Path, matrix: tuple[int, ...], expected: str) -> None:
    path = write_media(tmp_path / "a.mp4", frames=4, picture=quarters)
    clip = read_media(with_display_matrix(path, *matrix))
    height, width = (64, 48) if matrix[0] == 0 else (48, 64)
    assert clip.frames.shape[2:] == (height, width)
    names = {(1, 0, 0): "R", (0, 1, 0): "G", (0, 0, 1): "B", (1, 1, 1): "W"}
    picture = clip.frames[0] > 127
    seen = [
        picture[:, y, x] for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)
    ]  # top left, top right, bottom left, bottom right
    assert "".join(names[tuple(map(int, color))] for color in seen) == expected
    assert clip.notes == ("no sound",)


def test_scaling_averages_and_is_exact_where_asked(tmp_path: Path) -> None:
    def stripes(_: int) -> np.ndarray:
        picture = np.zeros((64, 64, 3), np.uint8)
        picture[:, ::2] = 200
        return picture

    path = write_media(tmp_path / "a.mkv", frames=2, picture=stripes, video_codec="ffv1", pix_fmt="bgr0")
    small = read_media(path, limits=MediaLimits(size=(16, 24)))
    assert small.frames.shape == (2, 3, 16, 24)
    assert np.abs(small.frames.astype(int) - 100).max() < 40  # without averaging they would be 0 or 200
    quarter = read_media(path, limits=MediaLimits(size=(16, 16)))
    assert np.abs(quarter.frames.astype(int) - 100).max() <= 2
    bounded = read_media(path, limits=MediaLimits(max_side=32))
    assert bounded.frames.shape[2:] == (32, 32)
    assert "pictures scaled from 64 × 64 to 32 × 32" in bounded.notes
    for pixels in (1024, 1000, 1, 64 * 64):
        frames = read_media(path, limits=MediaLimits(frame_pixels=pixels)).frames
        side = int(pixels**0.5)
        assert frames.shape[2:] == (side, side)
    assert read_media(path).frames[0, 0, 0, :4].tolist() == [200, 0, 200, 0]


def test_one_pixel(tmp_path: Path) -> None:
    def dot(index: int) -> np.ndarray:
        return np.full((1, 1, 3), 50 * index, np.uint8)

    clip = read_media(write_media(tmp_path / "a.mkv", frames=4, fps=4, picture=dot, video_codec="ffv1", pix_fmt="bgr0"))
    assert clip.frames.shape == (4, 3, 1, 1)
    assert clip.frames[:, 0, 0, 0].tolist() == [0, 50, 100, 150]


def test_only_the_needed_groups_of_pictures_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_media(tmp_path / "a.mkv", frames=200, fps=10, gop=10, video_codec="libx264", options={})
    decoded = []
    decode = Track._decode
    monkeypatch.setattr(Track, "_decode", lambda self, packet: decoded.append(packet) or decode(self, packet))
    limits = MediaLimits(max_frames=3)
    sparse = read_media(path, limits=limits)
    assert len(decoded) < 100
    # 20 s in 3 parts: the middles are 3 1/3, 10 and 16 2/3 s; with levels up to 255 the first is frame 33 > 23: white
    assert np.allclose(sparse.frame_seconds, [10 / 3, 10, 50 / 3])


def test_frames_after_a_jump_are_the_right_ones(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shades = rng.permutation(120)  # frame i has level 2 * shades[i] + 10: every frame differs from every other

    def shade(index: int) -> np.ndarray:
        return np.full((48, 64, 3), 2 * shades[index] + 10, np.uint8)

    path = write_media(tmp_path / "a.mkv", frames=120, fps=10, gop=8, picture=shade, video_codec="libx264")
    clip = read_media(path, limits=MediaLimits(max_frames=5))
    # 12 s in 5 parts of 2.4 s: middles 1.2, 3.6, 6.0, 8.4, 10.8 s; frame n is shown from n/10 s
    expected = [2 * shades[index] + 10 for index in (12, 36, 60, 84, 108)]
    assert np.abs(clip.frames.mean(axis=(1, 2, 3)) - expected).max() < 1.5


@pytest.mark.parametrize(("codec", "b_frames", "max_frames"), [("libx264", 3, 7), ("mpeg4", 2, 7), ("libx264", 3, 120)])
def test_unwanted_frames_that_none_refers_to_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, b_frames: int, max_frames: int
) -> None:
    def slow(index: int) -> np.ndarray:
        return np.full((48, 64, 3), 20 + index, np.uint8)

    path = write_media(
        tmp_path / "a.mp4", frames=120, fps=25, gop=40, picture=slow, video_codec=codec, b_frames=b_frames
    )
    decoded = []
    decode = Track._decode

    def counted(track: Track, packet: object) -> list[object]:
        frames = decode(track, packet)
        decoded.extend(frames)
        return frames

    monkeypatch.setattr(Track, "_decode", counted)
    limits = MediaLimits(max_frames=max_frames)
    clip = read_media(path, limits=limits)
    n_decoded, _ = len(decoded), decoded.clear()
    monkeypatch.setattr(pictures, "_TELL_UNREFERENCED", ())
    full = read_media(path, limits=limits)
    assert np.array_equal(clip.frames, full.frames)
    assert np.array_equal(clip.frame_seconds, full.frame_seconds)
    assert clip.notes == full.notes
    # Frame n has level 20 + n and is shown from n/25 s.
    shown = [20 + int(moment * 25 + 1e-6) for moment in clip.frame_seconds]
    assert np.abs(clip.frames.mean(axis=(1, 2, 3)) - shown).max() < 2
    assert n_decoded < 0.75 * len(decoded) if max_frames < 120 else n_decoded == len(decoded) == 120


def test_a_damaged_file_is_decoded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_media(tmp_path / "a.mkv", frames=90, fps=10, gop=30, picture=noise, video_codec="libx264", b_frames=3)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    path.write_bytes(data)
    clip = read_media(path, limits=MediaLimits(max_frames=6))
    monkeypatch.setattr(pictures, "_TELL_UNREFERENCED", ())
    full = read_media(path, limits=MediaLimits(max_frames=6))
    assert np.array_equal(clip.frames, full.frames)
    assert clip.notes == full.notes


# --- long, cut off, damaged


def test_of_ten_minutes_only_the_first_seconds_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_media(
        tmp_path / "long.mkv", frames=600, fps=1, sound=tone(600, 8000), rate=8000, audio_codec="pcm_s16le"
    )
    taken = []
    add = PictureTrack.add
    monkeypatch.setattr(PictureTrack, "add", lambda self, packet: taken.append(packet) or add(self, packet))
    clip = read_media(path, limits=MediaLimits(max_frames=4))
    assert len(taken) < 45
    # 30 s in 4 parts: middles 3.75, 11.25, 18.75, 26.25 s; the picture of second n has level 10 n + 20, at most 255
    assert np.allclose(clip.frames.mean(axis=(1, 2, 3)), [50, 130, 200, 255], atol=3)
    assert len(clip.waveform) == 30 * 16000
    assert clip.seconds == 30
    assert clip.notes == ("cut to the first 30 s of 600 s",)
    assert read_media(path, limits=MediaLimits(max_seconds=2.5)).seconds == 2.5


def test_a_track_that_ends_early_does_not_make_the_rest_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_media(tmp_path / "long.mkv", frames=300, fps=1, sound=tone(1), audio_codec="pcm_s16le")
    taken = []
    add = PictureTrack.add
    monkeypatch.setattr(PictureTrack, "add", lambda self, packet: taken.append(packet) or add(self, packet))
    clip = read_media(path)
    assert len(taken) < 60
    assert len(clip.waveform) == pytest.approx(16000, abs=20)


def noise(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 255, (48, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("a.mp4", "libx264", {"movflags": "faststart"}), ("a.mkv", "libx264", {}), ("a.avi", "mpeg4", {})],
)
def test_of_a_truncated_video_the_rest_is_used(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    path = write_media(
        tmp_path / name, frames=30, fps=10, picture=noise, video_codec=codec, options=options,
        sound=tone(3), audio_codec="mp3",
    )  # fmt: skip
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    clip = read_media(path)
    assert 1 < clip.seconds < 2.5
    assert len(clip.frames) == 8
    assert np.allclose(np.diff(clip.frame_seconds), 1 / clip.fps)
    assert any(note.startswith("cut off: ") and "that its header states" in note for note in clip.notes)


@pytest.mark.parametrize(("name", "codec"), [("a.wav", "pcm_s16le"), ("a.flac", "flac")])
def test_of_truncated_sound_the_rest_is_used(tmp_path: Path, name: str, codec: str) -> None:
    path = write_media(tmp_path / name, sound=tone(3), audio_codec=codec)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    clip = read_media(None, path)
    assert 0.5 < clip.seconds < 2
    assert any(note.startswith("cut off: ") for note in clip.notes)


def test_a_truncated_mp4_without_its_index_is_an_error(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", frames=30, fps=10, picture=noise)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(UserError, match=r"a\.mp4: no readable video or sound in it \(damaged, cut off or another"):
        read_media(path)


def test_damage_in_the_middle_is_counted(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp3", sound=tone(3, 44100), rate=44100, audio_codec="mp3")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 700] = b"\xff\xfb" * 350
    path.write_bytes(data)
    clip = read_media(None, path)
    assert 2 < clip.seconds <= 3.1
    assert any("damaged packets left out" in note for note in clip.notes)


def test_a_file_whose_packets_do_not_decode_is_an_error(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mov"), "w") as out:
        stream = out.add_stream("png", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        for index in range(3):
            packet = av.Packet(b"not a picture at all")
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, index, index, Fraction(1, 8)
            packet.is_keyframe = True
            out.mux(packet)
    with pytest.raises(UserError, match=r"a\.mov: nothing in it can be decoded \(cut off, damaged, of zero length"):
        read_media(tmp_path / "a.mov")


def test_zero_length(tmp_path: Path) -> None:
    wav = write_media(tmp_path / "a.wav", sound=np.zeros((1, 16000), np.float32), audio_codec="pcm_s16le")
    header = wav.read_bytes()[: wav.read_bytes().index(b"data") + 4] + bytes(4)
    wav.write_bytes(header)
    with pytest.raises(UserError, match=r"a\.wav: nothing in it can be decoded"):
        read_media(None, wav)
    wav.write_bytes(header[:-4] + struct.pack("<I", 200) + bytes(200))  # 100 samples are 6 ms, less than one window
    with pytest.raises(UserError, match=r"a\.wav: nothing in it can be decoded"):
        read_media(None, wav)
    with av.open(str(tmp_path / "a.mkv"), "w") as out:
        stream = out.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        out.start_encoding()
    with pytest.raises(UserError, match=r"a\.mkv: (nothing in it can be decoded|no readable video or sound)"):
        read_media(tmp_path / "a.mkv")


# --- not what it seems


def test_missing_folder_empty_and_special_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.mp4: no such file"):
        read_media(tmp_path / "nowhere.mp4")
    with pytest.raises(UserError, match="a folder, expected a media file"):
        read_media(tmp_path)
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(UserError, match=r"empty\.mp4: the file is empty"):
        read_media(tmp_path / "empty.mp4")
    with pytest.raises(UserError, match=r"not a regular file"):
        read_media(os.devnull)
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(UserError, match=r"pipe\.mp4: not a regular file"):
        read_media(tmp_path / "pipe.mp4")
    with pytest.raises(UserError, match="not a possible file name"):
        read_media("a\0b.mp4")
    with pytest.raises(UserError, match=r"cannot be read \(File name too long\)"):
        read_media("a" * 5000)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match=r"loop: cannot be read"):
        read_media(tmp_path / "loop")


def test_unreadable_file(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", frames=2)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(UserError, match=r"a\.mp4: cannot be read \(Permission denied\)"):
        read_media(path)


@pytest.mark.parametrize(
    ("source", "name", "note"),
    [
        ("a.mkv", "b.mp4", "named .mp4 but holds Matroska/WebM"),
        ("a.mp4", "b.avi", "named .avi but holds MP4/MOV"),
        ("a.mp4", "b.wav", "named .wav but holds MP4/MOV"),
        ("a.mkv", "b.webm", None),
        ("a.mp4", "b.data", None),
        ("a.mp4", "b", None),
    ],
)
def test_wrongly_named_content_decides(tmp_path: Path, source: str, name: str, note: str | None) -> None:
    path = write_media(tmp_path / source, frames=24, fps=8, sound=tone(3), audio_codec="aac").rename(tmp_path / name)
    clip = read_media(path)
    assert levels(clip) == [1, 4, 7, 10, 13, 16, 19, 22]
    assert clip.notes == ((note,) if note else ())


def test_mp3_named_wav(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp3", sound=tone(1, 44100), rate=44100, audio_codec="mp3")
    clip = read_media(None, path.rename(tmp_path / "a.wav"))
    assert pitch(clip) == pytest.approx(440, abs=2)
    assert clip.notes == ("named .wav but holds MP3",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{victim}\n#EXT-X-ENDLIST\n",
            "an HLS playlist, which names other",
        ),
        (b"\xef\xbb\xbf#EXTM3U\n{victim}\n", "an HLS playlist, which names other files"),
        (b"ffconcat version 1.0\nfile '{victim}'\n", "a concat list, which names other files"),
        (b'<?xml version="1.0"?>\n<MPD><BaseURL>{victim}</BaseURL></MPD>', "a DASH manifest, which names other files"),
        (b"[playlist]\nFile1={victim}\n", "a playlist, which names other files"),
        (b'<smil><body><video src="{victim}"/></body></smil>', "a SMIL playlist"),
        (b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 1234 RTP/AVP 0\n", "an SDP description, which names addresses"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer: fetch the file itself"),
        (b"<!DOCTYPE html><html><body>404</body></html>", r"a web page \(a failed download\?\)"),
        (b"file '{victim}'\n", "no readable video or sound in it"),
        (b"{victim}\n", "no readable video or sound in it"),
        (b"http://127.0.0.1:9/a.mp4\n", "no readable video or sound in it"),
        (b"just some text", "no readable video or sound in it"),
    ],
)
@pytest.mark.parametrize("name", ["bad.mp4", "bad.m3u8", "bad.txt"])
def test_files_that_name_other_files_are_refused(tmp_path: Path, content: bytes, message: str, name: str) -> None:
    victim = write_media(tmp_path / "victim.mp4", frames=4)
    bad = tmp_path / name
    bad.write_bytes(content.replace(b"{victim}", os.fsencode(victim)))
    with pytest.raises(UserError, match=rf"{name}: {message}"):
        read_media(bad)


def test_behind_the_first_guard_stand_two_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_media(tmp_path / "victim.ts", frames=4, video_codec="libx264")
    bad = tmp_path / "bad.m3u8"
    bad.write_bytes(b"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nvictim.ts\n#EXT-X-ENDLIST\n")
    monkeypatch.setattr(containers, "_refuse_text", lambda file: None)
    with pytest.raises(UserError, match=r"no readable video or sound in it"):  # no demuxer for it may be used
        read_media(bad)
    monkeypatch.setitem(containers.FORMATS, "hls", ("HLS", ".m3u8"))
    with pytest.raises(UserError, match=r"bad\.m3u8: "):  # it is used, but opens nothing
        read_media(bad)


@pytest.mark.parametrize(
    "name",
    [
        "concat:a.mp4|b.mp4",
        "frame%03d.mp4",
        "http:",
        "file:x.mp4",
        "pipe:0",
        "-i.mp4",
        "a b'c\".mp4",
        "a\nb.mp4",
        "ü😀.mp4",
    ],
)
def test_names_are_never_interpreted(tmp_path: Path, name: str) -> None:
    write_media(tmp_path / "a.mp4", frames=24, fps=8).rename(tmp_path / name)
    assert levels(read_media(tmp_path / name)) == [1, 4, 7, 10, 13, 16, 19, 22]
    for other in ("frame001.mp4", "x.mp4"):
        with pytest.raises(UserError, match="no such file"):
            read_media(tmp_path / other)


def test_names_that_are_not_utf8_or_hold_line_breaks(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe\n.mp4"))
    with pytest.raises(UserError) as caught:
        read_media(path)
    message = str(caught.value)
    assert message.endswith("\\udcff\\udcfe\\n.mp4: no such file")
    message.encode("utf-8")
    write_media(tmp_path / "a.mp4", frames=24, fps=8).rename(path)
    assert levels(read_media(path)) == [1, 4, 7, 10, 13, 16, 19, 22]
    assert content_key(path)


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("b.mp4", "libx264", "yuv420p"),
        ("b.mkv", "mpeg4", "yuv420p"),
        ("b.webm", "libvpx-vp9", "yuv420p"),
        ("b.mkv", "ffv1", "bgr0"),
    ],
)
def test_huge_pictures_are_refused_before_they_are_decoded(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    def large(index: int) -> np.ndarray:
        return np.full((512, 640, 3), 10 * index, np.uint8)

    path = write_media(tmp_path / name, frames=2, picture=large, video_codec=codec, pix_fmt=pix_fmt)
    for max_pixels in (1000, 640 * 512 - 1):  # beyond the decoder's own bound, and just above the limit
        with pytest.raises(
            UserError, match=rf"{name}: pictures of 640 × 512 pixels, expected at most {max_pixels} pix"
        ):
            read_media(path, limits=MediaLimits(max_pixels=max_pixels))
    assert read_media(path, limits=MediaLimits(max_pixels=640 * 512)).frames is not None


def test_huge_pictures_whose_size_only_a_decoder_knows(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", frames=2, picture=lambda _: np.zeros((512, 640, 3), np.uint8))
    with pytest.raises(UserError, match=r"a\.mp4: nothing in it .*or its pictures have more than 1000 pixels"):
        read_media(path, limits=MediaLimits(max_pixels=1000))


def png_bomb(side: int) -> bytes:
    """A gray PNG of side × side pixels, thousands of times smaller than its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress((b"\0" + b"\x55" * side) * side)
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read the Linux way")
def test_a_decompression_bomb_is_not_unpacked(tmp_path: Path) -> None:
    bomb = png_bomb(12000)  # 144 million pixels, 432 MB as RGB
    with av.open(str(tmp_path / "bomb.mov"), "w") as out:
        stream = out.add_stream("png", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "gray"  # the container says 64 × 48
        for index in range(2):
            packet = av.Packet(bomb)
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, index, index, Fraction(1, 8)
            packet.is_keyframe = True
            out.mux(packet)
    assert (tmp_path / "bomb.mov").stat().st_size < 2**20
    script = (
        "import sys\nfrom mer_r1.data.media.read import read_media\n"
        # not getrusage: its peak is the parent's where that was higher
        "def peak(): return int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
        "before = peak()\n"
        "try: read_media(sys.argv[1])\n"
        "except ValueError as error: print(peak() - before, error)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "bomb.mov")]
    grown, message = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(" ", 1)
    assert "bomb.mov: nothing in it can be decoded" in message
    assert int(grown) < 70 * 1024  # KiB; one picture alone takes 144 MB


def test_held_packets_are_bounded(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mkv", frames=24, fps=8, picture=noise, video_codec="ffv1", pix_fmt="bgr0")
    whole = path.stat().st_size
    clip = read_media(path, limits=MediaLimits(max_bytes=whole // 2))
    assert 1 < clip.seconds < 2
    assert clip.notes[0].startswith("no sound")
    assert any(note.startswith("cut to the first 1.") for note in clip.notes)


@pytest.mark.parametrize(("name", "codec"), [("a.mp3", "mp3"), ("a.flac", "flac")])
def test_a_cover_picture_is_no_video(tmp_path: Path, name: str, codec: str) -> None:
    cover = png_bomb(64)
    path = tmp_path / name
    with av.open(str(path), "w") as out:
        sound = out.add_stream(codec, rate=44100, layout="mono")
        picture = out.add_stream("png", rate=1)
        picture.width = picture.height = 64
        picture.pix_fmt = "gray"
        picture.disposition = av.stream.Disposition.attached_pic
        packet = av.Packet(cover)
        packet.stream, packet.pts, packet.dts, packet.time_base = picture, 0, 0, Fraction(1, 1)
        packet.is_keyframe = True
        out.start_encoding()
        out.mux(packet)
        frame = av.AudioFrame.from_ndarray(tone(1, 44100), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 44100, 0
        resampler = av.AudioResampler(format=sound.codec_context.format, rate=44100, frame_size=1024)
        for ready in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(sound.encode(ready))
        out.mux(sound.encode(None))
    with av.open(str(path)) as check:
        assert len(check.streams.video) == 1
    clip = read_media(path)
    assert clip.frames is None
    assert clip.notes[0] == "no picture"
    assert pitch(clip) == pytest.approx(440, abs=2)


def test_a_missing_decoder_is_not_called_a_missing_channel(tmp_path: Path) -> None:
    deaf = without_decoder(write_media(tmp_path / "deaf.mp4", frames=8, fps=8, sound=tone(1)), b"mp4a")
    clip = read_media(deaf)
    assert clip.notes == ("the sound cannot be decoded (no decoder for its format)",)
    assert clip.waveform is None
    with pytest.raises(UserError, match=r"deaf\.mp4: the sound cannot be decoded \(no decoder for its format\)$"):
        read_media(None, deaf)
    blind = without_decoder(write_media(tmp_path / "blind.mp4", frames=8, fps=8, sound=tone(1)), b"mp4v")
    assert read_media(blind).notes == ("the picture cannot be decoded (no decoder for its format)",)
    neither = without_decoder(write_media(tmp_path / "both.mp4", frames=8, fps=8, sound=tone(1)), b"mp4v", b"mp4a")
    with pytest.raises(UserError, match=r"both\.mp4: the picture cannot be .*, the sound cannot be decoded"):
        read_media(neither)


def two_voices(path: Path) -> Path:
    """A file with a track of 440 Hz and one of 880 Hz."""
    with av.open(str(path), "w") as out:
        streams = [out.add_stream("aac", rate=16000, layout="mono") for _ in range(2)]
        for stream, hertz in zip(streams, (440, 880), strict=True):
            frame = av.AudioFrame.from_ndarray(tone(1, hertz=hertz), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 0
            resampler = av.AudioResampler(format="fltp", rate=16000, frame_size=1024)
            for ready in [*resampler.resample(frame), *resampler.resample(None)]:
                out.mux(stream.encode(ready))
            out.mux(stream.encode(None))
    return path


def test_the_next_track_is_heard_where_the_first_has_no_decoder(tmp_path: Path) -> None:
    clip = read_media(None, without_decoder(two_voices(tmp_path / "a.mp4"), b"mp4a"))
    assert pitch(clip) == pytest.approx(880, abs=2)
    assert clip.notes == ("1 of 2 sound tracks cannot be decoded (no decoder for its format)",)


@pytest.mark.parametrize(("number", "hertz"), [(1, 440), (2, 880)])
def test_the_wanted_track_is_heard(tmp_path: Path, number: int, hertz: int) -> None:
    clip = read_media(None, two_voices(tmp_path / "a.mp4"), MediaLimits(audio_track=number))
    assert pitch(clip) == pytest.approx(hertz, abs=2)
    assert clip.notes == (f"sound track {number} of 2 is used",)


def test_a_track_that_is_not_there_is_no_other_track(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.mp4: sound track 3 is wanted, and it has 2"):
        read_media(None, two_voices(tmp_path / "a.mp4"), MediaLimits(audio_track=3))
    mute = write_media(tmp_path / "mute.mp4", frames=8, fps=8)
    assert read_media(mute, limits=MediaLimits(audio_track=2)).notes == ("no sound",)
    chosen = without_decoder(two_voices(tmp_path / "b.mp4"), b"mp4a")
    with pytest.raises(UserError, match=r"b\.mp4: the sound cannot be decoded"):
        read_media(None, chosen, MediaLimits(audio_track=1))


def test_an_odd_frame_rate_is_said(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.avi", frames=20, fps=10, video_codec="mjpeg", pix_fmt="yuvj420p")
    data = bytearray(path.read_bytes())
    struct.pack_into("<II", data, data.index(b"vids") + 20, 1, 90000)  # scale and rate of the stream
    path.write_bytes(data)
    assert read_media(path).notes == ("no sound", "odd frame rate: 9e+04 per second, so its times may be wrong")


@pytest.mark.parametrize("beginning", [44, None])
def test_a_file_of_empty_chunks_ends(tmp_path: Path, beginning: int | None) -> None:
    head = write_media(tmp_path / "a.wav", sound=tone(1), audio_codec="pcm_s16le").read_bytes()[:beginning]
    with (tmp_path / "endless.wav").open("wb") as file:
        file.write(head)
        file.truncate(1 << 31)  # sparse: 270 million chunks of no bytes
    with pytest.raises(UserError, match=r"endless\.wav: empty chunks without end in it"):
        read_media(None, tmp_path / "endless.wav")


def test_several_tracks_are_said(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as out:
        streams = [out.add_stream("pcm_s16le", rate=16000, layout="mono") for _ in range(2)]
        for stream, hertz in zip(streams, (440, 880), strict=True):
            samples = (tone(1, hertz=hertz) * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16000, 0
            out.mux(stream.encode(frame))
    clip = read_media(None, path)
    assert clip.notes == ("2 sound tracks, one is used",)
    assert pitch(clip) == pytest.approx(440, abs=2)


# --- keys, limits, anything


def test_content_key_is_about_content(tmp_path: Path) -> None:
    a, b, c = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    a.write_bytes(b"one"), b.write_bytes(b"one"), c.write_bytes(b"two")
    assert content_key(a) == content_key(b)
    assert (
        len(
            {
                content_key(a),
                content_key(c),
                content_key(None, a),
                content_key(a, c),
                content_key(c, a),
                content_key(None),
            }
        )
        == 6
    )
    with pytest.raises(UserError, match="no such file"):
        content_key(tmp_path / "d")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_frames", 0),
        ("max_seconds", 0.0),
        ("max_seconds", float("nan")),
        ("fps", 0.0),
        ("size", (0, 5)),
        ("max_pixels", -1),
    ],
)
def test_limits_that_leave_nothing(field: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"MediaLimits\.{field} is "):
        MediaLimits(**{field: value})


def test_same_result_with_several_threads(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", frames=60, fps=10, picture=noise, video_codec="libx264", sound=tone(6))
    one, more = read_media(path), read_media(path, threads=4)
    assert np.array_equal(one.frames, more.frames)
    assert np.array_equal(one.waveform, more.waveform)


HEADS = [
    b"",
    b"\0\0\0\x18ftypisom",
    b"RIFF\xff\0\0\0WAVEfmt ",
    b"RIFF\xff\0\0\0AVI LIST",
    b"OggS\0\x02",
    b"fLaC\0\0\0\x22",
    b"\x1aE\xdf\xa3",
    b"ID3\x04\0\0",
    b"\xff\xfb\x90\x64",
    b"FLV\x01\x05\0\0\0\x09",
]


def read_or_message(video: Path | None, audio: Path | None) -> Media | str:
    try:
        return read_media(video, audio)
    except UserError as error:
        return str(error)


@settings(max_examples=200, deadline=None)
@given(head=st.sampled_from(HEADS), body=st.binary(min_size=1, max_size=3000))
def test_any_bytes_give_media_or_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, head: bytes, body: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.mp4"
    path.write_bytes(head + body)
    for video, audio in ((path, None), (None, path)):
        clip = read_or_message(video, audio)
        if isinstance(clip, str):
            assert clip.startswith(str(path))
            assert "\n" not in clip
        else:
            assert clip.frames is not None or clip.waveform is not None


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_damage_gives_media_or_a_user_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp()
    name = data.draw(st.sampled_from(["a.mp4", "a.mkv", "a.avi", "a.wav"]))
    good = folder / f"good-{name}"
    if not good.exists():
        codec = "pcm_s16le" if name == "a.wav" else "aac"
        write_media(good, frames=0 if name == "a.wav" else 6, picture=noise, sound=tone(0.6), audio_codec=codec)
    content = bytearray(good.read_bytes())
    places = data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=30))
    for place, value in places:
        content[place] = value
    path = folder / "damaged.bin"
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    clip = read_or_message(path, None)
    if isinstance(clip, str):
        assert clip.startswith(str(path))
        assert "\n" not in clip
    else:
        assert clip.seconds <= 30
        assert clip.waveform is None or np.isfinite(clip.waveform).all()
        assert clip.frames is None or len(clip.frames) == len(clip.frame_seconds) > 0


# --- real recordings


@pytest.fixture
def talking() -> Path:
    return recordings.talking()


@pytest.fixture
def speech() -> Path:
    return recordings.speech()


def test_a_real_video_without_sound(talking: Path) -> None:
    clip = read_media(talking)
    # 120 frames at 30000/1001 a second; 176 × 144 with pixels 128/117 as wide as high
    assert clip.frames.shape == (8, 3, 144, 193)
    assert clip.fps == pytest.approx(8 / (120 * 1001 / 30000), rel=1e-3)
    assert clip.waveform is None
    assert clip.notes == ("no sound",)
    assert clip.frames.std() > 30


@pytest.mark.parametrize(("name", "sound"), [("bikes.mp4", False), ("bigbuckbunny.mp4", True)])
def test_other_real_videos(talking: Path, name: str, sound: bool) -> None:
    clip = read_media(talking.with_name(name))
    assert len(clip.frames) == 8
    assert (clip.waveform is not None) == sound


def test_a_real_sound_without_video(speech: Path) -> None:
    clip = read_media(None, speech)
    assert clip.frames is None
    assert 2 < clip.seconds <= 30
    assert 0.01 < np.abs(clip.waveform).max() <= 1.5
    assert np.abs(np.fft.rfft(clip.waveform))[: int(4000 * clip.seconds)].sum() > 0


def test_a_real_video_and_a_real_sound_muxed_together(talking: Path, speech: Path, tmp_path: Path) -> None:
    both = muxed(talking, speech, tmp_path / "both.mkv")
    clip, seen, heard = read_media(both), read_media(talking), read_media(None, speech)
    assert np.array_equal(clip.frames, seen.frames)
    assert clip.fps == pytest.approx(seen.fps, rel=1e-2)
    assert np.abs(clip.waveform - heard.waveform[: len(clip.waveform)]).max() < 1e-4
    assert media.read_media(talking, speech).waveform.shape == heard.waveform.shape
