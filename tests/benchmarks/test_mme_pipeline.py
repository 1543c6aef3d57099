"""MME-Emotion end to end: what is asked, what is sent along, and that nothing is lost or bought twice."""

import base64
import gc
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import wave
from dataclasses import replace

import numpy as np
import pytest
from llm_server import Server, breaks_off, hangs_up, no_choices, rubbish, said, status
from media_samples import quarters, tone, with_display_matrix, without_decoder, write_media
from PIL import Image

from mer_r1.benchmarks.mme_emotion import run
from mer_r1.benchmarks.mme_emotion.judging import prompts
from mer_r1.benchmarks.mme_emotion.judging.audio_clues import find_clue, read_clues
from mer_r1.benchmarks.mme_emotion.judging.evidence import judge_frames, judge_sound
from mer_r1.benchmarks.mme_emotion.judging.stages import (
    Item,
    Judging,
    clues_ledger,
    extract,
    judge,
    make_clues,
    score_text,
)
from mer_r1.benchmarks.mme_emotion.scores.official import score_field
from mer_r1.benchmarks.mme_emotion.tasks import TASKS
from mer_r1.data.claim import weights_digest
from mer_r1.data.clip import Clip
from mer_r1.data.manifest import write_manifest
from mer_r1.data.media.container import MediaLimits
from mer_r1.data.media.read import read_media
from mer_r1.emotions.thinking import ThinkingMode
from mer_r1.emotions.wheels import builtin
from mer_r1.errors import UserError
from mer_r1.evaluation.llm.cache import ReplyCache
from mer_r1.evaluation.llm.chat import Decoding, Prices
from mer_r1.evaluation.llm.client import Client
from mer_r1.evaluation.llm.ledger import Ledger, read_rows
from mer_r1.evaluation.llm.responses import Retries
from mer_r1.evaluation.records import Record

KEY = "sk-" + "planted-0123456789"
GOLD = {
    "ER-Lab": "anger",
    "ER-Wild": "happy",
    "ML-ER": ["fear", "sadness"],
    "FG-ER": "guilt",
    "Noise-ER": "neutral",
    "IR": "thank",
    "SA": "positive",
    "FG-SA": "strong positive",
}
BOTH = list(ThinkingMode)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """One clip of each task, as `mer-r1 prepare mme-emotion` describes them."""
    folder = tmp_path_factory.mktemp("mme")
    clips = []
    for index, (task, gold) in enumerate(GOLD.items()):
        video = write_media(folder / f"{task}.mp4", frames=4, fps=2, sound=tone(1.0, hertz=200 + 50 * index))
        meta = {"dataset": "mme-emotion", "task": task, "question": "What is it?", "candidates": None, "gold": gold}
        clips.append(Clip(f"{task}/clip", video=video, labels=("happy",), meta=meta | {"video_id": f"{task}.mp4"}))
    write_manifest(folder / "manifest.jsonl", clips)
    return folder / "manifest.jsonl"


@pytest.fixture(autouse=True)
def planted_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def is_extraction(call):
    return "Extract the key steps" in call.text


def proper(call):
    """A server that does as it is asked: two steps an answer, two ratings an item."""
    if is_extraction(call):
        said_before = call.text.split("The answer: '")[1].split("'")[0]
        return said(f"<step>Step 1: He smiles. Step 2: It is {said_before[-40:]}</step>", read=100, written=20)
    return said("<score>Step 1: 1/1, Step 2: 0/1</score>", read=1000, written=10)


def client_of(server, name, cache, attempts=3, first_wait=0.01, temperature=0.0, **settings):
    """A client as `mer-r1 eval mme-emotion` makes it, with short waits."""
    retries, decoding = Retries(attempts, first_wait, longest_wait=30.0), Decoding(temperature, max_tokens=2048)
    settings = {"concurrency": 2, "timeout": 5.0, "retries": retries} | settings
    return Client(name, server.base_url, decoding, cache, **settings)


def answers(folder, texts, task="SA"):
    """Answers from elsewhere: one an id, in the reference's form."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"video_id": f"{task}-{n}", "ground_truth": "positive", "model_response": text, "label_set": ["x"], "more": 1}
        for n, text in enumerate(texts)
    ]
    (folder / f"{task}.json").write_text(json.dumps(rows), encoding="utf-8")
    return rows


def given(folder, texts, manifest, task="SA"):
    """The same as items, all with the video of that task."""
    answers(folder, texts, task)
    video = next(clip.video for clip in run.benchmark_clips(manifest) if clip.meta["task"] == task)
    return [replace(item, video=video) for item in run.given_items([folder], run.benchmark_clips(manifest))]


def ask(server, items, out, how=None, **settings):
    """Extraction and judging of items; returns both tallies."""
    steps, judged = run.ledgers(out)
    with ReplyCache(out / run.REPLIES_FILE) as cache:
        client = client_of(server, "j", cache, **settings)
        return extract(items, client, steps), judge(items, steps, client, how or Judging(), judged)


def written(out, name=run.JUDGED_FILE):
    return read_rows(out / name)


# --- what is seen and heard -------------------------------------------------------------------------------------------


def gray(jpeg):
    return float(np.asarray(Image.open(io.BytesIO(jpeg)).convert("L")).mean())


@pytest.mark.parametrize(
    ("fps", "frames", "chosen"),
    [(2, 24, range(0, 20, 2)), (3, 7, (0, 3, 6)), (5, 4, (0,)), (1, 12, range(10))],
)
def test_the_first_frame_of_each_second_is_taken_and_at_most_ten(tmp_path, fps, frames, chosen):
    video = write_media(tmp_path / "v.mp4", frames=frames, fps=fps)
    found = [gray(jpeg) for jpeg in judge_frames(video)]
    assert found == pytest.approx([10 * index + 20 for index in chosen], abs=3)  # gray level 10 i + 20 says which


def test_a_frame_rate_below_one_is_refused(tmp_path):
    video = write_media(tmp_path / "v.mp4", frames=3, times=[0, 2, 4])
    with pytest.raises(UserError, match=r"v\.mp4: 0\.\d+ frames per second, expected at least 1"):
        judge_frames(video)


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (0, -1, 1, 0), (-1, 0, 0, -1), (-1, 0, 0, 1)])
def test_frames_are_upright_as_the_model_sees_them(tmp_path, matrix):
    video = with_display_matrix(write_media(tmp_path / "v.mp4", frames=2, fps=2, picture=quarters), *matrix)
    seen = Image.open(io.BytesIO(judge_frames(video)[0]))
    expected = read_media(video, None, MediaLimits(max_frames=1)).frames[0].transpose(1, 2, 0)
    assert seen.size == (expected.shape[1], expected.shape[0])
    assert np.abs(np.asarray(seen, float) - expected).mean() < 8


def test_pictures_can_be_made_smaller(tmp_path):
    video = write_media(tmp_path / "v.mp4", frames=2, fps=2)
    assert Image.open(io.BytesIO(judge_frames(video, max_side=32)[0])).size == (32, 24)
    assert Image.open(io.BytesIO(judge_frames(video)[0])).size == (64, 48)


def test_a_file_without_picture_or_sound_says_so(tmp_path):
    sound = write_media(tmp_path / "s.wav", sound=tone(0.5), audio_codec="pcm_s16le")
    silent = write_media(tmp_path / "v.mp4", frames=3, fps=2)
    with pytest.raises(UserError, match=r"s\.wav: no picture"):
        judge_frames(sound)
    with pytest.raises(UserError, match=r"v\.mp4: no sound"):
        judge_sound(silent, None)
    odd = without_decoder(write_media(tmp_path / "odd.mp4", frames=3, fps=2, sound=tone(1)), b"mp4v", b"mp4a")
    with pytest.raises(UserError, match=r"odd\.mp4: the picture cannot be decoded \(no decoder .*judge needs frames"):
        judge_frames(odd)
    with pytest.raises(UserError, match=r"odd\.mp4: the sound cannot be decoded \(no decoder"):
        judge_sound(odd, None)
    with pytest.raises(UserError, match="no such file"):
        judge_frames(tmp_path / "gone.mp4")


def test_the_sound_is_a_wav_file(tmp_path):
    sound = write_media(tmp_path / "s.wav", sound=tone(0.5, rate=8000), rate=8000, audio_codec="pcm_s16le")
    with wave.open(io.BytesIO(judge_sound(None, sound))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
        assert file.getnframes() == pytest.approx(8000, abs=200)


def test_a_judge_that_hears_only_the_beginning_is_noted(tmp_path, caplog):
    sound = write_media(tmp_path / "a.wav", sound=tone(2.0), audio_codec="pcm_s16le")
    judge_sound(None, sound, 2.0)
    assert caplog.messages == []
    judge_sound(None, sound, 0.5)
    assert [message.partition("a.wav: ")[2] for message in caplog.messages] == [
        "the audio that is sent is cut to the first 0.5 s of 2 s"
    ]


def test_no_thread_of_a_decoder_stays(tmp_path):
    video = write_media(tmp_path / "a.mp4", frames=20, fps=5, video_codec="libx264")
    before = len(os.listdir("/proc/self/task"))
    gc.disable()
    try:
        frames = judge_frames(video)
        assert len(os.listdir("/proc/self/task")) == before
    finally:
        gc.enable()
    assert len(frames) == 4


# --- prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_the_request_for_steps_holds_every_rule(task):
    text = prompts.extraction_prompt(task, "THE ANSWER")
    for rule in ("'THE ANSWER'", "as concise as possible", "Step 1:", "<step> and </step>", "has no reasoning"):
        assert rule in text
    assert f"last step states the predicted {task.about}" in text
    assert text.count("<step>") - 1 == 2 + task.has_refusal + (task.name == "FG-SA")
    assert ("is None." in text) is (task.name not in ("ER-Lab", "ER-Wild"))
    assert "Step 5: " in text


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_the_request_for_ratings_holds_every_rule(task):
    text = prompts.judge_prompt(task, "GOLD", "STEPS", "CLUE")
    for rule in ("0/1", "1/1", "visual clue", "audio clue (ground truth): CLUE", "GOLD", "STEPS", "<score>Step 1: a/b"):
        assert rule in text
    assert f"true {task.about}: GOLD" in text
    assert "clearly contradicts" in text
    assert "as many ratings as" in text
    assert ("C/K" in text) is (task.name in ("FG-ER", "ML-ER")) is task.fraction
    for case in {"FG-ER": ("2/3", "0/2", "1/1"), "ML-ER": ("0/2", "1/3", "2/4", "3/3")}.get(task.name, ()):
        assert f": {case} (" in text
    assert prompts.judge_prompt(task, "g", "s", None).count("none in words") == 1


def test_the_contradiction_of_fg_sa_is_resolved_and_can_be_had_back():
    pair = "predicted positive; true strong positive: "
    ours = prompts.judge_prompt(TASKS["FG-SA"], "g", "s", None)
    theirs = prompts.judge_prompt(TASKS["FG-SA"], "g", "s", None, contradictory=True)
    assert (f"{pair}0/1" in ours, f"{pair}1/1" in ours) == (True, False)
    assert (f"{pair}0/1" in theirs, f"{pair}1/1" in theirs) == (True, True)
    assert ours.count("; true ") == theirs.count("; true ") == 5
    for task in set(TASKS) - {"FG-SA"}:
        same = (prompts.judge_prompt(TASKS[task], "g", "s", None, contradictory=both) for both in (False, True))
        assert len(set(same)) == 1


def test_the_models_question_names_candidates_and_the_form_of_the_answer():
    task = TASKS["SA"]
    text = prompts.model_question(task, "Hello.", "Which sentiment?", ["positive", "negative"])
    assert text.startswith('Subtitle: "Hello." Which sentiment? Choose from: positive, negative.')
    assert "<think> </think>" in text
    assert "<answer> </answer>" in text
    assert "Choose" not in prompts.model_question(task, "", "positive or negative?", ["positive", "negative"])
    assert "sentiment of the person" in prompts.model_question(task)


def test_replies_in_json_become_the_score_form():
    expected = "<score>Step 1: 1/1, Step 2: 2/3</score>"
    for text in ('{"ratings": ["1/1", "2/3"]}', '```json\n{"ratings": ["1/1", "2/3"]}\n```', expected):
        assert score_text(text) == expected
    for other in ('{"ratings": "1/1"}', '{"ratings": ["yes"]}', '{"ratings": [2]}', "[]", "{", "1/1", '{"surety": 1}'):
        assert score_text(other) == other
    for several in ("Step 1: [1/1]\nStep 2: [1/1]", '{"ratings": ["1/1"]} or rather {"ratings": ["0/1"]}'):
        assert score_text(several) == several, "which of them?"
    assert score_field(score_text('{"ratings": []}'), fraction=False) is None


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [
        '```JSON\n{"ratings": ["1/1", "0/1"]}\n```',
        'Here are my ratings:\n```json\n{"ratings": ["1/1", "0/1"]}\n```\nThe last step is wrong [see above].',
        "[1, 0]",
        '{"ratings": [true, 0.0]}',
        '{"ratings": ["1 / 1", "0/1",]}',
        "{'ratings': ['1/1', '0/1']}",
        "［１／１，０／１］",
        '{"Step 1": "1/1", "Step 2": "0/1"}',
        '[{"step": 1, "rating": "1/1"}, {"step": 2, "rating": "0/1"}]',
    ],
)
def test_a_judge_is_read_as_leniently_as_a_reader(reply):
    assert score_text(reply) == "<score>Step 1: 1/1, Step 2: 0/1</score>"


def judged_by(rate):
    return lambda call: proper(call) if is_extraction(call) else rate(call)


def test_the_ratings_are_those_after_the_reasoning(tmp_path, manifest):
    thought = "<think>Is it <score>Step 1: 0/1</score>?</think>"
    items = given(tmp_path / "in", ["answer 0"], manifest)
    with Server(judged_by(lambda call: said(thought + '{"ratings": ["1/1", "1/1"]}'))) as server:
        ask(server, items, tmp_path / "out")
    (row,) = written(tmp_path / "out")
    assert row["score"] == "<score>Step 1: 1/1, Step 2: 1/1</score>"
    assert row["reply"].startswith(thought)


def test_what_could_not_be_read_or_was_cut_is_judged_again(tmp_path, manifest):
    items, out = given(tmp_path / "in", ["answer 0", "answer 1"], manifest), tmp_path / "out"
    cut = said("<score>Step 1: 1/1, Step 2: 1/1</score> The", finish_reason="length")

    def unwilling(call):
        return cut if "answer 1" in call.text else said("I cannot rate this.")

    with Server(judged_by(unwilling)) as server:
        _, judged = ask(server, items, out)
    assert (judged.done, judged.failed) == (0, 2)
    rows = {row["video_id"]: row for row in written(out)}
    assert rows["SA-0"]["error"] == "no ratings in 'I cannot rate this.'"
    assert (rows["SA-1"]["score"], rows["SA-1"]["finish_reason"]) == (None, "length")
    assert run.write_scores(out, [])["overall"]["count"] == 0
    with Server(proper) as server:
        _, judged = ask(server, items, out)
        assert len(server.calls) == 2, "the cache held their replies, and they are asked for all the same"
    assert (judged.done, judged.failed) == (2, 0)
    assert run.write_scores(out, [])["overall"]["count"] == 2


def test_steps_that_were_cut_off_are_none(tmp_path, manifest):
    def cut(call):
        return said("<step>Step 1: He", finish_reason="length") if is_extraction(call) else proper(call)

    items, out = given(tmp_path / "in", ["answer 0"], manifest), tmp_path / "out"
    with Server(cut) as server:
        steps, _ = ask(server, items, out)
    assert steps.failed == 1
    assert written(out, run.STEPS_FILE)[0]["step"] == "Error: it did not end properly (length)"


def test_a_ledger_survives_a_kill(tmp_path, caplog):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 1, "x": 1}\n{"id": 2}\n{"id": 1, "x": 2}\n{"id": 3, "x"', encoding="utf-8")
    ledger = Ledger(path, lambda row: row["id"])
    assert ledger.rows == {1: {"id": 1, "x": 2}, 2: {"id": 2}}
    assert "half-written" in caplog.text
    ledger.add({"id": 3})
    assert [row["id"] for row in read_rows(path)] == [1, 2, 1, 3]
    path.write_bytes(path.read_bytes()[:-1])  # only the line break is missing
    Ledger(path, lambda row: row["id"]).add({"id": 4})
    assert [row["id"] for row in read_rows(path)] == [1, 2, 1, 3, 4]
    path.write_text('{"other": 1}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"rows\.jsonl row 1: no row of this stage, it lacks 'id'"):
        Ledger(path, lambda row: row["id"])


def test_the_last_clue_of_an_id_counts_and_a_file_may_be_for_one_task(tmp_path):
    def write(name, rows):
        (tmp_path / name).write_text(json.dumps(rows), encoding="utf-8")
        return tmp_path / name

    row = {"video_id": "a", "audio_clue": "first"}
    whole = write(
        "clues.json", [row, row | {"audio_clue": "last"}, {"video_id": "b", "audio_clue": None, "error": "x"}]
    )
    clues = read_clues([whole, write("SA.json", [row | {"audio_clue": "of SA"}])])
    assert (find_clue(clues, "IR", "a"), find_clue(clues, "SA", "a")) == ("last", "of SA")
    assert find_clue(clues, "SA", "b") is None
    with pytest.raises(UserError, match="item 1: expected video_id and audio_clue"):
        read_clues([write("bad.json", [{"video_id": "a"}])])
    with pytest.raises(UserError, match="no audio clue in it"):
        read_clues([write("none.json", [])])


def test_a_manifest_of_something_else_is_refused(tmp_path, corpus):
    with pytest.raises(UserError, match="expected 'mme-emotion'"):
        run.benchmark_clips(corpus)
    for missing, problem in (("task", "task: got None"), ("gold", "expected the gold label")):
        meta = {"dataset": "mme-emotion", "task": "SA", "gold": "positive"}
        meta.pop(missing)
        write_manifest(tmp_path / "m.jsonl", [Clip("a", subtitle="Hello.", meta=meta)])
        with pytest.raises(UserError, match=problem):
            run.benchmark_clips(tmp_path / "m.jsonl")


def test_answers_from_elsewhere_find_their_clips(tmp_path, manifest):
    rows = [
        {"video_id": "SA.mp4", "ground_truth": "negative", "model_response": "bad", "step": "Step 1: bad"},
        {"video_id": "else.mp4", "ground_truth": "x", "model_response": None},
    ]
    (tmp_path / "SA.json").write_text(json.dumps(rows), encoding="utf-8")
    first, second = run.given_items([tmp_path], run.benchmark_clips(manifest))
    assert (first.gold, first.step, first.response, first.video.name) == ("negative", "Step 1: bad", "bad", "SA.mp4")
    assert (second.response, second.problem, second.video) == (None, "model_response is not a text", None)
    (tmp_path / "SA.json").write_text(json.dumps(rows[:1] * 2), encoding="utf-8")
    with pytest.raises(UserError, match=r"item 2: video_id: got 'SA\.mp4', expected a new id"):
        run.given_items([tmp_path], [])


# --- asking -----------------------------------------------------------------------------------------------------------


def test_a_judge_gets_text_frames_and_what_else_is_wanted(tmp_path, manifest):
    items = given(tmp_path / "in", ["I see joy."], manifest)
    clues = {("", "SA-0"): "a bright voice"}
    with Server(proper) as server:
        ask(server, items, tmp_path / "out", Judging(clues, audio=True))
        asked = server.calls[-1].body
    text, *media = asked["messages"][-1]["content"]
    assert "a bright voice" in text["text"]
    assert "Step 2: It is I see joy." in text["text"]
    assert [part["type"] for part in media] == ["image_url", "image_url", "input_audio"]  # 4 frames at 2 a second
    picture = base64.b64decode(media[0]["image_url"]["url"].removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(picture)).format == "JPEG"
    assert asked["temperature"] == 0
    assert asked["response_format"]["json_schema"]["schema"] == prompts.ratings_schema()


def test_an_item_without_clue_video_or_answer_is_kept_with_its_reason(tmp_path, manifest):
    items = given(tmp_path / "in", ["a", "b", "c", "d"], manifest)
    items[1] = replace(items[1], video=None)
    items[2] = replace(items[2], response=None, problem="the clip is broken")
    with Server(proper) as server:
        clues = {("SA", f"SA-{n}"): "x" for n in (0, 1, 2)}
        _, tally = ask(server, items, tmp_path / "out", Judging(clues))
        found = {row["video_id"]: (row["score"] is None, row["error"]) for row in written(tmp_path / "out")}
        assert found == {
            "SA-0": (False, None),
            "SA-1": (True, "no video, and the judge needs frames"),
            "SA-2": (True, "no answer: the clip is broken"),
            "SA-3": (True, "no audio clue of this clip among the clues"),
        }
        assert (tally.done, tally.failed, tally.total) == (1, 3, 4)
        before = len(server.calls), len(written(tmp_path / "out"))
        ask(server, items, tmp_path / "out", Judging(clues))
        assert (len(server.calls), len(written(tmp_path / "out"))) == before, "told once, asked never"


ODD = [
    "<score>Step 1: 1/1, Step 2: 1/1</score>",
    "no tags here",
    "<score></score>",
    "<score>Step 1: 1/1\nStep 2: 0/1</score>",
    "<score>Step 1:1/1, Step 2: 0/1</score>",
    "<score>Step 1: 0/1</score> then <score>Step 1: 1/1</score>",
    "Explanation: ok. <score>Step 1: 1/1, Step 2: 1/2</score>",
    "<SCORE>Step 1: 1/1</SCORE>",
    "<score>Step 1: 1/1, Step 2: 2/1</score>",
    '{"ratings": ["0/1", "1/1"]}',
    '```json\n{"ratings": ["1/1", "0/1"]}\n```',
    "ünicode \U0001f600 <score>Step 1: 1/1, Step 2: 0/0</score>",
]
TROUBLES = (
    status(429, {"Retry-After": "0.02"}),
    status(500),
    status(503, {"retry-after-ms": "10"}),
    rubbish(),
    no_choices(),
    breaks_off(),
    hangs_up(),
    said(""),
)


def odd_judge(call):
    """A judge in a bad mood: each item meets one trouble, then gets its own odd answer."""
    if is_extraction(call):
        return said(f"<step>Step 1: x Step 2: {re.search('answer [0-9]+', call.text).group()}</step>", 100, 20)
    number = int(re.search("answer ([0-9]+)", call.text).group(1))
    with odd_judge.lock:
        odd_judge.seen[number] = odd_judge.seen.get(number, 0) + 1
        first = odd_judge.seen[number] == 1
    time.sleep(0.01)
    return TROUBLES[number % len(TROUBLES)] if first else said(ODD[number], 1000, 10)


def test_a_judge_that_answers_in_every_odd_form(tmp_path, manifest):
    odd_judge.lock, odd_judge.seen = threading.Lock(), {}
    items = given(tmp_path / "in", [f"answer {n}" for n in range(len(ODD))], manifest)
    out = tmp_path / "out"
    with Server(odd_judge) as server:
        steps, judged = ask(server, items, out, timeout=2.0)
        assert server.most_at_once <= 2
    assert (steps.done, judged.done, judged.failed) == (len(ODD), 8, len(ODD) - 8)
    rows = {row["video_id"]: row for row in written(out)}
    assert [rows[f"SA-{n}"]["reply"] for n in range(len(ODD))] == ODD, "kept as they came"
    assert all(count == 2 for count in odd_judge.seen.values()), "one trouble, one reply, and no more"
    scored = [score_field(score_text(text), fraction=False) for text in ODD]
    read = [scores for scores in scored if scores is not None]
    report = run.write_scores(out, [])
    assert report["tasks"]["SA"]["count"] == len(read) == 8
    assert report["tasks"]["SA"]["sum_recognition"] == sum(scores.recognition for scores in read)
    assert report["audited"]["tasks"]["SA"]["n_unparsed"] == len(ODD) - len(read)
    # Tokens are those that the server counted; of the troubles an empty reply has 10 and 5, one without choices 3.
    assert (judged.input_tokens, judged.output_tokens) == (1000 * len(ODD) + 10 + 3, 10 * len(ODD) + 5)


def test_what_fails_stays_visible_and_is_tried_again(tmp_path, manifest):
    items = given(tmp_path / "in", ["answer 0", "answer 1"], manifest)
    out = tmp_path / "out"

    def broken(call):
        return status(500, message=f"no, {KEY}") if "answer 1" in call.text else proper(call)

    with Server(broken) as server:
        steps, judged = ask(server, items, out)
    assert (steps.failed, judged.failed) == (1, 0)
    by_id = {row["video_id"]: row for row in written(out, run.STEPS_FILE)}
    assert by_id["SA-1"]["step"].startswith("Error: 500")
    last = {row["video_id"]: row for row in written(out)}["SA-1"]
    assert last["step"].startswith("Error: "), "the reference judges a failed extraction"
    report = run.write_scores(out, [])
    assert report["tasks"]["SA"]["count"] == 2
    assert report["audited"]["tasks"]["SA"]["checks"]["failed_extractions"]["n"] == 1
    with Server(proper) as server:
        steps, judged = ask(server, items, out)
        assert len(server.calls) == 2, "the failed extraction and its judgement, nothing else"
    assert (steps.known, steps.done, judged.known, judged.done) == (1, 1, 1, 1)
    assert run.write_scores(out, [])["audited"]["tasks"]["SA"]["checks"]["failed_extractions"]["n"] == 0


def test_an_item_that_is_not_judged_is_null_and_tried_again(tmp_path, manifest):
    items = given(tmp_path / "in", ["answer 0", "answer 1"], manifest)
    out = tmp_path / "out"

    def broken(call):
        return status(500) if "answer 1" in call.text and not is_extraction(call) else proper(call)

    with Server(broken) as server:
        _, judged = ask(server, items, out)
        assert sum("answer 1" in call.text for call in server.calls) == 1 + 3, "one extraction, three attempts"
    assert (judged.done, judged.failed) == (1, 1)
    report = run.write_scores(out, [])
    assert (report["tasks"]["SA"]["count"], report["audited"]["tasks"]["SA"]["n_failed"]) == (1, 1)
    with Server(proper) as server:
        ask(server, items, out)
        assert len(server.calls) == 1
    report = run.write_scores(out, [])
    assert (report["tasks"]["SA"]["count"], report["audited"]["tasks"]["SA"]["n_failed"]) == (2, 0)


@pytest.mark.parametrize(("task", "extractions", "judgements"), [("ER-Wild", 5, 20), ("FG-ER", 10, 5)])
def test_each_task_is_tried_as_often_as_the_reference_does(tmp_path, manifest, task, extractions, judgements):
    items = given(tmp_path / "in", ["answer 0"], manifest, task)
    with Server(lambda _: status(500)) as server:
        ask(server, items, tmp_path / "out", attempts=None, first_wait=0.0)
    assert sum(map(is_extraction, server.calls)) == extractions
    assert len(server.calls) == extractions + judgements


def test_only_what_changed_is_judged_again(tmp_path, manifest):
    items = given(tmp_path / "in", ["answer 0", "answer 1"], manifest)
    out = tmp_path / "out"
    with Server(proper) as server:
        ask(server, items, out)
        assert len(server.calls) == 4
        ask(server, items, out)
        assert len(server.calls) == 4, "finished"
        ask(server, [items[0], replace(items[1], gold="negative")], out)
        assert len(server.calls) == 5, "another gold label: judged again, not extracted"
        ask(server, [replace(items[0], response="answer 9"), replace(items[1], gold="negative")], out)
        assert len(server.calls) == 7, "another answer: extracted and judged again"
        ask(server, items, out, Judging(repeat=3))
    judged = [row for row in run.ledgers(out)[1].rows.values()]
    assert sorted(row["repeat"] for row in judged) == [0, 0, 1, 1, 2, 2]
    assert len({row["asked"] for row in judged}) == 2
    report = run.write_scores(out, [])
    assert len(report["agreement"]["runs"]) == 3


def test_judgements_of_other_settings_or_media_are_made_again(tmp_path, manifest):
    items = given(tmp_path / "in", ["answer 0", "answer 1"], manifest)
    out = tmp_path / "out"
    write_media(tmp_path / "other.mp4", frames=4, fps=2, picture=lambda _: np.full((48, 64, 3), 200, np.uint8))
    with Server(proper) as server:
        ask(server, items, out)
        assert len(server.calls) == 4
        ask(server, items, out, Judging(max_side=32))
        assert len(server.calls) == 6, "smaller pictures: judged again, not extracted"
        ask(server, [items[0], replace(items[1], video=tmp_path / "other.mp4")], out, Judging(max_side=32))
        assert len(server.calls) == 7, "another video"
        ask(server, items, out, Judging(max_side=32), temperature=1.0)
        assert len(server.calls) == 11, "another temperature of both"


def test_only_judgements_of_the_clips_there_are_with_their_gold_are_scored(tmp_path, manifest):
    clips = run.benchmark_clips(manifest)[:4]
    items = [replace(run._item(clip, "slow", None), response="answer", step="Step 1: x.") for clip in clips]
    out = tmp_path / "out"
    with Server(proper) as server:
        ask(server, items, out)
    assert run.write_scores(out, clips)["overall"]["count"] == 4
    assert run.write_scores(out, clips[:3])["overall"]["count"] == 3, "the fourth is no clip any more"
    corrected = [replace(clips[0], meta={**clips[0].meta, "gold": "another"}), *clips[1:]]
    report = run.write_scores(out, corrected)
    assert (report["overall"]["count"], report["audited"]["overall"]["n_missing"]) == (3, 1)
    assert report["source"]["clips"] == 4
    assert run.write_scores(out, clips, items=items[:2])["overall"]["count"] == 2
    with pytest.raises(UserError, match="no judgement of these 4 clips with their gold labels"):
        run.write_scores(out, run.benchmark_clips(manifest)[4:])


def test_a_second_judge_stands_beside_the_first(tmp_path, manifest):
    items = given(tmp_path / "in", ["answer 0"], manifest)
    out = tmp_path / "out"
    with Server(proper) as server, ReplyCache(out / run.REPLIES_FILE) as cache:
        steps, judged = run.ledgers(out)
        for name in ("one", "two"):
            client = client_of(server, name, cache)
            if name == "one":
                extract(items, client, steps)
            judge(items, steps, client, Judging(), judged)
    assert [row["judge"] for row in written(out)] == ["one", "two"]
    report = run.write_scores(out, [])
    assert report["overall"]["count"] == 1
    assert report["judge"] == "one"
    assert list(report["agreement"]["runs"]) == ["one #1", "two #1"]
    assert run.write_scores(out, [], judge="two")["judge"] == "two"
    with pytest.raises(UserError, match="got 'three', the judged items are by 'one', 'two'"):
        run.write_scores(out, [], judge="three")


def test_a_server_without_structured_output_is_asked_in_words(tmp_path, manifest):
    def plain(call):
        return status(400, message="response_format") if "response_format" in call.body else proper(call)

    items = given(tmp_path / "in", ["answer 0", "answer 1"], manifest)
    with Server(plain) as server:
        _, tally = ask(server, items, tmp_path / "out", concurrency=1)
        assert sum("response_format" in call.body for call in server.calls) >= 1
    assert tally.done == 2
    assert {row["score"] for row in written(tmp_path / "out")} == {"<score>Step 1: 1/1, Step 2: 0/1</score>"}


def test_estimates_and_costs_by_hand(tmp_path, manifest):
    items = given(tmp_path / "in", ["answer 0", "answer 1"], manifest)
    out, prices = tmp_path / "out", Prices(10.0, 100.0)
    seen = []
    with Server(proper) as server, ReplyCache(out / run.REPLIES_FILE) as cache:
        client = client_of(server, "j", cache, prices=prices)
        first = run.forecast(items, out, client, client, Judging())
        assert not server.calls, "an estimate asks nothing"
        assert (first["steps"]["questions"], first["judge"]["questions"]) == (2, 2)
        assert first["judge"]["input_tokens"] > 2 * 7650  # ten pictures at 765 each, and the words
        assert first["judge"]["cost"] == pytest.approx((first["judge"]["input_tokens"] * 10 + 2 * 120 * 100) / 1e6)
        steps, judged = run.ledgers(out)
        tally = extract(items, client, steps, lambda tally: seen.append(tally.finished))
        assert seen == [0, 1, 2, 2]
        assert (tally.input_tokens, tally.output_tokens) == (200, 40)
        judge(items[:1], steps, client, Judging(), judged)
        again = run.forecast(items, out, client, client, Judging())
    assert again["steps"]["questions"] == 0
    # One item is left, and the one before took 1000 tokens and wrote 10: 1000 x 10 + 10 x 100 a million.
    assert (again["judge"]["questions"], again["judge"]["input_tokens"], again["judge"]["output_tokens"]) == (
        1,
        1000,
        10,
    )
    assert again["judge"]["cost"] == pytest.approx(0.011)


def test_the_export_is_the_references_form(tmp_path, manifest):
    items = given(tmp_path / "in", ["answer 0", "answer 1"], manifest)
    out = tmp_path / "out"
    with Server(proper) as server:
        ask(server, [items[0], replace(items[1], video=None)], out)
    (path,) = run.export_reference(out, "j")
    assert path == out / "reference" / "given" / "SA.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    names = ["video_id", "ground_truth", "model_response", "step", "score", "input_tokens", "output_tokens"]
    assert [list(row) for row in rows] == [names, names]
    assert [row["score"] is None for row in sorted(rows, key=lambda row: row["video_id"])] == [False, True]
    from mer_r1.benchmarks.mme_emotion.judged import read_judged
    from mer_r1.benchmarks.mme_emotion.scores.compare import score_report

    ours, theirs = (score_report(read_judged([place])) for place in (out, out / "reference"))
    assert (ours["tasks"], ours["overall"]) == (theirs["tasks"], theirs["overall"])


def test_a_model_that_hears_makes_the_clues(tmp_path, manifest):
    clips = run.benchmark_clips(manifest)
    path = tmp_path / "clues.jsonl"
    with Server(lambda _: said("A calm voice.")) as server, ReplyCache(tmp_path / "c.sqlite") as cache:
        client = client_of(server, "ears", cache)
        items = [*run.clip_items(clips), Item("SA", "silent", "given", "positive", video=None)]
        tally = make_clues(items, client, clues_ledger(path))
        assert (tally.done, tally.failed) == (8, 1)
        parts = server.calls[0].body["messages"][-1]["content"]
        assert [part["type"] for part in parts] == ["text", "input_audio"]
        assert not any(gold in parts[0]["text"] for gold in ("anger", "positive", "guilt"))
        make_clues(items, client, clues_ledger(path))
        assert len(server.calls) == 8
    clues = read_clues([path])
    assert find_clue(clues, "SA", "SA.mp4") == "A calm voice."
    assert find_clue(clues, "SA", "silent") is None


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def command(run, monkeypatch):
    """`run`, on a wider terminal."""
    monkeypatch.setenv("COLUMNS", "100")
    return run


def options(server, out, **more):
    given_options = {"out": out, "judge": "j", "judge-url": server.base_url, "attempts": 3, "first-wait": 0.01} | more
    return [word for name, value in given_options.items() for word in (f"--{name}", str(value))]


def test_the_whole_evaluation_of_the_tiny_model(taught_folder, manifest, tmp_path, command):
    """Predict, extract, judge, score; the key is nowhere; a finished evaluation asks nothing; slow against fast."""
    out = tmp_path / "out"
    words = ["eval", "mme-emotion", "--manifest", manifest, "--model", taught_folder, "--max-new-tokens", 24]

    seen: set[str] = set()

    def first_a_fault(call):
        # The echo of a server's own error would be the way for a key to get into records and logs.
        if call.text not in seen:
            seen.add(call.text)
            return status(500, message=f"bad key {call.headers['authorization']}")
        return proper(call)

    with Server(first_a_fault) as server:
        code, printed, logged = command(*words, *options(server, out, **{"prices": "1,2"}))
        assert code == 0, logged
        assert all(call.headers["authorization"] == f"Bearer {KEY}" for call in server.calls)
        asked = len(server.calls)
        again = command(*words, *options(server, out), "--json")
        assert len(server.calls) == asked, "finished: nothing is asked again"
    assert "judge: 16 of 16, 16,000 tokens read and 160 written, cost 0.0163" in printed  # 16 000 x 1 + 160 x 2
    assert "slow - fast" in printed
    report = json.loads(again[1])
    assert list(report["modes"]) == ["slow", "fast"]
    for entry in report["modes"].values():
        assert entry["overall"]["count"] == 8
        assert (entry["overall"]["recognition"], entry["overall"]["reasoning"]) == (0, 1)
        assert entry["audited"]["missing_known"]
        assert entry["audited"]["overall"]["n_missing"] == 0
    assert report["differences"]["slow - fast"]["overall"]["n"] == 8
    assert report == json.loads((out / run.SCORES_FILE).read_text(encoding="utf-8"))
    scored = command("score", "mme-emotion", "--predictions", out, "--manifest", manifest, "--json")
    own = {"model": str(taught_folder), "weights": weights_digest(taught_folder)}
    own |= {"manifest": str(manifest), "split": "all", "clips": 8}
    assert report.pop("source") == own
    assert report.pop("notes") == {"the picture lasts … s, the sound … s": 8}
    assert json.loads(scored[1]) == report | {"source": {"predictions": str(out), "manifest": str(manifest)}}
    one = json.loads(command("score", "mme-emotion", "--predictions", out, "--think", "fast", "--json")[1])
    assert one["overall"] == report["modes"]["fast"]["overall"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"records.jsonl", "steps.jsonl", "judged.jsonl", "replies.sqlite"}
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path
    assert KEY not in printed + logged + "".join(again[1:])
    no_judge = ["eval", "mme-emotion", "--manifest", manifest, "--out", out, "--judge", "none", "--stage", "score"]
    labels = command(*no_judge)
    assert (labels[0], "not the benchmark's score" in labels[1]) == (0, True)
    kept = json.loads((out / run.LABELS_FILE).read_text(encoding="utf-8"))
    assert {mode: entry["source"] for mode, entry in kept.items()} == dict.fromkeys(
        ("slow", "fast"), own | {"wheels": builtin().title}
    )
    assert f"manifest: {manifest}, split: all, clips: 8, wheels: {builtin().title}" in labels[1].replace("\n", " ")


def test_what_was_not_read_of_the_clips_is_counted(tmp_path):
    assert run.notes_of(tmp_path) == {}
    rows = [Record(name, mode, "x", notes=["no sound"]) for name in "ab" for mode in ("slow", "fast")]
    (tmp_path / run.PREDICTIONS).mkdir()
    (tmp_path / run.PREDICTIONS / "records.jsonl").write_text("\n".join(json.dumps(row.to_dict()) for row in rows))
    assert run.notes_of(tmp_path) == {"no sound": 2}
    assert run.notes_of(tmp_path, {"a"}) == {"no sound": 1}
    items = [run.Item("ER-Lab", name, "slow", "happy", "Happy.", notes=("no sound",)) for name in "aba"]
    report = run.write_label_scores(tmp_path, items, builtin())
    assert report["slow"]["notes"] == {"no sound": 2}


def test_the_questions_of_the_benchmark_are_asked(taught_folder, manifest, tmp_path, monkeypatch):
    from mer_r1.model import prompts as module
    from mer_r1.model.generation import Sampling

    asked = []
    original = module.encode_prompt
    monkeypatch.setattr(module, "encode_prompt", lambda omni, text, t: (asked.append(text), original(omni, text, t))[1])
    run.predict_answers(str(taught_folder), manifest, tmp_path, [ThinkingMode.FAST], Sampling(4, 0.0, seed=0))
    assert len(asked) == 8
    assert all(text.startswith("What is it? Reason step by step inside <think>") for text in asked)
    items = run.answered_items(run.benchmark_clips(manifest), tmp_path, [ThinkingMode.FAST])
    assert [(item.task, item.id, item.gold) for item in items][2:4] == [
        ("ML-ER", "ML-ER.mp4", "fear,sadness"),
        ("FG-ER", "FG-ER.mp4", "guilt"),
    ]
    assert not any((item.response or "").startswith("<think></think>") for item in items)


def test_a_killed_evaluation_goes_on_and_loses_and_repeats_nothing(tmp_path, manifest, command):
    count, out = 12, tmp_path / "out"
    clips = [
        Clip(f"c{n}", video=manifest.parent / "SA.mp4", meta={"dataset": "mme-emotion", "task": "SA", "gold": "x"})
        for n in range(count)
    ]
    data = manifest.parent / "many.jsonl"
    write_manifest(data, clips)
    (tmp_path / "in").mkdir()
    rows = [{"video_id": f"c{n}", "ground_truth": "x", "model_response": f"answer {n}!"} for n in range(count)]
    (tmp_path / "in" / "SA.json").write_text(json.dumps(rows), encoding="utf-8")
    enough, released = threading.Event(), threading.Event()

    def slow_then_silent(call):
        """The sixth judgement and those after it are not answered before the kill."""
        if not is_extraction(call):
            with lock:
                judged.append(call.text)
            if len(judged) > 5:
                enough.set()
                released.wait(30)
        return proper(call)

    lock, judged = threading.Lock(), []
    words = ["eval", "mme-emotion", "--manifest", data, "--predictions", tmp_path / "in"]
    with Server(slow_then_silent) as server:
        program = [sys.executable, "-m", "mer_r1.cli", *map(str, words), *options(server, out, concurrency=2)]
        process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert enough.wait(60)
        time.sleep(0.3)  # replies under way are written
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        released.set()
        before = (out / run.JUDGED_FILE).read_bytes()
        assert 4 <= before.count(b"\n") <= 5
        server.behave = proper
        extractions = sum(map(is_extraction, server.calls))
        assert extractions == count
        code, printed, _ = command(*words, *options(server, out, concurrency=2), "--json")
        assert code == 0
        assert sum(map(is_extraction, server.calls)) == count, "no answer is extracted twice"
        times = [sum(f"answer {n}!" in call.text for call in server.calls) - 1 for n in range(count)]
    assert min(times) == 1, "no item is lost"
    # Only what was under way at the kill, and never answered, is asked again.
    assert sum(times) <= count + 2
    assert (out / run.JUDGED_FILE).read_bytes().startswith(before)
    assert sorted(row["video_id"] for row in written(out)) == sorted(f"c{n}" for n in range(count))
    assert json.loads(printed)["overall"]["count"] == count


def test_estimate_stages_and_mistakes_on_the_command_line(tmp_path, manifest, command):
    answers(tmp_path / "in", ["answer 0"])
    words = ["eval", "mme-emotion", "--manifest", manifest, "--predictions", tmp_path / "in"]
    with Server(proper) as server:
        base = options(server, tmp_path / "out")
        code, printed, _ = command(*words, *base, "--estimate", "--prices", "2,8")
        assert (code, len(server.calls)) == (0, 0)
        assert "steps: 1 questions, about" in printed
        assert "cost" in printed
        early = [*words[:4], "--model", "none-needed", *base, "--estimate", "--json"]
        assert json.loads(command(*early)[1])["judge"]["questions"] == 2 * len(GOLD), "before anything is predicted"
        assert command(*words, *base, "--stage", "steps")[0] == 0
        assert len(server.calls) == 1
        assert not (tmp_path / "out" / run.JUDGED_FILE).exists()
        mistakes = {
            "give what to evaluate": [*words[:4], *base],
            "expected two numbers": [*words, *base, "--prices", 1],
            "expected 'mme-emotion'": [
                "eval",
                "mme-emotion",
                "--manifest",
                manifest.parent / "x.jsonl",
                *words[4:],
                *base,
            ],
        }
        write_manifest(manifest.parent / "x.jsonl", [Clip("a", subtitle="Hello.")])
        for problem, wrong in mistakes.items():
            code, _, err = command(*wrong)
            assert (code, problem in err, err.count("\n")) == (2, True, 1), err


@pytest.mark.parametrize(("unwilling", "code"), [(("answer 0", "answer 1"), 3), (("answer 0",), 1), ((), 0)])
def test_the_exit_status_says_whether_anything_was_judged(tmp_path, manifest, command, unwilling, code):
    def behave(call):
        refuses = not is_extraction(call) and any(text in call.text for text in unwilling)
        return status(400, message="At most 1 image") if refuses else proper(call)

    answers(tmp_path / "in", ["answer 0", "answer 1"])
    for row, name in zip(rows := json.loads((tmp_path / "in/SA.json").read_text()), "ab", strict=True):
        row["video_id"] = f"{name}.mp4"
    (tmp_path / "in/SA.json").write_text(json.dumps(rows))
    meta = {"dataset": "mme-emotion", "task": "SA", "gold": "positive"}
    clips = [Clip(n, video=manifest.parent / "SA.mp4", meta=meta | {"video_id": f"{n}.mp4"}) for n in "ab"]
    write_manifest(manifest.parent / "two.jsonl", clips)
    words = ["eval", "mme-emotion", "--manifest", manifest.parent / "two.jsonl", "--predictions", tmp_path / "in"]
    with Server(behave) as server:
        extra = ["--extra-body", '{"chat_template_kwargs": {"enable_thinking": false}}']
        assert command(*words, *options(server, tmp_path / "out"), *extra, "--json")[0] == code
        assert all(call.body["chat_template_kwargs"] == {"enable_thinking": False} for call in server.calls)
        again = [*words, *options(server, tmp_path / "out"), "--stage", "score", "--json"]
        assert command(*again)[0] == (3 if code == 3 else 0)


def test_scoring_on_the_command_line(shared, tmp_path, command):
    file = shared / "benchmarks" / "reference" / "mme_emotion_metrics.json"
    reference = json.loads(file.read_text(encoding="utf-8"))
    paths = []
    for task, entry in reference["tasks"].items():
        paths.append(tmp_path / "in" / f"{task}.json")
        paths[-1].parent.mkdir(exist_ok=True)
        paths[-1].write_text(json.dumps(entry["entries"]), encoding="utf-8")
    for judged in (
        ["--predictions", tmp_path / "in"],
        ["--predictions", *paths],
        ["--predictions", *paths[:4], "--predictions", *paths[4:]],
    ):
        code, printed, _ = command("score", "mme-emotion", *judged, "--cot-weight", 0.3, "--json")
        report = json.loads(printed)
        assert code == 0
        for name, value in reference["overall_alpha_0.3"]["total"].items():
            assert report["overall"][name] == pytest.approx(value, abs=1e-12)
        for task, entry in reference["tasks"].items():
            assert report["tasks"][task]["recognition"] == pytest.approx(
                entry["out"]["total"]["recognition"], abs=1e-12
            )
    code, printed, _ = command(
        "score", "mme-emotion", "--predictions", tmp_path / "in", "--categories", "--other", *paths[:1]
    )
    assert (code, "Agreement of judgements" in printed, "Audited scores" in printed) == (0, True, True)
    code, _, err = command("score", "mme-emotion", "--predictions", paths[0], "--cot-weight", 2)
    assert (code, err) == (2, "mer-r1: alpha: got 2.0, expected a weight from 0 to 1\n")


def test_clues_on_the_command_line(tmp_path, manifest, command):
    with Server(lambda _: said("A calm voice.")) as server:
        words = ["clues", "--manifest", manifest, "--out", tmp_path / "clues.jsonl", "--model", "ears"]
        code, printed, _ = command(*words, "--model-url", server.base_url)
        assert (code, "8 clues in" in printed) == (0, True)
        assert command(*words, "--model-url", server.base_url, "--json")[1].count("8") >= 1
        assert len(server.calls) == 8
