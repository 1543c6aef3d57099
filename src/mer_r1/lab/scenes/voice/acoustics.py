"""Audio effects for the scenes' voices that the synthesiser lacks, as short array functions.

All functions take and return mono waveforms (S,) float64 or float32 at `SAMPLING_RATE` unless stated otherwise. Levels
are RMS over the speaking parts, in dB relative to full scale. The reference level leaves headroom: a voice 10 dB above
it still peaks below full scale, and a soft limiter handles the rest.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy import fft, signal

SAMPLING_RATE = 16_000
"""Samples per second of all audio in the scenes."""
REFERENCE_DB = -26.0
"""RMS level (dB re full scale) of neutral speech."""

_FRAME = 320  # 20 ms
_CONTROL_FPS = 200  # values per second of slow curves
_BANK_SECONDS = 40  # noise per kind; excerpts start at a random place
_LIMIT_KNEE = 0.7
_TREMOR_SEMITONES, _TREMOR_DB = 1.7, 8.0


@lru_cache(maxsize=32)
def _band(low_hz: float, high_hz: float | None) -> np.ndarray:
    """Second-order Butterworth sections of a band pass (or a high pass when `high_hz` is None)."""
    if high_hz is None:
        return np.asarray(signal.butter(2, low_hz, "highpass", fs=SAMPLING_RATE, output="sos"))
    return np.asarray(signal.butter(2, (low_hz, high_hz), "bandpass", fs=SAMPLING_RATE, output="sos"))


@lru_cache(maxsize=1)
def _resampling_filter() -> np.ndarray:
    """Low pass for 22050 Hz -> 16 kHz: a windowed sinc, 10 zero crossings on each side."""
    return np.asarray(signal.firwin(2 * 10 * 441 + 1, 1 / 441, window=("kaiser", 5.0)), dtype=np.float32)


def from_22050(waveform: np.ndarray) -> np.ndarray:
    """Resample from 22050 Hz to 16 kHz (ratio 320 / 441); the result is float32."""
    return np.asarray(signal.resample_poly(waveform.astype(np.float32), 320, 441, window=_resampling_filter()))


def band_pass(waveform: np.ndarray, low_hz: float, high_hz: float | None) -> np.ndarray:
    """Band pass from `low_hz` to `high_hz` (None: high pass above `low_hz`)."""
    return np.asarray(signal.sosfilt(_band(low_hz, high_hz), waveform))


def low_pass(waveform: np.ndarray, cutoff_hz: float) -> np.ndarray:
    """First-order low pass: 6 dB per octave above `cutoff_hz`."""
    pole = float(np.exp(-2 * np.pi * cutoff_hz / SAMPLING_RATE))
    return np.asarray(signal.lfilter([1 - pole], [1, -pole], waveform))


def slow_noise(rng: np.random.Generator, size: int, rate_hz: float, fps: float) -> np.ndarray:
    """Smooth random curve (size,) at `fps` values per second, `rate_hz` of them independent, variance near 1."""
    knots = rng.standard_normal(int(size * rate_hz / fps) + 3)
    return np.interp(np.arange(size) * (rate_hz / fps) + 0.5, np.arange(knots.size), knots)


def speech_level_db(waveform: np.ndarray) -> float:
    """RMS level in dB over the 20 ms frames within 30 dB of the loudest; -inf for silence.

    >>> round(speech_level_db(np.tile([0.1, -0.1], 1600)), 1)
    -20.0
    """
    count = waveform.size // _FRAME
    if count == 0:
        power = np.array([np.mean(np.square(waveform)) if waveform.size else 0.0])
    else:
        power = np.mean(np.square(waveform[: count * _FRAME].reshape(count, _FRAME), dtype=np.float64), axis=1)
    if power.max() <= 0.0:
        return float("-inf")
    return float(10 * np.log10(power[power > power.max() * 1e-3].mean()))


def set_level(waveform: np.ndarray, level_db: float) -> np.ndarray:
    """Scale a waveform to a speech level; silence stays silence."""
    present = speech_level_db(waveform)
    return waveform if present == float("-inf") else waveform * 10 ** ((level_db - present) / 20)


def soft_limit(waveform: np.ndarray) -> np.ndarray:
    """Compress samples above 0.7 of full scale towards 1 instead of clipping; quieter samples are unchanged."""
    size = np.abs(waveform)
    over = size > _LIMIT_KNEE
    if not over.any():
        return waveform
    room = 1 - _LIMIT_KNEE
    bent = waveform.copy()
    bent[over] = np.sign(waveform[over]) * (_LIMIT_KNEE + room * np.tanh((size[over] - _LIMIT_KNEE) / room))
    return bent


def effort_tilt(waveform: np.ndarray, loudness_db: float) -> np.ndarray:
    """Vocal effort: apply half of `loudness_db` to the spectrum above about 1 kHz; loud speech is brighter."""
    below = low_pass(waveform, 1000.0)
    return below + (waveform - below) * 10 ** (0.5 * loudness_db / 20)


def wobble(waveform: np.ndarray, depth: float, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Tremor: modulate the pitch by up to +-1.7 semitones and the level by up to 8 dB, 5 to 7 times per second.

    `depth` is 0 (steady) to 1. A slight random drift of the pitch (about 0.15 semitones) is always added, as in human
    voices. The length stays the same; time shifts by about a millisecond at most.
    """
    step = sampling_rate // _CONTROL_FPS
    fps, count = sampling_rate / step, waveform.size // step + 2
    rate = rng.uniform(5.0, 7.0) * (1 + 0.08 * slow_noise(rng, count, 2.0, fps))
    phase = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.cumsum(rate) / fps
    depth_now = depth * np.clip(1 + 0.35 * slow_noise(rng, count, 3.0, fps), 0.2, 1.6)
    semitones = _TREMOR_SEMITONES * depth_now * np.sin(phase) + 0.15 * slow_noise(rng, count, 5.0, fps)
    times = np.arange(waveform.size)
    knots = np.arange(count) * step
    position = np.concatenate([[0.0], np.cumsum(np.exp2(semitones[:-1] / 12)) * step])
    position *= (waveform.size - 1) / np.interp(waveform.size - 1, knots, position)
    warped = np.interp(np.interp(times, knots, position), times, waveform)
    if depth == 0.0:
        return warped
    gain = 10 ** (-_TREMOR_DB * depth_now * (0.5 - 0.5 * np.sin(phase + 0.9)) / 20)
    return warped * np.interp(times, knots, gain)


def breathe(waveform: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Breathiness: replace upper harmonics with hiss that follows the voice's loudness.

    `amount` is 0 (clear) to 1 (nearly a whisper).
    """
    if amount == 0.0:
        return waveform
    envelope = np.sqrt(np.maximum(low_pass(np.square(waveform), 25.0), 0.0))
    hiss = excerpt("hiss", rng, waveform.size)
    voiced = (1 - 0.7 * amount) * waveform + 0.7 * amount * low_pass(waveform, 600.0)
    return voiced + 0.3 * amount * envelope * hiss


def in_breath(amount: float, rng: np.random.Generator) -> np.ndarray:
    """An audible in-breath before speaking: noise of 0.2 to 0.45 s and a short gap; empty for amounts below 0.1.

    Its level is relative to speech at `REFERENCE_DB`.
    """
    if amount < 0.1:
        return np.zeros(0)
    size = int((0.2 + 0.25 * amount) * SAMPLING_RATE)
    noise = band_pass(excerpt("white", rng, size), 700.0, 5000.0)
    shape = np.sin(np.pi * np.linspace(0, 1, size) ** 1.6) ** 1.5
    level = 10 ** ((REFERENCE_DB - 14.0 + 10.0 * amount) / 20)
    breath = noise / np.sqrt(np.mean(noise**2)) * shape * level
    return np.concatenate([breath, np.zeros(int(0.05 * SAMPLING_RATE))])


def reverberate(waveform: np.ndarray, seconds: float, wet_db: float, rng: np.random.Generator) -> np.ndarray:
    """Reverberation of a small room: a random tail, -60 dB after `seconds`, `wet_db` relative to the direct sound."""
    size = max(int(seconds * SAMPLING_RATE * 0.6), 2)
    tail = excerpt("white", rng, size) * 10 ** (-3.0 * np.arange(size) / (seconds * SAMPLING_RATE))
    tail[: int(0.004 * SAMPLING_RATE)] = 0.0
    tail *= 10 ** (wet_db / 20) / np.sqrt(np.sum(tail**2))
    length = fft.next_fast_len(waveform.size + size - 1, real=True)
    spectrum = fft.rfft(waveform, length) * fft.rfft(tail.astype(waveform.dtype), length)
    return waveform + fft.irfft(spectrum, length)[: waveform.size]


def _hiss(rng: np.random.Generator, size: int) -> np.ndarray:
    """Breath noise: noise above 1.5 kHz."""
    return band_pass(rng.standard_normal(size), 1500.0, 7000.0)


def _pink(rng: np.random.Generator, size: int) -> np.ndarray:
    """Noise that falls 3 dB per octave."""
    spectrum = np.fft.rfft(rng.standard_normal(size))
    spectrum[1:] /= np.sqrt(np.arange(1, spectrum.size))
    spectrum[0] = 0.0
    return np.fft.irfft(spectrum, size)


def _hum(rng: np.random.Generator, size: int) -> np.ndarray:
    """Mains hum with overtones and a little hiss."""
    time = np.arange(size) / SAMPLING_RATE
    tones = np.zeros(size)
    for overtone in (1, 2, 3, 5):
        tones += rng.uniform(0.2, 1.0) / overtone * np.sin(2 * np.pi * 50.0 * overtone * time + rng.uniform(0, 6.28))
    return tones + 0.05 * rng.standard_normal(size)


def _street(rng: np.random.Generator, size: int) -> np.ndarray:
    """Rumble of passing cars: low noise with a slowly varying level."""
    swell = 1 + 0.6 * np.tanh(slow_noise(rng, size, 0.8, SAMPLING_RATE))
    return low_pass(rng.standard_normal(size), 250.0) * swell


def _cafe(rng: np.random.Generator, size: int) -> np.ndarray:
    """Many distant voices: speech-shaped noise in three bands, each modulated at a syllable rate."""
    total = np.zeros(size)
    for low, high, gain in ((150.0, 600.0, 1.0), (600.0, 1800.0, 0.6), (1800.0, 4500.0, 0.25)):
        swell = np.exp(0.6 * slow_noise(rng, size, 7.0, SAMPLING_RATE))
        total += gain * band_pass(rng.standard_normal(size), low, high) * swell
    return total


_MAKERS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "white": np.random.Generator.standard_normal,
    "pink": _pink,
    "hum": _hum,
    "street": _street,
    "cafe": _cafe,
    "hiss": _hiss,
}
NOISES = ("white", "pink", "hum", "street", "cafe")
"""Kinds of background noise."""


@lru_cache(maxsize=len(_MAKERS))
def _bank(kind: str) -> np.ndarray:
    """`_BANK_SECONDS` of one kind of noise from a fixed seed, with unit variance; cached per process."""
    noise = _MAKERS[kind](np.random.default_rng(sum(kind.encode())), _BANK_SECONDS * SAMPLING_RATE)
    return (noise / noise.std()).astype(np.float32)


def excerpt(kind: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """A random excerpt (size,) float32 of noise with a variance near 1: one of `NOISES`, or "hiss"."""
    bank = _bank(kind)
    start = int(rng.integers(bank.size))
    return bank.take(np.arange(start, start + size), mode="wrap") if start + size > bank.size else bank[start:][:size]


def background(kind: str, rng: np.random.Generator, size: int, level_db: float) -> np.ndarray:
    """Background noise (size,), one of `NOISES`, with an RMS level of `level_db` dB relative to full scale."""
    noise = excerpt(kind, rng, size)
    return noise * np.float32(10 ** (level_db / 20) / np.sqrt(np.mean(np.square(noise))))
