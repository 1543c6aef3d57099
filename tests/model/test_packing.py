"""Packed rows: by construction, and by identity with the plain batch (the same loss, log-probabilities, gradients)."""

import json
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from tiny_corpus import write_corpus
from tiny_world import entry, media, tiny_omni
from torch.nn.functional import scaled_dot_product_attention

from mer_r1.errors import UserError
from mer_r1.model.prompts import IGNORE, Prompt, collate, encode_prompt, media_tensors
from mer_r1.model.shared_prefix import attention
from mer_r1.model.shared_prefix.attention import attend_to_segments, packed_inputs, segments, visible
from mer_r1.model.shared_prefix.packing import PADDING, PREFIX, group_rows, pack, pack_rollouts, shared_length
from mer_r1.model.tower_outputs import embed, media_embedded, placeholder_ids
from mer_r1.training.recipes import SFTRecipe
from mer_r1.training.sft_stage import run_sft
from mer_r1.training.sft_trainer import MERSFTTrainer

A, V = 90, 91  # placeholders
QUESTIONS = ("Weigh face, voice and words.", "Weigh all.", "What do you see and hear?")
TARGETS = ("<think>A smile.</think><answer> happy, glad </answer>", "I see a wide smile.", "bright")


@pytest.fixture(scope="module")
def omni():
    omni = tiny_omni()
    omni.freeze_towers()
    return omni


def text(*ids, media=None):
    return Prompt(torch.tensor(ids), torch.arange(len(ids)).expand(3, -1).clone(), media or {})


def common(*prompts):
    return shared_length(prompts, torch.tensor([A, V]))


# --- what is shared ---------------------------------------------------------------------------------------------------


def test_the_common_prefix_leaves_every_branch_a_prompt_token() -> None:
    assert common(text(1, 2, 3), text(1, 2, 4, 5)) == 2
    assert common(text(1, 2, 3), text(1, 2, 3)) == 2
    same = text(1, 2, 3)
    assert common(same, same, same) == 2
    assert common(text(1, 2, 3), text(2, 2, 3)) == 0
    assert common(text(1, 2, 3)) == 0


def test_tokens_at_other_positions_are_not_the_same() -> None:
    moved = text(1, 2, 3, 4)
    moved.position_ids[1, 2] = 7
    assert common(text(1, 2, 3, 4), moved) == 2


def test_placeholders_are_shared_all_or_none_and_only_with_the_same_media() -> None:
    here, there = {"audio": torch.ones(2, 4)}, {"audio": torch.zeros(2, 4)}
    one = text(1, A, A, 2, 3, media=here)
    assert common(one, text(1, A, A, 2, 4, media=here)) == 4
    assert common(one, text(1, A, A, 2, 4, media={"audio": torch.ones(2, 4)})) == 4
    assert common(one, text(1, A, A, 2, 4, media=there)) == 1
    assert common(one, text(1, A, A, 2, 4, media={})) == 1
    behind = {"audio": torch.ones(1, 4), "video": torch.ones(1, 4)}
    assert common(text(1, A, 2, V, 5, media=behind), text(1, A, 3, V, 5, media=behind)) == 1


def test_a_packed_row_by_hand() -> None:
    batch = pack([[(text(1, 2, 3), [7, 8]), (text(1, 2, 4), [9])], [(text(5), [6])]], 0, [A, V])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 7, 8, 4, 9], [5, 6, 0, 0, 0, 0, 0]]
    assert batch["branches"].tolist() == [[0, 0, 1, 1, 1, 2, 2], [1, 1, *[PADDING] * 5]]
    assert batch["position_ids"][0].tolist() == [[0, 1, 2, 3, 4, 2, 3], [0, 1, 0, 0, 0, 0, 0]]
    labels = [[IGNORE, IGNORE, IGNORE, 7, 8, IGNORE, 9], [IGNORE, 6, *[IGNORE] * 5]]
    assert batch["labels"].tolist() == labels
    assert batch["attention_mask"].sum(dim=1).tolist() == [7, 2]


def test_a_token_sees_the_prefix_and_its_own_branch_up_to_itself() -> None:
    seen = visible(torch.tensor([[PADDING, PREFIX, PREFIX, 1, 1, 2, PADDING]]))[0].long().tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 1, 0, 0],
        [0, 1, 1, 0, 0, 1, 0],
        [1, 1, 1, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("heads", [2, 4])
def test_attention_by_segments_is_that_under_the_mask(heads) -> None:
    """Two branches of unequal lengths and padding; a row that shares nothing; a row of one prefix and one branch."""
    rows = [[0, 0, 0, 1, 1, 2, 2, 2, PADDING], [1, 1, 1, 1, 1, *[PADDING] * 4], [0, 0, 1, 1, 1, 1, 1, 1, 1]]
    branches, random = torch.tensor(rows), torch.Generator().manual_seed(0)
    shapes = [(3, 4, 9, 8), (3, heads, 9, 8), (3, heads, 9, 8), (3, 4, 9, 8)]
    *states, weights = (torch.randn(*shape, generator=random) for shape in shapes)
    weights = weights * (branches != PADDING)[:, None, :, None]
    found = []
    for masked in (True, False):
        query, key, value = (each.clone().requires_grad_() for each in states)
        if masked:
            wide = [each.repeat_interleave(4 // heads, dim=1) for each in (key, value)]
            out = scaled_dot_product_attention(query, *wide, attn_mask=visible(branches).unsqueeze(1), scale=0.3)
        else:
            out = attend_to_segments(query, key, value, segments(branches), scaling=0.3)
            assert (out.transpose(1, 2)[branches == PADDING] == 0).all()
        (out * weights).sum().backward()
        found.append([(out * weights).detach(), query.grad, key.grad, value.grad])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_texts_are_read_in_the_branch_that_they_begin_or_in_one_of_their_own() -> None:
    """Two rollouts of one clip: [7, 8] and, masked away, [9]; read are [7], [9, 5] twice (once cut), and nothing."""
    prompts, ids, mask = [text(1, 2, 3)] * 2, torch.tensor([[7, 8], [9, 0]]), torch.tensor([[1, 1], [0, 0]])
    texts = [[([7], [0, 1]), ([9, 5], [1, 2])], [([9], [1]), ([], [])]]
    shared = pack_rollouts(prompts, [4, 4], ids, mask, 0, [A, V], texts)
    assert shared.batch["input_ids"].tolist() == [[1, 2, *[3, 7, 8], *[3], *[3, 9, 5]]]
    assert shared.batch["branches"].tolist() == [[0, 0, 1, 1, 1, 2, 3, 3, 3]]
    assert shared.batch["labels"].tolist() == [[*[IGNORE] * 3, 7, 8, *[IGNORE] * 4]]
    assert shared.places == [[[2, 3], [7, 8]], [[7], []]]
    alone = pack_rollouts(prompts, [4, 4], ids, mask, 0, [A, V], texts, shared=False)
    assert alone.batch["input_ids"].tolist() == [
        [1, 2, 3, 7, 8], [1, 2, 3, 0, 0], [1, 2, 3, 9, 5], [1, 2, 3, 9, 0]
    ]  # fmt: skip
    assert (alone.batch["labels"] != IGNORE).sum() == 2
    assert alone.places == [[[2, 3], [11, 12]], [[16], []]]  # rows of 5, 3, 5 and 4 real tokens


def test_long_rows_get_no_mask() -> None:
    text_config = SimpleNamespace(_attn_implementation="sdpa")
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text_config), dtype=torch.float32)
    for length, masked in ((attention.DIVIDED_FROM - 1, True), (attention.DIVIDED_FROM, False)):
        batch = dict.fromkeys(("input_ids", "labels", "position_ids")) | {"branches": torch.ones(1, length)}
        inputs = packed_inputs(model, batch)
        assert (inputs["attention_mask"] is not None) == masked == ("segments" not in inputs)


def test_an_attention_that_takes_no_mask_is_refused() -> None:
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(_attn_implementation="paged"))
    with pytest.raises(UserError, match="paged"):
        packed_inputs(SimpleNamespace(config=config), {"branches": torch.zeros(1, 3)})


def test_rows_of_a_clip_go_together_and_rows_without_fill_up_to_a_clips_size() -> None:
    rows = [{"clip_index": index} for index in (4, 4, -1, 5, 5, -1, -1, -1)]
    groups = group_rows(rows, [10, 10, 15, 10, 10, 15, 25, 1], 20, -1)  # a clip: 40 tokens
    assert [[row["clip_index"] for row in group] for group in groups] == [[4, 4], [-1, -1], [5, 5], [-1, -1]]
    alone = group_rows([{"clip_index": -1}] * 3, [5, 5, 5], 20, -1)
    assert [len(group) for group in alone] == [1, 1, 1]


# --- identity with the plain batch ------------------------------------------------------------------------------------


def groups_of(omni, targets=3):
    """Two clips with several targets, a clip without sound, one row without a clip, and two of them together."""
    end = omni.tokenizer.eos_token_id
    completions = [[*omni.tokenizer(words)["input_ids"], end] for words in TARGETS]
    clips = [entry(omni, media(2.0, 1)), entry(omni, media(2.9, 2)), entry(omni, media(1.0, 3, audio=False))]
    asked = (QUESTIONS[0], QUESTIONS[0], QUESTIONS[1])[:targets]
    groups = [[(encode_prompt(omni, q, clip), completions[k]) for k, q in enumerate(asked)] for clip in clips]
    groups.append([(encode_prompt(omni, QUESTIONS[2], {}), completions[1])])
    groups.append([(encode_prompt(omni, q, {}), completions[0]) for q in QUESTIONS[:2]])
    return groups


def loss_and_gradients(model, forward):
    model.zero_grad()
    loss = forward()
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def plain_loss(omni, groups):
    batch = collate(*zip(*(row for group in groups for row in group), strict=True), omni.tokenizer.pad_token_id)
    embeddings = embed(omni.model, batch["input_ids"], batch["media"])
    keep = {name: batch[name] for name in ("attention_mask", "position_ids", "labels")}
    return omni.model(inputs_embeds=embeddings, **keep).loss


def packed_loss(omni, groups):
    batch = pack(groups, omni.tokenizer.pad_token_id, placeholder_ids(omni.model))
    with media_embedded(omni.model, batch["media"]):
        return omni.model(**packed_inputs(omni.model, batch)).loss


def assert_same(ours, theirs):
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=0)
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in theirs[1].items():
        difference = (ours[1][name] - gradient).norm() / gradient.norm()
        assert difference < 1e-5, f"{name}: {difference:.1e}"


@pytest.mark.parametrize(("implementation", "divided_from"), [("sdpa", 0), ("sdpa", 10**6), ("eager", 0)])
@pytest.mark.parametrize("targets", [2, 3])
def test_loss_and_gradients_equal_those_of_the_plain_batch(
    omni, monkeypatch, implementation, divided_from, targets
) -> None:
    monkeypatch.setattr(attention, "DIVIDED_FROM", divided_from)
    groups = groups_of(omni, targets)
    plain = loss_and_gradients(omni.model, lambda: plain_loss(omni, groups))
    omni.model.set_attn_implementation(implementation)
    try:
        packed = loss_and_gradients(omni.model, lambda: packed_loss(omni, groups))
    finally:
        omni.model.set_attn_implementation("sdpa")
    assert_same(packed, plain)


def test_towers_that_are_trained_get_the_same_gradients(omni) -> None:
    clip = media_tensors(omni, media(1.5, 4))
    pairs = zip(QUESTIONS, TARGETS, strict=True)
    groups = [[(encode_prompt(omni, q, clip), omni.tokenizer(t)["input_ids"]) for q, t in pairs]]
    omni.freeze_towers(False)
    try:
        plain = loss_and_gradients(omni.model, lambda: plain_loss(omni, groups))
        packed = loss_and_gradients(omni.model, lambda: packed_loss(omni, groups))
    finally:
        omni.freeze_towers()
    assert any("visual" in name for name in plain[1])
    assert_same(packed, plain)


def test_a_branch_does_not_see_its_neighbour(omni) -> None:
    prompt = encode_prompt(omni, QUESTIONS[0], entry(omni, media(2.0, 1)))
    ids = [omni.tokenizer(words)["input_ids"] for words in TARGETS]
    logits = []
    for first in (ids[0], ids[0][::-1]):
        batch = pack([[(prompt, first), (prompt, ids[1])]], 0, placeholder_ids(omni.model))
        with media_embedded(omni.model, batch["media"]):
            logits.append(omni.model(**packed_inputs(omni.model, batch)).logits[0])
    start = len(prompt.input_ids) + len(ids[0])
    torch.testing.assert_close(logits[0][start:], logits[1][start:], rtol=0, atol=1e-6)
    assert (logits[0][start - 2] - logits[1][start - 2]).abs().max() > 1e-3


# --- in training ------------------------------------------------------------------------------------------------------


def test_the_trainer_reports_the_loss_accuracy_and_entropy_of_the_plain_batch(omni, tmp_path) -> None:
    groups = groups_of(omni)
    pad, ids = omni.tokenizer.pad_token_id, placeholder_ids(omni.model)
    flat = [row for group in groups for row in group]
    recipe = SFTRecipe(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[])
    recipe.dataset_kwargs = {"skip_prepare_dataset": True}
    trainer = MERSFTTrainer(omni, model=omni.model, args=recipe, train_dataset=Dataset.from_list([{"row": 0}]))
    metrics = trainer._metrics["train"]
    found = []
    for batch in (collate(*zip(*flat, strict=True), pad), pack(groups, pad, ids)):
        counted = int((batch["labels"] != IGNORE).sum())
        found.append(
            loss_and_gradients(
                trainer.model,
                lambda batch=batch, counted=counted: trainer.compute_loss(trainer.model, batch, False, counted),
            )
        )
    assert_same(found[1], found[0])
    for name in ("mean_token_accuracy", "entropy"):
        assert metrics[name][1] == pytest.approx(metrics[name][0], rel=1e-5)
    assert metrics["mean_token_accuracy"][0] > 0 or metrics["entropy"][0] > 0


def test_the_base_stage_trains_on_packed_rows(omni, tmp_path) -> None:
    model = tmp_path / "model"
    omni.save(model)
    settings = {"use_cpu": True, "bf16": False, "report_to": [], "disable_tqdm": True, "save_strategy": "no"}
    recipe = SFTRecipe(
        output_dir=str(tmp_path / "run"), manifest=str(write_corpus(tmp_path)), model=str(model), targets="base",
        shared_prefixes=True, per_device_train_batch_size=3, num_train_epochs=1, logging_steps=1, workers=0,
        **settings,
    )  # fmt: skip
    run_sft(recipe)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]  # six clips, three a batch
