"""A model in the package: half precision in its file, float32 in memory, and a card that says where it comes from."""

import json

import pytest
import torch
from safetensors.torch import load_file

from mer_r1.data.manifest import read_manifest
from mer_r1.emotions.wheels import builtin
from mer_r1.lab.scenes import write_scenes
from mer_r1.lab.tiny import ship as module
from mer_r1.lab.tiny.ship import ship
from mer_r1.model.omni import load
from mer_r1.weights import BASE, NOTICE, POLICY, model_path

FACTS = {"command": "mer-r1 build --tiny", "commit": "abc", "seed": 0, "corpus": "none", "split": "validation"}
CARD = {**FACTS, "scores": {"F1": 0.5}}


def test_a_shipped_model_is_the_model_rounded_to_half_precision(taught, taught_folder, tmp_path):
    folder = ship(taught_folder, BASE, CARD, tmp_path / "shipped")
    kept = load_file(folder / "model.safetensors")
    assert {value.dtype for value in kept.values()} == {torch.float16}
    again = load(folder)
    assert again.settings == taught.settings
    original = dict(load(taught_folder).model.named_parameters())
    for name, value in again.model.named_parameters():
        assert value.dtype == torch.float32
        assert torch.equal(value, original[name].half().float()), name
    card = (folder / "README.md").read_text()
    assert "`mer-r1 build --tiny`" in card
    assert "| F1 | 0.5 |" in card


def test_weights_that_are_too_large_or_not_finite_are_refused(taught_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="at most 100"):
        ship(taught_folder, BASE, CARD, tmp_path / "large")


def test_names_of_shipped_models_are_folders_of_the_package_unless_such_a_folder_is_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert model_path(POLICY).endswith("weights/tiny-mer-r1")
    assert model_path("Qwen/Qwen2.5-Omni-7B") == "Qwen/Qwen2.5-Omni-7B"
    (tmp_path / BASE).mkdir()
    assert model_path(BASE) == BASE
    assert POLICY in NOTICE


def test_a_folder_with_the_name_of_the_built_in_model_is_asked_without_the_notice_about_that(
    run, taught_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / POLICY).symlink_to(taught_folder)
    write_scenes(tmp_path / "s", 1, seed=5, splits={"train": 0, "val": 0, "test": 1}, workers=1)
    [clip] = read_manifest(tmp_path / "s" / "manifest.jsonl")
    status, out, err = run("predict", clip.video, "--model", POLICY, "--think", "fast", "--max-new-tokens", 1)
    assert (status, clip.video.name in out) == (0, True), err
    assert "generated faces" not in out + err


@pytest.mark.parametrize("name", [BASE, POLICY])
def test_the_shipped_models_load_and_have_heads_of_32(name):
    omni = load(name)
    text = omni.model.config.text_config
    assert text.hidden_size // text.num_attention_heads == 32
    assert {value.dtype for value in omni.model.parameters()} == {torch.float32}
    assert omni.settings.form == "once"


def test_predict_without_a_model_asks_the_built_in_one_and_says_once_what_it_knows(run, tmp_path):
    write_scenes(tmp_path, 1, seed=5, splits={"train": 0, "val": 0, "test": 1}, workers=1)
    [clip] = read_manifest(tmp_path / "manifest.jsonl")
    status, out, err = run("predict", clip.video, "--subtitle", clip.subtitle, "--json")
    assert status == 0, err
    assert err.count("generated faces and voices only") == 1
    slow, fast = map(json.loads, out.splitlines())
    assert (slow["model"], slow["well_formed"], fast["well_formed"]) == (POLICY, True, True)
    assert slow["reasoning"]
    assert not fast["reasoning"]
    assert all(builtin().knows(label) for label in (*slow["labels"], *fast["labels"]))
