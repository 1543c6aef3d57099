"""What samples with vLLM: the engine in this process, and the way of the weights to it or to a server.

TRL's vLLM classes collect images only. `OmniGeneration` is TRL's own class with three things of ours: the engine is
started for audio and video, weights go out under the names that vLLM's omni model loads, and of those only the language
model's: the towers are frozen, the engine has read them itself, and the policy may not even hold them. `Colocated` asks
that engine for completions, and for the log-probabilities of chosen tokens behind any text.

vLLM itself was not run where this was written: tests hold it against the published signatures.
Source: ENGINE.md, "vLLM"; TRL 1.16 `generation/vllm_generation.py`; vLLM `sampling_params.py` and, for the names,
`model_executor/models/qwen2_5_omni_thinker.py`.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer.utils import ensure_master_addr_port

from mer_r1.data.clip import Clip
from mer_r1.model.generation import Sampling
from mer_r1.model.omni import Omni
from mer_r1.rl.vllm.engine import TOWERS, required, start, weight_name

MOST_TOKEN_IDS = 128
"""Tokens that one request may ask the log-probabilities of (vLLM: MAX_LOGPROB_TOKEN_IDS)."""
MOST_BATCHED_TOKENS = 8192
"""Tokens of one engine step: the whole media of one prompt have to fit."""
BANNED = -100.0
"""Bias of the logits of tokens that must not be sampled; the least that vLLM's servers take."""


@dataclass(frozen=True)
class Completion:
    """One sampled completion: its tokens, the closing one included, and their log-probabilities when drawn."""

    ids: list[int]
    logps: list[float]


Sampled = list[tuple[list[int], list[Completion]]]
"""For each prompt its tokens as the engine read them, and its G completions."""


@dataclass(frozen=True)
class Asked:
    """One prompt to sample from.

    Attributes:
        clip: what it is about.
        request: as vLLM takes it in this process (`TokensPrompt`).
    """

    clip: Clip
    request: dict[str, Any]


class Engine(Protocol):
    """What samples: the engine in this process or a server."""

    def sample(self, asked: Sequence[Asked], num_generations: int, sampling: Sampling, omni: Omni) -> Sampled:
        """G completions for each prompt."""


class OmniGeneration(VLLMGeneration):
    """TRL's vLLM generation with an omni model in this process: started for audio and video, synced by vLLM's names."""

    def _init_vllm(self) -> None:
        if self.mode == "server":
            required("rollouts=vllm")
            super()._init_vllm()
            return
        # One engine a process, as TRL starts it.
        place = self.accelerator
        os.environ |= {
            "RANK": str(place.process_index),
            "LOCAL_RANK": str(place.local_process_index),
            "WORLD_SIZE": str(place.num_processes),
        }
        ensure_master_addr_port()
        self.vllm, self.llm = start(
            self.model.name_or_path,
            "rollouts=vllm",
            dtype=self.dtype,
            gpu_memory_utilization=self.gpu_memory_utilization,
            max_model_len=self.max_model_length,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=MOST_BATCHED_TOKENS,
            enable_sleep_mode=self.enable_sleep_mode,
            distributed_executor_backend="external_launcher",
            seed=place.process_index,
            logprobs_mode="processed_logprobs",
            max_logprobs=MOST_TOKEN_IDS,
        )
        self._llm_weights_sleeping = False
        place.wait_for_everyone()

    @property
    def dtype(self) -> str:
        """Precision of the engine: that of the training."""
        mixed = {"bf16": "bfloat16", "fp16": "float16"}
        return mixed.get(self.accelerator.mixed_precision, str(self.model.dtype).removeprefix("torch."))

    def _fix_param_name_to_vllm(self, name: str, extra_prefixes: list[str] | None = None) -> str:
        return weight_name(super()._fix_param_name_to_vllm(name, extra_prefixes))

    def _iter_named_params(self) -> Iterator[tuple[str, Tensor]]:
        for name, weight in super()._iter_named_params():
            if not name.startswith(TOWERS):
                yield name, weight

    def sync_weights(self) -> None:
        """Hand the policy's weights to the engine, adapters merged, and forget what it has cached under the old."""
        super().sync_weights()
        self.accelerator.wait_for_everyone()  # of a server, every process asks by itself

    @contextmanager
    def awake(self) -> Iterator[None]:
        """The engine for a while; between, it sleeps if `vllm_enable_sleep_mode` says so.

        It sleeps at level 1, its weights in the machine's memory. TRL's level 2 forgets them, towers included, and the
        policy could not bring those back.
        """
        sleeps = self.enable_sleep_mode and self.mode == "colocate"
        if sleeps:
            self.llm.wake_up(tags=[*(["weights"] if self._llm_weights_sleeping else []), "kv_cache"])
            self._llm_weights_sleeping = False
        yield
        if sleeps:
            self.llm.sleep(level=1)
            self._llm_weights_sleeping = True


class Colocated:
    """The engine in this process.

    Args:
        generation: started.
    """

    def __init__(self, generation: OmniGeneration) -> None:
        self.generation = generation

    def sample(self, asked: Sequence[Asked], num_generations: int, sampling: Sampling, omni: Omni) -> Sampled:
        """See `Engine.sample`."""
        greedy = sampling.temperature == 0  # asked for once then: vLLM refuses n > 1, and all would be the same
        parameters = self.generation.vllm.SamplingParams(
            n=1 if greedy else num_generations,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens,
            seed=sampling.seed,
            logprobs=0,
            stop_token_ids=omni.eos_ids,
            logit_bias=dict.fromkeys(omni.forbidden_ids, BANNED),
            detokenize=False,
        )
        outputs = self.generation.llm.generate([one.request for one in asked], parameters, use_tqdm=False)
        return [
            (
                list(output.prompt_token_ids),
                [_completion(said) for said in output.outputs] * (num_generations if greedy else 1),
            )
            for output in outputs
        ]

    def score(self, requests: Sequence[dict[str, Any]], token_ids: Sequence[int]) -> Tensor:
        """Log-probabilities of chosen next tokens, under the policy itself: temperature 1, nothing banned.

        Args:
            requests: contexts.
            token_ids: asked for in requests of at most `MOST_TOKEN_IDS`.

        Returns:
            (contexts, tokens).
        """
        if not requests:  # no answer has a word
            return torch.empty(0, len(token_ids))
        chunks = [list(token_ids[i : i + MOST_TOKEN_IDS]) for i in range(0, len(token_ids), MOST_TOKEN_IDS)]
        parameters = [
            self.generation.vllm.SamplingParams(
                max_tokens=1, temperature=1.0, logprob_token_ids=chunk, detokenize=False, ignore_eos=True
            )
            for chunk in chunks
        ]
        outputs = iter(
            self.generation.llm.generate(
                [request for request in requests for _ in chunks], parameters * len(requests), use_tqdm=False
            )
        )
        found = [
            [step[token].logprob for token in chunk]
            for _ in requests
            for chunk, step in ((chunk, next(outputs).outputs[0].logprobs[0]) for chunk in chunks)
        ]
        return torch.tensor([value for row in found for value in row]).view(len(requests), len(token_ids))


def _completion(said: Any) -> Completion:
    ids = list(said.token_ids)
    return Completion(ids, [step[token].logprob for token, step in zip(ids, said.logprobs, strict=True)])
