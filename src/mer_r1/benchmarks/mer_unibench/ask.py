"""Ask a model about every clip of every set; resumable with the same result as an uninterrupted run.

Batches are cut at fixed places, and each record is on disk as soon as it is made. An interrupted batch is asked again
as a whole, and only its missing records are kept. So padding and sampling see the same batch composition, and the
result is the same. Clips that failed are retried in every run.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mer_r1.benchmarks.mer_unibench.sets import SETS
from mer_r1.data.clip import Clip
from mer_r1.data.media.read import read_media
from mer_r1.emotions.thinking import ThinkingMode
from mer_r1.errors import UserError
from mer_r1.evaluation.answerers.base import ClipModel
from mer_r1.evaluation.llm.jobs import Tally, Watch
from mer_r1.evaluation.records import RECORDS_FILE, Record, append_record, done_keys, read_records

Key = tuple[str, str]
"""Clip id and mode."""


def collect(
    model: ClipModel,
    sets: Mapping[str, Sequence[Clip]],
    modes: Sequence[ThinkingMode],
    out: Path,
    watch: Watch | None = None,
    partly: bool = False,
) -> Tally:
    """Ask about every clip that has no answer yet in some mode.

    With `partly`, a clip with unreadable files is asked about by the readable ones and its subtitle; its record says
    so. `watch` is called with the progress, before each set and after each answer.

    Raises:
        UserError: asking is pointless, or a file of records is damaged; answers so far are kept.
    """
    files = {name: out / name / RECORDS_FILE for name in sets}
    states = {name: _states(file) for name, file in files.items()}
    wanted = {name: [(clip.id, mode.value) for clip in clips for mode in modes] for name, clips in sets.items()}
    known = sum(states[name].get(key, "") is None for name, keys in wanted.items() for key in keys)
    tally = Tally("", sum(map(len, wanted.values())), known)
    watch = watch or (lambda tally: None)
    for name, clips in sets.items():
        tally.stage = SETS[name].title
        watch(tally)
        files[name].parent.mkdir(parents=True, exist_ok=True)
        with files[name].open("a", encoding="utf-8") as sink:
            for record in _answers(model, clips, modes, states[name], partly):
                if record.error is None or record.error != states[name].get((record.id, record.mode)):
                    append_record(sink, record)
                states[name][record.id, record.mode] = record.error
                tally.done += record.error is None
                tally.failed += record.error is not None
                watch(tally)
    return tally


def _states(file: Path) -> dict[Key, str | None]:
    """Clip id and mode -> error, None for an answer; a half-written last line is cut off."""
    done_keys(file)
    return {(record.id, record.mode): record.error for record in read_records(file)} if file.exists() else {}


def _answers(
    model: ClipModel,
    clips: Sequence[Clip],
    modes: Sequence[ThinkingMode],
    states: Mapping[Key, str | None],
    partly: bool,
) -> Iterator[Record]:
    """Records of the remaining clips, batch by batch."""
    before = dict(states)
    by_id = {clip.id: clip for clip in clips}
    for start in range(0, len(clips), model.batch_size):
        group = clips[start : start + model.batch_size]
        for record in _group_answers(model, group, modes, before):
            reduced = readable_part(by_id[record.id]) if partly and record.error is not None else None
            yield _asked_partly(model, *reduced, record) if reduced else record


def _group_answers(
    model: ClipModel, group: Sequence[Clip], modes: Sequence[ThinkingMode], before: Mapping[Key, str | None]
) -> Iterator[Record]:
    broken_off = [mode for mode in modes if any((clip.id, mode.value) not in before for clip in group)]
    for mode in modes:
        failed = [clip for clip in group if before.get((clip.id, mode.value)) is not None]
        if mode not in broken_off and failed:
            yield from model.answer(failed, [mode])
    if broken_off:
        for record in model.answer(group, broken_off):
            if before.get((record.id, record.mode), "") is not None:
                yield record


def readable_part(clip: Clip) -> tuple[Clip, list[str]] | None:
    """A clip without its unreadable files, and their channels; None if all are readable, or nothing is left.

    A video's own audio replaces an unreadable audio file.
    """
    without = []
    if clip.video is not None and not _is_readable(clip.video, wants_picture=clip.audio is not None):
        without.append("video")
    if clip.audio is not None and not _is_readable(clip.audio):
        without.append("audio")
    video, audio = (None if name in without else path for name, path in (("video", clip.video), ("audio", clip.audio)))
    if not without or not (video or audio or clip.subtitle.strip()):
        return None
    return replace(clip, video=video, audio=audio), without


def _is_readable(path: Path, wants_picture: bool = False) -> bool:
    try:
        return read_media(path).frames is not None or not wants_picture
    except UserError:
        return False


def _asked_partly(model: ClipModel, clip: Clip, without: list[str], failed: Record) -> Record:
    record = next(iter(model.answer([clip], [ThinkingMode(failed.mode)])))
    return failed if record.error is not None else replace(record, without=without)
