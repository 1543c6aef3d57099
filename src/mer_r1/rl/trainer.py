"""The RL trainer: TRL's GRPOTrainer with the methods overridden that audio and video, and MER-R1, need.

One step, in the order of this file:

1. sample (`_sample`): G completions per prompt on one prompt KV cache, with their confidences (`rollout`);
2. score (`_calculate_rewards`): one reward per objective (`rewards`);
3. advantages (`_advantages`): the calibration terms and the method's formula (`calibration`, `method`);
4. loss (`_compute_loss`): TRL's clipped loss, whose forward pass sees the clips' media.

TRL calls these methods itself, so what one of them leaves for the next stands in a single attribute, `step`. TRL knows
images only: with audio or video in the prompt it would sample with the media and compute the loss without. Here every
forward pass goes through `_scores`, which puts the clip's cached tower features at the placeholders, passes the true
positions, and computes a prompt once for all its rollouts.

Confidences that sampling left out are read where the rollouts are scored anyway: with the old log-probabilities, or,
while no update lies between, in the loss's own forward. The advantages then follow before the loss uses them; training
batches after the first are read beforehand, since the weight of the calibration terms is that of the whole generation.

The overridden methods are private to TRL, whose version is pinned; ``tests/rl/test_trainer.py`` holds their contract.
Shapes: B prompts, G rollouts each, R = B*G rows, P prompt and T completion tokens, K objectives, C categories.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import RepeatSampler, split_tensor_dict, use_adapter

from mer_r1.emotions.meaning import clustered
from mer_r1.emotions.thinking import FAST_PREFILL
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.errors import UserError
from mer_r1.model.checkpoints import WholeCheckpoints
from mer_r1.model.generation import Sampling
from mer_r1.model.omni import Omni, thinker
from mer_r1.model.prompts import Prompt, absent_channels
from mer_r1.model.shared_prefix.packing import shuffle_groups
from mer_r1.model.shared_prefix.readings import score_rollouts
from mer_r1.rl import statistics
from mer_r1.rl.anchors import category_tokens, scores_of, terms_of
from mer_r1.rl.calibration import category_probabilities
from mer_r1.rl.method import Advantages, Method, method_advantages
from mer_r1.rl.rewards import reward_function
from mer_r1.rl.rollout import Rollouts, fast_confidences, fast_prompt, rollout, texts_to_read
from mer_r1.rl.vllm.correction import importance_ratios


@dataclass
class Step:
    """One generation batch of this process, filled as TRL calls the hooks; each generation makes a new one.

    Attributes:
        clips: R clip indices.
        labels: R gold labels.
        num_generations: G, in training or in evaluation.
        rollouts: the sampled completions and their confidences (`MERR1Trainer._sample`).
        rewards: (rows of all processes, K) rewards, NaN where unscorable (`MERR1Trainer._calculate_rewards`).
        readings: slow and fast confidences of each row that the policy has read so far, (anchors of the row, C) each.
        advantages: (R,) or (R, T), of this process's rows; None until the confidences are known.
        seconds: seconds spent on "sampling" and "scoring".
    """

    clips: list[int]
    labels: list[Any]
    num_generations: int
    rollouts: Rollouts = field(init=False)
    rewards: Tensor = field(init=False)
    readings: dict[int, list[Tensor]] = field(default_factory=dict)
    advantages: Tensor | None = None
    seconds: dict[str, float] = field(default_factory=dict)


class ForClips(NamedTuple):
    """A model, the clip index of each row that it is to score, and the training batch of the rows.

    TRL's loss passes its model on to the forward pass untouched; so the clips of a training batch, which TRL has
    shuffled and split since the generation, travel with the model.
    """

    model: Any
    clips: Sequence[int]
    batch: dict[str, Any] | None = None


def annealed(first: float, final: float, step: int, steps: int) -> float:
    """A weight that falls linearly from `first` to `final` over the first half of `steps`, and stays there."""
    done = min(1.0, 2 * step / max(1, steps))
    return (1 - done) * first + done * final


class EpochSampler(RepeatSampler):
    """TRL's sampler, with the order of an epoch drawn from seed and epoch, so that a resumed run sees the same rows.

    Attributes:
        fast_share: share of the groups, evenly spread over the epoch, that take row N + i instead of row i of N.
    """

    fast_share = 0.0

    def __iter__(self) -> Iterator[int]:
        """Rows in the order of the epoch, each as often as TRL's sampler repeats it."""
        for number, index in enumerate(super().__iter__()):
            batch, place = divmod(number // self.mini_repeat_count, self.batch_size)
            group = batch // self.repeat_count * self.batch_size + place
            is_fast = math.floor((group + 1) * self.fast_share) > math.floor(group * self.fast_share)
            yield index + self.num_samples * is_fast

    def set_epoch(self, epoch: int) -> None:
        """Seed the order of an epoch; TRL's sampler keeps drawing, and a resumed run would repeat the first order."""
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) + epoch)


class MERR1Trainer(WholeCheckpoints, GRPOTrainer):
    """GRPOTrainer for clips: media in every forward pass, rollouts on shared prefixes, MER-R1's advantages.

    Args:
        omni: policy, processor, settings; loaded from a saved checkpoint (TRL reloads the KL reference from there).
        rows: training rows with the columns `prompt`, `labels`, `subtitle` and `clip_index`. Each is also a
            row that answers fast (`fast_share`), whose clip index is ~i, -1 - i, instead of i.
        prompt_of: maps a clip index to its `prompts.Prompt`; called often, so it should cache.
        method: choice of the advantages.
        taxonomy: wheels of the rewards, and of the confidences unless `meaning.clustered` makes others.
        args: TRL's configuration.
        kwargs: passed to GRPOTrainer (callbacks, peft_config).

    Raises:
        UserError: the method needs the starting policy, which these arguments do not keep.

    Attributes:
        prompt_of: `prompt_of` for both kinds of rows.
        step: the latest generation; without clips before the first one.
        sampler: samples in place of `rollout.rollout` (set by `vllm.rollouts.use_vllm`); None for the policy itself.
    """

    def __init__(
        self,
        omni: Omni,
        rows: list[dict[str, Any]],
        prompt_of: Callable[[int], Prompt],
        method: Method,
        taxonomy: Taxonomy,
        args: GRPOConfig,
        **kwargs: Any,
    ) -> None:
        self.omni, self.method = omni, method
        self.taxonomy = clustered(taxonomy, (word for row in rows for word in row["labels"]))
        self.prompt_of = lru_cache(maxsize=4096)(
            lambda index: fast_prompt(omni, prompt_of(~index)) if index < 0 else prompt_of(index)
        )
        self._fast_share: float = getattr(args, "fast_share", 0.0)
        if self._fast_share:
            rows = rows + [row | {"clip_index": ~row["clip_index"]} for row in rows]
        self.categories = category_tokens(self.taxonomy, omni.tokenizer, method.confidence_level)
        self.step = Step([], [], 0)
        self.sampler: Any = None
        self._reference: dict[int, Tensor] = {}
        if method.needs_reference and (args.sync_ref_model or not (args.beta or kwargs.get("peft_config"))):
            raise UserError(
                "calibration=hinge compares with the starting policy, which is not kept: expected beta above 0 or "
                f"LoRA, and sync_ref_model=false, got beta={args.beta}, sync_ref_model={args.sync_ref_model}"
            )
        self._shared: bool = getattr(args, "shared_prefixes", False)
        super().__init__(
            model=kwargs.pop("model", omni.model),
            reward_funcs=[reward_function(name, taxonomy, **method.reward_options) for name in method.objectives],
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=omni.processor,
            rollout_func=self._sample,
            **kwargs,
        )
        self.reward_weights = torch.tensor(method.weights)
        # For TRL's own statistics only: the advantages are the method's.
        self.multi_objective_aggregation = args.multi_objective_aggregation or "sum_then_normalize"

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        # TRL samples, scores and computes its own advantages; the method's replace them. Each row keeps its clip, so
        # that the loss finds the media again after TRL's shuffle and split.
        began, is_first = time.perf_counter(), not self.step.clips
        group = self.num_generations if self.model.training else self.num_generations_eval
        step = self.step = Step([row["clip_index"] for row in inputs], [row["labels"] for row in inputs], group)
        inputs = [row | {"absent": self._absent(row)} for row in inputs] if self.method.absent_channels else inputs
        corrects: bool = self.args.vllm_importance_sampling_correction  # on policy after the loss's own forward
        self.vllm_importance_sampling_correction = corrects and not self._on_policy
        output = super()._generate_and_score_completions(inputs)  # calls `_sample` and `_calculate_rewards`
        self.vllm_importance_sampling_correction = corrects
        place = output.pop("advantages").device  # TRL's are never used
        output["clip_index"], output["row"] = torch.tensor(step.clips).to(place), torch.arange(len(inputs)).to(place)
        self._set_advantages(output)
        sampling = sum(step.rollouts.seconds.values())
        step.seconds = {"sampling": sampling, "scoring": time.perf_counter() - began - sampling}
        self._log({f"seconds/{name}": value for name, value in step.seconds.items()})
        if is_first and self.accelerator.is_main_process:
            prompt, completion = self.prompt_of(step.clips[0]).input_ids, step.rollouts.completion_ids[0]
            statistics.show_rollout(
                self.omni, prompt, completion, step.labels[0], step.rewards[0], self.method.objectives
            )
        return output

    def _sample(self, prompts: list[Any], _: Any) -> dict[str, Any]:
        # TRL repeats every prompt G times in a row, or as often as this process has of its group; each is computed
        # once.
        step = self.step
        group = math.gcd(len(step.clips), step.num_generations)
        distinct = step.clips[::group]
        draw, precision = rollout, self.accelerator.autocast()  # that of scoring
        if self.sampler:  # an engine brings its own precision
            draw, precision = self.sampler.for_clips([max(index, ~index) for index in distinct]), nullcontext()
        with precision:
            step.rollouts = draw(
                self.omni,
                [self.prompt_of(index) for index in distinct],
                group,
                Sampling.of(self.args),
                tokens=self.categories[0] if self.method.calibrates else None,
                fast=self.method.needs_fast,
                prefilled=[FAST_PREFILL if index < 0 else "" for index in distinct],
                model=self.accelerator.unwrap_model(self.model),
            )
        return {
            "prompt_ids": [self.prompt_of(index).input_ids.tolist() for index in step.clips],
            "completion_ids": step.rollouts.completion_ids,
            "logprobs": step.rollouts.logps,
        }

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        # TRL's rewards, gathered over processes. What was prefilled is part of the completion.
        whole = [
            [{**messages[0], "content": FAST_PREFILL + messages[0]["content"]}] if index < 0 else messages
            for index, messages in zip(self.step.clips, completions, strict=True)
        ]
        rewards = super()._calculate_rewards(inputs, prompts, whole, completion_ids_list)
        if getattr(self.args, "fast_rewards", "all") == "format":
            kept = torch.tensor([name == "format" for name in self.method.objectives], device=rewards.device)
            rewards = rewards.masked_fill(self._is_fast()[:, None] & ~kept, torch.nan)
        self.step.rewards = rewards
        return rewards

    @property
    def _on_policy(self) -> bool:
        # Whether no update comes between a generation and the losses of its training batches, by TRL's rule.
        return self.args.gradient_accumulation_steps % (self.args.steps_per_generation * self.num_iterations) == 0

    @property
    def _reads(self) -> bool:
        # Whether the policy still has to read confidences of the latest generation.
        unread = len(self.step.readings) < len(self.step.clips)
        return self.method.calibrates and self.step.rollouts.slow is None and unread

    def _set_advantages(self, batch: dict[str, Any]) -> None:
        # The advantages of the batch's rows, as soon as the confidences of all rows of the generation are known.
        step, rollouts = self.step, self.step.rollouts
        if self._reads:
            return
        if step.readings and rollouts.slow is None:
            kinds = zip(*(step.readings[row] for row in range(len(step.clips))), strict=True)
            rollouts.slow, rollouts.fast = (*map(torch.cat, kinds), None)[:2]
        if step.advantages is None:
            step.advantages = self._of_tokens(self._advantages(step), step, batch["completion_ids"].shape[1])
        batch["advantages"] = step.advantages.to(batch["row"].device)[batch["row"]]

    def _after_forward(self, batch: dict[str, Any], logps: Tensor) -> None:
        # What the loss needs beside the log-probabilities of its own forward, before it reads them.
        if self.use_vllm and self.vllm_importance_sampling_correction and self._on_policy:
            found = importance_ratios(self.args, logps.detach(), batch)
            batch["importance_sampling_ratio"] = found.ratios
            self._log(found.statistics(self.accelerator.gather))
        if "advantages" not in batch:
            self._set_advantages(batch)

    def _advantages(self, step: Step) -> Advantages:
        # Of the rows of all processes: groups may extend over processes, and the share of the terms is the batch's.
        terms, words = self._calibration_terms(step) if self.method.calibrates else ((None, None), None)
        rewards, group, objectives = step.rewards, step.num_generations, self.method.objectives
        found = method_advantages(self.method, rewards, group, *terms, scale_rewards=self.args.scale_rewards)
        logged = statistics.statistics_by_mode(self._is_fast(), rewards, found, objectives, group, terms, words)
        self._log(logged)
        statistics.warn_if_quiet(logged["groups_without_signal"], self.state.global_step)
        mode = "train" if self.model.training else "eval"
        statistics.log_used(self._logs, self._metrics[mode], found, logged["groups_without_signal"])
        return found

    def _absent(self, row: dict[str, Any]) -> list[str]:
        # The channels that a row's clip lacks.
        return absent_channels(self.prompt_of(row["clip_index"]).media, row["subtitle"])

    def _is_fast(self) -> Tensor:
        # (R,) bool, of the rows of all processes.
        return self.accelerator.gather(torch.tensor(self.step.clips, device=self.accelerator.device)) < 0

    def _of_tokens(self, found: Advantages, step: Step, width: int) -> Tensor:
        # (R,) advantages of this process's rows; (R, T) where the tokens before the answer have their own. A completion
        # that never answers is reasoning throughout.
        first = self.accelerator.process_index * len(step.clips)
        tokens, *added = (v[first : first + len(step.clips)] for v in found[:2] if v is not None)
        if not added:
            return tokens
        starts = [answer.start if answer.anchors else width for answer in step.rollouts.answers]
        before = torch.arange(width) < torch.tensor(starts)[:, None]
        return tokens[:, None] + added[0][:, None] * before.to(tokens.device)

    def _calibration_terms(self, step: Step) -> tuple[statistics.Terms, Tensor]:
        # T+, T- and the number of words of each answer, (R,) each, of the rows of all processes.
        # Groups that answer fast have no terms.
        of_rows = self.method, self.taxonomy, self.categories, step.labels, step.rollouts
        slow, fast, *masks = scores_of(*of_rows)
        direct = torch.tensor(step.clips, device=slow.device) < 0
        slow = slow.masked_fill(direct[:, None], torch.nan)
        for name, values in statistics.confidence_statistics(slow, fast, *masks).items():
            self._log({name: statistics.known_mean(self.accelerator.gather(values))})
        terms = terms_of(*of_rows, self._reference_fast(step) if self.method.needs_reference else None)
        words = slow.new_tensor([len(answer.words) for answer in step.rollouts.answers])
        kept = [term.masked_fill(direct, torch.nan) for term in terms if term is not None]
        words, *found = self.accelerator.gather([words, *kept])
        return (*found, None)[:2], words

    def _reference_fast(self, step: Step) -> Tensor:
        # (R, C) fast confidences of the starting policy, once per clip and one clip at a time, so that no rounding
        # depends on a clip's neighbours and a resumed run finds the same. As soon as one process lacks a clip, all
        # compute theirs: where weights are sharded, a forward pass needs every process.
        clips = [max(index, ~index) for index in step.clips]
        lacking = torch.tensor([not self._reference.keys() >= {*clips}], device=self.accelerator.device)
        if bool(self.accelerator.gather(lacking).any()):
            policy = self.accelerator.unwrap_model(self.model if self.ref_model is None else self.ref_model)
            adapter = "ref" if "ref" in getattr(policy, "peft_config", ()) else None
            with nullcontext() if self.ref_model else use_adapter(policy, adapter), self.accelerator.autocast():
                for clip in clips[:: math.gcd(len(step.clips), step.num_generations)]:
                    found = fast_confidences(self.omni, [self.prompt_of(clip)], self.categories[0], policy)
                    self._reference[clip] = found[0].cpu()
        return torch.stack([self._reference[index] for index in clips])

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if (final := getattr(self.args, "beta_final", None)) is not None:
            self.beta = annealed(self.args.beta, final, self.state.global_step, self.state.max_steps)
            self._log({"beta": self.beta})
        loss = super()._compute_loss(ForClips(model, inputs["clip_index"].tolist(), inputs), inputs)
        fast_beta = getattr(self.args, "fast_beta", None)
        return loss if fast_beta is None else loss + (fast_beta - self.beta) * self._fast_divergence(inputs)

    def _fast_divergence(self, inputs: dict[str, Any]) -> Tensor:
        # The KL term of the rows that answer fast, as TRL takes it with loss_type=grpo: the mean over a row's tokens,
        # then over all rows of the batch.
        ahead = inputs["ref_per_token_logps"] - self._scored
        mask = inputs["completion_mask"] * (inputs["clip_index"] < 0)[:, None]
        of_rows = ((ahead.exp() - ahead - 1) * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        steps = self.current_gradient_accumulation_steps if self.model.training else 1
        return of_rows.mean() / steps

    def _log(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._metrics["train"][name].append(value)

    def _get_train_sampler(self, dataset: Any = None) -> EpochSampler:
        like = super()._get_train_sampler(dataset)
        slow_rows = range(len(like.data_source) // (2 if self._fast_share else 1))
        sampler = EpochSampler(
            slow_rows, like.mini_repeat_count, like.batch_size, like.repeat_count, like.shuffle, like.seed
        )
        sampler.fast_share = self._fast_share
        return sampler

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        # TRL's, except that with shared prompts whole groups are shuffled before the batch is split, and that batches
        # after the first are read where the first one's advantages need it.
        if not self.model.training:
            return super()._prepare_inputs(generation_batch)
        steps = self.args.steps_per_generation
        self._buffered_inputs: Any
        if self._step % (steps * self.num_iterations) == 0 or self._buffered_inputs is None:
            size = self.num_generations if self._shared else 1
            scored = shuffle_groups(self._generate_and_score_completions(generation_batch), size)
            self._buffered_inputs = split_tensor_dict(scored, steps)
            if self._reads:
                for later in range(1, steps):
                    self._read(self._buffered_inputs[(self._step + later) % steps])
        return self._buffered_inputs[self._step % steps]

    def _read(self, batch: dict[str, Any]) -> None:
        ids, mask = (torch.cat([batch[f"prompt_{name}"], batch[f"completion_{name}"]], 1) for name in ("ids", "mask"))
        inputs = ids, mask, batch["completion_ids"].shape[1], batch["clip_index"].tolist(), batch["row"].tolist()
        plain = disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs)
        with torch.no_grad(), plain, self.accelerator.autocast():
            self._scores(self.model, *inputs)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        # TRL's method with the clips' media and positions; its image arguments are always None here. In the loss the
        # model brings the clips of its rows; the old and the reference policy score the rows of the generation itself,
        # the old one first.
        model, clips, batch = model if isinstance(model, ForClips) else (model, self.step.clips, None)
        logps: list[Any] = []
        entropies: list[Any] = []
        step = batch_size or len(input_ids)
        rows = range(len(input_ids)) if batch is None else batch["row"].tolist()
        read = rows if (batch is not None or not self._on_policy) and self._reads else ()
        for start in range(0, len(input_ids), step):
            part = slice(start, start + step)
            inputs = input_ids[part], attention_mask[part], logits_to_keep, clips[part], read[part]
            with self.accelerator.autocast():
                logp, entropy = self._scores(model, *inputs)
            logps.append(logp)
            if compute_entropy:
                entropies.append(entropy)
        self._scored = torch.cat(logps)
        if batch is not None:
            self._after_forward(batch, self._scored)
        return self._scored, torch.cat(entropies) if compute_entropy else None, None

    def _scores(
        self, model: Any, ids: Tensor, mask: Tensor, completion_tokens: int, clips: Sequence[int], rows: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]:
        # Log-probabilities and entropies (R, T) of the completions; the confidences of the given rows go to the step.
        step, policy = self.step, thinker(self.accelerator.unwrap_model(model))
        completions = [(step.rollouts.completion_ids[row], step.rollouts.answers[row]) for row in rows]
        texts = texts_to_read(self.omni, completions, self.method.needs_fast)
        prompts, tokens = [self.prompt_of(index) for index in clips], slice(-completion_tokens, None)
        scored = prompts, clips, ids[:, tokens], mask[:, tokens], self.omni.tokenizer.pad_token_id
        logps, entropies, logits = score_rollouts(model, policy, *scored, texts, self._shared)
        for row, found in zip(rows, logits, strict=True):
            step.readings[row] = [category_probabilities(each, self.categories[0]) for each in found]
        return logps, entropies

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any) -> Tensor:
        """TRL's step; time that is neither sampling nor scoring is logged as training."""
        began, before = time.perf_counter(), self.step
        loss = super().training_step(model, inputs, num_items_in_batch)
        generating = 0.0 if self.step is before else sum(self.step.seconds.values())
        self._log({"seconds/training": time.perf_counter() - began - generating})
        return loss
