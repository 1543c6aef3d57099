"""One clip of the built-in scenes: from (seed, split, index) to a manifest row, frames, audio, and an mp4 file.

All random numbers of a clip come from streams keyed by (seed, split, index, stream), so the result does not depend on
the process or the order. The row is drawn before anything is rendered: an interrupted run lists its finished clips
without rendering them again.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mer_r1.data.jsonl import write_atomically
from mer_r1.lab.scenes import acting
from mer_r1.lab.scenes.face.appearance import Identity, sample_framing, sample_identity
from mer_r1.lab.scenes.face.renderer import face_renderer
from mer_r1.lab.scenes.story.sentences import PERSONS, SPLITS, Split, sample_sentence
from mer_r1.lab.scenes.story.texts import Texts, write_texts
from mer_r1.lab.scenes.story.world import SMALL_TALK, Scene, pick, sample_scene
from mer_r1.lab.scenes.voice.lip_sync import MOUTH_FPS
from mer_r1.lab.scenes.voice.speech import Prosody, Speech, Voice, mix, sample_voice, speak

FPS = 8
SIZE = 128
SAMPLING_RATE = 16_000
SHORTEST, LONGEST = 2.0, 4.0
NOISY, NOISE_DB = 0.7, (-40.0, -22.0)
"""Share of clips with background noise, and its level range relative to neutral speech."""
OTHER_VOICE, OTHER_DB = 0.15, (-28.0, -18.0)
"""Share of clips with a voice in the background, and its level range relative to neutral speech."""
_STREAMS = ("scene", "texts", "words", "person", "acting", "render", "voice", "sound", "missing")
CHANNELS = {"video": "face", "audio": "voice", "subtitle": "words"}
"""Channel of a clip -> what a scene shows in it."""
INCOMPLETE = ({"video"}, {"audio"}, {"subtitle"}, {"video", "subtitle"}, {"audio", "subtitle"})
"""What an incomplete clip lacks, each as likely."""
_PERSON_KEY = 1_000_003


@dataclass(frozen=True)
class Person:
    """A person of one split: a face and a voice."""

    name: str
    identity: Identity
    voice: Voice


@dataclass(frozen=True)
class Script:
    """A clip before it is rendered; `missing` holds the channels that it lacks."""

    seed: int
    split: Split
    index: int
    person: str
    scene: Scene
    subtitle: str
    texts: Texts
    missing: frozenset[str] = frozenset()

    def row(self) -> dict[str, Any]:
        """The manifest row (docs/scenes.md)."""
        scene, name = self.scene, clip_id(self.split, self.index)
        return {
            "id": name,
            "video": None if "video" in self.missing else f"clips/{name}.mp4",
            "audio": f"clips/{name}.mp4" if "video" in self.missing else None,
            "subtitle": "" if "subtitle" in self.missing else self.subtitle,
            "labels": scene.labels,
            "reasoning": self.texts.reasoning,
            "split": self.split,
            "meta": {
                "generated": True,
                "seed": self.seed,
                "identity": self.person,
                "voice": self.person,
                "emotions": [scene.primary, *([scene.secondary] if scene.secondary else [])],
                "cues": {
                    "face": asdict(scene.face),
                    "voice": asdict(scene.voice),
                    "theme": {"name": scene.theme, "of": scene.theme_of},
                    "signs": [asdict(cue) for cue in scene.signs],
                    "modifier": asdict(scene.modifier) if scene.modifier else None,
                    "conflict": scene.conflict,
                },
                "description": self.texts.description,
                "remark": self.texts.remark,
                "broad_labels": self.texts.broad_labels,
                "careful_labels": self.texts.careful_labels,
                "missing": sorted(self.missing),
            },
        }


@dataclass(frozen=True)
class Recording:
    """A rendered clip: frames (F, 128, 128, 3) uint8 at `FPS`, waveform (S,) float32 at `SAMPLING_RATE`.

    A channel that the clip lacks is None.
    """

    frames: npt.NDArray[np.uint8] | None
    waveform: npt.NDArray[np.float32] | None


def clip_id(split: Split, index: int) -> str:
    """Id of a clip.

    >>> clip_id("train", 12)
    'train-000012'
    """
    return f"{split}-{index:06d}"


def script(seed: int, split: Split, index: int, missing: float = 0.0, people: int | None = None) -> Script:
    """Draw the content of a clip's manifest row; it is incomplete with the probability `missing`.

    The person is one of `people`, by default `PERSONS` of the split.
    """
    scene = sample_scene(_stream(seed, split, index, "scene"))
    number = int(_stream(seed, split, index, "person").integers(people or PERSONS[split]))
    someone = person(seed, split, number)
    lacks = draw_missing(missing, _stream(seed, split, index, "missing"))
    return Script(
        seed=seed,
        split=split,
        index=index,
        person=someone.name,
        scene=scene,
        subtitle=sample_sentence(scene.theme, split, _stream(seed, split, index, "words")),
        texts=write_texts(scene, someone.voice.group == "low", _stream(seed, split, index, "texts"), shown_in(lacks)),
        missing=lacks,
    )


def draw_missing(share: float, rng: np.random.Generator) -> frozenset[str]:
    """The channels that a clip lacks: with the probability `share` one of `INCOMPLETE`, otherwise none."""
    return frozenset(pick(rng, INCOMPLETE)) if rng.random() < share else frozenset()


def shown_in(missing: frozenset[str]) -> frozenset[str]:
    """What a clip without these channels shows of a scene.

    >>> sorted(shown_in(frozenset({"audio"})))
    ['face', 'words']
    """
    return frozenset(shown for channel, shown in CHANNELS.items() if channel not in missing)


def record(drawn: Script) -> Recording:
    """Render a clip: the person speaks the subtitle and acts the scene."""
    act = _stream(drawn.seed, drawn.split, drawn.index, "acting")
    waveform, mouth = _spoken(drawn, act)
    if "video" in drawn.missing:
        return Recording(None, waveform)
    rng = _stream(drawn.seed, drawn.split, drawn.index, "render")
    identity, n_frames = _speaker(drawn).identity, round(len(waveform) / SAMPLING_RATE * FPS)
    poses = acting.poses(drawn.scene, mouth, n_frames, FPS, act)
    frames = face_renderer(SIZE).render(identity, sample_framing(rng), poses, rng)
    return Recording(frames, None if "audio" in drawn.missing else waveform)


def sound(drawn: Script) -> npt.NDArray[np.float32]:
    """The waveform of a clip alone, (S,) at `SAMPLING_RATE`: an eighth of the cost of `record`."""
    return _spoken(drawn, _stream(drawn.seed, drawn.split, drawn.index, "acting"))[0]


def save(recording: Recording, path: Path) -> None:
    """Write the clip as mp4 (H.264 or MPEG-4 video, AAC audio), atomically and with single-threaded encoders."""
    write_atomically(path, partial(_encode, recording))


def _encode(recording: Recording, path: Path) -> None:
    import av

    with av.open(str(path), "w", format="mp4") as container:
        # Streams are declared before the first packet is written.
        video = None if recording.frames is None else _video_stream(container)
        audio: Any = None
        if recording.waveform is not None:
            audio = container.add_stream("aac", rate=SAMPLING_RATE, layout="mono", options={"aac_coder": "fast"})
            audio.bit_rate = 48_000
        for packet in chain(_video_packets(video, recording.frames), _audio_packets(audio, recording.waveform)):
            container.mux(packet)


def _video_packets(stream: Any, frames: npt.NDArray[np.uint8] | None) -> Iterator[Any]:
    import av

    if frames is not None:
        for frame in frames:
            yield stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24"))
        yield stream.encode()


def _audio_packets(stream: Any, waveform: npt.NDArray[np.float32] | None) -> Iterator[Any]:
    import av

    if waveform is not None:
        step = 1024
        for start in range(0, len(waveform), step):
            sound = av.AudioFrame.from_ndarray(waveform[None, start : start + step], format="fltp", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = SAMPLING_RATE, start, Fraction(1, SAMPLING_RATE)
            yield stream.encode(sound)
        yield stream.encode()


def _video_stream(container: Any) -> Any:
    import av

    name = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    options = {"preset": "ultrafast", "crf": "20"} if name == "libx264" else {"qscale": "3"}
    video = container.add_stream(name, rate=FPS, options=options)
    video.codec_context.thread_count = 1  # several threads would cut the frame into other slices
    video.width, video.height, video.pix_fmt = SIZE, SIZE, "yuv420p"
    return video


@lru_cache(maxsize=256)
def person(seed: int, split: Split, number: int) -> Person:
    """The `number`-th person of a split; no person is in two splits."""
    rng = np.random.default_rng([seed, _PERSON_KEY, SPLITS.index(split), number])
    identity = sample_identity(rng)
    group = "low" if any("-male-" in shape for shape in identity.shapes) else "high"
    voice = sample_voice(rng, split)
    while voice.group != group:
        voice = sample_voice(rng, split)
    return Person(f"{split}-{number:02d}", identity, voice)


def _speaker(drawn: Script) -> Person:
    return person(drawn.seed, drawn.split, int(drawn.person.rsplit("-", 1)[1]))


def _spoken(drawn: Script, act: np.random.Generator) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """The audio track, a whole number of frames long, and the mouth shapes at `MOUTH_FPS`."""
    lead, tail = act.uniform(0.15, 0.35), act.uniform(0.2, 0.45)
    manner = acting.prosody(drawn.scene, act)
    rng = _stream(drawn.seed, drawn.split, drawn.index, "voice")
    speech = _say(drawn.subtitle, _speaker(drawn).voice, manner, rng, LONGEST - lead - tail)
    seconds = float(np.clip(lead + len(speech.waveform) / SAMPLING_RATE + tail, SHORTEST, LONGEST))
    n_frames = int(np.ceil(seconds * FPS - 1e-6))
    mouth = np.concatenate([np.zeros((round(lead * MOUTH_FPS), 4)), speech.mouth, np.zeros((1, 4))])
    return _track(drawn, speech, n_frames / FPS, lead), mouth


def _say(text: str, voice: Voice, manner: Prosody, rng: np.random.Generator, max_seconds: float) -> Speech:
    """Speak a sentence; if it exceeds `max_seconds`, speak faster and without pauses."""
    speech = speak(text, voice, manner, rng, max_seconds)
    for faster in (1.15, 1.3, 1.5):
        if not speech.truncated:
            break
        tempo = min(manner.tempo * faster, acting.FASTEST)
        speech = speak(text, voice, replace(manner, tempo=tempo, pauses=0), rng, max_seconds)
    return speech


def _track(drawn: Script, speech: Speech, seconds: float, lead: float) -> npt.NDArray[np.float32]:
    """The audio of the clip: a room, usually noise, sometimes a distant voice of the same split."""
    rng = _stream(drawn.seed, drawn.split, drawn.index, "sound")
    noise_db = float(rng.uniform(*NOISE_DB)) if rng.random() < NOISY else None
    other = None
    if rng.random() < OTHER_VOICE:
        number = int(rng.integers(PERSONS[drawn.split]))
        sentence = sample_sentence(SMALL_TALK, drawn.split, rng)
        other = speak(sentence, person(drawn.seed, drawn.split, number).voice, Prosody(), rng, LONGEST).waveform
    other_db = float(rng.uniform(*OTHER_DB))
    return mix(speech, rng, seconds, offset_seconds=lead, noise_db=noise_db, other_voice=other, other_db=other_db)


def _stream(seed: int, split: Split, index: int, stream: str) -> np.random.Generator:
    return np.random.default_rng([seed, SPLITS.index(split), index, _STREAMS.index(stream)])
