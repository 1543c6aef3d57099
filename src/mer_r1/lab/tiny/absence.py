"""Count what a policy says of a channel that a clip lacks: words, sound or picture taken away from generated clips.

    python -m mer_r1.lab.tiny.absence runs/demo/scenes/manifest.jsonl --num-clips 50

For each channel: clips whose records say that it is missing, reasonings that speak of it all the same, mean F1, and the
reasonings in whole sentences: each pair of neighbouring words occurs in a reasoning that the manifest's training clips
have. RL rewards where a reasoning leads, and may break its sentences.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import av

from mer_r1.data.clip import Clip
from mer_r1.data.manifest import read_manifest
from mer_r1.emotions.thinking import ThinkingMode, channels_of
from mer_r1.emotions.wheels import builtin
from mer_r1.evaluation.answerers.checkpoint import Checkpoint
from mer_r1.evaluation.clips.ask import NO_WORDS, ask_clips, with_words
from mer_r1.evaluation.llm.chat import Decoding
from mer_r1.weights import POLICY

NOTES = {"subtitle": NO_WORDS, "audio": "no sound", "video": "no picture"}
"""Channel -> the note of a record whose clip lacks it."""


def without(clip: Clip, channel: str, folder: Path) -> Clip:
    """A clip without one channel: no subtitle, or its video file without one of its tracks, rewritten in `folder`."""
    if channel == "subtitle":
        return replace(clip, subtitle="")
    assert clip.video is not None
    path = folder / f"{clip.id}.{channel}.mkv"
    with av.open(str(clip.video)) as source, av.open(str(path), "w") as copy:
        kept = source.streams.video[0] if channel == "audio" else source.streams.audio[0]
        track = copy.add_stream_from_template(kept)
        for packet in source.demux(kept):
            if packet.dts is not None:
                packet.stream = track
                copy.mux(packet)
    return replace(clip, video=path)


def word_pairs(text: str) -> set[tuple[str, str]]:
    """Pairs of neighbouring words, marks and ends of a text.

    >>> sorted(word_pairs("So sad."))
    [('', 'so'), ('.', ''), ('sad', '.'), ('so', 'sad')]
    """
    words = re.findall(r"[a-z']+|[.,]", text.lower())
    return set(pairwise(["", *words, ""]))


def count(
    model: str, clips: Sequence[Clip], taught: Iterable[str] = (), channels: Iterable[str] = NOTES
) -> dict[str, dict[str, Any]]:
    """Channel that was taken away ("nothing" first) -> counts over the clips and mean F1 of both modes.

    `taught` holds the reasonings whose pairs of words make whole sentences.
    """
    known = set().union(*map(word_pairs, taught))
    taxonomy, found = builtin(), {}
    answerer = Checkpoint(model, taxonomy, Decoding(max_tokens=96), batch_size=25)
    with tempfile.TemporaryDirectory() as folder:
        for channel in ("nothing", *channels):
            asked = clips if channel == "nothing" else [without(clip, channel, Path(folder)) for clip in clips]
            answers = list(ask_clips(answerer, with_words(asked, 30.0), list(ThinkingMode)))
            slow, fast = zip(*(one.records for one in answers), strict=True)
            said = [NOTES.get(channel) in record.notes for record in slow + fast]
            row: dict[str, Any] = {"clips": len(clips), "records that say it": sum(said), "records": len(said)}
            talking = [record.reasoning for record in slow if channel in channels_of(record.reasoning)]
            row |= {"reasoning speaks of it": len(talking), "such as": talking[:2]}
            row["in whole sentences"] = sum(word_pairs(record.reasoning) <= known for record in slow)
            scores = {"slow F1": slow, "fast F1": fast}
            found[channel] = row | {
                name: round(fmean(record.scores["f1"] for record in records if record.scores), 3)
                for name, records in scores.items()
            }
    return found


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", default=POLICY)
    parser.add_argument("--num-clips", type=int, default=50)
    given = parser.parse_args()
    clips = read_manifest(given.manifest, splits=["test"])[: given.num_clips]
    taught = [clip.reasoning or "" for clip in read_manifest(given.manifest, splits=["train"])]
    for channel, row in count(given.model, clips, taught).items():
        sys.stdout.write(f"without {channel}: {json.dumps(row)}\n")


if __name__ == "__main__":
    _main()
