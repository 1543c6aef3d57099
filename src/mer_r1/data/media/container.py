"""Opens one local media file and nothing else.

A media file can be hostile: a playlist that names other files or addresses, a name that FFmpeg reads as a protocol or
as an image pattern, a frame of a gigapixel in a hundred kilobytes. So FFmpeg never sees a name here. Python opens the
file, only demuxers of plain media formats may read it, requests to open further files are refused, and the size of a
frame is bounded before memory is allocated for it (FLV and MPEG streams are probed without that bound, because their
streams are unknown when the file is opened; FFmpeg's own bounds hold there).
"""

import io
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import av

from mer_r1.errors import UserError, brief, printable


@dataclass(frozen=True)
class MediaLimits:
    """How much of a clip is read. `Media.notes` say what the limits cut off.

    Attributes:
        max_frames: frames taken from a clip, evenly over its length; fewer if it has fewer.
        fps: wanted frames per second, up to `max_frames` in all; None takes `max_frames` from clips of any length.
        size: (height, width) that every frame is scaled to; None keeps the shape.
        max_side: longest side of a frame in pixels, larger ones are scaled down; ignored where `size` is given.
        frame_pixels: pixels of a frame above which it is scaled down, likewise; None for no such bound.
        audio_track: number of the audio track among the file's, from 1; None takes the one marked as default.
        max_pixels: pixels of a coded frame above which a file is refused (default: 8K UHD).
        max_seconds: length of the part that is read, from the clip's start.
        sampling_rate: rate of the waveform in Hz.
        max_bytes: bytes of compressed video held in memory; a longer clip is cut there.
    """

    max_frames: int = 8
    fps: float | None = None
    size: tuple[int, int] | None = None
    max_side: int = 1280
    frame_pixels: int | None = None
    audio_track: int | None = None
    max_pixels: int = 7680 * 4320
    max_seconds: float = 30.0
    sampling_rate: int = 16000
    max_bytes: int = 256 * 2**20

    def __post_init__(self) -> None:
        """Refuse limits that are not positive numbers."""
        for name in fields(self):
            value = getattr(self, name.name)
            if name.name != "size" and not (value is None and name.default is None) and not 0 < value < 1e12:
                raise UserError(f"MediaLimits.{name.name} is {value!r}, expected a number above 0 and below 1e12")
        if self.size is not None and min(self.size) < 1:
            raise UserError(f"MediaLimits.size is {self.size!r}, expected (height, width) of at least 1 pixel")

    def frame_size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) at which a frame of this size is read."""
        scale = min(1.0, self.max_side / max(height, width))
        scaled = [max(1, round(side * scale)) for side in (height, width)]
        if (bound := self.frame_pixels) and math.prod(scaled) > bound:
            scaled = [max(1, int(side * math.sqrt(bound / math.prod(scaled)))) for side in scaled]
        return self.size or (scaled[0], scaled[1])


@dataclass(frozen=True)
class ClipLimits:
    """What a model is given of each clip; the clip's notes say what that leaves out.

    Attributes:
        num_frames: frames sampled from a clip, evenly over its length.
        max_seconds: length in seconds after which a clip is cut.
        max_pixels: pixels of a frame above which it is scaled down; None leaves that to the model's processor.
        audio_track: number of the audio track among the file's, from 1; None takes the one marked as default.
    """

    num_frames: int = 8
    max_seconds: float = 30.0
    max_pixels: int | None = None
    audio_track: int | None = None

    def __post_init__(self) -> None:
        """Refuse values that are not positive numbers."""
        counts = type(self.num_frames) is int and {type(self.max_pixels), type(self.audio_track)} <= {int, type(None)}
        if not (counts and self.num_frames <= MOST_FRAMES and type(self.max_seconds) in (int, float)):
            told = ", ".join(f"{name.name} {brief(getattr(self, name.name))}" for name in fields(ClipLimits))
            raise UserError(f"got {told}, expected positive numbers and at most {MOST_FRAMES} frames")
        self.limits()

    @staticmethod
    def given(source: object) -> dict[str, Any]:
        """The limits that an object's attributes of these names give; None gives none.

        Raises:
            UserError: a value is no limit.
        """
        values = {item.name: getattr(source, item.name) for item in fields(ClipLimits)}
        found = {name: value for name, value in values.items() if value is not None}
        ClipLimits(**found)
        return found

    def limits(self) -> MediaLimits:
        """The limits for `media.read.read_media`."""
        return MediaLimits(
            max_frames=self.num_frames,
            max_seconds=self.max_seconds,
            frame_pixels=self.max_pixels,
            audio_track=self.audio_track,
        )


DECODING_ERRORS = (av.FFmpegError, ValueError, RuntimeError, MemoryError, OverflowError, LookupError)
"""Exceptions of PyAV on damaged content (`UserError` is a ValueError too: let it through first)."""

FORMATS = {
    "mov": ("MP4/MOV", ".mp4 .m4v .m4a .mov .3gp .3g2"),
    "matroska": ("Matroska/WebM", ".mkv .webm .mka"),
    "avi": ("AVI", ".avi"),
    "flv": ("FLV", ".flv"),
    "asf": ("ASF/WMV", ".wmv .wma .asf"),
    "mpeg": ("MPEG", ".mpg .mpeg .vob"),
    "mpegts": ("MPEG-TS", ".ts .m2ts .mts"),
    "wav": ("WAV", ".wav"),
    "w64": ("Wave64", ".w64"),
    "mp3": ("MP3", ".mp3"),
    "flac": ("FLAC", ".flac"),
    "ogg": ("Ogg", ".ogg .oga .ogv .opus"),
    "aac": ("AAC", ".aac"),
    "aiff": ("AIFF", ".aif .aiff"),
    "au": ("AU", ".au .snd"),
    "caf": ("CAF", ".caf"),
}
"""Allowed demuxers: FFmpeg's (first) name -> label, usual file endings."""

_ENDINGS = {ending: name for name, (_, endings) in FORMATS.items() for ending in endings.split()}

_TEXT_MARKS = (
    (b"#EXTM3U", "an HLS playlist, which names other files"),
    (b"ffconcat", "a concat list, which names other files"),
    (b"<MPD", "a DASH manifest, which names other files"),
    (b"[playlist]", "a playlist, which names other files"),
    (b"<smil", "a SMIL playlist, which names other files"),
    (b"v=0", "an SDP description, which names addresses"),
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself (git lfs pull)"),
    (b"<!DOCTYPE html", "a web page (a failed download?)"),
    (b"<html", "a web page (a failed download?)"),
)

MOST_FRAMES = 4096
"""Frames of a clip above which its limits are refused."""
_IN_MEMORY_BYTES = 32 * 2**20
_OPENING_BYTES = 64 * 2**20
_MOST_JUMPS = 500_000  # a few seconds; a file whose tracks lie apart needs two per packet


def local_file(path: Path | str) -> Path:
    """Check that a path is a non-empty regular file, and return it.

    Raises:
        UserError: it is missing, a folder, a device or pipe, empty, or no possible name.
    """
    path = Path(path)
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise UserError(f"{printable(path)}: no such file") from None
    except OSError as error:
        raise UserError(f"{printable(path)}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # a zero byte, or a lone surrogate
        raise UserError(f"{printable(path)}: not a possible file name ({error})") from None
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{printable(path)}: a folder, expected a media file")
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{printable(path)}: not a regular file, expected a media file")
    if status.st_size == 0:
        raise UserError(f"{printable(path)}: the file is empty")
    return path


class _Nameless:
    """A file object without a name: FFmpeg must go by content, and knows no folder to look for other files in.

    A file of gigabytes can be nothing but empty chunks of eight bytes. So there is a bound on the bytes that are read
    until it is open, and on the jumps in it; beyond, it counts as ended (`endless`).
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._jumps, self._bytes = file, 0, 0
        self.tell, self.close = file.tell, file.close
        self.is_open = self.endless = False

    def read(self, size: int = -1) -> bytes:
        """Read from the file."""
        self._bytes += 0 if self.is_open else size
        self.endless |= self._jumps > _MOST_JUMPS or self._bytes > _OPENING_BYTES
        return b"" if self.endless else self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Jump within the file; -1 for one too many."""
        self._jumps += 1
        return self._file.seek(offset, whence) if self._jumps <= _MOST_JUMPS else -1


def _open_file(path: Path, streamed: bool) -> Any:
    try:
        file = path.open("rb")
        if streamed or os.fstat(file.fileno()).st_size > _IN_MEMORY_BYTES:
            return _Nameless(file)
        with file:
            return _Nameless(io.BytesIO(file.read()))
    except OSError as error:
        raise UserError(f"{printable(path)}: cannot be read ({error.strerror})") from None


def _refuse_text(file: Any) -> None:
    head = file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()
    file.seek(0)
    for mark, meaning in _TEXT_MARKS:
        if head.startswith(mark) or (mark.startswith(b"<") and head.startswith(b"<") and mark in head):
            raise UserError(f"{meaning}; expected the video or sound itself")


def riff_note(path: Path) -> list[str]:
    """A note if a RIFF file (WAV, AVI) has fewer bytes than its header states; FFmpeg does not report it."""
    with path.open("rb") as file:
        head = file.read(8)
        size = os.fstat(file.fileno()).st_size
    stated = int.from_bytes(head[4:8], "little") + 8
    if not head.startswith(b"RIFF") or stated <= size or stated > 0xFFFFFF00:  # the largest values mean "unknown"
        return []
    return [f"cut off: {size} of the {stated} bytes that its header states"]


def _refuse_other_files(url: str, *_: Any) -> None:
    raise UserError(f"wants to open another file ({printable(url)}); expected the video or sound itself")


@contextmanager
def open_container(path: Path | str, max_pixels: int, streamed: bool = False) -> Iterator[Any]:
    """Open a media file for demuxing; errors raised while it is open get the file's name in front.

    Args:
        path: a local file; its name is never interpreted.
        max_pixels: largest frame, in pixels, that a decoder may allocate.
        streamed: whether even a small file is read from the disk as needed, for those who want a section of it.

    Yields:
        av.container.InputContainer.

    Raises:
        UserError: not a readable local file, a playlist, no known media format, or damage that stops reading.
    """
    path = local_file(path)
    file = _open_file(path, streamed)
    try:
        _refuse_text(file)
        with _demuxer(file, max_pixels) as container:
            file.is_open = True
            yield container
        if file.endless:
            raise UserError("")
    except UserError as error:
        problem = "empty chunks without end in it" if file.endless else error
        raise UserError(f"{printable(path)}: {problem}") from None
    except DECODING_ERRORS as error:
        raise UserError(f"{printable(path)}: damaged, reading stopped ({type(error).__name__})") from None
    finally:
        file.close()


def _demuxer(file: Any, max_pixels: int) -> Any:
    container = _demuxer_with(file, {"max_pixels": decoder_bound(max_pixels)})
    # A frame above the limit is reported without a size. Read the header alone, without a decoder, to say why.
    if any(stream.codec_context and not stream.codec_context.width for stream in container.streams.video):
        position = file.tell()
        file.seek(0)
        with _demuxer_with(file, {"codec_whitelist": "none"}) as header:
            for stream in header.streams.video:
                check_size(stream.codec_context.width, stream.codec_context.height, max_pixels)
        file.seek(position)
    return container


def decoder_bound(max_pixels: int) -> str:
    """FFmpeg's option `max_pixels`; it counts a decoder's margins too, so it is looser than the limit itself."""
    return str(max_pixels + max_pixels // 8 + 100_000)


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Refuse a frame that is too large to be decoded.

    Raises:
        UserError: more than `max_pixels` pixels.
    """
    if width * height > max_pixels:
        raise UserError(f"pictures of {width} × {height} pixels, expected at most {max_pixels} pixels")


def _demuxer_with(file: Any, options: dict[str, str]) -> Any:
    safe = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "none", "max_streams": "64"}
    try:
        return av.open(file, "r", options=safe | options, metadata_errors="replace", io_open=_refuse_other_files)
    except UserError:
        raise
    except DECODING_ERRORS:
        names = ", ".join(name for name, _ in FORMATS.values())
        raise UserError(
            f"no readable video or sound in it (damaged, cut off or another format); expected one of {names}"
        ) from None


def naming_notes(path: Path, format_name: str) -> list[str]:
    """A note if the file's ending and its content disagree; the content decides.

    Args:
        path: the file.
        format_name: FFmpeg's name of the format found, such as "mov,mp4,m4a,3gp,3g2,mj2".
    """
    expected = _ENDINGS.get(path.suffix.lower())
    found = next((name for name in format_name.split(",") if name in FORMATS), None)
    if expected is None or found is None or expected == found:
        return []
    return [f"named {path.suffix} but holds {FORMATS[found][0]}"]
