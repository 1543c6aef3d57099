"""Commands of MME-Emotion: scoring judged files, the whole evaluation, audio clues."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mer_r1.cli.app import AsJson, Think, Wheels, app, eval_app, print_json, progress, say, score_app, thinking_modes
from mer_r1.cli.benchmarks.mme_emotion_view import match_labels, say_estimate, say_result, show, watching
from mer_r1.errors import UserError

if TYPE_CHECKING:
    from mer_r1.benchmarks.mme_emotion.judging.stages import Item, Judging
    from mer_r1.data.clip import Clip
    from mer_r1.evaluation.llm.jobs import Endpoint

NO_JUDGE = "none"
OPENAI = "https://api.openai.com/v1"

Data = Annotated[Path, typer.Option(help="Manifest that `mer-r1 prepare mme-emotion` wrote.")]
BaseUrl = Annotated[str, typer.Option(help="OpenAI-compatible endpoint, usually ending in /v1.")]
Alpha = Annotated[float, typer.Option(help="Weight of recognition in CoT, from 0 to 1.")]
Concurrency = Annotated[int, typer.Option(min=1, help="Requests at a time.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds for one whole reply.")]
Attempts = Annotated[
    int | None, typer.Option(min=1, help="Requests until an item counts as failed; the task's own number otherwise.")
]
FirstWait = Annotated[float, typer.Option(min=0, help="Seconds before the second request; then doubling.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Longest reply, in tokens.")]
KeyVariable = Annotated[str, typer.Option(help="Environment variable with the service's key.")]
PriceIn = Annotated[float | None, typer.Option(min=0, help="Price of a million tokens read, for costs.")]
PriceOut = Annotated[float | None, typer.Option(min=0, help="Price of a million tokens written.")]
Seed = Annotated[int, typer.Option(help="Of sampling and bootstrap.")]


class Stage(StrEnum):
    """The stages of the evaluation, each of which can be run by itself."""

    ALL = "all"
    PREDICT = "predict"
    STEPS = "steps"
    JUDGE = "judge"
    SCORE = "score"


@score_app.command("mme-emotion")
def score_mme(
    judged: Annotated[
        list[Path], typer.Option(help="Judged files (TASK.json or judged.jsonl), or folders with them; repeatable.")
    ],
    more: Annotated[list[Path] | None, typer.Argument(help="Further judged files.")] = None,
    other: Annotated[
        list[Path] | None, typer.Option(help="The same items by another judge: agreement of the two.")
    ] = None,
    judge: Annotated[str | None, typer.Option(help="Whose ratings, where several judges are in one file.")] = None,
    data: Annotated[Path | None, typer.Option(help="Manifest; with it missing items are known.")] = None,
    think: Annotated[Think, typer.Option(help="Which records of a slow-and-fast evaluation.")] = Think.BOTH,
    alpha: Alpha = 0.5,
    categories: Annotated[bool, typer.Option("--categories", help="Show the scores by gold label too.")] = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """MME-Emotion: official and audited scores of judged items."""
    from mer_r1.benchmarks.mme_emotion.judged import first_judgements, read_judged
    from mer_r1.benchmarks.mme_emotion.run import benchmark_clips, expected_ids
    from mer_r1.benchmarks.mme_emotion.scores.agreement import agreement_report
    from mer_r1.benchmarks.mme_emotion.scores.compare import score_report

    items = read_judged([*judged, *(more or [])])
    if think is not Think.BOTH:
        items = [item for item in items if item.mode == think.value]
        if not items:
            raise UserError(f"--think {think.value}: no judged item of that mode")
    expected = expected_ids(benchmark_clips(data)) if data else None
    report = score_report(items, expected, alpha, seed, judge)
    if other:
        runs = {"first judge": first_judgements(items, judge), "other judge": first_judgements(read_judged(other))}
        report["agreement"] = agreement_report(runs, alpha)
    show(report, categories, as_json)


@eval_app.command("mme-emotion")
def eval_mme(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of all records; an interrupted run goes on.")],
    judge: Annotated[str, typer.Option(help='Model that rates; "none" matches labels instead: not the benchmark.')],
    model: Annotated[str | None, typer.Option(help="Model folder or hub name to evaluate.")] = None,
    responses: Annotated[
        list[Path] | None, typer.Option(help="Answers from elsewhere instead: TASK.json in the reference's form.")
    ] = None,
    base_url: BaseUrl = OPENAI,
    think: Annotated[Think, typer.Option(help="Slow, fast, or both.")] = Think.BOTH,
    stage: Annotated[Stage, typer.Option(help="Run this stage only.")] = Stage.ALL,
    extractor: Annotated[str | None, typer.Option(help="Model that extracts the steps; the judge otherwise.")] = None,
    extractor_url: Annotated[str | None, typer.Option(help="Its endpoint; the judge's otherwise.")] = None,
    clues: Annotated[list[Path] | None, typer.Option(help="Audio clues: files of `mer-r1 clues` or others.")] = None,
    judge_audio: Annotated[bool, typer.Option("--judge-audio", help="Send the sound to the judge.")] = False,
    repeat: Annotated[int, typer.Option(min=1, help="How often each item is judged.")] = 1,
    structured: Annotated[bool, typer.Option(help="Ask for JSON where the server can be held to it.")] = True,
    reference_fgsa: Annotated[
        bool, typer.Option("--reference-fgsa", help="FG-SA with the reference's contradicting examples.")
    ] = False,
    image_side: Annotated[int | None, typer.Option(min=32, help="Longest side of the judge's pictures.")] = None,
    judge_temperature: Annotated[float, typer.Option(min=0, max=2, help="Of extractor and judge.")] = 0.0,
    concurrency: Concurrency = 8,
    timeout: Timeout = 120.0,
    attempts: Attempts = None,
    first_wait: FirstWait = 2.0,
    max_tokens: MaxTokens = 2048,
    key_variable: KeyVariable = "OPENAI_API_KEY",
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Only say what is left and what it may take.")] = False,
    alpha: Alpha = 0.5,
    wheels: Wheels = None,
    temperature: Annotated[float, typer.Option(min=0, help="Of the evaluated model; 0 decodes greedily.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer of the evaluated model.")] = 1024,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips at a time.")] = 16,
    seed: Seed = 0,
    device: Annotated[str | None, typer.Option(help="cuda, cpu, ...")] = None,
    as_json: AsJson = False,
) -> None:
    """MME-Emotion: predict, extract steps, judge, score; each stage goes on where it stopped."""
    from mer_r1.benchmarks.mme_emotion import run
    from mer_r1.benchmarks.mme_emotion.judging.audio_clues import read_clues
    from mer_r1.benchmarks.mme_emotion.judging.stages import Judging
    from mer_r1.evaluation.llm.jobs import Endpoint

    if (model is None) == (responses is None) and stage in (Stage.ALL, Stage.PREDICT):
        raise UserError("say what to evaluate: --model MODEL, or --responses FILES with answers from elsewhere")
    clips = run.benchmark_clips(data)
    if model is not None and stage in (Stage.ALL, Stage.PREDICT) and not estimate:
        from mer_r1.model.generation import Sampling

        sampling = Sampling(max_new_tokens, temperature, seed=seed)
        with progress("predict", None, quiet=as_json) as advance:
            run.predict_answers(model, data, out, thinking_modes(think), sampling, batch_size, device, advance)
    if stage is Stage.PREDICT:
        return
    if stage is Stage.SCORE and judge != NO_JUDGE:
        show(run.write_scores(out, clips, alpha, seed, judge), categories=False, as_json=as_json)
        return
    items = _items(responses, clips, out, think, estimate)
    if judge == NO_JUDGE:
        match_labels(out, items, wheels, seed, as_json)
        return
    how = Judging(read_clues(clues) if clues else None, judge_audio, repeat, structured, reference_fgsa, image_side)
    reach = (base_url, key_variable, concurrency, timeout, attempts, first_wait, max_tokens)
    # With a seed, the repetitions of a judgement would be the same reply.
    judge_seed = seed if repeat == 1 else None
    server = Endpoint(*reach, judge_temperature, judge_seed, _prices(price_in, price_out))
    _ask(out, items, how, (extractor or judge, judge), (_at(server, extractor_url), server), stage, estimate, as_json)
    if stage is Stage.ALL and not estimate:
        show(run.write_scores(out, clips, alpha, seed, judge), categories=False, as_json=as_json)


@app.command()
def clues(
    data: Data,
    out: Annotated[Path, typer.Option(help="JSON lines to write; an interrupted run goes on.")],
    model: Annotated[str, typer.Option(help="Model that hears.")],
    base_url: BaseUrl = OPENAI,
    concurrency: Concurrency = 8,
    timeout: Timeout = 120.0,
    attempts: Attempts = None,
    first_wait: FirstWait = 2.0,
    max_tokens: MaxTokens = 512,
    key_variable: KeyVariable = "OPENAI_API_KEY",
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    as_json: AsJson = False,
) -> None:
    """Have a model that hears describe every clip's sound, for judges that do not hear."""
    from mer_r1.benchmarks.mme_emotion import run
    from mer_r1.benchmarks.mme_emotion.judging.stages import clues_ledger, make_clues
    from mer_r1.evaluation.llm.cache import ReplyCache
    from mer_r1.evaluation.llm.jobs import Endpoint

    items = run.clip_items(run.benchmark_clips(data))
    reach = (base_url, key_variable, concurrency, timeout, attempts, first_wait, max_tokens)
    server = Endpoint(*reach, prices=_prices(price_in, price_out))
    with ReplyCache(out.with_suffix(".sqlite")) as cache, watching(server, quiet=as_json) as watch:
        tally = make_clues(items, server.client(model, cache), clues_ledger(out), watch)
    if as_json:
        print_json({"clues": tally.known + tally.done, "failed": tally.failed, "file": str(out)})
    else:
        say(f"{tally.known + tally.done} clues in {out}, {tally.failed} clips without")


def _items(responses: list[Path] | None, clips: "list[Clip]", out: Path, think: Think, estimate: bool) -> "list[Item]":
    """The answers to be judged: from elsewhere, from the first stage, or assumed where only an estimate is wanted."""
    from mer_r1.benchmarks.mme_emotion import run

    if responses:
        return run.given_items(responses, clips)
    if estimate and not (out / run.PREDICTIONS).exists():
        return run.assumed_items(clips, thinking_modes(think))
    return run.answered_items(clips, out, thinking_modes(think))


def _ask(
    out: Path,
    items: "list[Item]",
    how: "Judging",
    names: tuple[str, str],
    servers: "tuple[Endpoint, Endpoint]",
    stage: Stage,
    estimate: bool,
    quiet: bool,
) -> None:
    """The two stages that ask a service, or only what they would take."""
    from mer_r1.benchmarks.mme_emotion import run
    from mer_r1.benchmarks.mme_emotion.judging.stages import extract
    from mer_r1.benchmarks.mme_emotion.judging.stages import judge as rate
    from mer_r1.evaluation.llm.cache import ReplyCache

    with ReplyCache(out / run.REPLIES_FILE) as cache, watching(servers[1], quiet) as watch:
        extractor, judge = (server.client(name, cache) for name, server in zip(names, servers, strict=True))
        if estimate:
            found = run.forecast(items, out, extractor, judge, how)
            if quiet:
                print_json(found)
            for name, entry in found.items():
                say_estimate(name, entry, quiet)
            return
        steps, judged = run.ledgers(out)
        if stage in (Stage.ALL, Stage.STEPS):
            say_result(extract(items, extractor, steps, watch), servers[0], quiet)
        if stage in (Stage.ALL, Stage.JUDGE):
            say_result(rate(items, steps, judge, how, judged, watch), servers[1], quiet)
            run.export_reference(out, judge.name)


def _prices(price_in: float | None, price_out: float | None) -> Any:
    from mer_r1.evaluation.llm.chat import Prices

    if (price_in is None) != (price_out is None):
        raise UserError("--price-in and --price-out: give both or none")
    return None if price_in is None or price_out is None else Prices(price_in, price_out)


def _at(server: "Endpoint", url: str | None) -> "Endpoint":
    from dataclasses import replace

    return server if url is None else replace(server, base_url=url)
