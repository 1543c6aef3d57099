"""Encodes frames and audio for requests and pages: JPEG, PNG, MP4, WAV, and data URLs of them."""

import base64
import io
import struct
import wave
from fractions import Fraction

import av
import numpy as np

JPEG_TYPE, MP4_TYPE, WAV_TYPE = "image/jpeg", "video/mp4", "audio/wav"
"""Content types of what is sent; the machine's table of file endings is not asked."""


def jpeg(pixels: np.ndarray, quality: int, max_side: int | None = None) -> bytes:
    """An RGB image as a JPEG file.

    Args:
        pixels: (H, W, 3) uint8.
        quality: 1 to 95.
        max_side: longest side in pixels, larger images are scaled down; None keeps the size.
    """
    from PIL import Image

    image, file = Image.fromarray(np.ascontiguousarray(pixels)), io.BytesIO()
    if max_side is not None and max(image.size) > max_side:
        image.thumbnail((max_side, max_side))
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def png(pixels: np.ndarray) -> bytes:
    """An RGB image (H, W, 3) uint8 as a PNG file, compressed fast."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def mp4(frames: np.ndarray, fps: float) -> bytes:
    """Frames as an MP4 file (H.264, 4:2:0, close to lossless); equal frames give equal bytes.

    Args:
        frames: (F, 3, H, W) uint8 RGB; an odd height or width gets one row or column more.
        fps: their rate; the file lasts F / fps seconds.
    """
    file, rate = io.BytesIO(), max(Fraction(fps).limit_denominator(10_000), Fraction(1, 10_000))
    even = np.pad(frames, ((0, 0), (0, 0), (0, frames.shape[2] % 2), (0, frames.shape[3] % 2)), mode="edge")
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=rate, options={"crf": "8", "bf": "0", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = *even.shape[2:], "yuv420p"
        stream.codec_context.thread_count = 1
        for index, frame in enumerate(even.transpose(0, 2, 3, 1)):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts, picture.time_base = index, 1 / rate
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))
    return file.getvalue()


def wav(waveform: np.ndarray, sampling_rate: int) -> bytes:
    """A mono waveform (S,) in [-1, 1] as a WAV file, 16 bits per sample; values beyond are clipped, NaN becomes 0."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(sampling_rate)
        out.writeframes((np.clip(np.nan_to_num(waveform), -1, 1) * 32767).astype("<i2").tobytes())
    return file.getvalue()


def float_wav(waveform: np.ndarray, sampling_rate: int) -> bytes:
    """A mono waveform (S,) as a WAV file of 32-bit floats, which loses nothing."""
    samples = np.ascontiguousarray(waveform, dtype="<f4").tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, sampling_rate, 4 * sampling_rate, 4, 32)
    chunk = struct.pack("<4sI", b"data", len(samples)) + samples
    return struct.pack("<4sI4s", b"RIFF", 4 + len(form) + len(chunk), b"WAVE") + form + chunk


def as_base64(content: bytes) -> str:
    """Base64 text, without line breaks."""
    return base64.b64encode(content).decode("ascii")


def data_url(kind: str, content: bytes) -> str:
    """A data URL.

    >>> data_url("text/plain", b"hi")
    'data:text/plain;base64,aGk='
    """
    return f"data:{kind};base64,{as_base64(content)}"
