"""Speech in real recordings: where somebody talks, and what is said, by the packages' own models."""

import inspect
import sys
from itertools import pairwise
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from media_samples import write_media
from recordings import installed

from mer_r1.data.clip import Clip
from mer_r1.data.media import speech as module
from mer_r1.data.media.container import MediaLimits
from mer_r1.data.media.read import read_media
from mer_r1.data.media.speech import equal_sections, speech_sections, transcriber
from mer_r1.errors import UserError


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    """1 s of silence, "It was the best of times, it was the worst of times", 1.5 s of silence, the same again."""
    said = read_media(None, installed("moonshine_voice", "assets", "two_cities.wav"), section=(1.2, 4.7)).waveform
    rests = np.zeros(16000, np.float32), np.zeros(24000, np.float32)
    path = tmp_path_factory.mktemp("talk") / "talk.wav"
    return write_media(path, sound=np.concatenate([rests[0], said, rests[1], said])[None], audio_codec="pcm_s16le")


def test_utterances_are_found_where_somebody_talks(talk, monkeypatch):
    pytest.importorskip("silero_vad", reason="silero-vad (extra speech) is not installed")
    monkeypatch.setattr(module, "PIECE_SECONDS", 3.0)  # the first utterance lies in two pieces
    threads, told = torch.get_num_threads(), []
    sections = speech_sections(talk, 30.0, told.append)
    assert [place for section in sections for place in section] == pytest.approx([1.0, 4.5, 6.0, 9.5], abs=0.6)
    assert told[-1] == 1.0
    assert torch.get_num_threads() == threads, "the library's setting is taken back"
    short = speech_sections(talk, 2.0)
    assert len(short) > 2
    assert max(end - start for start, end in short) <= 2.1


def test_words_are_written_down_and_the_program_is_named(talk):
    pytest.importorskip("pocketsphinx", reason="pocketsphinx (extra speech) is not installed")
    listener = transcriber("pocketsphinx")
    assert listener.name.startswith("PocketSphinx 5")
    words = listener.words_of(Clip("a", talk, section=(1.0, 4.6)), MediaLimits(max_seconds=30))
    assert "the worst of times" in words
    assert listener.words_of(Clip("a", talk, section=(0.0, 0.9)), MediaLimits()) == "", "silence is not listened to"
    assert listener.words_of(Clip("a"), MediaLimits()) == ""


def test_without_the_packages_the_extra_is_named(monkeypatch, talk):
    for package in ("silero_vad", "pocketsphinx", "faster_whisper"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match="extra speech"):
        speech_sections(talk, 30)
    for name in (None, "pocketsphinx", "small"):
        with pytest.raises(UserError, match="extra"):
            transcriber(name)


def test_a_model_that_is_not_here_is_one_line(tmp_path):
    pytest.importorskip("faster_whisper", reason="faster-whisper (extra whisper) is not installed")
    with pytest.raises(UserError, match="cannot be loaded"):
        transcriber(str(tmp_path), "cpu")


@pytest.mark.parametrize(
    ("seconds", "expected"), [(4.0, [4.0, 4.0, 2.0]), (6.0, [6.0, 4.0]), (9.0, [10.0]), (60.0, [10.0])]
)
def test_equal_sections_by_hand(monkeypatch, seconds, expected):
    monkeypatch.setattr(module, "media_seconds", lambda path: 10.0)
    sections = equal_sections("a", seconds)
    assert [end - start for start, end in sections] == expected
    assert (sections[0][0], sections[-1][1]) == (0.0, 10.0)
    assert all(one[1] == other[0] for one, other in pairwise(sections))


class Played:
    """faster-whisper's model as we call it; only "small" is on this machine."""

    calls: ClassVar[list] = []

    def __init__(self, model_size_or_path, device="auto", device_index=0, local_files_only=False):
        self.calls.append((model_size_or_path, device, device_index, local_files_only))
        if model_size_or_path == "gone":
            raise RuntimeError("cannot\nconnect")

    def transcribe(self, audio, beam_size=5, temperature=0.0, condition_on_previous_text=True):
        assert not condition_on_previous_text
        return iter([SimpleNamespace(text=" It was"), SimpleNamespace(text=" the best. ")]), None


def test_faster_whisper_is_taken_where_its_model_is_here(monkeypatch, talk):
    monkeypatch.setitem(sys.modules, "faster_whisper", SimpleNamespace(WhisperModel=Played))
    monkeypatch.setattr(module.metadata, "version", lambda name: "1.2")
    listener = transcriber(None, "cuda:1")
    assert Played.calls[-1] == ("small", "cuda", 1, True), "nothing is downloaded by itself"
    assert listener.name == "faster-whisper 1.2 (small)"
    assert listener.words_of(Clip("a", talk), MediaLimits()) == "It was the best."
    transcriber("large-v3")
    assert Played.calls[-1] == ("large-v3", "auto", 0, False), "what is named may be"
    with pytest.raises(UserError, match="gone of faster-whisper cannot be loaded: cannot connect"):
        transcriber("gone")


def test_the_library_takes_what_it_is_given():
    whisper = pytest.importorskip("faster_whisper", reason="faster-whisper (extra whisper) is not installed")
    for method in ("__init__", "transcribe"):
        known = inspect.signature(getattr(whisper.WhisperModel, method)).parameters
        assert set(inspect.signature(getattr(Played, method)).parameters) <= set(known)
