"""A manifest of eight tiny media files of every kind, for tests that run whole stages."""

from pathlib import Path

import numpy as np
from media_samples import tone, write_media

from mer_r1.data.clip import Clip
from mer_r1.data.manifest import write_manifest

GOLD = [
    ("happy",),
    ("sad", "lonely"),
    ("angry",),
    ("afraid",),
    ("surprised", "happy"),
    ("proud",),
    ("bored",),
    ("sad",),
]
SILENT, HEARD_ONLY, APART = 1, 2, 3  # video without audio, audio without video, audio in a separate file


def moving_square(shade: int):
    """A square that moves across a frame of one shade."""

    def picture(index: int) -> np.ndarray:
        frame = np.full((48, 64, 3), 20 * shade, np.uint8)
        frame[16:32, 6 * index : 6 * index + 16] = 255
        return frame

    return picture


def write_corpus(folder: Path) -> Path:
    """Six training and two test clips of about a second each; returns the manifest's path."""
    clips = []
    for index, labels in enumerate(GOLD):
        video, audio = folder / f"{index}.mp4", None
        sound = tone(0.8 + 0.1 * index, hertz=200 + 60 * index)
        if index == HEARD_ONLY:
            video, audio = None, write_media(folder / f"{index}.wav", sound=sound, audio_codec="pcm_s16le")
        elif index == APART:
            audio = write_media(folder / f"{index}.wav", sound=sound, audio_codec="pcm_s16le")
        if video is not None:
            within = None if index in (SILENT, APART) else sound
            write_media(video, frames=6, fps=5, picture=moving_square(index), sound=within)
        clips.append(
            Clip(
                id=f"clip-{index}",
                video=video,
                audio=audio,
                subtitle=f"This is sentence {index}.",
                labels=labels,
                reasoning=f"The square is of shade {index}.",
                split="train" if index < 6 else "test",
                meta={
                    "description": f"a square of shade {index}",
                    "remark": f"Shade {index}. So {labels[0]}.",
                    "broad_labels": [*labels, "calm"],
                },
            )
        )
    write_manifest(folder / "manifest.jsonl", clips)
    return folder / "manifest.jsonl"
