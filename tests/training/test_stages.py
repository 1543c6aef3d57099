"""The three stages from a manifest to a model folder, and what happens to runs that are cut short."""

import json
import logging
import os
import shutil
import subprocess
import sys
from bisect import bisect_right
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_world import SMALL, WORDS, entry, media
from transformers import Trainer

from mer_r1.data.claim import differences, digests
from mer_r1.data.clip import Clip
from mer_r1.data.manifest import read_manifest, write_manifest
from mer_r1.emotions.thinking import describe_question, parse, question, remark_question
from mer_r1.emotions.wheels import builtin
from mer_r1.errors import UserError
from mer_r1.lab.tiny import build
from mer_r1.lab.tiny.build import run_build
from mer_r1.model import features
from mer_r1.model.checkpoints import checkpoints, damage, read_record, write_record
from mer_r1.model.families import QWEN3, QWEN25
from mer_r1.model.omni import Settings, load
from mer_r1.model.prompts import IGNORE, Prompt
from mer_r1.model.shared_prefix.attention import packed_inputs
from mer_r1.model.tiny import tiny
from mer_r1.model.tower_outputs import media_embedded
from mer_r1.training import stage
from mer_r1.training.recipe_files import read_recipe, select_clips
from mer_r1.training.recipes import BuildRecipe, RLRecipe, SFTRecipe
from mer_r1.training.rl_stage import check_gold, run_rl
from mer_r1.training.sft_stage import SFTData, examples, run_sft
from mer_r1.training.sft_trainer import unlikelihood
from mer_r1.training.stage import checkpoint_to_resume, claim_run, identity, load_policy

LIMITS = dict.fromkeys(("num_frames", "max_seconds", "max_pixels", "audio_track"))

EVERYWHERE = [
    "use_cpu=true",
    "bf16=false",
    "report_to=none",
    "disable_tqdm=true",
    "workers=0",
    "logging_steps=1",
]
TINY = "{vocab_size: 400, hidden_size: 64, num_layers: 1, intermediate_size: 64, frame_size: 48, merge_size: 2, "
TINY += "patch_size: 12, vision_size: 32, vision_layers: 1, audio_size: 32, audio_layers: 1}"
SETTINGS = {
    BuildRecipe: [
        "vision_images=0",
        "audio_clips=4",
        "audio_steps=2",
        "caption_examples=8",
        "text_steps=2",
        f"tiny={TINY}",
        "max_steps=3",
        "per_device_train_batch_size=4",
    ],
    SFTRecipe: ["max_steps=2", "per_device_train_batch_size=3", "learning_rate=1e-3"],
    RLRecipe: [
        "max_steps=2",
        "per_device_train_batch_size=4",
        "num_generations=2",
        "max_completion_length=12",
        "learning_rate=1e-3",
    ],
}
SIGNAL = ["max_steps=1", "per_device_train_batch_size=8", "num_generations=4", "max_completion_length=24"]
"""For a taught model: in two groups of four rollouts some answers are better than others."""
LANGUAGE = {"language_model", "weight"}
"""Parts of the model that learn while the towers are frozen; the weight is that of the head, the input embedding."""


def recipe(kind, manifest, output_dir, *changes):
    paths = [f"manifest={manifest}", f"output_dir={output_dir}"]
    return read_recipe(kind, None, [*EVERYWHERE, *SETTINGS[kind], "save_strategy=no", *paths, *map(str, changes)])


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def timeless(folder):
    """The log without what depends on the clock."""
    clock = ("seconds", "runtime", "per_second", "step_time")
    return [{key: line[key] for key in line if not any(word in key for word in clock)} for line in lines(folder)]


def weights(folder):
    return load(folder).model.state_dict()


def moved(before, after):
    return {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}


# --- from a manifest to a model ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stages(corpus, tmp_path_factory):
    """All three stages, each on the model of the one before."""
    out, done, encoded = tmp_path_factory.mktemp("stages"), [], []
    original = features.encode_media

    def encode(model, media):
        encoded.append(len(media))
        return original(model, media)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "encode_media", encode)
        base = run_build(recipe(BuildRecipe, corpus, out / "base"), done.append)
        sft = run_sft(recipe(SFTRecipe, corpus, out / "sft", f"model={base}"), done.append)
        rl = run_rl(recipe(RLRecipe, corpus, out / "rl", f"model={sft}"), done.append)
    return SimpleNamespace(out=out, base=base, sft=sft, rl=rl, done=done, encoded=sum(encoded))


@pytest.mark.parametrize("family", [QWEN25, QWEN3], ids=lambda family: family.name)
def test_fsdp_wraps_the_layers_of_the_policys_own_family(family, tmp_path, monkeypatch):
    """Their class names differ, and one launch file is for both."""
    made = tiny([question("Hello.")], SMALL, 0, family)
    made.save(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "")
    monkeypatch.delenv("FSDP_TRANSFORMER_CLS_TO_WRAP")
    asked = SimpleNamespace(
        model=str(tmp_path), model_init_kwargs=None, lora_rank=0, train_towers=True, device="cpu", **LIMITS
    )
    layers = load_policy(asked).model.model.language_model.layers
    assert {type(layer).__name__ for layer in layers} == {os.environ["FSDP_TRANSFORMER_CLS_TO_WRAP"]}


class FreedHead(torch.autograd.Function):
    """A product whose weight is gathered for forward and backward alone, as TRL's losses do under ZeRO-3."""

    @staticmethod
    def forward(ctx, hidden, weight, whole):
        weight.data = whole
        ctx.save_for_backward(hidden, weight)
        found = hidden @ weight.T
        weight.data = torch.empty(0)
        return found

    @staticmethod
    def backward(ctx, gradient):
        hidden, _ = ctx.saved_tensors
        return None, gradient.T @ hidden, None


def test_the_gradient_of_a_head_that_is_freed_before_it_comes(monkeypatch, omni, tmp_path):
    omni.save(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    asked = SimpleNamespace(
        model=str(tmp_path), model_init_kwargs=None, lora_rank=0, train_towers=True, device="cpu", **LIMITS
    )
    weight = load_policy(asked).model.get_output_embeddings().weight
    whole, hidden = weight.data, torch.arange(2.0 * weight.shape[1]).view(2, -1)
    FreedHead.apply(hidden, weight, whole).sum().backward()
    assert weight.numel() == 0, "it stays freed"
    torch.testing.assert_close(weight.grad, hidden.sum(0).expand(whole.shape), rtol=0, atol=0)


def test_of_trls_warnings_the_untrue_one_is_left_out(caplog):
    for name in ("grpo_trainer", "sft_trainer"):
        log = logging.getLogger(f"trl.trainer.{name}")
        log.warning("You passed `model_init_kwargs` ... The `model_init_kwargs` will be ignored.")
        log.warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"] * 2


def test_every_stage_leaves_a_model_that_loads(stages):
    for name in ("base", "sft", "rl"):
        folder = getattr(stages, name)
        assert folder == stages.out / name / "model"
        assert load(folder).settings == Settings(num_frames=4, max_seconds=4.0, question="short")


def test_every_model_has_its_own_card_and_files_that_everybody_can_read(stages):
    for name, told in {"base": "cannot reason", "sft": "cold start", "rl": "reinforcement learning"}.items():
        folder = getattr(stages, name)
        assert told in (folder / "README.md").read_text(encoding="utf-8")
        assert all(file.stat().st_mode & 0o777 == 0o644 for file in folder.iterdir())
    # The library's own card, about a model that this is not.
    assert not any("time machine" in file.read_text() for file in stages.out.rglob("README.md"))


def test_supervised_stages_move_the_language_model_and_leave_the_towers(stages):
    towers, base, sft = (weights(folder) for folder in (stages.out / "base" / "towers", stages.base, stages.sft))
    for before, after in ((towers, base), (base, sft)):
        assert moved(before, after) == LANGUAGE


def test_every_stage_has_its_log(stages):
    for name, steps in (("base", 3), ("sft", 2), ("rl", 2)):
        logged = [line for line in lines(stages.out / name) if "loss" in line]
        assert [line["step"] for line in logged] == list(range(1, steps + 1))
    assert "confidence/slow_correct" in logged[0]
    assert "rewards/recall_reward/mean" in logged[0]


def test_progress_is_reported(stages):
    assert sum(stages.done) >= 3 * 6


def test_each_clip_passed_the_towers_once_in_all_stages_together(stages):
    """They are frozen after the first, so that SFT and RL find its outputs in the cache."""
    assert stages.encoded == 6


def test_the_tokenizer_of_a_built_model_has_learned_the_manifests_words(stages):
    tokenizer = load(stages.base).tokenizer
    assert len(tokenizer("This is sentence 3.")["input_ids"]) < len("This is sentence 3.") / 2


def test_towers_can_be_trained_too(stages, corpus, tmp_path):
    after = run_sft(recipe(SFTRecipe, corpus, tmp_path, f"model={stages.base}", "train_towers=true", "max_steps=1"))
    assert moved(weights(stages.base), weights(after)) == {*LANGUAGE, "visual", "audio_tower"}


def test_adapters_go_to_the_language_model_and_are_merged(taught_folder, corpus, tmp_path):
    after = run_rl(recipe(RLRecipe, corpus, tmp_path, f"model={taught_folder}", "lora_rank=2", *SIGNAL))
    before, found = weights(taught_folder), weights(after)
    assert before.keys() == found.keys()
    changed = {name for name in before if not torch.equal(before[name], found[name])}
    assert changed
    assert all("language_model" in name and "_proj" in name for name in changed)


# --- cut short and resumed --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(stages, corpus):
    """Four steps of SFT with a checkpoint after each second one."""
    changes = [f"model={stages.base}", "max_steps=4", "save_strategy=steps", "save_steps=2"]
    run_sft(recipe(SFTRecipe, corpus, stages.out / "whole", *changes))
    return stages.out / "whole", changes


@pytest.fixture
def killed(whole, tmp_path):
    """The same run, killed while it wrote its second checkpoint."""
    folder, changes = whole
    shutil.copytree(folder, tmp_path / "killed", ignore=shutil.ignore_patterns("model"))
    (tmp_path / "killed" / "checkpoint-4" / "trainer_state.json").unlink()
    (tmp_path / "killed" / "checkpoint-4" / "optimizer.pt").write_bytes(b"half")
    return tmp_path / "killed", changes


class Killed(BaseException):
    """What ends a run, as a kill would."""


def kill_while_saving(patch, step, moment):
    """Kill a run while it writes the checkpoint of a step, before one of the host's methods."""
    original = getattr(Trainer, moment)

    def until(trainer, *args):
        if trainer.state.global_step == step:
            raise Killed
        original(trainer, *args)

    patch.setattr(Trainer, moment, until)


def test_a_checkpoint_appears_whole_or_not_at_all(stages, corpus, tmp_path):
    """Killed while the first is written, then while the second is: no half of one is ever there."""
    changes = [f"model={stages.base}", "max_steps=2", "save_strategy=steps", "save_steps=1"]
    resumed = recipe(SFTRecipe, corpus, tmp_path, *changes, "resume_from_checkpoint=true")
    for step, moment, left in ((1, "_save_scaler", []), (2, "_save_rng_state", ["checkpoint-1"])):
        with pytest.MonkeyPatch.context() as patch:
            kill_while_saving(patch, step, moment)
            with pytest.raises(Killed):
                run_sft(resumed)
        assert [path.name for path in checkpoints(tmp_path)] == left
    run_sft(resumed)
    kept = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert kept == {"checkpoint-1", "checkpoint-2", "model"}, "what the kills left is gone"
    files = read_record(tmp_path / "checkpoint-2")["files"]
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "mer_r1.json", "rng_state.pth"} <= files.keys()


def test_a_resumed_run_equals_an_uninterrupted_one(whole, killed, corpus):
    folder, changes = killed
    resumed = run_sft(recipe(SFTRecipe, corpus, folder, *changes, "resume_from_checkpoint=true"))
    expected, found = weights(whole[0] / "model"), weights(resumed)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert [line["step"] for line in lines(folder) if "loss" in line] == [1, 2, 3, 4]
    assert timeless(folder) == timeless(whole[0])


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_the_log_of_a_resumed_run_is_that_of_an_uninterrupted_one(stages, corpus, tmp_path, stage):
    """Lines of two steps, a checkpoint after each: the line that the kill cut in two averages over both its steps."""
    kind, run = {"sft": (SFTRecipe, run_sft), "rl": (RLRecipe, run_rl)}[stage]
    changes = [f"model={stages.sft}", "max_steps=4", "save_strategy=steps", "save_steps=1", "logging_steps=2"]
    run(recipe(kind, corpus, tmp_path / "whole", *changes))
    expected = timeless(tmp_path / "whole")
    assert [line["step"] for line in expected] == [2, 4, 4]
    mean = sum(line["loss"] for line in expected[:2]) / 2
    assert expected[2]["train_loss"] == pytest.approx(mean, abs=1e-6)
    for last in (3, 4):
        shutil.copytree(tmp_path / "whole", tmp_path / str(last))
        for step in range(last + 1, 5):
            shutil.rmtree(tmp_path / str(last) / f"checkpoint-{step}")
        run(recipe(kind, corpus, tmp_path / str(last), *changes, "resume_from_checkpoint=true"))
        assert timeless(tmp_path / str(last)) == expected


def test_a_checkpoint_can_be_named_and_loads_by_itself(whole, corpus, tmp_path):
    folder, changes = whole
    named = folder / "checkpoint-2"
    assert load(named).settings.question == "short"
    resumed = run_sft(recipe(SFTRecipe, corpus, tmp_path, *changes, f"resume_from_checkpoint={named}"))
    expected, found = weights(folder / "model"), weights(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("changes", [[], ["resume_from_checkpoint=false"]], ids=["not said", "said no"])
def test_a_folder_with_a_run_is_refused_unless_it_is_to_be_resumed(whole, corpus, changes):
    folder, rest = whole
    with pytest.raises(UserError, match="holds a run up to checkpoint-4: pass resume_from_checkpoint=true"):
        run_sft(recipe(SFTRecipe, corpus, folder, *rest, *changes))


def test_which_checkpoint_a_run_goes_on_from(tmp_path):
    def choose(asked):
        return checkpoint_to_resume(SimpleNamespace(output_dir=str(tmp_path), resume_from_checkpoint=asked))

    assert choose(None) is None
    assert choose("true") is None, "nothing there yet: it starts from the beginning"
    write_record(tmp_path, run={"seed": 1})
    for step in (9, 10, 200):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "optimizer.pt").write_bytes(b"moments")
        (folder / "trainer_state.json").write_text("{}")
        files = dict(zip(("optimizer.pt", "trainer_state.json"), digests(sorted(folder.iterdir())), strict=True))
        write_record(folder, run={"seed": 1}, files=files)
    (tmp_path / "checkpoint-x").mkdir()
    assert choose("true") == str(tmp_path / "checkpoint-200"), "by number, not by name"
    for content in (b"", b"{", None):
        state = tmp_path / "checkpoint-200" / "trainer_state.json"
        state.write_bytes(content) if content is not None else state.unlink()
        assert choose("true") == str(tmp_path / "checkpoint-10"), "the incomplete one is skipped"
        with pytest.raises(UserError, match=r"no complete checkpoint at .*checkpoint-200: trainer_state.json is "):
            choose(str(tmp_path / "checkpoint-200"))
    assert choose(str(tmp_path / "checkpoint-9")) == str(tmp_path / "checkpoint-9")
    (tmp_path / "checkpoint-10" / "optimizer.pt").write_bytes(b"moment")
    assert choose("true") == str(tmp_path / "checkpoint-9"), "half written"
    record = tmp_path / "checkpoint-9" / "training.json"
    record.write_text(record.read_text().replace("1", "2", 1))
    assert choose("true") is None, "a record that was changed says nothing"
    write_record(tmp_path / "checkpoint-9", run={"seed": 2}, files={})
    with pytest.raises(UserError, match=r"checkpoint-9 belongs to another run \(seed: 2, now 1\)"):
        choose("true")
    record.unlink()
    with pytest.raises(UserError, match=r"checkpoint-9: no training.json says which run it belongs to"):
        choose("true")


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"])
def test_a_checkpoint_from_which_a_file_was_taken_is_refused(whole, corpus, tmp_path, name):
    folder, changes = whole
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "checkpoint-4" / name).unlink()
    with pytest.raises(UserError, match=f"checkpoint-4: {name} is missing, and a resumed run would continue without"):
        run_sft(recipe(SFTRecipe, corpus, tmp_path / "run", *changes, "resume_from_checkpoint=true"))


def test_a_checkpoint_without_an_optimizer_is_refused(tmp_path):
    write_record(tmp_path, run={}, files={})
    (tmp_path / "trainer_state.json").touch()
    with pytest.raises(UserError, match="the optimizer is missing"):
        damage(tmp_path, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("learning_rate=0.1", "learning_rate: 0.001, now 0.1"),
        ("seed=9", "seed: 42, now 9"),
        ("max_steps=6", "max_steps: 4, now 6"),
        ("replay=1", "replay: 0, now 1"),
        ("clips=1:", "clips: '[0-9a-f]+', now '[0-9a-f]+'"),
        ("lora_rank=2", "lora_rank: 0, now 2"),
        ("per_device_train_batch_size=2", "per_device_train_batch_size: 3, now 2"),
    ],
)
@pytest.mark.parametrize("resume", ["true", "false"])
def test_another_run_is_not_resumed(whole, corpus, change, message, resume):
    folder, changes = whole
    with pytest.raises(
        UserError, match=rf"holds checkpoint-\d of another run \({message}\): choose another output_dir"
    ):
        run_sft(recipe(SFTRecipe, corpus, folder, *changes, change, f"resume_from_checkpoint={resume}"))


def test_another_stage_or_starting_model_is_not_resumed(whole, stages, corpus):
    folder, changes = whole
    with pytest.raises(UserError, match=r"another run \(stage: 'sft', now 'rl'\)"):
        run_rl(recipe(RLRecipe, corpus, folder, f"model={stages.sft}", "resume_from_checkpoint=true"))
    with pytest.raises(UserError, match=r"another run \(starting model: '[0-9a-f]{16}', now '[0-9a-f]{16}'\)"):
        run_sft(recipe(SFTRecipe, corpus, folder, *changes, f"model={stages.sft}", "resume_from_checkpoint=true"))


def test_a_checkpoint_of_another_run_is_not_taken_by_name(whole, corpus, tmp_path):
    folder, changes = whole
    changes = [*changes, "seed=9", f"resume_from_checkpoint={folder / 'checkpoint-2'}"]
    with pytest.raises(UserError, match=r"checkpoint-2 belongs to another run \(seed: 42, now 9\)"):
        run_sft(recipe(SFTRecipe, corpus, tmp_path, *changes))


def test_a_folder_without_parts_to_resume_takes_any_run(stages, corpus, tmp_path):
    changes = [f"model={stages.base}", "resume_from_checkpoint=true"]
    first = recipe(SFTRecipe, corpus, tmp_path, *changes, "seed=9")
    clips = select_clips(first)
    claim_run(first, clips)
    second = recipe(SFTRecipe, corpus, tmp_path, *changes)
    claim_run(second, clips)
    assert read_record(tmp_path)["run"]["seed"] == 42
    (tmp_path / "towers").mkdir()
    claim_run(second, clips)
    with pytest.raises(UserError, match=r"holds towers of another run \(seed: 42, now 9\)"):
        claim_run(first, clips)
    (tmp_path / "training.json").unlink()
    with pytest.raises(UserError, match="holds towers of a run without a record"):
        claim_run(second, clips)


def test_limits_of_clips_are_the_models_those_of_the_run_and_of_what_it_saves(stages, corpus, tmp_path, caplog):
    limited = ["num_frames=2", "max_seconds=1", "max_pixels=900", f"model={stages.base}", "max_steps=1"]
    settings = recipe(SFTRecipe, corpus, tmp_path / "run", *limited)
    with caplog.at_level("INFO"):
        folder = run_sft(settings)
    assert (load(folder).settings.num_frames, load(folder).settings.max_pixels) == (2, 900)
    assert "of each clip 2 frames of at most 900 pixels and 1 s: " in caplog.text
    clips = select_clips(settings)
    other = recipe(SFTRecipe, corpus, tmp_path / "run", *limited, "max_pixels=901")
    assert differences(identity(settings, clips), identity(other, clips)) == "max_pixels: 900, now 901"


def test_what_a_run_is_and_what_may_differ(stages, corpus, tmp_path):
    """Media, labels and the model count by content, whatever their paths; logging and saving do not count."""
    copy = Path(shutil.copytree(corpus.parent, tmp_path / "moved")) / corpus.name
    model = shutil.copytree(stages.base, tmp_path / "model")

    def run(*changes, kind=SFTRecipe, manifest=copy):
        changed = recipe(kind, manifest, tmp_path / "out", f"model={model}", *changes)
        return identity(changed, select_clips(changed))

    expected = run()
    free = ["logging_steps=3", "save_steps=7", "save_total_limit=1", "workers=1", "report_to=tensorboard"]
    free += ["features_dir=elsewhere", "gradient_checkpointing=true", f"model={stages.base}"]
    assert run(*free, manifest=corpus) == expected
    clips = read_manifest(copy)
    write_manifest(copy, [replace(clips[0], subtitle="Other words."), *clips[1:]])
    assert differences(expected, run()).startswith("clips: ")
    write_manifest(copy, clips)
    assert run() == expected
    shutil.copy(clips[3].video, clips[0].video)
    assert differences(expected, run()).startswith("clips: ")
    shutil.copy(corpus.parent / clips[0].video.name, clips[0].video)
    file = Path(model) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert differences(expected, run()).startswith("starting model: ")
    assert differences(run(kind=RLRecipe), run("method=f1", kind=RLRecipe)) == "method: 'mer-r1', now 'f1'"


def test_a_checkpoint_that_is_not_there(stages, corpus, tmp_path):
    changes = [f"model={stages.base}", f"resume_from_checkpoint={tmp_path / 'checkpoint-7'}"]
    with pytest.raises(UserError, match="checkpoint-7"):
        run_sft(recipe(SFTRecipe, corpus, tmp_path, *changes))


def test_a_build_that_was_killed_does_not_train_its_towers_again(stages, corpus, tmp_path, monkeypatch):
    for part in ("towers", "training.json"):
        copy = shutil.copytree if part == "towers" else shutil.copy
        copy(stages.out / "base" / part, tmp_path / part)
    monkeypatch.setattr(build, "_initialised", lambda *_: pytest.fail("eyes and ears were trained before"))
    run_build(recipe(BuildRecipe, corpus, tmp_path, "resume_from_checkpoint=true"))
    with pytest.raises(UserError, match=r"holds towers of another run \(seed: 42, now 7\)"):
        run_build(recipe(BuildRecipe, corpus, tmp_path, "seed=7"))


# --- which clips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([], [0, 1, 2, 3, 4, 5]),
        (["split=test"], [6, 7]),
        (["split=all"], [0, 1, 2, 3, 4, 5, 6, 7]),
        (["clips=1:3"], [1, 2]),
        (["clips=:2"], [0, 1]),
        (["clips=4:"], [4, 5]),
        (["clips=4:100"], [4, 5]),
        (["clips=:"], [0, 1, 2, 3, 4, 5]),
        (["split=all", "clips=5:7"], [5, 6]),
    ],
)
def test_a_slice_is_taken_of_the_splits_rows(corpus, changes, expected):
    chosen = select_clips(recipe(SFTRecipe, corpus, "out", *changes))
    assert [clip.id for clip in chosen] == [f"clip-{index}" for index in expected]


@pytest.mark.parametrize("text", ["5", "a:b", "1:2:3", "-3:", "0:4.5"])
def test_a_slice_that_is_none(corpus, text):
    with pytest.raises(UserError, match="clips must be a slice such as 0:400"):
        select_clips(recipe(SFTRecipe, corpus, "out", f"clips={text}"))


@pytest.mark.parametrize("changes", [["split=val"], ["clips=6:"], ["clips=3:2"], ["split=trian"]])
def test_a_choice_without_clips(corpus, changes):
    with pytest.raises(UserError, match="no clips") as caught:
        select_clips(recipe(SFTRecipe, corpus, "out", *changes))
    assert changes[0].partition("=")[2] in str(caught.value)


def test_paths_have_no_default(corpus, tmp_path):
    with pytest.raises(UserError, match="no manifest: give manifest="):
        select_clips(read_recipe(SFTRecipe, None, [*EVERYWHERE, "output_dir=out"]))
    for kind, run in ((SFTRecipe, run_sft), (RLRecipe, run_rl)):
        with pytest.raises(UserError, match="no model: give model="):
            run(recipe(kind, corpus, tmp_path))
        with pytest.raises(UserError, match="no model at"):
            run(recipe(kind, corpus, tmp_path, f"model={tmp_path / 'none'}"))
    with pytest.raises(UserError, match=r"none\.jsonl"):
        run_sft(recipe(SFTRecipe, tmp_path / "none.jsonl", tmp_path))


# --- what is learned --------------------------------------------------------------------------------------------------


def test_slow_examples_are_the_reasoning_and_the_careful_answer(omni):
    careful = Clip(
        "a", subtitle="Hi.", labels=("happy", "sad"), reasoning="A smile.", meta={"careful_labels": ["happy"]}
    )
    (row,) = examples([careful], omni, "slow")
    assert row["clip_index"] == 0
    assert row["asked"] == question("Hi.", "short")
    assert row["target"] == "<think> A smile. </think><answer> happy </answer>"
    (row,) = examples([replace(careful, meta={})], omni, "slow")
    assert parse(row["target"]).labels == ("happy", "sad")


def test_base_examples_are_a_description_a_remark_and_a_broad_direct_answer(omni):
    meta = {"description": "a wide smile", "remark": "A smile. So happy.", "broad_labels": ["happy", "calm"]}
    clips = [Clip("a", subtitle="Hi.", meta=meta), Clip("b", subtitle="Ho.", meta=meta)]
    rows = examples(clips, omni, "base")
    assert [row["clip_index"] for row in rows] == [0, 0, 0, 1, 1, 1]
    assert [row["asked"] for row in rows[:3]] == [
        describe_question("Hi."),
        remark_question("Hi."),
        question("Hi.", "short"),
    ]
    assert [row["target"] for row in rows[:2]] == ["a wide smile", "A smile. So happy."]
    assert rows[2]["target"] == "<think></think><answer> happy, calm </answer>", "the base reasons in no block"


def emotional_clips(count=3):
    return [
        Clip(
            f"c{i}",
            subtitle=f"Line {i}.",
            labels=(WORDS[i], WORDS[i + 1]),
            reasoning=f"Sign {i}.",
            meta={"careful_labels": [WORDS[i]], "broad_labels": [WORDS[i], "calm"]},
        )
        for i in range(count)
    ]


def test_counterfactual_examples_give_other_clips_reasonings_and_teach_their_answers(omni):
    """Of three clips each sees both others: its own question, their reasoning, their answer."""
    rows = examples(emotional_clips(), omni, "slow", counterfactual_rows=2)
    assert [row["clip_index"] for row in rows] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for index in range(3):
        own, *others = rows[3 * index : 3 * index + 3]
        assert own["given"] == ""
        assert {row["asked"] for row in (own, *others)} == {question(f"Line {index}.", "short")}
        expected = {(f"<think> Sign {i}. </think>", f"<answer> {WORDS[i]} </answer>") for i in range(3) if i != index}
        assert {(row["given"], row["target"]) for row in others} == expected


def test_the_other_clips_are_drawn_by_the_seed(omni):
    clips = emotional_clips(7)
    drawn = {seed: examples(clips, omni, "slow", counterfactual_rows=3, seed=seed) for seed in (0, 1)}
    assert drawn[0] == examples(clips, omni, "slow", counterfactual_rows=3)
    assert drawn[0] != drawn[1]
    with pytest.raises(UserError, match="counterfactual_rows=7 needs at least 8 clips, got 7"):
        examples(clips, omni, "slow", counterfactual_rows=7)


def test_replayed_examples_are_the_broad_answer_after_a_given_empty_think(omni):
    clips = emotional_clips(1)
    slow, fast = examples(clips, omni, "slow", replay=1)
    assert slow["target"] == "<think> Sign 0. </think><answer> happy </answer>"
    assert (fast["asked"], fast["given"]) == (slow["asked"], "<think></think>")
    assert fast["target"] == "<answer> happy, calm </answer>"
    with pytest.raises(UserError, match=r"clip c0: replay=1 needs meta\.broad_labels"):
        examples([replace(clips[0], meta={})], omni, "slow", replay=1)


def test_gold_labels_replace_the_careful_ones_where_asked(omni):
    rows = examples(emotional_clips(2), omni, "slow", labels="gold", counterfactual_rows=1)
    assert [parse(row["given"] + row["target"]).labels for row in rows] == [
        *(("happy", "sad"), ("sad", "angry")),
        *(("sad", "angry"), ("happy", "sad")),
    ]
    (twice,) = examples(emotional_clips(1), omni, "twice", labels="gold")
    assert twice["target"].count("happy, sad") == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["labels=broad"], "labels must be careful or gold"),
        (["replay=2"], "replay must be 0 or 1"),
        (["counterfactual_rows=-1"], "must not be negative"),
        (["targets=twice", "replay=1"], "replay is for targets=slow, got targets=twice"),
        (["targets=base", "counterfactual_rows=1"], "counterfactual_rows is for targets=slow"),
        (["targets=twice", "must_reason=false"], "must_reason is for targets=slow"),
        (["targets=base", "labels=gold"], "labels has no effect"),
    ],
)
def test_rows_that_a_stage_does_not_have_are_refused(corpus, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        recipe(SFTRecipe, corpus, tmp_path, *changes)


class Entries:
    """A feature cache of the tiny world."""

    def __init__(self, omni):
        self.found = {f"c{i}": entry(omni, media(2.0 + 0.3 * i, i)) for i in range(3)}

    def get(self, clip):
        return self.found[clip.id]


@pytest.mark.parametrize("settings", [{"counterfactual_rows": 2}, {"counterfactual_rows": 1, "replay": 1}])
def test_what_is_given_is_read_and_not_learned_packed_or_not(omni, settings):
    """The tokens are those of the whole text, the loss is on those of the target, and both ways agree on it."""
    clips = emotional_clips()
    rows = examples(clips, omni, "slow", **settings)
    plain = SFTData(omni, clips, rows, Entries(omni), shared_prefixes=False)
    packed = SFTData(omni, clips, rows, Entries(omni), shared_prefixes=True)
    assert [len(item["rows"]) for item in packed.rows] == [3, 3, 3]
    batches = plain.collate(plain.rows), packed.collate(packed.rows)
    end = omni.tokenizer.decode([omni.tokenizer.eos_token_id])
    for row, ids, labels in zip(rows, batches[0]["input_ids"], batches[0]["labels"], strict=True):
        assert omni.tokenizer.decode(labels[labels != IGNORE]) == row["target"] + end
        whole = [*omni.tokenizer(row["given"] + row["target"])["input_ids"], omni.tokenizer.eos_token_id]
        assert ids[ids != omni.tokenizer.pad_token_id][-len(whole) :].tolist() == whole
    learned = [batch["labels"][batch["labels"] != IGNORE].tolist() for batch in batches]
    assert learned[0] == learned[1]
    assert batches[1]["input_ids"].numel() < batches[0]["input_ids"].numel(), "prompts are shared"
    with torch.no_grad(), media_embedded(omni.model, batches[0].pop("media")):
        expected = omni.model(**batches[0]).loss
    with torch.no_grad(), media_embedded(omni.model, batches[1].pop("media")):
        found = omni.model(**packed_inputs(omni.model, batches[1])).loss
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_unlikelihood_is_that_of_the_words_already_said_packed_or_not(omni):
    """Three words: before the second the first one counts, before the third the first two; by hand, row by row."""
    clips = [replace(clip, meta={"broad_labels": ["happy", "sad", "angry"]}) for clip in emotional_clips()]
    rows = examples(clips, omni, "slow", labels="gold", replay=1)
    expected, found = [], []
    for shared in (False, True):
        data = SFTData(omni, clips, rows, Entries(omni), shared)
        batch = data.collate(data.rows)
        inputs = packed_inputs(omni.model, batch) if shared else batch
        with torch.no_grad(), media_embedded(omni.model, batch["media"]):
            inputs = {name: value for name, value in inputs.items() if name not in ("media", "labels")}
            output = omni.model(**inputs, output_hidden_states=True)
        found.append(unlikelihood(omni.model, output.hidden_states[-1], batch["labels"], omni.tokenizer))
        if not shared:
            for row, logits, tokens in zip(rows, output.logits, batch["labels"], strict=True):
                spans = omni.tokenizer(row["target"], return_offsets_mapping=True)["offset_mapping"]
                ends, start = [end for _, end in spans], int((tokens != IGNORE).long().argmax())
                words = parse(row["given"] + row["target"]).labels
                offsets = [row["target"].index(word, row["target"].index("<answer>")) for word in words]
                places = [start + bisect_right(ends, offset) for offset in offsets]
                for number, place in enumerate(places[1:], 1):
                    chances = logits[place - 1].softmax(dim=-1)
                    expected.append(-(1 - chances[tokens[places[:number]].unique()].sum()).log())
    assert len(expected) == 3 * (1 + 2)
    torch.testing.assert_close(torch.stack(found), torch.stack(expected).sum().expand(2), rtol=1e-4, atol=0)
    silent = torch.full((1, 4), IGNORE)
    assert unlikelihood(omni.model, torch.ones(1, 4, 8), silent, omni.tokenizer) == 0


def test_unlikelihood_is_added_to_the_loss(corpus, taught_folder, tmp_path):
    """Per learned token of the batch, as the rest of the loss."""
    losses = []
    for weight in (0.0, 1e3, 3e3):
        common = [f"model={taught_folder}", f"unlikelihood={weight}", "replay=1", "max_steps=1", "learning_rate=0"]
        run_sft(recipe(SFTRecipe, corpus, tmp_path / str(weight), *common))
        losses.append(lines(tmp_path / str(weight))[0]["loss"])
    assert losses[1] > losses[0]
    assert losses[2] - losses[0] == pytest.approx(3 * (losses[1] - losses[0]), rel=1e-3)


def test_a_token_across_the_cut_is_learned(omni):
    """Where a tokenizer joins the end of one tag and the beginning of the next, as Qwen2.5's does."""
    joined = SimpleNamespace(
        tokenizer=lambda text: {"input_ids": [ord(c) for c in text.replace("><", "#")]}, processor=None
    )
    joined.tokenizer.eos_token_id = 0
    data = SFTData(joined, [], [], None, shared_prefixes=False)
    data._prompt_of = lambda *_: Prompt(torch.tensor([1]), torch.zeros(3, 1, dtype=torch.long), {})
    row = {"clip_index": 0, "asked": "", "given": "<think>a</think>", "target": "<answer>b</answer>"}
    prompt, target = data._encoded(row)
    assert "".join(map(chr, prompt.input_ids[1:])) == "<think>a</think"
    assert "".join(map(chr, target)) == "#answer>b</answer>\0"


@pytest.mark.parametrize(
    ("changes", "expected"), [(["replay=1", "counterfactual_rows=1"], True), (["must_reason=true"], True), ([], False)]
)
def test_replay_makes_slow_thinking_reason_and_the_model_keeps_it(corpus, taught_folder, tmp_path, changes, expected):
    model = run_sft(recipe(SFTRecipe, corpus, tmp_path, f"model={taught_folder}", "max_steps=1", *changes))
    assert load(model).settings.must_reason is expected
    again = run_rl(recipe(RLRecipe, corpus, tmp_path / "rl", f"model={model}", "max_steps=1", "fast_share=0.5"))
    assert load(again).settings.must_reason is expected


@pytest.mark.parametrize(
    ("clip", "targets", "message"),
    [
        (Clip("c7", labels=("happy",)), "slow", "clip c7: .*reasoning"),
        (Clip("c7", reasoning="A smile."), "slow", "clip c7: .*labels"),
        (Clip("c7", labels=("happy",), reasoning="A </think> tag."), "slow", "reasoning"),
        (Clip("c7", meta={"broad_labels": ["happy"]}), "base", r"clip c7: .*meta\.description"),
        (Clip("c7", meta={"description": "x", "remark": "y"}), "base", r"clip c7: .*meta\.broad_labels"),
        (Clip("c7", meta={"description": "x", "broad_labels": ["happy"]}), "base", r"clip c7: .*meta\.remark"),
        (Clip("c7"), "fast", "slow, twice or base"),
    ],
)
def test_a_clip_without_the_texts_that_a_stage_needs(omni, clip, targets, message):
    with pytest.raises(UserError, match=message):
        examples([clip], omni, targets)


# --- gold -------------------------------------------------------------------------------------------------------------


def test_gold_that_earns_no_full_reward_is_refused_with_the_count(corpus, tmp_path):
    clips = [replace(clip, video=None, audio=None) for clip in read_manifest(corpus)]
    for index, labels in ((1, ("zzqx",)), (3, None), (4, ("zzqx", "qzzx"))):
        clips[index] = replace(clips[index], labels=labels)
    write_manifest(tmp_path / "m.jsonl", clips)
    with pytest.raises(UserError, match=r"3 of 6 rows have gold labels that earn no full reward \(first: clip-1\)"):
        run_rl(recipe(RLRecipe, tmp_path / "m.jsonl", tmp_path, "model=unread"))


def test_gold_with_one_word_that_no_wheel_knows_still_counts():
    clips = [Clip(str(index), labels=(word, "zzqx")) for index, word in enumerate(WORDS)]
    check_gold(clips, builtin())


def test_rl_keeps_the_towers_frozen(corpus, tmp_path):
    with pytest.raises(UserError, match="train_towers=true"):
        run_rl(recipe(RLRecipe, corpus, tmp_path, "model=unread", "train_towers=true"))


def test_an_unreadable_clip_stops_a_run_with_its_name(stages, corpus, tmp_path):
    folder = shutil.copytree(corpus.parent, tmp_path / "corpus")
    (folder / "3.mp4").write_bytes(b"no media")
    with pytest.raises(UserError, match="clip clip-3: "):
        run_sft(recipe(SFTRecipe, folder / "manifest.jsonl", tmp_path / "out", f"model={stages.base}"))


# --- from the shell ---------------------------------------------------------------------------------------------------


def test_rl_runs_through_accelerate(taught_folder, corpus, tmp_path):
    """The launcher, the command line, a recipe of sections, and settings laid over it."""
    (tmp_path / "r.yaml").write_text("common: {use_cpu: true, bf16: false, report_to: none}\nrl: {method: mer-r1}\n")
    words = [f"manifest={corpus}", f"model={taught_folder}", f"output_dir={tmp_path / 'out'}", *SETTINGS[RLRecipe]]
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "1"]
    command = [*launch, "-m", "mer_r1.cli", "rl", "--config", str(tmp_path / "r.yaml"), *words, *SIGNAL]
    source = str(Path(stage.__file__).resolve().parents[2])
    done = subprocess.run(
        [*command, "--workers", "0", "save_strategy=no", "logging_steps=1"],
        env={**os.environ, "PYTHONPATH": source, "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"model: {tmp_path / 'out' / 'model'}" in done.stdout
    assert "first rollout" in done.stderr
    assert [line["step"] for line in lines(tmp_path / "out") if "loss" in line] == [1]
    assert moved(weights(taught_folder), weights(tmp_path / "out" / "model")) == LANGUAGE
