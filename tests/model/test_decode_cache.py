"""The roomy cache gives what the library's gives, and takes its memory once."""

import pytest
import torch
from transformers import DynamicCache

from mer_r1.model.shared_prefix.continuation import RoomyLayer, with_room


def filled(layers=2, tokens=3):
    torch.manual_seed(0)
    cache = DynamicCache()
    for layer in range(layers):
        cache.update(torch.randn(2, 2, tokens, 4), torch.randn(2, 2, tokens, 4), layer)
    return cache


@pytest.mark.parametrize("room", [0, 2, 9])
def test_it_holds_what_the_librarys_cache_holds(room) -> None:
    plain, roomy = filled(), with_room(filled(), room)
    for step in range(5):
        if step == 3:  # cut back, as before the fast confidence
            plain.crop(-3)
            roomy.crop(-3)
        new = [torch.randn(2, 2, 1 + step % 2, 4) for _ in range(4)]
        for layer in range(2):
            found = roomy.update(*new[2 * layer : 2 * layer + 2], layer)
            for ours, theirs in zip(found, plain.update(*new[2 * layer : 2 * layer + 2], layer), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        assert roomy.get_seq_length() == plain.get_seq_length()
        assert roomy.get_mask_sizes(1, 0) == plain.get_mask_sizes(1, 0)


def test_new_tokens_are_written_where_the_room_is() -> None:
    roomy = with_room(filled(), 4)
    assert all(isinstance(layer, RoomyLayer) for layer in roomy.layers)
    place = roomy.layers[0].keys.data_ptr()
    for _ in range(4):
        roomy.update(torch.zeros(2, 2, 1, 4), torch.zeros(2, 2, 1, 4), 0)
    assert roomy.layers[0].keys.data_ptr() == place
    roomy.update(torch.zeros(2, 2, 1, 4), torch.zeros(2, 2, 1, 4), 0)
    assert roomy.layers[0].keys.data_ptr() != place
