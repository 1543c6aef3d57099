"""What we use of vLLM, held against its published signatures: the package itself is not installed here."""

import sys
import types
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from media_samples import tone, write_media
from tiny_corpus import moving_square

from mer_r1.chat import Decoding
from mer_r1.clips import Clip
from mer_r1.errors import UserError
from mer_r1.media import read_media
from mer_r1.taxonomy import builtin
from mer_r1.thinking import FAST_PREFILL, ThinkingMode, question
from mer_r1.vllm_engine import EngineModel, media_of

BOTH = list(ThinkingMode)
TEXT_PROMPT = {"prompt", "multi_modal_data", "mm_processor_kwargs", "multi_modal_uuids", "cache_salt"}
"""Keys of `vllm.inputs.TextPrompt`."""


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
    """A module with vLLM's published signatures (0.11 and later: LLM, LLM.generate, SamplingParams, RequestOutput)."""
    module = types.ModuleType("vllm")
    module.__version__ = "0.22.0"

    class SamplingParams:
        def __init__(
            self, n=1, presence_penalty=0.0, frequency_penalty=0.0, repetition_penalty=1.0, temperature=1.0, top_p=1.0,
            top_k=0, min_p=0.0, seed=None, stop=None, stop_token_ids=None, ignore_eos=False, max_tokens=16,
            min_tokens=0, logprobs=None, prompt_logprobs=None, detokenize=True, skip_special_tokens=True,
        ):  # fmt: skip
            self.__dict__.update({name: value for name, value in locals().items() if name != "self"})

    @dataclass
    class CompletionOutput:
        index: int
        text: str
        token_ids: list
        cumulative_logprob: float | None = None
        logprobs: list | None = None
        finish_reason: str | None = None

    @dataclass
    class RequestOutput:
        prompt: str
        outputs: list

    class LLM:
        started: ClassVar[list] = []

        def __init__(
            self, model, *, runner="auto", convert="auto", tokenizer=None, tokenizer_mode="auto",
            skip_tokenizer_init=False, trust_remote_code=False, allowed_local_media_path="", tensor_parallel_size=1,
            dtype="auto", quantization=None, revision=None, tokenizer_revision=None, seed=0,
            gpu_memory_utilization=0.9, enforce_eager=False, hf_overrides=None, mm_processor_kwargs=None, **kwargs,
        ):  # fmt: skip
            engine_arguments = {"limit_mm_per_prompt", "enable_prefix_caching", "max_model_len", "max_num_seqs"}
            assert kwargs.keys() <= engine_arguments, "fields of EngineArgs"
            self.model, self.kwargs, self.requests = model, kwargs, []
            LLM.started.append(self)

        def generate(
            self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None, priority=None,
        ):  # fmt: skip
            self.requests += prompts
            self.parameters = sampling_params
            outputs = []
            for request in prompts:
                assert request.keys() <= TEXT_PROMPT
                fast = request["prompt"].endswith(FAST_PREFILL)
                text = " sad </answer>" if fast else "<think>Hm.</think><answer>happy</answer>"
                outputs.append(RequestOutput(request["prompt"], [CompletionOutput(0, text, [5, 6, 7])]))
            return outputs

    module.LLM, module.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def test_vllm_gets_unexpanded_prompts_with_frames_at_their_true_rate(vllm, taught, taught_folder, clips, tmp_path):
    asked = [*clips[:2], Clip("gone", tmp_path / "gone.mp4")]
    model = EngineModel(str(taught_folder), builtin(), Decoding(max_tokens=33, seed=5))
    records = list(model.answer(asked, BOTH))
    assert [(r.id, r.mode) for r in records] == [(clip.id, mode.value) for mode in BOTH for clip in asked]
    assert [r.labels for r in records] == [["happy"], ["happy"], [], ["sad"], ["sad"], []]
    assert "no such file" in records[2].error
    assert (records[0].tokens, records[0].versions["vllm"]) == (3, "0.22.0")
    (engine,) = vllm.LLM.started
    assert engine.model == str(taught_folder)
    assert engine.kwargs == {"limit_mm_per_prompt": {"audio": 1, "video": 1}, "enable_prefix_caching": True}
    chosen = (engine.parameters.temperature, engine.parameters.top_p, engine.parameters.max_tokens)
    assert chosen == (0.0, 1.0, 33)
    assert engine.parameters.seed == 5
    slow, fast = engine.requests[0], engine.requests[2]
    assert fast["prompt"] == slow["prompt"] + FAST_PREFILL
    for token in (taught.processor.video_token, taught.processor.audio_token):
        assert slow["prompt"].count(token) == 1, "vLLM expands it"
    assert question(clips[0].subtitle, taught.settings.question) in slow["prompt"]
    expected = read_media(clips[0].video, clips[0].audio, taught.settings.limits())
    video, (sound, rate) = (slow["multi_modal_data"][name] for name in ("video", "audio"))
    assert (video.dtype, video.shape[-1]) == (np.uint8, 3)
    assert np.array_equal(video.transpose(0, 3, 1, 2), expected.frames)
    assert np.array_equal(sound, expected.waveform)
    assert rate == 16000
    assert slow["mm_processor_kwargs"] == {"fps": expected.fps}


def test_vllm_gets_only_the_channels_that_there_are(clips):
    heard = media_of(read_media(None, clips[0].audio))
    assert heard.keys() == {"multi_modal_data"}
    assert heard["multi_modal_data"].keys() == {"audio"}
    assert media_of(read_media(None)) == {}


def test_without_vllm_one_line_says_what_to_install(clips, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"needs the package vllm.*pip install vllm"):
        list(EngineModel("m", builtin(), Decoding()).answer(clips, BOTH))
