"""Attention over packed rows: what each attention implementation needs so that a branch sees its prefix and itself.

A mask over all pairs of tokens costs L x L scores, most of which no token sees. So long rows get no mask with sdpa: a
row is split into its prefix, which attends to itself, and its branches, which become a batch whose keys are the
prefix's followed by their own. Causal attention of a short query over longer keys, aligned to their ends, is exactly
what a branch sees. For short rows the copies cost more than the scores, and sdpa gets the mask.

Flash attention does the same in one call: the rows are concatenated without padding, and every prefix and every branch
is a sequence of its own. Eager attention gets an additive mask. Autograd sums the branches' gradients on their prefix.

Only the model's own forward runs, so this works under gradient checkpointing, and where weights are gathered by the
forward (ZeRO-3, FSDP2). The flash path was tested on a CPU with a stand-in for the kernel, not on a GPU.

Source: transformers' attention interface and its `cu_seq_lens_q` arguments; the causal alignment is flash-attn's since
2.1, and PyTorch's `causal_lower_right`.
Shapes: B packed rows of L tokens, N real tokens, S sequences, H query heads, D head size.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface
from transformers.modeling_flash_attention_utils import flash_attn_supports_top_left_mask

from mer_r1.errors import UserError
from mer_r1.model.shared_prefix.packing import PADDING, PREFIX

DIVIDED_FROM = 1024
"""Tokens of a row from which sdpa works on its segments. Mask / segments, training pass of the tiny policy on a CPU:
1.03 (0.91 to 1.19) at 538 tokens, 1.14 (1.06 to 1.25) at 1,456; `perf/rl_step.py --ways masks` compares the two."""


def packed_inputs(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """A packed batch as arguments of the model's forward.

    Args:
        model: the thinker (unwrapped); its text model's attention implementation decides the form.
        batch: batch from `packing.pack`, on the model's device.

    Returns:
        input_ids, labels (B, L) and position_ids (3, B, L), for flash attention as one row (1, N) without padding; and
        the segments of each row, the sequence lengths, or the mask. Real tokens are in the same order in all forms.

    Raises:
        UserError: the attention implementation supports neither.
    """
    implementation = str(model.config.get_text_config()._attn_implementation)
    names = ("input_ids", "labels", "position_ids")
    if implementation == "sdpa" and batch["branches"].shape[1] >= DIVIDED_FROM:
        _let_rows_be_divided(implementation)
        return {name: batch[name] for name in names} | {"attention_mask": None, "segments": segments(batch["branches"])}
    if takes_masks(implementation):
        mask = as_mask(visible(batch["branches"]), implementation, model.dtype)
        return {name: batch[name] for name in names} | {"attention_mask": mask}
    if "flash" in implementation and not flash_attn_supports_top_left_mask():
        _let_rows_be_divided(implementation)
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
    for row in segments(branches):
        prefix = torch.empty(0, dtype=torch.long)
        for branch, length in row:
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


def segments(branches: Tensor) -> list[list[tuple[int, int]]]:
    """The branch number and the length of each run of equal numbers, for each row of branches (B, L).

    >>> segments(torch.tensor([[0, 0, 1, 2, 2, -1]]))
    [[(0, 2), (1, 1), (2, 2), (-1, 1)]]
    """
    runs = (row.unique_consecutive(return_counts=True) for row in branches.cpu())
    return [list(zip(*(part.tolist() for part in run), strict=True)) for run in runs]


def attend_to_segments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Sequence[Sequence[tuple[int, int]]],
    scaling: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of packed rows without a mask over all pairs of tokens.

    Args:
        query: (B, H, L, D).
        key: (B, heads, L, D), with as many heads or a divisor of H.
        value: likewise.
        rows: segments of each row, from `segments`.
        scaling: factor of the scores; None for 1 / sqrt(D).
        dropout: share of the weights that are dropped.

    Returns:
        (B, H, L, D), 0 at padding.
    """

    def causal(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        # The last query sees all keys.
        bias, grouped = causal_lower_right(queries.shape[2], keys.shape[2]), queries.shape[1] != keys.shape[1]
        found: Tensor = scaled_dot_product_attention(
            queries, keys, values, attn_mask=bias, dropout_p=dropout, scale=scaling, enable_gqa=grouped
        )
        return found

    def of_row(runs: Sequence[tuple[int, int]], *states: Tensor) -> Tensor:
        parts = list(zip(*(each.split([length for _, length in runs], dim=1) for each in states), strict=True))
        found = [torch.zeros_like(part[0]) for part in parts]
        prefix = [number for number, (branch, _) in enumerate(runs) if branch == PREFIX]
        for number in prefix:
            query, key, value = (part.unsqueeze(0) for part in parts[number])
            found[number] = causal(query, key, value)[0]
        own = [number for number, (branch, _) in enumerate(runs) if branch > PREFIX]
        for number, padded in zip(own, of_branches(parts, prefix, own), strict=True):
            found[number] = padded[:, : runs[number][1]]
        return torch.cat(found, dim=1)

    def of_branches(parts: Sequence[Sequence[Tensor]], prefix: list[int], own: list[int]) -> Sequence[Tensor]:
        if not own:
            return ()
        query, *keys = (_stacked([parts[number][kind] for number in own]) for kind in range(3))
        for number in prefix:
            before = (part.expand(len(own), *part.shape) for part in parts[number][1:])
            keys = [torch.cat(pair, dim=2) for pair in zip(before, keys, strict=True)]
        return causal(query, *keys).unbind()

    return torch.stack([of_row(*each) for each in zip(rows, query, key, value, strict=True)])


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    # (K, heads, T, D) of K parts (heads, tokens, D), padded at their ends, where no real token of a branch looks.
    return pad_sequence([part.transpose(0, 1) for part in parts], batch_first=True).transpose(1, 2)


def _let_rows_be_divided(implementation: str) -> None:
    # The library's function of this name with two more arguments; calls without them are unchanged.
    plain: Callable[..., Any] = AttentionInterface()[implementation]
    if getattr(plain, "divides_rows", False):
        return

    def attend(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *args: Any,
        key_index: Any = None,
        segments: Any = None,
        **kwargs: Any,
    ) -> Any:
        if segments is not None:
            options = {name: kwargs[name] for name in ("scaling", "dropout") if name in kwargs}
            return attend_to_segments(query, key, value, segments, **options).transpose(1, 2).contiguous(), None
        if key_index is not None:
            key, value = key[:, :, key_index], value[:, :, key_index]
        return plain(module, query, key, value, *args, **kwargs)

    attend.divides_rows = True  # type: ignore[attr-defined]
    AttentionInterface.register(implementation, attend)
