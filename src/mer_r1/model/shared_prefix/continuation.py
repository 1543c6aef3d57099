"""Continuations of shared prompts: one copy of a prompt's keys and values serves all its rollouts.

`Branches` runs the G continuations of a prompt as one row, as in training (`packing`): their next tokens side by side,
and a mask that limits each to the prompt and to itself. So a prompt's keys are read once per step instead of once per
rollout, which is most of the cost of decoding after a long prompt. The query heads that share a key-value head are
packed into rows of one query, so that no copies of keys are made for them. Flash attention takes no such mask: there
every continuation gets its own row with a copy of its prompt.

Finished continuations leave (`Branches.leave`): prompts without any other, and in all other prompts as many as the
prompt with the most unfinished ones can spare. The keys of the prompts stay in memory for `Branches.forget`.

`RoomyLayer` is the layer of the key-value cache for this: memory is allocated once for the prompt and all expected
tokens, and each step writes into it. The library's `DynamicLayer` copies the whole layer for every new token instead.

Shapes: B prompts, G continuations each, R = B*G, P prompt tokens (padded on the left), T new tokens, L tokens of a
continuation so far. After some have left, B prompts and G continuations are those that stayed.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, DynamicCache
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
        config = self.backbone.config.get_text_config()
        self._implementation = str(config._attn_implementation)
        self._heads_per_key = config.num_attention_heads // config.num_key_value_heads
        self.side_by_side = group if takes_masks(self._implementation) else 1
        copies = group // self.side_by_side
        if copies > 1:
            cache.batch_repeat_interleave(copies)
        self._cache = with_room(cache, self.side_by_side * room)
        self._layers = [layer for layer in self._cache.layers if isinstance(layer, RoomyLayer)]
        self._prompt = mask.bool().repeat_interleave(copies, dim=0)
        self._next = next_positions.repeat_interleave(copies)
        self._order = torch.arange(len(self._prompt), device=mask.device)
        self._start_again()

    def _start_again(self) -> None:
        # Which keys each continuation sees, (B, G, keys); its next position, (B, G); the columns of its tokens among
        # the keys after the prompt, (G, L), the same in every row; and the prompts in the order of the cache's rows.
        self._seen = self._prompt.unsqueeze(1).expand(-1, self.side_by_side, -1)
        self._places = self._next.unsqueeze(1).expand(-1, self.side_by_side)
        self._columns = self._order.new_zeros(self.side_by_side, 0)
        self._order = torch.arange(len(self._prompt), device=self._order.device)

    def forget(self) -> None:
        """Drop all continuations and keep the prompts, those that have left too."""
        if (new := self._cache.get_seq_length() - self._prompt.shape[1]) > 0:
            self._cache.crop(-new)
        for layer in self._layers:
            layer.move(self._order.argsort(), len(self._order))
        self._start_again()

    def leave(self, done: Tensor) -> Tensor | None:
        """Let finished continuations leave, if that spares at least an eighth of all.

        Args:
            done: (R,) booleans on the CPU: the finished ones.

        Returns:
            Indices of those that stay, in the order in which they are fed from now on: the unfinished ones, and
            finished ones beside them where another prompt has more; None if nothing changes.
        """
        unfinished = ~done.view(self._places.shape)
        counts = unfinished.sum(dim=1)
        rows, width = int(counts.count_nonzero()), int(counts.max())
        if not rows or 8 * rows * width > 7 * done.numel() or len(self._layers) < len(self._cache.layers):
            return None
        # Prompts that stay beyond the new last row take the places of those that leave before it.
        order = torch.arange(len(counts))
        free, late = (counts[:rows] == 0).nonzero()[:, 0], (counts[rows:] > 0).nonzero()[:, 0] + rows
        order[free], order[late] = late, free
        slots = unfinished[order[:rows]].sort(dim=1, descending=True, stable=True).indices[:, :width]
        slots = slots.sort(dim=1).values
        stay = (order[:rows, None] * self._places.shape[1] + slots).flatten().to(self._seen.device)
        self._move(order.to(stay.device), stay, slots.to(stay.device))
        return stay

    def _move(self, order: Tensor, stay: Tensor, slots: Tensor) -> None:
        rows, width = slots.shape
        prompt, columns = self._prompt.shape[1], None
        seen = self._seen.flatten(0, 1)[stay].view(rows, width, -1)
        if width < self._places.shape[1]:
            columns = self._columns[slots].mT.flatten(1) + prompt
            kept = seen.gather(2, columns.unsqueeze(1).expand(-1, width, -1))
            seen = torch.cat([seen[..., :prompt], kept], dim=2)
            self._columns = torch.arange(columns.shape[1], device=stay.device).view(-1, width).T
        for layer in self._layers:
            layer.move(order, rows, prompt, columns)
        self._seen, self._places = seen, self._places.flatten()[stay].view(rows, width)
        self._order[: len(order)] = self._order[order]

    @torch.no_grad()
    def run(self, ids: Tensor, real: Tensor) -> Tensor:
        """Run the next tokens of every continuation; returns their hidden states (R, T, D).

        Args:
            ids: (R, T) tokens.
            real: (R, T) booleans; no token sees one that is not real, and its states are meaningless.
        """
        rows, width = self._places.shape
        length = ids.shape[1]
        real = real.view(rows, width, length)
        positions = self._places.unsqueeze(2) + real.long().cumsum(dim=2) - 1
        packed = length == 1 and self._implementation == "sdpa" and takes_masks(self._implementation)
        if packed:
            _let_queries_be_packed()
        output = self.backbone(
            inputs_embeds=self._embed(ids.reshape(rows, -1)),
            attention_mask=self._mask(real, packed),
            position_ids=positions.view(rows, -1).expand(3, -1, -1),
            past_key_values=self._cache,
            use_cache=True,
            **({"packs_queries": True} if packed else {}),
        )
        self._places = self._places + real.sum(dim=2)
        new = torch.arange(width * length, device=ids.device).view(width, length) + self._columns.numel()
        self._columns = torch.cat([self._columns, new], dim=1)
        return output.last_hidden_state.reshape(*ids.shape, -1)

    def _mask(self, real: Tensor, packed: bool) -> Tensor:
        # A new token sees all that its branch has seen so far, and of the new tokens its branch's own up to itself.
        _, width, length = real.shape
        if not takes_masks(self._implementation):
            self._seen = torch.cat([self._seen, real], dim=2)
            return self._seen[:, 0].long()
        if length == 1:
            seen = self._seen = torch.cat([self._seen, real[..., 0].diag_embed()], dim=2)
            seen = seen.repeat(1, self._heads_per_key, 1) if packed else seen
            return as_mask(seen, self._implementation, self.backbone.dtype)
        own = torch.eye(width, dtype=torch.bool, device=real.device)
        earlier = torch.ones(length, length, dtype=torch.bool, device=real.device).tril()
        new = torch.kron(own, earlier) & real.flatten(1).unsqueeze(1)
        seen = torch.cat([self._seen.repeat_interleave(length, dim=1), new], dim=2)
        self._seen = seen[:, length - 1 :: length]
        return as_mask(seen, self._implementation, self.backbone.dtype)


@lru_cache(maxsize=1)
def _let_queries_be_packed() -> None:
    # The library's sdpa with one more argument; calls without it are unchanged. It copies the keys for every query head
    # as soon as there are several queries and a mask.
    plain: Callable[..., Any] = AttentionInterface()["sdpa"]

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        if not kwargs.pop("packs_queries", False):
            found: tuple[Tensor, Tensor | None] = plain(module, query, key, value, attention_mask, *args, **kwargs)
            return found
        packed = query.reshape(*key.shape[:2], -1, query.shape[-1])  # the heads of a key, and in each its queries
        output = scaled_dot_product_attention(packed, key, value, attention_mask, scale=kwargs.get("scaling"))
        return output.reshape(*query.shape[:3], -1).transpose(1, 2).contiguous(), None

    AttentionInterface.register("sdpa", attend)


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
        self._memory = [self._with_room(part, layer.keys.shape[-2], room) for part in (layer.keys, layer.values)]
        self._show(len(layer.keys), layer.keys.shape[-2])

    @staticmethod
    def _with_room(part: Tensor, length: int, room: int) -> Tensor:
        memory = part.new_empty(*part.shape[:-2], length + room, part.shape[-1])
        memory[..., :length, :] = part[..., :length, :]
        return memory

    def _show(self, rows: int, length: int) -> None:
        self.keys, self.values = (memory[:rows, :, :length] for memory in self._memory)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append new keys and values; returns all of them."""
        before, rows = self.get_seq_length(), len(key_states)
        length = before + key_states.shape[-2]
        if length > self._memory[0].shape[-2]:
            self._memory = [self._with_room(memory, before, length) for memory in self._memory]
        for memory, new in zip(self._memory, (key_states, value_states), strict=True):
            memory[:rows, :, before:length] = new
        self._show(rows, length)
        return self.keys, self.values

    def move(self, order: Tensor, rows: int, first: int = 0, columns: Tensor | None = None) -> None:
        """Put the rows into another order, show the first `rows` of them, and drop tokens.

        Args:
            order: for each of the first rows of memory, the row whose content it gets; a permutation.
            rows: number of rows that are shown from now on; the others stay in memory.
            first: number of tokens that stay in every row.
            columns: (rows, N) the tokens that follow them, at `first` or later; None keeps all.
        """
        length = self.get_seq_length()
        moved = (order != torch.arange(len(order), device=order.device)).nonzero()[:, 0]
        for memory in self._memory:
            if len(moved):
                memory[moved, :, :length] = memory[order[moved], :, :length]
            if columns is not None:
                index = columns[:, None, :, None].expand(-1, memory.shape[1], -1, memory.shape[3])
                memory[:rows, :, first : first + columns.shape[1]] = memory[:rows].gather(2, index)
        self._show(rows, length if columns is None else first + columns.shape[1])


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
