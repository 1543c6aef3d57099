"""The RL loss with a prompt computed once for its rollouts equals the one without: everywhere, by identity."""

import inspect
import os

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig
from tiny_world import WORDS, entry, media, tiny_omni
from torch.distributed.fsdp import fully_shard
from transformers import modeling_flash_attention_utils as flash
from trl import GRPOTrainer

from mer_r1.emotions.thinking import format_completion, question
from mer_r1.emotions.wheels import builtin
from mer_r1.model.omni import load
from mer_r1.model.prompts import encode_prompt
from mer_r1.model.shared_prefix import attention
from mer_r1.model.shared_prefix.attention import flash_sequences
from mer_r1.model.shared_prefix.packing import PADDING, shuffle_groups
from mer_r1.model.shared_prefix.readings import logits_after, score_rollouts
from mer_r1.model.tower_outputs import embed
from mer_r1.rl.method import Method
from mer_r1.rl.trainer import ForClips, MERR1Trainer
from mer_r1.training.recipes import RLRecipe
from mer_r1.training.stage import LANGUAGE_MODEL_LAYERS

CLIPS, GROUP = 3, 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_omni().save(folder)
    return folder


def make_trainer(checkpoint, folder, omni=None, **changes):
    omni = omni or load(checkpoint)
    omni.freeze_towers()
    # Prompts of unequal lengths: the batch is padded on the left; one clip has no sound.
    clips = [media(2.0, 0), media(3.1, 1), media(1.0, 2, audio=False)]
    subtitles = ("Hello.", "I am so glad to see you again, my friend.", "")
    prompts = [
        encode_prompt(omni, question(line, "short"), entry(omni, clip))
        for line, clip in zip(subtitles, clips, strict=True)
    ]
    rows = [
        {"prompt": [{"role": "user", "content": "?"}], "labels": [WORDS[index]], "clip_index": index}
        for index in range(CLIPS)
    ]
    settings = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": [], "num_generations": GROUP,
        "per_device_train_batch_size": CLIPS * GROUP, "max_completion_length": 24, "save_strategy": "no",
        "disable_tqdm": True, "max_steps": 1, "logging_steps": 1,
    }  # fmt: skip
    recipe = RLRecipe(**(settings | changes))
    return MERR1Trainer(omni, rows, prompts.__getitem__, Method(), builtin(), recipe)


def scored_rows(trainer, clips=(0, 0, 0, 1, 1, 1, 2, 2, 2), empty=None):
    """Clips, ids, mask, T of rollouts of unequal lengths behind prompts padded on the left."""
    omni = trainer.omni
    texts = [format_completion("A smile. " * (1 + row % 4), [WORDS[row % 8]]) for row in range(len(clips))]
    completions = [[*omni.tokenizer(text)["input_ids"], omni.tokenizer.eos_token_id] for text in texts]
    prompts = [trainer.prompt_of(index).input_ids for index in clips]
    width, length = max(map(len, prompts)), max(map(len, completions))
    ids = torch.full((len(clips), width + length), omni.tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids[row, width - len(prompt) : width] = prompt
        ids[row, width : width + len(completion)] = torch.tensor(completion)
        mask[row, width - len(prompt) : width + (0 if row == empty else len(completion))] = 1
    return list(clips), ids, mask, length


def scores(trainer, shared, rows, batch_size=None):
    """Log-probabilities, entropies, and the gradients of a loss that weighs every token differently."""
    trainer._shared = shared
    trainer.model.zero_grad()
    clips, *batch = rows
    logps, entropies, _ = trainer._get_per_token_logps_and_entropies(
        ForClips(trainer.model, clips), *batch, batch_size=batch_size, compute_entropy=True
    )
    weights = torch.linspace(-1, 1, logps.numel()).view_as(logps)
    (logps * weights).sum().backward()
    gradients = {name: w.grad.clone() for name, w in trainer.model.named_parameters() if w.grad is not None}
    return logps.detach(), entropies.detach(), gradients


def assert_same(found, expected):
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert found[2].keys() == expected[2].keys() != set()
    for name, gradient in expected[2].items():
        difference = (found[2][name] - gradient).norm() / gradient.norm()
        assert difference < 1e-5, f"{name}: {difference:.1e}"


@pytest.fixture(params=["mask", "segments"])
def divided(request, monkeypatch):
    """Both ways of sdpa, for rows of any length."""
    monkeypatch.setattr(attention, "DIVIDED_FROM", 0 if request.param == "segments" else 10**6)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_log_probabilities_entropies_and_gradients_are_those_of_the_plain_pass(
    checkpoint, tmp_path, divided, implementation
) -> None:
    trainer = make_trainer(checkpoint, tmp_path)
    rows = scored_rows(trainer)
    plain = scores(trainer, False, rows)
    trainer.model.set_attn_implementation(implementation)
    assert_same(scores(trainer, True, rows), plain)


def test_rollouts_that_lie_apart_or_in_parts_or_are_empty_come_back_in_place(checkpoint, tmp_path, divided) -> None:
    trainer = make_trainer(checkpoint, tmp_path)
    rows = scored_rows(trainer, clips=(2, 0, 1, 0, 2, 1, 0), empty=3)
    plain = scores(trainer, False, rows)
    assert plain[0][3].abs().max() == 0
    assert_same(scores(trainer, True, rows), plain)
    assert_same(scores(trainer, True, rows, batch_size=2), plain)


@pytest.mark.parametrize("reentrant", [False, True])
def test_with_gradient_checkpointing(checkpoint, tmp_path, divided, reentrant) -> None:
    trainer = make_trainer(checkpoint, tmp_path)
    rows = scored_rows(trainer)
    plain = scores(trainer, False, rows)
    trainer.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    trainer.model.enable_input_require_grads()
    trainer.model.train()
    calls = []
    layer = trainer.model.model.language_model.layers[0]
    layer.self_attn.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    assert_same(scores(trainer, True, rows), plain)
    assert len(calls) == 2  # forward, and once more for the backward: it was really on


def test_with_an_adapter(checkpoint, tmp_path) -> None:
    omni = load(checkpoint)
    trainer = make_trainer(checkpoint, tmp_path, omni)
    lora = LoraConfig(r=4, target_modules=LANGUAGE_MODEL_LAYERS)
    rows = [{"prompt": [{"role": "user", "content": "?"}], "labels": ["happy"], "clip_index": 0}]
    trainer = MERR1Trainer(omni, rows, trainer.prompt_of, Method(), builtin(), trainer.args, peft_config=lora)
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    rows = scored_rows(trainer)
    plain = scores(trainer, False, rows)
    assert all("lora" in name for name in plain[2])
    assert_same(scores(trainer, True, rows), plain)


def test_in_bfloat16_it_is_as_far_from_the_truth_as_the_plain_pass(checkpoint, tmp_path) -> None:
    trainer = make_trainer(checkpoint, tmp_path)
    rows = scored_rows(trainer)
    truth = scores(trainer, False, rows)
    trainer.model.bfloat16()
    plain, shared = scores(trainer, False, rows), scores(trainer, True, rows)
    rounded = (plain[0] - truth[0]).norm()
    assert rounded > 0
    assert (shared[0] - truth[0]).norm() < 1.3 * rounded
    far = {}
    for kind, found in (("plain", plain), ("shared", shared)):
        far[kind] = sum(float((found[2][name] - value).norm() ** 2) for name, value in truth[2].items()) ** 0.5
    assert far["shared"] < 1.3 * far["plain"]


# --- flash attention: the kernel replaced by what its documentation says it computes ----------------------------------


def varlen(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False
):
    """flash_attn_varlen_func: (N, heads, D) each; the causal mask aligned to the bottom right; fewer key heads."""
    assert causal
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert cu_seqlens_q[-1] == len(q)
    assert cu_seqlens_k[-1] == len(k)
    assert max_seqlen_q == cu_seqlens_q.diff().max()
    assert max_seqlen_k == cu_seqlens_k.diff().max()
    parts = []
    for i in range(len(cu_seqlens_q) - 1):
        one_q = q[cu_seqlens_q[i] : cu_seqlens_q[i + 1]]
        one_k, one_v = (x[cu_seqlens_k[i] : cu_seqlens_k[i + 1]] for x in (k, v))
        one_k, one_v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (one_k, one_v))
        scored = torch.einsum("qhd,khd->hqk", one_q, one_k) * softmax_scale
        seen = torch.ones(scored.shape[1:], dtype=torch.bool).tril(len(one_k) - len(one_q))
        parts.append(torch.einsum("hqk,khd->qhd", scored.masked_fill(~seen, -torch.inf).softmax(-1), one_v))
    return torch.cat(parts)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_with_flash_attention(checkpoint, tmp_path, monkeypatch, checkpointing) -> None:
    trainer = make_trainer(checkpoint, tmp_path)
    rows = scored_rows(trainer, clips=(2, 0, 1, 0, 2, 1, 0), empty=3)
    plain = scores(trainer, False, rows)
    kernels = (None, varlen, None, flash._pad_input, flash._unpad_input)
    monkeypatch.setattr(flash, "_lazy_imports", lambda *args, **kwargs: kernels)
    monkeypatch.setattr(flash, "_loaded_implementation", None)
    trainer.model.config.get_text_config()._attn_implementation = "flash_attention_2"
    if checkpointing:
        trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
        trainer.model.train()
    assert_same(scores(trainer, True, rows), plain)


def test_the_sequences_of_flash_attention_by_hand() -> None:
    found = flash_sequences(torch.tensor([[0, 0, 1, 2, 2, PADDING], [1, 1, PADDING, PADDING, PADDING, PADDING]]))
    assert found["cu_seq_lens_q"].tolist() == [0, 2, 3, 5, 7]
    assert found["cu_seq_lens_k"].tolist() == [0, 2, 5, 9, 11]
    assert found["key_index"].tolist() == [0, 1, *[0, 1, 2], *[0, 1, 3, 4], *[5, 6]]
    assert (found["max_length_q"], found["max_length_k"]) == (2, 4)


# --- groups, processes ------------------------------------------------------------------------------------------------


def test_groups_are_shuffled_whole_and_everything_in_unison() -> None:
    torch.manual_seed(1)
    batch = {"ids": torch.arange(12), "names": [str(i) for i in range(12)], "none": None, "total": torch.tensor(3)}
    found = shuffle_groups(batch, 3)
    assert found["ids"].tolist() != list(range(12))
    assert sorted(found["ids"].tolist()) == list(range(12))
    assert [int(name) for name in found["names"]] == found["ids"].tolist()
    assert all(len(set((found["ids"][i : i + 3] // 3).tolist())) == 1 for i in range(0, 12, 3))
    assert found["none"] is None
    assert found["total"] == 3
    part = shuffle_groups({"ids": torch.arange(6)}, 4)["ids"]  # half a group is another process's: pairs stay
    assert sorted(part.tolist()) == list(range(6))
    assert (part[::2] + 1 == part[1::2]).all()


def test_the_hosts_own_way_of_preparing_batches_is_the_one_that_ours_replaces() -> None:
    assert list(inspect.signature(GRPOTrainer._prepare_inputs).parameters) == ["self", "generation_batch"]
    source = inspect.getsource(GRPOTrainer._prepare_inputs)
    used = ("_generate_and_score_completions", "shuffle_sequence_dict", "split_tensor_dict", "_buffered_inputs")
    assert [name for name in used if name not in source] == []


def test_training_batches_hold_whole_groups_and_prompts_run_once(checkpoint, tmp_path) -> None:
    trainer = make_trainer(
        checkpoint, tmp_path, per_device_train_batch_size=GROUP, steps_per_generation=3, gradient_accumulation_steps=3
    )
    seen, loss = [], trainer._compute_loss

    def spy(model, inputs):
        seen.append(inputs["clip_index"].tolist())
        return loss(model, inputs)

    trainer._compute_loss = spy
    tokens = []
    trainer.model.get_input_embeddings().register_forward_hook(
        lambda module, args, _: tokens.append(args[0].shape) if torch.is_grad_enabled() else None
    )
    trainer.train()
    assert len(seen) == 3
    assert all(len(set(clips)) == 1 for clips in seen)
    assert [shape[0] for shape in tokens] == [1, 1, 1]  # one packed row a group


def read_beside(trainer, clips, ids, mask, length):
    """(18, V) logits that are read in the call that scores: in each rollout before its fourth token, and after a text
    of three tokens that no rollout begins with."""
    own = ids[:, -length:].tolist()
    texts = [[(row[:3], [3]), (row[1:4], [3])] for row in own]
    prompts, pad = [trainer.prompt_of(clip) for clip in clips], trainer.omni.tokenizer.pad_token_id
    scored = prompts, clips, ids[:, -length:], mask[:, -length:], pad
    *_, logits = score_rollouts(trainer.model, trainer.omni.model, *scored, texts, trainer._shared)
    return torch.cat([each for row in logits for each in row])


def test_what_is_read_beside_the_rollouts_is_what_a_pass_of_its_own_gives(checkpoint, tmp_path, divided) -> None:
    trainer = make_trainer(checkpoint, tmp_path)
    clips, *rows = scored_rows(trainer, clips=(2, 0, 1, 0, 2, 1, 0), empty=3)
    own = [row[-rows[2] :].tolist() for row in rows[0]]
    expected = torch.cat([
        logits_after(trainer.omni, trainer.model, trainer.prompt_of(clip), [(row[:3], [3]), (row[1:4], [3])])
        for clip, row in zip(clips, own, strict=True)
    ])  # fmt: skip
    for implementation, shared in (("sdpa", True), ("sdpa", False), ("eager", True)):
        trainer._shared = shared
        trainer.model.set_attn_implementation(implementation)
        torch.testing.assert_close(read_beside(trainer, clips, *rows), expected, rtol=1e-5, atol=1e-5)
    assert (expected[::2] - expected[1::2]).abs().max() > 1e-3


def test_only_the_models_own_forward_touches_a_weight(checkpoint, tmp_path, divided) -> None:
    """Under FSDP2 weights are whole only while the forward of the module that holds them runs."""
    trainer = make_trainer(checkpoint, tmp_path)
    clips, *rows = scored_rows(trainer)
    model = ForClips(trainer.model, clips)
    with torch.no_grad():
        trainer._shared = False
        plain, _, _ = trainer._get_per_token_logps_and_entropies(model, *rows)
        read = read_beside(trainer, clips, *rows)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = dist.init_device_mesh("cpu", (1,))
        for layer in trainer.model.model.language_model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(trainer.model, mesh=mesh)
        prompt = trainer.prompt_of(0)
        with pytest.raises(RuntimeError, match="DTensor"):  # what must not be done
            embed(trainer.model, prompt.input_ids[None], [prompt.media])
        for shared in (False, True):
            trainer._shared = shared
            found, _, _ = trainer._get_per_token_logps_and_entropies(model, *rows)
            torch.testing.assert_close(found.detach(), plain, rtol=1e-5, atol=1e-6)
            found.sum().backward()
            torch.testing.assert_close(read_beside(trainer, clips, *rows), read, rtol=1e-5, atol=1e-5)
    finally:
        dist.destroy_process_group()
        os.environ.pop("MASTER_ADDR", None)
