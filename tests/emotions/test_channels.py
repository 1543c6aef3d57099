"""The channels that a reasoning speaks of, on the reasonings of the built-in scenes."""

import pytest

from mer_r1.emotions.thinking import CHANNELS, channels_of
from mer_r1.lab.scenes.clip import script


@pytest.mark.parametrize(
    ("reasoning", "expected"),
    [
        ("", set()),
        ("So happy.", set()),
        ("The voice trembles. So afraid.", {"audio"}),
        ("The Subtitle is a joke.", {"subtitle"}),
        ("I see raised brows and hear a sigh, and the words fit.", set(CHANNELS)),
        ("Overseen, headed: parts of words do not count.", {"subtitle"}),
    ],
)
def test_by_hand(reasoning: str, expected: set[str]) -> None:
    assert channels_of(reasoning) == expected


def test_reasonings_of_scenes_speak_of_their_words_and_never_of_what_is_missing() -> None:
    spoken = {channel: 0 for channel in CHANNELS}
    for index in range(300):
        whole = channels_of(script(3, "train", index).row()["reasoning"])
        assert "subtitle" in whole
        for channel in whole:
            spoken[channel] += 1
        row = script(3, "train", index, missing=1.0).row()
        assert channels_of(row["reasoning"]).isdisjoint(row["meta"]["missing"]), row["reasoning"]
    assert min(spoken.values()) > 240, "most complete clips have something to say of each channel"
