"""The trainers: the media matter, log-probabilities agree, TRL's private seams are as we found them, runs resume."""

import ast
import inspect
import json
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig
from tiny_world import WORDS, entry, media, some_prompts, teach, tiny_omni
from trl import GRPOTrainer

from mer_r1.emotions.thinking import FAST_PREFILL, format_completion, question
from mer_r1.emotions.wheels import builtin
from mer_r1.errors import UserError
from mer_r1.model import generation
from mer_r1.model.omni import load
from mer_r1.model.prompts import collate, encode_prompt, media_tensors
from mer_r1.model.shared_prefix.continuation import Branches
from mer_r1.model.tower_outputs import media_embedded
from mer_r1.rl import trainer as rl_trainer
from mer_r1.rl.advantages import group_normalise
from mer_r1.rl.anchors import AnswerTokens
from mer_r1.rl.calibration import category_probabilities
from mer_r1.rl.method import Advantages, Method, method_advantages
from mer_r1.rl.rewards import format_reward, reward_function
from mer_r1.rl.rollout import Rollouts, fast_prompt
from mer_r1.rl.trainer import EpochSampler, ForClips, MERR1Trainer, Step, annealed
from mer_r1.training.recipes import RLRecipe
from mer_r1.training.stage import LANGUAGE_MODEL_LAYERS

CLIPS = 8
GROUP = 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    omni = tiny_omni()
    omni.freeze_towers()
    teach(omni, some_prompts(omni))
    omni.save(folder)
    return folder


def recipe(folder, **changes):
    settings = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "per_device_train_batch_size": 2 * GROUP,
        "num_generations": GROUP,
        "max_completion_length": 24,
        "learning_rate": 1e-3,
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 3,
    }
    return RLRecipe(**(settings | changes))


def make_trainer(checkpoint, folder, method=None, kwargs=None, **changes):
    omni = load(checkpoint)
    omni.freeze_towers()
    entries = [entry(omni, media(2.0 + 0.2 * index, index)) for index in range(CLIPS)]
    prompts = [
        encode_prompt(omni, question(f"Line {index}.", "short"), tensors) for index, tensors in enumerate(entries)
    ]
    rows = [
        {"prompt": [{"role": "user", "content": "?"}], "labels": [WORDS[index]], "clip_index": index}
        for index in range(CLIPS)
    ]
    settings = recipe(folder, **changes)
    trainer = MERR1Trainer(omni, rows, prompts.__getitem__, method or Method(), builtin(), settings, **(kwargs or {}))
    return trainer, rows, entries


def next_logits(omni, prompt):
    """(1, V) logits of the token after a prompt, by a plain forward pass."""
    policy, batch = omni.model, collate([prompt], [[]], omni.tokenizer.pad_token_id)
    with torch.no_grad(), media_embedded(policy, batch["media"]):
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
        return policy(**inputs).logits[:, -1]


def scored_batch(trainer, rows):
    batch = [rows[index] for index in (0, 1) for _ in range(GROUP)]
    trainer.model.train()
    return trainer._generate_and_score_completions([dict(row) for row in batch])


def loss_logps(trainer, output):
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
    mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
    logps, _, _ = trainer._get_per_token_logps_and_entropies(
        ForClips(trainer.model, output["clip_index"].tolist()), ids, mask, output["completion_ids"].shape[1]
    )
    return logps * output["completion_mask"]


@pytest.mark.parametrize("channel", ["audio", "video"])
def test_swapping_a_channel_changes_the_log_probabilities_of_the_loss(checkpoint, tmp_path, channel):
    trainer, rows, entries = make_trainer(checkpoint, tmp_path)
    output = scored_batch(trainer, rows)
    before = loss_logps(trainer, output).detach()
    entries[0][channel] += torch.randn_like(entries[0][channel])  # the prompts hold these very tensors
    after = loss_logps(trainer, output).detach()
    assert (after[:GROUP] - before[:GROUP]).abs().max() > 1e-3
    torch.testing.assert_close(after[GROUP:], before[GROUP:])


def test_sampling_policy_and_reference_log_probabilities_agree_before_the_first_update(checkpoint, tmp_path):
    trainer, rows, _ = make_trainer(checkpoint, tmp_path)
    output = scored_batch(trainer, rows)
    policy = loss_logps(trainer, output).detach()
    torch.testing.assert_close(
        policy, output["sampling_per_token_logps"] * output["completion_mask"], atol=2e-5, rtol=0
    )
    torch.testing.assert_close(policy, output["ref_per_token_logps"] * output["completion_mask"], atol=2e-5, rtol=0)


def test_log_probabilities_equal_those_of_the_model_called_with_raw_media(checkpoint, tmp_path):
    trainer, rows, _ = make_trainer(checkpoint, tmp_path)
    output = scored_batch(trainer, rows)
    row = GROUP  # the first rollout of the second clip
    tokens = int(output["completion_mask"][row].sum())
    prompt = trainer.prompt_of(1)
    raw = media_tensors(trainer.omni, media(2.2, 1))
    ids = torch.cat([prompt.input_ids, output["completion_ids"][row, :tokens]])[None]
    mel = raw["input_features"][None]
    logits = trainer.omni.model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values_videos=raw["pixel_values_videos"],
        video_grid_thw=raw["video_grid_thw"],
        video_second_per_grid=raw["video_second_per_grid"],
        input_features=mel,
        feature_attention_mask=torch.ones(1, mel.shape[-1], dtype=torch.long),
    ).logits[0, len(prompt.input_ids) - 1 : -1]
    expected = logits.log_softmax(-1).gather(1, ids[0, len(prompt.input_ids) :, None])[:, 0]
    torch.testing.assert_close(loss_logps(trainer, output)[row, :tokens], expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("scale", ["group", "none", "batch"])
@pytest.mark.parametrize("name", ["f1", "rd", "ad", "mer-r1"])
def test_the_output_carries_the_methods_own_advantages(checkpoint, tmp_path, monkeypatch, name, scale):
    method = Method(method=name)
    trainer, rows, _ = make_trainer(checkpoint, tmp_path, method, scale_rewards=scale)
    rewards = torch.rand(2 * GROUP, len(method.objectives))
    monkeypatch.setattr(GRPOTrainer, "_calculate_rewards", lambda self, *args, **kwargs: rewards)
    output = scored_batch(trainer, rows)
    terms = trainer._calibration_terms(trainer.step)[0] if method.calibrates else (None, None)
    expected = method_advantages(method, rewards, GROUP, *terms, scale_rewards=scale)
    torch.testing.assert_close(output["advantages"], expected.tokens)
    assert expected.tokens.abs().max() > 0.1


@pytest.mark.parametrize("calibration", ["answer", "noise", "difference", "reasoning", "hinge"])
def test_a_formulation_reads_what_it_needs_and_no_more(checkpoint, tmp_path, calibration):
    trainer, rows, _ = make_trainer(checkpoint, tmp_path, Method(calibration=calibration))
    scored_batch(trainer, rows)
    rollouts = trainer.step.rollouts
    assert rollouts.slow is not None
    assert (rollouts.fast is not None) == ("fast" in rollouts.seconds) == (calibration in ("difference", "reasoning"))
    assert len(trainer._reference) == (2 if calibration == "hinge" else 0)


def test_only_the_tokens_before_the_answer_get_the_reasonings_term(checkpoint, tmp_path, monkeypatch):
    """TRL's loss takes an advantage per token: (R, T), which shuffling and splitting move along."""
    method = Method(calibration="reasoning", calibration_share=0.3)
    trainer, rows, _ = make_trainer(checkpoint, tmp_path, method)
    monkeypatch.setattr(generation, "draw", Scripted(trainer.omni, generation.draw))
    monkeypatch.setattr(Branches, "leave", lambda self, done: None)  # the script is for all rows
    rewards = torch.rand(2 * GROUP, 3, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(GRPOTrainer, "_calculate_rewards", lambda self, *args, **kwargs: rewards)
    output = scored_batch(trainer, rows)
    terms, _ = trainer._calibration_terms(trainer.step)
    expected = method_advantages(method, rewards, GROUP, *terms)
    advantages, answers = output["advantages"], trainer.step.rollouts.answers
    assert advantages.shape == output["completion_ids"].shape
    assert expected.reasoning.abs().min() > 1e-4
    for row, answer in enumerate(answers):
        assert 0 < answer.start < int(output["completion_mask"][row].sum())
        reasoning, rest = advantages[row].split([answer.start, advantages.shape[1] - answer.start])
        torch.testing.assert_close(rest, expected.tokens[row].expand_as(rest))
        torch.testing.assert_close(reasoning, (expected.tokens + expected.reasoning)[row].expand_as(reasoning))
    # The loss at the sampling policy, without its KL term: minus the mean over rows of the advantages' masked means.
    trainer.beta, trainer.current_gradient_accumulation_steps = 0.0, 1
    output.pop("old_per_token_logps", None)
    mask = output["completion_mask"]
    loss = trainer._compute_loss(trainer.model, output)
    torch.testing.assert_close(loss, -((advantages * mask).sum(1) / mask.sum(1)).mean(), atol=1e-5, rtol=0)
    assert trainer._logs["extra"]["advantage_added_to_reasoning"][0] == pytest.approx(expected.reasoning[0].item())


def test_a_completion_without_an_answer_is_reasoning_throughout(checkpoint, tmp_path):
    trainer, _, _ = make_trainer(checkpoint, tmp_path, Method(calibration="reasoning"))
    step = Step([0, 0], [["happy"]] * 2, 2)
    step.rollouts = Rollouts([[1] * 4] * 2, [], torch.tensor([1]), answers=[AnswerTokens(0, []), AnswerTokens(3, [3])])
    found = trainer._of_tokens(Advantages(torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0]), 0.5), step, 4)
    assert found.tolist() == [[11, 11, 11, 11], [22, 22, 22, 2]]


def test_logs_have_the_advantages_that_were_used(checkpoint, tmp_path, monkeypatch):
    trainer, rows, _ = make_trainer(checkpoint, tmp_path, Method("ad"))
    rewards = torch.rand(2 * GROUP, 3)
    rewards[:GROUP] = 0.5
    # Recall and precision differ and their sum does not: TRL would count this group as one without signal.
    rewards[GROUP:] = torch.tensor([[1.0, 0.2, 0.8], [1.0, 0.8, 0.2], [1.0, 0.5, 0.5], [1.0, 0.4, 0.6]])
    monkeypatch.setattr(GRPOTrainer, "_calculate_rewards", lambda self, *args, **kwargs: rewards)
    for _ in range(2):
        used = scored_batch(trainer, rows)["advantages"]
        assert list(trainer._logs["advantages"]) == pytest.approx(used.tolist())
    assert trainer._metrics["train"]["frac_reward_zero_std"] == [0.5, 0.5]


def test_the_reference_is_the_starting_policys_and_computed_once(checkpoint, tmp_path, monkeypatch):
    trainer, rows, _ = make_trainer(checkpoint, tmp_path, Method(calibration="hinge"))
    omni = load(checkpoint)
    prompts = [fast_prompt(omni, trainer.prompt_of(index)) for index in (0, 1)]
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # a policy in training
    scored_batch(trainer, rows)
    found = trainer._reference_fast(trainer.step)
    for row, prompt in enumerate(prompts):
        expected = category_probabilities(next_logits(omni, prompt), trainer.categories[0])
        torch.testing.assert_close(
            found[row * GROUP : (row + 1) * GROUP], expected.expand(GROUP, -1), atol=2e-6, rtol=0
        )
    monkeypatch.setattr(rl_trainer, "fast_confidences", lambda *args: pytest.fail("computed again"))
    torch.testing.assert_close(trainer._reference_fast(trainer.step), found, atol=0, rtol=0)


def test_the_reference_of_an_adapter_is_the_model_without_it(checkpoint, tmp_path):
    lora = LoraConfig(r=4, target_modules=LANGUAGE_MODEL_LAYERS, init_lora_weights=False)
    method = Method(calibration="hinge")
    plain, rows, _ = make_trainer(checkpoint, tmp_path, method)
    adapted, _, _ = make_trainer(checkpoint, tmp_path, method, kwargs={"peft_config": lora}, beta=0.0)
    scored_batch(plain, rows)
    scored_batch(adapted, rows)
    assert adapted.ref_model is None
    for clip in (0, 1):
        torch.testing.assert_close(adapted._reference[clip], plain._reference[clip], atol=2e-6, rtol=0)


def test_without_a_starting_policy_the_hinge_is_refused(checkpoint, tmp_path):
    for change in ({"beta": 0.0}, {"sync_ref_model": True}):
        with pytest.raises(UserError, match=r"calibration=hinge .*beta above 0 or LoRA, and sync_ref_model=false, got"):
            make_trainer(checkpoint, tmp_path, Method(calibration="hinge"), **change)


def test_ad_equals_trl_normalize_then_sum_up_to_its_batch_standardisation(checkpoint, tmp_path, monkeypatch):
    method = Method(method="ad")
    trainer, rows, _ = make_trainer(checkpoint, tmp_path, method, multi_objective_aggregation="normalize_then_sum")
    rewards = torch.rand(2 * GROUP, 3, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(GRPOTrainer, "_calculate_rewards", lambda self, *args, **kwargs: rewards)
    theirs = {}
    original = GRPOTrainer._generate_and_score_completions

    def spy(self, inputs):
        output = original(self, inputs)
        theirs["advantages"] = output["advantages"].clone()
        return output

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", spy)
    ours = scored_batch(trainer, rows)["advantages"]
    standardised = (ours - ours.mean()) / (ours.std() + 1e-4)
    torch.testing.assert_close(theirs["advantages"], standardised, atol=2e-3, rtol=0)


def test_sampling_and_scoring_compute_in_one_precision(checkpoint, tmp_path):
    trainer, rows, _ = make_trainer(checkpoint, tmp_path, bf16=True)
    layers = [layer for layer in trainer.model.model.language_model.modules() if isinstance(layer, torch.nn.Linear)]
    seen = []
    for layer in layers:
        layer.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    names = ("_sample", "_get_per_token_logps_and_entropies")
    found = {name: dtypes_during(trainer, name, seen) for name in names}
    output = scored_batch(trainer, rows)
    policy = loss_logps(trainer, output).detach()
    assert {name: set(dtypes) for name, dtypes in found.items()} == {key: {torch.bfloat16} for key in found}
    gap = (policy - output["sampling_per_token_logps"]).abs() * output["completion_mask"]
    assert gap.max() < 0.1, "nats, within the rounding of bfloat16"


def dtypes_during(trainer, name, seen):
    """Filled with the types that the layers return while a method of the trainer runs."""
    inner, found = getattr(trainer, name), []

    def watched(*args, **kwargs):
        seen.clear()
        result = inner(*args, **kwargs)
        found.extend(seen)
        return result

    setattr(trainer, "rollout_func" if name == "_sample" else name, watched)
    return found


def test_top_k_reaches_the_draw(checkpoint, tmp_path):
    trainer, rows, _ = make_trainer(checkpoint, tmp_path, top_k=1, temperature=2.0)
    ids = scored_batch(trainer, rows)["completion_ids"]
    for group in ids.split(GROUP):
        assert (group == group[0]).all(), "the likeliest token alone may be drawn"


def test_rewards_are_weighed_as_the_method_says(checkpoint, tmp_path):
    trainer, _, _ = make_trainer(checkpoint, tmp_path, Method("rd", format_weight=0.25))
    assert trainer.reward_weights.tolist() == [0.25, 1.0, 1.0]
    assert trainer.args.reward_weights is None, "the configuration is left as it was given"


def test_a_weight_that_falls_by_hand():
    assert [annealed(0.04, 0.01, step, 8) for step in (0, 1, 2, 3, 4, 7)] == pytest.approx(
        [0.04, 0.0325, 0.025, 0.0175, 0.01, 0.01]
    )
    assert annealed(0.04, 0.04, 3, 8) == 0.04
    assert annealed(0.04, 0.0, 1, 1) == 0.0


def test_beta_falls_is_logged_and_resumes(checkpoint, tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "beta": 0.04, "beta_final": 0.01}

    def betas(trainer):
        return [line["beta"] for line in trainer.state.log_history if "loss" in line]

    whole, _, _ = make_trainer(checkpoint, tmp_path, **settings)
    whole.train()
    assert betas(whole) == pytest.approx([0.04, 0.025, 0.01, 0.01])
    resumed, _, _ = make_trainer(checkpoint, tmp_path, **settings | {"save_strategy": "no"})
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert betas(resumed) == pytest.approx([0.04, 0.025, 0.01, 0.01])
    assert resumed.beta == pytest.approx(0.01), "the loss uses it"


def test_private_methods_of_the_host_have_the_signatures_we_override():
    expected = {
        "_generate_and_score_completions": ["self", "inputs"],
        "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
        "_compute_loss": ["self", "model", "inputs"],
    }
    for name, parameters in expected.items():
        assert list(inspect.signature(getattr(GRPOTrainer, name)).parameters) == parameters
    logps = list(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)
    assert logps[:8] == [
        *("self", "model", "input_ids", "attention_mask", "logits_to_keep"),
        *("batch_size", "compute_entropy", "compute_aux_loss"),
    ]


def test_the_hosts_loss_passes_its_model_on_untouched():
    """`ForClips` stands in the place of the model: nothing but the overridden forward pass may use it."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(GRPOTrainer._compute_loss)))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    passed = [call.func.attr for call in calls for given in call.args if getattr(given, "id", "") == "model"]
    uses = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "model"]
    assert (passed, len(uses)) == (["_get_per_token_logps_and_entropies"], 1)


def test_the_clips_of_a_batch_travel_with_its_rows(checkpoint, tmp_path):
    """Rows of an earlier generation, in another order: the loss sees their own media, whatever was sampled since."""
    trainer, rows, _ = make_trainer(checkpoint, tmp_path)
    output = scored_batch(trainer, rows)
    expected = loss_logps(trainer, output).detach()
    back = torch.arange(2 * GROUP - 1, -1, -1)
    turned = {name: value[back] if getattr(value, "ndim", 0) else value for name, value in output.items()}
    trainer._generate_and_score_completions([dict(rows[5]) for _ in range(2 * GROUP)])
    seen, trainer.current_gradient_accumulation_steps = [], 1
    forward = trainer._get_per_token_logps_and_entropies
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (
        seen.append(forward(*args, **kwargs)) or seen[0]
    )
    trainer._compute_loss(trainer.model, turned)
    torch.testing.assert_close(seen[0][0] * turned["completion_mask"], expected[back])


def test_a_step_moves_the_language_model_and_leaves_the_towers(checkpoint, tmp_path):
    trainer, _, _ = make_trainer(checkpoint, tmp_path, max_steps=1)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    moved = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert any("language_model" in name for name in moved)
    assert not any("visual" in name or "audio_tower" in name for name in moved)


def test_every_log_line_has_the_figures_that_users_watch(checkpoint, tmp_path):
    trainer, _, _ = make_trainer(checkpoint, tmp_path, Method(calibration="difference"), max_steps=1)
    trainer.train()
    line = trainer.state.log_history[0]
    names = ["rewards/recall_reward/mean", "rewards/precision_reward/mean", "rewards/format_reward/mean"]
    names += ["spread/recall", "spread/precision", "groups_without_signal", "completions/mean_length", "kl", "entropy"]
    names += [
        "confidence/slow_correct",
        "confidence/fast_correct",
        "confidence/slow_incorrect",
        "confidence/fast_incorrect",
    ]
    names += ["calibration/delta_correct", "calibration/spread_incorrect", "calibration/share"]
    names += [
        "calibration/correct_with_recall",
        "calibration/incorrect_with_precision",
        "calibration/correct_with_words",
    ]
    names += ["clip_ratio/region_mean", "seconds/sampling", "seconds/scoring", "seconds/training"]
    assert [name for name in names if name not in line] == []


def test_equal_rewards_are_warned_of_and_one_rollout_is_shown(checkpoint, tmp_path, monkeypatch, caplog):
    trainer, rows, _ = make_trainer(checkpoint, tmp_path)
    equal = torch.ones(2 * GROUP, 3)
    monkeypatch.setattr(GRPOTrainer, "_calculate_rewards", lambda self, *args, **kwargs: equal)
    with caplog.at_level("INFO", logger="mer_r1"):
        scored_batch(trainer, rows)
        scored_batch(trainer, rows)
    assert caplog.text.count("first rollout") == 1
    assert "all rewards are equal in 100 % of the groups" in caplog.text


@pytest.mark.parametrize(("step", "steps"), [(2, 8), (5, 8), (7, 8), (7, 7)])
def test_a_resumed_run_equals_an_uninterrupted_one(checkpoint, tmp_path, step, steps):
    """Within the first epoch, within later ones, whose order is another, and behind the last step."""
    settings = {"max_steps": steps, "save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "constant"}
    method = Method(calibration="hinge")  # whose reference no checkpoint holds
    whole, _, _ = make_trainer(checkpoint, tmp_path / "whole", method, **settings)
    whole.train()
    resumed, _, _ = make_trainer(checkpoint, tmp_path / "resumed", method, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, atol=0, rtol=0, msg=name)


# --- groups that answer fast ------------------------------------------------------------------------------------------


def test_the_share_of_fast_groups_is_spread_evenly_by_hand():
    """Twelve rows, two rollouts each, four groups a batch: the fourth of every batch is row 12 + i."""
    sampler = EpochSampler(range(12), 2, 4, 1, False, 0)
    slow = list(sampler)
    assert slow == [row for row in range(12) for _ in range(2)]
    sampler.fast_share = 0.25
    assert list(sampler)[::2] == [0, 1, 2, 15, 4, 5, 6, 19, 8, 9, 10, 23]
    assert [row % 12 for row in sampler] == slow
    again = EpochSampler(range(5), 3, 2, 2, False, 0)  # batches of two, each twice; the fifth row is left out
    again.fast_share = 0.5
    assert list(again)[::3] == [0, 6, 0, 6, 2, 8, 2, 8]
    alone = EpochSampler(range(6), 1, 1, 1, False, 0)  # a group a batch: every third one
    alone.fast_share = 1 / 3
    assert list(alone) == [0, 1, 8, 3, 4, 11]


@pytest.mark.parametrize("shared", [False, True])
def test_a_fast_group_is_sampled_rewarded_and_scored_after_its_empty_think(checkpoint, tmp_path, shared):
    """Beside a slow one: rewards of the whole text, advantages of its own, and the loss on the extended prompt."""
    trainer, rows, _ = make_trainer(checkpoint, tmp_path, fast_share=0.5, shared_prefixes=shared)
    assert [row["clip_index"] for row in trainer.train_dataset] == [*range(CLIPS), *(~i for i in range(CLIPS))]
    output = scored_batch(trainer, [rows[0], rows[1] | {"clip_index": ~1}])
    tokenizer = trainer.omni.tokenizer
    ends = [tokenizer.decode(ids).endswith(FAST_PREFILL) for ids in output["prompt_ids"]]
    assert ends == [False] * GROUP + [True] * GROUP
    drawn = trainer.step.rollouts
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in drawn.completion_ids[GROUP:]]
    gold = [[WORDS[1]]] * GROUP
    rewards = trainer.step.rewards[GROUP:]
    for column, name in enumerate(trainer.method.objectives):
        expected = reward_function(name, builtin())(completions=[FAST_PREFILL + text for text in texts], labels=gold)
        assert rewards[:, column].tolist() == pytest.approx(expected)
    assert rewards[:, 0].sum() > 0 == sum(format_reward(completions=texts)), "well formed with what was prefilled only"
    (term, _), _ = trainer._calibration_terms(trainer.step)
    assert not term[:GROUP].isnan().any()
    assert term[GROUP:].isnan().all(), "no calibration terms"
    fast = output["advantages"][GROUP:]
    torch.testing.assert_close(fast, method_advantages(Method(method="ad"), rewards, GROUP).tokens.to(fast))
    assert fast.abs().max() > 0.1
    assert float(fast.sum()) == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(
        loss_logps(trainer, output).detach(),
        output["sampling_per_token_logps"] * output["completion_mask"],
        atol=2e-5,
        rtol=0,
    )


@pytest.mark.parametrize("name", ["f1", "mer-r1"])
def test_fast_groups_may_be_rewarded_for_their_form_only(checkpoint, tmp_path, name):
    """Their other rewards are unknown, so their advantage is that of the format; slow groups keep all of theirs."""
    trainer, rows, _ = make_trainer(
        checkpoint, tmp_path, Method(method=name, format_weight=0.5), fast_share=0.5, fast_rewards="format"
    )
    output = scored_batch(trainer, [rows[0], rows[1] | {"clip_index": ~1}])
    rewards, form = trainer.step.rewards, trainer.method.objectives.index("format")
    others = [column for column in range(rewards.shape[1]) if column != form]
    assert not rewards[:GROUP].isnan().any()
    assert not rewards[:, form].isnan().any()
    assert rewards[GROUP:, others].isnan().all()
    expected = group_normalise(rewards[GROUP:, form], GROUP) * (1 if name == "f1" else 0.5)
    torch.testing.assert_close(output["advantages"][GROUP:], expected.to(output["advantages"]))


def test_fast_beta_weighs_the_kl_term_of_fast_rows_only(checkpoint, tmp_path):
    trainer, rows, _ = make_trainer(checkpoint, tmp_path, Method(method="ad"), fast_share=0.5, beta=0.04)
    trainer.current_gradient_accumulation_steps = 2
    output = scored_batch(trainer, [rows[0], rows[1] | {"clip_index": ~1}])
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight.add_(0.01 * torch.randn(weight.shape, generator=random))
    losses = {}
    for beta in (None, 0.04, 1.0):
        trainer.args.fast_beta = beta
        losses[beta] = trainer._compute_loss(trainer.model, output).detach()
    mask = output["completion_mask"]
    ratio = (output["ref_per_token_logps"] - loss_logps(trainer, output).detach()) * mask
    of_rows = (ratio.exp() - ratio - 1).sum(dim=1) / mask.sum(dim=1)

    expected = 0.96 * of_rows[GROUP:].sum() / (2 * GROUP) / 2
    assert expected > 1e-4
    torch.testing.assert_close(losses[0.04], losses[None])
    torch.testing.assert_close(losses[1.0] - losses[None], expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("given", [{"fast_share": 0.0}, {"beta": 0.0}, {"loss_type": "dapo"}])
def test_fast_beta_needs_fast_groups_a_reference_and_the_mean_over_rows(tmp_path, given):
    with pytest.raises(ValueError, match="fast_beta weighs the KL term of groups that answer fast: it needs"):
        recipe(tmp_path, **{"fast_share": 0.5, "fast_beta": 0.1, "beta": 0.04} | given)


def test_the_format_reward_learns_which_channels_a_clip_lacks(checkpoint, tmp_path):
    trainer, rows, _ = make_trainer(checkpoint, tmp_path, Method(method="ad", absent_channels=True), fast_share=0.5)
    seen, place = [], trainer.method.objectives.index("format")
    judge = trainer.reward_funcs[place]

    def watch(**columns):
        seen.extend(columns["absent"])
        return judge(**columns)

    trainer.reward_funcs[place] = watch
    scored_batch(trainer, [rows[0] | {"subtitle": None}, rows[1] | {"subtitle": "Hello.", "clip_index": ~1}])
    assert seen == [["subtitle"]] * GROUP + [[]] * GROUP
    silent = replace(trainer.prompt_of(0), media={"video": torch.ones(2, 8)})
    trainer.prompt_of = [silent].__getitem__
    assert trainer._absent(rows[0] | {"subtitle": " "}) == ["audio", "subtitle"]


@pytest.mark.parametrize("name", ["ad", "mer-r1"])
def test_slow_and_fast_rewards_are_logged_apart(checkpoint, tmp_path, name):
    trainer, _, _ = make_trainer(checkpoint, tmp_path, Method(method=name), fast_share=0.5)
    modes, score = [], trainer._generate_and_score_completions

    def watch(inputs):
        output = score(inputs)
        modes.append([row["clip_index"] < 0 for row in inputs[::GROUP]])
        return output

    trainer._generate_and_score_completions = watch
    trainer.train()
    assert modes == [[False, True]] * 2
    line = trainer.state.log_history[0]
    for objective in trainer.method.objectives:
        both = (line[f"slow/{objective}"] + line[f"fast/{objective}"]) / 2
        assert line[f"rewards/{objective}_reward/mean"] == pytest.approx(both, abs=1e-4)
    assert 0 < line["fast/format"] <= 1


class Scripted:
    """Answers written beforehand in place of the sampled ones: on another CPU a rounding could flip a draw."""

    def __init__(self, omni, draw):
        rng = np.random.default_rng(0)
        self.draw, self.step, self.eos = draw, 0, omni.tokenizer.eos_token_id
        self.texts = [
            omni.tokenizer(format_completion("A smile", list(rng.choice(WORDS, rng.integers(1, 3), replace=False))))
            for _ in range(10 * 2 * GROUP)
        ]

    def __call__(self, logits, *args):
        rows = [self.texts.pop(0)["input_ids"] for _ in range(len(logits))] if self.step == 0 else self.rows
        self.rows = rows
        _, logp = self.draw(logits, *args)
        tokens = [row[self.step] if self.step < len(row) else self.eos for row in rows]
        self.step += 1
        if all(self.step > len(row) for row in rows):
            self.step = 0
        return torch.tensor(tokens), logp


def test_the_trajectory_is_the_pinned_one(checkpoint, tmp_path, request, monkeypatch):
    """Ten steps on a CPU in float32: other numbers mean another method, and belong in the changelog."""
    method = Method(calibration="difference", conditional=False, anchors="all", alpha=0.1, spread_floor=0.0)
    trainer, _, _ = make_trainer(checkpoint, tmp_path, method, max_steps=10)
    monkeypatch.setattr(generation, "draw", Scripted(trainer.omni, generation.draw))
    monkeypatch.setattr(Branches, "leave", lambda self, done: None)  # the script is for all rows
    trainer.train()
    keys = ("loss", "grad_norm", "reward", "kl")
    found = [{key: round(line[key], 6) for key in keys} for line in trainer.state.log_history if "loss" in line]
    file = request.path.parents[1] / "invariant" / "rl_trajectory.json"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(found, indent=1) + "\n")
        pytest.fail("no pinned trajectory: wrote one, look at it and commit it")
    for ours, pinned in zip(found, json.loads(file.read_text()), strict=True):
        assert ours == pytest.approx(pinned, abs=2e-3)
