r"""Does adaptive thinking pay? F1 over tokens for fast, slow, auto and oracle, and what bounds auto.

Run: python perf/adaptive_thinking.py --val runs/val_0 runs/val_1 --test runs/test_0 runs/test_1

Each folder holds the records of one policy in both modes (`mer-r1 evaluate --think both`, with `--num-answers` for
sampled answers); the folders of --test are of the same policies in the same order. Without --test, only the validation
clips are looked at.

The analysis, written down before any test clip was asked (three policies, greedy and sampled answers):

1. Validation clips choose, per policy, the score of the gate (confidence, margin, evenness, lead) by the highest lift:
   the mean height of the curve of F1 over a random choice of as many clips. They also give the threshold, the one that
   spends a third of slow thinking's mean tokens.
2. Tried on validation clips only, for comparison: a logistic regression of "slow scores higher" on the same features,
   and the agreement of two fast answers (sampled ones), which costs the tokens of the second.
3. Test clips answer once: F1 and tokens of fast, slow, auto, the oracle (the better of both per answer), a random
   choice of as many clips as auto reasons about, and, for sampled answers, "again": a second fast answer in place of
   the reasoning on the clips that auto reasons about. The last is the control. A gate that finds unlucky samples gains
   by any new sample; reasoning helps only as far as auto is above it.
4. The question: is (auto - fast) at least half of (slow - fast), at no more than a third of slow's tokens? Intervals
   are 95 % bootstrap intervals over clips, paired.
5. The bound: correlation and AUC of the score with the gain of a single answer, the spread of the expected gain over
   clips (covariance of the gains of two halves of the draws), and what the best share of clips by the gains of one half
   is worth on the other half: a gate that knows that clip's expected gain, but not the luck of the answer.

The curve at other budgets (--shares) was added after the test clips had answered; nothing is chosen by it.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mer_r1.evaluation.answerers.thinking_gate import Both, Gate, both_tokens, candidates, features, pairs
from mer_r1.evaluation.intervals import bootstrap, interval_text
from mer_r1.evaluation.records import RECORDS_FILE, Record, read_records

Array = NDArray[np.float64]
Row = tuple[str, float]
"""Clip and a number of one of its answers."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--val", type=Path, nargs="+", required=True, help="folders of records, one per policy")
    parser.add_argument("--test", type=Path, nargs="*", default=[], help="the same policies' records of test clips")
    parser.add_argument("--share", type=float, default=1 / 3, help="budget, as a share of slow thinking's tokens")
    parser.add_argument(
        "--shares", type=float, nargs="*", default=[0.2, 0.25, 0.3, 0.5, 0.75, 1.0], help="further ones"
    )
    args = parser.parse_args()
    validation = [read_records(folder / RECORDS_FILE) for folder in args.val]
    gates = []
    for folder, records in zip(args.val, validation, strict=True):
        print(f"\nvalidation, {folder}: {len({record.id for record in records})} clips")
        gates.append(choose(records, args.share))
    print("\nvalidation, all policies (the thresholds were chosen on these clips)")
    compare([(gate, pairs(records)) for gate, records in zip(gates, validation, strict=True)], same_clips=True)
    if args.test:
        print("\ntest, all policies")
        test = [pairs(read_records(folder / RECORDS_FILE)) for folder in args.test]
        for gate, both in zip(gates, test, strict=True):
            told(gate, both)
        compare(list(zip(gates, test, strict=True)), same_clips=False)
        for share in args.shares:
            budget(share, list(zip(gates, validation, test, strict=True)))


def choose(records: Sequence[Record], share: float) -> Gate:
    """The gate of one policy, with the threshold of the budget; prints every attempt."""
    both = pairs(records)
    found = candidates(records, {"split": "val"})
    for one in found:
        lift = interval_text(one.lift, 4, signed=True)
        print(f"  {one.gate.score:<12} correlation {one.correlation:+.3f}, AUC {one.auc:.3f}, lift {lift}")
    gain = np.asarray([f1(slow) - f1(fast) for fast, slow in both])
    others = {"logistic": logistic(both, gain)}
    if (agreement := agreements(both)) is not None:
        others["agreement"] = agreement
    for name, score in others.items():
        order = np.argsort(np.argsort(score, kind="stable"))
        lift = interval_text(bootstrap(gain * (0.5 - (order + 0.5) / len(gain))), 4, signed=True)
        print(f"  {name:<12} correlation {-np.corrcoef(score, gain)[0, 1]:+.3f}, lift {lift}")
    slow_tokens = float(np.mean([slow.tokens for _, slow in both]))
    return found[0].gate.within(share * slow_tokens)


def told(gate: Gate, both: Sequence[Both]) -> None:
    gain = np.asarray([f1(slow) - f1(fast) for fast, slow in both])
    score = np.asarray([max(gate.score_of(fast), -1e3) for fast, _ in both])
    print(f"  {gate.score}, threshold {gate.threshold:.4f}: rank correlation {-ranked(score, gain):+.3f} with the gain")


def budget(share: float, runs: Sequence[tuple[Gate, Sequence[Record], Sequence[Both]]]) -> None:
    """One line of the curve: the gates with the thresholds of another budget."""
    scores: list[Row] = []
    gains: list[Row] = []
    spent: list[float] = []
    for policy, (gate, records, both) in enumerate(runs):
        slow_tokens = float(np.mean([slow.tokens for _, slow in pairs(records)]))
        there = gate.within(share * slow_tokens)
        for fast, slow in both:
            own = f1(slow) if there.reasons(fast) else f1(fast)
            scores.append((f"{policy} {fast.id}", own))
            gains.append((f"{policy} {fast.id}", own - f1(fast)))
            spent.append(both_tokens(fast, slow) if there.reasons(fast) else fast.tokens)
    reached = [interval_text(bootstrap(by_clip(rows)), 4, signed=rows is gains) for rows in (scores, gains)]
    print(f"  budget {share:.2f} of slow's: F1 {reached[0]}  tokens {np.mean(spent):5.1f}  auto - fast {reached[1]}")


def compare(runs: Sequence[tuple[Gate, Sequence[Both]]], same_clips: bool) -> None:
    """Rows of F1 and tokens per way of thinking, the paired differences, and the bound; means over the policies."""
    arms: dict[str, tuple[list[Row], list[Row]]] = {}

    def add(name: str, clip: str, score: float, tokens: float) -> None:
        scores, spent = arms.setdefault(name, ([], []))
        scores.append((clip, score))
        spent.append((clip, tokens))

    for policy, (gate, both) in enumerate(runs):
        share = float(np.mean([gate.reasons(fast) for fast, _ in both]))
        again = seconds(both)
        for fast, slow in both:
            clip, thinks, cost = fast.id if same_clips else f"{policy} {fast.id}", gate.reasons(fast), fast.tokens
            full = both_tokens(fast, slow)
            add("fast", clip, f1(fast), cost)
            add("slow", clip, f1(slow), slow.tokens)
            add("auto", clip, f1(slow) if thinks else f1(fast), full if thinks else cost)
            mixed = f1(fast) + share * (f1(slow) - f1(fast))
            add("random", clip, mixed, cost + share * (full - cost))
            add("oracle", clip, max(f1(fast), f1(slow)), full if f1(slow) > f1(fast) else cost)
            if (other := again.get((fast.id, fast.draw))) is not None:
                add("again", clip, f1(other) if thinks else f1(fast), cost + other.tokens * thinks)
    for name, (scores, spent) in arms.items():
        tokens = np.mean([number for _, number in spent])
        print(f"  {name:<8} F1 {interval_text(bootstrap(by_clip(scores)), 4)}  tokens {tokens:5.1f}")
    slow_gain, auto_gain = (difference(arms[name][0], arms["fast"][0]) for name in ("slow", "auto"))
    rows = {"slow - fast": slow_gain, "auto - fast": auto_gain, "(auto - fast) - (slow - fast)/2": auto_gain}
    rows["(auto - fast) - (slow - fast)/2"] = [
        (clip, auto - slow / 2) for (clip, auto), (_, slow) in zip(auto_gain, slow_gain, strict=True)
    ]
    rows |= {
        f"auto - {name}": difference(arms["auto"][0], arms[name][0]) for name in ("random", "again") if name in arms
    }
    for name, row in rows.items():
        print(f"  {name:<32} {interval_text(bootstrap(by_clip(row)), 4, signed=True)}")
    tokens = {name: float(np.mean([number for _, number in spent])) for name, (_, spent) in arms.items()}
    print(f"  tokens of auto: {tokens['auto'] / tokens['slow']:.2f} of slow's")
    bound(runs, float(np.mean([gate.reasons(fast) for gate, both in runs for fast, _ in both])))


def bound(runs: Sequence[tuple[Gate, Sequence[Both]]], share: float) -> None:
    """What limits a gate that knows a clip's expected gain; needs at least two draws."""
    halves: tuple[list[float], list[float]] = ([], [])
    for _, both in runs:
        gains: dict[str, list[float]] = {}
        for fast, slow in both:
            gains.setdefault(fast.id, []).append(f1(slow) - f1(fast))
        for values in gains.values():
            if len(values) > 1:
                for side in (0, 1):
                    halves[side].append(float(np.mean(values[side::2])))
    first, second = map(np.asarray, halves)
    if not len(first):
        return
    together = (first - first.mean()) * (second - second.mean())
    variance = f"covariance {interval_text(bootstrap(together), 4, signed=True)}, variance {first.var():.4f}"
    count = max(round(share * len(first)), 1)
    worth = [float(b[np.argsort(-a)[:count]].sum() / len(b)) for a, b in ((first, second), (second, first))]
    print(f"  gains of two halves of the draws: {variance} of one half")
    print(f"  the best {share:.0%} of the clips by the gains of one half are worth {np.mean(worth):+.4f} on the other")


def logistic(both: Sequence[Both], gain: Array, folds: int = 5, penalty: float = 30.0) -> Array:
    """Minus the left-out log-odds that slow scores higher, (N,), by Newton's method on the features of the gate."""
    table = np.asarray([[x or 0.0 for x in features(fast).values()] for fast, _ in both])
    table = (table - table.mean(axis=0)) / np.maximum(table.std(axis=0), 1e-9)
    design = np.column_stack([np.ones(len(table)), table])
    number = {clip: place for place, clip in enumerate(dict.fromkeys(fast.id for fast, _ in both))}
    fold = np.asarray([number[fast.id] % folds for fast, _ in both])
    shrink = np.diag([0.0, *[penalty] * table.shape[1]])
    odds = np.zeros(len(table))
    for here in (fold == place for place in range(folds)):
        weights = np.zeros(design.shape[1])
        for _ in range(20):
            chance = 1 / (1 + np.exp(-design[~here] @ weights))
            slope = design[~here].T @ ((gain[~here] > 0) - chance) - shrink @ weights
            bend = (design[~here] * (chance * (1 - chance))[:, None]).T @ design[~here] + shrink
            weights += np.linalg.solve(bend, slope)
        odds[here] = design[here] @ weights
    return -odds


def agreements(both: Sequence[Both]) -> Array | None:
    """Overlap of the categories of a fast answer and of the clip's next draw, (N,); None with single draws."""
    again = seconds(both)
    if len(again) < len(both):
        return None
    return np.asarray([overlap(fast, again[fast.id, fast.draw]) for fast, _ in both])


def overlap(one: Record, other: Record) -> float:
    """Common categories by all that either names, mean over the wheels on which one names any."""
    sides = [(set(one.categories[wheel]), set(other.categories.get(wheel, ()))) for wheel in one.categories]
    found = [len(a & b) / len(a | b) for a, b in sides if a | b]
    return float(np.mean(found)) if found else 0.0


def seconds(both: Sequence[Both]) -> dict[tuple[str, int], Record]:
    """Clip and draw -> the fast answer of its next draw, where there are several."""
    draws: dict[str, list[Record]] = {}
    for fast, _ in both:
        draws.setdefault(fast.id, []).append(fast)
    groups = [group for group in draws.values() if len(group) > 1]
    return {(fast.id, fast.draw): other for g in groups for fast, other in zip(g, [*g[1:], g[0]], strict=True)}


def difference(one: Sequence[Row], other: Sequence[Row]) -> list[Row]:
    return [(clip, a - b) for (clip, a), (_, b) in zip(one, other, strict=True)]


def by_clip(rows: Sequence[Row]) -> list[float]:
    """Mean of each clip's numbers."""
    found: dict[str, list[float]] = {}
    for clip, number in rows:
        found.setdefault(clip, []).append(number)
    return [float(np.mean(numbers)) for numbers in found.values()]


def ranked(one: Array, other: Array) -> float:
    """Spearman's rank correlation; ties in order of appearance."""
    ranks = [np.argsort(np.argsort(values, kind="stable"), kind="stable") for values in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


def f1(record: Record) -> float:
    return record.scores["f1"] if record.scores else math.nan


if __name__ == "__main__":
    main()
