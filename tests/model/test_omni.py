"""The policy: what is saved is what is loaded, sizes are as stated, and what cannot be loaded is said in one line."""

import ast
import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_world import entry, media
from transformers import Qwen2Config, Qwen2ForCausalLM

import mer_r1
from mer_r1.emotions.thinking import format_completion, question
from mer_r1.errors import UserError
from mer_r1.model.families import QWEN25
from mer_r1.model.omni import Omni, Settings, load
from mer_r1.model.prompts import collate, encode_prompt, media_tensors
from mer_r1.model.tiny import TinyConfig, tiny
from mer_r1.model.tower_outputs import embed

CHANNELS = {"both": (True, True), "video": (True, False), "audio": (False, True), "text": (False, False)}


@pytest.fixture(scope="module")
def saved(omni, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    omni.save(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(saved):
    return load(saved)


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def logits(omni: Omni) -> torch.Tensor:
    prompt = encode_prompt(omni, question("Hello.", "short"), entry(omni, media(2.0, 0)))
    batch = collate([prompt], [[305, 306, 307]], omni.tokenizer.pad_token_id)
    embeddings = embed(omni.model, batch["input_ids"], batch["media"])
    with torch.no_grad():
        return omni.model(inputs_embeds=embeddings, position_ids=batch["position_ids"]).logits


# --- saving and loading -----------------------------------------------------------------------------------------------


def test_a_reloaded_model_computes_the_same(omni, loaded):
    torch.testing.assert_close(logits(loaded), logits(omni), atol=0, rtol=0)


def test_the_weights_of_both_towers_and_of_the_language_model_come_back(omni, loaded):
    ours, theirs = omni.model.state_dict(), loaded.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert {name.split(".")[1] for name in ours if name.startswith("model.")} >= {"visual", "audio_tower"}
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_settings_and_the_frame_size_come_back(omni, loaded):
    assert loaded.settings == omni.settings == Settings(num_frames=4, max_seconds=4.0, question="short")
    # Pitfall of the host library: the processor's own class carries a frame size that overrides the video processor's,
    # and an instance's override is lost when saved. 56 x 56 pixels are 4 x 4 patches, 2 x 2 tokens a pair of frames.
    size = {"shortest_edge": 56 * 56, "longest_edge": 56 * 56}
    assert loaded.processor.videos_kwargs["size"] == omni.processor.videos_kwargs["size"] == size
    frames = media(2.0, 0).frames
    for policy in (omni, loaded):
        made = policy.processor(text=["<|VIDEO|>"], videos=[frames], do_sample_frames=False, return_tensors="pt")
        assert made["video_grid_thw"].tolist() == [[2, 4, 4]]
        assert int((made["input_ids"] == policy.processor.video_token_id).sum()) == 2 * 2 * 2


def test_token_ids_come_back(omni, loaded):
    config = loaded.model.config
    for name, token in QWEN25.tokens.items():
        assert loaded.tokenizer.convert_tokens_to_ids(token) == omni.tokenizer.convert_tokens_to_ids(token), name
    special = {name: omni.tokenizer.convert_tokens_to_ids(token) for name, token in QWEN25.tokens.items()}
    assert config.video_token_id == special["video_token"]
    assert config.audio_token_id == special["audio_token"]
    assert config.vision_start_token_id == special["vision_bos_token"]  # undeclared in the library, read by it
    assert config.audio_start_token_id == special["audio_bos_token"]
    assert loaded.eos_ids == omni.eos_ids
    assert loaded.forbidden_ids == omni.forbidden_ids
    assert loaded.tokenizer.padding_side == "left"


def test_a_model_folder_without_our_settings_file_gets_the_defaults(copy):
    (copy / "mer_r1.json").unlink()
    assert load(copy).settings == Settings()


def test_a_full_checkpoint_gives_its_thinker(omni, copy):
    """As on the hub: the thinker's weights under a prefix of their own, the talker's beside them."""
    weights = {f"thinker.{name}": value for name, value in load_file(copy / "model.safetensors").items()}
    weights["talker.model.norm.weight"] = torch.ones(8)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    thinker = json.loads((copy / "config.json").read_text())
    whole = {"model_type": "qwen2_5_omni", "architectures": ["Qwen2_5OmniModel"], "thinker_config": thinker}
    (copy / "config.json").write_text(json.dumps(whole))
    torch.testing.assert_close(logits(load(copy)), logits(omni), atol=0, rtol=0)


def test_gathered_weights_are_saved_in_the_dtype_of_the_checkpoint(saved, tmp_path):
    """As FSDP and ZeRO-3 hand them over: in float32, tied weights each by itself; FSDP2 names the class anew."""
    load(saved, dtype=torch.bfloat16).save(tmp_path / "half")
    trained = load(tmp_path / "half")
    trained.model.float()
    kind = type(trained.model)
    trained.model.__class__ = type(f"FSDP{kind.__name__}", (type("FSDPModule", (), {}), kind), {})
    trained.save(tmp_path / "out", {name: value.clone() for name, value in trained.model.state_dict().items()})
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("half", "out"))
    assert found.keys() == expected.keys()
    assert {value.dtype for value in found.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_model_is_saved_in_the_dtype_of_the_checkpoint_in_whatever_it_is_held(saved, tmp_path, monkeypatch):
    """ZeRO-3 makes the weights of a bfloat16 checkpoint float32, those of the absent towers come from its files."""
    load(saved, dtype=torch.bfloat16).save(tmp_path / "half")
    plain = QWEN25.model.from_pretrained

    def held(*args, **options):
        model, report = plain(*args, **options)
        return model.float(), report

    monkeypatch.setattr(QWEN25.model, "from_pretrained", held)
    load(tmp_path / "half", towers=False).save(tmp_path / "out")
    assert {value.dtype for value in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}


def test_a_thinker_is_saved_under_its_own_names_whatever_it_was_loaded_from(omni, copy, tmp_path):
    """Under ZeRO-3 the library notes renamings that it never made, and saving would undo them."""
    weights = load_file(copy / "model.safetensors")
    save_file(
        {f"thinker.{name}": value for name, value in weights.items()}, copy / "model.safetensors", {"format": "pt"}
    )
    load(copy).save(tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == weights.keys()
    torch.testing.assert_close(logits(load(tmp_path / "out")), logits(omni), atol=0, rtol=0)


def test_a_dtype_can_be_chosen(saved):
    assert load(saved, dtype=torch.bfloat16).model.dtype is torch.bfloat16


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_a_completion_ends_with_the_chats_own_token(omni):
    assert omni.eos_ids == [omni.tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert omni.tokenizer.eos_token_id in omni.eos_ids


def test_every_media_token_is_forbidden_and_no_end_is(omni):
    forbidden = set(omni.forbidden_ids)
    for token in (*QWEN25.tokens.values(), "<|im_start|>", "<|endoftext|>"):
        assert omni.tokenizer.convert_tokens_to_ids(token) in forbidden, token
    assert not forbidden & set(omni.eos_ids)
    ordinary = omni.tokenizer("<think> happy </think>", add_special_tokens=False)["input_ids"]
    assert not forbidden & set(ordinary)


def test_special_tokens_are_one_token_each_and_spelled_back(omni, loaded):
    for policy in (omni, loaded):
        for token in (*QWEN25.tokens.values(), "<|im_start|>", "<|im_end|>", "<|endoftext|>"):
            (only,) = policy.tokenizer(token, add_special_tokens=False)["input_ids"]
            assert policy.tokenizer.decode([only], skip_special_tokens=False) == token
            assert policy.tokenizer.decode([only], skip_special_tokens=True) == ""


@pytest.mark.parametrize(
    "text", ["<think> A smile. </think><answer> happy, ill at ease </answer>", "naïve 悲しい 🙂\n\t x"]
)
def test_any_text_survives_the_tokenizer(omni, text):
    assert omni.tokenizer.decode(omni.tokenizer(text)["input_ids"]) == text


# --- the conversation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", CHANNELS)
def test_our_prompt_is_the_one_that_the_processor_makes(loaded, channels):
    video, audio = CHANNELS[channels]
    clip = media(2.7, 1, video, audio)
    asked = question("I am so glad.", "short")
    ours = encode_prompt(loaded, asked, media_tensors(loaded, clip))
    parts = [{"type": "video"}] * video + [{"type": "audio"}] * audio
    conversation = [{"role": "user", "content": [*parts, {"type": "text", "text": asked}]}]
    text = loaded.processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    theirs = loaded.processor(
        text=[text],
        videos=[clip.frames] if video else None,
        audio=[clip.waveform] if audio else None,
        fps=clip.fps,
        do_sample_frames=False,
        return_tensors="pt",
    )
    assert ours.input_ids.tolist() == theirs["input_ids"][0].tolist()
    if video:
        assert torch.equal(ours.media["pixel_values_videos"], theirs["pixel_values_videos"])
        torch.testing.assert_close(ours.media["video_second_per_grid"], theirs["video_second_per_grid"])
    if audio:
        heard = theirs["input_features"][0][:, theirs["feature_attention_mask"][0].bool()]
        torch.testing.assert_close(ours.media["input_features"], heard, atol=1e-5, rtol=0)


def test_the_prompt_reads_as_a_chat_with_separate_blocks(omni):
    prompt = encode_prompt(omni, "What?", entry(omni, media(2.0, 0)))
    text = omni.tokenizer.decode(prompt.input_ids, skip_special_tokens=False)
    assert text == (
        "<|im_start|>user\n<|vision_bos|>" + "<|VIDEO|>" * 8 + "<|vision_eos|>"
        "<|audio_bos|>" + "<|AUDIO|>" * 20 + "<|audio_eos|>What?<|im_end|>\n<|im_start|>assistant\n"
    )  # 4 frames are 2 pairs of 2 x 2 tokens; 2 s are 80 mel frames at 25 ms, four to a token


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def default_tiny():
    """Sizes of `TinyConfig()`; the vocabulary stays small because the texts are few."""
    words = [f"{first}{second}{third}" for first in "bcdfghklmn" for second in "aeiou" for third in "bcdfghklmnprst"]
    return tiny([format_completion("a", [word]) for word in words])


def test_the_default_tiny_policy_has_one_to_five_million_parameters(default_tiny):
    vocabulary = TinyConfig().vocab_size * TinyConfig().hidden_size  # tied embeddings, counted once
    ours = default_tiny.model.get_input_embeddings().weight.numel()
    assert 1e6 < sum(value.numel() for value in default_tiny.model.parameters()) - ours + vocabulary < 5e6


def test_the_three_parts_of_a_position_fill_half_a_head(omni, default_tiny):
    for policy in (omni, default_tiny):
        text = policy.model.config.text_config
        half = text.hidden_size // text.num_attention_heads // 2
        section = text.rope_parameters["mrope_section"]
        assert sum(section) == half
        assert min(section) > 0, "time, height and width all have a part"


def test_input_and_output_embeddings_are_one(omni):
    assert omni.model.get_input_embeddings().weight is omni.model.get_output_embeddings().weight


def test_the_seed_decides_the_weights_and_nothing_else_does():
    texts = [format_completion("a smile", [word]) for word in ("happy", "sad", "angry")]
    small = TinyConfig(vocab_size=300, hidden_size=32, num_layers=1, vision_size=32, vision_layers=1, audio_size=32)
    first, again, other = (tiny(texts, small, seed).model.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_signals_neither_die_out_nor_explode_in_the_untrained_model(omni):
    spread = logits(omni).std(dim=-1)
    assert spread.min() > 0.3
    assert spread.max() < 3


def test_towers_can_be_frozen_and_thawed(omni):
    towers = {id(value) for tower in omni.towers() for value in tower.parameters()}
    assert towers
    for frozen in (False, True):
        omni.freeze_towers(frozen)
        for value in omni.model.parameters():
            assert value.requires_grad is not (frozen and id(value) in towers)


# --- what cannot be loaded --------------------------------------------------------------------------------------------


def one_line(path) -> str:
    with pytest.raises(UserError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_a_missing_folder(tmp_path):
    assert "expected a folder with config.json" in one_line(tmp_path / "nowhere")


def test_a_folder_without_a_model(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    assert "expected a folder with config.json" in one_line(tmp_path)


def test_a_name_that_no_hub_knows():
    assert "cannot load" in one_line("no-such/model-of-mine")


def test_another_architecture(copy):
    for name in ("config.json", "model.safetensors"):
        (copy / name).unlink()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 32}
    Qwen2ForCausalLM(Qwen2Config(num_attention_heads=2, num_key_value_heads=2, **sizes)).save_pretrained(copy)
    assert "Qwen2.5-Omni" in one_line(copy)  # although the processor's files are those of an omni model


def test_a_text_model_with_its_tokenizer(omni, tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 32}
    Qwen2ForCausalLM(Qwen2Config(num_attention_heads=2, num_key_value_heads=2, **sizes)).save_pretrained(tmp_path)
    omni.tokenizer.save_pretrained(tmp_path)
    assert "Qwen2.5-Omni" in one_line(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "mer_r1.json", "tokenizer.json"])
def test_a_file_cut_short(copy, name):
    whole = (copy / name).read_bytes()
    (copy / name).write_bytes(whole[: len(whole) // 2])
    one_line(copy)


@pytest.mark.parametrize(
    ("name", "number"), [("video_token_index", 97), ("audio_token_index", False), ("video_token_index", None)]
)
def test_a_placeholder_that_is_not_the_tokenizers(copy, name, number):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {name: number}))
    assert "cannot load" in one_line(copy)


def test_special_tokens_that_give_no_positions(omni, monkeypatch):
    monkeypatch.setattr(omni.model.config, "vision_start_token_id", "none")
    with pytest.raises(UserError, match="the model's configuration gives no positions"):
        encode_prompt(omni, question("Hello."), media_tensors(omni, media(1.0, 0)))


def test_a_missing_weight_file(copy):
    (copy / "model.safetensors").unlink()
    one_line(copy)


def test_weights_that_are_not_in_the_file(copy, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    weights = load_file(copy / "model.safetensors")
    removed = weights.pop(next(name for name in weights if "audio_tower.layers.0" in name))
    assert removed is not None
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert "1 weights are not in it" in one_line(copy)  # the library itself would draw them at random and go on
    assert "REPORT" not in caplog.text


def test_weights_of_another_size(copy):
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["intermediate_size"] *= 2
    (copy / "config.json").write_text(json.dumps(config))
    one_line(copy)


def changed(file, **values):
    def change(folder):
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(content | values))

    return change


def replaced(file, content):
    return lambda folder: (folder / file).write_bytes(content)


def pickled(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")


ODD = {
    "no words": lambda folder: (folder / "tokenizer.json").unlink(),
    "pickle": pickled,
    "config list": replaced("config.json", b"[]"),
    "config null": replaced("config.json", b"null"),
    "config deep": replaced("config.json", b"[" * 100_000),
    "tokenizer list": replaced("tokenizer.json", b"[]"),
    "processor null": replaced("processor_config.json", b"null"),
    "generation list": replaced("generation_config.json", b"[]"),
    "generation cut": replaced("generation_config.json", b'{"eos_token_id": 2, "pad'),
    "generation words": changed("generation_config.json", eos_token_id=["</s>", 2]),
    "generation beyond": changed("generation_config.json", eos_token_id=10**6),
    "token beyond": changed("tokenizer_config.json", eos_token="<new>"),
    "generation number": changed("generation_config.json", eos_token_id=2.5),
    "weights header": replaced("model.safetensors", (2**62).to_bytes(8, "little") + b"{}"),
    "settings deep": replaced("mer_r1.json", b"[" * 100_000),
    "settings digits": replaced("mer_r1.json", b'{"num_frames": ' + b"9" * 6000 + b"}"),
    "settings many": replaced("mer_r1.json", b'{"num_frames": 1000000000}'),
    "settings half": replaced("mer_r1.json", b'{"num_frames": 2.5}'),
    "settings true": replaced("mer_r1.json", b'{"num_frames": true}'),
    "settings text": replaced("mer_r1.json", b'{"num_frames": "8"}'),
    "settings infinite": replaced("mer_r1.json", b'{"max_seconds": Infinity}'),
    "settings endless": replaced("mer_r1.json", b'{"max_seconds": 1e308}'),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_folder_is_one_line(copy, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    ODD[name](copy)
    assert len(one_line(copy)) < 1000
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "change",
    [
        changed("config.json", model_type="evil", auto_map={"AutoConfig": "evil.C"}),
        changed("tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.T", "evil.T"]}),
        changed("processor_config.json", processor_class="Evil", auto_map={"AutoProcessor": "evil.P"}),
    ],
    ids=["config", "tokenizer", "processor"],
)
def test_code_in_a_model_folder_is_neither_run_nor_offered(copy, change, monkeypatch):
    (copy / "evil.py").write_text("raise SystemExit('it ran')")
    monkeypatch.setattr("builtins.input", lambda *asked: pytest.fail("the user was asked"))
    change(copy)
    assert "code of its own, which is never run" in one_line(copy)


def test_every_loader_that_could_run_code_is_told_not_to():
    calls = [
        (path.name, call)
        for path in Path(mer_r1.__file__).parent.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and re.match(r"Auto\w+\.from_pretrained$", ast.unparse(call.func))
    ]
    assert len(calls) >= 6
    for name, call in calls:
        assert "trust_remote_code=False" in ast.unparse(call), name


@pytest.mark.parametrize(
    "content", ['{"num_frames": 8, "frames_per_second": 2}', "[8]", '{"question": "long"}', '{"num_frames": 0}']
)
def test_settings_that_mean_nothing(copy, content):
    (copy / "mer_r1.json").write_text(content)
    assert "mer_r1.json" in one_line(copy)


def test_settings_are_kept_as_plain_json(saved):
    expected = {"num_frames": 4, "max_seconds": 4.0, "question": "short", "form": "once", "must_reason": False}
    assert json.loads((saved / "mer_r1.json").read_text()) == expected


def test_limits_follow_the_settings():
    limits = Settings(num_frames=3, max_seconds=2.5).limits()
    assert (limits.max_frames, limits.max_seconds) == (3, 2.5)
    assert np.isclose(limits.sampling_rate, 16000)
