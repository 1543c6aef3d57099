"""Evaluating with vLLM: its answers are those of the checkpoint here. The package itself is not installed."""

import sys

import fake_vllm
import numpy as np
import pytest
from media_samples import tone, write_media
from tiny_corpus import moving_square

from mer_r1.data.clip import Clip
from mer_r1.data.media.read import read_media
from mer_r1.emotions.thinking import FAST_PREFILL, ThinkingMode, question
from mer_r1.emotions.wheels import builtin
from mer_r1.errors import UserError
from mer_r1.evaluation.answerers.checkpoint import Checkpoint
from mer_r1.evaluation.answerers.vllm import EngineModel
from mer_r1.evaluation.llm.chat import Decoding
from mer_r1.model.omni import load
from mer_r1.rl.vllm.engine import id_difference, media_of

BOTH = list(ThinkingMode)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Three clips, each of a picture and a sound file."""
    folder = tmp_path_factory.mktemp("clips")
    found = []
    for i, subtitle in enumerate(("Well, that is great.", "Leave me alone!", "")):
        video = write_media(folder / f"{i}.mp4", frames=6, fps=5, picture=moving_square(i), sound=tone(1.0))
        sound = write_media(folder / f"{i}.wav", sound=tone(0.8 + i / 10, hertz=300), audio_codec="pcm_s16le")
        found.append(Clip(f"clip-{i}", video, sound, subtitle, ("sad",)))
    return found


@pytest.fixture
def vllm(monkeypatch):
    module = fake_vllm.module()
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def test_a_thinkers_folder_answers_as_it_does_here(vllm, taught_folder, clips, tmp_path):
    """Whole configuration, names, weights, prompts, frames and sound: or the greedy answers would differ."""
    asked = [*clips, Clip("gone", tmp_path / "gone.mp4")]
    decoding = Decoding(max_tokens=33, seed=5)
    records = list(EngineModel(str(taught_folder), builtin(), decoding).answer(asked, BOTH))
    ours = list(Checkpoint(str(taught_folder), builtin(), decoding, device="cpu").answer(clips, BOTH))
    assert [(r.id, r.mode) for r in records] == [(clip.id, mode.value) for mode in BOTH for clip in asked]
    assert "no such file" in records[3].error
    answered = {(r.id, r.mode): (r.completion, r.labels) for r in records if not r.error}
    assert answered == {(r.id, r.mode): (r.completion, r.labels) for r in ours}
    assert any(labels for _, labels in answered.values())
    assert records[0].versions["vllm"] == vllm.__version__
    assert records[0].tokens > 3


def test_requests_are_unexpanded_with_frames_at_their_true_rate(vllm, taught, taught_folder, clips):
    list(EngineModel(str(taught_folder), builtin(), Decoding(max_tokens=3, seed=5)).answer(clips[:1], BOTH))
    (engine,) = vllm.LLM.started
    assert engine.options["limit_mm_per_prompt"] == {"audio": 1, "video": 1}
    assert engine.options["enable_prefix_caching"] is True
    chosen = engine.parameters[0]
    assert (chosen.temperature, chosen.top_p, chosen.max_tokens, chosen.seed) == (0.0, 1.0, 3, 5)
    ((slow,), (fast,)) = engine.requests
    assert fast["prompt"] == slow["prompt"] + FAST_PREFILL
    for token in (taught.processor.video_token, taught.processor.audio_token):
        assert slow["prompt"].count(token) == 1, "vLLM expands it"
    assert question(clips[0].subtitle, taught.settings.question) in slow["prompt"]
    expected = read_media(clips[0].video, clips[0].audio, taught.settings.limits())
    video, (sound, rate) = (slow["multi_modal_data"][name] for name in ("video", "audio"))
    assert (video.dtype, video.shape[-1]) == (np.uint8, 3)
    assert np.array_equal(video.transpose(0, 3, 1, 2), expected.frames)
    assert np.array_equal(sound, expected.waveform[: len(sound)])
    assert len(expected.waveform) - len(sound) < taught.processor.feature_extractor.hop_length
    assert rate == 16000
    how = slow["mm_processor_kwargs"]
    assert (how["fps"], how["size"]) == (expected.fps, dict(taught.processor.video_processor.size))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_engine_keeps_the_checkpoints_dtype(vllm, taught_folder, clips, tmp_path, dtype):
    """vLLM's own choice, "auto", makes float32 weights bfloat16."""
    load(taught_folder, dtype=dtype).save(tmp_path / dtype)
    options = {"gpu_memory_utilization": 0.3, "max_model_len": 512}
    asked = EngineModel(str(tmp_path / dtype), builtin(), Decoding(max_tokens=2), options=options)
    list(asked.answer(clips[:1], BOTH[:1]))
    (engine,) = vllm.LLM.started
    assert engine.options["dtype"] == dtype
    assert {name: engine.options[name] for name in options} == options


def test_vllm_gets_only_the_channels_that_there_are(clips, taught):
    heard = media_of(read_media(None, clips[0].audio), taught.processor)
    assert heard.keys() == {"multi_modal_data"}
    assert heard["multi_modal_data"].keys() == {"audio"}
    assert media_of(read_media(None), taught.processor) == {}


@pytest.mark.parametrize(
    ("came", "told"),
    [
        ([1, 9, 9, 2], None),
        ([1, 9, 9, 9, 2], "3 video tokens, expected 2"),
        ([1, 2], "0 video tokens, expected 2"),
        ([1, 9, 9, 3], "token 3 is 3, expected 2"),
        ([1, 9, 9, 2, 5], "5 tokens, expected 4"),
    ],
)
def test_id_difference(came, told):
    assert id_difference([1, 9, 9, 2], came, {9: "video"}) == told


def test_without_vllm_one_line_says_what_to_install(clips, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"needs the package vllm.*pip install vllm"):
        list(EngineModel("m", builtin(), Decoding()).answer(clips, BOTH))
