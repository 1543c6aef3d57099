"""Packs several completions of one clip into one row, so that the common part of their prompts is computed once.

The prompt is by far the longest part of a row, and rows of one clip (several targets in supervised training, the G
rollouts of a prompt in RL) differ only in their ends. Here they become one row: the common prefix once, then the rest
of each row as a *branch*. A branch sees the prefix and itself but no other branch, and its positions continue from the
end of the prefix, so every token has the same context as in a row of its own: the same loss, the same gradients.
`attention` restricts the model's attention accordingly.

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
"""Branch numbers of tokens that every branch sees, and of padding."""

Row = tuple[Prompt, Sequence[int]]
Text = tuple[Sequence[int], Sequence[int]]
"""Tokens that follow a prompt, and the places in them, ascending, before which something is read; their number is the
place after the end."""


def pack(
    groups: Sequence[Sequence[Row]], pad_id: int, media_ids: Sequence[int], learned: Sequence[int] = ()
) -> dict[str, Any]:
    """One packed row per group, padded on the right; the counterpart of `prompts.collate`.

    Args:
        groups: for each packed row, its (prompt, completion token ids). Prompts of a group share their common prefix;
            groups of one row, and prompts with nothing in common, are allowed.
        pad_id: the padding token.
        media_ids: the placeholder tokens (`tower_outputs.placeholder_ids`).
        learned: how many completions of each group have labels, the first ones; empty for all.

    Returns:
        input_ids, attention_mask, labels (B, L) with `IGNORE` outside the completions, branches (B, L) with `PREFIX`,
        1 to K, or `PADDING`, position_ids (3, B, L), and media in the order of their placeholders.
    """
    limits = learned or [len(group) for group in groups]
    rows = [_packed_row(group, torch.tensor(media_ids), limit) for group, limit in zip(groups, limits, strict=True)]
    branches = pad_sequence([row["branches"] for row in rows], batch_first=True, padding_value=PADDING)
    return {
        "input_ids": pad_sequence([row["input_ids"] for row in rows], batch_first=True, padding_value=pad_id),
        "attention_mask": (branches != PADDING).long(),
        "labels": pad_sequence([row["labels"] for row in rows], batch_first=True, padding_value=IGNORE),
        "branches": branches,
        "position_ids": pad_sequence([row["position_ids"].T for row in rows], batch_first=True).permute(2, 0, 1),
        "media": [media for row in rows for media in row["media"]],
    }


def _packed_row(group: Sequence[Row], media_ids: Tensor, learned: int) -> dict[str, Any]:
    prompts = [prompt for prompt, _ in group]
    first = prompts[0]
    shared = shared_length(prompts, media_ids)
    ids, positions = [first.input_ids[:shared]], [first.position_ids[:, :shared]]
    labels = [torch.full((shared,), IGNORE)]
    for number, (prompt, completion) in enumerate(group):
        whole = prompt.extended(completion)
        ids.append(whole.input_ids[shared:])
        positions.append(whole.position_ids[:, shared:])
        labels.append(torch.full((len(prompt.input_ids) - shared,), IGNORE))
        own = whole.input_ids[len(prompt.input_ids) :]
        labels.append(own if number < learned else torch.full_like(own, IGNORE))
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
    """Length of the prompts' common prefix, at most one less than the shortest prompt.

    Common tokens have equal ids and positions; placeholders count only if all prompts have the same media, and then all
    of them or none, so that the vectors stay in order. A single prompt shares nothing.
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
    """Rollouts as packed rows, and the mapping back.

    Attributes:
        batch: batch from `pack`.
        order: (R,) the rollout of each branch, in the order of the packed batch.
        kept: (R, T) which completion tokens are real, in the same order.
        places: for each rollout, in its own order, and each of its texts: index among the N real tokens of the batch of
            the token before each place.
    """

    batch: dict[str, Any]
    order: Tensor
    kept: Tensor
    places: list[list[list[int]]]

    def unpacked(self, values: Tensor, labels: Tensor) -> Tensor:
        """Values of the completion tokens, back in the order of the rollouts.

        Args:
            values: (B, L-1) values of the tokens ``labels[:, 1:]``, as the fused head returns them.
            labels: (B, L) labels of the same forward.

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
    texts: Sequence[Sequence[Text]] = (),
    shared: bool = True,
) -> PackedRollouts:
    """Pack the rollouts of each clip into one row, in any order of the batch.

    Args:
        prompts: prompt of each of R rollouts; those of a clip are equal.
        clips: clip index of each rollout.
        completion_ids: (R, T), padded on the right.
        completion_mask: (R, T), 1 at real tokens. A rollout without any (for example cut off and masked) keeps its
            place.
        pad_id: the padding token.
        media_ids: the placeholder tokens.
        texts: further texts of each rollout, after the same prompt, to be read and not learned. A text that begins
            another branch of its row needs no tokens of its own.
        shared: whether rollouts of a clip share their prompt; otherwise each rollout and each text has its own row.
    """
    groups: dict[int, list[int]] = {}
    for number, clip in enumerate(clips):
        groups.setdefault(clip if shared else number, []).append(number)
    order = torch.tensor([number for group in groups.values() for number in group])
    kept = completion_mask.bool().cpu()
    own = [ids[real].tolist() for ids, real in zip(completion_ids.cpu(), kept, strict=True)]
    rows: list[list[Row]] = [[(prompts[number], own[number]) for number in group] for group in groups.values()]
    learned = [len(row) for row in rows]
    read = _with_texts(rows, list(groups.values()), prompts, texts, shared) if texts else []
    learned += [0] * (len(rows) - len(learned))
    batch = pack(rows, pad_id, media_ids, learned)
    real = batch["attention_mask"].sum(dim=1)
    starts = (real.cumsum(0) - real).tolist()

    def places_of(row: int, branch: int, places: Sequence[int]) -> list[int]:
        numbers = batch["branches"][row]
        end = int(((numbers != PADDING) & (numbers <= branch + 1)).sum()) + starts[row]
        return [end - len(rows[row][branch][1]) + place - 1 for place in places]

    return PackedRollouts(batch, order, kept[order], [[places_of(*one) for one in each] for each in read])


def _with_texts(
    rows: list[list[Row]],
    groups: Sequence[Sequence[int]],
    prompts: Sequence[Prompt],
    texts: Sequence[Sequence[Text]],
    shared: bool,
) -> list[list[tuple[int, int, Sequence[int]]]]:
    # Adds to the rows the texts that no branch of their row begins with. Returns, for each rollout and text, its row,
    # its branch there, counted from 0, and its places.
    found: list[list[tuple[int, int, Sequence[int]]]] = [[] for _ in prompts]
    for home, group in enumerate(groups):
        for number in group:
            for ids, places in texts[number]:
                begun = (branch for branch, (_, other) in enumerate(rows[home]) if other[: len(ids)] == ids)
                row, branch = home, next(begun, len(rows[home]))
                if branch == len(rows[home]):
                    if not shared:
                        rows.append([])
                        row, branch = len(rows) - 1, 0
                    rows[row].append((prompts[number], ids))
                found[number].append((row, branch, places))
    return found


def shuffle_groups(batch: dict[str, Any], size: int) -> dict[str, Any]:
    """TRL's shuffle of a generation batch, but of whole groups, so that a training batch can share their prompts.

    Args:
        batch: sequences and tensors with one entry per rollout; single numbers and None pass through.
        size: rollouts of a group, which are adjacent. Where processes split groups, the largest part that every process
            has whole is kept together.
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
    """Group rows for supervised training by clip.

    Args:
        rows: rows with the column `clip_index`.
        tokens: number of tokens of each row, question and target.
        shared: approximate number of tokens that the rows of a clip share.
        no_clip: clip index of rows without a clip. These are grouped up to about the tokens of a packed clip (the
            median), so that the items of a batch have similar sizes; without clips each stays alone.

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
