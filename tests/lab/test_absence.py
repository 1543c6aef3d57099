"""A channel that is taken away is gone, and the others stay."""

import pytest
from media_samples import tone, write_media

from mer_r1.data.clip import Clip
from mer_r1.data.media.read import read_media
from mer_r1.lab.tiny.absence import NOTES, without


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = write_media(tmp_path_factory.mktemp("clip") / "a.mp4", frames=8, fps=4, sound=tone(2.0))
    return Clip("a", path, subtitle="Hello.")


@pytest.mark.parametrize("channel", ["audio", "video"])
def test_one_channel_is_gone_and_the_other_is_as_it_was(clip, channel, tmp_path):
    rest, whole = read_media(without(clip, channel, tmp_path).video), read_media(clip.video)
    assert rest.notes == (NOTES[channel],)
    if channel == "audio":
        assert rest.waveform is None
        assert (rest.frames == whole.frames).all()
    else:
        assert rest.frames is None
        assert len(rest.waveform) == pytest.approx(len(whole.waveform), abs=2048)


def test_words_are_taken_away_too(clip, tmp_path):
    assert without(clip, "subtitle", tmp_path) == Clip("a", clip.video)
