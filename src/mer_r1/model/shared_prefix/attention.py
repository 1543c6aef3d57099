"""Attention over packed rows: what each attention implementation needs so that a branch sees its prefix and itself.

sdpa takes a boolean mask, eager attention an additive one. Flash attention takes none: there the rows are concatenated
without padding, every prefix and every branch becomes a sequence of its own, and the keys and values of a branch are
the prefix's followed by its own. Causal attention of a short query over longer keys is aligned to their ends, which is
exactly what a branch sees. It is one call, and autograd sums the branches' gradients on their prefix.

Only the model's own forward runs, so this works under gradient checkpointing, and where weights are gathered by the
forward (ZeRO-3, FSDP2). The flash path was tested on a CPU with a stand-in for the kernel, not on a GPU.

Source: transformers' attention interface and its `cu_seq_lens_q` arguments; the causal alignment is flash-attn's since
2.1.
Shapes: B packed rows of L tokens, N real tokens, S sequences.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.modeling_flash_attention_utils import flash_attn_supports_top_left_mask

from mer_r1.errors import UserError
from mer_r1.model.shared_prefix.packing import PADDING, PREFIX


def packed_inputs(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """A packed batch as arguments of the model's forward.

    Args:
        model: the thinker (unwrapped); its text model's attention implementation decides the form.
        batch: batch from `packing.pack`, on the model's device.

    Returns:
        input_ids, labels (B, L) and position_ids (3, B, L), for flash attention as one row (1, N) without padding; and
        the mask or the sequence lengths. Real tokens are in the same order in both forms.

    Raises:
        UserError: the attention implementation supports neither.
    """
    implementation = str(model.config.get_text_config()._attn_implementation)
    names = ("input_ids", "labels", "position_ids")
    if takes_masks(implementation):
        mask = as_mask(visible(batch["branches"]), implementation, model.dtype)
        return {name: batch[name] for name in names} | {"attention_mask": mask}
    if "flash" in implementation and not flash_attn_supports_top_left_mask():
        _let_keys_be_gathered(implementation)
        real = batch["branches"] != PADDING
        flat = {name: batch[name][..., real].unsqueeze(-2) for name in names}
        return flat | {"attention_mask": None} | flash_sequences(batch["branches"])
    raise UserError(
        "shared_prefixes=true works with the attention implementations sdpa, eager and flash_attention_2 or later; "
        f"this model runs {implementation}"
    )


def takes_masks(implementation: str) -> bool:
    """Whether an attention implementation takes a mask per pair of tokens."""
    return implementation in ("sdpa", "eager")


def as_mask(seen: Tensor, implementation: str, dtype: torch.dtype) -> Tensor:
    """A mask in the form of the implementation.

    Args:
        seen: (B, Q, K) booleans: which keys each query sees.
        implementation: one that `takes_masks`.
        dtype: dtype of the model.

    Returns:
        (B, 1, Q, K).
    """
    if implementation == "sdpa":
        return seen.unsqueeze(1)
    # Eager attention adds the mask; booleans would be added as 0 and 1.
    added = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return added.masked_fill_(~seen, torch.finfo(dtype).min).unsqueeze(1)


def visible(branches: Tensor) -> Tensor:
    """Which tokens each token sees: the prefix and its own branch, up to itself.

    Args:
        branches: (B, L) from `packing.pack`. Padding may be anywhere; it sees itself, so that no softmax is empty.

    Returns:
        (B, L, L) booleans: query, then key.
    """
    seer, seen = branches.unsqueeze(2), branches.unsqueeze(1)
    return ((seen == PREFIX) | (seen == seer)).tril()


def flash_sequences(branches: Tensor) -> dict[str, Any]:
    """Prefixes and branches as sequences for a variable-length kernel.

    Args:
        branches: (B, L) from `packing.pack`.

    Returns:
        key_index: (M,) index of each key of each sequence among the N real tokens.
        cu_seq_lens_q, cu_seq_lens_k: (S+1,) boundaries of the sequences among the queries and among those keys.
        max_length_q, max_length_k: the longest of each.
    """
    keys, queries_of, keys_of = [], [], []
    end = 0
    for row in branches.cpu():
        prefix = torch.empty(0, dtype=torch.long)
        for branch, length in zip(*(part.tolist() for part in row.unique_consecutive(return_counts=True)), strict=True):
            if branch == PADDING:
                continue
            own = torch.arange(end, end + length)
            end += length
            seen = own if branch == PREFIX else torch.cat([prefix, own])
            prefix = own if branch == PREFIX else prefix
            keys.append(seen)
            queries_of.append(length)
            keys_of.append(len(seen))

    def ends(lengths: list[int]) -> Tensor:
        return torch.tensor([0, *lengths]).cumsum(0).to(branches.device, torch.int32)

    return {
        "key_index": torch.cat(keys).to(branches.device),
        "cu_seq_lens_q": ends(queries_of),
        "cu_seq_lens_k": ends(keys_of),
        "max_length_q": max(queries_of),
        "max_length_k": max(keys_of),
    }


def _let_keys_be_gathered(implementation: str) -> None:
    # The library's function of this name with one more argument; calls without it are unchanged.
    plain: Callable[..., Any] = AttentionInterface()[implementation]
    if getattr(plain, "gathers_keys", False):
        return

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, key_index: Any = None, **kwargs: Any
    ) -> Any:
        if key_index is not None:
            key, value = key[:, :, key_index], value[:, :, key_index]
        return plain(module, query, key, value, *args, **kwargs)

    attend.gathers_keys = True  # type: ignore[attr-defined]
    AttentionInterface.register(implementation, attend)
