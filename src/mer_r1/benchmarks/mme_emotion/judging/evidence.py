"""Evidence for the judge: the first frames of a video as JPEG, and its audio as WAV.

The reference takes every k-th frame from the first one on, k being the frame rate rounded down, and keeps ten: about
one frame per second of the first ten seconds. It reads with OpenCV; here PyAV decodes the same frames, from files
opened as safely as everywhere else (`container`).
"""

import contextlib
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from av.video.reformatter import VideoReformatter

from mer_r1.data.media.container import DECODING_ERRORS, MediaLimits, check_size, decoder_bound, open_container
from mer_r1.data.media.encode import jpeg, wav
from mer_r1.data.media.picture import orientation
from mer_r1.data.media.read import COVER, NO_DECODER, read_media
from mer_r1.errors import UserError, printable

logger = logging.getLogger(__name__)

MAX_FRAMES = 10
JPEG_QUALITY = 95  # what OpenCV writes without being asked
_MAX_SECONDS = 60.0


def judge_frames(video: Path, max_side: int | None = None) -> list[bytes]:
    """The first `MAX_FRAMES` of the frames 0, k, 2k, ... of a video as JPEG files, k = its frame rate rounded down.

    Args:
        video: a local file.
        max_side: longest side in pixels; larger frames are scaled down. None keeps the size, as the reference does.

    Raises:
        UserError: the file cannot be read, has no video, no decodable frame, or less than one frame per second (the
            reference divides by zero there and gives no score).
    """
    limits = MediaLimits()
    with open_container(video, limits.max_pixels) as container:
        streams = [s for s in container.streams.video if not s.disposition.value & COVER]
        stream = next((s for s in streams if s.codec_context), None)
        if stream is None:
            missing = f"the picture {NO_DECODER}" if streams else "no picture in it"
            raise UserError(f"{missing}, and the judge needs frames")
        every = int(stream.average_rate or stream.guessed_rate or 0)
        if every < 1:
            raise UserError(f"{float(stream.average_rate or 0):.3g} frames per second, expected at least 1")
        stream.codec_context.options = {"max_pixels": decoder_bound(limits.max_pixels)}
        chosen = itertools.islice(_decoded(container, stream), 0, (MAX_FRAMES - 1) * every + 1, every)
        frames = [_jpeg(frame, limits.max_pixels, max_side) for frame in chosen]
    if not frames:
        raise UserError(f"{printable(video)}: no frame of it can be decoded")
    return frames


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    with contextlib.suppress(*DECODING_ERRORS):  # the frames before the damage are used
        yield from container.decode(stream)


def _jpeg(frame: Any, max_pixels: int, max_side: int | None) -> bytes:
    check_size(frame.width, frame.height, max_pixels)
    pixels = VideoReformatter().reformat(frame, format="rgb24", threads=1).to_ndarray()  # others outlive the call
    swap, mirror, flip = orientation(frame)
    pixels = pixels.transpose(1, 0, 2) if swap else pixels
    return jpeg(pixels[:: -1 if flip else 1, :: -1 if mirror else 1], JPEG_QUALITY, max_side)


def judge_sound(video: Path | None, audio: Path | None, max_seconds: float = _MAX_SECONDS) -> bytes:
    """The audio of a clip as a WAV file: mono, 16 kHz, 16 bit.

    Args:
        video: file with the video and, unless `audio` is given, the audio.
        audio: file with the audio.
        max_seconds: longest audio in seconds; the rest is cut, with a warning.

    Raises:
        UserError: the file cannot be read, or has no audio.
    """
    path = audio or video
    media = read_media(None, path, MediaLimits(max_seconds=max_seconds))
    if media.waveform is None:
        raise UserError(f"{printable(path or '')}: no sound in it")
    for note in media.notes:
        if note.startswith("cut to "):
            logger.warning("%s: the audio that is sent is %s", printable(path or ""), note)
    return wav(media.waveform, media.sampling_rate)
