"""Built-in scenes: a generated audio-visual corpus with known emotions, cues and labels. It shows no real people.

`story` draws the scene and writes its texts, `acting` turns cues into facial actions and prosody, `face` and `voice`
render video and audio, `clip` and `write` write the files. `story.oracle` computes the best possible score. See
docs/scenes.md.
"""

from mer_r1.lab.scenes.write import write_scenes

__all__ = ["write_scenes"]
