"""Training without the towers in memory: the same loss, and a whole checkpoint at the end."""

import json
import shutil

import pytest
import torch

from mer_r1.data.manifest import read_manifest
from mer_r1.errors import UserError
from mer_r1.model.absent_towers import AbsentTower, absent, drop_towers, restore_towers, whole_state, without_towers
from mer_r1.model.features import FeatureCache, tower_fingerprint
from mer_r1.model.omni import load
from mer_r1.training import rl_stage, sft_stage, stage
from mer_r1.training.recipe_files import read_recipe
from mer_r1.training.recipes import RLRecipe, SFTRecipe

COMMON = ["use_cpu=true", "bf16=false", "report_to=none", "disable_tqdm=true", "workers=0", "logging_steps=1"]
COMMON += ["save_strategy=no", "max_steps=2", "learning_rate=1e-3"]
STAGES = {
    SFTRecipe: ["per_device_train_batch_size=3"],
    RLRecipe: ["per_device_train_batch_size=4", "num_generations=2", "max_completion_length=12"],
}


def towers_of(model):
    return {name: value for name, value in model.state_dict().items() if "visual" in name or "audio_tower" in name}


@pytest.fixture
def bare(taught_folder):
    return load(taught_folder, towers=False)


@pytest.fixture
def whole(taught_folder):
    return load(taught_folder)


def test_no_tower_weight_is_in_memory_and_nothing_else_is_missing(bare, whole):
    assert towers_of(bare.model) == {}
    language = whole.model.state_dict().keys() - towers_of(whole.model).keys()
    assert bare.model.state_dict().keys() == language
    for name, value in bare.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name])
    assert type(bare.model) is type(whole.model)
    assert not absent(load(bare.source).model), "the class is as it was"


@pytest.mark.parametrize("dtype", ["auto", torch.bfloat16])
def test_the_fingerprint_is_that_of_the_towers(taught_folder, dtype):
    assert tower_fingerprint(load(taught_folder, dtype, towers=False)) == tower_fingerprint(load(taught_folder, dtype))


def test_a_state_dict_is_whole(bare, whole):
    state = whole_state(bare.model)
    assert state.keys() == whole.model.state_dict().keys()
    assert all(torch.equal(value, whole.model.state_dict()[name]) for name, value in state.items())
    assert whole_state(whole.model) is None


def test_a_saved_checkpoint_is_whole_in_one_file_or_several(bare, whole, tmp_path):
    bare.save(tmp_path / "one")
    bare.model.save_pretrained(tmp_path / "several", state_dict=whole_state(bare.model), max_shard_size="300KB")
    assert (tmp_path / "several" / "model.safetensors.index.json").is_file()
    shutil.copytree(tmp_path / "one", tmp_path / "several", dirs_exist_ok=True)
    (tmp_path / "several" / "model.safetensors").unlink()
    expected = whole.model.state_dict()
    for folder in (tmp_path / "one", tmp_path / "several"):
        saved = load(folder).model.state_dict()
        assert saved.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in saved.items())
        assert tower_fingerprint(load(folder, towers=False)) == tower_fingerprint(whole)


def test_the_checkpoint_may_be_deleted_meanwhile(taught_folder, whole, tmp_path):
    folder = shutil.copytree(taught_folder, tmp_path / "short-lived")
    bare = load(folder, towers=False)
    shutil.rmtree(folder)
    bare.save(tmp_path / "after")
    assert load(tmp_path / "after").model.state_dict().keys() == whole.model.state_dict().keys()


def test_towers_come_back_frozen_and_the_same(bare, whole):
    restore_towers(bare.model)
    assert not absent(bare.model)
    for name, value in towers_of(whole.model).items():
        assert torch.equal(value, bare.model.state_dict()[name])
    assert not any(weight.requires_grad for tower in bare.towers() for weight in tower.parameters())
    drop_towers(bare.model, bare.source)
    assert towers_of(bare.model) == {}
    assert len(whole_state(bare.model)) == len(whole.model.state_dict())


def test_a_missing_entry_brings_the_towers_back(bare, whole, corpus, tmp_path):
    clips = read_manifest(corpus)[:2]
    cache = FeatureCache(bare, tmp_path / "bare")
    assert cache.build(clips[:1], workers=0) == 1
    assert not absent(bare.model)
    expected = FeatureCache(whole, tmp_path / "whole").get(clips[0])
    for name, value in cache.get(clips[0]).items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=0)


def test_a_complete_cache_needs_no_tower(bare, whole, corpus, tmp_path):
    clips = read_manifest(corpus)
    FeatureCache(whole, tmp_path).build(clips, workers=0)
    cache = FeatureCache(bare, tmp_path)
    assert cache.missing(clips) == {}
    assert cache.build(clips, workers=0) == 0
    assert [tower.name for tower in absent(bare.model)] == ["visual", "audio_tower"]
    with pytest.raises(RuntimeError, match="visual is not in memory"):
        bare.model.model.visual(None)


def test_a_checkpoint_without_towers_is_refused(bare, tmp_path):
    bare.save(tmp_path)
    bare.model.save_pretrained(tmp_path)  # what the library would write
    with pytest.raises(UserError, match=r"weights of visual are not in it"):
        load(tmp_path, towers=False)


def test_an_absent_tower_without_a_checkpoint_says_so(whole):
    with without_towers(type(whole.model)):
        lost = type(whole.model)(whole.model.config)
    assert all(isinstance(tower, AbsentTower) for tower in absent(lost))
    with pytest.raises(RuntimeError, match="are nowhere"):
        whole_state(lost)


@pytest.mark.parametrize(
    ("kind", "run"), [(SFTRecipe, sft_stage.run_sft), (RLRecipe, rl_stage.run_rl)], ids=["sft", "rl"]
)
def test_training_without_towers_is_the_same_and_saves_whole(kind, run, corpus, taught_folder, tmp_path, monkeypatch):
    def go(name, *more):
        told = [f"manifest={corpus}", f"model={taught_folder}", f"output_dir={tmp_path / name}"]
        run(read_recipe(kind, None, [*COMMON, *STAGES[kind], *told, f"features_dir={tmp_path / 'features'}", *more]))
        return [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text(encoding="utf-8").splitlines()]

    seen = []
    original = stage.train_and_save

    def spy(trainer, recipe, omni):
        models = [omni.model, *([trainer.ref_model] if getattr(trainer, "ref_model", None) else [])]
        seen.append([len(absent(trainer.accelerator.unwrap_model(model))) for model in models])
        return original(trainer, recipe, omni)

    for module in (sft_stage, rl_stage):
        monkeypatch.setattr(module, "train_and_save", spy)
    first = go("first")  # the towers come for the features, and leave
    second = go("second")  # they never come
    monkeypatch.setattr(stage, "drop_towers", lambda *_: None)
    monkeypatch.setattr(stage, "load", lambda *args, towers, **kwargs: load(*args, **kwargs))
    third = go("third")
    models = 1 if kind is SFTRecipe else 2
    assert seen == [[2] * models, [2] * models, [0] * models]
    for log in (second, third):
        for ours, theirs in zip(first, log, strict=True):
            assert ours.get("loss") == pytest.approx(theirs.get("loss"), abs=1e-6)
    before, after = load(taught_folder), load(tmp_path / "second" / "model")
    assert towers_of(before.model).keys() == towers_of(after.model).keys() != set()
    for name, value in towers_of(before.model).items():
        assert torch.equal(value, after.model.state_dict()[name])
    plain = load(tmp_path / "third" / "model").model.state_dict()
    assert all(torch.allclose(value, plain[name], atol=1e-6) for name, value in after.model.state_dict().items())
