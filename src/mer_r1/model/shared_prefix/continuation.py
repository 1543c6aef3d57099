"""Texts behind shared prompts: one copy of each prompt's keys and values serves all that continues it.

The G continuations of a prompt run as one row, as they do in training (`packing`): their next tokens side by side, and
a mask that keeps each to the prompt and to itself. So a prompt's keys are read once a step and not once a rollout,
which is most of what decoding behind a long prompt costs. Flash attention takes no such mask: there every continuation
gets a row, and a copy of its prompt, of its own.

Shapes: B prompts, G continuations each, R = B*G, P prompt tokens (padded on the left), T new tokens.
"""

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from mer_r1.model.shared_prefix.attention import as_mask, takes_masks


class Branches:
    """Continuations of prompts that have run, to be fed token by token or whole.

    Args:
        model: the policy (an adapter around it, say).
        cache: the prompts' keys and values; used up.
        mask: (B, P), 1 at the prompts' real tokens.
        next_positions: (B,) the position behind each prompt.
        group: G.
        room: tokens a continuation is expected to take; more are no error.
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
        """Back to the prompts alone."""
        if (new := self._cache.get_seq_length() - self._prompt.shape[2]) > 0:
            self._cache.crop(-new)
        self._start_again()

    @torch.no_grad()
    def run(self, ids: Tensor, real: Tensor) -> Tensor:
        """Hidden states (R, T, D) of the next tokens of every continuation.

        Args:
            ids: (R, T) tokens.
            real: (R, T) booleans; what is not real is seen by nothing, and its states mean nothing.
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
        # What each new token sees: what its branch has seen so far, and of the new ones its own up to itself.
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
    """A thinker (or one inside an adapter) without its head."""
    return (model.get_base_model() if isinstance(model, PeftModel) else model).model


class RoomyLayer(DynamicLayer):
    """One layer's keys and values (B, heads, tokens, D), as views of memory that has room for more.

    Args:
        layer: the filled layer that this one continues.
        room: how many more tokens fit; beyond that it grows as the library's does.
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
        """Write new keys and values behind those there; returns all of them."""
        before = self.get_seq_length()
        length = before + key_states.shape[-2]
        if length > self._memory[0].shape[-2]:
            self._memory = [self._with_room(part, length) for part in (self.keys, self.values)]
        for memory, new in zip(self._memory, (key_states, value_states), strict=True):
            memory[..., before:length, :] = new
        self._show(length)
        return self.keys, self.values


def with_room(cache: DynamicCache, room: int) -> DynamicCache:
    """The cache with room for so many more tokens in every layer; the given one is used up.

    Args:
        cache: filled by a forward without gradient.
        room: tokens.
    """
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:  # a sliding window keeps its own length
            cache.layers[number] = RoomyLayer(layer, room)
    return cache
