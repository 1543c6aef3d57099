"""The page without a browser: what is asked, shown, refused, and left behind."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from tiny_world import tiny_omni

from mer_r1.app import page, serve
from mer_r1.app.ask import Answers, Asked, InProcess, refuse_long
from mer_r1.app.show import answers_html, timeline_html, wheels_html
from mer_r1.app.wheel_picture import FAINTEST, wheel_picture
from mer_r1.data.clip import Clip
from mer_r1.data.manifest import read_manifest
from mer_r1.data.media.speech import Transcriber
from mer_r1.emotions.thinking import format_completion
from mer_r1.emotions.wheels import builtin
from mer_r1.errors import UserError
from mer_r1.evaluation.clips.timeline import Entry
from mer_r1.evaluation.records import Record, read_records, rescore
from mer_r1.model.generation import Sampling, decode, followed

SCENE = page.SCENES / "test-000004.mp4"
EVIL = "a<b onclick=x>c"


def record(mode: str, words: list[str], confidence: dict | None = None, reasoning: str = "A smile.") -> Record:
    text = format_completion(reasoning if mode == "slow" else "", words)
    return rescore([Record("a", mode, text, confidence=confidence or {}, tokens=7)], builtin())[0]


def done(**changes) -> Answers:
    records = {"fast": record("fast", ["happy"]), "slow": record("slow", ["sad", "zzqx"])}
    return Answers({}, records, finished=True, **changes)


class Known:
    """A source with these answers."""

    name = "known"

    def __init__(self, *states: Answers) -> None:
        self.states = states

    def ask(self, clip: Clip):
        yield from self.states


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_omni().save(folder)
    return InProcess(str(folder), builtin(), Sampling(24, 1.0, seed=1), None, {})


def settings(source, folder: Path, **more) -> page.Settings:
    return page.Settings(source, builtin(), folder, **more)


def test_every_sampled_token_is_told_before_the_answer_is_whole(tiny):
    states = list(tiny.ask(Clip("a", SCENE, None, "Hello.")))
    assert states[-1].finished
    assert states[-1].problem is None
    assert list(states[-1].records) == ["fast", "slow"]
    for mode, found in states[-1].records.items():
        texts = [state.texts.get(mode, "") for state in states]
        grown = list(dict.fromkeys(filter(None, texts)))
        assert grown[-1] == found.completion
        assert all(found.completion.startswith(text) for text in grown[:-1] if "\ufffd" not in text)


def test_the_follower_sees_what_decode_returns_and_is_gone_afterwards(monkeypatch):
    omni = tiny_omni()
    seen: list[list[int]] = []
    hidden = torch.zeros(1, omni.model.config.get_text_config().hidden_size)

    class Branches:
        def run(self, ids, real):
            return torch.zeros(1, 1, hidden.shape[1])

    with followed(seen.append):
        ids, *_ = decode(omni, omni.model, hidden, Branches(), Sampling(5, 1.0, seed=0))
    assert [row[0] for row in seen] == ids[0]
    decode(omni, omni.model, hidden, Branches(), Sampling(5, 1.0, seed=0))
    assert len(seen) == len(ids[0])


def test_the_effect_of_the_reasoning_is_measured_on_the_same_answer():
    from mer_r1.weights import POLICY

    source = InProcess(POLICY, builtin(), Sampling(96, 0.0), None, {})
    scene = read_manifest(page.SCENES / "manifest.jsonl")[-1]
    last = list(source.ask(scene))[-1]
    slow = last.records["slow"]
    assert slow.labels
    changed = 0
    for wheel, sectors in slow.confidence.items():
        for sector, value in sectors.items():
            assert last.effect[wheel][sector][0] == pytest.approx(value, abs=2e-4)  # as the record has it
            changed += abs(last.effect[wheel][sector][1] - value) > 0.01
    assert changed > 0


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"no film at all", "no readable video or sound in it"), (b"", "empty"), (SCENE.read_bytes()[:900], "")],
)
def test_a_broken_file_becomes_one_line_without_its_folder(tiny, tmp_path, content, said):
    file = tmp_path / "my clip.mp4"
    file.write_bytes(content)
    states = list(page.answered(settings(tiny, tmp_path), str(file), None, ""))
    assert states[-1].problem.startswith("my clip.mp4: ")
    assert said in states[-1].problem
    assert str(tmp_path) not in states[-1].problem
    assert states[-1].problem in answers_html(states[-1], builtin()).replace("&#39;", "'")
    assert wheels_html(states[-1], builtin()) == ""


def test_nothing_and_too_much_are_refused_before_the_model_is_asked(tmp_path):
    source = Known()
    (state,) = page.answered(settings(source, tmp_path), None, None, "  ")
    assert "nothing to ask about" in state.problem
    (state,) = page.answered(settings(source, tmp_path, most_seconds=1.5), str(SCENE), None, "")
    assert re.fullmatch(r"test-000004\.mp4: lasts \d s, and this page takes at most 2 s", state.problem)
    with pytest.raises(UserError, match="lasts"):
        refuse_long(Clip("a", None, SCENE), 1.0)


def test_a_failure_of_the_model_ends_the_question(tiny, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of memory at 0x7f")

    monkeypatch.setattr(tiny, "_predict", fail)
    (state,) = tiny.ask(Clip("a", SCENE))
    assert state.finished
    assert state.problem == "the model failed (RuntimeError): see the program's output"


def test_records_are_kept_only_if_asked(tmp_path):
    list(page.answered(settings(Known(done()), tmp_path), None, None, "Hello."))
    assert list(tmp_path.iterdir()) == []
    kept = settings(Known(done()), tmp_path, keep=tmp_path / "kept")
    list(page.answered(kept, None, None, "Hello."))
    assert [found.mode for found in read_records(tmp_path / "kept" / "records.jsonl")] == ["fast", "slow"]
    file = Path(page._file(done(), tmp_path))
    assert json.loads(file.read_text())["records"][1]["labels"] == ["sad", "zzqx"]


def test_what_a_model_says_is_shown_as_text():
    states = done(problem=None)
    records = {"slow": record("slow", ["sad", EVIL], reasoning=EVIL), "fast": record("fast", [EVIL])}
    text = answers_html(Answers({}, records, finished=True), builtin(), [EVIL])
    assert EVIL not in text
    assert "a&lt;b onclick" in text
    assert EVIL not in answers_html(Answers({"slow": EVIL}), builtin())
    assert EVIL not in answers_html(Answers(problem=EVIL, finished=True), builtin())
    assert "no wheel knows this word" in answers_html(states, builtin())


def test_gold_is_shown_after_both_answers_only():
    half = Answers({"slow": "<think> The"}, {"fast": record("fast", ["happy"])})
    assert "joyful" not in answers_html(half, builtin(), ["joyful"])
    assert "joyful" in answers_html(done(), builtin(), ["joyful"])


def test_the_tables_show_both_probabilities_and_their_difference():
    effect = {w.name: dict.fromkeys(builtin().sectors(w), (0.0, 0.004)) for w in builtin().wheels}
    effect["shaver"] |= {"sadness": (0.75, 0.5), "joy": (0.1, 0.349)}
    text = wheels_html(done(effect=effect), builtin())
    shaver = text[text.index("Shaver") : text.index("Russell")]
    cells = re.findall(r"<td>(.*?)</td>", shaver)
    assert cells == ["0.10", "0.35", "−0.25", "0.75", "0.50", "+0.25"]
    assert "4 others below 0.01" in shaver


def test_a_wheel_marks_what_is_named_and_how_likely_it_is():
    sectors = builtin().sectors("shaver")
    sure = {"shaver": dict.fromkeys(sectors, 0.0) | {"sadness": 1.0}}
    drawing = str(wheel_picture("shaver", sectors, {"slow": record("slow", ["sad"], sure)}, ["joy"]))
    assert drawing.count('class="here"') == 1
    assert drawing.count('class="goldarc"') == 1
    assert 'aria-label="Wheel shaver: slow names sadness; gold joy"' in drawing
    opacities = re.findall(r'fill-opacity="([\d.]+)" class="sector slow(?: named)?"', drawing)
    assert opacities == [f"{1.0 if sector == 'sadness' else FAINTEST:.1f}" for sector in sectors]


def test_a_model_behind_a_server_gives_whole_answers():
    class Model:
        name = "served"

        def answer(self, clips, modes):
            yield record(modes[0].value, ["happy"])

    states = list(Asked(Model()).ask(Clip("a", SCENE)))
    assert [len(state.records) for state in states] == [1, 2, 2]
    assert "gives no probabilities" in wheels_html(states[-1], builtin())


def test_a_timeline_grows_utterance_by_utterance_and_says_what_is_wrong(tmp_path, monkeypatch):
    def sections(clip, how, longest):
        assert (how, longest) == ("vad", 12.0)
        yield Clip("a", clip.video, subtitle="Hello.", section=(0.0, 2.5))
        yield Clip("b", clip.video, subtitle=EVIL, section=(62.0, 65.0))
        raise UserError(f"{clip.video}: damaged")

    monkeypatch.setattr(page, "sections_of", sections)
    able = settings(Known(done()), tmp_path, segment="vad", heard=12.0)
    *grown, last = (list(entries) for entries in page.entries(able, str(SCENE), None))
    assert [len(entries) for entries in grown] == [1, 2]
    assert [(entry.start, entry.end) for entry in last] == [(0.0, 2.5), (62.0, 65.0), (0.0, 0.0)]
    assert set(last[1].labels) == {"happy", "sad", "zzqx"}
    assert last[2].error == "test-000004.mp4: damaged"
    (nothing,) = page.entries(able, None, None)
    assert nothing[0].error == "add a video or audio first"


def test_the_table_of_a_timeline_shows_moments_categories_and_probabilities():
    found = [
        Entry(0.0, 2.5, "sadness", 0.625, ["sad", "low"], EVIL, [], ""),
        Entry(62.0, 65.0, "joy", None, ["happy"], "Hello.", [], ""),
        Entry(0.0, 0.0, "", None, [], "", [], "damaged"),
    ]
    text = timeline_html(found, builtin())
    assert EVIL not in text
    assert re.findall(r'<th scope="row">(.*?)</th>', text) == ["0:00–0:02", "1:02–1:05", "0:00–0:00"]
    assert re.findall(r"<td[^>]*>(.*?)</td>", text)[1:] == [
        "sadness 0.62",
        "sad, low",
        "Hello.",
        "joy",
        "happy",
        "damaged",
    ]
    assert "Ekman's wheel" in text


def test_a_timeline_can_be_downloaded_as_a_table_json_and_subtitles(tmp_path):
    pytest.importorskip("gradio", reason="gradio (extra app) is not installed")
    able = settings(Known(done()), tmp_path, segment="1")
    *_, (_, files) = page._timeline(able, str(SCENE), None)
    assert [Path(file).name for file in files["value"]] == [
        f"mer-r1-timeline.{kind}" for kind in ("csv", "json", "vtt")
    ]
    rows = json.loads(Path(files["value"][1]).read_text(encoding="utf-8"))
    assert [row["start"] for row in rows[:2]] == [0.0, 1.0]
    *_, (_, files) = page._timeline(able, None, None)
    assert (files["value"], files["visible"]) == ([], False)


def test_a_timeline_of_equal_parts_has_the_words_that_a_machine_wrote_down(tmp_path):
    able = settings(Known(done()), tmp_path, segment="1", transcriber=Transcriber("ear 1", lambda _: " oh  no "))
    *_, last = page.entries(able, str(SCENE), None)
    assert [entry.words for entry in last] == ["oh no"] * len(last)
    assert [(entry.start, entry.end) for entry in last[:2]] == [(0.0, 1.0), (1.0, 2.0)]
    *_, (shown, _), _ = page._timeline(able, str(SCENE), None)
    assert "words by ear 1, not checked" in shown


def test_words_by_machine_are_named_in_the_records_unless_somebody_changes_them(tmp_path):
    able = settings(Known(done()), tmp_path, transcriber=Transcriber("ear 1", lambda _: "oh no"))
    words = page._heard(able, str(SCENE), None)
    assert words == ("oh no", "oh no")

    def notes(text):
        *_, last = page.answered(able, str(SCENE), None, text, words[1])
        return {tuple(record.notes) for record in last.records.values()}

    assert notes("oh no") == {("words by ear 1, not checked",)}
    assert notes("Oh no!") == {()}
    assert notes("") == {("no words",)}
    *_, last = page.answered(able, None, str(SCENE), "Oh no!")
    assert last.records["fast"].notes == ["no picture"]


def test_where_no_words_are_heard_the_page_says_so(tmp_path):
    gradio = pytest.importorskip("gradio", reason="gradio (extra app) is not installed")
    able = settings(Known(done()), tmp_path, transcriber=Transcriber("ear 1", lambda _: ""))
    for film, said in ((str(SCENE), "no words were heard"), (None, "add a video or audio first")):
        with pytest.raises(gradio.Error, match=said):
            page._heard(able, film, None)


def test_a_page_that_could_not_do_what_was_asked_is_not_served(run):
    refused = run("app", "--segment", "subtitles")
    assert refused[0] == 2
    assert "--segment: got 'subtitles', expected vad or a number of seconds" in refused[2]
    refused = run("app", "--transcriber", "pocketsphinx")
    assert (refused[0], "--transcriber needs --transcribe" in refused[2]) == (2, True)


def test_the_scenes_are_complete_and_of_the_test_split():
    clips = list(page.scenes().values())
    assert len(clips) == 4
    assert all(clip.video.is_file() and clip.subtitle and clip.labels and clip.split == "test" for clip in clips)


def test_temporary_files_are_removed_and_nothing_is_reported():
    with serve.without_traces() as folder:
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
        assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
        (folder / "deep").mkdir()
        (folder / "deep" / "clip.mp4").write_bytes(b"x")
    assert not folder.exists()
