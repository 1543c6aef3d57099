"""The method as a plug-in of ms-swift and of verl.

Neither is installed here. What we use of them is recorded in `SWIFT` and `VERL` as their wheels have it, and stood in
for by modules of that shape; where a host is installed, the last tests hold the record against it.
"""

import ast
import importlib
import importlib.util
import inspect
import json
import math
import subprocess
import sys
import types
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_world import entry, media

from mer_r1.emotions.thinking import question
from mer_r1.emotions.wheels import builtin
from mer_r1.errors import UserError
from mer_r1.integrations.environment import chosen_method, gold_of, grouped_advantages
from mer_r1.model.generation import Sampling
from mer_r1.model.prompts import encode_prompt, media_tensors
from mer_r1.rl.anchors import category_tokens, terms_of
from mer_r1.rl.method import OBJECTIVES, Method, method_advantages
from mer_r1.rl.rewards import reward_function
from mer_r1.rl.rollout import rollout

SWIFT = {
    # ms_swift-4.6.0: swift/rlhf_trainers/grpo_trainer.py, swift/rlhf_trainers/utils.py
    "GRPOTrainer._compute_advantages": ["self", "samples", "rewards_per_func", "batch_encoded_inputs"],
    "encode_sample": ["sample", "template", "encode_prompt_only"],
    "collate_to_grpo_micro_batch": [
        "samples", "template", "device", "padding_to", "router_replay_mode", "use_logits_to_keep",
    ],
    # swift/rl_core/data.py: fields of OnPolicySample that we set or read
    "GRPOSample": {"messages", "extra", "response_token_ids", "response_loss_mask", "encoded"},
    # swift/rewards/orm.py: ORM.__init__
    "ORM.__init__": ["self", "args", "kwargs"],
}  # fmt: skip
VERL = {
    # verl-0.9.1: verl/trainer/ppo/core_algos.py
    "register_adv_est": ["name_or_enum"],
    "compute_gdpo_outcome_advantage": [
        "token_level_rewards", "response_mask", "index", "epsilon", "norm_adv_by_std_in_grpo", "config",
        "non_tensor_batch", "batch", "kwargs",
    ],
    # verl/trainer/ppo/ray_trainer.py, compute_advantage: what the estimator called gdpo is given
    "arguments": {"token_level_rewards", "response_mask", "config", "index", "non_tensor_batch", "batch"},
    # verl/experimental/reward_loop/reward_manager: how the reward function is called
    "compute_score": {"data_source", "solution_str", "ground_truth", "extra_info"},
}  # fmt: skip
GOOD, HALF, WORSE = (f"<think>Hm.</think><answer>{words}</answer>" for words in ("happy", "happy, angry", "angry"))


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    def choose(**choices):
        monkeypatch.setenv("MER_R1_METHOD", json.dumps(choices))
        for name in ("mer_r1.integrations.verl", "mer_r1.integrations.ms_swift"):
            for cached in ("_method", "_taxonomy", "_categories"):
                function = getattr(sys.modules.get(name), cached, None)
                if function is not None:
                    function.cache_clear()

    monkeypatch.delenv("MER_R1_METHOD", raising=False)
    monkeypatch.delenv("MER_R1_WHEELS", raising=False)
    monkeypatch.delenv("MER_R1_TERMS", raising=False)
    choose()
    return choose


def fresh(name):
    """The plug-in, imported as its host would: anew."""
    sys.modules.pop(f"mer_r1.integrations.{name}", None)
    return importlib.import_module(f"mer_r1.integrations.{name}")


# --- shared -----------------------------------------------------------------------------------------------------------


def test_settings_come_from_the_environment(settings):
    assert chosen_method() == Method()
    settings(method="ad", format_weight=0.3)
    assert chosen_method() == Method("ad", 0.3)


@pytest.mark.parametrize("text", ["ad", '{"name": "x"}', '{"nam": "ad"}', "[]"])
def test_settings_that_mean_nothing_are_refused(monkeypatch, text):
    monkeypatch.setenv("MER_R1_METHOD", text)
    with pytest.raises(UserError, match=r"^MER_R1_METHOD: .*expected a JSON object of the method's fields"):
        chosen_method()


def test_old_names_of_settings_work_with_one_warning(settings, caplog):
    settings(name="rd", level="word", clip=2.0, alpha=0.2)
    expected = Method("rd", alpha=0.2, confidence_level="word", confidence_clip=2.0)
    assert chosen_method() == chosen_method() == expected
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        "MER_R1_METHOD: 'name' is now 'method', 'level' is now 'confidence_level', 'clip' is now 'confidence_clip'; "
        "the next release drops the old spelling"
    )
    caplog.clear()
    settings(method="rd", confidence_level="word", confidence_clip=2.0, alpha=0.2)
    assert chosen_method() == expected
    assert not caplog.records


def test_gold_is_found_or_missed_aloud():
    assert gold_of({"solution": ["a"], "gold": ["b"]}) == ["b"]
    assert gold_of({"labels": None, "solution": ["a"]}) == ["a"]
    with pytest.raises(UserError, match="expected one of the columns gold, labels, solution, got \\['text'\\]"):
        gold_of({"text": ["a"]})


@pytest.mark.parametrize("name", ["f1", "rd", "ad", "mer-r1"])
def test_the_order_of_rows_does_not_matter(name):
    method = Method(method=name)
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(12, len(method.objectives), generator=generator)
    rewards[5] = torch.nan
    terms = [torch.randn(12, generator=generator) for _ in range(2)] if method.calibrates else [None, None]
    expected = method_advantages(method, rewards, 4, *terms).tokens
    order = torch.randperm(12, generator=generator)
    groups = [f"prompt-{row // 4}" for row in order.tolist()]
    moved = [None if term is None else term[order] for term in terms]
    torch.testing.assert_close(grouped_advantages(method, rewards[order], groups, *moved), expected[order])


def test_groups_may_differ_in_size():
    """Two of the first, three of the second, one alone: each is compared with its own."""
    method = Method("ad", format_weight=0.0)
    recall = torch.tensor([0.0, 1.0, 0.0, 0.5, 1.0, 0.7])
    rewards = torch.stack([torch.ones(6), recall, torch.zeros(6)], dim=1)
    found = grouped_advantages(method, rewards, [*"aabbbc"])
    half = 1 / math.sqrt(2)  # (1 - 0.5) / std of 0 and 1 with divisor n - 1
    torch.testing.assert_close(found, torch.tensor([-half, half, -1.0, 0.0, 1.0, 0.0]))


def test_the_plug_ins_need_no_trainer_of_ours():
    """A host brings its own TRL and transformers; of what training needs here, they take torch only."""
    program = (
        "import sys; sys.modules |= {'swift': None, 'verl': None};"
        "import mer_r1.integrations.verl, mer_r1.integrations.ms_swift;"
        "sys.exit(', '.join(name for name in ('trl', 'transformers', 'peft', 'datasets') if name in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_of_ours_imports_the_plug_ins():
    from test_architecture import imported, trees

    users = {
        module
        for module, tree in trees().items()
        for target in imported(module, tree)
        if target.startswith("integrations") and not module.startswith("integrations")
        if not target.startswith("integrations.export")  # no plug-in: it writes files for engines
    }
    assert users == set()


# --- verl -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def verl(monkeypatch):
    """verl's registry, with its own gdpo in it."""
    core = types.ModuleType("verl.trainer.ppo.core_algos")
    core.ADV_ESTIMATOR_REGISTRY = {"gdpo": object()}

    def register_adv_est(name_or_enum):
        def decorator(fn):
            known = core.ADV_ESTIMATOR_REGISTRY.get(name_or_enum, fn)
            assert known == fn, "has already been registered"
            core.ADV_ESTIMATOR_REGISTRY[name_or_enum] = fn
            return fn

        return decorator

    core.register_adv_est = register_adv_est
    for name in ("verl", "verl.trainer", "verl.trainer.ppo"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, core.__name__, core)
    return core


def verl_batch(plugin, completions, gold, uids, **columns):
    """What verl makes of the reward function's results, as `agent_loop.py` collects them."""
    scored = [
        plugin.compute_score(data_source="x", solution_str=text, ground_truth=labels, extra_info={})
        for text, labels in zip(completions, gold, strict=True)
    ]
    extras = {key: np.array([one[key] for one in scored]) for key in scored[0]} | columns
    mask = torch.ones(len(scored), 5)
    mask[:, 3:] = 0
    rewards = torch.zeros(len(scored), 5)
    rewards[:, 2] = torch.tensor(extras["score"]).float()
    return {
        "token_level_rewards": rewards, "response_mask": mask, "config": {}, "index": np.array(uids, dtype=object),
        "non_tensor_batch": extras, "batch": {},
    }  # fmt: skip


def test_importing_the_file_registers_the_estimator(verl):
    plugin = fresh("verl")
    assert verl.ADV_ESTIMATOR_REGISTRY["gdpo"] is verl.ADV_ESTIMATOR_REGISTRY["mer_r1"] is plugin.advantages
    accepted = inspect.signature(plugin.advantages).parameters
    assert {name for name in VERL["arguments"] if name in accepted or "_" in accepted} == VERL["arguments"]
    assert VERL["compute_score"] <= set(inspect.signature(plugin.compute_score).parameters)


def test_verl_gets_the_methods_advantages(verl, settings):
    settings(method="ad")
    plugin = fresh("verl")
    batch = verl_batch(plugin, [GOOD, WORSE, HALF, GOOD, WORSE, HALF], [["happy"]] * 6, [*"abbaba"])
    assert batch.keys() == VERL["arguments"]
    found, returns = verl.ADV_ESTIMATOR_REGISTRY["gdpo"](**batch)
    assert found is returns
    objectives = [batch["non_tensor_batch"][name] for name in ("format", "recall", "precision")]
    rewards = torch.tensor(np.stack(objectives, axis=1)).float()
    order = [0, 3, 5, 1, 2, 4]
    expected = torch.zeros(6)
    expected[order] = method_advantages(Method("ad"), rewards[order], 3).tokens
    torch.testing.assert_close(found, expected.unsqueeze(1) * batch["response_mask"])
    assert (expected != 0).any()


def test_scores_in_verl_are_those_of_our_rewards(verl, settings):
    settings(method="rd", format_weight=0.1)
    plugin = fresh("verl")
    scored = plugin.compute_score(data_source="x", solution_str=HALF, ground_truth="happy", extra_info=None)
    assert scored == pytest.approx(
        {"score": 0.1 + 1.0 + 0.5, "format": 1.0, "recall": 1.0, "precision": 0.5, "f1": 2 / 3}
    )
    lost = plugin.compute_score(data_source="x", solution_str=GOOD, ground_truth=["zzz"])
    assert lost["score"] == 0.0
    assert math.isnan(lost["recall"])


STRICT = {
    "<think> a </think><answer> happy, happy </answer>": {"distinct_words": True},
    "<think> a </think><answer> happy, zzz </answer>": {"strict_labels": True},
    "<think> b </think><answer> happy, zzz </answer>": {"known_words": True},
    "<think> a </think><answer> happy": {"strict_answers": True},
}


@pytest.mark.parametrize(("completion", "option"), STRICT.items(), ids=["distinct_words", "labels", "known", "answers"])
@pytest.mark.parametrize("host", ["verl", "ms_swift"])
def test_what_the_rewards_refuse_is_an_option_in_every_host(host, completion, option, verl, swift, settings):
    plugin = fresh(host)

    def earned(**options):
        settings(method="rd", **options)
        if host == "verl":
            scored = plugin.compute_score(data_source="x", solution_str=completion, ground_truth="happy")
            return [scored[name] for name in ("format", "precision")]
        made = [swift.orms[f"mer_{name}"](args=None) for name in ("format", "precision")]
        return [reward([completion], gold=["happy"])[0] for reward in made]

    off = dict.fromkeys(["distinct_words", "known_words", "strict_labels", "strict_answers"], False)
    form = float(completion.endswith("</answer>"))
    assert earned(**off) == [form, 1.0]
    malformed, wrong, nothing = [0.0, 1.0], [1.0, 0.5], [0.0, 0.0]
    costs = {"distinct_words": malformed, "known_words": malformed, "strict_labels": wrong, "strict_answers": nothing}
    assert earned(**off | option) == costs[next(iter(option))]


def test_calibration_in_verl_takes_the_columns(verl, settings, monkeypatch):
    settings(method="mer-r1")
    monkeypatch.setenv("MER_R1_TERMS", "columns")
    plugin = fresh("verl")
    terms = {"delta_correct": np.array([0.1, 0.9, -0.3, 0.0]), "delta_incorrect": np.array([0.2, -0.1, 0.0, 0.5])}
    batch = verl_batch(plugin, [GOOD, WORSE, HALF, GOOD], [["happy"]] * 4, [*"aaaa"], **terms)
    found, _ = plugin.advantages(**batch)
    rewards = [batch["non_tensor_batch"][name] for name in ("format", "recall", "precision")]
    expected = method_advantages(
        Method(),
        torch.tensor(np.stack(rewards, axis=1)).float(),
        4,
        *(torch.tensor(term).float() for term in terms.values()),
    ).tokens
    torch.testing.assert_close(found[:, 0], expected)


def test_missing_columns_in_verl_are_told(verl, settings, monkeypatch):
    settings(method="mer-r1")
    monkeypatch.setenv("MER_R1_TERMS", "columns")
    plugin = fresh("verl")
    batch = verl_batch(plugin, [GOOD, WORSE], [["happy"]] * 2, [*"aa"])
    with pytest.raises(UserError, match=r"no column delta_correct, delta_incorrect .*reward function that returns"):
        plugin.advantages(**batch)
    settings(method="ad")
    with pytest.raises(UserError, match=r"no column format, recall, precision .*trainer.use_v1=False"):
        plugin.advantages(**(batch | {"non_tensor_batch": {}}))


# --- ms-swift ---------------------------------------------------------------------------------------------------------


@dataclass
class GRPOSample:
    """`swift/rl_core/data.py`, the fields that matter here."""

    messages: list[dict[str, Any]]
    extra: dict[str, Any] = field(default_factory=dict)
    response_token_ids: list[Any] = field(default_factory=list)
    response_loss_mask: list[Any] = field(default_factory=list)
    encoded: dict[str, Any] | None = None


class Template:
    """Encodes a prompt of ours, and the answer that a sample carries, the way swift's template does: raw media."""

    padding_free = False

    def __init__(self, omni, prompts, raws):
        self.omni, self.tokenizer, self.prompts, self.raws = omni, omni.tokenizer, prompts, raws

    def encode(self, sample):
        prompt = self.prompts[sample.extra["clip"]].input_ids.tolist()
        answer = [token for turn in sample.response_token_ids for token in turn]
        return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer, "clip": sample.extra["clip"]}


@pytest.fixture
def swift(monkeypatch):
    rewards, trainers = types.ModuleType("swift.rewards"), types.ModuleType("swift.rlhf_trainers.grpo_trainer")
    helpers = types.ModuleType("swift.rlhf_trainers.utils")
    rewards.orms = {"format": object}

    class GRPOTrainer:
        def _compute_advantages(self, samples, rewards_per_func, batch_encoded_inputs):
            self.logged = getattr(self, "logged", 0) + 1
            return rewards_per_func.sum(dim=1)

    def encode_sample(sample, template, *, encode_prompt_only=False):
        return template.encode(sample)

    def collate_to_grpo_micro_batch(
        samples, template, *, device, padding_to=None, router_replay_mode="disabled", use_logits_to_keep=False
    ):
        (encoded,) = (sample.encoded for sample in samples)  # raw media of several clips would need padding
        raw = template.raws[encoded["clip"]]
        mel = raw["input_features"][None]
        ids = torch.tensor([encoded["input_ids"]])
        inputs = {
            "input_ids": ids, "labels": torch.tensor([encoded["labels"]]), "attention_mask": torch.ones_like(ids),
            "input_features": mel, "feature_attention_mask": torch.ones(1, mel.shape[-1], dtype=torch.long),
            **{name: raw[name] for name in ("pixel_values_videos", "video_grid_thw", "video_second_per_grid")},
        }  # fmt: skip
        return inputs, SimpleNamespace()

    trainers.GRPOTrainer = GRPOTrainer
    helpers.encode_sample, helpers.collate_to_grpo_micro_batch = encode_sample, collate_to_grpo_micro_batch
    for name in ("swift", "swift.rlhf_trainers"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for module in (rewards, trainers, helpers):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return SimpleNamespace(orms=rewards.orms, GRPOTrainer=GRPOTrainer, utils=helpers)


def swift_trainer(swift, omni, template, method, group):
    trainer = swift.GRPOTrainer()
    accelerator = SimpleNamespace(device="cpu", gather=lambda value: value, unwrap_model=lambda model: model)
    trainer.__dict__.update(
        model=omni.model, template=template, accelerator=accelerator, num_generations=group, num_generations_eval=group,
        dynamic_num_samples=False, args=SimpleNamespace(per_device_train_batch_size=1),
        reward_func_names=["MerPrecision", "MerRecall", "MerFormat", "Other"],
        _template_context=lambda _: nullcontext(),
    )  # fmt: skip
    return trainer


def test_rewards_stand_in_swifts_registry(swift):
    fresh("ms_swift")
    assert {"mer_format", "mer_recall", "mer_precision", "mer_f1", "mer_accuracy", "format"} <= swift.orms.keys()
    columns = {"gold": [["happy"], "happy", ["zzz"]], "trainer_state": None}
    made = {name: swift.orms[f"mer_{name}"](args=SimpleNamespace()) for name in ("format", "recall", "precision", "f1")}
    found = {name: reward([HALF, WORSE, GOOD], **columns) for name, reward in made.items()}
    assert found == {
        "format": [1.0, 1.0, 1.0],
        "recall": [1.0, 0.0, None],
        "precision": [0.5, 0.0, None],
        "f1": [pytest.approx(2 / 3), 0.0, None],
    }
    named = [swift.orms[f"mer_{name}"].__name__ for name in ("format", "recall", "first_f1")]
    assert named == ["MerFormat", "MerRecall", "MerFirstF1"]


def test_swift_gets_the_methods_advantages(swift, settings, taught):
    settings(method="ad")
    fresh("ms_swift")
    trainer = swift_trainer(swift, taught, None, Method("ad"), 2)
    rewards = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    found = trainer._compute_advantages([], rewards, [])
    torch.testing.assert_close(found, method_advantages(Method("ad"), rewards[:, [2, 1, 0]], 2).tokens)
    assert trainer.logged == 1, "swift's own runs for its logs"
    fresh("ms_swift")
    trainer._compute_advantages([], rewards, [])
    assert trainer.logged == 2, "a second import does not put one around the other"


@pytest.mark.parametrize("calibration", ["answer", "difference"])
def test_calibration_in_swift_equals_our_own(swift, settings, taught, calibration):
    """Its terms, from a plain forward by swift's template with raw media, and ours, from the rollouts."""
    settings(calibration=calibration)
    method = Method(calibration=calibration)
    clips = [media(2.0, 0), media(2.7, 1)]
    raws = [media_tensors(taught, clip) for clip in clips]
    prompts = [
        encode_prompt(taught, question(f"Line {index}.", "short"), entry(taught, clip))
        for index, clip in enumerate(clips)
    ]
    categories = category_tokens(builtin(), taught.tokenizer)
    sampled = rollout(taught, prompts, 3, Sampling(24, 1.0, seed=2), tokens=categories[0], fast=True)
    gold = [["happy"]] * 3 + [["sad", "angry"]] * 3
    expected = terms_of(method, builtin(), categories, gold, sampled)
    samples = [
        GRPOSample(
            [{"role": "user", "content": "?"}, {"role": "assistant", "content": "..."}],
            {"clip": row // 3, "gold": gold[row]},
            [ids],
        )
        for row, ids in enumerate(sampled.completion_ids)
    ]
    plugin = fresh("ms_swift")
    trainer = swift_trainer(swift, taught, Template(taught, prompts, raws), method, 3)
    found = plugin.calibrated(trainer, samples, method)
    for ours, theirs in zip(expected, found, strict=True):
        torch.testing.assert_close(theirs, ours, atol=2e-5, rtol=0, equal_nan=True)
        assert (~ours.isnan()).sum() >= 4
    rewards = torch.rand(6, 4, generator=torch.Generator().manual_seed(1))
    advantages = trainer._compute_advantages(samples, rewards, [])
    torch.testing.assert_close(
        advantages, method_advantages(method, rewards[:, [2, 1, 0]], 3, *expected).tokens, atol=1e-3, rtol=0
    )
    assert samples[0].response_token_ids == [sampled.completion_ids[0]], "swift's own samples stay as they are"


@pytest.mark.parametrize(
    ("host", "chosen", "told"),
    [
        ("ms_swift", {"calibration": "reasoning"}, "calibration=reasoning needs an advantage per token; use mer-r1 rl"),
        ("ms_swift", {"calibration": "hinge"}, "calibration=hinge needs the starting policy; use mer-r1 rl for it"),
        ("verl", {"method": "mer-r1"}, "verl computes advantages without a model, .*: set MER_R1_TERMS=columns if"),
        ("verl", {"method": "mer-r1", "calibration": "reasoning"}, "needs an advantage per token; use mer-r1 rl"),
    ],
)
def test_what_a_host_cannot_run_is_refused_when_it_loads_the_file(verl, swift, settings, host, chosen, told):
    settings(**chosen)
    with pytest.raises(UserError, match=f"^MER_R1_METHOD: .*{told}"):
        fresh(host)


def test_each_host_starts_with_what_works_there(verl, swift):
    assert fresh("verl").verl_method() == Method("ad")
    assert fresh("ms_swift").swift_method() == Method("mer-r1")


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("host", ["verl", "ms_swift"])
def test_every_method_has_its_rewards_in_every_host(verl, swift, settings, monkeypatch, host, name):
    """As our own trainer scores the same completion."""
    monkeypatch.setenv("MER_R1_TERMS", "columns")
    settings(method=name)
    plugin = fresh(host)
    text = "<answer>sad</answer><think>Hm.</think><answer>happy, angry</answer>" if "video" in name else HALF
    expected = {
        one: reward_function(one, builtin())(completions=[text], labels=["happy"])[0] for one in OBJECTIVES[name]
    }
    if host == "verl":
        scored = plugin.compute_score(data_source="x", solution_str=text, ground_truth="happy")
        found = {one: scored[one] for one in expected}
    else:
        found = {one: swift.orms[f"mer_{one}"](args=None)([text], gold=["happy"])[0] for one in expected}
    assert found == expected
    assert max(expected.values()) > 0


def test_swift_reads_confidences_without_dropout(swift, taught):
    """LoRA is its default tuner, with dropout: two readings of an answer would differ by their masks."""
    plugin = fresh("ms_swift")
    taught.model.train()
    taught.model.lm_head.eval()  # as it was, so it stays
    before = [module.training for module in taught.model.modules()]
    try:
        with plugin.at_rest(taught.model):
            assert not any(module.training for module in taught.model.modules())
        assert [module.training for module in taught.model.modules()] == before
    finally:
        taught.model.eval()


def test_swifts_other_trainer_is_refused(swift, monkeypatch):
    monkeypatch.setitem(sys.modules, "swift.megatron", types.ModuleType("swift.megatron"))
    with pytest.raises(UserError, match=r"^swift's Megatron trainer computes advantages of its own"):
        fresh("ms_swift")


def test_our_files_hide_no_package_from_swift(swift, monkeypatch):
    """swift puts the folder of a plug-in first on the path."""
    folder = str(Path(importlib.util.find_spec("mer_r1.integrations.ms_swift").origin).parent)
    monkeypatch.setattr(sys, "path", [folder, *sys.path])
    fresh("ms_swift")
    assert folder not in sys.path
    assert len(sys.path) > 1


def test_what_does_not_fit_in_swift_is_told(swift, settings, taught):
    plugin = fresh("ms_swift")
    trainer = swift_trainer(swift, taught, None, Method(), 2)
    trainer.reward_func_names = ["MerRecall", "Other"]
    with pytest.raises(UserError, match="--reward_funcs mer_format mer_recall mer_precision"):
        plugin.advantages(trainer, [], torch.zeros(2, 2))
    trainer.dynamic_num_samples = True
    with pytest.raises(UserError, match="no dynamic_num_samples"):
        plugin.advantages(trainer, [], torch.zeros(2, 2))
    trainer.dynamic_num_samples = False
    trainer.template = SimpleNamespace(padding_free=True)
    with pytest.raises(UserError, match="no padding_free"):
        plugin.anchor_logits(trainer, [], [], [])


# --- the hosts themselves, where they are installed -------------------------------------------------------------------


def names_of(function):
    return list(inspect.signature(inspect.unwrap(function)).parameters)


def source_names(module, name):
    """Arguments of a function, or fields of a class, as a module's file has them: read, not imported."""
    tree = ast.parse(Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8"))
    for part in name.split("."):
        defined = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)]
        (tree,) = (node for node in defined if node.name == part)
    if isinstance(tree, ast.ClassDef):
        return {node.target.id for node in tree.body if isinstance(node, ast.AnnAssign)}
    return [argument.arg for argument in [*tree.args.args, *tree.args.kwonlyargs]]


def test_ms_swift_is_as_recorded(monkeypatch):
    """Its trainer wants an older TRL than ours, so here it can only be read; its registry can be used."""
    rewards = pytest.importorskip("swift.rewards", reason="ms-swift is not installed")
    trainer, helpers = "swift.rlhf_trainers.grpo_trainer", "swift.rlhf_trainers.utils"
    method = "GRPOTrainer._compute_advantages"
    assert source_names(trainer, method) == SWIFT[method]
    for name in ("encode_sample", "collate_to_grpo_micro_batch"):
        assert source_names(helpers, name) == SWIFT[name]
    assert source_names("swift.rl_core.data", "OnPolicySample") >= SWIFT["GRPOSample"]
    assert names_of(rewards.ORM.__init__) == SWIFT["ORM.__init__"]
    with monkeypatch.context() as hidden:
        hidden.setitem(sys.modules, "swift", None)
        plugin = fresh("ms_swift")
    rewards.orms.update(plugin.reward_classes())
    assert rewards.orms["mer_recall"](args=None)([HALF], gold=[["happy"]]) == [1.0]


def test_verl_is_as_recorded(settings):
    core = pytest.importorskip("verl.trainer.ppo.core_algos", reason="verl is not installed")
    settings(method="ad")
    assert names_of(core.register_adv_est) == VERL["register_adv_est"]
    assert names_of(core.compute_gdpo_outcome_advantage) == VERL["compute_gdpo_outcome_advantage"]
    plugin = fresh("verl")
    assert core.get_adv_estimator_fn("gdpo") is core.get_adv_estimator_fn("mer_r1") is plugin.advantages
    batch = verl_batch(plugin, [GOOD, WORSE], [["happy"]] * 2, [*"aa"])
    assert core.get_adv_estimator_fn("gdpo")(**batch)[0].abs().sum() > 0
