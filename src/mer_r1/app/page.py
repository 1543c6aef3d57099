"""The page: what is asked about, the question's words, both answers as they are generated, the wheels, the record.

Gradio draws the inputs and passes them on; everything about the answers is HTML of `show`. Gradio is imported when the
page is built, after `serve` has switched its reports home off.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from mer_r1.app.ask import Answers, Source, refuse_long
from mer_r1.app.show import answers_html, timeline_html, wheels_html
from mer_r1.data.clip import Clip
from mer_r1.data.manifest import read_manifest
from mer_r1.data.media.container import MediaLimits
from mer_r1.data.media.speech import Transcriber
from mer_r1.emotions.thinking import MAX_SUBTITLE_CHARACTERS
from mer_r1.emotions.wheels import Taxonomy
from mer_r1.errors import UserError
from mer_r1.evaluation.clips.ask import BY_MACHINE, Answered, Asked, sections_of, with_words
from mer_r1.evaluation.clips.timeline import Entry, entry_of, write_timeline
from mer_r1.evaluation.records import RECORDS_FILE, append_record

SCENES = Path(__file__).parent / "scenes"
"""Generated test clips, chosen by their gold labels before any answer to them was looked at."""
TITLE = "mer-r1: which emotions does this person show?"
EMPTY = '<div class="mer"><p class="note">The answers appear here.</p></div>'


@dataclass(frozen=True)
class Settings:
    """What the page offers and allows.

    Attributes:
        source: the model.
        taxonomy: wheels.
        temporary: folder for everything that is uploaded or to be downloaded; whoever serves the page removes it.
        notice: warning about the model, on top of the page; "" for none.
        most_seconds: longest recording that is accepted.
        keep: folder that gets the records of all answers; None keeps nothing.
        transcriber: writes words down; None shows no button.
        segment: how a recording becomes utterances, "vad" or a number of seconds; None shows no button for a timeline.
        heard: seconds of a clip that the model takes.
    """

    source: Source
    taxonomy: Taxonomy
    temporary: Path
    notice: str = ""
    most_seconds: float = 600.0
    keep: Path | None = None
    transcriber: Transcriber | None = None
    segment: str | None = None
    heard: float = 30.0


def scenes() -> dict[str, Clip]:
    """The built-in scenes by the name that the page shows."""
    clips = read_manifest(SCENES / "manifest.jsonl")
    return {f"Scene {number}: “{clip.subtitle}”": clip for number, clip in enumerate(clips, 1)}


def build(settings: Settings) -> Any:
    """The page as Gradio blocks, ready to launch."""
    import gradio as gr

    chosen = scenes()
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(300, 3600), fill_width=False) as page:
        gr.HTML(_head(settings), elem_id="head", padding=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                scene = gr.Dropdown(list(chosen), value=None, label="Built-in scene (generated)", elem_id="scene")
                video = gr.Video(
                    sources=["upload", "webcam"], label="Video: upload or record", include_audio=True,
                    webcam_options=gr.WebcamOptions(mirror=False), buttons=[], elem_id="video",
                )  # fmt: skip
                with gr.Accordion("Audio alone, or in place of the video's", open=False, elem_id="sound"):
                    audio = gr.Audio(
                        sources=["upload", "microphone"], type="filepath", label="Audio: upload or record", buttons=[],
                        elem_id="audio",
                    )  # fmt: skip
                words = gr.Textbox(
                    label="Words spoken in the clip", placeholder="Leave it empty if you do not know them.",
                    max_length=MAX_SUBTITLE_CHARACTERS, lines=2, elem_id="words",
                )  # fmt: skip
                hear = gr.Button("Write the words down", visible=settings.transcriber is not None, elem_id="hear")
                ask = gr.Button("Ask", variant="primary", elem_id="ask")
            with gr.Column(scale=3, min_width=300):
                answers = gr.HTML(EMPTY, elem_id="answers", padding=False)
                over_time = gr.Button("Timeline of the whole recording", visible=bool(settings.segment), elem_id="time")
                timeline = gr.HTML("", elem_id="timeline", padding=False)
                files = gr.Files(visible=False, interactive=False, label="The timeline to download", elem_id="files")
                record = gr.DownloadButton("Download the record (JSON)", visible=False, elem_id="record")
        wheels = gr.HTML("", elem_id="wheels", padding=False)
        written = gr.State(None)  # what a machine wrote down

        def fill(name: str | None) -> tuple[Any, Any, Any]:
            clip = chosen.get(name or "")
            return (str(clip.video), None, clip.subtitle) if clip else (gr.skip(), gr.skip(), gr.skip())

        def answer(
            name: str | None, film: str | None, sound: str | None, text: str, heard: str | None
        ) -> Iterator[Any]:
            gold = chosen[name].labels or () if name in chosen else ()
            yield EMPTY, "", gr.update(visible=False)
            for state in answered(settings, film, sound, text, heard):
                yield answers_html(state, settings.taxonomy, gold), gr.skip(), gr.skip()
            if not state.problem:
                file = _file(state, settings.temporary)
                drawn = wheels_html(state, settings.taxonomy, gold)
                yield gr.skip(), drawn, gr.update(value=file, visible=True)

        how: dict[str, Any] = {"api_visibility": "private"}
        scene.input(fill, scene, [video, audio, words], show_progress="hidden", queue=False, **how)
        for listen in (video.upload, video.stop_recording, video.clear, audio.upload, audio.stop_recording):
            listen(lambda: None, None, scene, show_progress="hidden", queue=False, **how)
        asked = [scene, video, audio, words, written]
        ask.click(answer, asked, [answers, wheels, record], show_progress="hidden", **how)
        over_time.click(partial(_timeline, settings), [video, audio], [timeline, files], **how)
        hear.click(partial(_heard, settings), [video, audio], [words, written], **how)
    return page


def answered(
    settings: Settings, film: str | None, sound: str | None, text: str, written: str | None = None
) -> Iterator[Answers]:
    """Ask about what the page's fields hold; a problem is a state with one line that names no folder.

    The records say what the clip lacks, and whether its words are those that a machine wrote down.
    """
    clip, files = _clip(film, sound, text)
    try:
        if not (files or clip.subtitle):
            raise UserError("nothing to ask about: choose a scene, add a video or audio, or write what was said")
        refuse_long(clip, settings.most_seconds)
        by = settings.transcriber.name if settings.transcriber and clip.subtitle == written else ""
        state, notes = Answers(), Asked(clip, by).notes
        for now in settings.source.ask(clip):
            state = _noted(now, notes)
            yield _without_folders(state, files)
        if settings.keep and not state.problem:
            _keep(settings.keep, state)
    except UserError as error:
        yield _without_folders(Answers(problem=str(error), finished=True), files)


def entries(settings: Settings, film: str | None, sound: str | None) -> Iterator[list[Entry]]:
    """The timeline of a recording, one utterance more at a time; a problem is an entry of its own."""
    clip, files = _clip(film, sound, "")
    found: list[Entry] = []
    try:
        if settings.segment is None or not files:
            raise UserError("add a video or audio first")
        refuse_long(clip, settings.most_seconds)
        for part in sections_of(clip, settings.segment, settings.heard):
            [asked] = with_words([part], settings.heard, settings.transcriber)
            *_, state = settings.source.ask(asked.clip)
            problem = _without_folders(state, files).problem or ""
            found.append(
                replace(entry_of(Answered(asked, (*state.records.values(),)), settings.taxonomy), error=problem)
            )
            yield found
    except UserError as error:
        problem = _without_folders(Answers(problem=str(error)), files).problem or ""
        yield [*found, Entry(0.0, 0.0, "", None, [], "", [], problem)]


def _timeline(settings: Settings, film: str | None, sound: str | None) -> Iterator[tuple[str, Any]]:
    import gradio as gr

    note = BY_MACHINE.format(settings.transcriber.name) if settings.transcriber else ""
    found: list[Entry] = []
    for found in entries(settings, film, sound):
        yield timeline_html(found, settings.taxonomy, note), gr.update(visible=False)
    paths: list[str] = []
    if not all(entry.error for entry in found):
        folder = Path(tempfile.mkdtemp(dir=settings.temporary))
        paths = [str(folder / f"mer-r1-timeline{ending}") for ending in (".csv", ".json", ".vtt")]
    for path in paths:
        write_timeline(Path(path), found, settings.taxonomy)
    yield gr.skip(), gr.update(value=paths, visible=bool(paths))


def _clip(film: str | None, sound: str | None, text: str | None) -> tuple[Clip, list[Path]]:
    """What the page's fields hold as a clip, and its files."""
    video, audio = (Path(file) if file else None for file in (film, sound))
    files = [file for file in (video, audio) if file]
    name = " ".join([datetime.now().isoformat(timespec="seconds"), *(file.name for file in files[:1])])
    return Clip(name, video, audio, (text or "").strip()), files


def _noted(state: Answers, notes: Sequence[str]) -> Answers:
    records = {mode: replace(record, notes=[*record.notes, *notes]) for mode, record in state.records.items()}
    return replace(state, records=records)


def _without_folders(state: Answers, files: list[Path]) -> Answers:
    problem = state.problem
    for file in files if problem else ():
        problem = str(problem).replace(str(file), file.name).replace(f"{file.name}: {file.name}: ", f"{file.name}: ")
    return replace(state, problem=problem)


def _heard(settings: Settings, film: str | None, sound: str | None) -> tuple[str, str]:
    """The words of the audio, else of the video, for the field of words; without any, a message on the page."""
    import gradio as gr

    file, said = sound or film, ""
    if file and settings.transcriber:
        said = settings.transcriber.words_of(Clip("", audio=Path(file)), MediaLimits(max_seconds=settings.heard))
    if not said:
        raise gr.Error("no words were heard" if file else "add a video or audio first")
    return said, said


def _keep(folder: Path, state: Answers) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / RECORDS_FILE).open("a", encoding="utf-8") as file:
        for record in state.records.values():
            append_record(file, record)


def _file(state: Answers, folder: Path) -> str:
    """The records and the effect of the reasoning as a JSON file; returns its path."""
    content = {"records": [record.to_dict() for record in state.records.values()], "effect": state.effect}
    file = Path(tempfile.mkdtemp(dir=folder)) / "mer-r1-record.json"
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
    return str(file)


def _head(settings: Settings) -> str:
    told = escape(settings.notice[:1].upper() + settings.notice[1:]).replace("--model", "<code>--model</code>")
    notice = f'<p class="warn">{told}.</p>' if told else ""
    return (
        '<div class="mer head"><h1>Which emotions does this person show?</h1>'
        f"<p>The model <b>{escape(settings.source.name)}</b> "
        "answers twice: fast, at once, and slow, after reasoning. A label is a guess about what is shown, not about "
        f"what somebody feels: do not judge anybody by it.</p>{notice}</div>"
    )
