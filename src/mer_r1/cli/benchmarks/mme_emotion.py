"""Commands of MME-Emotion: scores of judged files, the whole evaluation, audio clues."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mer_r1.cli.app import (
    AsJson,
    Wheels,
    app,
    eval_app,
    leave,
    print_json,
    progress,
    say,
    say_notes,
    score_app,
    thinking_modes,
)
from mer_r1.cli.benchmarks.engines import Engine, Patient
from mer_r1.cli.benchmarks.mme_emotion_view import match_labels, say_estimate, say_result, show, watching
from mer_r1.cli.options import (
    OPENAI_KEY,
    BatchSize,
    Device,
    ExtraBody,
    KeyVariable,
    Limits,
    MaxNewTokens,
    Overwrite,
    PricesOption,
    Requests,
    Temperature,
    Think,
    ThinkOption,
    parse_fields,
    parse_prices,
)
from mer_r1.data.claim import clear
from mer_r1.data.clip import Clip
from mer_r1.errors import UserError
from mer_r1.evaluation.llm.cache import ReplyCache
from mer_r1.evaluation.llm.chat import Decoding

if TYPE_CHECKING:
    from mer_r1.benchmarks.mme_emotion.judging.stages import Item, Judging
    from mer_r1.evaluation.llm.client import Client
    from mer_r1.evaluation.llm.jobs import Tally

NO_JUDGE = "none"
OPENAI = "https://api.openai.com/v1"

Manifest = Annotated[Path, typer.Option(help="Manifest written by `mer-r1 prepare mme-emotion`.")]
CotWeight = Annotated[float, typer.Option(help="Weight of recognition in the chain-of-thought score, from 0 to 1.")]
Seed = Annotated[int, typer.Option(help="Random seed for sampling and bootstrap.")]


@dataclass(frozen=True)
class Service(Requests):
    """Options of a service that is asked item by item."""

    attempts: Annotated[
        int | None, typer.Option(min=1, help="Requests per item; the task's own number by default.")
    ] = None
    first_wait: Annotated[float, typer.Option(min=0, help="Seconds before the second request; then doubling.")] = 2.0
    key_variable: KeyVariable = OPENAI_KEY
    prices: PricesOption = None
    extra_body: ExtraBody = None

    def served(
        self, name: str, url: str, cache: ReplyCache, max_tokens: int, temperature: float = 0.0, seed: int | None = 0
    ) -> "Client":
        """Client of a served model; like the reference, it waits 2 s before the second attempt."""
        from mer_r1.evaluation.llm.responses import Retries

        extra = parse_fields("--extra-body", self.extra_body)
        decoding = Decoding(temperature, seed, max_tokens, extra_body=extra)
        client = self.client(name, url, decoding, cache, self.key_variable)
        retries = Retries(self.attempts, self.first_wait, longest_wait=30.0)
        return replace(client, retries=retries, prices=parse_prices(self.prices))


@dataclass(frozen=True)
class Judge:
    """Options of the judge, and of the model that extracts steps for it."""

    judge: Annotated[str, typer.Option(help='Model that judges; "none" matches labels instead: not the benchmark.')]
    judge_url: Annotated[str, typer.Option(help="OpenAI-compatible server of the judge (.../v1).")] = OPENAI
    reader: Annotated[str | None, typer.Option(help="Model that extracts the steps; the judge by default.")] = None
    reader_url: Annotated[str | None, typer.Option(help="Server of the reader; the judge's by default.")] = None
    clues: Annotated[list[Path] | None, typer.Option(help="Audio clues: files of `mer-r1 clues` or others.")] = None
    judge_audio: Annotated[bool, typer.Option("--judge-audio", help="Send the audio to the judge.")] = False
    judge_temperature: Annotated[float, typer.Option(min=0, max=2, help="Temperature of judge and reader.")] = 0.0
    judge_max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply of judge and reader.")] = 2048
    repeat: Annotated[int, typer.Option(min=1, help="Judgements per item.")] = 1
    structured: Annotated[bool, typer.Option(help="Ask for JSON if the server can enforce a schema.")] = True
    reference_fgsa: Annotated[bool, typer.Option("--reference-fgsa", help="FG-SA with the reference's examples.")] = (
        False
    )
    image_side: Annotated[int | None, typer.Option(min=32, help="Longest side of images, in pixels.")] = None

    def judging(self) -> "Judging":
        """Describe what the judge gets."""
        from mer_r1.benchmarks.mme_emotion.judging.audio_clues import read_clues
        from mer_r1.benchmarks.mme_emotion.judging.stages import Judging

        clues = read_clues(self.clues) if self.clues else None
        return Judging(clues, self.judge_audio, self.repeat, self.structured, self.reference_fgsa, self.image_side)

    def clients(self, service: Service, seed: int, cache: ReplyCache) -> "tuple[Client, Client]":
        """Clients of reader and judge."""
        # With a seed, repeated judgements would be the same reply.
        how = (cache, self.judge_max_new_tokens, self.judge_temperature, seed if self.repeat == 1 else None)
        reader = service.served(self.reader or self.judge, self.reader_url or self.judge_url, *how)
        return reader, service.served(self.judge, self.judge_url, *how)


@dataclass(frozen=True, kw_only=True)
class Answers(Engine):
    """Options of the evaluated answers: a model run here or behind a server, or files."""

    model: Annotated[
        str | None, typer.Option(help="Model folder or hub name to evaluate; with --model-url, its name there.")
    ] = None
    model_key_variable: Annotated[str, typer.Option(help="Environment variable with the API key of --model-url.")] = (
        OPENAI_KEY
    )
    predictions: Annotated[
        list[Path] | None, typer.Option(help="Answers instead: TASK.json in the reference's form.")
    ] = None
    temperature: Temperature = 0.0
    max_new_tokens: MaxNewTokens = 1024
    batch_size: BatchSize = 16
    device: Device = None


Stage = Literal["all", "predict", "steps", "judge", "score"]


@score_app.command("mme-emotion")
def score_mme(
    predictions: Annotated[
        list[Path], typer.Option(help="Judged files (TASK.json, judged.jsonl) or folders; repeatable.")
    ],
    more: Annotated[list[Path] | None, typer.Argument(help="Further judged files.")] = None,
    other: Annotated[list[Path] | None, typer.Option(help="The same items by another judge, for agreement.")] = None,
    judge: Annotated[str | None, typer.Option(help="Judge to score if a file holds several.")] = None,
    manifest: Annotated[Path | None, typer.Option(help="Manifest, to find missing items.")] = None,
    think: Annotated[Think, typer.Option(help="Mode of the records to score.")] = "both",
    cot_weight: CotWeight = 0.5,
    categories: Annotated[bool, typer.Option("--categories", help="Show the scores per gold label too.")] = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Score judged items of MME-Emotion: official and audited."""
    from mer_r1.benchmarks.mme_emotion.judged import first_judgements, read_judged
    from mer_r1.benchmarks.mme_emotion.run import benchmark_clips, expected_ids
    from mer_r1.benchmarks.mme_emotion.scores.agreement import agreement_report
    from mer_r1.benchmarks.mme_emotion.scores.compare import score_report

    items = read_judged([*predictions, *(more or [])])
    if think != "both":
        items = [item for item in items if item.mode == think]
        if not items:
            raise UserError(f"--think {think}: no judged item of that mode")
    expected = expected_ids(benchmark_clips(manifest)) if manifest else None
    report = score_report(items, expected, cot_weight, seed, judge)
    files = ", ".join(map(str, (*predictions, *(more or ()))))
    report["source"] = {"predictions": files, "manifest": str(manifest) if manifest else None}
    if other:
        runs = {"first judge": first_judgements(items, judge), "other judge": first_judgements(read_judged(other))}
        report["agreement"] = agreement_report(runs, cot_weight)
    show(report, categories, as_json)


@eval_app.command("mme-emotion")
def eval_mme(
    manifest: Manifest,
    out: Annotated[Path, typer.Option(help="Output folder of all records; rerun to resume.")],
    answers: Answers,
    limits: Limits,
    judging: Judge,
    service: Service,
    think: ThinkOption = "both",
    stage: Annotated[Stage, typer.Option(help="Run only this stage.")] = "all",
    estimate: Annotated[bool, typer.Option("--estimate", help="Only estimate what is left.")] = False,
    cot_weight: CotWeight = 0.5,
    wheels: Wheels = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate on MME-Emotion: predict, extract steps, judge, score. Rerun to resume any stage.

    Exit status 1 if an item was not judged, 3 if none was.
    """
    from mer_r1.benchmarks.mme_emotion import run

    judge = judging.judge
    if (answers.model is None) == (answers.predictions is None) and stage in ("all", "predict"):
        raise UserError("give what to evaluate: --model MODEL, or --predictions FILES with answers from elsewhere")
    clips = run.benchmark_clips(manifest)
    if overwrite:
        _clear(out, run.RESULTS, stage, estimate)
    if answers.model is not None and stage in ("all", "predict") and not estimate:
        _predict(answers, limits.given, manifest, out, think, seed, service, as_json)
    if stage == "predict":
        return
    if stage == "score" and judge != NO_JUDGE:
        report = run.write_scores(out, clips, cot_weight, seed, judge, manifest=manifest)
        show(report, categories=False, as_json=as_json)
        leave(report["overall"]["count"], int(report["overall"]["count"] == 0))
    items = _items(answers.predictions, clips, out, think, estimate)
    if judge == NO_JUDGE:
        match_labels(out, items, wheels, seed, run.source_of(out, clips, manifest), as_json)
        return
    tally = _ask(out, items, judging, service, seed, stage, estimate, as_json)
    if stage == "all" and not estimate:
        report = run.write_scores(out, clips, cot_weight, seed, judge, items, manifest)
        show(report, categories=False, as_json=as_json)
    if tally is not None:
        leave(tally.known + tally.done, tally.failed)


@app.command()
def clues(
    manifest: Manifest,
    out: Annotated[Path, typer.Option(help="JSON lines to write; rerun to resume.")],
    model: Annotated[str, typer.Option(help="Served model that hears.")],
    service: Service,
    model_url: Annotated[str, typer.Option(help="OpenAI-compatible server of the model (.../v1).")] = OPENAI,
    max_new_tokens: MaxNewTokens = 512,
    as_json: AsJson = False,
) -> None:
    """Describe every clip's audio by a model that hears, for judges that do not (MME-Emotion)."""
    from mer_r1.benchmarks.mme_emotion import run
    from mer_r1.benchmarks.mme_emotion.judging.stages import clues_ledger, make_clues

    items, prices = run.clip_items(run.benchmark_clips(manifest)), parse_prices(service.prices)
    with ReplyCache(out.with_suffix(".sqlite")) as cache, watching(prices, quiet=as_json) as watch:
        client = service.served(model, model_url, cache, max_new_tokens)
        tally = make_clues(items, client, clues_ledger(out), watch)
    if as_json:
        print_json({"clues": tally.known + tally.done, "failed": tally.failed, "file": str(out)})
    else:
        say(f"{tally.known + tally.done} clues in {out}, {tally.failed} clips without")
    leave(tally.known + tally.done, tally.failed)


def _clear(out: Path, results: Sequence[str], stage: Stage, estimate: bool) -> None:
    if estimate or stage not in ("all", "predict"):
        raise UserError("--overwrite goes with --stage all or predict: it deletes everything that was asked")
    clear(out, results)


def _predict(
    answers: Answers,
    limits: dict[str, Any],
    manifest: Path,
    out: Path,
    think: Think,
    seed: int,
    service: Service,
    quiet: bool,
) -> None:
    """Run the first stage: answers of the evaluated model."""
    from mer_r1.benchmarks.mme_emotion.run import REPLIES_FILE, notes_of, predict_answers, question_of
    from mer_r1.emotions.wheels import load
    from mer_r1.model.generation import Sampling

    sampling, modes = Sampling(answers.max_new_tokens, answers.temperature, seed=seed), thinking_modes(think)
    how: dict[str, Any] = {"batch_size": answers.batch_size, "device": answers.device, "limits": limits}
    how["processes"] = answers.processes
    with ExitStack() as stack:
        advance = stack.enter_context(progress("predict", None, quiet=quiet))
        if not answers.is_torch:
            decoding = Decoding(answers.temperature, seed, answers.max_new_tokens)
            cache = stack.enter_context(ReplyCache(out / REPLIES_FILE))
            asking = (decoding, limits, Patient(service.concurrency), cache, answers.model_key_variable)
            how["asked"] = answers.other_model(str(answers.model), load(), *asking, answers.batch_size, question_of)
        predict_answers(str(answers.model), manifest, out, modes, sampling, progress=advance, **how)
    if not quiet:
        say_notes(notes_of(out))


def _items(predictions: list[Path] | None, clips: list[Clip], out: Path, think: Think, estimate: bool) -> "list[Item]":
    """Collect the answers to judge: from files, from the first stage, or assumed for an estimate."""
    from mer_r1.benchmarks.mme_emotion import run

    if predictions:
        return run.given_items(predictions, clips)
    if estimate and not (out / run.PREDICTIONS).exists():
        return run.assumed_items(clips, thinking_modes(think))
    return run.answered_items(clips, out, thinking_modes(think))


def _ask(
    out: Path,
    items: "list[Item]",
    judging: Judge,
    service: Service,
    seed: int,
    stage: Stage,
    estimate: bool,
    quiet: bool,
) -> "Tally | None":
    """Run the two stages that ask a service, or only estimate them; returns what the last one did."""
    from mer_r1.benchmarks.mme_emotion import run
    from mer_r1.benchmarks.mme_emotion.judging.stages import extract
    from mer_r1.benchmarks.mme_emotion.judging.stages import judge as rate

    how, prices = judging.judging(), parse_prices(service.prices)
    with ReplyCache(out / run.REPLIES_FILE) as cache, watching(prices, quiet) as watch:
        extractor, judge = judging.clients(service, seed, cache)
        if estimate:
            found = run.forecast(items, out, extractor, judge, how)
            if quiet:
                print_json(found)
            for name, entry in found.items():
                say_estimate(name, entry, quiet)
            return None
        tally = None
        steps, judged = run.ledgers(out)
        if stage in ("all", "steps"):
            say_result(tally := extract(items, extractor, steps, watch), prices, quiet)
        if stage in ("all", "judge"):
            say_result(tally := rate(items, steps, judge, how, judged, watch), prices, quiet)
            run.export_reference(out, judge.name)
        return tally
