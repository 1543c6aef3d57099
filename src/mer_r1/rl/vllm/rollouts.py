"""Sampling with vLLM, for policies that spend most of a step on rollouts: the same `Rollouts` from another engine.

Each prompt is sent once, unexpanded and with its frames and waveform, and completed G times. The engine returns the
tokens that it read; they must equal those of our own prompt, otherwise training would score another text than was
sampled. After each update the language model's weights go to the engine; the frozen towers are loaded once.

Confidences are read at the anchors. If the categories' tokens fit into a few requests of 128, the engine returns their
log-probabilities after each anchor's context, with and without the reasoning, on the keys and values that sampling left
in its cache: the numbers that the policy's own forward pass would give. Otherwise they are left out here, and the
trainer reads them in a forward pass that it makes anyway.

Engine and policy differ slightly (kernels, precision): TRL weighs each token by the truncated ratio of the two
(`vllm_importance_sampling_*`) and logs the gap as `sampling/sampling_logp_difference`.

The engine runs in this process (`vllm.colocated`) or on a server (`vllm.server`), as TRL's `vllm_mode` says.
Source: docs/vllm.md; docs/paper_map.md, "Slow-fast confidence calibration".
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mer_r1.data.clip import Clip
from mer_r1.data.media.read import read_media
from mer_r1.emotions.thinking import ThinkingMode, prefill
from mer_r1.errors import UserError
from mer_r1.model.generation import Sampling
from mer_r1.model.omni import Omni
from mer_r1.model.prompts import Prompt
from mer_r1.rl.anchors import AnswerTokens
from mer_r1.rl.calibration import CategoryTokens
from mer_r1.rl.rollout import Clock, Rollouts, anchor_rows, find_answers
from mer_r1.rl.vllm.colocated import MOST_TOKEN_IDS, Asked, Colocated, Engine, OmniGeneration
from mer_r1.rl.vllm.engine import id_difference, media_of, unexpanded
from mer_r1.rl.vllm.server import Served

logger = logging.getLogger(__name__)

MOST_REQUESTS = 4
"""Requests per anchor up to which the engine computes the confidences; above, the policy reads them."""

SETTINGS: tuple[str, ...] = ("mode", "server_base_url", "server_host", "server_port", "server_timeout", "group_port")
SETTINGS += ("tensor_parallel_size", "gpu_memory_utilization", "max_model_length", "enable_sleep_mode")
"""TRL's arguments `vllm_*` that its `VLLMGeneration` takes under the same names."""


class VllmRollouts:
    """Makes functions that replace `rollout.rollout` in the trainer.

    Args:
        omni: policy, tokenizer, settings.
        clips: clip of each index, for its media.
        generation: TRL's side of the engine.
        engine: engine that samples.
        confidences: "engine", "policy" or "auto" (the engine if `MOST_REQUESTS` suffice).
    """

    def __init__(
        self,
        omni: Omni,
        clips: Sequence[Clip],
        generation: OmniGeneration,
        engine: Engine,
        confidences: str = "auto",
    ) -> None:
        self.omni, self.clips, self.generation, self.engine = omni, clips, generation, engine
        self.confidences = confidences
        self._logged = False

    def for_clips(self, indices: Sequence[int]) -> Callable[..., Rollouts]:
        """`rollout.rollout` for the prompts of these clips."""
        return partial(self._rollout, [self.clips[index] for index in indices])

    def _rollout(
        self,
        clips: Sequence[Clip],
        omni: Omni,
        prompts: Sequence[Prompt],
        num_generations: int,
        sampling: Sampling,
        tokens: CategoryTokens | None = None,
        fast: bool = False,
        prefilled: str | Sequence[str] = "",
        model: Any = None,
    ) -> Rollouts:
        clock = Clock()
        with ThreadPoolExecutor(min(8, len(clips))) as pool:
            openings = [prefilled] * len(clips) if isinstance(prefilled, str) else prefilled
            asked = list(map(Asked, clips, pool.map(partial(request_of, omni), prompts, clips), openings))
        clock.lap("media")
        # A greedy request is sent once: vLLM refuses n > 1, and all completions would be equal.
        copies = num_generations if sampling.temperature == 0 else 1
        with self.generation.awake():
            sampled = self.engine.sample(asked, num_generations // copies, sampling, omni)
            check_prompts(omni, prompts, [ids for ids, _ in sampled], clips)
            completions = [one for _, group in sampled for one in group * copies]
            ids, logps = [one.ids for one in completions], [one.logps for one in completions]
            result = Rollouts(ids, logps, anchor_rows([]), seconds=clock.seconds)
            clock.lap("decode")
            if tokens is None:
                return result
            result.answers = answers = find_answers(omni, ids, prefilled, len(prompts), fast)
            result.anchor_rollout = anchor_rows(answers)
            if self._by_engine(tokens):
                requests = [one.request for one in asked for _ in range(num_generations)]
                result.slow = self._score(requests, contexts(ids, answers), tokens)
                clock.lap("slow")
                if fast:
                    head = omni.tokenizer(prefill(ThinkingMode.FAST))["input_ids"]
                    result.fast = self._score(requests, contexts(ids, answers, head), tokens)
                    clock.lap("fast")
        return result

    def _by_engine(self, tokens: CategoryTokens) -> bool:
        needed = -(-len(tokens.token_ids.unique()) // MOST_TOKEN_IDS)
        able = isinstance(self.engine, Colocated)
        chosen = able and (self.confidences == "engine" or (self.confidences == "auto" and needed <= MOST_REQUESTS))
        if not self._logged:
            self._logged = True
            logger.info(
                "confidences: %s (%d requests of %d tokens per anchor; vllm_confidences=%s)",
                "computed by vLLM" if chosen else "computed by the policy in a pass that scores the rollouts",
                needed,
                MOST_TOKEN_IDS,
                self.confidences,
            )
        return chosen

    def _score(
        self, requests: Sequence[dict[str, Any]], after: Sequence[tuple[int, list[int]]], tokens: CategoryTokens
    ) -> Tensor:
        asked = [
            {**requests[row], "prompt_token_ids": [*requests[row]["prompt_token_ids"], *ids]} for row, ids in after
        ]
        token_ids = tokens.token_ids.unique()
        probabilities = self.engine.score(asked, token_ids.tolist()).exp()  # type: ignore[attr-defined]
        zeros = probabilities.new_zeros(len(asked), tokens.num_categories)
        columns = torch.searchsorted(token_ids, tokens.token_ids)
        return zeros.index_add(1, tokens.category, probabilities[:, columns]).to(self.omni.device)


def use_vllm(trainer: Any, clips: Sequence[Clip], confidences: str = "auto") -> None:
    """Make a trainer sample with vLLM; TRL's `use_vllm` is set only now, so that its images-only engine never starts.

    Args:
        trainer: a `MERR1Trainer`; its arguments hold the settings (`vllm_mode`, `vllm_gpu_memory_utilization`, ...).
        clips: clip of each `clip_index`.
        confidences: see `VllmRollouts`.

    Raises:
        UserError: vLLM is not installed, or an argument is not supported.
    """
    args = trainer.args
    if args.vllm_tensor_parallel_size != 1:
        raise UserError("vllm_tensor_parallel_size: rollouts=vllm runs one engine on each GPU, expected 1")
    generation = OmniGeneration(
        model=trainer.model,
        accelerator=trainer.accelerator,
        processing_class=trainer.processing_class,
        max_num_seqs=args.per_device_train_batch_size * args.steps_per_generation,
        **{name: getattr(args, f"vllm_{name}") for name in SETTINGS},
    )
    engine: Engine = (
        Colocated(generation)
        if args.vllm_mode == "colocate"
        else Served(args.vllm_server_base_url or f"http://{args.vllm_server_host}:{args.vllm_server_port}")
    )
    trainer.use_vllm, trainer.vllm_generation, trainer._last_loaded_step = True, generation, -1
    trainer.sampler = VllmRollouts(trainer.omni, clips, generation, engine, confidences)


def request_of(omni: Omni, prompt: Prompt, clip: Clip) -> dict[str, Any]:
    """The request about a clip (vLLM's `TokensPrompt`): the unexpanded prompt, and the media as in training."""
    parts = media_of(read_media(clip.video, clip.audio, omni.settings.limits()), omni.processor)
    # Named, so that the engine recognises a clip without hashing every pixel.
    name = f"{clip.id}/{omni.settings.limits()}"
    uuids = {channel: [f"{name}/{channel}"] for channel in parts.get("multi_modal_data", ())}
    ids = unexpanded(prompt.input_ids.tolist(), placeholders(omni))
    return {"prompt_token_ids": ids, **parts} | ({"multi_modal_uuids": uuids} if uuids else {})


def placeholders(omni: Omni) -> dict[int, str]:
    """Placeholder tokens of the media -> channel."""
    return {omni.model.config.video_token_id: "video", omni.model.config.audio_token_id: "audio"}


def check_prompts(omni: Omni, prompts: Sequence[Prompt], read: Sequence[Sequence[int]], clips: Sequence[Clip]) -> None:
    """Check that the engine has read the tokens that training will score.

    Raises:
        UserError: the tokens of a clip differ; the message names the first one and the difference.
    """
    for prompt, ids, clip in zip(prompts, read, clips, strict=True):
        if problem := id_difference(prompt.input_ids.tolist(), ids, placeholders(omni)):
            raise UserError(f"clip {clip.id}: vLLM read another prompt than ours: {problem} (see mer-r1 parity)")


def contexts(
    ids: Sequence[list[int]], answers: Sequence[AnswerTokens], head: list[int] | None = None
) -> list[tuple[int, list[int]]]:
    """The rollout of each anchor, and the completion tokens before it; `head` replaces those before the answer."""
    return [
        (row, ids[row][:anchor] if head is None else head + ids[row][answer.start : anchor])
        for row, answer in enumerate(answers)
        for anchor in answer.anchors
    ]
