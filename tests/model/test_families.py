"""Qwen3-Omni through the same seams: what it computes from cached features is what its own forward computes."""

from dataclasses import replace

import pytest
import torch
from peft import get_peft_model
from tiny_world import SMALL, media, teach
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import _get_feat_extract_output_lengths

from mer_r1.data.manifest import read_manifest
from mer_r1.emotions.thinking import format_completion, question
from mer_r1.emotions.wheels import builtin
from mer_r1.errors import UserError
from mer_r1.model.families import FAMILIES, QWEN3, QWEN25, audio_tokens, family_of
from mer_r1.model.features import FeatureCache
from mer_r1.model.generation import Sampling
from mer_r1.model.omni import load
from mer_r1.model.prompts import IGNORE, collate, encode_prompt, media_tensors
from mer_r1.model.shared_prefix.attention import packed_inputs
from mer_r1.model.shared_prefix.packing import pack
from mer_r1.model.tiny import tiny
from mer_r1.model.tower_outputs import embed, encode_media, media_embedded, placeholder_ids
from mer_r1.rl.rollout import rollout
from mer_r1.training import rl_stage, stage
from mer_r1.training.recipe_files import read_recipe
from mer_r1.training.recipes import RLRecipe, SFTRecipe
from mer_r1.training.rl_stage import run_rl
from mer_r1.training.sft_stage import run_sft

CHANNELS = {"both": (True, True), "video": (True, False), "audio": (False, True), "text": (False, False)}
SIZES = replace(SMALL, vision_layers=2, num_layers=3)
CLOSE = {"atol": 2e-5, "rtol": 0}


def make(seed=0):
    forms = sorted(builtin().forms)
    texts = [format_completion("The smile is wide and the voice is bright, so perhaps", [word]) for word in forms]
    omni = tiny([*texts, *[question("I am so glad to see you again.", "short")] * 50], SIZES, seed, QWEN3)
    omni.freeze_towers()
    return omni


@pytest.fixture(scope="module")
def qwen3():
    omni = make()
    omni.model.eval()
    return omni


@pytest.fixture(scope="module")
def checkpoint(corpus, tmp_path_factory):
    omni, cache = make(), tmp_path_factory.mktemp("features")
    entries = FeatureCache(omni, cache)
    clips = [clip for clip in read_manifest(corpus) if clip.split == "train"]
    teach(omni, [encode_prompt(omni, question(clip.subtitle, "short"), entries.get(clip)) for clip in clips], steps=70)
    folder = tmp_path_factory.mktemp("qwen3")
    omni.save(folder)
    return folder


def raw(omni, seconds=2.7, seed=0, channels="both"):
    return media_tensors(omni, media(seconds, seed, *CHANNELS[channels]))


def prompt_of(omni, tensors, encoded=True):
    known = encode_media(omni.model, [tensors])[0] if encoded else tensors
    return encode_prompt(omni, question("Hello.", "short"), known)


def own_logits(omni, tensors, ids):
    """The library's forward on raw media; it finds positions, placeholders and deeper layers by itself."""
    inputs = {name: tensors[name] for name in ("pixel_values_videos", "video_grid_thw", "video_second_per_grid") if
              name in tensors}  # fmt: skip
    if "input_features" in tensors:
        mel = tensors["input_features"][None]
        inputs |= {"input_features": mel, "feature_attention_mask": torch.ones(1, mel.shape[-1], dtype=torch.long)}
    omni.model.model.rope_deltas = None
    with torch.no_grad():
        return omni.model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs).logits


def our_logits(omni, prompts, completions):
    batch = collate(prompts, completions, omni.tokenizer.pad_token_id)
    keep = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
    with torch.no_grad(), media_embedded(omni.model, batch["media"]):
        return omni.model(**keep).logits, batch


def test_it_is_what_it_says(qwen3):
    assert family_of(qwen3.model) is QWEN3
    assert FAMILIES["qwen2_5_omni"] is QWEN25
    assert type(qwen3.processor).__name__ == "Qwen3OmniMoeProcessor"
    assert qwen3.processor.video_token == "<|video_pad|>"
    assert {"<|video_pad|>", "<|audio_start|>"} <= {qwen3.tokenizer.decode([i]) for i in qwen3.forbidden_ids}


def test_a_reloaded_model_is_the_same(qwen3, tmp_path):
    qwen3.save(tmp_path)
    loaded = load(tmp_path)
    assert loaded.settings == qwen3.settings
    expected, found = qwen3.model.state_dict(), loaded.model.state_dict()
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    prompts = [prompt_of(omni, raw(omni)) for omni in (qwen3, loaded)]
    ours, theirs = (our_logits(*pair)[0] for pair in zip((qwen3, loaded), [[p] for p in prompts], [[[]]] * 2))  # noqa: B905
    torch.testing.assert_close(theirs, ours, atol=0, rtol=0)


def test_it_is_built_without_its_towers_and_gets_them_back(qwen3, tmp_path):
    qwen3.save(tmp_path)
    light = load(tmp_path, towers=False)
    encoded = encode_media(qwen3.model, [raw(qwen3)])[0]
    prompts = [encode_prompt(omni, "?", encoded) for omni in (qwen3, light)]
    torch.testing.assert_close(our_logits(light, prompts[1:], [[]])[0], our_logits(qwen3, prompts[:1], [[]])[0])


def test_sounds_become_as_many_tokens_as_upstream_says(qwen3):
    lengths = torch.arange(1, 450)
    assert torch.equal(audio_tokens(qwen3.model, lengths), _get_feat_extract_output_lengths(lengths))
    for seconds in (0.4, 2.5, 3.9):
        encoded = encode_media(qwen3.model, [raw(qwen3, seconds, channels="audio")])[0]
        assert len(encoded["audio"]) == int(audio_tokens(qwen3.model, encoded["mel_frames"]))


def test_tokens_are_those_of_the_processor(qwen3):
    clip = media(2.7, 0)
    tensors = media_tensors(qwen3, clip)
    parts = [{"type": "video"}, {"type": "audio"}, {"type": "text", "text": question("Hello.", "short")}]
    text = qwen3.processor.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
    )
    hop = qwen3.processor.feature_extractor.hop_length
    theirs = qwen3.processor(
        text=[text],
        videos=[clip.frames],
        audio=[clip.waveform[: len(clip.waveform) // hop * hop]],
        do_sample_frames=False,
        return_tensors="pt",
    )
    assert torch.equal(prompt_of(qwen3, tensors, encoded=False).input_ids, theirs["input_ids"][0])


@pytest.mark.parametrize("channels", CHANNELS)
def test_cached_features_give_the_logits_of_the_models_own_forward(qwen3, channels):
    tensors = raw(qwen3, channels=channels)
    prompt = prompt_of(qwen3, tensors)
    text = qwen3.tokenizer("happy and sad")["input_ids"]
    ids = prompt.extended(text).input_ids[None]
    torch.testing.assert_close(our_logits(qwen3, [prompt], [text])[0], own_logits(qwen3, tensors, ids), **CLOSE)


def test_positions_are_fractions_and_stay_so(qwen3):
    prompt = prompt_of(qwen3, raw(qwen3, 2.7))
    assert prompt.position_ids.is_floating_point()
    assert bool((prompt.position_ids != prompt.position_ids.round()).any())
    longer = prompt.extended([301, 302])
    assert longer.position_ids[0, -1] - longer.position_ids[0, -2] == 1
    batch = collate([prompt, longer], [[303], []], qwen3.tokenizer.pad_token_id)
    assert torch.equal(batch["position_ids"][:, 1, :-1], longer.position_ids)


def test_padding_changes_nothing(qwen3):
    kinds = [("both", 2.0), ("video", 3.4), ("audio", 2.7), ("text", 1.0)]
    prompts = [prompt_of(qwen3, raw(qwen3, seconds, 3, channels)) for channels, seconds in kinds]
    answers = [[301, 302], [303], [], [304, 305, 306]]
    together, batch = our_logits(qwen3, prompts, answers)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        alone, _ = our_logits(qwen3, [prompt], [answer])
        torch.testing.assert_close(together[row][batch["attention_mask"][row].bool()], alone[0], **CLOSE)


def test_the_deeper_layers_hear_of_the_frames(qwen3):
    prompt = prompt_of(qwen3, raw(qwen3))
    assert prompt.media["video_deep"].shape == (2, *prompt.media["video"].shape)
    deaf = replace(prompt, media={name: value for name, value in prompt.media.items() if name != "video_deep"})
    ours, without = (our_logits(qwen3, [one], [[]])[0][0, -1] for one in (prompt, deaf))
    assert (ours - without).abs().max() > 1e-2
    fewer = replace(prompt, media={**prompt.media, "video_deep": prompt.media["video_deep"][:, 1:]})
    with pytest.raises(ValueError, match="vectors for the deeper layers"):
        our_logits(qwen3, [fewer], [[]])
    with pytest.raises(ValueError, match="within `media_embedded`"):
        embed(qwen3.model, prompt.input_ids[None], [prompt.media])
    assert not qwen3.model.model.language_model._forward_pre_hooks


@pytest.mark.parametrize("channel", ["video", "audio"])
def test_another_clips_channel_changes_the_log_probabilities(qwen3, channel):
    ours, others = (encode_media(qwen3.model, [raw(qwen3, 2.7, seed)])[0] for seed in (0, 1))
    swapped = {name: others[name] if name.startswith(channel) else value for name, value in ours.items()}
    logits = [our_logits(qwen3, [encode_prompt(qwen3, "?", one)], [[]])[0][0, -1] for one in (ours, swapped)]
    assert (logits[0].log_softmax(-1) - logits[1].log_softmax(-1)).abs().max() > 1e-3


def test_rollouts_on_one_prompt_cache_have_the_log_probabilities_of_a_full_pass(qwen3):
    prompts = [prompt_of(qwen3, raw(qwen3, 2.0, 0)), prompt_of(qwen3, raw(qwen3, 3.4, 1, "video"))]
    drawn = rollout(qwen3, prompts, 2, Sampling(8, seed=0))
    rows = [prompt for prompt in prompts for _ in range(2)]
    logits, batch = our_logits(qwen3, rows, drawn.completion_ids)
    found = logits[:, :-1].log_softmax(-1).gather(2, batch["input_ids"][:, 1:, None])[..., 0]
    full = found[batch["labels"][:, 1:] != IGNORE]
    torch.testing.assert_close(torch.tensor([logp for row in drawn.logps for logp in row]), full, **CLOSE)


def test_packed_rows_and_checkpointing_give_the_gradients_of_plain_rows(qwen3):
    prompts = [prompt_of(qwen3, raw(qwen3, 2.0, 0)), prompt_of(qwen3, raw(qwen3, 3.4, 1))]
    answers = [[301, 302, 303], [304], [305, 306], [307, 308, 309, 310]]
    weight = qwen3.model.model.language_model.layers[0].self_attn.q_proj.weight
    plain = collate([prompts[0], prompts[0], prompts[1], prompts[1]], answers, qwen3.tokenizer.pad_token_id)
    rows = [[(prompts[0], ids) for ids in answers[:2]], [(prompts[1], ids) for ids in answers[2:]]]
    packed = pack(rows, qwen3.tokenizer.pad_token_id, placeholder_ids(qwen3.model))
    gradients = []
    for batch, checkpointed in ((plain, False), (plain, True), (packed, False), (packed, True)):
        media_list = batch["media"]
        names = ("input_ids", "attention_mask", "labels", "position_ids")
        inputs = packed_inputs(qwen3.model, batch) if "branches" in batch else {name: batch[name] for name in names}
        qwen3.model.train(checkpointed)
        if checkpointed:
            qwen3.model.gradient_checkpointing_enable({"use_reentrant": False})
        with media_embedded(qwen3.model, media_list):
            loss = qwen3.model(**inputs).loss
        gradients.append(torch.autograd.grad(loss, weight)[0])
        qwen3.model.gradient_checkpointing_disable()
        qwen3.model.eval()
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], atol=1e-6, rtol=1e-4)


def recipe(kind, manifest, model, out, *more):
    common = ["use_cpu=true", "bf16=false", "report_to=none", "disable_tqdm=true", "workers=0"]
    common += ["logging_steps=1", "save_strategy=no", "learning_rate=1e-3", f"features_dir={out / 'features'}"]
    return read_recipe(kind, None, [*common, f"manifest={manifest}", f"model={model}", f"output_dir={out}", *more])


def moved(before, after):
    before, after = (load(folder).model.state_dict() for folder in (before, after))
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_the_cache_keeps_what_the_deeper_layers_hear(checkpoint, corpus, tmp_path):
    omni = load(checkpoint)
    cached = FeatureCache(omni, tmp_path).get(read_manifest(corpus)[0])
    assert set(cached) >= {"video", "video_deep", "audio", "mel_frames"}


def test_sft_and_rl_steps(checkpoint, corpus, tmp_path):
    sft = run_sft(recipe(SFTRecipe, corpus, checkpoint, tmp_path / "sft", "max_steps=2", "shared_prefixes=false"))
    changed = moved(checkpoint, sft)
    assert any(".experts." in name for name in changed), "experts learn"
    assert any(name.endswith("mlp.gate.weight") for name in changed), "and so does what chooses them"
    assert not any("visual" in name or "audio_tower" in name for name in changed)
    batch = ["per_device_train_batch_size=8", "num_generations=4", "max_completion_length=24", "max_steps=1"]
    rl = run_rl(recipe(RLRecipe, corpus, checkpoint, tmp_path / "rl", *batch))
    assert any("language_model" in name for name in moved(checkpoint, rl))
    adapted = run_rl(recipe(RLRecipe, corpus, checkpoint, tmp_path / "lora", *batch, "lora_rank=2"))
    changed = moved(checkpoint, adapted)
    assert {name.rpartition("layers.")[2].split(".")[1] for name in changed} == {"self_attn", "mlp"}
    assert not any(name.endswith("mlp.gate.weight") for name in changed), "what chooses the experts has no adapter"


def test_merged_adapters_compute_what_they_did_apart(checkpoint):
    omni = load(checkpoint)
    prompt = prompt_of(omni, raw(omni))
    base = omni.model.eval()
    before, _ = our_logits(omni, [prompt], [[301, 302]])
    adapted = get_peft_model(base, stage.lora_config(RLRecipe(output_dir="out", use_cpu=True, bf16=False, lora_rank=2)))
    generator = torch.Generator().manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.05, generator=generator)
    apart, _ = our_logits(omni, [prompt], [[301, 302]])
    assert (apart - before).abs().max() > 1e-2
    omni.model = adapted.eval().merge_and_unload()
    torch.testing.assert_close(our_logits(omni, [prompt], [[301, 302]])[0], apart, **CLOSE)


def test_the_engine_does_not_know_it(checkpoint, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(rl_stage, "required", lambda what: None)  # as if vLLM were here
    with pytest.raises(UserError, match=r"rollouts=vllm.*Qwen3-Omni"):
        run_rl(recipe(RLRecipe, corpus, checkpoint, tmp_path, "rollouts=vllm"))
