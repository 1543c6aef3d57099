"""The trainer of RL: TRL's, with only the seams overridden that audio and video, and the method, need.

TRL's GRPOTrainer collects images only. With audio or video in the prompt it would sample with the media and compute the
loss without. Here every forward goes through `_plain_scores` or `_packed_scores`, which put the clip's cached tower
features at the placeholders and hand on the true positions, the second with a prompt computed once for all its
rollouts. What else is ours: sampling on one prompt KV cache per group (`rollout`), and the method's advantages in place
of TRL's.

The overridden methods are private to TRL, which is pinned; ``tests/rl/test_trainer.py`` holds their contract.
Shapes: B prompts, G rollouts each, R = B*G rows, P prompt and T completion tokens.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler, split_tensor_dict

from mer_r1.emotions.wheels import Taxonomy
from mer_r1.model.generation import Sampling
from mer_r1.model.omni import Omni, WholeCheckpoints, thinker
from mer_r1.model.prompts import IGNORE, Prompt
from mer_r1.model.shared_prefix.attention import packed_inputs
from mer_r1.model.shared_prefix.packing import pack_rollouts, shuffle_groups
from mer_r1.model.tower_outputs import media_embedded, placeholder_ids
from mer_r1.rl.advantages import MIN_SPREAD, group_spread
from mer_r1.rl.anchors import category_mask, category_tokens
from mer_r1.rl.calibration import calibration_terms, confidence, known_categories, partition_mean
from mer_r1.rl.interference import objective_statistics
from mer_r1.rl.method import Method, method_advantages
from mer_r1.rl.rewards import reward_function
from mer_r1.rl.rollout import Rollouts, rollout

logger = logging.getLogger(__name__)

QUIET_SHARE = 0.5
"""Above this share of groups without any signal in a batch, training says so."""


class EpochSampler(RepeatSampler):
    """TRL's, with the order of an epoch drawn from seed and epoch: a resumed run meets what it would have met."""

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch; TRL's own goes on drawing, and a resumed run would begin with the first order."""
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) + epoch)


class MERR1Trainer(WholeCheckpoints, GRPOTrainer):
    """GRPOTrainer for clips: media in every forward, shared-prefix rollouts, MER-R1's advantages.

    Args:
        omni: policy, processor, settings; loaded from a saved checkpoint (TRL reloads the KL reference from there).
        rows: training rows with the columns `prompt`, `labels` and `clip_index`.
        prompt_of: the `prompts.Prompt` of a clip index; called often, so it should remember.
        method: which advantages.
        taxonomy: wheels of the rewards and of the confidences.
        args: TRL's configuration.
        kwargs: handed on to GRPOTrainer (callbacks, peft_config).
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
        self.omni, self.prompt_of, self.method, self.taxonomy = omni, prompt_of, method, taxonomy
        self.category_tokens, self.category_names = category_tokens(taxonomy, omni.tokenizer, method.confidence_level)
        self._gold: dict[int, list[bool]] = {
            row["clip_index"]: category_mask(row["labels"], taxonomy, self.category_names) for row in rows
        }
        self._clips: list[int] = []  # the clip of each row that is being scored
        self._rollouts: Rollouts | None = None
        self.sampler: Any = None  # set by `vllm.rollouts.use_vllm`
        self._shown = False
        self._shared: bool = getattr(args, "shared_prefixes", False)
        args.reward_weights = list(method.weights)
        super().__init__(
            model=kwargs.pop("model", omni.model),
            reward_funcs=[reward_function(name, taxonomy, method.distinct_words) for name in method.objectives],
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=omni.processor,
            rollout_func=self._sample,
            **kwargs,
        )

    def _sample(self, prompts: list[Any], _: Any) -> dict[str, Any]:
        # TRL hands over every prompt G times in a row, or the part of a group that is this process's; each is computed
        # once.
        group = math.gcd(len(self._clips), self.num_generations if self.model.training else self.num_generations_eval)
        distinct = [self.prompt_of(index) for index in self._clips[::group]]
        sampling = Sampling(self.max_completion_length, self.temperature, self.args.top_p)
        draw = self.sampler.about(self._clips[::group]) if self.sampler else rollout
        self._rollouts = draw(
            self.omni,
            distinct,
            group,
            sampling,
            tokens=self.category_tokens if self.method.calibrates else None,
            fast=self.method.calibrates,
            model=self.accelerator.unwrap_model(self.model),
        )
        return {
            "prompt_ids": [self.prompt_of(index).input_ids.tolist() for index in self._clips],
            "completion_ids": self._rollouts.completion_ids,
            "logprobs": self._rollouts.logps,
        }

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        # TRL samples, scores and computes its own advantages; ours replace them, and each row keeps its clip, so that
        # the loss finds the media again after TRL's shuffle and split.
        began = time.perf_counter()
        self._clips = [row["clip_index"] for row in inputs]
        output = super()._generate_and_score_completions(inputs)
        output["advantages"] = self._method_advantages(len(inputs)).to(output["advantages"])
        output["clip_index"] = torch.tensor(self._clips, device=output["advantages"].device)
        sampling = sum(self._rollouts.seconds.values()) if self._rollouts else 0.0
        self._log_seconds("sampling", sampling)
        self._log_seconds("scoring", time.perf_counter() - began - sampling)
        self._show_one(inputs)
        return output

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        # TRL's rewards, gathered over processes; kept for our advantages.
        self._rewards = super()._calculate_rewards(*args, **kwargs)
        return self._rewards

    def _method_advantages(self, rows: int) -> Tensor:
        group = self.num_generations if self.model.training else self.num_generations_eval
        delta_correct = delta_incorrect = None
        if self.method.calibrates:
            delta_correct, delta_incorrect = (self.accelerator.gather(term) for term in self._calibration_terms(rows))
        self._log_groups(group, delta_correct, delta_incorrect)
        advantages = method_advantages(self.method, self._rewards, group, delta_correct, delta_incorrect)
        statistics = objective_statistics(self._rewards, advantages, self.method.objectives, group)
        for name, value in statistics.items():
            self._metrics["train"][f"interference/{name}"].append(value)
        first = self.accelerator.process_index * rows
        return advantages[first : first + rows]

    def _calibration_terms(self, rows: int) -> tuple[Tensor, Tensor]:
        sampled = self._rollouts
        if sampled is None or sampled.slow is None or sampled.fast is None:
            raise RuntimeError("the rollouts carry no confidences, although the method calibrates")
        slow, fast = (
            confidence(values, sampled.anchor_rollout.to(values.device), rows, self.method.anchors)
            for values in (sampled.slow, sampled.fast)
        )
        partition = self.category_tokens.partition.to(slow.device)
        correct = torch.tensor([self._gold[index] for index in self._clips], device=slow.device)
        known = known_categories(correct, partition)
        for name, scores in (("slow", slow), ("fast", fast)):
            for side, mask in (("correct", correct & known), ("incorrect", ~correct & known)):
                mean = partition_mean(scores.exp().nan_to_num(0.0), mask, partition)
                mean = self.accelerator.gather(mean.masked_fill(scores.isnan().any(dim=1), torch.nan))
                self._metrics["train"][f"confidence/{name}_{side}"].append(self._mean(mean))
        return calibration_terms(slow, fast, correct, known, partition, self.method.confidence_clip)

    def _log_groups(self, group: int, *terms: Tensor | None) -> None:
        metrics = self._metrics["train"]
        spreads = {
            name: group_spread(self._rewards[:, column], group)[::group]
            for column, name in enumerate(self.method.objectives)
        }
        for name, spread in spreads.items():
            metrics[f"spread/{name}"].append(spread.mean().item())
        for name, term in zip(("delta_correct", "delta_incorrect"), terms, strict=True):
            if term is not None:
                metrics[f"calibration/{name}"].append(self._mean(term))
        quiet = torch.stack([spread <= MIN_SPREAD for spread in spreads.values()]).all(dim=0).float().mean().item()
        metrics["groups_without_signal"].append(quiet)
        if quiet > QUIET_SHARE:
            logger.warning(
                "step %d: all rewards are equal in %.0f %% of the groups; they teach nothing (temperature too low, "
                "completions cut off, or labels no wheel can place?)",
                self.state.global_step,
                100 * quiet,
            )

    @staticmethod
    def _mean(values: Tensor) -> float:
        known = values[~values.isnan()]
        return known.mean().item() if len(known) else float("nan")

    def _log_seconds(self, what: str, seconds: float) -> None:
        self._metrics["train"][f"seconds/{what}"].append(seconds)

    def _show_one(self, inputs: Sequence[dict[str, Any]]) -> None:
        if self._shown or not self.accelerator.is_main_process or self._rollouts is None:
            return
        self._shown = True
        prompt = self.omni.tokenizer.decode(self.prompt_of(self._clips[0]).input_ids)
        for token in (self.omni.processor.video_token, self.omni.processor.audio_token):
            count = prompt.count(token)
            prompt = prompt.replace(token * count, f"{token} x{count}") if count else prompt
        names = ", ".join(self.method.objectives)
        rewards = ", ".join(f"{value:.2f}" for value in self._rewards[0].tolist())
        completion = self.omni.tokenizer.decode(self._rollouts.completion_ids[0])
        logger.info("first rollout\n%s%s\ngold: %s\n%s: %s", prompt, completion, inputs[0]["labels"], names, rewards)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._clips = inputs["clip_index"].tolist()
        return super()._compute_loss(model, inputs)

    def _get_train_sampler(self, dataset: Any = None) -> EpochSampler:
        like = super()._get_train_sampler(dataset)
        return EpochSampler(
            like.data_source, like.mini_repeat_count, like.batch_size, like.repeat_count, like.shuffle, like.seed
        )

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        # TRL's, but where prompts are shared, it is whole groups that are shuffled before the batch is split.
        if not (self._shared and self.model.training):
            return super()._prepare_inputs(generation_batch)
        steps = self.args.steps_per_generation
        self._buffered_inputs: Any
        if self._step % (steps * self.num_iterations) == 0 or self._buffered_inputs is None:
            scored = shuffle_groups(self._generate_and_score_completions(generation_batch), self.num_generations)
            self._buffered_inputs = split_tensor_dict(scored, steps)
        return self._buffered_inputs[self._step % steps]

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
        # TRL's method with the clips' media and positions; its image arguments are always None here.
        logps: list[Any] = []
        entropies: list[Any] = []
        step = batch_size or len(input_ids)
        scored = self._packed_scores if self._shared else self._plain_scores
        for start in range(0, len(input_ids), step):
            part = slice(start, start + step)
            with self.accelerator.autocast():
                logp, entropy = scored(model, input_ids[part], attention_mask[part], logits_to_keep, self._clips[part])
            logps.append(logp)
            if compute_entropy:
                entropies.append(entropy)
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None

    def _plain_scores(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, completion_tokens: int, clips: Sequence[int]
    ) -> tuple[Tensor | None, ...]:
        labels = input_ids.masked_fill(attention_mask == 0, IGNORE)
        labels[:, :-completion_tokens] = IGNORE
        prompts = [self.prompt_of(index) for index in clips]
        width = input_ids.shape[1] - completion_tokens
        positions = input_ids.new_zeros(3, *input_ids.shape, dtype=prompts[0].position_ids.dtype)
        after = torch.arange(completion_tokens, device=input_ids.device)
        for row, prompt in enumerate(prompts):
            positions[:, row, width - len(prompt.input_ids) : width] = prompt.position_ids.to(input_ids.device)
            positions[:, row, width:] = prompt.next_position + after
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": positions, "labels": labels}
        with media_embedded(thinker(self.accelerator.unwrap_model(model)), [prompt.media for prompt in prompts]):
            output = model(**inputs, fused_lm_head=True)
        return tuple(
            values if values is None else values[:, -completion_tokens:]
            for values in (output.log_probs, output.entropy)  # the reference has no entropy
        )

    def _packed_scores(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, completion_tokens: int, clips: Sequence[int]
    ) -> tuple[Tensor | None, ...]:
        policy = thinker(self.accelerator.unwrap_model(model))
        packed = pack_rollouts(
            [self.prompt_of(index) for index in clips],
            clips,
            input_ids[:, -completion_tokens:],
            attention_mask[:, -completion_tokens:],
            self.omni.tokenizer.pad_token_id,
            placeholder_ids(policy),
        )
        media = packed.batch.pop("media")
        inputs = packed_inputs(policy, send_to_device(packed.batch, input_ids.device))
        with media_embedded(policy, media):
            output = model(**inputs, fused_lm_head=True)
        return tuple(
            values if values is None else packed.unpacked(values, inputs["labels"])
            for values in (output.log_probs, output.entropy)
        )

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any) -> Tensor:
        """TRL's step; what is neither sampling nor scoring is logged as training."""
        began = time.perf_counter()
        before = self._seconds_logged()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._log_seconds("training", time.perf_counter() - began - (self._seconds_logged() - before))
        return loss

    def _seconds_logged(self) -> float:
        return sum(sum(self._metrics["train"][f"seconds/{name}"]) for name in ("sampling", "scoring"))
