"""Ask a model about a user's own clips, both answers of a clip together, and keep the records so that a rerun resumes.

`ask_clips` is behind `mer-r1 predict` and the page; it takes any `ClipModel`. Every record says what its clip lacks: no
picture, no sound (`Media.notes`), no words, or words that a machine wrote down.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any

from mer_r1.data.claim import claim, item_keys, media_digest
from mer_r1.data.clip import Clip
from mer_r1.data.inputs import cues_of
from mer_r1.data.jsonl import append_line, object_of, read_lines, repair_end
from mer_r1.data.media.container import MediaLimits
from mer_r1.data.media.read import media_seconds
from mer_r1.data.media.speech import Section, Told, Transcriber, equal_sections, speech_sections
from mer_r1.data.subtitles import Cue, words_within
from mer_r1.emotions.thinking import ThinkingMode
from mer_r1.errors import UserError, printable
from mer_r1.evaluation.answerers.base import ClipModel, ask_groups
from mer_r1.evaluation.answerers.thinking_gate import Gate
from mer_r1.evaluation.records import FORMAT, Record, append_record, is_news, kept_records

NO_WORDS = "no words"
"""Note of a record whose clip has no subtitle."""
BY_MACHINE = "words by {}, not checked"
"""Note of a record whose words a machine wrote down."""
_ADVICE = "choose another file for --out, or ask anew with --overwrite"


@dataclass(frozen=True)
class Asked:
    """A clip to ask about.

    Attributes:
        clip: the clip; of a recording, a section of it.
        words_by: the program that wrote its words down; "" if they were given, or there are none.
    """

    clip: Clip
    words_by: str = ""

    @property
    def notes(self) -> list[str]:
        """What every record of it has to say beside the notes of the media layer: what is not there, whose words."""
        told = [] if self.clip.video else ["no picture"] if self.clip.audio else ["no picture", "no sound"]
        told += [BY_MACHINE.format(self.words_by)] if self.words_by else []
        return told if self.clip.subtitle.strip() else [*told, NO_WORDS]


@dataclass(frozen=True)
class Answered:
    """A clip with its records: slow and fast as they were asked, or the one that adaptive thinking chose."""

    asked: Asked
    records: tuple[Record, ...]

    @property
    def clip(self) -> Clip:
        """The clip."""
        return self.asked.clip

    @property
    def error(self) -> str | None:
        """Why it has no answer; None if it has one."""
        return next((record.error for record in self.records if record.error is not None), None)


def with_words(
    clips: Sequence[Clip],
    seconds: float,
    transcriber: Transcriber | None = None,
    kept: Path | None = None,
    told: Callable[[int], object] | None = None,
) -> list[Asked]:
    """The clips with their words: given, else of a subtitle file beside them, else by a machine.

    Args:
        clips: clips or sections.
        seconds: length of the part that a model hears of a clip.
        transcriber: writes words down where there are none; None leaves them out.
        kept: file of transcripts, JSON lines; what is in it by the same program is not written down again.
        told: called with the number of clips that are done, one by one.
    """
    known = _transcripts(kept) if kept else {}
    cues: dict[tuple[Path | None, Path | None], list[Cue]] = {}
    found = []
    for clip in clips:
        asked = Asked(clip)
        if not clip.subtitle.strip():
            files = (clip.video, clip.audio)
            said = cues.setdefault(files, cues_of(clip) if files not in cues else [])
            first, last = clip.section or (0.0, seconds)
            words = words_within(said, first, last)
            asked = Asked(replace(clip, subtitle=words))
            if transcriber and not said:
                asked = _heard(clip, seconds, transcriber, known, kept)
        found.append(asked)
        if told:
            told(1)
    return found


def _heard(
    clip: Clip, seconds: float, transcriber: Transcriber, known: dict[tuple[str, ...], str], kept: Path | None
) -> Asked:
    key = (clip.id, media_digest(clip.video, clip.audio), transcriber.name)
    if key not in known:
        known[key] = transcriber.words_of(clip, MediaLimits(max_seconds=seconds))
        if kept:
            row = {"id": clip.id, "words": known[key], "by": transcriber.name, "media": key[1], "section": clip.section}
            kept.parent.mkdir(parents=True, exist_ok=True)
            with kept.open("a", encoding="utf-8") as file:
                append_line(file, json.dumps(row, ensure_ascii=False))
    return Asked(replace(clip, subtitle=known[key]), transcriber.name if known[key] else "")


def _transcripts(path: Path) -> dict[tuple[str, ...], str]:
    """Clip id, digest of its media and program -> words."""
    if not path.exists():
        return {}
    rows = list(read_lines(path, object_of))
    repair_end(path, object_of)
    keys = ("id", "media", "by")
    return {tuple(str(row.get(key)) for key in keys): str(row["words"]) for row in rows if "words" in row}


def sections_of(clip: Clip, how: str, longest: float, told: Told | None = None) -> list[Clip]:
    """The utterances of a recording, as clips of their own.

    Args:
        clip: the recording, without words of its own.
        how: "vad" (where somebody talks), "subtitles" (the cues of the file beside it, each with its words), or a
            number of seconds.
        longest: seconds of the longest utterance for "vad".
        told: progress of "vad".

    Raises:
        UserError: a wrong `how`, no subtitle file, or a file that cannot be read.
    """
    path = clip.audio or clip.video
    if path is None:
        raise UserError(f"{printable(clip.id)}: no file that could be divided")
    if clip.subtitle.strip():
        raise UserError(
            f"{printable(clip.id)}: its words belong to no single utterance; expected an .srt or .vtt file beside it, "
            "or --transcribe"
        )
    sections: list[tuple[Section, str]]
    if how == "subtitles":
        cues, total = cues_of(clip), media_seconds(path)
        if not cues:
            raise UserError(f"{printable(path)}: no .srt or .vtt file beside it; expected one for --segment subtitles")
        sections = [((cue.start, min(cue.end, total)), cue.text) for cue in cues if cue.start < min(cue.end, total)]
    elif how == "vad":
        sections = [(span, "") for span in speech_sections(path, longest, told)]
    else:
        sections = [(span, "") for span in equal_sections(path, seconds_of(how))]
    if not sections:
        raise UserError(f"{printable(path)}: no speech was found in it; expected some, or --segment SECONDS")
    return [
        replace(clip, id=f"{clip.id}#{start:.2f}-{end:.2f}", subtitle=words, section=(start, end))
        for (start, end), words in sections
    ]


def seconds_of(how: str, others: str = "vad, subtitles") -> float:
    """Read a number of seconds.

    Raises:
        UserError: it is none; `others` are the words that would do as well.
    """
    try:
        seconds = float(how)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds < 1e6:
        raise UserError(f"--segment: got {printable(how)!r:.60}, expected {others} or a number of seconds")
    return seconds


def ask_clips(
    model: ClipModel,
    asked: Sequence[Asked],
    modes: Sequence[ThinkingMode],
    *,
    gate: Gate | None = None,
    records: Path | None = None,
    facts: Mapping[str, Any] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Iterator[Answered]:
    """Ask about clips, batch by batch; each clip comes with all its answers.

    Args:
        model: a checkpoint, a served model, or vLLM (`answerers`).
        asked: clips and where their words are from, from `with_words`.
        modes: slow, fast or both; not looked at with a gate.
        gate: which fast answers are followed by reasoning; one of the two is kept (`adaptive`). None asks in `modes`.
        records: file of records; what it holds of the same model, settings and clips is not asked again.
        facts: what decides the answers besides the model's settings, such as the wheels' title.
        progress: called with the number of clips that are done.

    Raises:
        UserError: `records` is of another model, other settings or changed clips, or the model cannot be asked.
    """
    notes = {one.clip.id: one.notes for one in asked}
    known: list[Record] = []
    items = {one.clip.id: "" for one in asked}
    if records is not None:
        items = item_keys([one.clip for one in asked])
        how = None if gate is None else {"threshold": gate.threshold, "weights": gate.weights, "offset": gate.offset}
        _claim(records, {**model.settings, "thinking": how, **(facts or {})})
        known = kept_records(records, items)
    found = {(record.id, record.mode): record for record in known}
    answer = partial(starmap, model.answer)

    def ask(clips: Sequence[Clip], modes: Sequence[ThinkingMode]) -> None:
        keys = [(clip.id, mode.value) for clip in clips for mode in modes]
        states = {key: found[key].error for key in keys if key in found}
        for record in ask_groups([clips], modes, states, answer, items):
            new = replace(record, notes=[*record.notes, *notes[record.id]])
            if records is not None and is_news(new, states):
                with records.open("a", encoding="utf-8") as file:
                    append_record(file, new)
            found[new.id, new.mode] = new

    for start in range(0, len(asked), model.batch_size):
        group = asked[start : start + model.batch_size]
        clips = [one.clip for one in group]
        if gate is None:
            ask(clips, modes)
            answers = [[found[clip.id, mode.value] for mode in modes] for clip in clips]
        else:
            answers = _adaptive(clips, gate, found, ask)
        yield from (Answered(one, tuple(given)) for one, given in zip(group, answers, strict=True))
        if progress:
            progress(len(group))


def _adaptive(
    clips: Sequence[Clip],
    gate: Gate,
    found: Mapping[tuple[str, str], Record],
    ask: Callable[[Sequence[Clip], Sequence[ThinkingMode]], None],
) -> list[list[Record]]:
    from mer_r1.evaluation.answerers.adaptive import choose_by_gate

    ask(clips, [ThinkingMode.FAST])
    fast = [found[clip.id, ThinkingMode.FAST.value] for clip in clips]
    ask(
        [c for c, r in zip(clips, fast, strict=True) if r.error is None and gate.reasons(r)],
        [ThinkingMode.SLOW],
    )
    slow = [found[key] for clip in clips if (key := (clip.id, ThinkingMode.SLOW.value)) in found]
    return [[record] for record in choose_by_gate([*fast, *slow], gate)]


def _claim(records: Path, settings: Mapping[str, Any]) -> None:
    records.parent.mkdir(parents=True, exist_ok=True)
    facts = {"format": FORMAT, **settings}
    claim(records.parent, facts, [records.name], name=f"{records.name}.claim.json", advice=_ADVICE)
