"""Ask a model about every clip of every set; resumable with the same result as an uninterrupted run.

Batches are cut at fixed places, and each record is on disk as soon as it is made (see `base.ask_groups`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from mer_r1.benchmarks.mer_unibench.sets import SETS
from mer_r1.data.claim import item_keys
from mer_r1.data.clip import Clip
from mer_r1.data.media.read import read_media
from mer_r1.emotions.thinking import ThinkingMode
from mer_r1.errors import UserError
from mer_r1.evaluation.answerers.base import ClipModel, ask_groups
from mer_r1.evaluation.answerers.spread import Answers, spread
from mer_r1.evaluation.llm.jobs import Tally, Watch
from mer_r1.evaluation.records import RECORDS_FILE, Record, append_record, is_news, kept_states, states_of


def collect(
    model: ClipModel,
    sets: Mapping[str, Sequence[Clip]],
    modes: Sequence[ThinkingMode],
    out: Path,
    watch: Watch | None = None,
    partly: bool = False,
    processes: int = 1,
) -> Tally:
    """Ask about every clip that has no answer yet in some mode.

    With `partly`, a clip with unreadable files is asked about by the readable ones and its subtitle; its record says
    so. `watch` is called with the progress, before each set and after each answer. `processes` is that of
    `spread.spread`.

    Raises:
        UserError: asking is pointless, a file of records is damaged, or clips have changed; answers so far are kept.
    """
    files = {name: out / name / RECORDS_FILE for name in sets}
    items = {name: item_keys(clips) for name, clips in sets.items()}
    states = {name: states_of(kept_states(file, items[name])) for name, file in files.items()}
    wanted = [(name, (clip.id, mode.value)) for name, clips in sets.items() for clip in clips for mode in modes]
    tally = Tally("", len(wanted), sum(states[name].get(key, "") is None for name, key in wanted))
    watch = watch or (lambda tally: None)
    with spread(partial(getattr, model, "answer"), processes) as answers:
        for name, clips in sets.items():
            tally.stage = SETS[name].title
            watch(tally)
            files[name].parent.mkdir(parents=True, exist_ok=True)
            with files[name].open("a", encoding="utf-8") as sink:
                groups = [clips[start : start + model.batch_size] for start in range(0, len(clips), model.batch_size)]
                for record in ask_groups(groups, modes, states[name], answers, items[name]):
                    record = _asked_partly(answers, clips, record) if partly and record.error is not None else record
                    if is_news(record, states[name]):
                        append_record(sink, record)
                    tally.done += record.error is None
                    tally.failed += record.error is not None
                    watch(tally)
    return tally


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


def _asked_partly(answers: Answers, clips: Sequence[Clip], failed: Record) -> Record:
    reduced = readable_part(next(clip for clip in clips if clip.id == failed.id))
    if reduced is None:
        return failed
    ((record,),) = answers([([reduced[0]], [ThinkingMode(failed.mode)])])
    return failed if record.error is not None else replace(record, without=reduced[1], item=failed.item)
