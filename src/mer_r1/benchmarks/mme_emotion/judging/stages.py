"""The stages that ask language models: extract steps, rate them, and describe audio.

Failures follow the reference: an answer whose extraction failed is judged with the text `Error: ...` for steps, and an
item that cannot be judged has the score null. Both are retried in the next run.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mer_r1.benchmarks.mme_emotion.judging import prompts
from mer_r1.benchmarks.mme_emotion.judging.audio_clues import Clues, find_clue
from mer_r1.benchmarks.mme_emotion.judging.evidence import MAX_FRAMES, judge_frames, judge_sound
from mer_r1.benchmarks.mme_emotion.scores.audit import ERROR_STEP
from mer_r1.benchmarks.mme_emotion.scores.official import score_field
from mer_r1.benchmarks.mme_emotion.tasks import TASKS
from mer_r1.data.claim import media_digest
from mer_r1.errors import UserError
from mer_r1.evaluation.llm.chat import ChatPrompt, Reply, image_part, sound_part
from mer_r1.evaluation.llm.client import Client
from mer_r1.evaluation.llm.jobs import Job, Tally, Watch, run
from mer_r1.evaluation.llm.ledger import Ledger, Row
from mer_r1.evaluation.llm.reading import only_value

STEPS_VERSION, JUDGE_VERSION, CLUES_VERSION = "mme-steps-1", "mme-judge-1", "mme-clues-1"

_STEP_KEY = re.compile(r"step\W*\d+", re.IGNORECASE)
_RATING = re.compile(r"\s*([0-9]{1,3})\s*/\s*([0-9]{1,3})\s*")


@dataclass(frozen=True)
class Item:
    """One answer on its way through the stages.

    Attributes:
        id: id of its clip, as `video_id` in the reference's files.
        mode: "slow", "fast" or "given".
        gold: gold label or labels, as text.
        response: the model's answer; None if it is missing.
        problem: why it is missing.
        step: steps given with the answer, so that none are extracted.
        audio: file with the audio, if it is not the video's own.
        candidates: labels offered by the question.
        notes: what was not read of the clip, or looks odd (`Record.notes`).
    """

    task: str
    id: str
    mode: str
    gold: str
    response: str | None = None
    problem: str | None = None
    step: str | None = None
    video: Path | None = None
    audio: Path | None = None
    candidates: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str, str]:
        """Mode, task and id."""
        return (self.mode, self.task, self.id)


@dataclass(frozen=True)
class Judging:
    """How items are judged.

    Attributes:
        clues: descriptions of each clip's audio (see `audio_clues`); None judges without. With clues, an item without
            one is not judged, as in the reference.
        audio: send the audio itself, too.
        repeat: number of judgements per item.
        structured: ask for JSON where the server supports a schema.
        contradictory: FG-SA with the reference's two contradicting examples.
        max_side: longest side of the frames in pixels; None keeps their size.
    """

    clues: Clues | None = None
    audio: bool = False
    repeat: int = 1
    structured: bool = True
    contradictory: bool = False
    max_side: int | None = None


def steps_ledger(path: Path) -> Ledger:
    """Ledger of step extraction."""
    return Ledger(path, lambda row: (row["mode"], row["task"], row["video_id"]))


def judged_ledger(path: Path) -> Ledger:
    """Ledger of judging; one file may hold several judges and repetitions."""
    return Ledger(path, lambda row: (row["mode"], row["task"], row["video_id"], row["judge"], row["repeat"]))


def clues_ledger(path: Path) -> Ledger:
    """Ledger of audio clues."""
    return Ledger(path, lambda row: (row["task"], row["video_id"]))


def extract(items: Sequence[Item], client: Client, ledger: Ledger, watch: Watch | None = None) -> Tally:
    """Cut the answers into steps, except of items without an answer or with given steps."""
    return run("steps", extraction_jobs(items), client, STEPS_VERSION, ledger, _read_steps, watch)


def extraction_jobs(items: Sequence[Item]) -> list[Job]:
    """Jobs of step extraction."""
    return [_extraction(item) for item in items if item.response is not None and item.step is None]


def _read_steps(_: Job, reply: Reply) -> Row:
    return {"step": reply.final if reply.problem is None else f"{ERROR_STEP}{reply.problem}"}


def _extraction(item: Item) -> Job:
    text = prompts.extraction_prompt(TASKS[item.task], item.response or "")
    messages = ({"role": "system", "content": prompts.EXTRACTOR_SYSTEM}, {"role": "user", "content": text})
    prompt = ChatPrompt(messages, attempts=TASKS[item.task].extractor_tries)
    return Job(item.key, _base(item), text, lambda: prompt, about=STEPS_VERSION)


def judge(
    items: Sequence[Item], steps: Ledger, client: Client, how: Judging, ledger: Ledger, watch: Watch | None = None
) -> Tally:
    """Rate the steps of every item, `how.repeat` times.

    An item that cannot be judged (no answer, no steps yet, no audio clue, no frames) gets a row with the score null and
    the reason.
    """
    jobs = judge_jobs(items, steps, client.name, how)
    return run("judge", jobs, client, JUDGE_VERSION, ledger, _read_score, watch)


def judge_jobs(items: Sequence[Item], steps: Ledger, judge_name: str, how: Judging) -> list[Job]:
    """Jobs of judging; the repetitions of an item follow each other."""
    jobs = []
    for item in items:
        parts = _Parts(item, how)
        step, problem = _step_of(item, steps, how)
        jobs += [_judgement(item, step, problem, parts, judge_name, repeat, how) for repeat in range(how.repeat)]
    return jobs


def _step_of(item: Item, steps: Ledger, how: Judging) -> tuple[str, str | None]:
    """The steps to rate, and why they cannot be rated; the answer stands in for steps not extracted yet."""
    problem = None
    if item.step is not None:
        step = item.step
    elif item.response is None:
        return "", f"no answer: {item.problem or 'it is not there'}"
    elif (row := steps.rows.get(item.key)) is not None:
        step = row["step"]
    else:
        step, problem = item.response, "its steps are not extracted yet"
    if how.clues is not None and find_clue(how.clues, item.task, item.id) is None:
        problem = "no audio clue of this clip among the clues"
    return step, problem


def _judgement(
    item: Item, step: str, problem: str | None, parts: "_Parts", judge_name: str, repeat: int, how: Judging
) -> Job:
    task = TASKS[item.task]
    clue = None if how.clues is None else find_clue(how.clues, item.task, item.id)
    text = prompts.judge_prompt(
        task, item.gold, step, clue, structured=how.structured, audio=how.audio, contradictory=how.contradictory
    )

    def build() -> ChatPrompt:
        if problem is not None:
            raise UserError(problem)
        content = [{"type": "text", "text": text}, *parts.made()]
        messages = ({"role": "system", "content": prompts.JUDGE_SYSTEM}, {"role": "user", "content": content})
        return ChatPrompt(messages, prompts.ratings_schema() if how.structured else None, repeat, task.judge_tries)

    row = _base(item) | {"step": step, "score": None, "reply": None, "judge": judge_name, "repeat": repeat}
    media = media_digest(item.video, item.audio if how.audio else None)
    about = f"{JUDGE_VERSION} {media} {how.max_side} {how.audio}"
    return Job((*item.key, judge_name, repeat), row, text, build, MAX_FRAMES, about)


class _Parts:
    """Frames and audio of one item, made once for its repetitions and freed after the last."""

    def __init__(self, item: Item, how: Judging) -> None:
        self._item, self._how = item, how
        self._left, self._parts = how.repeat, list[dict[str, Any]]()

    def made(self) -> list[dict[str, Any]]:
        item = self._item
        if not self._parts:
            if item.video is None:
                raise UserError("no video, and the judge needs frames")
            self._parts = [image_part(jpeg) for jpeg in judge_frames(item.video, max_side=self._how.max_side)]
            if self._how.audio:
                self._parts.append(sound_part(judge_sound(item.video, item.audio)))
        parts = self._parts
        self._left -= 1
        if not self._left:
            self._parts = []
        return parts


def _read_score(job: Job, reply: Reply) -> Row:
    if reply.problem is not None:
        return {"score": None, "reply": reply.text}
    score = score_text(reply.final)
    read = score_field(score, TASKS[job.row["task"]].fraction) is not None
    return {"score": score, "reply": reply.text, "error": None if read else f"no ratings in {reply.final!r:.80}"}


def score_text(text: str) -> str:
    """A judge's reply as the parsers expect it: JSON or a list of ratings becomes the score form, the rest stays.

    >>> score_text('Here: {"ratings": ["1/1", 0]}')
    '<score>Step 1: 1/1, Step 2: 0/1</score>'
    >>> score_text("I cannot rate this.")
    'I cannot rate this.'
    """
    ratings = None if "<score>" in text else only_value(text, _ratings)
    if ratings is None:
        return text
    return f"<score>{', '.join(f'Step {number}: {rating}' for number, rating in enumerate(ratings, start=1))}</score>"


def _ratings(value: Any, _: str) -> list[str] | None:
    """Ratings "a/b" in a list, in the only list of an object, or under its steps; a bare 1 or 0 is 1/1 or 0/1."""
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list)]
        by_step = all(map(_STEP_KEY.fullmatch, value))
        value = lists[0] if len(lists) == 1 else list(value.values()) if by_step else None
    matches = [_RATING.fullmatch(_rating(item)) for item in value] if isinstance(value, list) else []
    return [f"{match[1]}/{match[2]}" for match in matches if match] or None if all(matches) else None


def _rating(item: Any) -> str:
    if isinstance(item, dict):
        item = item.get("rating", item.get("score"))
    return f"{int(item)}/1" if isinstance(item, int | float) and item in (0, 1) else str(item)


def make_clues(items: Sequence[Item], client: Client, ledger: Ledger, watch: Watch | None = None) -> Tally:
    """Have an audio-capable model describe the audio of each clip, once for all modes.

    The ledger gets rows with `task`, `video_id` and `audio_clue`, null without audio or without a reply.
    """
    jobs = list({(item.task, item.id): _clue(item) for item in items}.values())
    return run("clues", jobs, client, CLUES_VERSION, ledger, _read_clue, watch)


def _read_clue(_: Job, reply: Reply) -> Row:
    return {"audio_clue": reply.final if reply.problem is None else None}


def _clue(item: Item) -> Job:
    def build() -> ChatPrompt:
        content = [{"type": "text", "text": prompts.CLUE_PROMPT}, sound_part(judge_sound(item.video, item.audio))]
        return ChatPrompt(({"role": "system", "content": prompts.CLUE_SYSTEM}, {"role": "user", "content": content}))

    row = {"task": item.task, "video_id": item.id, "audio_clue": None}
    about = f"{CLUES_VERSION} {media_digest(item.video, item.audio)}"
    return Job((item.task, item.id), row, prompts.CLUE_PROMPT, build, about=about)


def _base(item: Item) -> Row:
    return {
        "video_id": item.id,
        "task": item.task,
        "mode": item.mode,
        "ground_truth": item.gold,
        "model_response": item.response,
    }
