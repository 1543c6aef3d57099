"""A stand-in for vLLM with its published signatures, which runs the tiny policy underneath.

`CONTRACT` records what we use of vLLM, as data: the arguments and fields of its sources at the named commits of
github.com/vllm-project/vllm. The stand-in takes those and nothing else, refuses what vLLM refuses, and handles a prompt
as vLLM's Qwen2.5-Omni processor does: the checkpoint's own processor (not repaired by our loader) looks at the media
with the request's `mm_processor_kwargs`, and each placeholder of the unexpanded tokens is expanded by what it found.
"""

import types
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoProcessor, Qwen2_5OmniConfig, Qwen2_5OmniThinkerForConditionalGeneration

CONTRACT = {
    # vllm/sampling_params.py at 00388f6573ccfcffad607b8c9ecdf341a4669ceb: fields of `SamplingParams`, with defaults.
    "SamplingParams": {
        "n": 1, "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0, "temperature": 1.0,
        "top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": None, "stop": None, "stop_token_ids": None,
        "ignore_eos": False, "max_tokens": 16, "min_tokens": 0, "logprobs": None, "prompt_logprobs": None,
        "logprob_token_ids": None, "flat_logprobs": False, "detokenize": True, "skip_special_tokens": True,
        "logit_bias": None, "allowed_token_ids": None, "bad_words": None,
    },
    "MAX_LOGPROB_TOKEN_IDS": 128,
    # vllm/entrypoints/llm.py at 10fdb8f0d75a3ad1122b87020f1359d3fc51f2ca: keyword arguments of `LLM.__init__` ...
    "LLM": {
        "runner", "convert", "tokenizer", "tokenizer_mode", "skip_tokenizer_init", "trust_remote_code",
        "allowed_local_media_path", "allowed_media_domains", "tensor_parallel_size", "dtype", "quantization",
        "revision", "tokenizer_revision", "seed", "gpu_memory_utilization", "cpu_offload_gb", "enforce_eager",
        "disable_custom_all_reduce", "hf_token", "hf_overrides", "mm_processor_kwargs", "pooler_config",
        "kv_cache_memory_bytes", "compilation_config", "logits_processors",
        # ... and, by **kwargs, fields of `EngineArgs` (vllm/engine/arg_utils.py) that TRL or we set.
        "limit_mm_per_prompt", "enable_prefix_caching", "load_format", "max_model_len", "max_num_seqs",
        "max_num_batched_tokens", "enable_sleep_mode", "distributed_executor_backend", "logprobs_mode", "max_logprobs",
        "model_impl",
    },
    # vllm/inputs/data.py: keys of `TokensPrompt` and of `TextPrompt`.
    "prompt": {"prompt", "prompt_token_ids", "multi_modal_data", "mm_processor_kwargs", "multi_modal_uuids"},
    # vllm/model_executor/models/qwen2_5_omni_thinker.py at 7f4a06ae06cd9bea45d30d39de049b1ab39abc77.
    "hf_to_vllm_mapper": {
        "thinker.lm_head.": "language_model.lm_head.", "thinker.model.": "language_model.model.", "thinker.": "",
    },
}  # fmt: skip


class VLLMValidationError(ValueError):
    """vLLM's word for a request that it refuses."""


class SamplingParams:
    """Its fields, and the checks that concern us."""

    def __init__(self, **chosen: Any) -> None:
        unknown = chosen.keys() - CONTRACT["SamplingParams"].keys()
        assert not unknown, f"SamplingParams has no {unknown}"
        self.__dict__.update(CONTRACT["SamplingParams"] | chosen)
        if self.temperature < 1e-5 and self.n > 1:
            raise VLLMValidationError(f"n must be 1 when using greedy sampling, got {self.n}.")
        if len(self.logprob_token_ids or ()) > CONTRACT["MAX_LOGPROB_TOKEN_IDS"]:
            raise VLLMValidationError(f"Requested logprob_token_ids of length {len(self.logprob_token_ids)}")


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str = "stop"


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt: str | None = None


class OmniModel(nn.Module):
    """vLLM's thinker: other module names than transformers', positions of its own, weights through its loader."""

    def __init__(self, config: Any, faults: set[str]) -> None:
        super().__init__()
        assert isinstance(config, Qwen2_5OmniConfig), "vLLM's processor asks for the whole model's configuration"
        self.thinker = Qwen2_5OmniThinkerForConditionalGeneration(config.thinker_config).eval()
        self.faults, self.loaded = faults, []
        for weight in self.thinker.parameters():  # load_format="dummy"
            weight.data.uniform_(-1e-3, 1e-3)

    def load_weights(self, weights: Any) -> set[str]:
        """Names mapped as vLLM maps them, then looked up; an unknown one is refused."""
        state = dict(self.thinker.named_parameters())
        for name, value in weights:
            for old, new in CONTRACT["hf_to_vllm_mapper"].items():
                if name.startswith(old):
                    inner = new + name.removeprefix(old)
                    break
            else:
                raise ValueError(f"There is no module or parameter named '{name}'")
            ours = inner.replace("language_model.model.", "model.language_model.", 1)
            if inner.startswith(("visual.", "audio_tower.")):
                ours = f"model.{inner}"
            ours = ours.replace("language_model.lm_head.", "lm_head.", 1)
            if ours not in state:
                raise ValueError(f"There is no module or parameter named '{inner}'")
            self.loaded.append(name)
            if not ("language model" in self.faults and name.startswith("thinker.model.")):
                state[ours].data.copy_(value)
        return set(self.loaded)

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: dict[str, Tensor]) -> tuple[Tensor, int]:
        """(3, tokens) positions and what to add to a token's index after them."""
        ids = torch.tensor([input_tokens])
        seconds = mm_features.get("video_second_per_grid")
        positions, _ = self.thinker.get_rope_index(
            ids,
            video_grid_thw=mm_features.get("video_grid_thw"),
            attention_mask=torch.ones_like(ids),
            audio_seqlens=mm_features["feature_attention_mask"].sum(-1)
            if "feature_attention_mask" in mm_features
            else None,
            second_per_grids=seconds,
        )
        return positions[:, 0], int(positions.max()) + 1 - len(input_tokens)


@dataclass
class _Engine:
    """`LLM.llm_engine`, down to where TRL finds the model."""

    model: OmniModel
    model_executor: Any = field(init=False)

    def __post_init__(self) -> None:
        runner = types.SimpleNamespace(model=self.model)
        self.model_executor = types.SimpleNamespace(driver_worker=types.SimpleNamespace(model_runner=runner))


class LLM:
    """`vllm.LLM`.

    `script` holds completions to replay, one list of token lists for each call that samples; without it, tokens are
    drawn. `faults` plants mistakes: "expanded twice", "frame rate", "language model" (weights are not taken over).
    """

    started: ClassVar[list["LLM"]] = []
    script: ClassVar[list[list[list[int]]]] = []
    faults: ClassVar[set[str]] = set()

    def __init__(self, model: str, **options: Any) -> None:
        unknown = options.keys() - CONTRACT["LLM"]
        assert not unknown, f"LLM takes no {unknown}"
        self.options, self.requests, self.parameters, self.resets, self.asleep = options, [], [], 0, []
        config = AutoConfig.from_pretrained(model)
        if callable(overrides := options.get("hf_overrides")):
            config = overrides(config)
        self.model = OmniModel(config, self.faults)
        if options.get("load_format", "auto") != "dummy":
            raise AssertionError("these tests have no whole checkpoint: a thinker's folder is loaded by `start`")
        self.processor = AutoProcessor.from_pretrained(model)
        self.llm_engine = _Engine(self.model)
        self.seen: dict[int, Any] = {}
        self.generator = torch.Generator().manual_seed(options.get("seed") or 0)
        type(self).started.append(self)

    def apply_model(self, func: Any) -> list[Any]:
        return [func(self.model)]

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        self.resets += 1
        return True

    def sleep(self, level: int = 1, mode: str = "abort") -> None:
        self.asleep.append(("sleep", level))

    def wake_up(self, tags: list[str] | None = None) -> None:
        self.asleep.append(("wake", tags))

    @torch.no_grad()
    def generate(
        self, prompts: Any, sampling_params: Any = None, *, use_tqdm: bool = True, lora_request: Any = None,
        priority: Any = None, tokenization_kwargs: Any = None,
    ) -> list[RequestOutput]:  # fmt: skip
        parameters = list(sampling_params) if isinstance(sampling_params, list) else [sampling_params] * len(prompts)
        assert len(parameters) == len(prompts)
        self.requests.append(prompts)
        self.parameters.append(sampling_params)
        scripted = None if parameters[0].logprob_token_ids or not self.script else iter(type(self).script.pop(0))
        known: dict[Any, Any] = {}
        return [
            self._answer(prompt, chosen, scripted, known) for prompt, chosen in zip(prompts, parameters, strict=True)
        ]

    def _answer(
        self, prompt: dict[str, Any], chosen: SamplingParams, scripted: Any, known: dict[Any, Any]
    ) -> RequestOutput:
        assert prompt.keys() <= CONTRACT["prompt"]
        key = (id(prompt.get("multi_modal_data")), tuple(prompt.get("prompt_token_ids", ())), prompt.get("prompt"))
        if key not in known:
            known[key] = self._read(prompt)
        ids, embeddings, positions, first = known[key]
        outputs = []
        for index in range(chosen.n):
            tokens, steps = self._draw(embeddings, positions, first, chosen, next(scripted) if scripted else None)
            text = self.processor.tokenizer.decode(tokens, skip_special_tokens=True)
            outputs.append(CompletionOutput(index, text, tokens, steps))
        return RequestOutput(ids, outputs, prompt.get("prompt"))

    def _read(self, prompt: dict[str, Any]) -> tuple[list[int], Tensor, Tensor, Tensor]:
        asked = prompt.get("prompt_token_ids") or self.processor.tokenizer(prompt["prompt"])["input_ids"]
        found, vectors = self._media(prompt)
        counts = self._counts(found)
        ids = [token for value in asked for token in [value] * counts.get(value, 1)]
        thinker = self.model.thinker
        positions, delta = self.model.get_mrope_input_positions(ids, found)
        embeddings = thinker.get_input_embeddings()(torch.tensor([ids]))
        for token, vector in vectors.items():
            embeddings = embeddings.masked_scatter((embeddings.new_tensor([ids]) == token).unsqueeze(-1), vector)
        first = thinker(
            inputs_embeds=embeddings, position_ids=positions[:, None], attention_mask=torch.ones(1, len(ids))
        ).logits[0, -1]
        if "expanded twice" in self.faults:
            ids = [token for value in ids for token in [value] * (2 if value in counts else 1)]
        return ids, embeddings, torch.cat([positions, positions.new_full((3, 1), len(ids) + delta)], dim=1), first

    def _media(self, prompt: dict[str, Any]) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
        media, how = prompt.get("multi_modal_data", {}), dict(prompt.get("mm_processor_kwargs", {}))
        if not media:
            return {}, {}
        if id(media) not in self.seen:
            if "frame rate" in self.faults:
                how.pop("fps", None)
            text = self.processor.audio_token * ("audio" in media) + self.processor.video_token * ("video" in media)
            videos = [media["video"]] if "video" in media else None
            audio = [media["audio"][0]] if "audio" in media else None
            found = dict(self.processor(text=text, videos=videos, audio=audio, return_tensors="pt", **how))
            self.seen[id(media)] = media, found, self._vectors(found)  # held, so that its id stays its own
        return self.seen[id(media)][1:]

    def _counts(self, found: dict[str, Tensor]) -> dict[int, int]:
        tokenizer, counts = self.processor.tokenizer, {}
        if "video_grid_thw" in found:
            merged = self.model.thinker.spatial_merge_size**2
            counts[tokenizer.convert_tokens_to_ids(self.processor.video_token)] = (
                int(found["video_grid_thw"].prod()) // merged
            )
        if "feature_attention_mask" in found:
            tower = self.model.thinker.model.audio_tower
            length = tower._get_feat_extract_output_lengths(found["feature_attention_mask"].sum(-1))[1]
            counts[tokenizer.convert_tokens_to_ids(self.processor.audio_token)] = int(length)
        return counts

    def _vectors(self, found: dict[str, Tensor]) -> dict[int, Tensor]:
        thinker, vectors = self.model.thinker, {}
        if "pixel_values_videos" in found:
            seen = thinker.get_video_features(found["pixel_values_videos"], found["video_grid_thw"], return_dict=True)
            vectors[thinker.config.video_token_id] = torch.cat(list(seen.pooler_output))
        if "input_features" in found:
            heard = thinker.get_audio_features(
                found["input_features"], found["feature_attention_mask"], return_dict=True
            )
            vectors[thinker.config.audio_token_id] = heard.last_hidden_state
        return vectors

    def _draw(
        self, embeddings: Tensor, positions: Tensor, first: Tensor, chosen: SamplingParams, replay: list[int] | None
    ) -> tuple[list[int], list[dict[int, Logprob]]]:
        """Tokens with the "processed" log-probabilities of the sampled ones, or of those asked for."""
        tokens, steps, logits = [], [], first
        known = None if replay is None else self._after(embeddings, positions, replay[:-1])
        ends = {self.processor.tokenizer.eos_token_id, *(chosen.stop_token_ids or ())}
        # vllm/v1/sample/ops/bad_words.py: the last token of a bad word is banned after the others, all of them sampled.
        banned = [self.processor.tokenizer(word)["input_ids"] for word in chosen.bad_words or ()]
        for index in range(chosen.max_tokens if replay is None else len(replay)):
            scaled = logits / (chosen.temperature or 1.0)
            for token, bias in (chosen.logit_bias or {}).items():
                scaled = scaled.index_add(0, torch.tensor([token]), torch.tensor([bias]))
            for word in banned:
                if len(word) <= len(tokens) + 1 and tokens[len(tokens) + 1 - len(word) :] == word[:-1]:
                    scaled = scaled.index_fill(0, torch.tensor(word[-1:]), -torch.inf)
            logps = scaled.log_softmax(-1)
            if replay is not None:
                token = replay[index]
            elif chosen.temperature == 0:
                token = int(logps.argmax())
            else:
                token = int(torch.multinomial(logps.exp(), 1, generator=self.generator))
            tokens.append(token)
            shown = {token, *(chosen.logprob_token_ids or ())}
            steps.append({one: Logprob(float(logps[one])) for one in shown})
            if len(tokens) == chosen.max_tokens or (token in ends and not chosen.ignore_eos):
                break
            logits = self._after(embeddings, positions, tokens)[-1] if known is None else known[index]
        return tokens, steps

    def _after(self, embeddings: Tensor, positions: Tensor, tokens: list[int]) -> Tensor:
        """(tokens, V) logits behind each of the tokens."""
        thinker = self.model.thinker
        everything = torch.cat([embeddings, thinker.get_input_embeddings()(torch.tensor([tokens]).long())], dim=1)
        places = torch.cat([positions[:, :-1], positions[:, -1:] + torch.arange(len(tokens))], dim=1)
        mask = torch.ones(1, everything.shape[1])
        logits = thinker(inputs_embeds=everything, position_ids=places[:, None], attention_mask=mask).logits[0]
        return logits[embeddings.shape[1] :]


def module() -> types.ModuleType:
    """A module `vllm`, with nothing left of earlier ones."""
    vllm = types.ModuleType("vllm")
    vllm.__version__ = "0.26.0"
    LLM.started, LLM.script, LLM.faults = [], [], set()
    vllm.LLM, vllm.SamplingParams = LLM, SamplingParams
    return vllm
