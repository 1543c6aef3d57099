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
