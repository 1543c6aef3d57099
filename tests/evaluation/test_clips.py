"""A user's own clips: what is said of an answer, resume, tables, utterances, timelines; the model is played."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from media_samples import gray_steps, tone, write_media

from mer_r1.data.clip import Clip
from mer_r1.data.media.container import MediaLimits
from mer_r1.data.media.speech import Transcriber
from mer_r1.emotions.thinking import FAST_PREFILL, ThinkingMode
from mer_r1.emotions.wheels import builtin
from mer_r1.errors import UserError
from mer_r1.evaluation.answerers.thinking_gate import Gate
from mer_r1.evaluation.clips.ask import Answered, Asked, ask_clips, sections_of, with_words
from mer_r1.evaluation.clips.tables import records_file, row_of, write_rows
from mer_r1.evaluation.clips.text import how_sure, lines_of
from mer_r1.evaluation.clips.timeline import Entry, check_timeline, entry_line, entry_of, write_timeline
from mer_r1.evaluation.records import Record, read_records, record_of_answer, record_of_error

BOTH = list(ThinkingMode)
SLOW_TEXT = "<think> The voice shakes. </think><answer> afraid, while cheeks </answer>"


def record(mode="slow", labels=("sad",), sad=0.6, **fields) -> Record:
    """A record by hand; `sad` is the probability of sadness on the plain wheel, the rest is fear's."""
    categories = {"ekman": sorted(builtin().categories(labels, "ekman"))}
    confidence = {"ekman": {"sadness": sad, "fear": round(1 - sad, 4)}}
    return Record("a.mp4", mode, "", labels=list(labels), categories=categories, confidence=confidence, **fields)


class Played:
    """A model that answers in a fixed way and counts what it is asked; `sure` is its confidence in a fast answer."""

    name, batch_size = "played", 2

    def __init__(self, sure: float = 0.9, broken: Sequence[str] = ()) -> None:
        self.asked: list[tuple[str, str]] = []
        self.sure, self.broken = sure, broken
        self.settings = {"engine": "played"}

    def answer(self, clips, modes):
        for mode in modes:
            for clip in clips:
                self.asked.append((clip.id, mode.value))
                if clip.id in self.broken:
                    yield record_of_error(clip, mode, f"{clip.id}: broken", {})
                else:
                    text = SLOW_TEXT if mode is ThinkingMode.SLOW else f"{FAST_PREFILL} sad </answer>"
                    yield record_of_answer(clip, mode, text, builtin(), {}, notes=["cut"], sureness=self.sure, tokens=1)


def clips(*names, words="Hello."):
    return [Asked(Clip(name, Path(name), subtitle=words)) for name in names]


# --- how sure ---------------------------------------------------------------------------------------------------------


def test_how_sure_is_the_mean_of_both_answers_in_plain_words():
    sure = how_sure([record(sad=0.9), record("fast", sad=0.7)], builtin())
    assert [(name, round(value, 4)) for name, value in sure.sectors] == [("sadness", 0.8), ("fear", 0.2)]
    assert str(sure) == "most likely sadness (0.80) or fear (0.20): sure; slow and fast agree"
    assert str(how_sure([record(sad=0.95)], builtin())) == "most likely sadness (0.95): sure", "a rest is not named"
    assert how_sure([record(sad=0.55)], builtin()).how == "fairly sure"
    assert how_sure([record(sad=0.4)], builtin()).sectors[0] == ("fear", 0.6)
    three = record()
    three.confidence["ekman"] = {"sadness": 0.4, "fear": 0.3, "anger": 0.3}
    assert how_sure([three], builtin()).how == "not sure"


@pytest.mark.parametrize(
    ("fast", "said"),
    [(("sad",), "agree"), (("sad", "angry"), "agree in part"), (("happy",), "disagree"), (("zzqx",), "")],
)
def test_slow_and_fast_agree_or_not(fast, said):
    agreement = how_sure([record(), record("fast", fast)], builtin()).agreement
    assert agreement == (f"slow and fast {said}" if said else "")


def test_without_words_or_probabilities_nothing_is_pretended():
    assert str(how_sure([record(labels=())], builtin())).endswith("no emotion word in the answer")
    served = Record("a", "slow", "", labels=["sad"])
    assert str(how_sure([served], builtin())) == "unknown (this model gives no probabilities)"


def test_an_answer_for_people():
    asked = Asked(Clip("a.mp4", Path("a.mp4"), subtitle="Oh no."), "PocketSphinx")
    slow = record(labels=("sad", "while cheeks"), reasoning="It falls.", notes=["no sound", "cut"])
    lines = [line for line, _ in lines_of(Answered(asked, (slow, record("fast", notes=["cut"]))), builtin())]
    assert lines == [
        "a.mp4",
        '  words        "Oh no."   (PocketSphinx)',
        "  slow         sad, while cheeks (?)",
        "  fast         sad",
        "  how sure     most likely sadness (0.60) or fear (0.40): fairly sure; slow and fast agree",
        "  note         no sound; cut",
        "  (?)          on no emotion wheel: while cheeks",
        "  reasoning    It falls.",
    ]
    shown = [line for line, _ in lines_of(Answered(asked, (slow,)), builtin(), wheels=True)]
    assert "  slow ekman     sadness   (confidence: sadness 0.60, fear 0.40)" in shown
    broken = record_of_error(asked.clip, ThinkingMode.SLOW, "a.mp4: no such file", {})
    assert list(lines_of(Answered(asked, (broken,)), builtin())) == [("a.mp4: no such file", "red")]


# --- asking -----------------------------------------------------------------------------------------------------------


def test_both_answers_of_a_clip_come_together_with_what_it_lacks():
    asked = [
        *clips("a.mp4", "b.mp4"),
        Asked(Clip("c.wav", audio=Path("c.wav"))),
        Asked(Clip("d", subtitle="Oh."), "ASR"),
    ]
    found = list(ask_clips(Played(), asked, BOTH))
    assert [[r.mode for r in one.records] for one in found] == [["slow", "fast"]] * 4
    assert [one.clip.id for one in found] == ["a.mp4", "b.mp4", "c.wav", "d"]
    notes = [one.records[0].notes for one in found]
    assert notes[0] == ["cut"]
    assert notes[2] == ["cut", "no picture", "no words"]
    assert notes[3] == ["cut", "no picture", "no sound", "words by ASR, not checked"]
    assert all(one.records[1].notes == one.records[0].notes for one in found)


def test_an_interrupted_run_resumes_and_asks_nothing_twice(tmp_path):
    records, first = tmp_path / "r.jsonl", Played()
    run = ask_clips(first, clips("a", "b", "c", "d"), BOTH, records=records)
    next(run)  # the first batch is asked
    run.close()
    assert len(first.asked) == 4
    second, told = Played(), []
    found = list(ask_clips(second, clips("a", "b", "c", "d"), BOTH, records=records, progress=told.append))
    assert second.asked == [(name, mode) for mode in ("slow", "fast") for name in ("c", "d")]
    assert told == [2, 2]
    assert [one.clip.id for one in found] == ["a", "b", "c", "d"]
    third = Played()
    assert [one.records for one in ask_clips(third, clips("a", "b", "c", "d"), BOTH, records=records)] == [
        one.records for one in found
    ]
    assert third.asked == []
    assert len(read_records(records)) == 8


def test_what_failed_is_asked_again(tmp_path):
    records = tmp_path / "r.jsonl"
    found = list(ask_clips(Played(broken=["b"]), clips("a", "b"), BOTH, records=records))
    assert [one.error for one in found] == [None, "b: broken"]
    again = Played()
    assert [one.error for one in ask_clips(again, clips("a", "b"), BOTH, records=records)] == [None, None]
    assert {name for name, _ in again.asked} == {"b"}


def test_records_of_another_model_or_other_words_are_refused(tmp_path):
    records, other = tmp_path / "r.jsonl", Played()
    list(ask_clips(Played(), clips("a"), BOTH, records=records, facts={"wheels": "x"}))
    for model, asked, facts in (
        (other, clips("a"), {"wheels": "y"}),
        (other, clips("a", words="Bye."), {"wheels": "x"}),
    ):
        with pytest.raises(UserError, match=r"--out|--overwrite"):
            list(ask_clips(model, asked, BOTH, records=records, facts=facts))
    assert other.asked == []


HALF = Gate.by_confidence(0.5)


def test_adaptive_thinking_reasons_where_it_is_unsure(tmp_path):
    sure, unsure = Played(0.9), Played(0.3)
    found = list(ask_clips(sure, clips("a", "b"), BOTH, gate=HALF))
    assert [[r.mode for r in one.records] for one in found] == [["fast"], ["fast"]]
    assert {mode for _, mode in sure.asked} == {"fast"}
    found = list(ask_clips(unsure, clips("a", "b"), BOTH, gate=HALF, records=tmp_path / "r.jsonl"))
    assert [[(r.mode, r.tokens) for r in one.records] for one in found] == [[("slow", 2)], [("slow", 2)]]
    again = Played(0.3)
    list(ask_clips(again, clips("a", "b"), BOTH, gate=HALF, records=tmp_path / "r.jsonl"))
    assert again.asked == []


# --- words and utterances ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("talk") / "talk.mp4"
    write_media(path, frames=20, fps=2, picture=gray_steps, sound=tone(10.0))
    path.with_suffix(".srt").write_text(
        "1\n00:00:01,000 --> 00:00:03,000\nOne.\n\n2\n00:00:04,000 --> 00:00:30,000\nTwo.\n\n"
        "3\n00:01:00,000 --> 00:01:01,000\nNo.\n"
    )
    return path


def test_a_recording_becomes_utterances(recording):
    clip = Clip("talk.mp4", recording)
    cut = sections_of(clip, "4", 30)
    assert [(one.id, one.section) for one in cut[:2]] == [
        ("talk.mp4#0.00-4.00", (0.0, 4.0)),
        ("talk.mp4#4.00-8.00", (4.0, 8.0)),
    ]
    assert cut[2].section == pytest.approx((8.0, 10.0), abs=0.05)
    assert len(sections_of(clip, "9.5", 30)) == 1, "a rest is no utterance"
    cues = sections_of(clip, "subtitles", 30)
    assert [one.subtitle for one in cues] == ["One.", "Two."], "what lies behind the end is none"
    assert cues[1].section == pytest.approx((4.0, 10.0), abs=0.05)
    assert [one.clip.subtitle for one in with_words(cut, 30)] == ["One.", "", ""], "a cue goes where its middle lies"


@pytest.mark.parametrize("how", ["x", "0", "-1", "nan", "inf", ""])
def test_a_wrong_division_is_refused(recording, how):
    with pytest.raises(UserError, match="expected vad, subtitles or a number"):
        sections_of(Clip("a", recording), how, 30)


def test_a_division_without_what_it_needs_is_refused(recording, tmp_path):
    silent = write_media(tmp_path / "a.mp4", frames=4, fps=2)
    with pytest.raises(UserError, match=r"no \.srt or \.vtt"):
        sections_of(Clip("a", silent), "subtitles", 30)
    with pytest.raises(UserError, match="belong to no single utterance"):
        sections_of(Clip("a", recording, subtitle="Hello."), "4", 30)
    with pytest.raises(UserError, match="no file"):
        sections_of(Clip("a", subtitle=""), "4", 30)


def test_given_words_come_before_a_file_and_a_file_before_a_machine(recording, tmp_path):
    heard: list[np.ndarray] = []

    def listen(sound):
        heard.append(sound)
        return "  I  hear. "

    machine, kept = Transcriber("ASR 1", listen), tmp_path / "t.jsonl"
    plain = write_media(tmp_path / "b.mp4", frames=4, fps=2, sound=tone(2.0))
    silent = write_media(tmp_path / "c.mp4", frames=4, fps=2, sound=tone(2.0, amplitude=0.0))
    asked = [Clip("given", recording, subtitle="Mine."), Clip("file", recording), Clip("b", plain), Clip("c", silent)]
    found = with_words(asked, 4.0, machine, kept)
    assert [(one.clip.subtitle, one.words_by) for one in found] == [
        ("Mine.", ""),
        ("One.", ""),
        ("I hear.", "ASR 1"),
        ("", ""),
    ]
    assert len(heard) == 1, "silence is not asked about"
    assert len(heard[0]) == pytest.approx(2 * MediaLimits().sampling_rate, rel=0.05)
    assert with_words(asked, 4.0, machine, kept) == found
    assert len(heard) == 1, "kept beside the records"
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [(row["id"], row["by"], row["words"]) for row in rows] == [("b", "ASR 1", "I hear."), ("c", "ASR 1", "")]
    write_media(plain, frames=4, fps=2, sound=tone(1.0))
    with_words(asked, 4.0, machine, kept)
    assert len(heard) == 2, "another file under the same name is heard anew"


# --- tables and timelines ---------------------------------------------------------------------------------------------


def answered(start=0.0, end=2.0, **fields):
    clip = Clip(f"a.mp4#{start:.2f}-{end:.2f}", Path("a.mp4"), subtitle='Say "no", now', section=(start, end))
    return Answered(Asked(clip, "ASR"), (record(labels=("sad", "while cheeks"), notes=["cut", "dark"], **fields),))


def test_a_table_has_one_row_a_clip(tmp_path):
    rows = [row_of(answered(), builtin()), row_of(answered(2.0, 4.0, sureness=0.25, reasoning="Hm."), builtin())]
    write_rows(tmp_path / "a.csv", rows)
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert (first["file"], first["start"], first["end"], first["words"]) == ("a.mp4", "0.0", "2.0", 'Say "no", now')
    assert (first["slow_labels"], first["fast_labels"], first["unknown_words"]) == (
        "sad, while cheeks",
        "",
        "while cheeks",
    )
    assert (first["most_likely"], first["confidence"], first["words_by"]) == ("sadness", "0.6", "ASR")
    assert (first["notes"], first["slow_confidence"]) == ("cut; dark", "")
    assert (second["slow_confidence"], second["reasoning"], second["error"]) == ("0.25", "Hm.", "")
    write_rows(tmp_path / "a.jsonl", rows)
    assert [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()] == rows
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow (extra parquet) is not installed")
    write_rows(tmp_path / "a.parquet", rows)
    assert parquet.read_table(tmp_path / "a.parquet").to_pylist() == rows


def test_names_of_no_known_kind_are_refused_before_anything_is_asked():
    assert records_file(Path("x/a.csv")) == Path("x/a.csv.records.jsonl")
    for check in (records_file, check_timeline):
        with pytest.raises(UserError, match="expected a name that ends in"):
            check(Path("a.txt"))


def test_a_timeline_in_every_kind(tmp_path):
    entries = [entry_of(answered(), builtin()), entry_of(answered(2.0, 3.5, sad=0.4), builtin())]
    assert entries[0] == Entry(0.0, 2.0, "sadness", 0.6, ["sad", "while cheeks"], 'Say "no", now', ["cut", "dark"], "")
    assert entries[1].emotion == "fear"
    assert entry_line(entries[1]) == '00:00:02.0 - 00:00:03.5  fear         0.60  sad, while cheeks   "Say "no", now"'
    for ending in (".json", ".csv", ".srt", ".vtt"):
        write_timeline(tmp_path / f"t{ending}", entries, builtin())
    assert [row["emotion"] for row in json.loads((tmp_path / "t.json").read_text())] == ["sadness", "fear"]
    assert (tmp_path / "t.csv").read_text().splitlines()[1].startswith('0.0,2.0,sadness,0.6,"sad, while cheeks"')
    expected = '1\n00:00:00,000 --> 00:00:02,000\n[sad, while cheeks 0.60]\nSay "no", now\n'
    assert (tmp_path / "t.srt").read_text().startswith(expected)
    assert (tmp_path / "t.vtt").read_text().startswith("WEBVTT\n\n00:00:00.000 --> ")


def test_an_utterance_without_probabilities_or_answer_stands_in_the_timeline_too():
    clip = Clip("a#0-1", Path("a"), section=(0.0, 1.0))
    served = Record("a#0-1", "slow", "", labels=["sad"], categories={"ekman": ["sadness"]})
    told = entry_of(Answered(Asked(clip), (served,)), builtin())
    assert (told.emotion, told.confidence) == ("sadness", None)
    failed = entry_of(Answered(Asked(clip), (record_of_error(clip, ThinkingMode.SLOW, "gone", {}),)), builtin())
    assert (failed.emotion, failed.error) == ("", "gone")
    assert entry_line(failed) == "00:00:00.0 - 00:00:01.0  -                  gone"


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_a_picture_shows_every_utterance(tmp_path, ending):
    pytest.importorskip("matplotlib", reason="matplotlib (extra speech) is not installed")
    entries = [entry_of(answered(), builtin()), entry_of(answered(2.0, 3.5, sad=0.4), builtin())]
    entries.append(Entry(4.0, 5.0, "", None, [], "", [], "gone"))
    write_timeline(tmp_path / f"t{ending}", entries, builtin(), title="a $1 talk")
    content = (tmp_path / f"t{ending}").read_bytes()
    assert content.startswith(b"\x89PNG" if ending == ".png" else b"<?xml")
    if ending == ".svg":  # one filled path per utterance in the plot, drawn in three colours
        assert len({part[:7] for part in content.split(b"fill: ")[1:] if part[:1] == b"#"}) >= 3
