"""The speech synthesiser: one sentence through libespeak-ng in this process, deterministic for each request.

The library keeps state between sentences (wave phase, cycle counters, gain control), which changes the next sentence
slightly. Parameters do not reset this state; unloading the library does. So every sentence loads the library (about
2 ms), speaks, and unloads it; the random numbers of breath noise are seeded each time.

A voice is a text in the synthesiser's voice-file format, passed as an in-memory file: this allows any pitch range,
while the synthesiser's range parameter is limited to twice the normal one. The voice files are those of the package
`espeakng-loader`, read from its installation; none are copied here.
"""

import ctypes
import importlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mer_r1.errors import UserError

RATE = 22050
"""Samples per second of the synthesiser's output."""

_RETRIEVE_SYNCHRONOUSLY = 2
_PHONEME_EVENTS, _DO_NOT_EXIT = 1, 0x8000
_UTF8, _SSML, _END_PAUSE = 1, 0x10, 0x1000
_RATE_PARAMETER, _VOLUME_PARAMETER, _PITCH_PARAMETER = 1, 2, 3
_VOLUME = 50  # the default of 100 clips the louder timbres
_END_OF_EVENTS, _PHONEME = 0, 7
_PATH_LIMIT = 59  # longest path of a voice file, in bytes
_VOICE_LINES = {"formant", "breath", "breathw", "voicing", "consonants", "klatt", "stressamp", "tone"}
_lock = threading.Lock()
_libc = ctypes.CDLL(None) if os.name == "posix" else None


class _Event(ctypes.Structure):
    """The library's event record; `name` is the phoneme's mnemonic in phoneme events."""

    _fields_ = (
        ("kind", ctypes.c_int),
        ("identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("milliseconds", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("name", ctypes.c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Request:
    """A request to the synthesiser.

    Attributes:
        ssml: the sentence, escaped, with `<break/>` elements; without `<speak>`, whose end tag makes the library say
            the last word in its default voice.
        accent: the language file, for example "en-US".
        variant: the voice-variant file, for example "f2".
        base: the voice file's lower pitch in Hz (the voice's formants follow it slightly).
        width: the voice file's pitch width in Hz.
        pitch: the library's pitch parameter, 0..99; 50 leaves `base` as it is.
        rate: words per minute, 80..450.
    """

    ssml: str
    accent: str
    variant: str
    base: int
    width: int
    pitch: int
    rate: int


@dataclass(frozen=True)
class Spoken:
    """Synthesised speech: samples (S,) int16 at `RATE`, and phonemes (start sample, mnemonic); pauses are "_..."."""

    samples: np.ndarray
    phonemes: tuple[tuple[int, str], ...]


@lru_cache(maxsize=1)
def _package() -> tuple[str, Path]:
    """The library's file and its data folder; a UserError if the package is not installed."""
    try:
        loader: Any = importlib.import_module("espeakng_loader")
    except ImportError as error:
        raise UserError("the scenes need espeakng-loader: install mer-r1 with the extra scenes") from error
    return str(loader.get_library_path()), Path(loader.get_data_path())


@lru_cache(maxsize=256)
def _voice_lines(accent: str, variant: str) -> str:
    """The lines of the accent's file, then the variant's lines on timbre (not pitch, echo, lengths)."""
    data = _package()[1]
    files = (data / "lang" / "gmw" / accent, data / "voices" / "!v" / variant)
    for file in files:
        if not file.is_file():
            raise UserError(f"voice file {file.name!r}: missing in the installed espeak-ng (expected version 1.52)")
    language = files[0].read_text(encoding="utf-8")
    timbre = [
        line
        for line in files[1].read_text(encoding="utf-8", errors="replace").splitlines()
        if line.split() and line.split()[0].lower() in _VOICE_LINES
    ]
    return language + "\n" + "\n".join(timbre) + "\nflutter 0\nroughness 0\necho 0 0\n"


@contextmanager
def _voice_file(lines: str) -> Iterator[str]:
    """The path of a file with the lines, in memory if possible."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("voice")
        os.write(descriptor, lines.encode())
        try:
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    with tempfile.TemporaryDirectory(prefix="mer") as folder:
        path = Path(folder) / "v"
        if len(os.fsencode(path)) > _PATH_LIMIT:
            raise UserError(f"temporary folder {tempfile.gettempdir()!r}: path too long, expected under 40 characters")
        path.write_text(lines, encoding="utf-8")
        yield str(path)


def _unload(library: ctypes.CDLL) -> None:
    import _ctypes

    handle = library._handle
    if sys.platform == "win32":
        _ctypes.FreeLibrary(handle)
    else:
        _ctypes.dlclose(handle)


def _check(status: int, doing: str) -> None:
    if status != 0:
        raise RuntimeError(f"speech synthesiser: {doing} failed with status {status}")


def _synthesise(library: ctypes.CDLL, request: Request, voice_path: str) -> Spoken:
    chunks: list[bytes] = []
    phonemes: list[tuple[int, str]] = []

    @_Callback
    def collect(samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        index = 0
        while events[index].kind != _END_OF_EVENTS:
            if events[index].kind == _PHONEME:
                phonemes.append((events[index].sample, events[index].name.decode("utf-8", "replace")))
            index += 1
        return 0

    data = os.fsencode(_package()[1])
    rate = library.espeak_Initialize(_RETRIEVE_SYNCHRONOUSLY, 0, data, _PHONEME_EVENTS | _DO_NOT_EXIT)
    if rate != RATE:
        raise RuntimeError(f"speech synthesiser: expected the sampling rate {RATE}, got {rate}")
    # After the initialisation, which seeds with the time of day.
    library.espeak_ng_SetRandSeed.argtypes = (ctypes.c_long,)
    library.espeak_ng_SetRandSeed(1)
    if _libc is not None:
        _libc.srand(1)
    library.espeak_SetSynthCallback(collect)
    _check(library.espeak_ng_SetVoiceByFile(voice_path.encode()), "loading the voice")
    _check(library.espeak_SetParameter(_RATE_PARAMETER, request.rate, 0), "setting the rate")
    _check(library.espeak_SetParameter(_VOLUME_PARAMETER, _VOLUME, 0), "setting the volume")
    _check(library.espeak_SetParameter(_PITCH_PARAMETER, request.pitch, 0), "setting the pitch")
    text = request.ssml.encode("utf-8") + b"\0"
    synth = library.espeak_Synth
    synth.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, *(ctypes.c_uint,) * 2)
    synth.argtypes += (ctypes.c_void_p,) * 2
    _check(synth(text, len(text), 0, 1, 0, _UTF8 | _SSML | _END_PAUSE, None, None), "speaking")
    library.espeak_Terminate()
    return Spoken(np.frombuffer(b"".join(chunks), dtype=np.int16), tuple(phonemes))


def synthesise(request: Request) -> Spoken:
    """Synthesise one sentence; the same request gives the same samples in any process and after any other sentence.

    Safe with fork and spawn (nothing stays loaded between calls) and with threads (a lock serialises calls).

    Raises:
        UserError: if the synthesiser or a voice file is missing.
    """
    lines = _voice_lines(request.accent, request.variant) + f"pitch {request.base} {request.base + request.width}\n"
    with _lock, _voice_file(lines) as path:
        library = ctypes.CDLL(_package()[0])
        try:
            return _synthesise(library, request, path)
        finally:
            _unload(library)
