"""Continuing shared prompts gives what a plain forward of each text gives, whatever the attention."""

import pytest
import torch
from tiny_world import some_prompts

from mer_r1.model.prompts import collate
from mer_r1.model.shared_prefix import continuation as module
from mer_r1.model.shared_prefix.continuation import Branches
from mer_r1.model.tower_outputs import embed

GROUP = 3
EXACT = {"atol": 2e-5, "rtol": 0}


@pytest.fixture(params=["sdpa", "eager", "a row each"])
def attention(request, taught, monkeypatch):
    """The two that take masks; and how flash attention is served, which takes none."""
    if request.param == "a row each":
        monkeypatch.setattr(module, "takes_masks", lambda implementation: False)
    else:
        taught.model.set_attn_implementation({"text_config": request.param})
    yield
    taught.model.set_attn_implementation({"text_config": "sdpa"})


def states(omni, prompt, text):
    """(T, D) hidden states of the text's tokens, by one ordinary forward of one row."""
    batch = collate([prompt], [text], omni.tokenizer.pad_token_id)
    embeddings = embed(omni.model, batch["input_ids"], batch["media"])
    output = omni.model.model(inputs_embeds=embeddings, position_ids=batch["position_ids"])
    return output.last_hidden_state[0, len(prompt.input_ids) :]


@torch.no_grad()
def test_texts_of_unequal_length_fed_in_parts(taught, attention):
    prompts = some_prompts(taught)
    assert len({len(prompt.input_ids) for prompt in prompts}) > 2, "padding on the left"
    batch = collate(prompts, [[]] * len(prompts), taught.tokenizer.pad_token_id)
    embeddings = embed(taught.model, batch["input_ids"], batch["media"])
    output = taught.model.model(
        inputs_embeds=embeddings,
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"],
        use_cache=True,
    )
    following = torch.tensor([prompt.next_position for prompt in prompts])
    branches = Branches(taught.model, output.past_key_values, batch["attention_mask"], following, GROUP, room=4)

    draw = torch.Generator().manual_seed(0)
    rows = len(prompts) * GROUP
    for parts in ((1, 1, 1), (4,), (2, 1, 5)):  # token by token, whole, and more than there is room for
        length = sum(parts)
        ids = torch.randint(300, 400, (rows, length), generator=draw)
        lengths = torch.randint(1, length + 1, (rows,), generator=draw)
        real = torch.arange(length) < lengths[:, None]
        fed = zip(ids.split(list(parts), dim=1), real.split(list(parts), dim=1), strict=True)
        found = torch.cat([branches.run(*part) for part in fed], dim=1)
        branches.forget()
        for row in range(rows):
            text = ids[row, : lengths[row]].tolist()
            torch.testing.assert_close(found[row, : len(text)], states(taught, prompts[row // GROUP], text), **EXACT)


def branches_of(omni, prompts, group=GROUP, room=4):
    batch = collate(prompts, [[]] * len(prompts), omni.tokenizer.pad_token_id)
    embeddings = embed(omni.model, batch["input_ids"], batch["media"])
    inputs = {name: batch[name] for name in ("attention_mask", "position_ids")}
    cache = omni.model.model(inputs_embeds=embeddings, use_cache=True, **inputs).past_key_values
    following = torch.tensor([prompt.next_position for prompt in prompts])
    return Branches(omni.model, cache, batch["attention_mask"], following, group, room)


@torch.no_grad()
def test_those_that_stay_continue_as_if_none_had_left(taught, attention):
    prompts = some_prompts(taught)
    rows = len(prompts) * GROUP
    branches = branches_of(taught, prompts)
    draw = torch.Generator().manual_seed(1)
    for _ in range(2):  # the second time after all came back
        texts = torch.randint(300, 400, (rows, 9), generator=draw)
        lengths = torch.randint(1, 10, (rows,), generator=draw)
        lengths[-1] = 9  # of the last prompt, which has to move up
        found, order, sizes = [[] for _ in range(rows)], torch.arange(rows), []
        for step in (0, 2, 3, 4, 5, 6, 7, 8):  # two tokens at first
            end = 2 if step == 0 else step + 1
            real = torch.arange(step, end) < lengths[order, None]
            output = branches.run(texts[order, step:end], real)
            for row, states_of_row, kept in zip(order.tolist(), output, real, strict=True):
                found[row] += states_of_row[kept]
            stay = branches.leave(lengths[order] <= end)
            order = order if stay is None else order[stay]
            sizes.append(len(order))
            assert set((lengths > end).nonzero()[:, 0].tolist()) <= set(order.tolist())
        assert rows > 2 * sizes[-1], "they do leave"
        for row in range(rows):
            text = texts[row, : lengths[row]].tolist()
            torch.testing.assert_close(torch.stack(found[row]), states(taught, prompts[row // GROUP], text), **EXACT)
        branches.forget()


@torch.no_grad()
def test_who_stays_by_hand(taught):
    """Three prompts with three continuations each; 1 is finished."""
    branches = branches_of(taught, some_prompts(taught)[:3])

    def leave(*done):
        stay = branches.leave(torch.tensor(done, dtype=torch.bool))
        return None if stay is None else stay.tolist()

    branches.run(torch.full((9, 1), 300), torch.ones(9, 1, dtype=torch.bool))
    assert leave(1, 1, 0, 0, 0, 0, 1, 1, 0) is None, "the second prompt needs all three places"
    # The last prompt takes the place of the first, which has no other continuation; two places each.
    assert leave(1, 1, 1, 0, 1, 0, 1, 1, 0) == [6, 8, 3, 5]
    # The finished continuation 6 fills a place beside 8; it leaves together with 3.
    assert leave(1, 0, 1, 0) == [1, 3]
    assert leave(0, 1) == [0]


@torch.no_grad()
def test_packed_queries_give_what_repeated_keys_give(taught, monkeypatch):
    """Two query heads or more for each key-value head."""
    config = taught.model.config.get_text_config()
    assert config.num_attention_heads > config.num_key_value_heads
    prompts = some_prompts(taught)
    ids, real = torch.randint(300, 400, (len(prompts) * GROUP, 1)), torch.ones(len(prompts) * GROUP, 1).bool()
    packed = branches_of(taught, prompts).run(ids, real)
    as_before = branches_of(taught, prompts)
    monkeypatch.setattr(as_before, "_implementation", "eager")
    monkeypatch.setattr(module, "as_mask", lambda seen, *_: seen.unsqueeze(1))
    torch.testing.assert_close(packed, as_before.run(ids, real), atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_prompt_is_kept_once(taught):
    """The point of it: the cache has a row a prompt, not one a continuation."""
    prompts = some_prompts(taught)[:2]
    batch = collate(prompts, [[]] * 2, taught.tokenizer.pad_token_id)
    inputs = {name: batch[name] for name in ("attention_mask", "position_ids")}
    embeddings = embed(taught.model, batch["input_ids"], batch["media"])
    cache = taught.model.model(inputs_embeds=embeddings, use_cache=True, **inputs).past_key_values
    following = torch.tensor([prompt.next_position for prompt in prompts])
    branches = Branches(taught.model, cache, batch["attention_mask"], following, GROUP, room=2)
    branches.run(torch.full((2 * GROUP, 1), 300), torch.ones(2 * GROUP, 1, dtype=torch.bool))
    assert cache.layers[0].keys.shape[0] == 2
    assert cache.layers[0].keys.shape[2] == batch["input_ids"].shape[1] + GROUP
