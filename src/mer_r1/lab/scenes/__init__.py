"""Built-in scenes: a generated audio-visual corpus with known emotions, cues and labels. Never human data.

`world` draws what happens, `texts` and `sentences` what is written and said, `acting` turns cues into facial actions
and prosody, `faces` and `voices` make pictures and sound, `clip` and `write` make files. `oracle` tells the best
possible score. See docs/scenes.md.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["write_scenes"]


def write_scenes(
    out: str | Path,
    clips: int,
    seed: int = 0,
    splits: Mapping[str, float] | None = None,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Write a corpus of generated scenes; see `write.write_scenes`, which needs the extra `scenes`."""
    from mer_r1.lab.scenes import write

    return write.write_scenes(out, clips, seed, splits, workers, progress)
