"""The scenes' voices: a sentence spoken with a known, controlled prosody.

The synthesiser (`espeak`) provides words, accent, timbre, pitch, pitch range and rate; `acoustics` adds tremor, breath,
vocal effort, a room, noise and other voices. Prosody is relative to the speaker's neutral voice. To make it audible
from one sentence of an unseen speaker, neutral pitches are limited to +-2.5 semitones around 112 Hz (low group) or
200 Hz (high group).

The voices are synthetic: their prosody is controlled, not felt.
"""

from dataclasses import dataclass, fields
from html import escape

import numpy as np

from mer_r1.errors import UserError
from mer_r1.lab.scenes.story.sentences import Split
from mer_r1.lab.scenes.story.world import pick
from mer_r1.lab.scenes.voice import acoustics
from mer_r1.lab.scenes.voice.acoustics import NOISES, REFERENCE_DB, SAMPLING_RATE
from mer_r1.lab.scenes.voice.espeak import RATE, Request, Spoken, synthesise
from mer_r1.lab.scenes.voice.lip_sync import is_pause, mouth_curve

ACCENTS = ("en", "en-US", "en-GB-scotland", "en-029", "en-GB-x-rp", "en-GB-x-gbclan", "en-GB-x-gbcwmd", "en-US-nyc")
"""Language files: British, American, Scottish, Caribbean, RP, Lancaster, West Midlands, New York."""

GROUP_PITCHES = {"low": 112.0, "high": 200.0}
"""Centre of the neutral pitches of each group, in Hz."""
PITCH_SPREAD = 2.5
"""Maximum distance of a speaker's neutral pitch from the group's centre, in semitones."""

# Timbres (voice-variant files). Similar variants are in the same split, so no speaker has a near copy in another split.
VARIANTS: dict[Split, dict[str, tuple[str, ...]]] = {
    "train": {
        "low": (
            *("m1", "m2", "m4", "m5", "m7", "Alex", "Gene", "Mario", "Michael", "max", "boris", "adam", "benjamin"),
            *("rob", "robert", "quincy", "michel", "miguel", "Storm", "travis", "klatt3", "Jacky"),
        ),
        "high": ("f1", "f2", "f4", "f5", "linda", "belinda", "aunty", "Annie", "anika", "Alicia"),
    },
    "val": {"low": ("m6", "Denis", "gustave", "klatt5"), "high": ("steph", "steph2", "grandma")},
    "test": {"low": ("m3", "m8", "Mike", "ed", "klatt4", "sandro", "paul"), "high": ("f3", "shelby", "Andrea", "zac")},
}
"""Voice variants by split and pitch group; no variant is in two splits."""

_LIMITS = {"pitch": (-8, 10), "range": (0.2, 2.2), "loudness": (-10, 10), "tempo": (0.65, 1.5)}
_LIMITS |= {"tremor": (0, 1), "breath": (0, 1), "pauses": (0, 3)}
# Place of a sentence's median pitch within the voice file's pitch width (measured over all variants).
_MEDIAN_IN_WIDTH = 0.83
_NEUTRAL_WIDTH = 0.38  # pitch width over median pitch
_FILE_OFFSET = 9  # Hz that the synthesiser subtracts from a voice file's lower pitch
_TAIL = 0.06  # seconds of audio after the last phoneme
_FADE = 0.02


@dataclass(frozen=True)
class Voice:
    """One speaker.

    Attributes:
        accent: one of `ACCENTS`.
        variant: one of the timbres in `VARIANTS`.
        pitch: neutral median pitch in Hz.
        rate: neutral speaking rate in words per minute.
        group: "low" or "high".
    """

    accent: str
    variant: str
    pitch: float
    rate: float
    group: str


@dataclass(frozen=True)
class Prosody:
    """Prosody of a sentence, relative to the speaker's neutral voice.

    Attributes:
        pitch: semitones, -8..10.
        range: factor on the pitch range, 0.2 (flat)..2.2 (very lively).
        loudness: dB, -10..10.
        tempo: factor on the speaking rate, 0.65..1.5.
        tremor: modulation of pitch and level, 0..1.
        breath: breathiness and an audible in-breath before the sentence, 0..1.
        pauses: number of hesitations in the sentence, 0..3 (at most one per gap between words).

    Raises:
        UserError: if a value is outside its range.
    """

    pitch: float = 0.0
    range: float = 1.0
    loudness: float = 0.0
    tempo: float = 1.0
    tremor: float = 0.0
    breath: float = 0.0
    pauses: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            low, high = _LIMITS[field.name]
            value = getattr(self, field.name)
            if not low <= value <= high:
                raise UserError(f"prosody {field.name}={value!r}: expected {low} to {high}")


@dataclass(frozen=True)
class Speech:
    """A spoken sentence.

    Attributes:
        waveform: (S,) float32 at 16 kHz in [-1, 1]: in-breath if any, then the sentence, without surrounding silence.
        mouth: (T, 4) float32 in 0..1 at 50 Hz: jaw_open, mouth_wide, mouth_round, lips_closed; zero in silence.
        speaking: start and end of the words in seconds.
        truncated: whether the sentence was cut at `max_seconds`.
    """

    waveform: np.ndarray
    mouth: np.ndarray
    speaking: tuple[float, float]
    truncated: bool


def sample_voice(rng: np.random.Generator, split: Split) -> Voice:
    """Draw a speaker of a split; the timbres of splits are disjoint.

    Raises:
        UserError: if the split is unknown.
    """
    if split not in VARIANTS:
        raise UserError(f"split {split!r}: expected one of {', '.join(VARIANTS)}")
    group = pick(rng, ("low", "high"))
    return Voice(
        accent=pick(rng, ACCENTS),
        variant=pick(rng, VARIANTS[split][group]),
        pitch=round(GROUP_PITCHES[group] * 2 ** (rng.uniform(-PITCH_SPREAD, PITCH_SPREAD) / 12), 1),
        rate=round(rng.uniform(155.0, 185.0), 1),
        group=group,
    )


def _ssml(text: str, pauses: int, rng: np.random.Generator) -> str:
    """The sentence as SSML, with hesitations at random gaps between words."""
    readable = "".join(letter if letter.isprintable() else " " for letter in text)
    words = [escape(word.encode("utf-8", "replace").decode("utf-8")) for word in readable.split()]
    if not any(letter.isalnum() for letter in readable):
        raise UserError(f"text {text!r}: nothing to speak, expected words")
    gaps = rng.permutation(len(words) - 1)[:pauses].tolist()
    for gap in gaps:
        words[gap] += f' <break time="{int(rng.integers(240, 480))}ms"/>'
    return " ".join(words)


def _request(ssml: str, voice: Voice, prosody: Prosody) -> Request:
    """Convert pitch and range to the synthesiser's parameters.

    Its pitch is base + width * intonation, with the median at 0.83 of the width, so base = median - 0.83 * width; the
    width scales with the pitch, to stay the same in semitones.
    """
    neutral_base = voice.pitch * (1 - _MEDIAN_IN_WIDTH * _NEUTRAL_WIDTH)
    median = voice.pitch * 2 ** (prosody.pitch / 12)
    width = _NEUTRAL_WIDTH * prosody.range * median
    base = median - _MEDIAN_IN_WIDTH * width
    # The pitch parameter shifts the base by up to an octave with little effect on formants; the file's base the rest.
    parameter = int(np.clip(round(50 + 50 * float(np.log2(base / neutral_base))), 5, 95))
    file_base = base / 2 ** ((parameter - 50) / 50) + _FILE_OFFSET
    rate = int(np.clip(round(voice.rate * prosody.tempo), 80, 450))
    return Request(ssml, voice.accent, voice.variant, round(file_base), max(round(width), 1), parameter, rate)


def _timed_phonemes(spoken: Spoken) -> list[tuple[float, float, str]]:
    """Phonemes with start and end in seconds; pauses left out."""
    ends = [start for start, _ in spoken.phonemes[1:]] + [spoken.samples.size]
    return [
        (start / RATE, end / RATE, name)
        for (start, name), end in zip(spoken.phonemes, ends, strict=True)
        if not is_pause(name) and end > start
    ]


def _shape(samples: np.ndarray, prosody: Prosody, rng: np.random.Generator) -> np.ndarray:
    """Resample to 16 kHz; add tremor, breath, vocal effort and loudness."""
    waveform = acoustics.wobble(samples / 32768.0, prosody.tremor, RATE, rng)
    waveform = acoustics.from_22050(waveform)
    waveform = acoustics.breathe(waveform, prosody.breath, rng)
    waveform = acoustics.effort_tilt(waveform, prosody.loudness)
    return acoustics.set_level(waveform, REFERENCE_DB + prosody.loudness)


def speak(text: str, voice: Voice, prosody: Prosody, rng: np.random.Generator, max_seconds: float = 4.0) -> Speech:
    """Speak a sentence; the same arguments and state of `rng` give the same samples in any process.

    Markup and control characters in the text are escaped. Speech beyond `max_seconds` is cut and `truncated` is set.

    Raises:
        UserError: if the text has no words, or the synthesiser is not installed.
    """
    spoken = synthesise(_request(_ssml(text, prosody.pauses, rng), voice, prosody))
    phonemes = _timed_phonemes(spoken)
    if not phonemes:
        raise UserError(f"text {text!r}: the synthesiser found nothing to speak, expected words")
    first, last = phonemes[0][0], phonemes[-1][1] + _TAIL
    words = _shape(spoken.samples[int(first * RATE) : int(last * RATE)], prosody, rng)
    breath = acoustics.in_breath(prosody.breath, rng) * 10 ** (0.5 * prosody.loudness / 20)
    waveform = np.concatenate([breath, words])
    lead = breath.size / SAMPLING_RATE
    truncated = waveform.size > round(max_seconds * SAMPLING_RATE)
    waveform = waveform[: round(max_seconds * SAMPLING_RATE)]
    fade = min(int(_FADE * SAMPLING_RATE), waveform.size)
    waveform[waveform.size - fade :] *= np.linspace(1, 0, fade)
    seconds = waveform.size / SAMPLING_RATE
    placed = [(start - first + lead, end - first + lead, name) for start, end, name in phonemes]
    return Speech(
        waveform=acoustics.soft_limit(waveform).astype(np.float32),
        mouth=mouth_curve(placed, seconds, opening=float(np.clip(1 + 0.035 * prosody.loudness, 0.65, 1.35))),
        speaking=(lead, min(placed[-1][1], seconds)),
        truncated=truncated,
    )


def mix(
    speech: Speech,
    rng: np.random.Generator,
    seconds: float,
    *,
    offset_seconds: float = 0.0,
    reverb: bool = True,
    noise: str | None = None,
    noise_db: float | None = None,
    other_voice: np.ndarray | None = None,
    other_db: float = -12.0,
) -> np.ndarray:
    """Mix speech into a clip's audio track with room, noise and another voice.

    Args:
        speech: the speech.
        rng: random generator for the room, the noise and the start of the other voice.
        seconds: length of the track.
        offset_seconds: start of the speech; speech beyond the track is cut.
        reverb: whether to add the reverberation of a small room.
        noise: one of `NOISES`; None draws one.
        noise_db: noise level in dB relative to neutral speech, whatever the speech's own level; None adds no noise.
        other_voice: waveform (S,) of another voice at 16 kHz; repeated or cut to the track's length.
        other_db: level of the other voice in dB relative to neutral speech.

    Returns:
        Track (seconds * 16000,) float32 in [-1, 1].

    Raises:
        UserError: if the noise is unknown or a time is not positive.
    """
    if seconds <= 0 or offset_seconds < 0:
        raise UserError(f"track of {seconds} s with speech at {offset_seconds} s: expected positive times")
    kind = str(rng.choice(NOISES)) if noise is None else noise
    if kind not in NOISES:
        raise UserError(f"noise {kind!r}: expected one of {', '.join(NOISES)}")
    size, start = round(seconds * SAMPLING_RATE), round(offset_seconds * SAMPLING_RATE)
    track = np.zeros(size, dtype=np.float32)
    part = speech.waveform[: max(size - start, 0)]
    track[start : start + part.size] = part
    if other_voice is not None and other_voice.size:
        far = np.roll(np.resize(other_voice, size), int(rng.integers(size)))
        far = acoustics.low_pass(far, 2500.0)
        track += acoustics.set_level(far, REFERENCE_DB + other_db).astype(np.float32)
    if reverb:
        track = acoustics.reverberate(track, rng.uniform(0.12, 0.35), rng.uniform(-16.0, -7.0), rng)
    if noise_db is not None:
        track = track + acoustics.background(kind, rng, size, REFERENCE_DB + noise_db)
    return acoustics.soft_limit(np.asarray(track)).astype(np.float32)
