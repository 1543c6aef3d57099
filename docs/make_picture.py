"""Draw docs/picture.png: one test clip of a finished demo, with its slow and its fast answer.

    python docs/make_picture.py runs/demo docs/picture.png

The clip is an example on which reasoning helps. The line at the bottom counts over all test clips how often it does.
"""

import argparse
import io
import textwrap
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from mer_r1 import read_manifest, read_records
from mer_r1.data.media.read import Media, MediaLimits, read_media

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import FancyBboxPatch

CLIP = "test-000198"
WIDTH, HEIGHT, DPI, SHARPNESS = 1280, 584, 100, 1.5
INK, MUTED, PAPER, LINE = "#1f2328", "#59636e", "#f6f8fa", "#d1d9e0"
SLOW, FAST, GOLD = "#0969da", "#bc4c00", "#1a7f37"


class Canvas:
    """A figure that is drawn on in pixels, the origin at the top left."""

    def __init__(self) -> None:
        self.figure = plt.figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, facecolor=PAPER)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0))
        self.axes.axis("off")

    def text(self, x: float, y: float, text: str, size: float = 15, colour: str = INK, **style: object) -> float:
        """Write text with its top left corner at (x, y), `size` pixels high; returns its right edge."""
        style = {"va": "top", "linespacing": 1.45, **style}
        drawn = self.axes.text(x, y, text, fontsize=size * 72 / DPI, color=colour, **style)
        box = drawn.get_window_extent(self.figure.canvas.get_renderer())
        return float(box.x1)

    def card(self, x: float, y: float, width: float, height: float, colour: str = LINE, fill: str = "white") -> None:
        """A box with rounded corners."""
        shape = FancyBboxPatch((x, y), width, height, "round,pad=0,rounding_size=8", fc=fill, ec=colour, lw=1.4)
        self.axes.add_patch(shape)

    def words(self, x: float, y: float, words: list[str], colour: str) -> None:
        """Emotion words side by side, each in a box of its own."""
        for word in words:
            right = self.text(x + 12, y + 23, word, 18, colour, weight="bold", va="baseline")
            self.card(x, y, right - x + 12, 34, colour, "none")
            x = right + 22


def draw(canvas: Canvas, media: Media, subtitle: str, gold: list[str], answers: dict[str, dict]) -> None:
    """Put frames, waveform, subtitle, gold and both answers on the canvas."""
    canvas.text(24, 20, "A test clip of the demo (generated scene): frames, subtitle, audio", 17, weight="bold")
    for index, frame in enumerate(media.frames):
        left = 24 + 172 * index
        canvas.axes.imshow(frame.transpose(1, 2, 0), extent=(left, left + 164, 216, 52), interpolation="bicubic")
    left = 24 + 172 * len(media.frames) + 12
    canvas.card(left, 52, WIDTH - 24 - left, 164)
    canvas.text(left + 16, 64, "subtitle", 13, MUTED)
    canvas.text(left + 16, 84, f"“{subtitle}”", 18)
    canvas.text(left + 16, 122, "audio", 13, MUTED)
    columns = np.array_split(media.waveform / np.abs(media.waveform).max(), 170)
    x = np.linspace(left + 16, WIDTH - 40, len(columns))
    canvas.axes.vlines(x, [174 - 32 * c.max() for c in columns], [174 - 32 * c.min() for c in columns], MUTED, lw=1.2)

    canvas.card(24, 236, 776, 210, SLOW)
    canvas.text(42, 252, "Slow: reason, then answer", 17, SLOW, weight="bold")
    reasoning = textwrap.fill(answers["slow"]["reasoning"], 82)
    canvas.text(42, 286, reasoning, 17)
    canvas.words(42, 392, answers["slow"]["labels"], SLOW)
    canvas.text(782, 400, f"F1 {answers['slow']['f1']:.2f}", 18, SLOW, weight="bold", ha="right")

    canvas.card(816, 236, 440, 210, FAST)
    canvas.text(834, 252, "Fast: answer at once", 17, FAST, weight="bold")
    canvas.text(834, 286, "(no reasoning)", 17, MUTED)
    canvas.words(834, 392, answers["fast"]["labels"], FAST)
    canvas.text(1238, 400, f"F1 {answers['fast']['f1']:.2f}", 18, FAST, weight="bold", ha="right")

    canvas.card(24, 462, 1232, 62, GOLD)
    canvas.text(42, 484, "Gold labels", 17, GOLD, weight="bold")
    canvas.words(170, 476, gold, GOLD)
    canvas.text(
        1238, 485, "F1: agreement with the gold labels, averaged over five emotion wheels", 15, MUTED, ha="right"
    )


def main() -> None:
    """Read a demo's folder and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished demo")
    parser.add_argument("picture", type=Path, help="PNG to write")
    parser.add_argument("--clip", default=CLIP, help="id of the test clip")
    chosen = parser.parse_args()
    clip = next(clip for clip in read_manifest(chosen.run / "scenes" / "manifest.jsonl") if clip.id == chosen.clip)
    records = {(record.mode, record.id): record for record in read_records(chosen.run / "eval/rl/records.jsonl")}
    answers = {
        mode: {"reasoning": record.reasoning, "labels": record.labels, "f1": record.scores["f1"]}
        for mode in ("slow", "fast")
        if (record := records[mode, clip.id])
    }
    gains = [
        record.scores["f1"] - records["fast", clip_id].scores["f1"]
        for (mode, clip_id), record in records.items()
        if mode == "slow"
    ]
    canvas = Canvas()
    media = read_media(clip.video, clip.audio, MediaLimits(max_frames=5))
    draw(canvas, media, clip.subtitle, list(clip.labels), answers)
    counts = [sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains), sum(gain == 0 for gain in gains)]
    canvas.text(
        24,
        546,
        f"An example on which reasoning helps. Over all {len(gains)} test clips slow scores higher on {counts[0]}, "
        f"fast on {counts[1]}, both the same on {counts[2]}.",
        15,
        MUTED,
    )
    buffer = io.BytesIO()
    canvas.figure.savefig(buffer, dpi=SHARPNESS * DPI, facecolor=PAPER)
    image = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.FLOYDSTEINBERG)
    image.save(chosen.picture, optimize=True)


if __name__ == "__main__":
    main()
