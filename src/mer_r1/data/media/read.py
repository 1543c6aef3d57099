"""Reads a clip's files in one demux: frames and a waveform, as the vision and audio towers take them.

The model sees a handful of frames and hears mono audio at 16 kHz. Time must be right: frames are taken at evenly spaced
moments of the clip (the frame on display at each moment, so that a variable frame rate does no harm), and their true
rate is passed on to everything that turns frames into time positions. `Media.notes` say what was left out (too long,
cut off, no audio); what cannot be used at all is a `UserError`.
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mer_r1.data.clip import Clip
from mer_r1.data.media.container import (
    DECODING_ERRORS,
    MediaLimits,
    local_file,
    naming_notes,
    open_container,
    riff_note,
)
from mer_r1.data.media.digests import file_digest
from mer_r1.data.media.picture import PictureTrack
from mer_r1.data.media.sound import SoundTrack
from mer_r1.errors import UserError, printable

NO_DECODER = "cannot be decoded (no decoder for its format)"
_INTERLEAVING_SECONDS = 10.0  # how far apart the tracks of a file may lie before the slower one counts as ended
_EXACT_LENGTH = ("mov", "matroska", "avi", "wav", "flac")  # formats whose header states the true length
_NOTED_DIFFERENCE = 0.5  # seconds
_RUN_UP = 2.0  # seconds before a section that reading starts at
_USUAL_RATES = (0.1, 500.0)  # frames per second; a rate beyond is more often a wrong header than true
_SILENCE = 1e-4  # of full scale, -80 dB
COVER, _DEFAULT = 1024, 1  # FFmpeg's AV_DISPOSITION_ATTACHED_PIC and AV_DISPOSITION_DEFAULT


@dataclass(frozen=True)
class Media:
    """Frames and waveform of a clip, ready for a processor.

    Attributes:
        frames: (F, 3, H, W) uint8 RGB; None without video.
        frame_seconds: (F,) float64, evenly spaced moments at which the frames are on display; None without video.
        fps: true rate of the sampled frames, 1 / (spacing of `frame_seconds`), which for F > 1 is
            (F-1) / (last - first); None without video or for a single frame without a length.
        waveform: (S,) float32 mono, sample s at s / sampling_rate seconds; None without audio.
        sampling_rate: rate of the waveform in Hz.
        seconds: length of the part of the clip that was read, the longer of video and audio; 0 for text only.
        notes: what was left out or looks odd, in plain words; empty for an ordinary clip.
    """

    frames: np.ndarray | None = None
    frame_seconds: np.ndarray | None = None
    fps: float | None = None
    waveform: np.ndarray | None = None
    sampling_rate: int = 16000
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


def read_clip(clip: Clip, limits: MediaLimits | None = None) -> Media:
    """Read the files of a clip, or its section of them; see `read_media`."""
    return read_media(clip.video, clip.audio, limits, section=clip.section)


def read_media(
    video: Path | str | None,
    audio: Path | str | None = None,
    limits: MediaLimits | None = None,
    *,
    threads: int = 1,
    section: tuple[float, float] | None = None,
) -> Media:
    """Read a clip.

    Args:
        video: video file, which also gives the audio unless `audio` is given. A file with audio only is accepted, with
            a note.
        audio: audio file, or any file whose audio is wanted.
        limits: how much is read; `MediaLimits()` if None.
        threads: decoding threads; 1 is the fastest for short small clips and right for worker processes.
        section: (first, last) seconds of the files to read, as if they were a clip; None reads from the beginning.

    Returns:
        Frames and waveform; without files an empty `Media` (a text-only clip).

    Raises:
        UserError: naming the file and what is wrong with it: not a readable local file, a playlist, no known format,
            nothing that decodes, a frame size or sampling rate out of bounds, or no channel of the wanted kind.
    """
    limits = limits or MediaLimits()
    if video is None and audio is None:
        return Media(sampling_rate=limits.sampling_rate)
    parts: list[Media] = []
    if video is not None:
        parts.append(_read_file(Path(video), limits, threads, section, picture=True, sound=audio is None))
    if audio is not None:
        parts.append(_read_file(Path(audio), limits, threads, section, picture=False, sound=True))
    return parts[0] if len(parts) == 1 else _joined(*parts)


def content_key(video: Path | str | None, audio: Path | str | None = None) -> str:
    """Cache key of a clip: a hash of the content of its files (not of their names), 32 hexadecimal digits.

    A file is read once, until its size or time changes (`digests`).

    Raises:
        UserError: if a file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for role, path in (("video", video), ("audio", audio)):
        if path is not None:
            digest.update(role.encode())
            try:
                digest.update(file_digest(local_file(path)))
            except OSError as error:
                raise UserError(f"{printable(path)}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def media_seconds(path: Path | str) -> float:
    """Length of a recording in seconds: as its header states, where such headers are exact, else by its packets.

    Raises:
        UserError: as `read_media`.
    """
    with open_container(path, MediaLimits.max_pixels, streamed=True) as container:
        if container.duration and container.format.name.split(",")[0] in _EXACT_LENGTH:
            return float(container.duration) / 1e6
        last = begin = (container.start_time or 0) / 1e6
        with suppress(*DECODING_ERRORS):  # damaged: it ends there
            for packet in container.demux():
                if packet.pts is not None and packet.time_base:
                    last = max(last, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        return last - begin


def check_readable(clip: Clip) -> None:
    """Open a clip's files, without decoding them.

    Raises:
        UserError: as `read_media`, as far as the headers tell.
    """
    for path in (clip.video, clip.audio):
        if path is not None:
            with open_container(path, MediaLimits.max_pixels) as container:
                if not (container.streams.video or container.streams.audio):
                    raise UserError("no picture or sound in it")


def _read_file(
    path: Path, limits: MediaLimits, threads: int, section: tuple[float, float] | None, *, picture: bool, sound: bool
) -> Media:
    with open_container(path, limits.max_pixels, streamed=section is not None) as container:
        notes = naming_notes(path, container.format.name) + riff_note(path)
        reading = _Reading(container, limits, notes, section)
        reading.choose_streams(threads, picture=picture, sound=sound)
        reading.demux()
        return reading.decoded()


class _Reading:
    """One pass over an open file: choose streams, demux, decode; `notes` grows on the way."""

    def __init__(
        self, container: Any, limits: MediaLimits, notes: list[str], section: tuple[float, float] | None
    ) -> None:
        self.container, self.limits, self.notes, self.section = container, limits, notes, section
        if section is not None:
            self.limits = replace(limits, max_seconds=min(limits.max_seconds, section[1] - section[0]))
        self.missing: dict[str, str] = {}

    def choose_streams(self, threads: int, *, picture: bool, sound: bool) -> None:
        """Take one stream of each wanted kind; an error if there is none."""
        begun, streams = (self.container.start_time or 0) / 1e6, self.container.streams
        start = begun + (self.section or (0.0,))[0]
        self.wanted = [name for name, want in (("picture", picture), ("sound", sound)) if want]
        video = self._choose(streams.video, "picture") if picture else None
        audio = self._choose(streams.audio, "sound") if sound else None
        if video is None and audio is None:
            raise UserError(self._neither())
        self.video = None if video is None else PictureTrack(video, start, self.limits, threads)
        self.audio = None if audio is None else SoundTrack(audio, start, self.limits, threads)
        self.tracks = [track for track in (self.video, self.audio) if track is not None]
        self._start_at(start, start - begun)

    def _neither(self) -> str:
        known = [note for note in self.missing.values() if not note.startswith("no ")]
        return ", ".join(known) or f"no {' or '.join(self.wanted)} in it"

    def _start_at(self, start: float, skipped: float) -> None:
        for track in self.tracks:
            track.trims = self.section is not None
        if skipped > _RUN_UP:
            with suppress(*DECODING_ERRORS):  # without an index the file is read from its beginning
                self.container.seek(round(1e6 * (start - _RUN_UP)))

    def _choose(self, streams: Sequence[Any], name: str) -> Any:
        """The wanted audio track, else the one marked as default, else the first that has a decoder; no cover image."""
        tracks = [stream for stream in streams if not stream.disposition.value & COVER]
        number = self.limits.audio_track if name == "sound" and tracks else None
        if number is not None:
            if number > len(tracks):
                raise UserError(f"sound track {number} is wanted, and it has {len(tracks)}")
            self.notes += [f"sound track {number} of {len(tracks)} is used"] if len(tracks) > 1 else []
            tracks = [tracks[number - 1]]
        usable = [stream for stream in tracks if stream.codec_context is not None]
        if len(usable) > 1:
            self.notes.append(f"{len(usable)} {name} tracks, one is used")
        if usable and len(usable) < len(tracks):
            self.notes.append(f"{len(tracks) - len(usable)} of {len(tracks)} {name} tracks {NO_DECODER}")
        self.missing[name] = f"the {name} {NO_DECODER}" if tracks and not usable else f"no {name}"
        return max(usable, key=lambda stream: bool(stream.disposition.value & _DEFAULT), default=None)

    def demux(self) -> None:
        """Feed the tracks until each has what it needs."""
        tracks, last = self.tracks, self.limits.max_seconds + _INTERLEAVING_SECONDS
        by_index = {track.stream.index: track for track in tracks}
        try:
            for packet in self.container.demux([track.stream for track in tracks]):
                track = by_index[packet.stream.index]  # a flush packet's own stream_index is always 0
                track.add(packet)
                if track.cut and (all(other.cut for other in tracks) or track.reached > last):
                    break
        except UserError:
            raise
        except DECODING_ERRORS:
            self.notes.append(f"damaged: reading stopped at {max(track.reached for track in tracks):.1f} s")

    def decoded(self) -> Media:
        """Frames, waveform and notes; an error if nothing can be decoded."""
        sampled = self.video.sample() if self.video else None
        waveform = self.audio.waveform() if self.audio else None
        if sampled is None and waveform is None:
            large = f", or its pictures have more than {self.limits.max_pixels} pixels" if self.video else ""
            raise UserError(f"nothing in it can be decoded (cut off, damaged, of zero length{large})")
        self._note_missing(sampled is None, waveform is None)
        frames, moments, fps = sampled if sampled is not None else (None, None, None)
        video_seconds = self.video.span[1] if self.video and sampled else 0.0
        audio_seconds = len(waveform) / self.limits.sampling_rate if waveform is not None else 0.0
        seconds = max(video_seconds, audio_seconds)
        self._note_length(seconds)
        if waveform is not None and np.abs(waveform).max() < _SILENCE:
            self.notes.append("the sound is silent")
        self.notes += _picture_notes(self.video, frames)
        if sampled is not None and waveform is not None:
            self.notes += _difference_notes(video_seconds, audio_seconds)
        return Media(frames, moments, fps, waveform, self.limits.sampling_rate, seconds, tuple(self.notes))

    def _note_missing(self, no_frames: bool, no_waveform: bool) -> None:
        if "picture" in self.wanted and no_frames:
            self.notes.append("the picture cannot be decoded" if self.video else self.missing["picture"])
        if "sound" in self.wanted and no_waveform:
            unread = "the sound cannot be decoded, or is of zero length"
            self.notes.append(unread if self.audio else self.missing["sound"])

    def _note_length(self, seconds: float) -> None:
        total = self.section[1] - self.section[0] if self.section else (self.container.duration or 0) / 1e6
        stated = not self.section and self.container.format.name.split(",")[0] in _EXACT_LENGTH
        if any(track.cut for track in self.tracks):
            if total > seconds + 0.1:
                self.notes.append(f"cut to the first {seconds:.3g} s of {total:.4g} s")
        elif stated and total > 1.05 * seconds + 0.25:
            self.notes.append(f"cut off: {seconds:.3g} s of the {total:.4g} s that its header states")
        if damaged := sum(track.damaged for track in self.tracks):
            self.notes.append(f"{damaged} damaged packets left out")


def _picture_notes(video: PictureTrack | None, frames: np.ndarray | None) -> list[str]:
    notes: list[str] = []
    if video is None or frames is None:
        return notes
    (height, width), (new_height, new_width) = video.source_size, frames.shape[2:]
    if video.limits.size is None and (height, width) != (new_height, new_width):
        notes.append(f"pictures scaled from {width} × {height} to {new_width} × {new_height}")
    if video.rate and not _USUAL_RATES[0] <= video.rate <= _USUAL_RATES[1]:
        notes.append(f"odd frame rate: {video.rate:.3g} per second, so its times may be wrong")
    return notes


def _difference_notes(video_seconds: float, audio_seconds: float) -> list[str]:
    if abs(video_seconds - audio_seconds) <= _NOTED_DIFFERENCE:
        return []
    return [f"the picture lasts {video_seconds:.3g} s, the sound {audio_seconds:.3g} s"]


def _joined(video: Media, audio: Media) -> Media:
    """Frames of one file and waveform of another."""
    assert audio.waveform is not None  # _read_file raises otherwise
    notes = (*video.notes, *audio.notes, *_difference_notes(video.seconds, audio.seconds))
    return replace(video, waveform=audio.waveform, seconds=max(video.seconds, audio.seconds), notes=notes)
