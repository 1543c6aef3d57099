"""Sampling: what is sampled, what is scored, and that one prompt cache serves all of it without changing a number."""

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_world import entry, media, some_prompts
from transformers import Qwen2Tokenizer

from mer_r1.emotions.thinking import FAST_PREFILL, ThinkingMode, parse, prefill, question
from mer_r1.emotions.wheels import builtin
from mer_r1.model import generation
from mer_r1.model.generation import Openings, Sampling
from mer_r1.model.prompts import collate, encode_prompt, media_tensors
from mer_r1.model.shared_prefix.continuation import Branches
from mer_r1.model.tower_outputs import embed
from mer_r1.rl.anchors import AnswerTokens, answer_tokens, category_tokens
from mer_r1.rl.calibration import CategoryTokens, category_probabilities
from mer_r1.rl.rollout import fast_confidences, fast_prompt, rescore, rollout

GROUP = 4
EXACT = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(scope="module")
def prompts(taught):
    found = some_prompts(taught)
    assert len({len(prompt.input_ids) for prompt in found}) > 2, "padding on the left"
    return found


@pytest.fixture(scope="module")
def tokens(taught) -> CategoryTokens:
    return category_tokens(builtin(), taught.tokenizer)[0]


@pytest.fixture(scope="module")
def sampled(taught, prompts, tokens):
    return rollout(taught, prompts, GROUP, Sampling(24, 1.0, seed=3), tokens=tokens, fast=True)


@torch.no_grad()
def plain_logits(omni, prompt, completion):
    """(T + 1, V) logits after the prompt and after each of T tokens, by one ordinary forward of one row."""
    batch = collate([prompt], [completion], omni.tokenizer.pad_token_id)
    embeddings = embed(omni.model, batch["input_ids"], batch["media"])
    logits = omni.model(inputs_embeds=embeddings, position_ids=batch["position_ids"]).logits[0]
    return logits[len(prompt.input_ids) - 1 :]


# --- what is sampled is scored right ----------------------------------------------------------------------------------


def test_log_probabilities_equal_those_of_a_plain_forward(taught, prompts, sampled):
    assert len(sampled.completion_ids) == len(prompts) * GROUP
    for row, (ids, logps) in enumerate(zip(sampled.completion_ids, sampled.logps, strict=True)):
        expected = plain_logits(taught, prompts[row // GROUP], ids)[:-1].log_softmax(-1)
        torch.testing.assert_close(torch.tensor(logps), expected[range(len(ids)), ids], **EXACT)


def test_log_probabilities_are_those_at_the_temperature(taught, prompts):
    hot = rollout(taught, prompts[:2], 1, Sampling(12, 2.0, seed=3))
    for prompt, ids, logps in zip(prompts, hot.completion_ids, hot.logps, strict=False):
        expected = (plain_logits(taught, prompt, ids)[:-1] / 2.0).log_softmax(-1)
        torch.testing.assert_close(torch.tensor(logps), expected[range(len(ids)), ids], **EXACT)


def test_draws_follow_the_policy(taught, prompts):
    """400 first tokens of one prompt: the share of the likeliest is its probability, within 4 standard deviations."""
    logits = plain_logits(taught, prompts[0], [])[0].clone()
    logits[torch.tensor(taught.forbidden_ids)] = -torch.inf
    hot = (logits / 4.0).softmax(-1)
    best = int(hot.argmax())
    probability = float(hot[best])
    assert 0.02 < probability < 0.98, "else this shows nothing"
    drawn = rollout(taught, prompts[:1], 400, Sampling(1, 4.0, seed=0)).completion_ids
    share = sum(ids[0] == best for ids in drawn) / 400
    assert abs(share - probability) < 4 * (probability * (1 - probability) / 400) ** 0.5


def test_no_special_token_is_ever_sampled(omni, taught):
    """An untrained model at a high temperature would sample them all."""
    prompt = encode_prompt(omni, "What?", entry(omni, media(2.0, 0)))
    drawn = rollout(omni, [prompt], 64, Sampling(24, 50.0, seed=0)).completion_ids
    special = set(omni.special_tokens)
    for ids in drawn:
        assert not set(ids[:-1]) & special
        assert ids[-1] not in special - set(omni.eos_ids)


def test_a_likely_special_token_is_not_taken_either(taught, prompts, monkeypatch):
    head = generation.lm_head
    media_token = taught.processor.audio_token_id

    def tempting(model, hidden):
        logits = head(model, hidden).clone()
        logits[:, media_token] = 100.0
        return logits

    monkeypatch.setattr(generation, "lm_head", tempting)
    for temperature in (0.0, 1.0):
        drawn = rollout(taught, prompts[:2], 2, Sampling(4, temperature, seed=0)).completion_ids
        assert not any(media_token in ids for ids in drawn)


@pytest.mark.parametrize("sampling", [Sampling(24, 1.3), Sampling(24, 1.3, seed=4), Sampling(24, 0.0)])
def test_finished_rollouts_that_leave_change_nothing(taught, prompts, tokens, monkeypatch, sampling):
    def sample():
        torch.manual_seed(11)
        found = rollout(taught, prompts, GROUP, sampling, tokens=tokens, fast=True)
        return found, torch.get_rng_state()

    sizes = []
    run = Branches.run
    monkeypatch.setattr(Branches, "run", lambda self, ids, real: sizes.append(len(ids)) or run(self, ids, real))
    found, state = sample()
    if sampling.temperature:
        assert min(sizes) < max(sizes) == sizes[-1] == len(prompts) * GROUP, "some left; all are scored"
    monkeypatch.setattr(Branches, "leave", lambda self, done: None)
    expected, same_state = sample()
    assert found.completion_ids == expected.completion_ids
    assert torch.equal(state, same_state)
    for ours, theirs in zip(found.logps, expected.logps, strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), **EXACT)
    torch.testing.assert_close((found.slow, found.fast), (expected.slow, expected.fast), **EXACT)


@pytest.mark.parametrize("sampling", [Sampling(24, 1.3, seed=4), Sampling(24, 0.0)])
def test_slow_and_fast_on_one_prompt_give_what_each_gives_alone(taught, prompts, tokens, sampling):
    both = rollout(taught, prompts, 2, sampling, tokens=tokens, openings=["", FAST_PREFILL])
    extended = [fast_prompt(taught, prompt) for prompt in prompts]
    for place, (asked, opening) in enumerate([(prompts, ""), (extended, FAST_PREFILL)]):
        alone, ours = rollout(taught, asked, 1, sampling, tokens=tokens, prefilled=opening), both.every(2, place)
        assert ours.completion_ids == alone.completion_ids
        assert ours.anchor_rollout.tolist() == alone.anchor_rollout.tolist()
        assert ours.answers == alone.answers
        assert len(ours.slow), "an answer with words"
        torch.testing.assert_close(ours.slow, alone.slow, **EXACT)
        for own, theirs in zip(ours.logps, alone.logps, strict=True):
            torch.testing.assert_close(torch.tensor(own), torch.tensor(theirs), **EXACT)


# --- decoding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ThinkingMode)
@torch.no_grad()
def test_greedy_equals_the_librarys_own_greedy_with_raw_media(taught, mode):
    """`generate` gets token ids and raw media, and computes positions and caches by itself."""
    clip = media(2.7, 1)
    raw = media_tensors(taught, clip)
    prompt = encode_prompt(taught, question("I am so glad.", "short"), entry(taught, clip))
    if mode is ThinkingMode.FAST:
        prompt = fast_prompt(taught, prompt)
    ids = prompt.input_ids[None]
    mel = raw.pop("input_features")[None]
    raw |= {"input_features": mel, "feature_attention_mask": torch.ones(1, mel.shape[-1], dtype=torch.long)}
    written = taught.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), **raw, max_new_tokens=24, do_sample=False
    )
    theirs = written[0, ids.shape[1] :].tolist()
    ours = rollout(taught, [prompt], 1, Sampling(24, 0.0), prefilled=prefill(mode)).completion_ids[0]
    assert ours == theirs
    assert len(set(ours)) > 3, "an answer worth comparing"


def test_temperature_zero_takes_the_likeliest_and_needs_no_seed(taught, prompts):
    first, second = (rollout(taught, prompts, 2, Sampling(16, 0.0)) for _ in range(2))
    assert first.completion_ids == second.completion_ids
    for row, ids in enumerate(first.completion_ids):
        logits = plain_logits(taught, prompts[row // 2], ids)[:-1]
        logits[:, torch.tensor(taught.forbidden_ids)] = -torch.inf
        assert logits.argmax(-1).tolist() == ids
        expected = plain_logits(taught, prompts[row // 2], ids)[:-1].log_softmax(-1)[range(len(ids)), ids]
        torch.testing.assert_close(torch.tensor(first.logps[row]), expected, **EXACT)


def test_a_seed_repeats_and_another_does_not(taught, prompts):
    def draw(seed):
        return rollout(taught, prompts, GROUP, Sampling(16, 1.5, seed=seed)).completion_ids

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_without_a_seed_the_global_state_decides_as_checkpoints_keep_it(taught, prompts):
    def draw():
        return rollout(taught, prompts, GROUP, Sampling(16, 1.5)).completion_ids

    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = draw(), draw()
    assert first != second
    torch.set_rng_state(state)
    assert (draw(), draw()) == (first, second)


def test_a_seed_leaves_the_global_state_alone(taught, prompts):
    state = torch.get_rng_state()
    rollout(taught, prompts[:1], 2, Sampling(4, 1.0, seed=1))
    assert torch.equal(torch.get_rng_state(), state)


def test_rollouts_of_a_group_differ(sampled):
    groups = [sampled.completion_ids[start : start + GROUP] for start in range(0, len(sampled.completion_ids), GROUP)]
    assert any(len({tuple(ids) for ids in group}) > 1 for group in groups)


@pytest.mark.parametrize(
    ("top_p", "allowed"), [(0.1, {0}), (0.5, {0}), (0.75, {0, 1}), (0.85, {0, 1, 2}), (1.0, {0, 1, 2, 3})]
)
def test_the_nucleus_by_hand(top_p, allowed):
    # Probabilities 0.5, 0.3, 0.15, 0.05: the smallest set whose sum reaches top_p; 0.8 is not quite reached by float32.
    logits = torch.tensor([0.15, 0.05, 0.5, 0.3]).log().expand(2000, -1)
    rank = {2: 0, 3: 1, 0: 2, 1: 3}
    sampling = Sampling(1, 1.0, top_p=top_p)
    height = generation.uniform(len(logits), torch.Generator().manual_seed(0), logits.device)
    token, logp = generation.draw(logits, torch.tensor([], dtype=torch.long), sampling, height)
    assert {rank[index] for index in token.tolist()} == allowed
    # The log-probability stays the whole policy's, as in the loss.
    torch.testing.assert_close(logp, logits[0].log_softmax(-1)[token])


# Probabilities 0.15, 0.05, 0.5, 0.3 of the tokens 0 to 3.
@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"top_k": 1}, {2}),
        ({"top_k": 3}, {2, 3, 0}),
        ({"top_k": 9}, {2, 3, 0, 1}),
        ({"min_p": 0.2}, {2, 3, 0}),  # at least 0.1
        ({"min_p": 0.7}, {2}),
        ({"min_p": 1.0}, {2}),
        ({"top_k": 2, "top_p": 0.6}, {2}),  # of the two likeliest, the first has 0.5 / 0.8 = 0.625
        ({"top_k": 2, "top_p": 0.65}, {2, 3}),
        ({"top_k": 3, "min_p": 0.5}, {2, 3}),
    ],
)
def test_truncation_by_hand(options, allowed):
    logits = torch.tensor([0.15, 0.05, 0.5, 0.3]).log().expand(2000, -1)
    sampling = Sampling(1, 1.0, **options)
    height = generation.uniform(len(logits), torch.Generator().manual_seed(0), logits.device)
    token, logp = generation.draw(logits, torch.tensor([], dtype=torch.long), sampling, height)
    assert set(token.tolist()) == allowed
    torch.testing.assert_close(logp, logits[0].log_softmax(-1)[token])


def test_top_k_counts_only_tokens_that_may_be_drawn():
    logits = torch.tensor([0.15, 0.05, 0.5, 0.3]).log().expand(2000, -1)
    sampling = Sampling(1, 1.0, top_k=2)
    height = generation.uniform(len(logits), torch.Generator().manual_seed(0), logits.device)
    token, _ = generation.draw(logits, torch.tensor([2]), sampling, height)
    assert set(token.tolist()) == {3, 0}


@given(
    st.lists(st.lists(st.floats(-20, 20, width=32), min_size=6, max_size=6), min_size=1, max_size=4),
    st.integers(1, 7),
    st.floats(0.05, 1.0),
    st.floats(0.0, 1.0),
    st.floats(0.1, 3.0),
    st.integers(0, 99),
)
def test_no_draw_is_outside_of_what_truncation_keeps(rows, top_k, top_p, min_p, temperature, seed):
    logits = torch.tensor(rows)
    sampling = Sampling(1, temperature, top_p, None, top_k, min_p)
    height = generation.uniform(len(logits), torch.Generator().manual_seed(seed), logits.device)
    token, _ = generation.draw(logits, torch.tensor([], dtype=torch.long), sampling, height)
    probabilities = (logits / temperature).softmax(-1)
    drawn = probabilities.gather(1, token[:, None])[:, 0]
    ordered = probabilities.sort(dim=-1, descending=True).values
    assert (drawn >= ordered[:, min(top_k, 6) - 1]).all()
    assert (drawn >= min_p * ordered[:, 0] * (1 - 1e-6)).all()
    above = torch.where(ordered > drawn[:, None], ordered, 0.0).sum(dim=-1)
    assert (above <= top_p * ordered[:, :top_k].sum(dim=-1) + 1e-6).all()


@pytest.mark.parametrize(
    "wrong", [{"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}, {"min_p": -0.1}, {"min_p": 2.0}, {"temperature": -1.0}]
)
def test_sampling_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**dict.fromkeys(wrong, float("nan")))


# --- ends -------------------------------------------------------------------------------------------------------------


def test_rows_end_with_the_end_token_and_only_there(taught, sampled):
    eos = set(taught.eos_ids)
    lengths = [len(ids) for ids in sampled.completion_ids]
    assert min(lengths) < max(lengths), "some rows finished before others"
    for ids, logps in zip(sampled.completion_ids, sampled.logps, strict=True):
        assert len(ids) == len(logps) <= 24
        assert not eos & set(ids[:-1])
        assert ids[-1] in eos or len(ids) == 24


@pytest.mark.parametrize("length", [1, 3])
def test_the_longest_completion_is_as_asked(taught, prompts, tokens, length):
    drawn = rollout(taught, prompts, 2, Sampling(length, 1.0, seed=0), tokens=tokens, fast=True)
    assert [len(ids) for ids in drawn.completion_ids] == [length] * len(prompts) * 2
    assert len(drawn.anchor_rollout) == 0, "a completion cut short in its reasoning has no answer"
    assert drawn.slow.shape == drawn.fast.shape == (0, tokens.num_categories)


def test_sampling_stops_when_all_rows_have_ended(taught, prompts, monkeypatch):
    end = torch.tensor(taught.eos_ids)
    calls = []

    def ending(logits, *_):
        calls.append(len(logits))
        return end.expand(len(logits)), torch.zeros(len(logits))

    monkeypatch.setattr(generation, "draw", ending)
    drawn = rollout(taught, prompts, 2, Sampling(50, 1.0))
    assert calls == [len(prompts) * 2]
    assert drawn.completion_ids == [taught.eos_ids] * len(prompts) * 2


def test_slow_thinking_that_must_reason_never_leaves_its_think_empty(taught, prompts, monkeypatch):
    """A policy that would: of 700 tokens the closing tag has e^6 and a blank e^5 parts, so 0.36 of 64 are empty."""
    think, close = taught.tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    (blank,) = taught.tokenizer(" ")["input_ids"]
    original, step = generation.lm_head, []

    def hasty(model, hidden):
        step.append(original(model, hidden))
        logits = torch.zeros_like(step[-1])
        logits[:, think if len(step) == 1 else close] = 30.0 if len(step) == 1 else 6.0
        logits[:, blank] += 5.0 if 1 < len(step) < 5 else 0.0
        return logits

    monkeypatch.setattr(generation, "lm_head", hasty)
    empty = {}
    for must_reason in (False, True):
        step.clear()
        omni = replace(taught, settings=replace(taught.settings, must_reason=must_reason))
        drawn = rollout(omni, prompts, 16, Sampling(12, 1.0, seed=1))
        texts = [taught.tokenizer.decode(ids, skip_special_tokens=True) for ids in drawn.completion_ids]
        empty[must_reason] = sum(bool(re.match(r"<think>\s*</think>", text)) for text in texts)
    assert empty == {False: pytest.approx(23, abs=15), True: 0}  # 4 standard deviations
    # The log-probabilities are the policy's own: a forbidden token keeps its share.
    row = drawn.completion_ids[0]
    assert row[0] == think
    logits = torch.zeros(len(taught.tokenizer))
    logits[close], logits[blank] = 6.0, 5.0
    assert drawn.logps[0][1] == pytest.approx(float(logits.log_softmax(0)[row[1]]), abs=1e-4)


@pytest.mark.parametrize("split", [False, True])
def test_openings_forbid_what_would_close_them_and_nothing_else(taught, split):
    """With tags of one token each, and in pieces, where the end of a tag and the next beginning may be one token."""
    texts = ["<think></think><answer> happy </answer>", "<think> A smile </think>", "<think>\n</think> < <<"] * 9
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(texts, 320, show_progress=False) if split else taught.tokenizer
    pieces = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    assert len(tokenizer("<think></think>")["input_ids"]) == 2 or split
    closed = ("<think> A", "Then <think>", " happy", "<answer>")
    for text in ("", "<think", "<think>", " <think>", "<think> ", "<think>\n", *closed):
        openings = Openings(tokenizer, 2)
        logits = torch.zeros(2, len(tokenizer))
        ids = tokenizer(text)["input_ids"]
        for token in ids:
            openings.add(torch.tensor([token, tokenizer("A")["input_ids"][0]]))
        mask = openings.closing(logits)
        so_far = tokenizer.decode(ids)
        expected = [bool(re.match(r"\s*<think>\s*<", so_far + piece)) for piece in pieces]
        if text in closed:
            assert mask is None
            continue
        assert mask[0].tolist() == expected
        assert any(expected) or "<think" not in text or (text == "<think" and not split)
        assert not ids or not mask[1].any(), "another row reasons already"


def test_a_finished_row_does_not_disturb_the_others(taught, prompts, sampled):
    """Each row alone, forced along its own tokens, has the log-probabilities that it had in the batch."""
    longest = max(range(len(sampled.completion_ids)), key=lambda row: len(sampled.completion_ids[row]))
    ids = sampled.completion_ids[longest]
    expected = plain_logits(taught, prompts[longest // GROUP], ids)[:-1].log_softmax(-1)[range(len(ids)), ids]
    torch.testing.assert_close(torch.tensor(sampled.logps[longest]), expected, **EXACT)


# --- confidences ------------------------------------------------------------------------------------------------------


def anchors_of(taught, sampled, row):
    return answer_tokens(sampled.completion_ids[row], taught.tokenizer).anchors


def test_anchors_are_those_of_the_completions(taught, sampled):
    expected = [row for row in range(len(sampled.completion_ids)) for _ in anchors_of(taught, sampled, row)]
    assert sampled.anchor_rollout.tolist() == expected
    assert len(set(expected)) > len(sampled.completion_ids) // 2, "most rollouts answer"
    assert len(expected) > len(set(expected)), "some with several words"
    assert sampled.slow.shape[0] == sampled.fast.shape[0] == len(expected)


def test_slow_confidences_equal_those_of_a_plain_forward(taught, prompts, tokens, sampled):
    for row in sorted(set(sampled.anchor_rollout.tolist())):
        ids = sampled.completion_ids[row]
        logits = plain_logits(taught, prompts[row // GROUP], ids)
        expected = category_probabilities(logits[anchors_of(taught, sampled, row)], tokens)
        torch.testing.assert_close(sampled.slow[sampled.anchor_rollout == row], expected, atol=2e-6, rtol=0)


def test_fast_confidences_equal_those_of_a_plain_forward_without_the_reasoning(taught, prompts, tokens, sampled):
    """Prompt, empty think, and the rollout's own answer, through the model in one ordinary pass."""
    head = taught.tokenizer(FAST_PREFILL)["input_ids"]
    differences = []
    for row in sorted(set(sampled.anchor_rollout.tolist())):
        ids = sampled.completion_ids[row]
        answer = answer_tokens(ids, taught.tokenizer)
        logits = plain_logits(taught, prompts[row // GROUP], head + ids[answer.start :])
        places = [len(head) + anchor - answer.start for anchor in answer.anchors]
        expected = category_probabilities(logits[places], tokens)
        found = sampled.fast[sampled.anchor_rollout == row]
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
        differences.append((found - sampled.slow[sampled.anchor_rollout == row]).abs().max())
    assert max(differences) > 1e-3, "the reasoning makes a difference, or this test shows nothing"


@pytest.fixture
def calls(taught):
    """One entry per call of the model itself. A part of it that runs outside of such a call fails the test."""
    made, inside = [], []

    def refuse(*_):
        assert inside, "weights that processes share are whole only while the model itself is called"

    parts = [taught.model.get_input_embeddings(), taught.model.model.language_model.norm, taught.model.lm_head]
    handles = [part.register_forward_pre_hook(refuse) for part in parts]
    handles.append(taught.model.register_forward_pre_hook(lambda *_: made.append(1)))
    handles.append(taught.model.register_forward_pre_hook(lambda *_: inside.append(1)))
    handles.append(taught.model.register_forward_hook(lambda *_: inside.clear()))
    yield made
    for handle in handles:
        handle.remove()


def test_finished_rollouts_are_scored_by_calls_of_the_model_itself(taught, prompts, tokens, sampled, calls):
    """FSDP2 gathers the weights for these alone."""
    with pytest.raises(AssertionError, match="while the model itself is called"):
        rollout(taught, prompts[:1], 1, Sampling(2))
    ids, answers = sampled.completion_ids, sampled.answers
    found = rescore(taught, prompts, answers, ids, tokens, fast=True)
    for ours, expected in zip(found, (sampled.slow, sampled.fast), strict=True):
        torch.testing.assert_close(ours, expected, atol=2e-6, rtol=0)
    assert rescore(taught, prompts, answers, ids, tokens)[1] is None
    assert len(calls) == 2 * len(prompts)
    fast_confidences(taught, prompts, tokens)
    assert len(calls) == 3 * len(prompts)


def test_a_process_without_an_anchor_calls_the_model_as_often_as_the_others(taught, prompts, tokens, calls):
    """Otherwise the others would wait for it."""
    ids, answers = [[305, 306]] * len(prompts), [AnswerTokens(0, [])] * len(prompts)
    slow, fast = rescore(taught, prompts, answers, ids, tokens, fast=True)
    assert slow.shape == fast.shape == (0, tokens.num_categories)
    assert len(calls) == len(prompts)


def test_fast_confidences_are_those_after_an_empty_think_block(taught, prompts, tokens):
    head = taught.tokenizer(FAST_PREFILL)["input_ids"]
    expected = [category_probabilities(plain_logits(taught, prompt, head)[-1:], tokens) for prompt in prompts]
    found = fast_confidences(taught, prompts, tokens)
    torch.testing.assert_close(found, torch.cat(expected), atol=2e-6, rtol=0)


def test_confidences_of_a_fast_rollout_are_those_at_its_own_words(taught, prompts, tokens):
    asked = [fast_prompt(taught, prompt) for prompt in prompts]
    drawn = rollout(taught, asked, 2, Sampling(16, 1.0, seed=1), tokens=tokens, prefilled=FAST_PREFILL)
    assert drawn.fast is None
    rows = sorted(set(drawn.anchor_rollout.tolist()))
    assert len(rows) >= 4
    for row in rows:
        ids = drawn.completion_ids[row]
        anchors = answer_tokens(ids, taught.tokenizer, FAST_PREFILL).anchors
        expected = category_probabilities(plain_logits(taught, asked[row // 2], ids)[anchors], tokens)
        torch.testing.assert_close(drawn.slow[drawn.anchor_rollout == row], expected, atol=2e-6, rtol=0)


def test_the_fast_prompt_is_the_same_question_with_an_empty_think(taught, prompts):
    for prompt in prompts:
        asked = fast_prompt(taught, prompt)
        length = len(prompt.input_ids)
        assert asked.input_ids[:length].tolist() == prompt.input_ids.tolist()
        assert taught.tokenizer.decode(asked.input_ids[length:]) == FAST_PREFILL


def test_there_is_one_anchor_for_every_word_that_is_parsed(taught, prompts, tokens):
    """The end token is no word, and an empty answer has no confidence."""
    drawn = rollout(taught, prompts, 16, Sampling(24, 1.2, seed=5), tokens=tokens)
    counts = torch.bincount(drawn.anchor_rollout, minlength=len(drawn.completion_ids)).tolist()
    distinct = 0
    for ids, count in zip(drawn.completion_ids, counts, strict=True):
        labels = parse(taught.tokenizer.decode(ids, skip_special_tokens=True)).labels
        assert (count == 0) == (not labels)
        assert count >= len(labels)  # a word that is repeated is an anchor each time
        distinct += not labels
    assert distinct, "some answers of this half-taught model are empty"


# --- cost -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def passes(taught):
    """(rows, tokens) of every pass of the language model."""
    found = []

    def note(_, args, kwargs):
        found.append(tuple(kwargs["inputs_embeds"].shape[:2]))

    handle = taught.model.model.language_model.register_forward_pre_hook(note, with_kwargs=True)
    yield found
    handle.remove()


def test_a_group_shares_one_prefill_and_the_fast_confidence_is_one_short_pass(taught, prompts, tokens, passes):
    drawn = rollout(taught, prompts, GROUP, Sampling(24, 1.0, seed=3), tokens=tokens, fast=True)
    longest = max(len(ids) for ids in drawn.completion_ids)
    width = max(len(prompt.input_ids) for prompt in prompts)
    assert passes[0] == (len(prompts), width), "each prompt once, not once a rollout"
    sizes = passes[1:-1]
    assert len(sizes) == longest - 1
    assert sizes[0] == (len(prompts), GROUP), "a token of every rollout, a row a prompt"
    assert sizes == sorted(sizes, reverse=True), "until finished ones leave"
    head = len(taught.tokenizer(FAST_PREFILL)["input_ids"])
    answers = [answer_tokens(ids, taught.tokenizer) for ids in drawn.completion_ids]
    suffix = max(head + answer.anchors[-1] - answer.start for answer in answers if answer.anchors)
    assert passes[-1] == (len(prompts), GROUP * suffix)
    assert suffix < width, "behind the prompt's keys and values, not with the prompt again"


def test_without_confidences_there_is_no_further_pass(taught, prompts, passes):
    drawn = rollout(taught, prompts, GROUP, Sampling(8, 1.0, seed=3))
    assert len(passes) == max(len(ids) for ids in drawn.completion_ids)
    assert drawn.slow is None
    assert drawn.fast is None


def test_towers_are_not_asked_again(taught, prompts, monkeypatch):
    for name in ("get_video_features", "get_audio_features"):
        monkeypatch.setattr(taught.model, name, lambda *_, **__: pytest.fail("a tower was called"))
    rollout(taught, prompts[:1], 2, Sampling(2, 1.0, seed=0))


def test_sampling_takes_no_gradients_and_leaves_the_mode_alone(taught, prompts):
    taught.model.train()
    drawn = rollout(taught, prompts[:1], 2, Sampling(2, 1.0, seed=0))
    assert taught.model.training
    taught.model.eval()
    assert all(isinstance(logp, float) for logps in drawn.logps for logp in logps)
    assert all(value.grad is None for value in taught.model.parameters())


def test_seconds_are_told_for_each_part(sampled):
    assert sampled.seconds.keys() == {"prefill", "decode", "slow", "fast"}
    assert all(value > 0 for value in sampled.seconds.values())


def test_the_audio_of_a_prompt_matters(taught, prompts):
    before = rollout(taught, prompts[:1], 1, Sampling(4, 0.0)).logps[0]
    other = {**prompts[0].media, "audio": torch.randn_like(prompts[0].media["audio"])}
    after = rollout(taught, [replace(prompts[0], media=other)], 1, Sampling(4, 0.0)).logps[0]
    assert before != after
