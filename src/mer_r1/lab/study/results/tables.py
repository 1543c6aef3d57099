"""A study's numbers as Markdown tables, all computed from the study's JSON."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from mer_r1.lab.study.results.claims import decide, estimate_at
from mer_r1.lab.study.results.intervals import Estimate, estimate
from mer_r1.lab.study.runs.variants import STUDIES, runs_with, split_of, titles_of

COST_ROWS = {
    "steps": "steps",
    "seconds": "seconds of RL",
    "seconds_sampling": "sampling",
    "seconds_scoring": "scoring",
    "seconds_training": "training",
    "completion_tokens": "tokens a rollout",
    "tokens_read": "tokens read",
}


def tables(data: Mapping[str, Any]) -> list[str]:
    """The Markdown tables of a study, in reading order: scores, the study's own table, claims."""
    study = data["study"]
    shows = STUDIES[study].shows
    blocks = [] if shows in UNSCORED else [_scores(data)]
    if shows in EXTRA:
        blocks.append(EXTRA[shows](data))
    if claims := decide(study, data["numbers"], split_of(data)):
        rows = [[row["claim"], shown(row, signed=True), str(row["n"]), f"**{row['verdict']}**"] for row in claims]
        blocks.append(table(["claim", "paired difference", "seeds", ""], rows))
    return blocks


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(number: Mapping[str, Any] | Estimate, digits: int = 3, signed: bool = False) -> str:
    """A mean with its interval.

    >>> shown({"mean": 0.5, "low": 0.4, "high": 0.6, "n": 8})
    '0.500 [0.400, 0.600]'
    """
    if number["mean"] is None:
        return "–"
    style = f"{'+' if signed else ''}.{digits}f"
    text = format(number["mean"], style)
    return text if number["low"] is None else f"{text} [{number['low']:{style}}, {number['high']:{style}}]"


def _by_mode(data: Mapping[str, Any], head: Sequence[str], names: Mapping[str, int]) -> str:
    split = split_of(data)
    rows = [
        [title, mode, *(shown(estimate_at(data, variant, split, mode, name), digits) for name, digits in names.items())]
        for variant, title in titles_of(data).items()
        for mode in ("slow", "fast")
    ]
    return table(head, rows)


def _scores(data: Mapping[str, Any], head: str = "") -> str:
    names = {"precision": 3, "recall": 3, "f1": 3, "categories": 2, "well_formed": 3, "tokens": 1}
    return _by_mode(data, [head, "thinking", "precision", "recall", "F1", "categories", "well formed", "tokens"], names)


def _confidences(data: Mapping[str, Any]) -> str:
    head = ["confidence", "thinking", "in correct categories", "in incorrect categories"]
    return _by_mode(data, head, {"confidence_correct": 3, "confidence_incorrect": 3})


def _alphas(data: Mapping[str, Any]) -> str:
    # Only seeds that every alpha has, so that no alpha is favoured by an easy seed.
    seeds = set.intersection(*(set(found) for found in data["numbers"].values()))
    numbers = {name: {seed: found[seed] for seed in sorted(seeds)} for name, found in data["numbers"].items()}
    notes = {"ad": " (no calibration)", "mer-r1": " (the recipe's alpha)"}
    titles = {name: title + notes.get(name, "") for name, title in titles_of(data).items()}
    return _scores({**data, "numbers": numbers, "titles": titles}, head=f"seeds {', '.join(sorted(seeds))}")


def _costs(data: Mapping[str, Any]) -> str:
    variants = titles_of(data)
    rows = [
        [what, *(shown(estimate_at(data, name, "cost", key), 0) for name in variants)]
        for key, what in COST_ROWS.items()
    ]
    return table(["cost of RL, mean over seeds", *variants.values()], rows)


def _theory(data: Mapping[str, Any]) -> str:
    names: tuple[str, ...] = ("sigma_recall", "sigma_precision", "rho")
    names += ("predicted_recall", "measured_recall", "predicted_precision", "measured_precision")
    head = ["over all of training", "σ recall", "σ precision", "ρ", "weight of recall: predicted", "measured"]
    head += ["weight of precision: predicted", "measured"]
    rows = []
    for variant, title, runs in runs_with("theory", data):
        # Normalising before the sum (AD) predicts weights of 1, whatever the standard deviations.
        means = {name: estimate([fmean(run[name]) for run in runs]) for name in names}
        first = variant in ("ad", "mer-r1")
        cells = ["1" if first and name.startswith("predicted") else shown(means[name]) for name in names]
        rows.append([title, *cells])
    return "\n\n".join([table(head, rows), _gradients(data)])


def _gradients(data: Mapping[str, Any]) -> str:
    pairs = {"recall_precision": "recall, precision", "rd_recall": "RD, recall", "rd_precision": "RD, precision"}
    pairs |= {"ad_recall": "AD, recall", "ad_precision": "AD, precision"}
    rows = []
    for _, title, runs in runs_with("gradients", data):
        for place in range(len(runs[0])):
            entries = [run[place] for run in runs]
            when = "end" if entries[0]["step"] is None else f"step {entries[0]['step']}"
            cells = []
            for key in pairs:
                measured = estimate([entry[f"cos_{key}"] for entry in entries])
                predicted = estimate([entry.get(f"predicted_{key}") for entry in entries])
                cells.append(f"{shown(measured, 2)} ({shown({**predicted, 'low': None}, 2)})")
            rows.append([f"{title}, {when}", *cells])
    return table(["cosine of gradients: measured (predicted)", *pairs.values()], rows)


def _auto(data: Mapping[str, Any]) -> str:
    rows = []
    for variant, title in titles_of(data).items():
        for how in ("fast", "slow", "auto", "oracle"):
            f1, tokens, share = (estimate_at(data, variant, "auto", how, key) for key in ("f1", "tokens", "share"))
            thought = shown(share, 2) if how in ("auto", "oracle") else "–"
            rows.append([title, how, shown(f1), shown(tokens, 1), thought])
    return table(["", "thinking", "F1", "generated tokens", "thinks slowly"], rows)


EXTRA: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "paradox": _confidences,
    "alphas": _alphas,
    "costs": _costs,
    "theory": _theory,
    "auto": _auto,
}
"""`Study.shows` -> the study's own table, after the scores."""
UNSCORED = ("alphas", "theory")
"""Values of `Study.shows` without the table of scores."""
