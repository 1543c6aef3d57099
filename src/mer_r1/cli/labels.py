"""Commands about labels in texts: extraction through a language model, and the two tables that scoring rests on."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from mer_r1.cli.app import AsJson, Wheels, app, print_json, progress, say, score_app
from mer_r1.errors import UserError

EXAMPLE_URL = "https://api.openai.com/v1"


class ExtractKind(StrEnum):
    """What is wanted of each text."""

    LABELS = "labels"
    SENTIMENT = "sentiment"


class SentimentSource(StrEnum):
    """Who turns labels into a sentiment."""

    LLM = "llm"
    RULES = "rules"


class SamplingChoice(StrEnum):
    """How a language model decodes: reproducibly, or as the reference samples."""

    GREEDY = "greedy"
    REFERENCE = "reference"


class ReplyChoice(StrEnum):
    """Which replies are taken: usable ones, or all as in the reference."""

    CHECKED = "checked"
    REFERENCE = "reference"


class OneMode(StrEnum):
    """Which of two modes in one file."""

    SLOW = "slow"
    FAST = "fast"


@app.command()
def extract(
    predictions: Annotated[
        Path, typer.Option(help="JSON lines (id, completion), JSON: name -> text, or the reference's .npz.")
    ],
    out: Annotated[
        Path, typer.Option(help="JSON lines with labels; with the ending .json: name -> label string, for `score`.")
    ],
    llm: Annotated[
        str | None, typer.Option(help="Reader of texts without an <answer>: the model's name, or a local folder.")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible endpoint, e.g. http://localhost:8000/v1.")
    ] = None,
    kind: Annotated[ExtractKind, typer.Option(help="Labels only, or their sentiment too.")] = ExtractKind.LABELS,
    sentiment: Annotated[
        SentimentSource, typer.Option(help="Sentiment by the language model or by the wheels.")
    ] = SentimentSource.LLM,
    think: Annotated[OneMode | None, typer.Option(help="Rows of this mode only.")] = None,
    sampling: Annotated[
        SamplingChoice, typer.Option(help="Temperature 0 and a seed, or the reference's unseeded sampling.")
    ] = SamplingChoice.GREEDY,
    replies: Annotated[
        ReplyChoice, typer.Option(help="Refuse unusable replies, or take every reply as the reference does.")
    ] = ReplyChoice.CHECKED,
    cache: Annotated[
        Path | None, typer.Option(help="SQLite file of replies; llm-replies.sqlite beside --out if not given.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 8,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one reply.")] = 120.0,
    key_variable: Annotated[str, typer.Option(help="Environment variable with the service's key.")] = "OPENAI_API_KEY",
    prices: Annotated[
        str | None, typer.Option(help="Price per million tokens read,written (e.g. 0.15,0.6): shows the cost.")
    ] = None,
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle",
            help="Read an .npz, whose entries are pickles: a pickle can name code to run; only plain containers, "
            "numbers, texts and arrays are admitted, anything else is refused.",
        ),
    ] = False,
    wheels: Wheels = None,
    as_json: AsJson = False,
) -> None:
    """Labels of predictions: the words of their <answer>, else read by a language model. Run again to go on."""
    from mer_r1.emotions.wheels import load
    from mer_r1.evaluation.labels.files import label_rows, read_predictions, sentiment_rows, summarise, write_rows
    from mer_r1.evaluation.llm.cache import ReplyCache
    from mer_r1.evaluation.llm.chat import REFERENCE_SAMPLING, Decoding

    rows = read_predictions(predictions, allow_pickle)
    rows = [row for row in rows if think is None or row.get("mode") == think.value]
    if not rows:
        raise UserError(f"{predictions}: no rows of mode {think}")
    costs = _prices(prices)
    decoding = REFERENCE_SAMPLING if sampling is SamplingChoice.REFERENCE else Decoding()
    checked, taxonomy = replies is ReplyChoice.CHECKED, load(wheels)
    with ReplyCache(cache or out.with_name("llm-replies.sqlite")) as kept:
        model = _model(llm, base_url, decoding, kept, concurrency, timeout, key_variable)
        with progress("texts read", None, quiet=as_json) as advance:
            rows = label_rows(rows, model, taxonomy, checked, lambda index, reply: advance(1))
        if kind is ExtractKind.SENTIMENT:
            with progress("sentiments", len(rows), quiet=as_json) as advance:
                rows = sentiment_rows(rows, sentiment.value, model, taxonomy, checked, lambda index, reply: advance(1))
    write_rows(out, rows, "openset" if kind is ExtractKind.LABELS else "sentiment")
    summary = {"out": str(out), **summarise(rows), "usage": _usage(model, costs)}
    _show(summary, rows, as_json)
    raise typer.Exit(1 if summary["errors"] or summary["without_completion"] else 0)


@score_app.command("list-parse")
def list_parse(
    pred: Annotated[Path, typer.Option(help="JSON: a list of label strings, or name -> label string.")],
    as_json: AsJson = False,
) -> None:
    """How label strings are taken apart into labels (the reference's rule)."""
    from mer_r1.evaluation.labels.replies import list_parse_row

    _table(pred, list_parse_row, as_json)


@score_app.command("llm-reply")
def llm_reply(
    pred: Annotated[Path, typer.Option(help="JSON: a list of replies, or name -> reply.")], as_json: AsJson = False
) -> None:
    """How a language model's replies are cleaned (the reference's rule)."""
    from mer_r1.evaluation.labels.replies import llm_reply_row

    _table(pred, llm_reply_row, as_json)


def _model(
    llm: str | None,
    base_url: str | None,
    decoding: Any,
    cache: Any,
    concurrency: int,
    timeout: float,
    key_variable: str,
) -> Any:
    """The client, the local model, or None where none was named."""
    if llm is None:
        if base_url is not None:
            raise UserError("--base-url says where; say with --llm which model to ask there")
        return None
    if base_url is not None:
        from mer_r1.evaluation.llm.client import Client

        return Client(llm, base_url, decoding, cache, concurrency, timeout, key_variable=key_variable)
    if not Path(llm).is_dir():
        raise UserError(
            f"--llm {llm}: no such folder; for a model behind an endpoint give --base-url ({EXAMPLE_URL} ...)"
        )
    from mer_r1.evaluation.llm.local import LocalModel

    return LocalModel(llm, decoding, cache)


def _prices(text: str | None) -> Any:
    from mer_r1.evaluation.llm.chat import Prices

    if text is None:
        return None
    try:
        read, written = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"--prices: expected two numbers such as 0.15,0.6, got {text!r}") from error
    return Prices(read, written)


def _usage(model: Any, prices: Any) -> dict[str, Any]:
    from dataclasses import asdict

    usage = getattr(model, "usage", None)
    if usage is None:
        return {}
    return asdict(usage) | ({} if prices is None else {"cost": usage.cost(prices)})


def _show(summary: dict[str, Any], rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        failed = {row["id"]: row["error"] for row in rows if row.get("error") is not None}
        print_json({**summary, "failed": failed})
        return
    for row in rows:
        if row.get("error") is not None:
            say(f"{row['id']}: {row['error']}", style="red")
    usage = summary["usage"]
    say(f"{summary['out']}: {summary['rows']} rows")
    for name in ("labels", "sentiments"):
        if summary[name]:
            say(f"{name}: " + ", ".join(f"{count} from {source}" for source, count in summary[name].items()))
    say(f"doubtful {summary['doubtful']}, errors {summary['errors']}, no completion {summary['without_completion']}")
    if usage:
        spent = f", cost {usage['cost']:.4f}" if "cost" in usage else ""
        say(
            f"asked {usage['asked']}, known already {usage['cached']}, without reply {usage['failed']}; "
            f"{usage['prompt_tokens']} tokens read, {usage['completion_tokens']} written{spent}"
        )


def _table(path: Path, row_of: Any, as_json: bool) -> None:
    """Apply `row_of` to each entry of a JSON file: a list, an object, or rows in the reference's own form (`in`)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, list | dict):
        raise UserError(f"{path}: expected a list, or an object name -> value, got {type(content).__name__}")
    entries = content.items() if isinstance(content, dict) else enumerate(content)
    found = {}
    for name, entry in entries:
        try:
            found[name] = row_of(entry["in"] if isinstance(entry, dict) and "in" in entry else entry)
        except UserError as error:
            raise UserError(f"{path}, entry {name!r}: {error}") from error
    if as_json:
        print_json(found if isinstance(content, dict) else list(found.values()))
    else:
        for name, row in found.items():
            say(f"{name}: {row['in']!r} -> {row['out']!r}")
