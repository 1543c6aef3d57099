"""Recipes: every setting from a file or the command line, and one clear line for everything that cannot be right."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import yaml
from trl import GRPOConfig
from typer.testing import CliRunner

from mer_r1.cli import app
from mer_r1.cli.app import console
from mer_r1.errors import UserError
from mer_r1.model.generation import Sampling
from mer_r1.model.tiny import TinyConfig
from mer_r1.rl.method import Method
from mer_r1.training import recipe_files as config
from mer_r1.training.recipe_files import RENAMED, read_recipe, stage_of
from mer_r1.training.recipe_info import (
    OURS,
    declared_fields,
    host_fields,
    recipe_fields,
    recipe_file,
    recipe_stages,
    shipped_recipes,
)
from mer_r1.training.recipes import UNUSED, BuildRecipe, RLRecipe, SFTRecipe

KINDS = (BuildRecipe, SFTRecipe, RLRecipe)
RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))
ANYWHERE = ["use_cpu=true", "bf16=false", "output_dir=out"]


def read(kind, *overrides, file=None):
    return read_recipe(kind, file, [*ANYWHERE, *overrides])


def refused(kind, *overrides, file=None):
    with pytest.raises(UserError) as caught:
        read(kind, *overrides, file=file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["num_generations=2", "method=ad", "learning_rate=2e-4", "disable_tqdm=true"],
        ["--num_generations", "2", "--method", "ad", "--learning_rate", "2e-4", "--disable_tqdm"],
        ["--num-generations=2", "--method=ad", "--learning-rate=2e-4", "--disable-tqdm=yes"],
        ["--disable_tqdm", "--num_generations", "2", "method=ad", "--learning_rate=0.0002"],
    ],
    ids=["key=value", "--key value", "--key=value", "mixed"],
)
def test_both_ways_of_writing_a_setting(words):
    recipe = read(RLRecipe, *words)
    assert (recipe.num_generations, recipe.method, recipe.learning_rate, recipe.disable_tqdm) == (2, "ad", 2e-4, True)


def test_the_last_word_counts():
    assert read(SFTRecipe, "seed=1", "--seed", "2").seed == 2


@pytest.mark.parametrize(
    "text", ["1:30", "0:400", ":5", "10:", "2026-01-02", "007", "1e3", "yes", "[a]", "{b", "a: b", "null?"]
)
def test_a_text_is_taken_as_it_is_written(text):
    """YAML would make 90 of 1:30, a date of 2026-01-02, 7 of 007, true of yes."""
    assert read(SFTRecipe, f"clips={text}").clips == text
    assert read(SFTRecipe, f"--output_dir={text}").output_dir == text


def test_a_word_that_older_yaml_takes_for_a_truth_value(tmp_path):
    """`no` is a strategy of saving, and was False to YAML 1.1, which the trainer then refused."""
    assert read(SFTRecipe, "save_strategy=no").save_strategy == "no"
    file = write(
        tmp_path / "r.yaml", "save_strategy: no\nclips: 10:30\nuse_cpu: yes\npush_to_hub: off\nlearning_rate: 2e-6"
    )
    recipe = read(SFTRecipe, file=file)
    assert (recipe.save_strategy, recipe.clips, recipe.push_to_hub, recipe.learning_rate) == (
        "no",
        "10:30",
        False,
        2e-6,
    )


@pytest.mark.parametrize("text", ["", "null", "~"])
def test_a_text_can_be_taken_back(text, tmp_path):
    file = write(tmp_path / "r.yaml", "clips: '0:5'\nsplit: val\n")
    assert read(SFTRecipe, file=file).clips == "0:5"
    assert read(SFTRecipe, f"clips={text}", file=file).clips is None


def test_a_negative_number_is_a_value_and_no_flag():
    assert read(SFTRecipe, "--max_steps", "-1").max_steps == -1


def test_lists_and_mappings_are_written_as_in_yaml():
    recipe = read(BuildRecipe, "report_to=[]", "tiny={hidden_size: 64, max_seconds: 2}")
    assert recipe.report_to == []
    assert recipe.tiny == {"hidden_size": 64, "max_seconds": 2.0}
    assert read(SFTRecipe, "report_to=none").report_to in ("none", [])


# --- what cannot be right ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "word", "nearest"),
    [
        (RLRecipe, "metod=ad", "method"),
        (RLRecipe, "--num_generation=4", "num_generations"),
        (SFTRecipe, "learning_rat=1", "learning_rate"),
        (SFTRecipe, "manifst=x", "manifest"),
        (BuildRecipe, "tiney=1", "tiny"),
    ],
)
def test_an_unknown_key_names_the_nearest(kind, word, nearest):
    assert f"did you mean '{nearest}'?" in refused(kind, word)


def test_an_unknown_key_without_anything_near_is_named_alone():
    message = refused(SFTRecipe, "qqqqqqq=1")
    assert "qqqqqqq" in message
    assert "did you mean" not in message


def test_a_key_of_another_stage_is_unknown():
    assert "alpha" in refused(SFTRecipe, "alpha=0.2")
    assert "tiny" in refused(RLRecipe, "tiny={}")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("max_steps=many", "max_steps must be int"),
        ("max_steps=2.5", "max_steps must be int"),
        ("max_steps=true", "max_steps must be int"),
        ("--max_steps", "max_steps must be int"),
        ("learning_rate=fast", "learning_rate must be float"),
        ("learning_rate=true", "learning_rate must be float"),
        ("learning_rate=nan", "learning_rate must be"),
        ("learning_rate=.nan", "learning_rate must be"),
        ("learning_rate=[1]", "learning_rate must be float"),
        ("train_towers=maybe", "train_towers must be bool"),
        ("train_towers=2", "train_towers must be bool"),
        ("learning_rate=[", "learning_rate"),
        ("learning_rate={a: b: c}", "learning_rate"),
    ],
)
def test_a_value_of_the_wrong_type(word, expected):
    assert expected in refused(SFTRecipe, word)


def test_a_word_that_is_no_setting():
    assert "key=value" in refused(SFTRecipe, "learning_rate", "2")


@pytest.mark.parametrize(
    ("text", "value"),
    [("2e-6", 2e-6), ("1", 1.0), ("1.", 1.0), (".5", 0.5), ("-2.5E+3", -2500.0), ("'0.1'", 0.1), ("1_0", 10.0)],
)
def test_a_number_may_be_written_in_any_common_way(tmp_path, text, value):
    file = write(tmp_path / "r.yaml", f"weight_decay: {text}\nclips: 7\n")
    for recipe in (read(SFTRecipe, file=file), read(SFTRecipe, f"weight_decay={text}", file=file)):
        assert recipe.weight_decay == value
        assert isinstance(recipe.weight_decay, float)
        assert recipe.clips == "7"


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_learns_where_to(kind):
    with pytest.raises(UserError, match="no output_dir"):
        read_recipe(kind, None, [])


@pytest.mark.parametrize(
    ("word", "allowed"),
    [
        ("method=grpo", "f1, rd, ad, mer-r1"),
        ("space=outer", "advantage, reward, mixed"),
        ("space=mixed", "needs a fixed weight, alpha"),
        ("calibration=none", "answer, reasoning, hinge, difference, noise"),
        ("calibration_share=1", "below 1"),
        ("spread_floor=-1", "negative"),
        ("sides=left", "both, recall, precision"),
        ("anchors=last", "mentions, all, first"),
        ("confidence_level=letter", "category, word"),
        ("alpha=-1", "negative"),
        ("confidence_clip=0", "positive"),
    ],
)
def test_a_choice_that_the_method_does_not_have_is_refused_before_anything_is_read(word, allowed):
    assert allowed in refused(RLRecipe, word)


IGNORED = {
    "reward_weights": "[1, 1, 1]",
    "repetition_penalty": "1.1",
    "generation_kwargs": "{num_beams: 2}",
    "chat_template_kwargs": "{enable_thinking: false}",
    "cache_implementation": "static",
    "use_transformers_continuous_batching": "true",
    "use_transformers_paged": "true",
    "transformers_continuous_batching_config": "{max_memory_percent: 0.5}",
    "use_vllm": "true",
    "vllm_model_impl": "transformers",
    "vllm_structured_outputs_regex": ".*",
    "ds3_gather_for_generation": "false",
    "num_generations_eval": "2",
    "eval_strategy": "steps",
    "max_tool_calling_iterations": "3",
    "trust_remote_code": "true",
    "remove_unused_columns": "true",
}
HONOURED = {
    "model and reference": "model_init_kwargs disable_dropout cast_lm_head_to_fp32 beta sync_ref_model "
    "ref_model_mixup_alpha ref_model_sync_steps router_aux_loss_coef",
    "batches": "num_generations max_completion_length shuffle_dataset pad_to_multiple_of generation_batch_size "
    "steps_per_generation num_iterations learning_rate",
    "sampling": "temperature top_p top_k min_p",
    "advantages": "scale_rewards multi_objective_aggregation",
    "TRL's loss": "epsilon epsilon_high delta loss_type importance_sampling_level mask_truncated_completions "
    "top_entropy_quantile entropy_coef use_adaptive_entropy entropy_coef_min entropy_coef_max entropy_coef_delta "
    "entropy_target off_policy_mask_threshold use_bias_correction_kl sapo_temperature_neg sapo_temperature_pos "
    "vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg",
    "rollouts=vllm": "vllm_mode vllm_enable_sleep_mode vllm_server_base_url vllm_server_host vllm_server_port "
    "vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization vllm_max_model_length vllm_tensor_parallel_size "
    "vllm_importance_sampling_correction vllm_importance_sampling_mode vllm_importance_sampling_clip_max "
    "vllm_importance_sampling_clip_min vllm_importance_sampling_cap",
    "TRL's log": "log_completions log_multimodal num_completions_to_print log_unique_prompts log_completions_hub_repo",
}


def test_every_field_of_trl_is_honoured_or_refused():
    """A field that a new version adds belongs into one of the two lists."""
    honoured = " ".join(HONOURED.values()).split()
    assert sorted([*honoured, *UNUSED]) == sorted({*GRPOConfig.__annotations__, "eval_strategy"})
    assert IGNORED.keys() == UNUSED.keys()
    defaults = {item.name: item.default for item in dataclasses.fields(GRPOConfig)}
    assert {name: defaults[name] for name in UNUSED} == {name: only for name, (only, _) in UNUSED.items()}


@pytest.mark.parametrize(("name", "value"), IGNORED.items())
def test_what_rl_would_ignore_is_refused(name, value):
    assert f"{name}=" in (message := refused(RLRecipe, f"{name}={value}"))
    assert UNUSED[name][1] in message


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["temperature=0"], "temperature must be above 0"),
        (["top_p=0"], "top_p"),
        (["top_k=-1"], "top_k"),
        (["min_p=1.5"], "min_p"),
        (["beta_final=0.05"], "beta_final must be from 0 to beta=0.04, got 0.05"),
        (["beta_final=-0.01"], "beta_final must be"),
        (["beta=0", "beta_final=0.01"], "beta_final must be from 0 to beta=0"),
        (["model_init_kwargs={revision: main}"], "'revision' would be ignored, expected dtype or attn_implementation"),
        (["push_to_hub=true"], "push_to_hub: it uploads checkpoints only; after training, hf upload"),
        (["report_to=swanlab"], "report_to=swanlab: unknown, or its package is not installed"),
        (["report_to=[tensorboard, nowhere]"], "report_to=nowhere: unknown, or its package is not installed"),
        (["model_init_kwargs=1.5"], "model_init_kwargs must be a mapping, got '1.5'"),
        (["logging_steps=1e400"], "the recipe does not fit together: cannot convert float infinity to integer"),
        (["multi_objective_aggregation=sum_then_normalize"], "method=mer-r1 is normalize_then_sum"),
        (["method=rd", "multi_objective_aggregation=normalize_then_sum"], "method=rd is sum_then_normalize"),
    ],
)
def test_options_of_rl_that_cannot_be_are_refused(words, told):
    assert told in refused(RLRecipe, *words)


def test_options_of_trl_that_rl_takes():
    recipe = read(RLRecipe, "top_k=50", "min_p=0.1", "scale_rewards=none", "beta_final=0.01", "temperature=0.9")
    expected = Sampling(recipe.max_completion_length, 0.9, 1.0, None, 50, 0.1)
    assert (Sampling.of(recipe), recipe.scale_rewards, recipe.beta_final) == (expected, "none", 0.01)
    assert Sampling.of(read(RLRecipe)) == Sampling(1024, 1.0)
    for method, order in {"ad": "normalize_then_sum", "f1": "sum_then_normalize"}.items():
        assert read(RLRecipe, f"method={method}", f"multi_objective_aggregation={order}").method == method


def test_a_kind_of_target_that_does_not_exist():
    assert "slow, twice, base" in refused(SFTRecipe, "targets=fast")


def test_settings_that_do_not_fit_together():
    assert "do" in refused(RLRecipe, "num_generations=3", "per_device_train_batch_size=4")


@pytest.mark.parametrize(
    ("tiny", "named"),
    [
        ("{hiden_size: 64}", "hiden_size"),
        ("{hidden_size: big}", "tiny.hidden_size must be int"),
        ("[64]", "tiny must be dict"),
        ("{hidden_size: 60, num_heads: 8}", "hidden_size"),
        ("{frame_size: 50, patch_size: 12}", "frame_size"),
    ],
)
def test_sizes_that_cannot_be(tiny, named):
    assert named in refused(BuildRecipe, f"tiny={tiny}")


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_missing_file(tmp_path):
    assert "no recipe at" in refused(SFTRecipe, file=tmp_path / "none.yaml")
    assert "no recipe at" in refused(SFTRecipe, file=tmp_path)


@pytest.mark.parametrize(
    "content", ["a: [1", "- 1\n- 2", "text", "1: 2", "sft: 3", "sft: {}\ncommon: [1]", "sft: {}\nseed: 3"]
)
def test_a_file_that_is_no_recipe(tmp_path, content):
    refused(SFTRecipe, file=write(tmp_path / "r.yaml", content))


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00seed: 3")
    assert "r.yaml" in refused(SFTRecipe, file=tmp_path / "r.yaml")


def test_an_empty_file_changes_nothing(tmp_path):
    recipe = read(SFTRecipe, file=write(tmp_path / "r.yaml", ""))
    assert recipe.learning_rate == read(SFTRecipe).learning_rate


def test_sections_are_laid_over_the_common_one(tmp_path):
    text = "common: {seed: 5, max_steps: 7}\nsft: {max_steps: 9}\nrl:\n"
    file = write(tmp_path / "r.yaml", text)
    assert (read(SFTRecipe, file=file).seed, read(SFTRecipe, file=file).max_steps) == (5, 9)
    assert read(RLRecipe, file=file).max_steps == 7
    assert "no section build" in refused(BuildRecipe, file=file)
    assert read(SFTRecipe, "max_steps=1", file=file).max_steps == 1, "the command line has the last word"


# --- the recipes that come with the package ---------------------------------------------------------------------------


def stages(path):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [kind for kind in KINDS if stage_of(kind) in content] or [RLRecipe if "rl" in path.stem else SFTRecipe]


@pytest.mark.parametrize(("path", "kind"), [(path, kind) for path in RECIPES for kind in stages(path)])
def test_every_recipe_can_be_read(path, kind):
    recipe = read(kind, "manifest=m.jsonl", "model=m", file=path)
    assert recipe.output_dir == "out"
    if kind is RLRecipe:
        assert recipe.method == "mer-r1"


def test_the_tiny_recipe_has_every_stage_and_no_clip_twice():
    assert stages(recipe_file("tiny")) == list(KINDS)
    build, sft, rl = (read(kind, file=recipe_file("tiny")) for kind in KINDS)
    assert build.clips is None  # the clips of another corpus
    assert sft.clips.split(":")[1] == rl.clips.split(":")[0]
    assert (sft.clips.split(":")[0], rl.clips.split(":")[1]) == ("", "")


def test_recipes_name_no_data_and_no_folder():
    for path in RECIPES:
        for kind in stages(path):
            recipe = read(kind, file=path)
            assert (recipe.manifest, recipe.features_dir) == (None, None)
            assert recipe.model in (None, "Qwen/Qwen2.5-Omni-7B"), "a hub's model at most"


def test_a_recipe_that_does_not_come_with_the_package():
    with pytest.raises(UserError, match=r"no recipe at huge: expected a YAML file or one of qwen2\.5.*, tiny"):
        recipe_file("huge")


def test_a_recipe_is_found_by_its_name_and_a_file_of_that_name_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipe_file("qwen2.5-omni-rl") == shipped_recipes()["qwen2.5-omni-rl"]
    assert read(RLRecipe, file="qwen2.5-omni-rl").clips == "5000:"
    write(tmp_path / "tiny", "seed: 7")
    assert read(SFTRecipe, file="tiny").seed == 7


def test_the_stages_of_the_shipped_recipes():
    found = {name: recipe_stages(file) for name, file in shipped_recipes().items()}
    every = ["build", "sft", "rl"]
    full = {"qwen2.5-omni-rl": ["rl"], "qwen2.5-omni-rl-authors": ["rl"], "qwen2.5-omni-sft": ["sft"]}
    assert found == full | {"smollm2": every, "texts": ["sft", "rl"], "tiny": every}
    assert list(found) == sorted(found)


# --- old names --------------------------------------------------------------------------------------------------------


def nines(line, levels=9):
    """Nine uses of the line above in each line: 9^levels values in a few hundred characters."""
    return "a0: &a0 {k: 1}\n" + "".join(line.format(i + 1, ",".join([f"*a{i}"] * 9)) for i in range(levels))


@pytest.mark.parametrize(
    "content",
    [
        nines("a{0}: &a{0} [{1}]\n"),
        nines("a{0}: &a{0}\n  <<: [{1}]\n"),
        "a: &a [*a]\n",
        "seed: " + "x" * 10**6,
        "seed: " + "[" * 3000,
        "seed: " + "9" * 5000,
        "seed: !!int abc",
        "seed: !!int ''",
        "seed: !!float x",
        "seed: !!bool maybe",
        "seed: !!timestamp x",
        "seed: !!python/object/apply:os.system [ls]",
    ],
    ids=range(12),
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_would_burst_is_refused_in_one_short_line(tmp_path, kind, content):
    told = refused(kind, file=write(tmp_path / "a.yaml", content))
    assert "a.yaml is not valid YAML: " in told
    assert len(told) < 500


@pytest.mark.parametrize(
    "content",
    [
        "hub_token: PLANTED",
        "hub_token: [PLANTED]",
        "model_init_kwargs: {token: PLANTED}",
        "model_init_kwargs: {inner: [{api_key: PLANTED}]}",
        "hub_model_id: https://me:" + "PLANTED@host/x",
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_takes_no_key_and_does_not_show_it(tmp_path, kind, content):
    told = refused(kind, file=write(tmp_path / "a.yaml", content))
    assert "takes no key" in told
    assert "PLANTED" not in told


def test_a_key_is_refused_on_the_command_line_and_in_code_too():
    assert "hub_token: " in refused(SFTRecipe, "hub_token=PLANTED")
    with pytest.raises(UserError, match="hub_token: "):
        RLRecipe(output_dir="out", use_cpu=True, bf16=False, hub_token="PLANTED")


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_still_works_with_a_note(old, tmp_path, caplog):
    file = write(tmp_path / "r.yaml", f"{old}: 3")
    assert getattr(read(BuildRecipe, file=file), RENAMED[old]) == 3
    assert caplog.messages == [f"{old} is now {RENAMED[old]}; the old name goes with the next release"]
    assert getattr(read(BuildRecipe, f"--{old}", "4", file=file), RENAMED[old]) == 4


def test_an_old_name_of_another_stage_is_unknown():
    assert "'remarks'" in refused(SFTRecipe, "remarks=3")


# --- recipes without their dataclasses, for `plan` --------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_fields_of_the_sources_are_those_of_the_dataclass(kind):
    declared = declared_fields(stage_of(kind))
    fields = {item.name: item.default for item in dataclasses.fields(kind) if item.init}
    assert declared.keys() == fields.keys()
    fields.pop("optim")  # which one, only running code can tell
    plain = {name: value for name, value in fields.items() if type(value) in (bool, int, float, str)}
    assert len(plain) > 90
    assert {name: declared[name][1] for name in plain} == plain


@pytest.mark.parametrize(("path", "kind"), [(path, kind) for path in RECIPES for kind in stages(path)])
def test_a_plain_recipe_has_the_values_of_the_recipe(path, kind):
    words = ["manifest=m.jsonl", "learning_rate=3e-4", "--max-steps", "7", "use_cpu=on"]
    plain, whole = config.plain_recipe(stage_of(kind), path, words), read(kind, *words, file=path)
    named = {*yaml.safe_load(path.read_text(encoding="utf-8")).get(stage_of(kind), {}), "learning_rate", "max_steps"}
    ours = {field.name for field in recipe_fields(stage_of(kind))}
    for name in (named | ours) - {"tiny", "report_to"}:
        assert getattr(plain, name) == getattr(whole, name), name


@pytest.mark.parametrize(
    ("stage", "word", "complaint"),
    [
        ("rl", "num_generation=4", "did you mean 'num_generations'"),
        ("rl", "num_generations=many", "num_generations must be int"),
        ("rl", "space=reward", "it needs a fixed weight, alpha"),
        ("sft", "targets=once", "targets must be slow, twice, base"),
        ("sft", "num_frames=2.5", "num_frames must be int"),
        ("sft", "hub_token=secret", "takes no key"),
    ],
)
def test_what_a_plain_recipe_cannot_be_is_named(stage, word, complaint):
    with pytest.raises(UserError, match=re.escape(complaint)):
        config.plain_recipe(stage, None, [word])


# --- what is read of each clip ----------------------------------------------------------------------------------------


def test_limits_of_clips_are_checked_with_the_recipe():
    assert read(SFTRecipe, "num_frames=4", "max_seconds=2", "max_pixels=1000").max_seconds == 2.0
    assert "expected a number above 0" in refused(RLRecipe, "max_seconds=-1")
    assert "at most" in refused(RLRecipe, "num_frames=1000000")
    assert "max_pixels: `build` takes the sizes of its inputs under tiny" in refused(BuildRecipe, "max_pixels=1000")


# --- what help says about the fields ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_listed_fields_are_those_of_our_dataclasses_with_their_defaults(kind):
    """Read from the sources, they must be what Python makes of them."""
    listed = {field.name: field for field in recipe_fields(stage_of(kind))}
    hints, defaults = typing.get_type_hints(kind), {item.name: item.default for item in dataclasses.fields(kind)}
    ours = [base for base in kind.__mro__ if base.__module__.startswith("mer_r1.")]
    assert listed.keys() == {name for base in ours for name in base.__annotations__ if name != "ALLOWED"}
    for name, field in listed.items():
        assert config._from_text(name, field.default, hints[name]) == defaults[name], name
        assert re.fullmatch(r"\S.{15,}\.", field.help), f"{name} has no description"
        assert field.group in OURS[stage_of(kind)]


def test_a_default_that_two_classes_give_is_that_of_the_recipe():
    targets = {
        stage: field.default for stage in ("sft", "build") for field in recipe_fields(stage) if field.name == "targets"
    }
    assert targets == {"sft": "slow", "build": "base"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_other_fields_are_the_hosts_with_its_descriptions(kind):
    found = {field.name: field for field in host_fields(kind, stage_of(kind))}
    ours = {field.name for field in recipe_fields(stage_of(kind))}
    assert found.keys() | ours == {item.name for item in dataclasses.fields(kind) if item.init}
    assert found.keys().isdisjoint(ours)
    assert found["max_steps"].default == "-1"
    assert found["max_steps"].help.startswith("Overrides `num_train_epochs`")


def test_the_help_explains_every_field_without_torch_or_trl():
    """In a process of its own: help must be light."""
    code = "import sys\nfrom mer_r1.cli import main\n"
    code += "try: main()\nfinally: print(sorted({'torch', 'trl'} & sys.modules.keys()))"
    for stage in OURS:
        command = [sys.executable, "-c", code, stage, "--help"]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"}
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("[]\n")
        for field in recipe_fields(stage):
            assert re.search(rf"{field.name} +{re.escape(field.help[:40])}", done.stdout), field.name
            assert f"─ {field.group} ─" in done.stdout
    assert re.search(r"format_weight +Weight of the format reward.*\[float, default 0\.1\]", rl_help())


def rl_help(*words):
    command = [sys.executable, "-m", "mer_r1.cli", "rl", *(words or ["--help"])]
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def test_the_hosts_fields_are_listed_on_request():
    assert "gradient_accumulation_steps" not in rl_help()
    assert re.search(r"(?s)gradient_accumulation_steps +Number of .{,400}int, default 1\]", rl_help("--help-all"))


def test_the_shipped_recipes_are_listed_with_stages_and_first_line(monkeypatch):
    said = json.loads(CliRunner().invoke(app, ["recipes", "--json"]).output)
    assert [row["name"] for row in said] == list(shipped_recipes())
    assert said[0] == {
        "name": "qwen2.5-omni-rl",
        "stages": ["rl"],
        "about": "RL of Qwen2.5-Omni with MER-R1, from the model of the cold start; uses only the labels of the clips.",
    }
    monkeypatch.setattr(console, "width", 200)
    table = CliRunner().invoke(app, ["recipes"]).output
    assert all(row["about"][:30] in table for row in said)


# --- defaults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_default_is_of_its_own_type(kind):
    """Else a recipe could not set a field to what it is already."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.init and field.default is not dataclasses.MISSING and field.name != "output_dir":
            assert config._coerce(field.name, field.default, hints[field.name]) == field.default, field.name


def test_the_methods_fields_of_the_recipe_are_those_of_the_method():
    recipe = read(RLRecipe, "method=ad", "alpha=0.3", "anchors=first", "confidence_level=word", "confidence_clip=2")
    expected = Method(method="ad", alpha=0.3, anchors="first", confidence_level="word", confidence_clip=2.0)
    assert {name: getattr(recipe, name) for name in vars(expected)} == vars(expected)


def test_stated_defaults_of_the_method():
    """docs/paper_map.md, training: epochs, learning rates, G, beta, epsilon, longest completion."""
    sft, rl = read(SFTRecipe), read(RLRecipe)
    assert (sft.num_train_epochs, sft.learning_rate) == (2, 2e-5)
    assert (rl.num_train_epochs, rl.learning_rate, rl.num_generations) == (1, 2e-6, 4)
    assert (rl.beta, rl.epsilon, rl.max_completion_length, rl.max_grad_norm) == (0.04, 0.2, 1024, 1.0)


def test_sizes_default_to_the_tiny_policys():
    recipe = read(BuildRecipe, "tiny={num_layers: 2}")
    assert TinyConfig(**recipe.tiny) == dataclasses.replace(TinyConfig(), num_layers=2)
