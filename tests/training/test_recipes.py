"""Every recipe is read by our classes and runs on the tiny model; every launch configuration is read by accelerate."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from mer_r1.errors import UserError
from mer_r1.model.omni import load
from mer_r1.training import sft_stage
from mer_r1.training.recipe_files import read_recipe
from mer_r1.training.recipes import BuildRecipe, RLRecipe, SFTRecipe
from mer_r1.training.rl_stage import run_rl
from mer_r1.training.sft_stage import run_sft

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SFT, RL = RECIPES / "qwen2.5-omni-sft.yaml", RECIPES / "qwen2.5-omni-rl.yaml"
AUTHORS = RECIPES / "qwen2.5-omni-rl-authors.yaml"
HERE = ["use_cpu=true", "bf16=false"]
LAUNCHES = sorted((RECIPES / "accelerate").glob("*.yaml"))


def launch_lines(file):
    """The commands in a file's head, continued lines joined."""
    text = re.sub(r" \\\n#\s+", " ", file.read_text(encoding="utf-8"))
    return re.findall(r"^#\s+((?:mer-r1|accelerate launch) .*)$", text, re.MULTILINE)


# --- what is in them --------------------------------------------------------------------------------------------------


def test_every_recipe_here_is_tested():  # smollm2.yaml in test_smollm2.py
    ours = {"tiny.yaml", "smollm2.yaml", "texts.yaml", SFT.name, RL.name, AUTHORS.name}
    assert {path.name for path in RECIPES.glob("*.yaml")} == ours
    assert {path.name for path in LAUNCHES} == {"one.yaml", "zero3.yaml", "fsdp2.yaml"}


@pytest.mark.parametrize(("kind", "file"), [
    (SFTRecipe, SFT), (RLRecipe, RL), (RLRecipe, AUTHORS),
    *((kind, RECIPES / "tiny.yaml") for kind in (BuildRecipe, SFTRecipe, RLRecipe)),
    *((kind, RECIPES / "texts.yaml") for kind in (SFTRecipe, RLRecipe)),
])  # fmt: skip
def test_recipes_are_read(kind, file):
    recipe = read_recipe(kind, file, [*HERE, "output_dir=out", "manifest=m.jsonl"])
    assert recipe.remove_unused_columns is False


def test_the_values_of_the_paper():
    """docs/paper_map.md, training: epochs, learning rates, G, beta, epsilon, lengths, clipping of gradients."""
    sft, rl = read_recipe(SFTRecipe, SFT, [*HERE, "output_dir=o"]), read_recipe(RLRecipe, RL, [*HERE, "output_dir=o"])
    assert (sft.num_train_epochs, sft.learning_rate, sft.clips) == (2, 2e-5, "0:5000")
    assert (rl.num_train_epochs, rl.learning_rate, rl.clips) == (1, 2e-6, "5000:")
    assert (rl.num_generations, rl.beta, rl.epsilon, rl.max_completion_length) == (4, 0.04, 0.2, 1024)
    assert (rl.format_weight, rl.max_grad_norm, sft.max_grad_norm) == (0.1, 1.0, 1.0)
    assert (rl.calibration, rl.calibration_share, rl.alpha) == ("answer", 0.15, None)
    assert rl.calibrates
    assert sft.gradient_checkpointing
    assert rl.gradient_checkpointing
    assert sft.model == "Qwen/Qwen2.5-Omni-7B"
    for file in (SFT, RL):
        assert yaml.safe_load(file.read_text(encoding="utf-8"))["bf16"] is True


def test_the_values_of_the_authors_earlier_code():
    recipe = read_recipe(RLRecipe, AUTHORS, [*HERE, "output_dir=o"])
    assert (recipe.scale_rewards, recipe.space, recipe.alpha, recipe.confidence_clip) == ("none", "reward", 0.08, 5.0)
    assert (recipe.temperature, recipe.top_k, recipe.beta, recipe.beta_final) == (0.9, 50, 0.04, 0.04 / 4)
    assert not any(value for name, value in recipe.reward_options.items() if name != "matching")
    assert recipe.matching == "wheels"
    (line,) = launch_lines(AUTHORS)
    words = shlex.split(line)
    assert words[:4] == ["mer-r1", "rl", "--config", f"recipes/{AUTHORS.name}"]
    assert read_recipe(RLRecipe, AUTHORS, [*words[4:], *HERE]).lora_rank == 64


@pytest.mark.parametrize(("kind", "file", "command"), [(SFTRecipe, SFT, "sft"), (RLRecipe, RL, "rl")])
def test_the_settings_in_launch_lines_are_settings(kind, file, command):
    lines = [line for line in launch_lines(file) if f" {command} --config " in line]
    assert len(lines) >= 2
    for line in lines:
        words = shlex.split(line)
        start = words.index("--config")
        assert words[start + 1] == f"recipes/{file.name}"
        read_recipe(kind, file, [*words[start + 2 :], *HERE])


# --- accelerate reads them --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", LAUNCHES, ids=lambda path: path.stem)
def test_launch_configurations_are_read_by_accelerate(file):
    config = load_config_from_file(str(file))
    assert config.mixed_precision == "bf16"
    expected = {"one": "NO", "zero3": "DEEPSPEED", "fsdp2": "FSDP"}
    assert config.distributed_type == expected[file.stem]


def known_flags():
    return {option for action in launch_command_parser()._actions for option in action.option_strings}


@pytest.mark.parametrize("file", LAUNCHES, ids=lambda path: path.stem)
def test_every_plugin_key_is_an_option_of_accelerate_launch(file):
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    for section in ("fsdp_config", "deepspeed_config"):
        for key in content.get(section, {}):
            assert f"--{key}" in known_flags(), key


@pytest.mark.parametrize("file", LAUNCHES, ids=lambda path: path.stem)
def test_accelerate_launch_takes_the_configuration_over(file, monkeypatch):
    import accelerate.commands.launch as launch

    monkeypatch.setattr(launch, "is_deepspeed_available", lambda: True, raising=False)
    words = ["--config_file", str(file), "-m", "mer_r1.cli"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert (args.use_deepspeed, args.use_fsdp) == (file.stem == "zero3", file.stem == "fsdp2")
    if file.stem == "zero3":
        assert args.zero_stage == 3
        assert str(args.zero3_save_16bit_model).lower() == "true"
    if file.stem == "fsdp2":
        assert int(args.fsdp_version) == 2
        assert args.fsdp_state_dict_type == "FULL_STATE_DICT"


def test_fsdps_launch_file_names_no_layers():
    """Loading the policy names those of its own family (tests/training/test_stages.py)."""
    content = yaml.safe_load((RECIPES / "accelerate" / "fsdp2.yaml").read_text(encoding="utf-8"))
    assert content["fsdp_config"]["fsdp_auto_wrap_policy"] == "TRANSFORMER_BASED_WRAP"
    assert "fsdp_transformer_layer_cls_to_wrap" not in content["fsdp_config"]


def test_launch_lines_in_launch_configurations_name_themselves():
    for file in LAUNCHES:
        lines = launch_lines(file)
        assert lines, file
        assert all(f"recipes/accelerate/{file.name}" in line for line in lines)


# --- they run ---------------------------------------------------------------------------------------------------------

SMALL = [*HERE, "clips=", "max_steps=2", "report_to=none", "disable_tqdm=true", "save_strategy=no", "workers=0"]
SMALL += ["logging_steps=1", "gradient_accumulation_steps=1"]


@pytest.mark.parametrize("more", [[], ["lora_rank=4", "learning_rate=1e-4"]], ids=["full", "lora"])
@pytest.mark.parametrize(
    ("kind", "file", "run", "sizes"),
    [
        (SFTRecipe, SFT, run_sft, []),
        (RLRecipe, RL, run_rl, ["max_completion_length=12"]),
    ],
    ids=["sft", "rl"],
)
def test_two_steps_of_every_stage(kind, file, run, sizes, more, corpus, taught_folder, tmp_path):
    settings = [f"manifest={corpus}", f"model={taught_folder}", f"output_dir={tmp_path / 'out'}"]
    settings += [f"features_dir={tmp_path / 'features'}", *SMALL, *sizes, *more]
    folder = run(read_recipe(kind, file, settings))
    log = (tmp_path / "out" / "log.jsonl").read_text(encoding="utf-8")
    assert '"step": 2' in log
    saved = load(folder)
    assert str(saved.model.dtype) == "torch.bfloat16", "saved as it was loaded"
    assert not any(value.isnan().any() for value in saved.model.state_dict().values())


def test_two_steps_with_the_authors_settings(corpus, taught_folder, tmp_path):
    settings = [f"manifest={corpus}", f"model={taught_folder}", f"output_dir={tmp_path / 'out'}"]
    settings += [f"features_dir={tmp_path / 'features'}", *SMALL, "max_completion_length=12"]
    run_rl(read_recipe(RLRecipe, AUTHORS, settings))
    lines = map(json.loads, (tmp_path / "out" / "log.jsonl").read_text(encoding="utf-8").splitlines())
    assert [line["beta"] for line in lines if "loss" in line] == [0.04, 0.01]


def test_trained_weights_are_kept_in_full_precision(corpus, taught_folder, tmp_path, monkeypatch):
    """The recipe loads bf16; a step of 2e-6 on it would be rounded away."""
    seen = []

    def look(trainer, *_):
        seen.extend({(value.dtype, value.requires_grad) for value in trainer.model.parameters()})

    monkeypatch.setattr(sft_stage, "train_and_save", look)
    settings = [f"manifest={corpus}", f"model={taught_folder}", f"output_dir={tmp_path}", *SMALL]
    settings += [f"features_dir={tmp_path / 'features'}"]
    run_sft(read_recipe(SFTRecipe, SFT, settings))
    assert {str(dtype) for dtype, trained in seen if trained} == {"torch.float32"}


# --- what cannot work is said before it starts ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plugin", "stage", "more", "complaint"),
    [
        ("DEEPSPEED", "3", [], "rollouts=hf decodes until"),
        ("FSDP", None, [], "rollouts=hf decodes until"),
        ("DEEPSPEED", "2", ["lora_rank=8"], "lora_rank works without"),
    ],
)
def test_rl_that_would_hang_or_lose_its_adapter_is_refused(
    plugin, stage, more, complaint, corpus, taught_folder, tmp_path, monkeypatch
):
    settings = [f"manifest={corpus}", f"model={taught_folder}", f"output_dir={tmp_path}", *SMALL, *more]
    recipe = read_recipe(RLRecipe, RL, settings)
    monkeypatch.setenv(f"ACCELERATE_USE_{plugin}", "true")
    if stage:
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", stage)
    with pytest.raises(UserError, match=complaint):
        run_rl(recipe)
