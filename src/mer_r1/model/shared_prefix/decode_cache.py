"""A key-value cache with room at its end, for decoding token by token.

The library's dynamic cache makes itself anew for every token: all keys and values so far are copied, at each step and
in each layer, and for a moment two of everything exist. Here the room for the whole completion is taken once, and a new
token is written behind the others. What attention reads is the same.
"""

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


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
