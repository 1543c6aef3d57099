"""Next-token logits at some places of texts that continue a prompt, by a call of the model itself.

`logits_after` makes a call for them; `score_rollouts` reads them in the call that scores the rollouts. Weights that
processes share are gathered by the model's call alone (FSDP2; parts of the model that are called past it fail), so each
process must make as many calls as the others, also where there is no place to read. The texts are packed (`packing`):
the prompt is computed once. The language-model head runs at the places only.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from mer_r1.model.omni import Omni, thinker
from mer_r1.model.prompts import Prompt
from mer_r1.model.shared_prefix.attention import packed_inputs
from mer_r1.model.shared_prefix.packing import PADDING, Text, pack, pack_rollouts
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


def score_rollouts(
    model: Any,
    policy: Any,
    prompts: Sequence[Prompt],
    clips: Sequence[int],
    completion_ids: Tensor,
    completion_mask: Tensor,
    pad_id: int,
    texts: Sequence[Sequence[Text]] = (),
    shared: bool = True,
) -> tuple[Tensor, Tensor | None, list[list[Tensor]]]:
    """Log-probabilities of R rollouts, and without gradient the logits at places of further texts, by one call.

    Args:
        model: what is called: the policy with TRL's fused head, or a wrapper around it.
        policy: the thinker itself.
        prompts: see `packing.pack_rollouts`, like the rest.
        clips: see there.
        completion_ids: see there.
        completion_mask: see there.
        pad_id: see there.
        texts: see there; empty to read nothing.
        shared: see there.

    Returns:
        Log-probabilities (R, T), entropies (R, T) or None, and for each rollout and each of its texts the logits
        (places, V).
    """
    packed = pack_rollouts(
        prompts, clips, completion_ids, completion_mask, pad_id, placeholder_ids(policy), texts, shared
    )
    media, branches = packed.batch.pop("media"), packed.batch["branches"]
    inputs = send_to_device(packed.batch, completion_ids.device)
    if shared:
        inputs = packed_inputs(policy, inputs)
    else:  # one branch a row: any attention
        del inputs["branches"]
    sizes = [[len(places) for places in each] for each in packed.places]
    wanted = [place for each in packed.places for places in each for place in places]
    with media_embedded(policy, media), _logits_read(policy, branches, wanted if texts else None) as found:
        output = model(**inputs, fused_lm_head=True)
    parts = iter(found[0].split([size for each in sizes for size in each]) if texts else ())
    logps = packed.unpacked(output.log_probs, inputs["labels"])
    entropies = None if output.entropy is None else packed.unpacked(output.entropy, inputs["labels"])  # a reference's
    return logps, entropies, [[next(parts) for _ in each] for each in sizes]


@contextmanager
def _logits_read(policy: Any, branches: Tensor, places: Sequence[int] | None) -> Iterator[list[Tensor]]:
    # A call of the policy on a packed batch adds to the list the logits (A, V) of the tokens after the given ones of
    # its N real tokens (None: it adds nothing). The head is called inside the model's own call.
    found: list[Tensor] = []
    if places is None:
        yield found
        return
    columns = (branches.flatten() != PADDING).nonzero()[:, 0]

    def read(_: Any, args: tuple[Any, ...], output: Any) -> None:
        states = output.last_hidden_state.flatten(0, 1)
        index = torch.tensor(places, dtype=torch.long)
        index = index if len(states) == len(columns) else columns[index]  # flash attention runs without padding
        with torch.no_grad():
            found.append(policy.get_output_embeddings()(states.detach()[index.to(states.device)]))

    handle = policy.model.register_forward_hook(read)
    try:
        yield found
    finally:
        handle.remove()
