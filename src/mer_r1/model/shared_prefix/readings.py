"""Next-token logits at some places of texts that continue one prompt, by a single call of the model itself.

Weights that processes share are gathered by that call alone (FSDP2; parts of the model that are called past it fail),
so each process must make as many calls as the others, also where there is no place to read. The texts are packed
(`packing`): the prompt is computed once. The language-model head runs at the places only.
"""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from mer_r1.model.omni import Omni, thinker
from mer_r1.model.prompts import Prompt
from mer_r1.model.shared_prefix.attention import packed_inputs
from mer_r1.model.shared_prefix.packing import pack
from mer_r1.model.tower_outputs import media_embedded, placeholder_ids


@torch.no_grad()
def logits_after(omni: Omni, model: Any, prompt: Prompt, texts: Sequence[tuple[list[int], list[int]]]) -> Tensor:
    """Logits (A, V) before the tokens at some places.

    Args:
        omni: tokenizer.
        model: the policy, with or without an adapter or a wrapper around it, in evaluation mode.
        prompt: the prompt.
        texts: tokens of each text, and the places in it, ascending; its length is the place after its end.
    """
    policy = thinker(model)
    cut = [(ids[: places[-1] if places else 0], places) for ids, places in texts]
    batch = pack([[(prompt, ids) for ids, _ in cut]], omni.tokenizer.pad_token_id, placeholder_ids(policy))
    columns: list[int] = []
    for branch, (ids, places) in enumerate(cut, start=1):
        own = (batch["branches"][0] == branch).nonzero()[:, 0].tolist()
        columns += [own[len(own) - len(ids) + place - 1] for place in places]
    media = batch.pop("media")
    inputs = packed_inputs(policy, send_to_device(batch, policy.device))
    del inputs["labels"]
    head = policy.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, args: (args[0][:, columns], *args[1:]))
    try:
        with media_embedded(policy, media):
            logits: Tensor = model(**inputs, use_cache=False).logits[0]
    finally:
        handle.remove()
    return logits
