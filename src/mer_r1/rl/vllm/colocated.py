"""vLLM in the training process: engine, weight updates (of a server too), completions and log-probabilities.

TRL's vLLM classes collect images only. `OmniGeneration` is TRL's class with three changes: it starts the engine for
audio and video, sends weights under the names that vLLM's omni model loads, and sends only the language model's: the
towers are frozen, the engine has read them itself, and the policy may not even hold them. `Colocated` asks that engine
for completions, and for the log-probabilities of chosen tokens after any text.

docs/engines.md says what was run with vLLM itself; tests compare the rest with the published signatures.
Source: docs/vllm.md; TRL 1.16 `generation/vllm_generation.py`; vLLM `sampling_params.py` and, for the names,
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
from mer_r1.rl.vllm.engine import TOWERS, bad_words, required, start, weight_name

MOST_TOKEN_IDS = 128
"""Limit of the tokens whose log-probabilities one request returns (vLLM: MAX_LOGPROB_TOKEN_IDS)."""
MOST_BATCHED_TOKENS = 8192
"""Tokens per engine step; the media of one prompt must fit."""
BANNED = -100.0
"""Logit bias of tokens that must not be sampled; the lowest value that vLLM's servers accept."""


@dataclass(frozen=True)
class Completion:
    """One sampled completion: its tokens, the end token included, and their log-probabilities when drawn."""

    ids: list[int]
    logps: list[float]


Sampled = list[tuple[list[int], list[Completion]]]
"""For each prompt, its tokens as the engine read them, and its G completions."""


@dataclass(frozen=True)
class Asked:
    """One prompt to sample from.

    Attributes:
        clip: its clip.
        request: the request to vLLM in this process (`TokensPrompt`).
        prefilled: text at the prompt's end that the completions continue.
    """

    clip: Clip
    request: dict[str, Any]
    prefilled: str = ""


class Engine(Protocol):
    """An engine that samples: in this process or on a server."""

    def sample(self, asked: Sequence[Asked], num_generations: int, sampling: Sampling, omni: Omni) -> Sampled:
        """G completions for each prompt."""


class OmniGeneration(VLLMGeneration):
    """TRL's vLLM generation for an omni model: started for audio and video, synced under vLLM's weight names."""

    def _init_vllm(self) -> None:
        if self.mode == "server":
            required("rollouts=vllm")
            super()._init_vllm()
            return
        # One engine per process, as TRL starts it.
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
        """Precision of the engine, equal to that of the training."""
        mixed = {"bf16": "bfloat16", "fp16": "float16"}
        return mixed.get(self.accelerator.mixed_precision, str(self.model.dtype).removeprefix("torch."))

    def _fix_param_name_to_vllm(self, name: str, extra_prefixes: list[str] | None = None) -> str:
        return weight_name(super()._fix_param_name_to_vllm(name, extra_prefixes))

    def _iter_named_params(self) -> Iterator[tuple[str, Tensor]]:
        for name, weight in super()._iter_named_params():
            if not name.startswith(TOWERS):
                yield name, weight

    def sync_weights(self) -> None:
        """Send the policy's weights, adapters merged, to the engine and clear its cache."""
        super().sync_weights()
        self.accelerator.wait_for_everyone()  # every process sends its own requests to a server

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Keep the engine awake inside the context; otherwise it sleeps if `vllm_enable_sleep_mode` is set.

        It sleeps at level 1, with its weights in main memory. TRL's level 2 discards them, towers included, which the
        policy cannot send again.
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
    """The engine in this process, which TRL's side has started."""

    def __init__(self, generation: OmniGeneration) -> None:
        self.generation = generation

    def sample(self, asked: Sequence[Asked], num_generations: int, sampling: Sampling, omni: Omni) -> Sampled:
        """See `Engine.sample`."""
        parameters = self.generation.vllm.SamplingParams(
            n=num_generations,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            max_tokens=sampling.max_new_tokens,
            seed=sampling.seed,
            logprobs=0,
            stop_token_ids=omni.eos_ids,
            logit_bias=dict.fromkeys(omni.forbidden_ids, BANNED),
            bad_words=bad_words(omni.settings),
            detokenize=False,
        )
        outputs = self.generation.llm.generate([one.request for one in asked], parameters, use_tqdm=False)
        return [(list(output.prompt_token_ids), list(map(completion_of, output.outputs))) for output in outputs]

    def score(self, requests: Sequence[dict[str, Any]], token_ids: Sequence[int]) -> Tensor:
        """Log-probabilities (contexts, tokens) of chosen next tokens at temperature 1, `MOST_TOKEN_IDS` a request."""
        if not requests:  # no answer contains a word
            return torch.empty(0, len(token_ids))
        chunks = [list(token_ids[i : i + MOST_TOKEN_IDS]) for i in range(0, len(token_ids), MOST_TOKEN_IDS)]
        asked = [(request, chunk) for request in requests for chunk in chunks]
        parameters = [
            self.generation.vllm.SamplingParams(
                max_tokens=1, temperature=1.0, logprob_token_ids=chunk, detokenize=False, ignore_eos=True
            )
            for _, chunk in asked
        ]
        outputs = self.generation.llm.generate([request for request, _ in asked], parameters, use_tqdm=False)
        steps = [(chunk, output.outputs[0].logprobs[0]) for (_, chunk), output in zip(asked, outputs, strict=True)]
        values = [step[token].logprob for chunk, step in steps for token in chunk]
        return torch.tensor(values).view(len(requests), len(token_ids))


def completion_of(said: Any) -> Completion:
    """A completion from vLLM's `CompletionOutput`, whose log-probabilities were asked for."""
    ids = list(said.token_ids)
    return Completion(ids, [step[token].logprob for token, step in zip(ids, said.logprobs, strict=True)])
