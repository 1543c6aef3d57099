"""Several answers to one clip as one packed row: what their prompts have in common is computed once.

The prompt is by far the longest part of a row, and rows of one clip (several targets in supervised training, the G
rollouts of a prompt in RL) differ only in their ends. Here they become one row: the common prefix once, then each row's
own rest as a *branch*. A branch sees the prefix and itself and nothing of its neighbours, and its positions go on where
the prefix ended, so every token has the same context as in a row of its own: the same loss, the same gradients. How a
model is made to look at its tokens that way is the matter of `attention`.

Every branch keeps at least one prompt token, so that shifting the labels by one, as all trainers do, stays inside it.
Shapes: B packed rows of L tokens, K branches in a row; R rollouts of T completion tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mer_r1.model.prompts import IGNORE, Prompt

PREFIX, PADDING = 0, -1
"""Branch numbers of tokens that every branch sees, and of tokens that are nobody's."""

Row = tuple[Prompt, Sequence[int]]


def pack(groups: Sequence[Sequence[Row]], pad_id: int, media_ids: Sequence[int]) -> dict[str, Any]:
    """One packed row a group, padded on the right; the counterpart of `prompts.collate`.

    Args:
        groups: of each packed row the (prompt, completion token ids) that it holds. Prompts of a group share what they
            have in common; groups of one row, and prompts with nothing in common, are fine.
        pad_id: the padding token.
        media_ids: the placeholder tokens (`prompts.placeholder_ids`).

    Returns:
        input_ids, attention_mask, labels (B, L) with `IGNORE` outside the completions, branches (B, L) with `PREFIX`,
        1 to K, or `PADDING`, position_ids (3, B, L), and media in the order of their placeholders.
    """
    rows = [_packed_row(group, torch.tensor(media_ids)) for group in groups]
    branches = pad_sequence([row["branches"] for row in rows], batch_first=True, padding_value=PADDING)
    return {
        "input_ids": pad_sequence([row["input_ids"] for row in rows], batch_first=True, padding_value=pad_id),
        "attention_mask": (branches != PADDING).long(),
        "labels": pad_sequence([row["labels"] for row in rows], batch_first=True, padding_value=IGNORE),
        "branches": branches,
        "position_ids": pad_sequence([row["position_ids"].T for row in rows], batch_first=True).permute(2, 0, 1),
        "media": [media for row in rows for media in row["media"]],
    }


def _packed_row(group: Sequence[Row], media_ids: Tensor) -> dict[str, Any]:
    prompts = [prompt for prompt, _ in group]
    first = prompts[0]
    shared = shared_length(prompts, media_ids)
    ids, positions = [first.input_ids[:shared]], [first.position_ids[:, :shared]]
    labels = [torch.full((shared,), IGNORE)]
    for prompt, completion in group:
        whole = prompt.extended(completion)
        ids.append(whole.input_ids[shared:])
        positions.append(whole.position_ids[:, shared:])
        labels.append(torch.full((len(prompt.input_ids) - shared,), IGNORE))
        labels.append(whole.input_ids[len(prompt.input_ids) :])
    lengths = torch.tensor([len(part) for part in ids])
    held = bool(torch.isin(first.input_ids[:shared], media_ids).any())
    return {
        "input_ids": torch.cat(ids),
        "position_ids": torch.cat(positions, dim=1),
        "labels": torch.cat(labels),
        "branches": torch.arange(len(ids)).repeat_interleave(lengths),
        "media": [first.media] if held else [prompt.media for prompt in prompts],
    }


def shared_length(prompts: Sequence[Prompt], media_ids: Tensor) -> int:
    """How many tokens from the start the prompts have in common, one less than the shortest at most.

    Common are tokens with equal ids and positions; placeholders only if all prompts carry the same media, and then all
    of them or none, so that the vectors stay in order. Nothing is shared by a prompt alone.
    """
    first = prompts[0]
    others = [prompt for prompt in prompts[1:] if prompt is not first]
    length = min(len(prompt.input_ids) for prompt in prompts) - 1 if len(prompts) > 1 else 0
    for prompt in others:
        same = prompt.input_ids[:length] == first.input_ids[:length]
        same &= (prompt.position_ids[:, :length] == first.position_ids[:, :length]).all(dim=0)
        length = length if bool(same.all()) else int(same.long().argmin())
    held = torch.isin(first.input_ids, media_ids)
    if held[:length].any() and (held[length:].any() or not all(_same_media(first, prompt) for prompt in others)):
        length = int(held.long().argmax())
    return length


def _same_media(one: Prompt, other: Prompt) -> bool:
    if one.media is other.media:
        return True
    return one.media.keys() == other.media.keys() and all(
        value is other.media[name] or torch.equal(value, other.media[name]) for name, value in one.media.items()
    )


@dataclass(frozen=True)
class PackedRollouts:
    """Rollouts as packed rows, and the way back.

    Attributes:
        batch: of `pack`.
        order: (R,) the rollout of each branch, in the order of the packed batch.
        kept: (R, T) which completion tokens are real, in the same order.
    """

    batch: dict[str, Any]
    order: Tensor
    kept: Tensor

    def unpacked(self, values: Tensor, labels: Tensor) -> Tensor:
        """What belongs to the completions' tokens, back in place.

        Args:
            values: (B, L-1) of the tokens that ``labels[:, 1:]`` names, as the fused head returns them.
            labels: (B, L) of the forward that made them.

        Returns:
            (R, T) in the rollouts' own order, 0 where there is no token.
        """
        found = values[labels[:, 1:] != IGNORE]
        kept = self.kept.to(values.device)
        return values.new_zeros(kept.shape).masked_scatter(kept, found)[self.order.argsort()]


def pack_rollouts(
    prompts: Sequence[Prompt],
    clips: Sequence[int],
    completion_ids: Tensor,
    completion_mask: Tensor,
    pad_id: int,
    media_ids: Sequence[int],
) -> PackedRollouts:
    """The rollouts of each clip as one packed row, wherever in the batch they stand.

    Args:
        prompts: of each of R rollouts; those of a clip are the same.
        clips: of each rollout, its clip.
        completion_ids: (R, T), padded on the right.
        completion_mask: (R, T), 1 at real tokens. A rollout without any (cut off and masked, say) keeps its place.
        pad_id: the padding token.
        media_ids: the placeholder tokens.
    """
    groups: dict[int, list[int]] = {}
    for number, clip in enumerate(clips):
        groups.setdefault(clip, []).append(number)
    order = torch.tensor([number for group in groups.values() for number in group])
    kept = completion_mask.bool().cpu()
    texts = [ids[real].tolist() for ids, real in zip(completion_ids.cpu(), kept, strict=True)]
    rows = [[(prompts[number], texts[number]) for number in group] for group in groups.values()]
    return PackedRollouts(pack(rows, pad_id, media_ids), order, kept[order])


def shuffle_groups(batch: dict[str, Any], size: int) -> dict[str, Any]:
    """TRL's shuffle of a generation batch, but of whole groups, so that a training batch can share their prompts.

    Args:
        batch: sequences and tensors with one entry a rollout, single numbers and None as they are.
        size: rollouts of a group; they stand together. Where processes divide groups among them, the greatest part that
            every process has whole is kept together.
    """
    length = len(next(value for value in batch.values() if value is not None))
    size = math.gcd(length, size)
    order = (torch.randperm(length // size)[:, None] * size + torch.arange(size)).flatten()

    def moved(value: Any) -> Any:
        if value is None or (isinstance(value, Tensor) and not value.ndim):
            return value
        return value[order.to(value.device)] if isinstance(value, Tensor) else [value[i] for i in order.tolist()]

    return {name: moved(value) for name, value in batch.items()}


def group_rows(
    rows: Sequence[dict[str, Any]], tokens: Sequence[int], shared: int, no_clip: int
) -> list[list[dict[str, Any]]]:
    """Rows for supervised training, those of one clip together.

    Args:
        rows: with the column `clip_index`.
        tokens: of each row, those of its question and its target.
        shared: tokens that the rows of a clip have in common, about.
        no_clip: clip index of the rows without a clip. Those are put together until they have about as many tokens as a
            packed clip (the median), so that the items of a batch are of a size; without clips each stays alone.

    Returns:
        Groups, in the order of their first rows.
    """
    clips: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        if row["clip_index"] != no_clip:
            clips.setdefault(row["clip_index"], []).append(number)
    limit = median(shared + sum(tokens[number] for number in group) for group in clips.values()) if clips else 0
    groups = list(clips.values())
    filled = limit
    for number, row in enumerate(rows):
        if row["clip_index"] != no_clip:
            continue
        if filled + tokens[number] > limit:
            groups.append([])
            filled = 0
        groups[-1].append(number)
        filled += tokens[number]
    return [[rows[number] for number in group] for group in sorted(groups)]
