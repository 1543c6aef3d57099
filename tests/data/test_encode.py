"""Encoded frames and audio, read back by other readers."""

import base64
import io
import wave

import av
import numpy as np
import pytest
from PIL import Image

from mer_r1.data.media.encode import as_base64, data_url, float_wav, jpeg, png, wav

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)


def read_image(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_png_loses_nothing():
    assert (read_image(png(PIXELS)) == PIXELS).all()


def test_jpeg_is_what_pillow_writes_at_that_quality():
    for quality in (82, 95):
        file = io.BytesIO()
        Image.fromarray(PIXELS).save(file, "JPEG", quality=quality)
        assert jpeg(PIXELS, quality) == file.getvalue()


def test_jpeg_takes_frames_in_any_memory_order():
    frame = np.ascontiguousarray(PIXELS.transpose(2, 0, 1))  # (3, H, W), as frames are kept
    assert jpeg(frame.transpose(1, 2, 0), 95) == jpeg(PIXELS, 95)


@pytest.mark.parametrize(("max_side", "shape"), [(None, (30, 50)), (50, (30, 50)), (25, (15, 25))])
def test_jpeg_scales_large_images_down(max_side, shape):
    assert read_image(jpeg(PIXELS, 95, max_side)).shape[:2] == shape


def test_wav_has_16_bits_within_full_scale():
    content = wav(np.array([0.0, 2.0, -2.0, np.nan], dtype=np.float32), 16000)
    with wave.open(io.BytesIO(content)) as sound:
        assert (sound.getframerate(), sound.getnchannels(), sound.getnframes()) == (16000, 1, 4)
        assert np.frombuffer(sound.readframes(4), "<i2").tolist() == [0, 32767, -32767, 0]


def test_float_wav_loses_nothing():
    waveform = np.random.default_rng(1).normal(0, 2, 3000).astype(np.float32)
    with av.open(io.BytesIO(float_wav(waveform, 22050))) as container:
        assert container.streams.audio[0].rate == 22050
        found = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert (found == waveform).all()


def test_data_urls():
    assert as_base64(b"\xff" * 100) == base64.b64encode(b"\xff" * 100).decode()
    assert data_url("audio/wav", b"abc") == "data:audio/wav;base64,YWJj"
