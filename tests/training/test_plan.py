"""The plan's arithmetic: against counted weights, against counted operations, and against figures known beforehand."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from math import ceil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_world import media, some_prompts
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor, smart_resize
from typer.testing import CliRunner

from mer_r1.cli import app
from mer_r1.data.media.container import ClipLimits
from mer_r1.errors import UserError
from mer_r1.model.generation import Sampling
from mer_r1.model.prompts import media_tensors
from mer_r1.rl.rollout import rollout
from mer_r1.training.costs import memory as bytes_of
from mer_r1.training.costs import plan, work
from mer_r1.training.costs.shapes import SHAPES, from_config, shape_of
from mer_r1.training.costs.work import GB, GPUS, Job

SEVEN, THREE = SHAPES["Qwen/Qwen2.5-Omni-7B"], SHAPES["Qwen/Qwen2.5-Omni-3B"]
KNOWN = Job("rl", rows=1000, shared=False, calibration=False)
"""Setting of the known figures: 1,500 prompt tokens, 4 rollouts of 300, full training, checkpointing, a reference."""
LORA = Job("rl", rows=1000, lora_rank=64, accumulation=16)
"""One GPU, 16 prompts a step; the longest prompt has 2,125 tokens, the longest completion 1,024."""
WEIGHTS, TOWERS, ADAPTERS, KV = 7_615_616_512, 1_316_197_376, 161_480_704, 57_344
"""Of the 7B by hand: weights of language model, towers and a LoRA of rank 64, bytes of a token's keys and values."""


def count(module):
    return sum(weight.numel() for weight in module.parameters())


def same_counts(shape, model):
    parts = model.model
    assert shape.vision.parameters == count(parts.visual)
    assert shape.audio.parameters == count(parts.audio_tower)
    assert shape.text.parameters == count(model) - count(parts.visual) - count(parts.audio_tower)
    assert shape.text.layer_parameters == count(parts.language_model.layers[0])


# --- weights ----------------------------------------------------------------------------------------------------------


def test_the_tiny_model_has_as_many_weights_as_counted(omni, tmp_path):
    omni.save(tmp_path)
    shape = shape_of(str(tmp_path))
    same_counts(shape, omni.model)
    assert shape.mels_per_second == 16000 / omni.processor.feature_extractor.hop_length


@pytest.mark.parametrize(("shape", "text"), [
    (SEVEN, {}),
    (THREE, {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
             "num_key_value_heads": 2, "vocab_size": 151936}),
], ids=["7b", "3b"])  # fmt: skip
def test_the_full_models_have_as_many_weights_as_counted(shape, text):
    out = shape.text.hidden
    config = Qwen2_5OmniThinkerConfig(
        text_config=text,
        vision_config={"hidden_size": 1280, "out_hidden_size": out},
        audio_config={"output_dim": out},
    )
    config.text_config.tie_word_embeddings = config.tie_word_embeddings = False
    with torch.device("meta"):
        model = Qwen2_5OmniThinkerForConditionalGeneration(config)
    same_counts(shape, model)
    assert replace(from_config({"thinker_config": config.to_dict()}, "x"), name=shape.name) == shape


def test_lora_has_as_many_weights_as_counted(omni, tmp_path):
    from peft import LoraConfig, get_peft_model

    from mer_r1.model.omni import load
    from mer_r1.training.stage import LANGUAGE_MODEL_LAYERS

    omni.save(tmp_path)
    adapted = get_peft_model(load(tmp_path).model, LoraConfig(r=4, target_modules=LANGUAGE_MODEL_LAYERS))
    assert shape_of(str(tmp_path)).text.lora_parameters(4) == adapted.get_nb_trainable_parameters()[0]


# --- operations -------------------------------------------------------------------------------------------------------


def counted(run):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


def test_a_forward_of_the_language_model_costs_what_is_counted(omni, tmp_path):
    """torch counts a causal attention as if nothing were masked: twice ours. Its difference is taken out by hand."""
    omni.save(tmp_path)
    text, tokens = shape_of(str(tmp_path)).text, 200
    ids = torch.arange(tokens)[None] % 300 + 10
    ours = text.forward(tokens, 0, tokens)
    masked = 2 * 2 * text.layers * text.hidden * tokens * tokens / 2
    theirs = counted(lambda: omni.model(input_ids=ids, attention_mask=torch.ones_like(ids)))
    assert ours + masked == pytest.approx(theirs, rel=0.01)


def test_the_towers_cost_what_is_counted(omni, tmp_path):
    omni.save(tmp_path)
    shape = shape_of(str(tmp_path))
    raw = media_tensors(omni, media(4.0, 0))
    patches, mels = len(raw["pixel_values_videos"]), raw["input_features"].shape[-1]
    steps = int(raw["video_grid_thw"][0, 0])
    seen = counted(lambda: omni.model.get_video_features(raw["pixel_values_videos"], raw["video_grid_thw"]))
    assert shape.vision.forward(patches, steps) == pytest.approx(seen, rel=0.05)
    mask = torch.ones(1, mels, dtype=torch.long)
    heard = counted(lambda: omni.model.get_audio_features(raw["input_features"][None], mask))
    assert shape.audio.forward(mels) == pytest.approx(heard, rel=0.05)


# --- known figures ----------------------------------------------------------------------------------------------------


def test_the_known_step_of_the_7b():
    """Prefill 20, sampling 16.5, step 521 TFLOP. Ours scores logits in every pass too: 6 x 1.3 TFLOP, 1.2 % in all."""
    flops = work.step_flops(SEVEN, replace(KNOWN, gpus=1, micro=4))
    head = 2 * 1200 * SEVEN.text.hidden * SEVEN.text.vocabulary
    assert SEVEN.text.layers * SEVEN.text.layer_parameters == pytest.approx(6.53e9, rel=1e-3)
    assert flops["prefill"] == pytest.approx(20e12, rel=0.01)
    assert flops["sampling"] - head == pytest.approx(16.5e12, rel=0.01)
    assert flops["total"] == pytest.approx(521e12, rel=0.015)
    assert flops["total"] - 6 * head == pytest.approx(521e12, rel=0.005)


def test_the_known_cost_of_the_fast_confidences():
    """A fifth to a quarter of a step that shares nothing; on the prompt's keys, once per rollout, 0.5 to 0.9 %."""
    shares = list(work.calibration_ways(SEVEN, KNOWN).values())
    assert shares == pytest.approx([0.199, 0.050, 0.039, 4 * 0.0006], rel=0.06)
    for changes, alone, ours in (
        ({}, 0.205, 0.0053),
        ({"lora_rank": 64}, 0.251, 0.0064),
        ({"lora_rank": 64, "group": 8}, 0.257, 0.0087),
    ):
        ways = work.calibration_ways(SEVEN, replace(KNOWN, shared=True, **changes))
        assert ways["a forward per rollout, towers too"] == pytest.approx(alone, rel=0.01)
        assert ways["on the prompt's KV cache"] == pytest.approx(ours, rel=0.01)


def test_passes_are_those_of_the_engine_that_samples():
    """Reference and training; vLLM also reads all batches of a generation but the first for their confidences."""
    vllm = replace(LORA, engine="vllm")
    assert work.scoring_passes(LORA) == {"reference": 1}
    assert work.scoring_passes(vllm) == {"slow confidences": 15 / 16, "reference": 1}
    assert work.scoring_passes(replace(vllm, accumulation=1)) == {"reference": 1}
    assert work.scoring_passes(replace(vllm, steps_per_generation=1)) == {"reference": 1}
    assert work.scoring_passes(replace(vllm, calibration=False, reference=False)) == {}
    for job in (LORA, vllm):
        for off_policy in ({"steps_per_generation": 32}, {"iterations": 2}):
            assert work.scoring_passes(replace(job, **off_policy)) == {"old log-probabilities": 1, "reference": 1}
    assert work.scoring_passes(replace(vllm, stage="sft")) == {}
    ours, theirs = (work.step_flops(SEVEN, job) for job in (LORA, vllm))
    once = work.scored_once(SEVEN, LORA)
    assert once == pytest.approx(37.8e12, rel=0.002)
    towers = 16 * work.clip_flops(SEVEN, LORA)
    assert theirs["total"] - ours["total"] == pytest.approx(15 * once + towers), "vLLM runs its own towers"


def test_rollouts_that_serve_two_steps_are_sampled_and_scored_half_as_often():
    once, twice = (work.step_flops(SEVEN, replace(LORA, iterations=n)) for n in (1, 2))
    assert twice["training"] == once["training"]
    for part in ("prefill", "sampling", "reference"):
        assert twice[part] == once[part] / 2
    assert replace(LORA, iterations=2).optimizer_steps == 2 * LORA.optimizer_steps == 2 * 1000 / 16
    assert replace(LORA, max_steps=7).optimizer_steps == 7


def test_the_known_step_with_shared_prefixes():
    """188 TFLOP is sampling and training; the reference pass, which the 521 include, comes on top."""
    flops = work.step_flops(SEVEN, replace(KNOWN, shared=True))
    assert flops["total"] - flops["reference"] == pytest.approx(188e12, rel=0.01)
    plain = work.step_flops(SEVEN, KNOWN)
    assert plain["training"] / flops["training"] == pytest.approx(2.6, rel=0.01)
    assert plain["total"] / flops["total"] == pytest.approx(2.33, rel=0.01)


# --- what must hold for any job ---------------------------------------------------------------------------------------

JOBS = st.builds(
    Job,
    stage=st.sampled_from(["sft", "rl"]),
    rows=st.integers(1, 50000),
    prompt=st.integers(50, 4000),
    completion=st.integers(10, 1024),
    micro=st.sampled_from([4, 8, 16]),
    accumulation=st.integers(1, 16),
    gpus=st.sampled_from([1, 8, 16]),
    sharding=st.sampled_from(["none", "zero3"]),
    lora_rank=st.sampled_from([0, 16, 64]),
    checkpointing=st.booleans(),
    shared=st.booleans(),
    features=st.booleans(),
)


@given(JOBS)
def test_parts_sum_up_and_savings_save(job):
    for parts in (work.step_flops(SEVEN, job), bytes_of.memory(SEVEN, job, GPUS["h100"])):
        assert min(parts.values()) >= 0
        assert sum(value for name, value in parts.items() if name != "total") == pytest.approx(parts["total"])

    def cost(**changes):
        changed = replace(job, **changes)
        return work.step_flops(THREE, changed)["total"], bytes_of.memory(THREE, changed, GPUS["h100"])["total"]

    assert cost(shared=True)[0] <= cost(shared=False)[0] * (1 + 1e-9)
    assert cost(features=True)[0] < cost(features=False)[0]
    assert cost(features=True)[1] < cost(features=False)[1]
    assert cost(checkpointing=False)[0] < cost(checkpointing=True)[0]
    assert cost(checkpointing=True)[1] <= cost(checkpointing=False)[1]
    if job.gpus > 1 and not job.lora_rank:
        assert cost(sharding="zero3")[1] < cost(sharding="none")[1]
    assert work.step_flops(THREE, job)["total"] < work.step_flops(SEVEN, job)["total"]


@given(JOBS, st.sampled_from(sorted(GPUS)))
def test_a_remedy_makes_it_fit(job, gpu):
    changes = list(plan._changes(SEVEN, job, GPUS[gpu]))
    assert plan.remedies(SEVEN, job, GPUS[gpu])
    for text, changed in changes:
        assert (text in plan.remedies(SEVEN, job, GPUS[gpu])) == plan.fits(SEVEN, changed, GPUS[gpu])


# --- memory, by hand --------------------------------------------------------------------------------------------------


def test_memory_of_the_full_7b_by_hand():
    """One GPU, in full: 7.6156 B weights x (4 + 2 + 4 + 8) bytes are 137 GB, and 15 GB of a reference."""
    parts = bytes_of.memory(SEVEN, Job("rl", rows=1), GPUS["h100"])
    trained = sum(parts[name] for name in ("weights", "bf16 copies", "gradients", "optimizer"))
    assert trained == 18 * WEIGHTS
    assert parts["reference"] == 2 * WEIGHTS
    assert parts["head's gradient"] == 4 * 152064 * 3584 == pytest.approx(2.18e9, rel=1e-3), (
        "float32, before it is added"
    )
    assert not plan.fits(SEVEN, Job("rl", rows=1), GPUS["h200"])
    assert plan.fits(SEVEN, Job("rl", rows=1, lora_rank=64), GPUS["h100"])


def test_memory_of_sampling_is_that_of_the_longest():
    """16 prompts at once: 34,000 tokens in one layer are more than the keys of 64 rollouts of 1,024 tokens."""
    parts = bytes_of.memory(SEVEN, LORA, GPUS["h100"])
    assert parts["weights"] == 2 * WEIGHTS + 4 * ADAPTERS == 15_877_155_840
    assert (parts["gradients"], parts["optimizer"]) == (645_922_816, 1_291_845_632)
    assert parts["KV cache"] == KV * 16 * 2125 == 1_949_696_000
    assert parts["prefill"] == 2 * 16 * 2125 * (2 * 3584 + 4 * 18944) == 5_640_192_000
    assert "activations" not in parts, "training takes less"
    assert parts["total"] == 15_877_155_840 + 645_922_816 + 1_291_845_632 + 1_949_696_000 + 5_640_192_000 + 2.5 * GB
    assert bytes_of.kv_cache(SEVEN, LORA) == KV * (16 * 2125 + 64 * 1024) == 5_707_792_384
    assert bytes_of.kv_cache(SEVEN, replace(LORA, copies=True)) == KV * 64 * (2125 + 1024) == 11_556_880_384
    copied = bytes_of.memory(SEVEN, replace(LORA, copies=True), GPUS["h100"])
    assert copied["KV cache"] == 11_556_880_384, "flash attention: each rollout has its prompt's keys"


def test_memory_of_training_is_that_of_the_longest():
    """One prompt of 2,125 tokens and four completions of 1,024 at a time."""
    job = replace(LORA, accumulation=1, engine="vllm", engine_share=0.0)
    parts = bytes_of.memory(SEVEN, job, GPUS["h100"])
    tokens = 2125 + 4 * 1024
    inside = 2 * tokens * (10 * 3584 + 2 * 512 + 4 * 18944)
    assert parts["activations"] == 2 * tokens * 3584 * 28 + inside == 2_650_046_464
    assert parts["logits"] == 2 * 4096 * 32768 + 4 * 4096 * 3584 == 327_155_712
    assert "head's gradient" not in parts, "the head does not learn"
    kept = bytes_of.memory(SEVEN, replace(job, checkpointing=False), GPUS["h100"])
    assert kept["activations"] == 2 * tokens * 3584 * 28 + 28 * inside


def test_vllm_starts_only_where_its_share_holds_the_model():
    """7B: 17.9 GB of weights, 1.4 GB for a step of 8,192 tokens, 0.2 GB for one sequence, 1 GB for CUDA graphs."""
    job = replace(LORA, engine="vllm", engine_share=0.3)
    needed = 2 * (WEIGHTS + TOWERS) + 2 * 8192 * (2 * 3584 + 4 * 18944) + KV * (2125 + 1024) + 1e9
    assert bytes_of.engine_bytes(SEVEN, job) == needed == pytest.approx(20.40e9, rel=1e-3)
    for gpu, share, starts in (("h100", 24.0, True), ("l40s", 14.4, False), ("a100-40", 12.0, False)):
        assert 0.3 * GPUS[gpu].memory == pytest.approx(share * GB)
        assert plan.engine_starts(SEVEN, job, GPUS[gpu]) is starts
        assert bytes_of.memory(SEVEN, job, GPUS[gpu])["vLLM"] == pytest.approx(share * GB)
    assert not plan.fits(SEVEN, job, GPUS["l40s"]), "although 37.3 GB are below 48"
    assert ceil(20 * needed / 48e9) / 20 == 0.45
    told = "vllm_gpu_memory_utilization=0.45, and vllm_enable_sleep_mode=true"
    assert plan.remedies(SEVEN, job, GPUS["l40s"])[0] == told, "21.6 GB beside 23.3 GB of training are too much"
    assert plan.engine_starts(SEVEN, replace(job, engine_share=0.0), GPUS["l40s"]), "on a server it has its own GPU"


def test_an_engine_that_sleeps_gives_its_memory_to_training():
    job = replace(LORA, engine="vllm", engine_share=0.5)
    awake, asleep = (bytes_of.memory(SEVEN, replace(job, engine_sleeps=s), GPUS["h100"]) for s in (False, True))
    trained = awake["activations"] + awake["logits"]
    assert awake["total"] - asleep["total"] == pytest.approx(min(trained, 40e9))
    assert (asleep["vLLM"], "activations" in asleep) == (40e9, False)


def test_what_faster_settings_bring_is_their_own_plan():
    levers = {lever["setting"]: lever for lever in plan.levers(SEVEN, LORA, GPUS["h100"])}
    assert list(levers) == ["gradient_checkpointing=false", "beta=0", "steps_per_generation=64"]
    without = replace(LORA, checkpointing=False)
    assert levers["gradient_checkpointing=false"]["bytes"] == bytes_of.memory(SEVEN, without, GPUS["h100"])["total"]
    # 16 forwards of 37.8 TFLOP less, at 40 % of 989 TFLOP/s: 1.53 s of a step.
    before = work.step_seconds(SEVEN, LORA, GPUS["h100"])["total"]
    for setting in ("gradient_checkpointing=false", "beta=0"):
        assert before - before / levers[setting]["times"] == pytest.approx(16 * 37.8 / (0.4 * 989), rel=0.002)
        assert levers[setting]["fits"]
    assert {lever["setting"] for lever in plan.levers(SEVEN, replace(without, stage="sft"), GPUS["h100"])} == set()


def test_sampling_lasts_until_the_longest_completion():
    """28 layers of 1 ms a token in PyTorch, a quarter of that in vLLM; reading 7B weights takes less on an H100."""
    seconds = {
        (engine, longest): work.step_seconds(
            SEVEN, replace(LORA, engine=engine, longest_completion=longest), GPUS["h100"]
        )["sampling"]
        for engine in ("hf", "vllm")
        for longest in (300, 600)
    }
    assert seconds["hf", 600] == 2 * seconds["hf", 300] == pytest.approx(600 * 0.028)
    read = (2 * WEIGHTS + KV * (16 * 1500 + 64 * 300)) / (0.6 * 3.35e12)
    assert seconds["vllm", 600] == 2 * seconds["vllm", 300] == pytest.approx(600 * max(read, 0.007))
    four = replace(LORA, steps_per_generation=64)
    assert work.step_seconds(SEVEN, four, GPUS["h100"])["sampling"] == pytest.approx(600 * 0.028 / 4)


# --- tokens of a clip -------------------------------------------------------------------------------------------------


@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([(3136, 12845056), (100352, 602112)]))
def test_tokens_of_a_frame_are_those_of_the_processor(height, width, bounds):
    if max(height, width) > 200 * min(height, width):
        return
    rows, columns = smart_resize(height, width, 28, *bounds)
    assert SEVEN.vision.frame_tokens(height, width, *bounds) == rows * columns / 28**2


def test_tokens_of_known_frames():
    """8 frames are 4 time steps; 640x360: 13 rows of 23 tokens, 1280x720: 26 of 46."""
    assert SEVEN.video_tokens(360, 640) == 4 * 13 * 23 == 1196
    assert SEVEN.video_tokens(720, 1280) == SEVEN.video_tokens(1080, 1920) == 4 * 26 * 46 == 4784
    bounded = replace(SEVEN, limits=ClipLimits(num_frames=8, max_pixels=640 * 360))
    assert bounded.video_tokens(720, 1280) == 1196, "max_pixels scales before the processor does"
    assert replace(SEVEN, limits=ClipLimits(num_frames=4)).video_tokens(360, 640) == 2 * 299
    assert (SEVEN.mel_frames(5.0), replace(SEVEN, limits=ClipLimits(max_seconds=2.0)).mel_frames(5.0)) == (500, 200)


def test_the_bounds_of_the_full_models_are_those_of_their_processor(tmp_path):
    """The hub's preprocessor_config.json, by copies of it; it has no video_preprocessor_config.json."""
    said = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said), encoding="utf-8")
    size = Qwen2VLVideoProcessor.from_pretrained(tmp_path).size
    assert (SEVEN.least_pixels, SEVEN.most_pixels) == (size["shortest_edge"], size["longest_edge"]) == (3136, 12845056)


def test_a_folder_says_what_its_model_takes_of_a_clip(omni, tmp_path):
    omni.save(tmp_path)
    shape, size = shape_of(str(tmp_path)), omni.processor.video_processor.size
    assert (shape.least_pixels, shape.most_pixels) == (size["shortest_edge"], size["longest_edge"])
    assert (shape.limits.num_frames, shape.limits.max_seconds) == (omni.settings.num_frames, omni.settings.max_seconds)
    found = media(4.0, 0)
    tokens = shape.vision.frame_tokens(*found.frames.shape[2:], shape.least_pixels, shape.most_pixels)
    grid = media_tensors(omni, found)["video_grid_thw"]
    assert int(grid[0, 1] * grid[0, 2]) // shape.vision.merge**2 == tokens


# --- time -------------------------------------------------------------------------------------------------------------


def test_the_run_is_as_long_as_its_steps():
    job = Job("rl", rows=6400, epochs=2, micro=4, accumulation=2, gpus=8)
    assert job.prompts_per_step == 16
    assert job.optimizer_steps == 800
    said = plan.as_dict(SEVEN, job, GPUS["a100"])
    assert said["run_seconds"] == pytest.approx(800 * said["step_seconds"]["total"])
    json.dumps(said)


# --- the command ------------------------------------------------------------------------------------------------------


def ask(*words):
    return CliRunner().invoke(app, ["plan", *map(str, words)])


@pytest.fixture
def recipe_file(tmp_path, corpus, taught_folder):
    file = tmp_path / "recipe.yaml"
    file.write_text(f"model: {taught_folder}\nmanifest: {corpus}\nnum_generations: 2\n", encoding="utf-8")
    return file


def test_the_command_reads_recipe_checkpoint_and_manifest(recipe_file):
    done = ask("--config", recipe_file, "--json", "gradient_checkpointing=true", "--gpus", 2)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["job"]["stage"] == "rl"
    assert said["job"]["rows"] == 6
    assert (said["job"]["group"], said["job"]["checkpointing"], said["job"]["sharding"]) == (2, True, "zero3")
    assert said["fits"]


def test_the_command_says_what_will_not_fit(recipe_file):
    done = ask("--config", recipe_file, "--shape", "Qwen/Qwen2.5-Omni-7B", "--gpu", "rtx4090")
    assert done.exit_code == 0, done.output
    assert "does NOT fit into 24 GB" in done.stdout
    assert "computed, not measured" in done.stdout


def test_the_command_says_how_long_prompts_are(recipe_file):
    seven = ("--config", recipe_file, "--shape", "Qwen/Qwen2.5-Omni-7B", "--frame", "1280x720", "num_generations=4")
    said = json.loads(ask(*seven, "--json").stdout)["job"]
    assert (said["prompt"], said["longest_prompt"], said["patches"]) == (4784 + 125 + 175, 4784 + 750 + 175, 4 * 4784)
    assert (said["longest_completion"], said["max_completion"]) == (600, 1024)
    bounded = json.loads(ask(*seven, "--json", "max_pixels=230400", "max_seconds=4", "num_frames=4").stdout)["job"]
    assert (bounded["prompt"], bounded["longest_prompt"], bounded["steps"]) == (598 + 100 + 175, 873, 2)
    assert "frames of 1280x720 make 4784 tokens" in ask(*seven).stdout


def test_the_command_says_that_vllm_cannot_start(recipe_file):
    done = ask("--config", recipe_file, "--shape", "Qwen/Qwen2.5-Omni-7B", "--gpu", "l40s", "lora_rank=64",
               "rollouts=vllm", "gradient_checkpointing=true", "per_device_train_batch_size=4",
               "gradient_accumulation_steps=2")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "vLLM cannot start: its share is 14.4 GB" in done.stdout
    assert "vllm_gpu_memory_utilization=0.45" in done.stdout
    assert "slow confidences" in done.stdout


def test_the_command_needs_neither_torch_nor_trl(recipe_file):
    """In a process of its own."""
    code = "import sys\nfrom mer_r1.cli import main\n"
    code += "try: main()\nfinally: print(sorted({'torch', 'transformers', 'trl', 'datasets'} & sys.modules.keys()))"
    command = [sys.executable, "-c", code, "plan", "--config", str(recipe_file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--frame", "wide"], "--frame must be WIDTHxHEIGHT"),
        (["method=mer-r2"], "method must be one of f1, rd, ad, mer-r1"),
        (["rollouts=vvlm"], "rollouts must be hf or vllm"),
        (["max_pixels=-3"], "expected a number above 0"),
        (["per_device_train_batch_size=3"], "expected a multiple of num_generations=2"),
        (["--gpu", "abacus"], "gpu must be one of h100"),
        (["--stage", "base"], "stage must be sft or rl"),
        (["--sharding", "zero9"], "sharding must be"),
        (["--shape", "gpt-2"], "no sizes for 'gpt-2'"),
        (["num_generation=4"], "did you mean 'num_generations'"),
    ],
)
def test_what_the_command_cannot_read_is_named(recipe_file, words, complaint):
    done = ask("--config", recipe_file, *words)
    assert isinstance(done.exception, UserError)
    assert complaint in str(done.exception)


def test_a_configuration_that_lacks_a_size_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"text_config": {}}', encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.json: cannot read a thinker's sizes"):
        shape_of(str(tmp_path))


# --- answering --------------------------------------------------------------------------------------------------------


def test_memory_of_answers_by_hand_for_the_7b():
    job = Job("predict", 1, longest_prompt=1500, max_completion=300, patches=4800)
    parts = bytes_of.answer_memory(SEVEN, "bf16", 1, job)
    assert parts["language model"] == 2 * SEVEN.text.parameters
    assert parts["KV cache"] == 2 * 2 * 28 * 4 * 128 * 1800, "keys and values of 28 layers, 4 heads of 128, in bf16"
    assert parts["total"] == sum(value for name, value in parts.items() if name != "total")
    four = bytes_of.answer_memory(SEVEN, "4bit", 1, job)
    matrices = 28 * SEVEN.text.layer_matrices
    assert parts["language model"] - four["language model"] == pytest.approx(matrices * (2 - 0.51587), rel=1e-5)
    assert four["total"] < parts["total"] < bytes_of.answer_memory(SEVEN, "fp32", 1, job)["total"]
    assert bytes_of.answer_memory(SEVEN, "bf16", 8, job)["KV cache"] == 8 * parts["KV cache"]


def test_memory_of_answers_is_what_the_tiny_model_takes(taught, taught_folder):
    """Weights to the byte; the peak of the tensors while it answers within the parts that are estimates."""
    from torch.profiler import ProfilerActivity, profile

    shape = shape_of(str(taught_folder))
    prompts = some_prompts(taught)[:2]
    length = max(len(prompt.input_ids) for prompt in prompts)
    job = Job("predict", 1, longest_prompt=length, max_completion=24, patches=0)
    parts = bytes_of.answer_memory(shape, "fp32", 2, job)
    assert parts["language model"] + parts["towers"] == 4 * count(taught.model)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        rollout(taught, prompts, 1, Sampling(24, 0.0))
    now = peak = 0
    for event in watched.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    computed = parts["KV cache"] + parts["activations"]
    assert 0.5 * peak < computed < 4 * peak, (peak, parts)


def test_the_command_shows_what_fits():
    done = CliRunner().invoke(app, ["plan", "predict", "--gpu", "rtx4090"], env={"COLUMNS": "120"})
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.stdout.splitlines()[2:]]
    assert [row[:2] for row in rows] == [
        [name, precision] for name in ("Qwen2.5-Omni-3B", "Qwen2.5-Omni-7B") for precision in ("fp32", "bf16", "4bit")
    ]
    fits = {(row[0][-2:], row[1]): row[8] for row in rows}
    assert fits["7B", "4bit"] == "yes"
    assert fits["7B", "fp32"] == "no"
    done = CliRunner().invoke(app, ["plan"])
    assert isinstance(done.exception, UserError)
