"""The plan's arithmetic: against counted weights, against counted operations, and against figures known beforehand."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_world import media, some_prompts
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration
from typer.testing import CliRunner

from mer_r1.cli import app
from mer_r1.errors import UserError
from mer_r1.model.generation import Sampling
from mer_r1.model.prompts import media_tensors
from mer_r1.rl.rollout import rollout
from mer_r1.training import plan
from mer_r1.training.plan import GPUS, Job
from mer_r1.training.shapes import SHAPES, from_config, shape_of

SEVEN, THREE = SHAPES["Qwen/Qwen2.5-Omni-7B"], SHAPES["Qwen/Qwen2.5-Omni-3B"]
KNOWN = Job("rl", rows=1000, shared=False, calibration=False)
"""Setting of the known figures: 1,500 prompt tokens, 4 rollouts of 300, full training, checkpointing, a reference."""


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
    flops = plan.step_flops(SEVEN, replace(KNOWN, gpus=1, micro=4))
    head = 2 * 1200 * SEVEN.text.hidden * SEVEN.text.vocabulary
    assert SEVEN.text.layers * SEVEN.text.layer_parameters == pytest.approx(6.53e9, rel=1e-3)
    assert flops["prefill"] == pytest.approx(20e12, rel=0.01)
    assert flops["sampling"] - head == pytest.approx(16.5e12, rel=0.01)
    assert flops["total"] == pytest.approx(521e12, rel=0.015)
    assert flops["total"] - 6 * head == pytest.approx(521e12, rel=0.005)


def test_the_known_cost_of_the_fast_confidence():
    shares = list(plan.calibration_ways(SEVEN, KNOWN).values())
    assert shares == pytest.approx([0.199, 0.050, 0.039, 0.0006], rel=0.06)


def test_the_known_step_with_shared_prefixes():
    """188 TFLOP is sampling and training; the reference pass, which the 521 include, comes on top."""
    flops = plan.step_flops(SEVEN, replace(KNOWN, shared=True))
    assert flops["total"] - flops["reference"] == pytest.approx(188e12, rel=0.01)
    plain = plan.step_flops(SEVEN, KNOWN)
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
    for parts in (plan.step_flops(SEVEN, job), plan.memory(SEVEN, job, GPUS["h100"])):
        assert min(parts.values()) >= 0
        assert sum(value for name, value in parts.items() if name != "total") == pytest.approx(parts["total"])

    def cost(**changes):
        changed = replace(job, **changes)
        return plan.step_flops(THREE, changed)["total"], plan.memory(THREE, changed, GPUS["h100"])["total"]

    assert cost(shared=True)[0] <= cost(shared=False)[0] * (1 + 1e-9)
    assert cost(features=True)[0] < cost(features=False)[0]
    assert cost(features=True)[1] < cost(features=False)[1]
    assert cost(checkpointing=False)[0] < cost(checkpointing=True)[0]
    assert cost(checkpointing=True)[1] <= cost(checkpointing=False)[1]
    if job.gpus > 1 and not job.lora_rank:
        assert cost(sharding="zero3")[1] < cost(sharding="none")[1]
    assert plan.step_flops(THREE, job)["total"] < plan.step_flops(SEVEN, job)["total"]


@given(JOBS, st.sampled_from(sorted(GPUS)))
def test_a_remedy_makes_it_fit(job, gpu):
    for (_, changed), text in zip(plan._changes(job), [text for text, _ in plan._changes(job)], strict=True):
        assert (text in plan.remedies(SEVEN, job, GPUS[gpu])) == plan.fits(SEVEN, changed, GPUS[gpu])
    assert plan.remedies(SEVEN, job, GPUS[gpu])


def test_memory_of_the_full_7b_by_hand():
    """One GPU, in full: 7.6156 B weights x (4 + 2 + 4 + 8) bytes are 137 GB, and 15 GB of a reference."""
    parts = plan.memory(SEVEN, Job("rl", rows=1), GPUS["h100"])
    trained = sum(parts[name] for name in ("weights", "bf16 copies", "gradients", "optimizer"))
    assert trained == 18 * 7615616512
    assert parts["reference"] == 2 * 7615616512
    assert not plan.fits(SEVEN, Job("rl", rows=1), GPUS["h200"])
    assert plan.fits(SEVEN, Job("rl", rows=1, lora_rank=64), GPUS["h100"])


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


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
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
    job = Job("predict", 1, prompt=1500, completion=300, patches=4800)
    parts = plan.answer_memory(SEVEN, "bf16", 1, job)
    assert parts["language model"] == 2 * SEVEN.text.parameters
    assert parts["KV cache"] == 2 * 2 * 28 * 4 * 128 * 1800, "keys and values of 28 layers, 4 heads of 128, in bf16"
    assert parts["total"] == sum(value for name, value in parts.items() if name != "total")
    four = plan.answer_memory(SEVEN, "4bit", 1, job)
    matrices = 28 * SEVEN.text.layer_matrices
    assert parts["language model"] - four["language model"] == pytest.approx(matrices * (2 - 0.51587), rel=1e-5)
    assert four["total"] < parts["total"] < plan.answer_memory(SEVEN, "fp32", 1, job)["total"]
    assert plan.answer_memory(SEVEN, "bf16", 8, job)["KV cache"] == 8 * parts["KV cache"]


def test_memory_of_answers_is_what_the_tiny_model_takes(taught, taught_folder):
    """Weights to the byte; the peak of the tensors while it answers within the parts that are estimates."""
    from torch.profiler import ProfilerActivity, profile

    shape = shape_of(str(taught_folder))
    prompts = some_prompts(taught)[:2]
    length = max(len(prompt.input_ids) for prompt in prompts)
    job = Job("predict", 1, prompt=length, completion=24, patches=0)
    parts = plan.answer_memory(shape, "fp32", 2, job)
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
