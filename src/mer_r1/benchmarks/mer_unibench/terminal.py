"""The report on a terminal: the scores, what the official ones hide, and remarks."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mer_r1.benchmarks.mer_unibench.report import SLOW_MINUS_FAST
from mer_r1.benchmarks.mer_unibench.sets import NINE, SETS
from mer_r1.benchmarks.mer_unibench.tables import source_text
from mer_r1.evaluation.intervals import interval_text, known_mean, number_text

if TYPE_CHECKING:
    from rich.table import Table

WORDS_SHOWN = 3
WORD_HEADS = ("P", "R", "F1", "spread", "all", "skipped", "known")
REPLY_HEADS = ("neutral", "silent", "forgiving", "three", "always")


def scores_table(report: Mapping[str, Any]) -> "Table":
    """Set by set and mode by mode: official number, audited number with its interval, and the difference."""
    table = _table("MER-UniBench (percent)", ("clips", "official", "audited [95 %]"))
    for entry in report["sets"].values():
        for mode, parts in entry["modes"].items():
            official = parts.get("official", {})
            audited = parts.get("audited")
            clips = str(entry["n_gold"]) if audited is None else str(audited["score"]["n"])
            score = "" if audited is None else _interval(audited["score"])
            table.add_row(_text(entry["title"]), _text(mode), clips, _percent(official.get("main")), score)
        for name, gap in entry["differences"].items():
            table.add_row(_text(entry["title"]), _text(name), str(gap["n"]), "", _interval(gap, signed=True))
    table.add_section()
    for mode, row in report["mean"].items():
        official = _percent(row["official"]["mean"]) if "official" in row else ""
        audited = _interval(row["audited"], signed=mode == SLOW_MINUS_FAST) if "audited" in row else ""
        table.add_row(_text("mean of nine"), _text(mode), "", official, audited)
    table.caption = _text(source_text(report))
    return table


def hidden_tables(report: Mapping[str, Any]) -> Iterator["Table"]:
    """What the official numbers hide: one table for sets of words, one for sets of sentiments."""
    words = _table("What the numbers hide about words", WORD_HEADS)
    replies = _table("What the numbers hide about sentiments", REPLY_HEADS)
    words.caption = (
        "percent, means over the wheels. spread: categories predicted / in the gold. all: score of an answer that "
        "names every gold word of the set. skipped: clips not scored. known: gold / predicted words on the wheels"
    )
    replies.caption = (
        "percent. neutral: gold that is not scored. silent: replies that count as negative without saying so. "
        "forgiving: replies read in any case. three: accuracy with neutral as a class. always: a constant reply"
    )
    for entry in report["sets"].values():
        for mode, parts in entry["modes"].items():
            audited = parts.get("audited")
            if audited is None:
                continue
            names = (_text(entry["title"]), _text(mode))
            if entry["kind"] == "sentiment":
                replies.add_row(*names, *_reply_cells(audited))
            else:
                words.add_row(*names, *_word_cells(audited))
    for table in (words, replies):
        if table.row_count:
            yield table


def remarks(report: Mapping[str, Any]) -> Iterator[str]:
    """Remarks on the numbers, one line each."""
    sets = report["sets"]
    if report["wheels"] != "official":
        yield "scored on the built-in wheels: not comparable with published numbers (--wheels names the official ones)"
    if report["matching"] != "wheels":
        yield f"audited precision, recall and F1 compare words by {report['matching']}; all other scores by the wheels"
    if report["missing"]:
        yield f"no mean of nine; not scored: {', '.join(SETS[name].title for name in report['missing'])}"
    for name, entry in sets.items():
        if name not in NINE:
            yield f"{entry['title']} is not one of the nine sets and enters no mean"
    yield from _joined(
        "not the benchmark's clips, so not comparable with published numbers",
        (f"{e['title']} {e['n_gold']} of {e['n_expected']}" for e in sets.values() if e["n_gold"] != e["n_expected"]),
    )
    yield from _joined("best of several checkpoints on the test set (audited: the last one)", _chosen(sets))
    for entry in sets.values():
        yield from (f"{entry['title']}: {note}" for note in entry["notes"])
        for mode, parts in entry["modes"].items():
            for line in _mode_remarks(parts):
                yield f"{entry['title']} {mode}: {line}"
        yield from _word_remarks(entry)


def _joined(what: str, parts: Iterable[str]) -> Iterator[str]:
    """One line for remarks of the same kind, if there are any."""
    listed = "; ".join(parts)
    if listed:
        yield f"{what}: {listed}"


def _chosen(sets: Mapping[str, Any]) -> Iterator[str]:
    for entry in sets.values():
        for mode, parts in entry["modes"].items():
            official = parts.get("official", {})
            if len(official.get("checkpoints", {})) > 1:
                yield f"{entry['title']} {mode}: {official['checkpoint']} of {len(official['checkpoints'])}"


def _mode_remarks(parts: Mapping[str, Any]) -> Iterator[str]:
    official, audited = parts.get("official", {}), parts.get("audited")
    if "error" in official:
        yield f"no official number: {official['error']}"
    if audited is None:
        return
    yield from audited["guards"]
    if audited["n_missing"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in audited["missing"]["reasons"].items())
        score = _percent(audited["score_missing_wrong"])
        yield f"{audited['n_missing']} clips without an answer ({reasons}); {score} with all of them wrong"
    if audited["n_unread"]:
        yield f"{audited['n_unread']} answers hold no list of words and count as empty; `mer-r1 extract` reads them"
    if audited["n_not_in_gold"]:
        yield f"{audited['n_not_in_gold']} predictions are of clips without gold"


def _word_remarks(entry: Mapping[str, Any]) -> Iterator[str]:
    """Which gold words keep clips from being scored, and which predicted words land in a foreign sector."""
    audits = [parts["audited"] for parts in entry["modes"].values() if "skipped" in parts.get("audited", {})]
    if not audits:
        return
    skipped = audits[0]["skipped"].values()
    words: Counter[str] = Counter()
    for wheel in skipped:
        words |= Counter(wheel["words"])  # the largest count over the wheels
    if words:
        counts = ", ".join(str(wheel["n"]) for wheel in skipped)
        listed = ", ".join(f"{word} {count}" for word, count in words.most_common(WORDS_SHOWN))
        yield f"{entry['title']}: clips that wheel 1, 2, ... cannot score: {counts}; their gold words: {listed}"
    strays: Counter[str] = Counter()
    wheels: dict[str, list[str]] = {}
    for audit in audits:
        for wheel_name, wheel in audit["strays"].items():
            for word in wheel["predicted"]["words"]:
                move = f"{word['word']} into {word['placed'] or 'nowhere'}"
                strays[move] += word["n"]
                wheels.setdefault(move, []).append(wheel_name)
    if strays:
        moves = (f"{move} ({', '.join(dict.fromkeys(wheels[move]))})" for move, _ in strays.most_common(WORDS_SHOWN))
        yield f"{entry['title']}: predicted words that leave their own sector: {', '.join(moves)}"


def _word_cells(audited: Mapping[str, Any]) -> list[str]:
    coverage, categories = audited["coverage"].values(), audited["categories"]
    unified = [_percent(audited["unified"][name]["mean"], digits=1) for name in ("precision", "recall", "f1")]
    spread = f"{number_text(categories['predicted'], 1)}/{number_text(categories['gold'], 1)}"
    known = [_percent(known_mean([entry[side] for entry in coverage]), digits=0) for side in ("gold", "predicted")]
    skipped = [entry["n"] / audited["n"] if audited["n"] else None for entry in audited["skipped"].values()]
    return [
        *unified,
        spread,
        _percent(audited["everything"]["score"], digits=1),
        _percent(known_mean(skipped), digits=0),
        "/".join(known),
    ]


def _reply_cells(audited: Mapping[str, Any]) -> list[str]:
    scored, constant = audited["score"]["n"], audited["constant"]
    silent = audited["as_negative"]["n"] / scored if scored else None
    neutral = audited["n_gold_neutral"] / audited["n"] if audited["n"] else None
    always = f"+{_percent(constant['positive'], digits=0)} −{_percent(constant['negative'], digits=0)}"
    return [*map(_percent, (neutral, silent, audited["forgiving"], audited["accuracy_three"])), always]


def _table(title: str, heads: tuple[str, ...]) -> "Table":
    from rich.table import Table

    table = Table("set", "mode", title=title)
    for head in heads:
        table.add_column(head, justify="right")
    return table


def _text(value: str) -> Any:
    from rich.text import Text

    return Text(value)  # names may look like markup


def _percent(value: float | None, digits: int = 2) -> str:
    return number_text(value, digits, scale=100)


def _interval(figure: Mapping[str, Any], signed: bool = False) -> str:
    return interval_text(figure, 2, signed, scale=100)
