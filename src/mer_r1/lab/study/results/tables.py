"""A study's numbers as Markdown tables, all computed from the study's JSON."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from mer_r1.lab.study.results.claims import HYPOTHESES, by_seed, conclude, decide, estimate_at
from mer_r1.lab.study.results.intervals import Estimate, estimate, paired
from mer_r1.lab.study.runs.variants import STUDIES, VARIANTS, runs_with, titles_of

COST_ROWS = {"steps": "steps", "seconds": "seconds of RL", "completion_tokens": "tokens a rollout"}
COST_ROWS |= {"tokens_read": "tokens read"}
DIAGNOSED = {
    "own": "F1 after its own reasoning",
    "other": "another clip's",
    "exchange": "difference",
    "explained": "share of F1's variance explained",
    "cosine": "cosine with AD",
}
"""Number of `collect.diagnosis` -> its column."""


def tables(data: Mapping[str, Any]) -> list[str]:
    """The Markdown tables of a study, in reading order: scores, the study's own tables, claims."""
    shows, rows = STUDIES[data["study"]].shows, decide(data["study"], data["numbers"])
    blocks = [*([] if shows == "theory" else [_scores(data)]), *(EXTRA[shows](data) if shows in EXTRA else [])]
    return [*blocks, *([_claims(rows)] if rows else [])]


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
    # `names`: "answers/number" -> digits.
    rows = []
    for variant, title in titles_of(data).items():
        for mode in ("slow", "fast"):
            places = ((variant, name.split("/")[0], mode, name.split("/")[1]) for name in names)
            numbers = [estimate_at(data, *place) for place in places]
            rows.append([title, mode, *map(shown, numbers, names.values())])
    return table(head, rows)


def _scores(data: Mapping[str, Any]) -> str:
    names = {"sampled/precision": 3, "sampled/recall": 3, "sampled/f1": 3, "greedy/f1": 3}
    names |= {"sampled/categories": 2, "sampled/well_formed": 3, "sampled/tokens": 1}
    head = ["", "thinking", "precision", "recall", "F1", "F1, greedy", "categories", "well formed", "tokens"]
    return _by_mode(data, head, names)


def _confidences(data: Mapping[str, Any]) -> list[str]:
    head = ["confidence", "thinking", "in correct categories", "in incorrect categories"]
    return [_by_mode(data, head, {"sampled/confidence_correct": 3, "sampled/confidence_incorrect": 3})]


def _bed(data: Mapping[str, Any]) -> list[str]:
    rows = []
    for variant, title in titles_of(data).items():
        cells = []
        for other, mode in (("sft", "slow"), ("ad", "slow"), (variant, "fast")):
            places = ((variant, "sampled", "slow", "f1"), (other, "sampled", mode, "f1"))
            first, second = (by_seed(data["numbers"], place) for place in places)
            cells.append("–" if places[0] == places[1] else shown(paired(first, second), signed=True))
        rows.append([title, *cells])
    differences = table(["F1, paired over seeds", "slow - slow of SFT", "slow - slow of AD", "slow - fast"], rows)
    rows = []
    for _, title, runs in runs_with("diagnosis", data):
        for judged in runs[0]:
            found = [run[judged] for run in runs if judged in run]
            means = (estimate([entry[name] for entry in found]) for name in DIAGNOSED)
            met = f"{fmean(entry['met'] for entry in found):.1f} of {found[0]['conditions']}"
            passed = f"{sum(entry['passed'] for entry in found):.0f} of {len(found)}"
            rows.append([title, VARIANTS[judged].title, *map(shown, means), met, passed])
    head = ["on validation clips", "calibration judged", *DIAGNOSED.values(), "conditions met", "gates passed"]
    return [differences, *([table(head, rows)] if rows else [])]


def _claims(rows: Sequence[Mapping[str, Any]]) -> str:
    # The parts of a hypothesis come below its verdict.
    verdicts, lines, last = conclude(rows), [], ""
    for row in rows:
        if row["hypothesis"] != last:
            last = row["hypothesis"]
            lines.append([f"**{last}: {HYPOTHESES[last]}**", "", "", f"**{verdicts[last]}**"])
        mark = "" if last else "**"
        lines.append([row["claim"], shown(row, signed=True), str(row["n"]), f"{mark}{row['verdict']}{mark}"])
    return table(["claim", "paired difference", "seeds", ""], lines)


def _costs(data: Mapping[str, Any]) -> list[str]:
    variants = titles_of(data)
    rows = [
        [what, *(shown(estimate_at(data, name, "cost", key), 0) for name in variants)]
        for key, what in COST_ROWS.items()
    ]
    return [table(["cost of RL, mean over seeds", *variants.values()], rows)]


def _theory(data: Mapping[str, Any]) -> list[str]:
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
    return [table(head, rows), _gradients(data)]


def _gradients(data: Mapping[str, Any]) -> str:
    pairs = {"recall_precision": "recall, precision", "rd_recall": "RD, recall", "rd_precision": "RD, precision"}
    pairs |= {"ad_recall": "AD, recall", "ad_precision": "AD, precision"}
    rows = []
    for _, title, runs in runs_with("gradients", data):
        cells = []
        for key in pairs:
            measured = estimate([run[f"cos_{key}"] for run in runs])
            predicted = estimate([run.get(f"predicted_{key}") for run in runs])
            cells.append(f"{shown(measured, 2)} ({shown({**predicted, 'low': None}, 2)})")
        rows.append([title, *cells])
    return table(["cosine of gradients: measured (predicted)", *pairs.values()], rows)


def _auto(data: Mapping[str, Any]) -> list[str]:
    rows = []
    for variant, title in titles_of(data).items():
        for how in ("fast", "slow", "auto", "oracle"):
            f1, tokens, share = (estimate_at(data, variant, "auto", how, key) for key in ("f1", "tokens", "share"))
            thought = shown(share, 2) if how in ("auto", "oracle") else "–"
            rows.append([title, how, shown(f1), shown(tokens, 1), thought])
    return [table(["", "thinking", "F1, greedy", "generated tokens", "thinks slowly"], rows)]


EXTRA: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "bed": _bed,
    "paradox": _confidences,
    "costs": _costs,
    "theory": _theory,
    "auto": _auto,
}
"""`Study.shows` -> the study's own tables, after the scores."""
