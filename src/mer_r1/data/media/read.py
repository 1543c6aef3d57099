"""From a clip's files to what the towers see and hear: frames and a waveform, read in one demux.

The model looks at a handful of frames and listens to mono sound at 16 kHz. Time is what must be right: the frames are
taken at evenly spaced moments of the clip (the frame *shown* at each moment, so a variable frame rate does no harm),
once, and their true rate goes along with them to everything that turns frames into time positions. Whatever had to be
left out (too long, cut off, no sound) is said in `Media.notes`; what cannot be used at all is a `UserError`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mer_r1.data.media.container import (
    DECODING_ERRORS,
    MediaLimits,
    local_file,
    naming_notes,
    open_container,
    riff_note,
)
from mer_r1.data.media.picture import PictureTrack
from mer_r1.data.media.sound import SoundTrack
from mer_r1.errors import UserError, printable

__all__ = ["Media", "MediaLimits", "content_key", "read_media"]

Tracks = Sequence[PictureTrack | SoundTrack]

_INTERLEAVING_SECONDS = 10.0  # how far apart the tracks of a file may lie before the slower one is taken to have ended
_EXACT_LENGTH = ("mov", "matroska", "avi", "wav", "flac")  # formats whose header states the true length
_NOTED_DIFFERENCE = 0.5  # seconds
_SILENCE = 1e-4  # of full scale, -80 dB
_COVER, _DEFAULT = 1024, 1  # FFmpeg's AV_DISPOSITION_ATTACHED_PIC and AV_DISPOSITION_DEFAULT


@dataclass(frozen=True)
class Media:
    """What a clip shows and says, ready for a processor.

    Attributes:
        frames: (F, 3, H, W) uint8 RGB; None without a picture.
        frame_seconds: (F,) float64, the moments at which the frames are shown, evenly spaced; None without a picture.
        fps: true rate of the sampled frames, 1 / (spacing of `frame_seconds`), which for F > 1 is
            (F-1) / (last - first); None without a picture or for a single picture without a length.
        waveform: (S,) float32 mono, sample s at s / sampling_rate seconds; None without sound.
        sampling_rate: of the waveform, in Hz.
        seconds: length of the part of the clip that was read, picture and sound together; 0 for text only.
        notes: what was left out or looks odd, in plain words; empty for an ordinary clip.
    """

    frames: np.ndarray | None = None
    frame_seconds: np.ndarray | None = None
    fps: float | None = None
    waveform: np.ndarray | None = None
    sampling_rate: int = 16000
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


def read_media(
    video: Path | str | None,
    audio: Path | str | None = None,
    limits: MediaLimits | None = None,
    *,
    threads: int = 1,
) -> Media:
    """Read a clip.

    Args:
        video: file with the picture, and with the sound unless `audio` is given. A file with sound only is taken as
            such, with a note.
        audio: file with the sound; only its sound is read.
        limits: how much is read; `MediaLimits()` if None.
        threads: decoding threads; 1 is the fastest for short small clips and right for worker processes.

    Returns:
        What was read; without files an empty `Media` (a text-only clip).

    Raises:
        UserError: naming the file and what is wrong with it: not a readable local file, a playlist, no known format,
            nothing that decodes, a picture or sampling rate out of bounds, or the wanted channel is not in it.
    """
    limits = limits or MediaLimits()
    if video is None and audio is None:
        return Media(sampling_rate=limits.sampling_rate)
    parts: list[Media] = []
    if video is not None:
        parts.append(_read_file(Path(video), limits, threads, picture=True, sound=audio is None))
        if parts[0].frames is None and audio is not None:
            raise UserError(
                f"{printable(video)}: no picture in it, expected a video (its sound is read from elsewhere)"
            )
    if audio is not None:
        parts.append(_read_file(Path(audio), limits, threads, picture=False, sound=True))
    return parts[0] if len(parts) == 1 else _joined(*parts)


def content_key(video: Path | str | None, audio: Path | str | None = None) -> str:
    """Hash of the content of a clip's files (not of their names), for caches: 32 hexadecimal digits.

    Raises:
        UserError: if a file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for role, path in (("video", video), ("audio", audio)):
        if path is not None:
            digest.update(role.encode())
            try:
                with local_file(path).open("rb") as file:
                    digest.update(hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).digest())
            except OSError as error:
                raise UserError(f"{printable(path)}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def _read_file(path: Path, limits: MediaLimits, threads: int, *, picture: bool, sound: bool) -> Media:
    with open_container(path, limits.max_pixels) as container:
        return _read_container(path, container, limits, threads, picture=picture, sound=sound)


def _read_container(
    path: Path, container: Any, limits: MediaLimits, threads: int, *, picture: bool, sound: bool
) -> Media:
    notes = naming_notes(path, container.format.name) + riff_note(path)
    start = (container.start_time or 0) / 1e6
    video_stream = _choose(container.streams.video, "picture", notes) if picture else None
    audio_stream = _choose(container.streams.audio, "sound", notes) if sound else None
    if video_stream is None and audio_stream is None:
        wanted = " or ".join(word for word, want in (("picture", picture), ("sound", sound)) if want)
        raise UserError(f"no {wanted} in it")
    seen = PictureTrack(video_stream, start, limits, threads) if video_stream is not None else None
    heard = SoundTrack(audio_stream, start, limits, threads) if audio_stream is not None else None
    tracks: Tracks = [track for track in (seen, heard) if track is not None]
    notes += _demux(container, tracks, limits)

    sampled = seen.sample() if seen else None
    waveform = heard.waveform() if heard else None
    if sampled is None and waveform is None:
        large = f", or its pictures have more than {limits.max_pixels} pixels" if seen else ""
        raise UserError(f"nothing in it can be decoded (cut off, damaged, of zero length{large})")
    frames, moments, fps = sampled if sampled is not None else (None, None, None)
    picture_seconds = seen.span[1] if seen and sampled else 0.0
    sound_seconds = len(waveform) / limits.sampling_rate if waveform is not None else 0.0
    seconds = max(picture_seconds, sound_seconds)
    if picture and sampled is None:
        notes.append("the picture cannot be decoded" if seen else "no picture")
    if sound and waveform is None:
        notes.append("the sound cannot be decoded, or is of zero length" if heard else "no sound")
    notes += _length_notes(container, tracks, seconds, limits)
    notes += _sound_notes(waveform) + _size_notes(seen, frames)
    if sampled is not None and waveform is not None:
        notes += _difference_notes(picture_seconds, sound_seconds)
    return Media(frames, moments, fps, waveform, limits.sampling_rate, seconds, tuple(notes))


def _choose(streams: Sequence[Any], what: str, notes: list[str]) -> Any:
    """The stream marked as default, else the first; cover pictures are none, nor are streams without a decoder."""
    usable = [stream for stream in streams if stream.codec_context is not None and not stream.disposition & _COVER]
    if len(usable) > 1:
        notes.append(f"{len(usable)} {what} tracks, one is used")
    return next((stream for stream in usable if stream.disposition & _DEFAULT), usable[0] if usable else None)


def _demux(container: Any, tracks: Tracks, limits: MediaLimits) -> list[str]:
    """Feed the tracks until each has what it needs; returns notes."""
    by_index = {track.stream.index: track for track in tracks}
    try:
        for packet in container.demux([track.stream for track in tracks]):
            track = by_index[packet.stream.index]  # a flush packet's own stream_index is always 0
            track.add(packet)
            if track.cut and (
                all(other.cut for other in tracks) or track.reached > limits.max_seconds + _INTERLEAVING_SECONDS
            ):
                break
    except UserError:
        raise
    except DECODING_ERRORS:
        return [f"damaged: reading stopped at {max(track.reached for track in tracks):.1f} s"]
    return []


def _length_notes(container: Any, tracks: Tracks, seconds: float, limits: MediaLimits) -> list[str]:
    notes = []
    total = (container.duration or 0) / 1e6
    if any(track.cut for track in tracks):
        if total > seconds + 0.1:
            notes.append(f"cut to the first {seconds:.3g} s of {total:.4g} s")
    elif total > 1.05 * seconds + 0.25 and container.format.name.split(",")[0] in _EXACT_LENGTH:
        notes.append(f"cut off: {seconds:.3g} s of the {total:.4g} s that its header states")
    damaged = sum(track.damaged for track in tracks)
    if damaged:
        notes.append(f"{damaged} damaged packets left out")
    return notes


def _sound_notes(waveform: np.ndarray | None) -> list[str]:
    if waveform is not None and np.abs(waveform).max() < _SILENCE:
        return ["the sound is silent"]
    return []


def _size_notes(seen: PictureTrack | None, frames: np.ndarray | None) -> list[str]:
    if seen is None or frames is None or seen.limits.size is not None:
        return []
    (height, width), scaled = seen.source_size, frames.shape[2:]
    return (
        [] if scaled == (height, width) else [f"pictures scaled from {width} × {height} to {scaled[1]} × {scaled[0]}"]
    )


def _difference_notes(picture_seconds: float, sound_seconds: float) -> list[str]:
    if abs(picture_seconds - sound_seconds) <= _NOTED_DIFFERENCE:
        return []
    return [f"the picture lasts {picture_seconds:.3g} s, the sound {sound_seconds:.3g} s"]


def _joined(seen: Media, heard: Media) -> Media:
    """The picture of one file and the sound of another."""
    assert heard.waveform is not None  # _read_file raises otherwise
    picture_seconds, sound_seconds = seen.seconds, heard.seconds
    notes = (*seen.notes, *heard.notes, *_difference_notes(picture_seconds, sound_seconds))
    return replace(seen, waveform=heard.waveform, seconds=max(picture_seconds, sound_seconds), notes=notes)
