"""Rollouts through vLLM's interface: the numbers of the ordinary path, with the same tokens.

vLLM is not installed here. `fake_vllm` has its signatures and runs the tiny policy underneath.
"""

import base64
import io
import json
import logging
import math
import os
import sys
import threading
from contextlib import nullcontext
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import fake_vllm
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from test_rollout import plain_logits
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniThinkerModel

from mer_r1.data.manifest import read_manifest
from mer_r1.emotions.thinking import FAST_PREFILL, question
from mer_r1.emotions.wheels import builtin
from mer_r1.errors import UserError
from mer_r1.model.features import FeatureCache
from mer_r1.model.generation import Sampling
from mer_r1.model.omni import load
from mer_r1.model.prompts import encode_prompt
from mer_r1.rl import trainer
from mer_r1.rl.anchors import category_tokens
from mer_r1.rl.rollout import fast_prompt, rollout
from mer_r1.rl.trainer import MERR1Trainer
from mer_r1.rl.vllm import colocated as vllm_generation
from mer_r1.rl.vllm import rollouts as rollout_vllm
from mer_r1.rl.vllm.colocated import BANNED, Asked, Colocated, Completion, OmniGeneration
from mer_r1.rl.vllm.correction import importance_ratios
from mer_r1.rl.vllm.engine import bad_words, start, unexpanded, weight_name
from mer_r1.rl.vllm.rollouts import VllmRollouts, request_of
from mer_r1.rl.vllm.server import Served
from mer_r1.training.recipe_files import read_recipe
from mer_r1.training.recipes import RLRecipe
from mer_r1.training.rl_stage import run_rl
from mer_r1.training.stage import LANGUAGE_MODEL_LAYERS

GROUP = 2
CLOSE = {"atol": 2e-6, "rtol": 0}


@pytest.fixture
def vllm(monkeypatch):
    module = fake_vllm.module()
    monkeypatch.setitem(sys.modules, "vllm", module)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that what an engine's start leaves there is taken back
        del os.environ[name]
    yield module
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def clips(corpus):
    """Picture and sound, picture only, sound only, sound in a file of its own."""
    return read_manifest(corpus)[:4]


@pytest.fixture(scope="module")
def prompts(taught, clips, tmp_path_factory):
    cache = FeatureCache(taught, tmp_path_factory.mktemp("features"))
    cache.build(clips, workers=0)
    return [encode_prompt(taught, question(clip.subtitle, taught.settings.question), cache.get(clip)) for clip in clips]


@pytest.fixture(scope="module")
def tokens(taught):
    return category_tokens(builtin(), taught.tokenizer)[0]


@pytest.fixture
def sampler(vllm, taught, taught_folder, clips):
    """The engine with the policy's weights, as a trainer would have it after its first sync."""
    module, llm = start(str(taught_folder), "a test")
    generation = SimpleNamespace(vllm=module, llm=llm, awake=nullcontext)
    return VllmRollouts(taught, clips, generation, Colocated(generation))


def both(sampler, taught, prompts, sampling, **kwargs):
    """The ordinary rollouts, and the engine's with the same tokens."""
    ordinary = rollout(taught, prompts, GROUP, sampling, **kwargs)
    fake_vllm.LLM.script = [ordinary.completion_ids]
    return ordinary, sampler.for_clips(range(len(prompts)))(taught, prompts, GROUP, sampling, **kwargs)


# --- the same numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("way", "at_most"), [("engine", 128), ("engine", 30), ("policy", 128)])
def test_confidences_equal_those_of_the_ordinary_path(sampler, taught, prompts, tokens, way, at_most, monkeypatch):
    for module in (vllm_generation, rollout_vllm):
        monkeypatch.setattr(module, "MOST_TOKEN_IDS", at_most)
    sampler.confidences = way
    ordinary, ours = both(sampler, taught, prompts, Sampling(24, 1.0, seed=3), tokens=tokens, fast=True)
    assert ours.completion_ids == ordinary.completion_ids
    assert ours.anchor_rollout.tolist() == ordinary.anchor_rollout.tolist() != []
    if way == "engine":
        torch.testing.assert_close(ours.slow, ordinary.slow, **CLOSE)
        torch.testing.assert_close(ours.fast, ordinary.fast, **CLOSE)
        assert (ours.slow - ours.fast).abs().max() > 1e-3, "the reasoning makes a difference, or this shows nothing"
    else:
        assert ours.slow is ours.fast is None, "the trainer's"
    scored = [call for call in sampler.generation.llm.parameters if isinstance(call, list)]
    assert len(scored) == (2 if way == "engine" else 0), "one call for the slow contexts, one for the fast"
    anchors, distinct = len(ordinary.anchor_rollout), len(tokens.token_ids.unique())
    assert [len(call) for call in scored] == [anchors * -(-distinct // at_most)] * len(scored)
    asked = {token for call in scored for one in call for token in one.logprob_token_ids}
    assert asked == (set(tokens.token_ids.tolist()) if way == "engine" else set())


def test_log_probabilities_are_those_of_the_draw(sampler, taught, prompts):
    """The engine's are normalised over what may be sampled, ours over everything: they differ by exactly that."""
    sampling = Sampling(12, 1.5, seed=1)
    ordinary, ours = both(sampler, taught, prompts, sampling)
    for row, ids in enumerate(ordinary.completion_ids):
        logits = plain_logits(taught, prompts[row // GROUP], ids)[: len(ids)] / sampling.temperature
        allowed = logits.index_fill(1, torch.tensor(taught.forbidden_ids), -torch.inf)
        banned = torch.logsumexp(logits, -1) - torch.logsumexp(allowed, -1)
        found = torch.tensor(ours.logps[row]) - torch.tensor(ordinary.logps[row])
        torch.testing.assert_close(found, banned, atol=2e-5, rtol=0)
        assert banned.max() > 1e-4, "something is banned, or this test shows nothing"


def test_greedy_is_asked_for_once_and_counts_for_the_group(sampler, taught, prompts, tokens):
    asked = {"tokens": tokens, "fast": True}
    ordinary = rollout(taught, prompts, GROUP, Sampling(16, 0.0), **asked)
    ours = sampler.for_clips(range(len(prompts)))(taught, prompts, GROUP, Sampling(16, 0.0), **asked)
    assert ours.completion_ids == ordinary.completion_ids
    torch.testing.assert_close(ours.slow, ordinary.slow, **CLOSE)
    torch.testing.assert_close(ours.fast, ordinary.fast, **CLOSE)
    assert sampler.generation.llm.parameters[0].n == 1


def test_sampled_tokens_are_drawn_as_asked(sampler, taught, prompts):
    drawn = sampler.for_clips(range(len(prompts)))(taught, prompts, GROUP, Sampling(9, 1.3, 0.9, 4, 50, 0.05))
    (chosen,) = sampler.generation.llm.parameters
    assert (chosen.n, chosen.temperature, chosen.top_p, chosen.max_tokens, chosen.seed) == (GROUP, 1.3, 0.9, 9, 4)
    assert (chosen.top_k, chosen.min_p, chosen.repetition_penalty) == (50, 0.05, 1.0)
    assert chosen.logit_bias == dict.fromkeys(taught.forbidden_ids, BANNED)
    assert set(chosen.stop_token_ids) == set(taught.eos_ids)
    assert len(drawn.completion_ids) == len(drawn.logps) == GROUP * len(prompts)
    assert all(len(ids) == len(logps) <= 9 for ids, logps in zip(drawn.completion_ids, drawn.logps, strict=True))
    assert drawn.slow is drawn.fast is None
    assert drawn.seconds.keys() == {"media", "decode"}


def test_fast_rollouts_go_on_from_their_prefill(sampler, taught, prompts, tokens):
    asked = [fast_prompt(taught, prompt) for prompt in prompts]
    ordinary, ours = both(sampler, taught, asked, Sampling(12, 1.0, seed=5), tokens=tokens, prefilled=FAST_PREFILL)
    assert ours.anchor_rollout.tolist() == ordinary.anchor_rollout.tolist() != []
    torch.testing.assert_close(ours.slow, ordinary.slow, **CLOSE)
    assert ours.fast is ordinary.fast is None


def test_slow_and_fast_prompts_go_together(sampler, taught, prompts, tokens):
    """As RL with fast groups asks: each prompt with its own opening, confidences for the slow ones only."""
    openings = ["", FAST_PREFILL, "", FAST_PREFILL]
    asked = [fast_prompt(taught, p) if opening else p for p, opening in zip(prompts, openings, strict=True)]
    both_modes = {"tokens": tokens, "fast": True, "prefilled": openings}
    ordinary, ours = both(sampler, taught, asked, Sampling(24, 1.0, seed=3), **both_modes)
    assert {row // GROUP for row in ours.anchor_rollout.tolist()} <= {0, 2}
    assert ours.anchor_rollout.tolist() == ordinary.anchor_rollout.tolist() != []
    torch.testing.assert_close(ours.slow, ordinary.slow, **CLOSE)
    torch.testing.assert_close(ours.fast, ordinary.fast, **CLOSE)


def test_an_engine_is_told_that_slow_thinking_must_reason(sampler, taught, prompts, server, clips):
    """Right after `<think>` the closing tag has probability 0, elsewhere its own."""
    think, close = taught.tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    omni = replace(taught, settings=replace(taught.settings, must_reason=True))
    request = request_of(taught, prompts[0], clips[0])
    found = []
    for policy in (taught, omni):
        chosen = sampler.generation.vllm.SamplingParams(max_tokens=2, bad_words=bad_words(policy.settings))
        fake_vllm.LLM.script = [[[think, close]]]
        drawn = sampler.generation.llm.generate([request], chosen, use_tqdm=False)[0].outputs[0]
        found.append(math.exp(drawn.logprobs[1][close].logprob))
    assert found[0] > found[1] == 0.0
    sampler.for_clips([0])(omni, prompts[:1], GROUP, Sampling(2, 1.0))
    assert "<think></think>" in sampler.generation.llm.parameters[-1].bad_words
    Served(server.url).sample([Asked(clips[0], request)], 1, Sampling(2), omni)
    assert server.asked[0][1]["bad_words"] == bad_words(omni.settings)


def test_auto_asks_the_engine_where_few_requests_suffice(sampler, taught, prompts, tokens, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    needed = -(-len(tokens.token_ids.unique()) // 10)
    monkeypatch.setattr(rollout_vllm, "MOST_TOKEN_IDS", 10)
    for most, chosen in ((needed, "computed by vLLM"), (needed - 1, "computed by the policy")):
        monkeypatch.setattr(rollout_vllm, "MOST_REQUESTS", most)
        sampler._logged = False
        assert sampler._by_engine(tokens) == (chosen == "computed by vLLM")
        assert f"confidences: {chosen}" in caplog.text.splitlines()[-1]


def test_answers_without_words_are_not_asked_about(sampler, taught, prompts, tokens):
    _, ours = both(sampler, taught, prompts, Sampling(2, 1.0, seed=0), tokens=tokens, fast=True)
    assert ours.slow.shape == ours.fast.shape == (0, tokens.num_categories)
    assert len(sampler.generation.llm.requests) == 1


def test_where_only_a_server_samples_the_confidences_are_left_to_the_policy(sampler, taught, prompts, tokens, clips):
    class Elsewhere:
        def sample(self, asked, num_generations, sampling, omni):
            assert [one.clip for one in asked] == clips
            rows = iter(ordinary.completion_ids)
            group = [[Completion(next(rows), [0.0]) for _ in range(num_generations)] for _ in asked]
            return [(prompt.input_ids.tolist(), some) for prompt, some in zip(prompts, group, strict=True)]

    asked = {"tokens": tokens, "fast": True}
    ordinary = rollout(taught, prompts, GROUP, Sampling(24, 1.0, seed=3), **asked)
    served = VllmRollouts(taught, clips, sampler.generation, Elsewhere(), "engine")
    ours = served.for_clips(range(len(prompts)))(taught, prompts, GROUP, Sampling(24), **asked)
    assert ours.completion_ids == ordinary.completion_ids
    assert ours.anchor_rollout.tolist() == ordinary.anchor_rollout.tolist() != []
    assert ours.slow is ours.fast is None
    assert sampler.generation.llm.requests == []


# --- what is asked ----------------------------------------------------------------------------------------------------


def test_requests_are_unexpanded_and_carry_what_the_processor_would_get_wrong(taught, prompts, clips):
    both_channels, silent, heard, _ = (request_of(taught, *pair) for pair in zip(prompts, clips, strict=True))
    marks = [taught.processor.video_token, taught.processor.audio_token]
    texts = [taught.tokenizer.decode(one["prompt_token_ids"]) for one in (both_channels, silent, heard)]
    assert [[text.count(mark) for mark in marks] for text in texts] == [[1, 1], [1, 0], [0, 1]]
    assert len(prompts[0].input_ids) > len(both_channels["prompt_token_ids"])
    how = both_channels["mm_processor_kwargs"]
    temporal = taught.processor.video_processor.temporal_patch_size
    assert temporal / how["fps"] == pytest.approx(float(prompts[0].media["video_second_per_grid"]))
    assert how["size"] == dict(taught.processor.video_processor.size)
    assert how["do_sample_frames"] is False
    assert "mm_processor_kwargs" not in heard
    names = [uuid for one in (both_channels, silent, heard) for (uuid,) in one["multi_modal_uuids"].values()]
    assert len(set(names)) == 4


def test_a_prompt_that_was_read_otherwise_is_not_trained_on(sampler, taught, prompts, vllm):
    vllm.LLM.faults = {"expanded twice"}
    videos, sounds = (prompts[0].input_ids.tolist().count(token) for token in rollout_vllm.placeholders(taught))
    told = rf"clip-0: vLLM read another prompt.*: {2 * videos} video tokens, expected {videos}; {2 * sounds} audio"
    with pytest.raises(UserError, match=told):
        sampler.for_clips([0])(taught, prompts[:1], GROUP, Sampling(2, 1.0))


def test_the_frame_size_of_the_checkpoint_is_needed(sampler, taught, prompts, clips, monkeypatch):
    """Without it the processor takes its class's own: another number of tokens, which is noticed."""
    asked = request_of(taught, prompts[0], clips[0])
    asked["mm_processor_kwargs"].pop("size")
    monkeypatch.setattr(rollout_vllm, "request_of", lambda *_: asked)
    with pytest.raises(UserError, match="video tokens, expected"):
        sampler.for_clips([0])(taught, prompts[:1], GROUP, Sampling(2, 1.0))


@pytest.mark.parametrize(
    ("ids", "expected"),
    [([], []), ([1, 2], [1, 2]), ([9, 9, 1, 9], [9, 1, 9]), ([9, 8, 8, 9], [9, 8, 9]), ([1, 1, 9, 9], [1, 1, 9])],
)
def test_unexpanded(ids, expected):
    assert unexpanded(ids, {8, 9}) == expected


# --- weights ----------------------------------------------------------------------------------------------------------


def generation_of(model, name, **changes):
    model.name_or_path = str(name)
    place = SimpleNamespace(
        process_index=0, local_process_index=0, num_processes=1, mixed_precision="no", wait_for_everyone=lambda: None,
        state=SimpleNamespace(fsdp_plugin=None, deepspeed_plugin=None), device=torch.device("cpu"),
        distributed_type="NO",
    )  # fmt: skip
    return OmniGeneration(model=model, accelerator=place, processing_class=None, **changes)


def state_of(model):
    return {name: value.clone() for name, value in model.named_parameters()}


def test_the_engine_has_the_towers_and_gets_the_language_model_each_time(vllm, taught_folder):
    """The policy may hold no towers: with a complete feature cache, training loads none."""
    omni = load(taught_folder)
    ours = state_of(omni.model)
    del omni.model.model.visual, omni.model.model.audio_tower
    generation = generation_of(omni.model, taught_folder)
    (llm,) = vllm.LLM.started
    assert llm.options["dtype"] == "float32"
    assert llm.options["logprobs_mode"] == "processed_logprobs"
    for step in range(2):
        with torch.no_grad():
            omni.model.model.language_model.norm.weight += step
        llm.model.loaded.clear()
        generation.sync_weights()
        assert set(llm.model.loaded) == {weight_name(name) for name, _ in omni.model.named_parameters()}
        expected = ours | state_of(omni.model)
        theirs = state_of(llm.model.thinker)
        assert [name for name in theirs if not torch.equal(theirs[name], expected[name])] == []
        assert llm.resets == step + 1, "what was computed under older weights is forgotten"


def test_adapters_arrive_merged_and_stay_apart_here(vllm, taught_folder):
    omni = load(taught_folder)
    before = state_of(omni.model)
    model = get_peft_model(omni.model, LoraConfig(r=2, target_modules=LANGUAGE_MODEL_LAYERS, init_lora_weights=False))
    generation = generation_of(model, taught_folder)
    generation.sync_weights()
    (llm,) = vllm.LLM.started
    found = state_of(llm.model.thinker)
    changed = {name for name in before if not torch.equal(before[name], found[name])}
    assert changed
    assert all("language_model" in name and "_proj" in name for name in changed)
    query = "model.language_model.layers.0.self_attn.q_proj"
    layer = model.get_submodule(f"base_model.model.{query}")
    expected = before[f"{query}.weight"] + layer.get_delta_weight("default")
    torch.testing.assert_close(found[f"{query}.weight"], expected)
    torch.testing.assert_close(layer.base_layer.weight, before[f"{query}.weight"])


def test_an_engine_sleeps_between_rollouts_and_keeps_its_towers(vllm, taught_folder):
    omni = load(taught_folder)
    generation = generation_of(omni.model, taught_folder, enable_sleep_mode=True)
    (llm,) = vllm.LLM.started
    for synced in (True, False):
        if synced:
            generation.sync_weights()
        with generation.awake():
            pass
    weights, cache = ("wake", ["weights"]), ("wake", ["kv_cache"])
    assert llm.asleep == [weights, cache, ("sleep", 1), ("wake", ["weights", "kv_cache"]), ("sleep", 1)]


def test_names_that_no_thinker_has_are_refused():
    with pytest.raises(ValueError, match=r"talker\.x is no weight of an omni thinker"):
        weight_name("talker.x")


# --- a whole run ------------------------------------------------------------------------------------------------------


def rl(corpus, folder, out, *changes):
    words = [
        "use_cpu=true", "bf16=false", "report_to=none", "disable_tqdm=true", "workers=0", "logging_steps=1",
        "save_strategy=no", "max_steps=2", "per_device_train_batch_size=8", "num_generations=4", "learning_rate=1e-3",
        "max_completion_length=24", f"manifest={corpus}", f"model={folder}", f"output_dir={out}",
        f"features_dir={out.parent / 'features'}", *changes,
    ]  # fmt: skip
    return read_recipe(RLRecipe, None, words)


@pytest.fixture
def watched(monkeypatch):
    """The `Step` of every generation of a run: what was sampled and rewarded, and what was made of it."""
    steps = []
    original = MERR1Trainer._generate_and_score_completions

    def watch(self, inputs):
        output = original(self, inputs)
        steps.append(self.step)
        return output

    monkeypatch.setattr(MERR1Trainer, "_generate_and_score_completions", watch)
    return steps


@pytest.fixture
def passes(vllm, monkeypatch):
    """Every call of the language model outside of the engine: with or without gradient, of which model, its tokens."""
    calls = []
    original = Qwen2_5OmniThinkerModel.forward

    def watch(self, *args, **kwargs):
        if self not in [llm.model.thinker.model for llm in vllm.LLM.started]:
            calls.append((torch.is_grad_enabled(), id(self), kwargs["position_ids"].shape[1:].numel()))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Qwen2_5OmniThinkerModel, "forward", watch)
    return calls


def named(calls):
    """The passes in order: "training", "reference" (another model) and "reading" (the policy without gradient)."""
    trained = next(model for grad, model, _ in calls if grad)
    kinds = {(True, True): "training", (False, True): "reading", (False, False): "reference"}
    return [kinds[grad, model == trained] for grad, model, _ in calls]


def logged(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


ACCUMULATED = ("per_device_train_batch_size=4", "gradient_accumulation_steps=2")
OFF_POLICY = ("per_device_train_batch_size=4", "gradient_accumulation_steps=1", "steps_per_generation=2")


@pytest.mark.parametrize(
    ("way", "changes"),
    [
        ("engine", ()),
        ("policy", ()),
        ("policy", ACCUMULATED),
        ("policy", (*OFF_POLICY, "max_steps=4", "learning_rate=2e-4")),  # two updates, whose rounding adds up
        ("policy", (*ACCUMULATED, "shared_prefixes=false")),
    ],
)
def test_a_run_gives_the_same_rewards_confidences_and_advantages(
    vllm, watched, corpus, taught_folder, tmp_path, monkeypatch, way, changes
):
    """Two steps, the same tokens: the second step's confidences say that the first one's update has arrived."""
    # Sampling draws from the generator that shuffles, and the order of two updates matters.
    monkeypatch.setattr(trainer, "shuffle_groups", lambda batch, size: batch)
    alike = ["calibration=difference", *changes]
    run_rl(rl(corpus, taught_folder, tmp_path / "hf", *alike))
    ordinary = list(watched)
    watched.clear()
    vllm.LLM.script = [step.rollouts.completion_ids for step in ordinary]
    engine = ["rollouts=vllm", f"vllm_confidences={way}", "vllm_importance_sampling_correction=false"]
    run_rl(rl(corpus, taught_folder, tmp_path / "vllm", *alike, *engine))
    assert len(ordinary) == len(watched) == 2
    # Rounding of the first step's confidences goes through an update of Adam before the second step's.
    for a, b, close in zip(ordinary, watched, (2e-6, 5e-4), strict=True):
        assert a.clips == b.clips
        assert a.rollouts.completion_ids == b.rollouts.completion_ids
        torch.testing.assert_close(b.rewards, a.rewards, atol=0, rtol=0, equal_nan=True)
        torch.testing.assert_close(b.rollouts.slow, a.rollouts.slow, atol=close, rtol=0)
        torch.testing.assert_close(b.rollouts.fast, a.rollouts.fast, atol=close, rtol=0)
        torch.testing.assert_close(b.advantages, a.advantages, atol=5e-3, rtol=0)
    assert (ordinary[0].advantages != 0).any(), "something to learn, or this test shows nothing"
    assert (ordinary[0].rollouts.slow - ordinary[0].rollouts.fast).abs().max() > 1e-3
    read = {"slow", "fast"} if way == "engine" else set()
    assert [step.rollouts.seconds.keys() for step in watched] == [{"media", "decode"} | read] * 2
    lines = [[line for line in logged(tmp_path / name) if "loss" in line] for name in ("hf", "vllm")]
    for ordinary_line, line in zip(*lines, strict=True):
        assert line["loss"] == pytest.approx(ordinary_line["loss"], abs=5e-3)
        assert line["grad_norm"] == pytest.approx(ordinary_line["grad_norm"], rel=0.05)


@pytest.mark.parametrize(
    ("method", "changes", "expected"),
    [
        ("calibration=answer", (), ["reference", "training"]),
        ("calibration=difference", (), ["reference", "training"]),
        ("method=ad", (), ["reference", "training"]),
        ("method=ad", ACCUMULATED, ["reference"] * 2 + ["training"] * 2),
        ("calibration=answer", ACCUMULATED, ["reference"] * 2 + ["reading"] + ["training"] * 2),
        ("calibration=answer", OFF_POLICY, ["reading"] * 2 + ["reference"] * 2 + ["training"]),
    ],
)
def test_confidences_and_ratios_cost_no_pass_of_their_own(
    passes, corpus, taught_folder, tmp_path, method, changes, expected
):
    """With accumulated gradients one of two training batches is read beforehand; off policy TRL's own pass reads."""
    engine = ("rollouts=vllm", "vllm_confidences=policy", "max_steps=1")
    run_rl(rl(corpus, taught_folder, tmp_path / "out", method, *engine, *changes))
    assert named(passes) == expected


def test_the_default_calibration_costs_no_token_and_the_difference_only_its_answers(
    vllm, passes, watched, corpus, taught_folder, tmp_path
):
    counts = {}
    for method in ("method=ad", "calibration=answer", "calibration=difference"):
        passes.clear()
        if watched:
            vllm.LLM.script = [watched[0].rollouts.completion_ids]
        engine = ("rollouts=vllm", "vllm_confidences=policy", "max_steps=1", "seed=4")
        run_rl(rl(corpus, taught_folder, tmp_path / method, method, *engine))
        counts[method] = [tokens for _, _, tokens in passes]
    assert counts["calibration=answer"] == counts["method=ad"]
    reference, training = counts["calibration=difference"]
    assert reference == counts["method=ad"][0]
    assert training > counts["method=ad"][1]


def test_the_gap_is_logged_and_each_token_is_weighed_by_the_truncated_ratio(
    vllm, watched, corpus, taught_folder, tmp_path, monkeypatch
):
    seen = []
    original = MERR1Trainer._compute_loss

    def watch(self, model, inputs):
        seen.append(inputs)
        return original(self, model, inputs)

    monkeypatch.setattr(MERR1Trainer, "_compute_loss", watch)
    out = tmp_path / "out"
    run_rl(rl(corpus, taught_folder, out, "rollouts=vllm", "vllm_importance_sampling_clip_max=0.999"))
    first, second = (line for line in logged(out) if "loss" in line)
    gap = "sampling/sampling_logp_difference/mean"
    assert 0 < first[gap] < 0.05
    assert 0 < second[gap] < 0.05, "the engine follows the policy"
    ratio = seen[0]["importance_sampling_ratio"]
    assert ratio.shape == seen[0]["completion_ids"].shape, "a token's own, not a rollout's"
    assert ratio.max() == pytest.approx(0.999)
    assert first["sampling/importance_sampling_ratio/max"] == pytest.approx(0.999)


def test_weights_that_do_not_arrive_show_in_the_gap(vllm, watched, corpus, taught_folder, tmp_path):
    vllm.LLM.faults = {"language model"}
    out = tmp_path / "out"
    run_rl(rl(corpus, taught_folder, out, "rollouts=vllm", "max_steps=1"))
    (line,) = (line for line in logged(out) if "loss" in line)
    assert line["sampling/sampling_logp_difference/mean"] > 1


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        # The policy's probabilities are 2, 1/4, - and 1 times the engine's; the third was not given.
        ("token_truncate", [[1.5, 0.5, 1.0, 1.0]]),
        ("token_mask", [[0.0, 0.0, 1.0, 1.0]]),
        ("sequence_truncate", [[0.5]]),
        ("sequence_mask", [[0.5]]),
    ],
)
def test_importance_ratios_by_hand(mode, expected):
    bounds = {"vllm_importance_sampling_clip_min": 0.5, "vllm_importance_sampling_clip_max": 1.5}
    args = SimpleNamespace(vllm_importance_sampling_mode=mode, **bounds)
    logps = torch.tensor([[0.5, 0.25, 0.25, 0.125]]).log()
    sampled = torch.tensor([[0.25, 1.0, torch.nan, 0.9]]).log()
    batch = {"sampling_per_token_logps": sampled, "completion_mask": torch.tensor([[1, 1, 1, 0]])}
    found = importance_ratios(args, logps, batch)
    torch.testing.assert_close(found.ratios, torch.tensor(expected))
    logged = found.statistics(lambda value: value)
    assert logged["sampling/sampling_logp_difference/max"] == pytest.approx(math.log(4))
    assert logged["sampling/sampling_logp_difference/mean"] == pytest.approx(math.log(8) / 2)
    counted = expected[0][:3] if mode.startswith("token") else expected[0]
    assert logged["sampling/importance_sampling_ratio/mean"] == pytest.approx(sum(counted) / len(counted))


# --- said in one line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["rollouts=sglang"], "rollouts must be hf or vllm, got 'sglang'"),
        (["vllm_mode=remote"], "vllm_mode must be colocate or server"),
        (["vllm_confidences=none"], "vllm_confidences must be auto, engine, policy, got 'none'"),
        (["use_vllm=true"], "takes images only: use rollouts=vllm"),
    ],
)
def test_wrong_settings_are_refused_at_once(changes, told, corpus, tmp_path):
    with pytest.raises(UserError, match=told):
        rl(corpus, "m", tmp_path / "out", *changes)


def test_without_vllm_one_line_says_what_to_install(monkeypatch, corpus, taught_folder, tmp_path):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"^rollouts=vllm needs the package vllm .*pip install vllm$"):
        run_rl(rl(corpus, taught_folder, tmp_path / "out", "rollouts=vllm"))
    assert not (tmp_path / "features").exists(), "before any clip is decoded"


def test_a_server_needs_a_cuda_device_here(vllm, corpus, taught_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^vllm_mode=server: weights reach the server from a CUDA device, and none is"):
        run_rl(rl(corpus, taught_folder, tmp_path / "out", "rollouts=vllm", "vllm_mode=server"))
    assert not (tmp_path / "features").exists(), "before any clip is decoded"


def test_one_engine_runs_on_each_gpu(vllm, corpus, taught_folder, tmp_path):
    with pytest.raises(UserError, match=r"vllm_tensor_parallel_size.*expected 1"):
        run_rl(rl(corpus, taught_folder, tmp_path / "out", "rollouts=vllm", "vllm_tensor_parallel_size=2"))


# --- a server ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(taught):
    """Answers as `vllm serve` does (fields as TRL 1.16's client reads them); keeps what it was asked."""
    asked, refuse = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply({"data": [{"id": "served"}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, body))
            if refuse:
                self.send_error(400, refuse[0])
                return
            steps = [{"token": "token_id:5", "logprob": -0.5}, {"token": "token_id:6", "logprob": -0.25}]
            choices = [
                {"index": index, "token_ids": [5 + index, 6], "logprobs": {"content": steps}}
                for index in reversed(range(body["n"]))
            ]
            self.reply({"prompt_token_ids": [1, 2, 3], "choices": choices})

        def reply(self, content):
            data = json.dumps(content).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{http.server_port}", asked=asked, refuse=refuse)
    http.shutdown()
    http.server_close()


def test_a_server_is_sent_our_very_frames_and_samples(server, taught, prompts, clips):
    asked = [Asked(clip, request_of(taught, prompt, clip)) for prompt, clip in zip(prompts, clips, strict=True)]
    sampled = Served(server.url).sample(asked[:1], GROUP, Sampling(7, 0.9, 1.0, 2, 50, 0.05), taught)
    ((ids, (one, two)),) = sampled
    assert (ids, one.ids, two.ids, one.logps) == ([1, 2, 3], [5, 6], [6, 6], [-0.5, -0.25])
    ((path, body),) = server.asked
    assert path == "/v1/chat/completions"
    chosen = {name: body[name] for name in ("model", "n", "temperature", "max_tokens", "seed", "return_token_ids")}
    expected = ("served", GROUP, 0.9, 7, 2, True)
    assert tuple(chosen.values()) == expected
    # A server takes what a request leaves out from the model's generation_config.json.
    truncation = {name: body[name] for name in ("top_p", "top_k", "min_p", "repetition_penalty")}
    assert truncation == {"top_p": 1.0, "top_k": 50, "min_p": 0.05, "repetition_penalty": 1.0}
    assert body["mm_processor_kwargs"] == asked[0].request["mm_processor_kwargs"]
    video, sound, text = body["messages"][0]["content"]
    frames = video["video_url"]["url"].removeprefix("data:video/jpeg;base64,").split(",")
    decoded = np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(frame)))) for frame in frames])
    assert np.array_equal(decoded, asked[0].request["multi_modal_data"]["video"])
    wav = base64.b64decode(sound["input_audio"]["data"])
    waveform, rate = asked[0].request["multi_modal_data"]["audio"]
    assert (wav[:4], wav[8:16], int.from_bytes(wav[24:28], "little")) == (b"RIFF", b"WAVEfmt ", rate)
    assert np.array_equal(np.frombuffer(wav[44:], "<f4"), waveform)
    assert text["text"] == question(clips[0].subtitle, taught.settings.question)


def test_a_server_continues_what_was_prefilled(server, taught, prompts, clips):
    request = request_of(taught, fast_prompt(taught, prompts[0]), clips[0])
    Served(server.url).sample([Asked(clips[0], request, FAST_PREFILL)], 1, Sampling(2), taught)
    body = server.asked[0][1]
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant"]
    assert body["messages"][1]["content"] == FAST_PREFILL
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert body["bad_words"] == []


def test_a_float_wav_is_read_back_by_ffmpeg(taught, prompts, clips, tmp_path):
    from mer_r1.data.media.encode import float_wav
    from mer_r1.data.media.read import read_media

    waveform = request_of(taught, prompts[0], clips[0])["multi_modal_data"]["audio"][0]
    (tmp_path / "a.wav").write_bytes(float_wav(waveform, 16000))
    found = read_media(None, tmp_path / "a.wav").waveform
    np.testing.assert_allclose(found, waveform, atol=1e-6)


def test_what_a_server_does_not_take_is_said(server, taught, prompts, clips):
    asked = [Asked(clips[0], request_of(taught, prompts[0], clips[0]))]
    server.refuse.append("audio is too loud")
    with pytest.raises(UserError, match=r"refuses /v1/chat/completions: 400, .*audio is too loud"):
        Served(server.url).sample(asked, GROUP, Sampling(2), taught)
    with pytest.raises(UserError, match="does not answer /v1/models"):
        Served("http://127.0.0.1:1")
    with pytest.raises(UserError, match="expected http://HOST:PORT"):
        Served("localhost:8000")
