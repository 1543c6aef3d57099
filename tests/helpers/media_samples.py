"""Small media files for the tests, made by PyAV; every picture and sound is known by formula."""

import io
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

Picture = Callable[[int], np.ndarray]


def gray_steps(index: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frame `index` is uniform gray of level 10 * index + 20: the level says which frame it is."""
    return np.full((height, width, 3), min(10 * index + 20, 255), np.uint8)


def quarters(_: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Red, green / blue, white quarters: shows every rotation and mirroring."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = (255, 0, 0)
    picture[: height // 2, width // 2 :] = (0, 255, 0)
    picture[height // 2 :, : width // 2] = (0, 0, 255)
    picture[height // 2 :, width // 2 :] = (255, 255, 255)
    return picture


def tone(
    seconds: float, rate: int = 16000, hertz: float = 440.0, channels: int = 1, amplitude: float = 0.5
) -> np.ndarray:
    """(C, S) float32 sine."""
    time = np.arange(round(seconds * rate)) / rate
    return np.tile((amplitude * np.sin(2 * np.pi * hertz * time)).astype(np.float32), (channels, 1))


def write_media(
    target: Path | io.BytesIO,
    *,
    frames: int = 0,
    fps: int = 10,
    picture: Picture = gray_steps,
    times: Sequence[float] | None = None,
    video_codec: str = "mpeg4",
    pix_fmt: str = "yuv420p",
    gop: int = 12,
    b_frames: int = 0,
    sound: np.ndarray | None = None,
    rate: int = 16000,
    layout: str = "mono",
    audio_codec: str = "aac",
    sound_start: float = 0.0,
    container_format: str | None = None,
    options: dict[str, str] | None = None,
) -> Path | io.BytesIO:
    """Write a clip: `frames` pictures at `fps` (or at `times`), and a (C, S) sound."""
    file = str(target) if isinstance(target, Path) else target
    with av.open(file, "w", format=container_format, options=options or {}) as out:
        video = audio = None
        if frames:
            first = picture(0)
            video = out.add_stream(video_codec, rate=fps)
            video.height, video.width = first.shape[:2]
            video.pix_fmt = pix_fmt
            ticks = 1000 if times else fps
            video.codec_context.time_base = Fraction(1, ticks)
            video.gop_size = gop
            video.codec_context.max_b_frames = b_frames or video.codec_context.max_b_frames
            video.codec_context.qmax = 4 if video_codec in ("mpeg4", "mjpeg") else video.codec_context.qmax
        if sound is not None:
            audio = out.add_stream(audio_codec, rate=rate, layout=layout)
        packets = []
        if video is not None:
            for index in range(frames):
                frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
                frame.pts = round(ticks * (times[index] if times else index / fps))
                frame.time_base = Fraction(1, ticks)
                packets += video.encode(frame)
            packets += video.encode(None)
        if audio is not None:
            packets += _encoded_sound(audio, sound, rate, layout, sound_start)
        for packet in sorted(packets, key=lambda packet: (packet.dts or 0) * packet.time_base):
            out.mux(packet)
    return target


def _encoded_sound(audio, sound: np.ndarray, rate: int, layout: str, start: float) -> list[av.Packet]:
    packets = []
    resampler = av.AudioResampler(format=audio.codec_context.format, layout=layout, rate=rate, frame_size=1024)
    piece = 1 << 15
    for offset in range(0, sound.shape[1], piece):
        block = np.ascontiguousarray(sound[:, offset : offset + piece])
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, offset, Fraction(1, rate)
        for ready in resampler.resample(frame):
            packets += audio.encode(_shifted(ready, start, rate))
    for ready in resampler.resample(None):
        if ready is not None:
            packets += audio.encode(_shifted(ready, start, rate))
    return packets + audio.encode(None)


def _shifted(frame: av.AudioFrame, start: float, rate: int) -> av.AudioFrame:
    frame.pts = (frame.pts or 0) + round(start * rate)
    return frame


def with_display_matrix(mp4: Path, a: int, b: int, c: int, d: int) -> Path:
    """Write a rotation into the track header of an MP4 file (version 0, the only video track first)."""
    data = bytearray(mp4.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    assert struct.unpack_from(">9i", data, at) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, at, a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    mp4.write_bytes(data)
    return mp4


def without_decoder(mp4: Path, *codes: bytes) -> Path:
    """Rename the formats of tracks in an MP4 file to ones that no decoder knows."""
    data = bytearray(mp4.read_bytes())
    for code in codes:
        at = data.index(code, data.index(b"moov"))
        data[at : at + 4] = b"zz" + code[:2]
        data[(esds := data.index(b"esds", at)) : esds + 4] = b"zzzz"
    mp4.write_bytes(data)
    return mp4
