"""Model cards: what they say, what they inherit, and how scores get into them."""

import pytest
import yaml

from mer_r1.data.claim import weights_digest
from mer_r1.emotions.wheels import builtin
from mer_r1.evaluation.records import Record, rescore
from mer_r1.evaluation.summary import score_card, summarise
from mer_r1.training.recipe_files import read_recipe
from mer_r1.training.recipes import RLRecipe, SFTRecipe
from mer_r1.training.stage import card_of
from mer_r1.weights.card import metadata, model_card, with_scores


def recipe(kind, folder, *changes):
    places = [f"manifest={folder / 'secret' / 'mine.jsonl'}", f"output_dir={folder / 'runs' / 'rl'}", "use_cpu=true"]
    return read_recipe(kind, None, [*places, *changes])


def test_the_card_of_a_hub_model_names_it_as_the_base(tmp_path):
    text = card_of(recipe(RLRecipe, tmp_path, "model=Qwen/Qwen2.5-Omni-7B", "learning_rate=3e-5", "calibration=hinge"))
    head = yaml.safe_load(text.split("---")[1])
    assert head["base_model"] == "Qwen/Qwen2.5-Omni-7B"
    assert head["library_name"] == "transformers"
    assert head["pipeline_tag"] == "video-text-to-text"
    assert "license" not in head  # that of the base model, which is not known here
    assert "| `calibration` | hinge |" in text
    assert "| `learning_rate` | 3e-05 |" in text
    assert "mine.jsonl, split train, clips all" in text
    assert str(tmp_path) not in text
    assert "reinforcement learning" in text


def test_a_card_inherits_what_it_started_from(tmp_path):
    first = tmp_path / "sft"
    first.mkdir()
    (first / "README.md").write_text(card_of(recipe(SFTRecipe, tmp_path, "model=Qwen/Qwen2.5-Omni-3B")))
    text = card_of(recipe(RLRecipe, tmp_path, f"model={first}"))
    assert metadata(text)["base_model"] == "Qwen/Qwen2.5-Omni-3B"
    assert "| starting model | sft |" in text
    shipped = card_of(recipe(RLRecipe, tmp_path, "model=tiny-base"))
    assert metadata(shipped)["license"] == "apache-2.0"
    assert "generated-data" in metadata(shipped)["tags"]
    assert "base_model" not in metadata(shipped)


def test_metadata_is_the_head_only():
    assert metadata("---\nlicense: mit\ntags: [a]\n---\nbase_model: x") == {"license": "mit", "tags": "[a]"}
    assert metadata("# a card\nlicense: mit") == {}


def test_scores_replace_former_ones_and_leave_other_cards_alone():
    card = model_card("m", "sft", "a|b", "mine", {"epochs": 2}, {})
    once = with_scores(card, "mine, 3 clips", [("slow", "0.1", "0.2", "0.3 [0.2, 0.4]")])
    twice = with_scores(once, "mine, 4 clips", [("fast", "0.5", "0.6", "0.7")])
    assert "| slow | 0.1 | 0.2 | 0.3 [0.2, 0.4] |" in once
    assert "Not evaluated yet" not in once
    assert "3 clips" not in twice
    assert "| fast | 0.5 | 0.6 | 0.7 |" in twice
    assert "a\\|b" in card
    assert with_scores("# by hand", "x", []) is None


@pytest.mark.parametrize(
    ("change", "written"), [({}, True), ({"weights": "other"}, False), ({"condition": "x"}, False)]
)
def test_an_evaluation_fills_the_card_of_these_weights_only(tmp_path, change, written):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text(model_card("m", "rl", "a", "b", {}, {}))
    text = "<think> x </think><answer> sad </answer>"
    summary = summarise(rescore([Record("a", "slow", text, gold=["sad"])], builtin()))
    told = {"weights": weights_digest(tmp_path), "manifest": "data/m.jsonl", "split": "test", "clips": 1, "wheels": "w"}
    assert score_card(tmp_path, {**summary, **told, **change}) is written
    assert ("m.jsonl, split test, 1 clips, w" in (tmp_path / "README.md").read_text()) is written
