"""Continuations of shared prompts: one copy of a prompt's keys and values serves all its rollouts.

`Branches` runs the G continuations of a prompt as one row, as in training (`packing`): their next tokens side by side,
and a mask that limits each to the prompt and to itself. So a prompt's keys are read once per step instead of once per
rollout, which is most of the cost of decoding after a long prompt. Flash attention takes no such mask: there every
continuation gets its own row with a copy of its prompt.

`RoomyLayer` is the layer of the key-value cache for this: memory is allocated once for the prompt and all expected
tokens, and each step writes into it. The library's `DynamicLayer` copies the whole layer for every new token instead.

Shapes: B prompts, G continuations each, R = B*G, P prompt tokens (padded on the left), T new tokens.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from mer_r1.model.omni import thinker
from mer_r1.model.shared_prefix.attention import as_mask, takes_masks


class Branches:
    """Continuations of prompts that have been run, fed token by token or as a whole.

    Args:
        model: the policy, with or without an adapter around it.
        cache: the prompts' keys and values; consumed.
        mask: (B, P), 1 at the prompts' real tokens.
        next_positions: (B,) position after each prompt.
        group: G, continuations per prompt.
        room: expected tokens of a continuation; more are no error.
    """

    def __init__(
        self, model: Any, cache: DynamicCache, mask: Tensor, next_positions: Tensor, group: int, room: int
    ) -> None:
        self.backbone = backbone(model)
        self._embed = model.get_input_embeddings()
        self._implementation = str(self.backbone.config.get_text_config()._attn_implementation)
        self.side_by_side = group if takes_masks(self._implementation) else 1
        copies = group // self.side_by_side
        if copies > 1:
            cache.batch_repeat_interleave(copies)
        self._cache = with_room(cache, self.side_by_side * room)
        self._prompt = mask.bool().repeat_interleave(copies, dim=0).unsqueeze(1).expand(-1, self.side_by_side, -1)
        self._next = next_positions.repeat_interleave(copies)
        self._start_again()

    def _start_again(self) -> None:
        self._seen, self._length = self._prompt, 0

    def forget(self) -> None:
        """Drop all continuations and keep the prompts."""
        if (new := self._cache.get_seq_length() - self._prompt.shape[2]) > 0:
            self._cache.crop(-new)
        self._start_again()

    @torch.no_grad()
    def run(self, ids: Tensor, real: Tensor) -> Tensor:
        """Run the next tokens of every continuation; returns their hidden states (R, T, D).

        Args:
            ids: (R, T) tokens.
            real: (R, T) booleans; no token sees one that is not real, and its states are meaningless.
        """
        rows, length = len(self._prompt), ids.shape[1]
        steps = torch.arange(self._length, self._length + length, device=ids.device)
        positions = (self._next[:, None] + steps).repeat(1, self.side_by_side)
        output = self.backbone(
            inputs_embeds=self._embed(ids.reshape(rows, -1)),
            attention_mask=self._mask(real.view(rows, self.side_by_side, length)),
            position_ids=positions.expand(3, -1, -1),
            past_key_values=self._cache,
            use_cache=True,
        )
        self._length += length
        return output.last_hidden_state.reshape(*ids.shape, -1)

    def _mask(self, real: Tensor) -> Tensor:
        # A new token sees all that its branch has seen so far, and of the new tokens its branch's own up to itself.
        _, width, length = real.shape
        if width == 1:
            self._seen = torch.cat([self._seen, real], dim=2)
            return self._seen[:, 0].long()
        own = torch.eye(width, dtype=torch.bool, device=real.device)
        earlier = torch.ones(length, length, dtype=torch.bool, device=real.device).tril()
        new = torch.kron(own, earlier) & real.flatten(1).unsqueeze(1)
        seen = torch.cat([self._seen.repeat_interleave(length, dim=1), new], dim=2)
        self._seen = seen[:, length - 1 :: length]
        return as_mask(seen, self._implementation, self.backbone.dtype)


def backbone(model: Any) -> Any:
    """A thinker, with or without an adapter around it, without its head."""
    return thinker(model).model


class RoomyLayer(DynamicLayer):
    """One cache layer: keys and values (B, heads, tokens, D) as views of memory with room for further tokens.

    Args:
        layer: the filled layer to start from.
        room: number of further tokens; beyond it the memory is doubled.
    """

    def __init__(self, layer: DynamicLayer, room: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True
        self._memory = [self._with_room(part, room) for part in (layer.keys, layer.values)]
        self._show(layer.keys.shape[-2])

    @staticmethod
    def _with_room(part: Tensor, room: int) -> Tensor:
        memory = part.new_empty(*part.shape[:-2], part.shape[-2] + room, part.shape[-1])
        memory[..., : part.shape[-2], :] = part
        return memory

    def _show(self, length: int) -> None:
        self.keys, self.values = (memory[..., :length, :] for memory in self._memory)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append new keys and values; returns all of them."""
        before = self.get_seq_length()
        length = before + key_states.shape[-2]
        if length > self._memory[0].shape[-2]:
            self._memory = [self._with_room(part, length) for part in (self.keys, self.values)]
        for memory, new in zip(self._memory, (key_states, value_states), strict=True):
            memory[..., before:length, :] = new
        self._show(length)
        return self.keys, self.values


def with_room(cache: DynamicCache, room: int) -> DynamicCache:
    """Give every layer of a cache room for further tokens; the cache is changed in place.

    Args:
        cache: cache filled by a forward without gradient.
        room: number of tokens.
    """
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:  # a sliding-window layer has a length of its own
            cache.layers[number] = RoomyLayer(layer, room)
    return cache
