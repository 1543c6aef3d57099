"""Mouth shapes from phonemes: jaw opening, width and roundness of the lips, lip closure.

Each phoneme mnemonic of the synthesiser has a target shape; a diphthong has two, one per half. Targets are held for the
phoneme's duration and smoothed, because lips move before and after the phoneme (coarticulation).
"""

from functools import lru_cache

import numpy as np

MOUTH_FPS = 50
"""Mouth shapes per second."""

_STEPS = 4  # smoothing steps per frame
_SIGMA = 0.028  # seconds

# First letters of a mnemonic -> (jaw open, wide, round, lips closed); longer entries take precedence
_SHAPES: dict[str, tuple[float, float, float, float]] = {
    "a": (0.85, 0.35, 0.0, 0.0),
    "A": (0.95, 0.15, 0.0, 0.0),
    "0": (0.8, 0.0, 0.35, 0.0),
    "O": (0.7, 0.0, 0.6, 0.0),
    "o": (0.6, 0.0, 0.75, 0.0),
    "V": (0.65, 0.2, 0.0, 0.0),
    "@": (0.4, 0.2, 0.05, 0.0),
    "3": (0.45, 0.05, 0.3, 0.0),
    "e": (0.5, 0.6, 0.0, 0.0),
    "E": (0.6, 0.5, 0.0, 0.0),
    "i": (0.25, 0.9, 0.0, 0.0),
    "I": (0.35, 0.65, 0.0, 0.0),
    "u": (0.25, 0.0, 0.95, 0.0),
    "U": (0.35, 0.0, 0.7, 0.0),
    **dict.fromkeys("pbm", (0.0, 0.1, 0.0, 1.0)),
    **dict.fromkeys("fv", (0.1, 0.3, 0.0, 0.55)),
    "w": (0.15, 0.0, 0.9, 0.1),
    "r": (0.25, 0.05, 0.4, 0.0),
    **dict.fromkeys("SZ", (0.15, 0.0, 0.55, 0.0)),
    **dict.fromkeys(("tS", "dZ"), (0.15, 0.0, 0.5, 0.0)),
    **dict.fromkeys("TD", (0.2, 0.3, 0.0, 0.0)),
    "l": (0.3, 0.3, 0.0, 0.0),
    "j": (0.2, 0.75, 0.0, 0.0),
    **dict.fromkeys("sz", (0.12, 0.5, 0.0, 0.0)),
    "h": (0.4, 0.2, 0.0, 0.0),
}
_OTHER = (0.2, 0.25, 0.0, 0.0)  # consonants made inside the mouth: t d n k g N ?
_VOWELS = frozenset("aA0OoV@3eEiIuU")


def is_pause(mnemonic: str) -> bool:
    """Whether a phoneme event is silence (including the empty event at the end of a sentence)."""
    return mnemonic == "" or mnemonic.startswith("_")


@lru_cache(maxsize=1024)
def _targets(mnemonic: str) -> tuple[tuple[float, float, float, float], ...]:
    """The mouth shapes of a phoneme: one, or two for a diphthong."""
    name = mnemonic.lstrip("',%=|")
    if name[:1] in _VOWELS:
        letters = [letter for letter in name if letter in _VOWELS][:2]
        return tuple(_SHAPES[letter] for letter in letters)
    return (_SHAPES.get(name[:2]) or _SHAPES.get(name[:1], _OTHER),)


def mouth_curve(phonemes: list[tuple[float, float, str]], seconds: float, opening: float = 1.0) -> np.ndarray:
    """Mouth shapes over time.

    Args:
        phonemes: (start second, end second, mnemonic), in order, including pauses.
        seconds: length of the curve.
        opening: factor on the jaw opening: above 1 for loud speech, below 1 for mumbling.

    Returns:
        Array (T, 4) float32 in 0..1, `MOUTH_FPS` rows per second; columns jaw open, mouth wide, mouth round, lips
        closed; zero in silence.
    """
    frames = int(np.ceil(seconds * MOUTH_FPS))
    fine = MOUTH_FPS * _STEPS
    track = np.zeros((frames * _STEPS, 4))
    for start, end, mnemonic in phonemes:
        if is_pause(mnemonic):
            continue
        shapes = _targets(mnemonic)
        length = (end - start) / len(shapes)
        for index, shape in enumerate(shapes):
            first, last = round((start + index * length) * fine), round((start + (index + 1) * length) * fine)
            track[first : max(last, first + 1)] = shape
    reach = int(3 * _SIGMA * fine)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (_SIGMA * fine)) ** 2)
    kernel /= kernel.sum()
    smooth = np.stack([np.convolve(column, kernel, mode="full")[reach:-reach] for column in track.T], axis=1)
    # A closure lasts 50-80 ms; amplify it, because smoothing leaves the lips half open.
    smooth[:, 3] = np.minimum(smooth[:, 3] * 1.5, 1.0)
    smooth[:, 0] *= opening
    smooth[smooth < 0.02] = 0.0
    return np.clip(smooth[_STEPS // 2 :: _STEPS], 0.0, 1.0).astype(np.float32)
