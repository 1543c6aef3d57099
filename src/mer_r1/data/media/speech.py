"""Speech in a recording: where somebody talks (silero-vad), and what is said (faster-whisper or PocketSphinx).

A recording of any length is listened to in pieces, so that it takes no more memory than a short one. Neither tells who
talks: two people in one utterance are one, and so is a voice from behind the camera.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mer_r1.data.clip import Clip
from mer_r1.data.media.container import MediaLimits
from mer_r1.data.media.read import media_seconds, read_media
from mer_r1.errors import UserError, printable

logger = logging.getLogger(__name__)

RATE = 16000
PIECE_SECONDS = 30.0
SHORTEST = 0.3
"""Seconds; shorter utterances and rests are none."""
_WINDOW = 512  # samples that the detector looks at
_SILENCE = 1e-4  # of full scale
WHISPER = "small"
"""The model of faster-whisper that is taken where none is named, if it is on this machine."""
SPHINX = "pocketsphinx"

Section = tuple[float, float]
Told = Callable[[float], object]
"""Called with the share, in [0, 1], that is done."""


@dataclass(frozen=True)
class Transcriber:
    """What writes down the words of a waveform.

    Attributes:
        name: program and model, as every record names them.
        listen: (S,) float32 samples at 16 kHz -> words.
    """

    name: str
    listen: Callable[[np.ndarray], str]

    def words_of(self, clip: Clip, limits: MediaLimits) -> str:
        """The words in the part of a clip that a model hears; "" without sound, or if it is silent."""
        path = clip.audio or clip.video
        try:
            sound = None if path is None else read_media(None, path, limits, section=clip.section).waveform
        except UserError:  # no sound in it, or none that can be read: the answer says so
            return ""
        return "" if sound is None or np.abs(sound).max() < _SILENCE else " ".join(self.listen(sound).split())


def equal_sections(path: Path, seconds: float) -> list[Section]:
    """Sections of equal length; a rest below a quarter of it belongs to the last one."""
    total = media_seconds(path)
    starts = np.arange(0.0, max(total - 0.25 * seconds, 0.001), seconds).tolist()
    return list(pairwise([*starts, total]))


def speech_sections(path: Path, longest: float, told: Told | None = None) -> list[Section]:
    """Utterances of a recording: where somebody talks, by silero-vad.

    Args:
        path: file with sound.
        longest: seconds after which an utterance is divided, in its longest pause.
        told: progress.

    Raises:
        UserError: the file has no sound, or silero-vad is not installed.
    """
    with _one_thread_library():
        try:
            from silero_vad import load_silero_vad
            from silero_vad.utils_vad import get_speech_timestamps_from_probs as sections
        except ImportError:
            raise UserError(
                "--segment vad needs silero-vad: install mer-r1 with the extra speech, or give --segment SECONDS"
            ) from None
        import torch

        detector, total = load_silero_vad(), media_seconds(path)
        detector.reset_states()
        probabilities: list[float] = []
        rest = np.zeros(0, np.float32)
        with torch.no_grad():
            for end, piece in _pieces(path, total):
                rest = np.concatenate([rest, piece])
                whole = len(rest) // _WINDOW * _WINDOW
                windows = torch.from_numpy(rest[:whole].copy()).view(-1, _WINDOW)
                probabilities += [float(detector(window, RATE)) for window in windows]
                rest = rest[whole:]
                if told:
                    told(end / max(total, 1e-6))
        found = sections(
            probabilities,
            sampling_rate=RATE,
            max_speech_duration_s=longest,
            min_speech_duration_ms=round(1000 * SHORTEST),
            min_silence_duration_ms=round(1000 * SHORTEST),
            audio_length_samples=len(probabilities) * _WINDOW,
        )
    return [(span["start"] / RATE, span["end"] / RATE) for span in found]


def _pieces(path: Path, total: float) -> Iterator[tuple[float, np.ndarray]]:
    """The sound of a recording piece by piece, each with the second at which it ends."""
    limits = MediaLimits(max_seconds=PIECE_SECONDS)
    if read_media(None, path, limits, section=(0.0, min(total, PIECE_SECONDS))).waveform is None:
        raise UserError(f"{printable(path)}: no sound in it")
    for start in np.arange(0.0, total, PIECE_SECONDS).tolist():
        end = min(start + PIECE_SECONDS, total)
        try:
            sound = read_media(None, path, limits, section=(start, end)).waveform
        except UserError:  # silence at the end of a video, or damage
            sound = None
        wanted = round((end - start) * RATE)
        sound = np.zeros(wanted, np.float32) if sound is None else sound[:wanted]
        yield end, np.pad(sound, (0, wanted - len(sound)))


@contextmanager
def _one_thread_library() -> Iterator[None]:
    """Context for silero-vad, which sets torch to one thread and whose loader is deprecated."""
    try:
        import torch
    except ImportError:
        yield
        return
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        torch.set_num_threads(threads)


def transcriber(name: str | None = None, device: str | None = None) -> Transcriber:
    """What writes words down.

    Args:
        name: "pocketsphinx", or a model of faster-whisper: a folder, a size such as "small", or a hub name (downloaded
            if it is not here). None takes faster-whisper if its model `WHISPER` is on this machine, else PocketSphinx.
        device: "cpu", "cuda" or "cuda:1"; of faster-whisper.

    Raises:
        UserError: what is named is not installed, or no model.
    """
    if name is None:
        try:
            return _whisper(WHISPER, device, here_only=True)
        except (UserError, ImportError) as error:
            logger.info("words by PocketSphinx, which makes many mistakes: %s", error)
    if name in (None, SPHINX):
        return _sphinx()
    try:
        return _whisper(str(name), device, here_only=False)
    except ImportError:
        raise UserError(
            "--transcriber: faster-whisper is not installed: install mer-r1 with the extra whisper, "
            f"or give --transcriber {SPHINX}"
        ) from None


def _whisper(name: str, device: str | None, here_only: bool) -> Transcriber:
    try:
        import faster_whisper
    except ImportError:
        raise ImportError("faster-whisper is not installed (extra whisper)") from None
    kind, _, index = (device or "auto").partition(":")
    try:
        model = faster_whisper.WhisperModel(name, device=kind, device_index=int(index or 0), local_files_only=here_only)
    except Exception as error:  # hub, files, library: each has exceptions of its own
        said = "it is not on this machine" if here_only else " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"the model {printable(name)} of faster-whisper cannot be loaded: {said:.300}") from None

    def listen(sound: np.ndarray) -> str:
        segments, _ = model.transcribe(sound, beam_size=5, temperature=0.0, condition_on_previous_text=False)
        return " ".join(segment.text.strip() for segment in segments)

    return Transcriber(f"faster-whisper {metadata.version('faster-whisper')} ({Path(name).name})", listen)


def _sphinx() -> Transcriber:
    try:
        import pocketsphinx
    except ImportError:
        raise UserError(
            "--transcribe needs faster-whisper or PocketSphinx: install mer-r1 with the extra whisper or speech"
        ) from None
    decoder: Any = pocketsphinx.Decoder(samprate=RATE, loglevel="FATAL")

    def listen(sound: np.ndarray) -> str:
        decoder.start_utt()
        decoder.process_raw((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes(), full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return "" if found is None else str(found.hypstr)

    return Transcriber(f"PocketSphinx {metadata.version('pocketsphinx')} (US English)", listen)
