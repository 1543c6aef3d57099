"""Prediction: one record per clip whatever happens to the others, exchanges of one channel, resuming."""

import json
import shutil
from dataclasses import fields, replace

import pytest
import torch
from media_samples import tone, write_media
from typer.testing import CliRunner

from mer_r1.cli import app
from mer_r1.data.clip import Clip
from mer_r1.data.manifest import read_manifest, write_manifest
from mer_r1.emotions.metrics import wheel_scores
from mer_r1.emotions.thinking import FAST_PREFILL, ThinkingMode, parse
from mer_r1.emotions.wheels import builtin
from mer_r1.errors import UserError
from mer_r1.evaluation import predict as module
from mer_r1.evaluation.answerers.base import ask_groups
from mer_r1.evaluation.predict import encode_clip, evaluate_model, exchanged, predict
from mer_r1.evaluation.records import RECORDS_FILE, Record, commit, read_records
from mer_r1.evaluation.summary import derange, summarise, write_summary
from mer_r1.model.features import FeatureCache
from mer_r1.model.generation import Sampling
from mer_r1.model.omni import load
from mer_r1.rl.rollout import Rollouts

BOTH, SLOW, FAST = list(ThinkingMode), [ThinkingMode.SLOW], [ThinkingMode.FAST]
GREEDY = Sampling(24, 0.0, seed=0)


@pytest.fixture(scope="module")
def clips(corpus):
    return read_manifest(corpus)


@pytest.fixture(scope="module")
def records(taught, clips):
    return list(predict(taught, clips, BOTH, builtin(), GREEDY, batch_size=5, name="the-model"))


def ask(omni, clips, modes=BOTH, sampling=GREEDY, **settings):
    return list(predict(omni, clips, modes, builtin(), sampling, **settings))


# --- records ----------------------------------------------------------------------------------------------------------


def test_every_clip_has_a_record_in_every_mode(records, clips):
    first, second = [clip.id for clip in clips[:5]], [clip.id for clip in clips[5:]]
    expected = [(name, mode.value) for batch in (first, second) for mode in BOTH for name in batch]
    assert [(record.id, record.mode) for record in records] == expected


def test_a_record_has_all_that_scoring_and_reporting_need(records, clips, taught):
    taxonomy = builtin()
    gold = {clip.id: list(clip.labels) for clip in clips}
    for record in records:
        parsed = parse(record.completion)
        assert record.gold == gold[record.id]
        assert (record.labels, record.reasoning) == (list(parsed.labels), parsed.reasoning)
        assert record.well_formed is parsed.well_formed
        assert record.scores == wheel_scores(gold[record.id], parsed.labels, taxonomy)._asdict()
        assert record.categories.keys() == {wheel.name for wheel in taxonomy.wheels}
        assert record.categories["ekman"] == sorted(taxonomy.categories(parsed.labels, "ekman"))
        assert 0 < record.tokens <= 24
        assert record.seconds > 0
        assert (record.model, record.seed, record.error) == ("the-model", 0, None)
        assert record.versions.keys() >= {"torch", "transformers", "trl"}
        assert Record.from_dict(json.loads(json.dumps(record.to_dict()))) == record, "it survives the file"
    assert any(record.labels for record in records)
    assert {field.name for field in fields(Record)} == records[0].to_dict().keys()


def test_confidences_are_probabilities_of_each_wheels_sectors(records):
    taxonomy = builtin()
    answered = [record for record in records if record.labels]
    assert answered
    for record in answered:
        assert record.confidence.keys() == {wheel.name for wheel in taxonomy.wheels}
        for name, sectors in record.confidence.items():
            assert tuple(sectors) == taxonomy.sectors(name)
            assert all(0 <= value <= 1 for value in sectors.values())
            assert sum(sectors.values()) <= 1 + 1e-3  # rounded to four digits each
    assert all(record.confidence == {} for record in records if not record.labels)


def test_confidences_are_averaged_over_the_words_of_each_answer_by_hand():
    # Three answers: two words, none, one word; two sectors of one wheel and one of another.
    names = [("w", "joy"), ("w", "fear"), ("v", "any")]
    slow = torch.tensor([[0.8, 0.1, 0.9], [0.2, 0.5, 0.7], [0.0, 1.0, 0.25]])
    sampled = Rollouts([[1], [2], [3]], [[0.0]] * 3, torch.tensor([0, 0, 2]), slow=slow)
    first, second, third = module._confidences(sampled, names, 3)
    assert first == {"w": {"joy": 0.5, "fear": 0.3}, "v": {"any": 0.8}}
    assert second == {}
    assert third == {"w": {"joy": 0.0, "fear": 1.0}, "v": {"any": 0.25}}


def test_a_fast_completion_begins_with_the_empty_think(records):
    for record in records:
        assert record.completion.startswith(FAST_PREFILL) == (record.mode == "fast")
        assert "<|" not in record.completion, "no special token is shown"
    assert any(record.reasoning for record in records if record.mode == "slow")
    assert not any(record.reasoning for record in records if record.mode == "fast")


def test_tokens_count_what_was_generated_and_not_the_prefill(records, taught):
    short = next(record for record in records if record.mode == "fast" and record.well_formed)
    written = taught.tokenizer(short.completion.removeprefix(FAST_PREFILL))["input_ids"]
    assert abs(short.tokens - (len(written) + 1)) <= 1  # the token that ends it; pieces may be cut otherwise


@pytest.mark.parametrize("modes", [SLOW, FAST])
def test_one_mode_alone_gives_what_both_give(taught, clips, records, modes):
    alone = ask(taught, clips[:3], modes, name="the-model")
    expected = {record.id: record for record in records if record.mode == modes[0].value}
    for record in alone:
        assert replace(record, seconds=0.0, confidence={}) == replace(expected[record.id], seconds=0.0, confidence={})


def test_batches_do_not_change_an_answer(taught, clips, records):
    again = ask(taught, clips, SLOW, batch_size=1)
    expected = [record.completion for record in records if record.mode == "slow"]
    assert [record.completion for record in again] == expected


def test_a_clip_without_gold_is_answered_and_not_scored(taught, clips):
    (record,) = ask(taught, [replace(clips[0], labels=None)], SLOW)
    assert (record.gold, record.scores, record.error) == (None, None, None)
    (unscorable,) = ask(taught, [replace(clips[0], labels=("zzqx",))], SLOW)
    assert (unscorable.gold, unscorable.scores) == (["zzqx"], None)


def test_words_alone_can_be_asked_about(taught):
    (record,) = ask(taught, [Clip("words", subtitle="I am so glad.")], SLOW)
    assert record.error is None


def test_no_clips_give_no_records(taught):
    assert ask(taught, []) == []


def test_sampled_answers_repeat_with_their_seed(taught, clips):
    def answers(seed):
        return [record.completion for record in ask(taught, clips[:2], FAST, Sampling(16, 1.5, seed=seed))]

    assert answers(1) == answers(1)
    assert answers(1) != answers(2)


def test_sampled_answers_of_one_mode_are_those_of_both(taught, clips):
    sampling = Sampling(16, 1.5, seed=3)
    alone = [record for mode in BOTH for record in ask(taught, clips[:3], [mode], sampling)]
    both = ask(taught, clips[:3], BOTH, sampling)
    assert [(one.id, one.mode, one.completion) for one in both] == [(r.id, r.mode, r.completion) for r in alone]
    for record in both:  # a share of the batch's time by tokens
        assert record.seconds / record.tokens == pytest.approx(both[0].seconds / both[0].tokens, abs=1e-4)


@pytest.mark.parametrize(
    ("known", "asked"),
    [
        ({}, [("ab", BOTH)]),
        ({"a slow": None}, [("ab", BOTH)]),  # interrupted: the same rows again
        ({"a slow": None, "b slow": None, "a fast": None}, [("ab", BOTH)]),
        ({"a slow": None, "b slow": None}, [("ab", FAST)]),  # the other mode, later
        ({"a slow": "unreadable", "b slow": None}, [("ab", FAST), ("a", SLOW)]),
        ({"a slow": "unreadable", "b slow": None, "a fast": None, "b fast": None}, [("a", SLOW)]),
        ({"a slow": None, "b slow": None, "a fast": None, "b fast": None}, []),
    ],
)
def test_what_is_asked_again_by_hand(known, asked):
    found = []

    def answers(turns):
        found.extend(("".join(clip.id for clip in clips), list(modes)) for clips, modes in turns)
        return []

    states = {tuple(key.split()): error for key, error in known.items()}
    assert list(ask_groups([[Clip("a"), Clip("b")]], BOTH, states, answers, {})) == []
    assert found == asked


# --- what was left out ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory):
    path = write_media(tmp_path_factory.mktemp("long") / "a.mp4", frames=18, fps=2, sound=tone(9.0))
    return Clip("long", path, labels=("sad",))


CUT = "cut to the first 4 s of 9 s"
"""What the tiny policy, which reads four seconds, leaves out of the long clip."""


def test_what_was_left_out_of_a_clip_stands_in_its_records(taught, clips, long_clip, tmp_path):
    records = ask(taught, [clips[0], long_clip], BOTH)
    assert [(record.id, record.notes) for record in records] == 2 * [(clips[0].id, []), ("long", [CUT])]
    cache = FeatureCache(taught, tmp_path)
    for _ in range(2):  # computed, then read
        (record,) = ask(taught, [long_clip], FAST, tensors=cache.get)
        assert record.notes == [CUT]
    (raw,) = ask(taught, [long_clip], FAST, tensors=FeatureCache(taught, tmp_path, towers=False).get)
    assert raw.notes == [CUT]
    assert Record.from_dict(json.loads(json.dumps(record.to_dict()))).notes == [CUT]
    assert summarise(records)["notes"] == {"cut to the first … s of … s": 1}, "a clip counts once"


def test_notes_say_whose_channel_they_are_about(taught, clips, long_clip):
    pair = [clips[0], long_clip]
    get = exchanged(lambda clip: encode_clip(taught, clip), pair, {clips[0].id: "long", "long": clips[0].id}, "audio")
    assert [record.notes for record in ask(taught, pair, FAST, tensors=get)] == [[f"audio of clip long: {CUT}"], [CUT]]


def test_limits_are_those_that_were_given(taught_folder, long_clip, tmp_path):
    video = shutil.copy(long_clip.video, tmp_path / "a.mp4")
    write_manifest(tmp_path / "m.jsonl", [replace(long_clip, video=video, split="test")])
    limits = {"max_seconds": 6.0, "num_frames": 2, "max_pixels": 1000}
    file = evaluate_model(str(taught_folder), tmp_path / "m.jsonl", tmp_path / "out", FAST, GREEDY, limits=limits)
    (record,) = read_records(file)
    assert record.notes == ["cut to the first 6 s of 9 s", "pictures scaled from 64 × 48 to 36 × 27"]
    assert replace(load(taught_folder).settings, **limits) == load(taught_folder, limits=limits).settings
    with pytest.raises(UserError, match="max_seconds is -1"):
        load(taught_folder, limits={"max_seconds": -1})


# --- broken clips -----------------------------------------------------------------------------------------------------


def test_a_broken_clip_does_not_stop_the_others(taught, clips, records, tmp_path):
    (tmp_path / "garbage.mp4").write_bytes(b"no media at all")
    broken = [
        Clip("gone", video=tmp_path / "gone.mp4"),
        Clip("garbage", video=tmp_path / "garbage.mp4", labels=("sad",)),
    ]
    asked = [broken[0], clips[0], broken[1], clips[1]]
    found = ask(taught, asked, BOTH, batch_size=3, name="the-model")
    batches = (["gone", "clip-0", "garbage"], ["clip-1"])
    assert [record.id for record in found] == [name for batch in batches for _ in BOTH for name in batch], "in order"
    by_key = {(record.id, record.mode): record for record in found}
    for name in ("gone", "garbage"):
        for mode in BOTH:
            record = by_key[name, mode.value]
            assert name in record.error
            assert "\n" not in record.error
            assert (record.completion, record.labels, record.scores, record.confidence) == ("", [], None, {})
            assert (record.model, record.tokens) == ("the-model", 0)
    assert by_key["garbage", "slow"].gold == ["sad"]
    for record in records:
        if record.id in ("clip-0", "clip-1"):
            assert by_key[record.id, record.mode].completion == record.completion


def test_a_batch_of_broken_clips_only(taught, tmp_path):
    found = ask(taught, [Clip("a", video=tmp_path / "a.mp4"), Clip("b", video=tmp_path / "b.mp4")], batch_size=1)
    assert [record.error is not None for record in found] == [True] * 4


# --- exchanged senses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channel", "changed"),
    [("audio", {"audio", "mel_frames"}), ("video", {"video", "video_grid_thw", "video_second_per_grid"})],
)
def test_an_exchange_takes_one_sense_from_another_clip_and_nothing_else(taught, clips, channel, changed):
    chosen = [clips[index] for index in (0, 3, 5)]
    tensors = {clip.id: encode_clip(taught, clip) for clip in chosen}
    donors = derange(tensors, seed=1)
    get = exchanged(lambda clip: tensors[clip.id], chosen, donors, channel)
    for clip in chosen:
        mixed = get(clip)
        assert mixed.keys() == tensors[clip.id].keys()
        for name, value in mixed.items():
            source = donors[clip.id] if name in changed else clip.id
            assert torch.equal(value, tensors[source][name]), name
        assert not torch.equal(mixed[channel], tensors[clip.id][channel])


def test_an_exchange_with_a_clip_that_lacks_the_sense_takes_it_away(taught, clips):
    """The silent video gets a sound, and the clip that gives to it gets silence: each sense is used once."""
    pair = [clips[0], clips[1]]
    get = exchanged(lambda clip: encode_clip(taught, clip), pair, {"clip-0": "clip-1", "clip-1": "clip-0"}, "audio")
    assert "audio" not in get(clips[0])
    assert "audio" in get(clips[1])
    assert [record.error for record in ask(taught, pair, SLOW, tensors=get)] == [None, None]


def test_another_sound_changes_the_confidences(taught, clips):
    chosen = [clips[index] for index in (0, 3, 5)]
    donors = derange([clip.id for clip in chosen])
    plain = ask(taught, chosen, FAST)
    mixed = ask(
        taught, chosen, FAST, tensors=exchanged(lambda clip: encode_clip(taught, clip), chosen, donors, "audio")
    )
    assert [record.confidence for record in plain] != [record.confidence for record in mixed]


# --- evaluation -------------------------------------------------------------------------------------------------------


@pytest.fixture
def work(corpus, tmp_path):
    """A copy of the corpus, so that caches and broken files stay within one test."""
    shutil.copytree(corpus.parent, tmp_path / "corpus", ignore=shutil.ignore_patterns("features"))
    return tmp_path


def evaluate(taught_folder, work, out="out", modes=BOTH, split="test", **settings):
    manifest = work / "corpus" / "manifest.jsonl"
    return evaluate_model(str(taught_folder), manifest, work / out, modes, GREEDY, split, batch_size=3, **settings)


def keys(file):
    return [(record.id, record.mode) for record in read_records(file)]


def test_an_evaluation_writes_what_predict_gives(taught_folder, work, records):
    told = []
    file = evaluate(taught_folder, work, split="all", progress=lambda *step: told.append(step))
    assert file == work / "out" / RECORDS_FILE
    assert sum(more for more, _ in told) == 2 * 8
    assert {total for _, total in told} == {2 * 8}
    found = {(record.id, record.mode): record.completion for record in read_records(file)}
    assert found == {(record.id, record.mode): record.completion for record in records}
    assert read_records(file)[0].model == str(taught_folder)


def test_an_interrupted_evaluation_goes_on_and_repeats_nothing(taught_folder, work, records, monkeypatch):
    class Killed(BaseException):
        pass

    original, written = module.append_record, []

    def append(sink, record):
        if len(written) == 5:
            sink.write('{"id": "clip-5", "mode": "sl')  # the record that the kill cut through
            sink.flush()
            raise Killed
        written.append(record.id)
        original(sink, record)

    with monkeypatch.context() as patch:
        patch.setattr(module, "append_record", append)
        with pytest.raises(Killed):
            evaluate(taught_folder, work, split="all")
    before = (work / "out" / RECORDS_FILE).read_text(encoding="utf-8").splitlines()[:5]
    told = []
    file = evaluate(taught_folder, work, split="all", progress=lambda more, total: told.append(more))
    after = file.read_text(encoding="utf-8").splitlines()
    assert after[:5] == before, "kept as they were"
    assert len(after) == 16
    assert sum(told) == 16, "those done before count as progress"
    assert sorted(keys(file)) == sorted((record.id, record.mode) for record in records)
    answers = {(record.id, record.mode): record.completion for record in records}
    assert all(answers[record.id, record.mode] == record.completion for record in read_records(file))


def test_a_finished_evaluation_asks_nothing(taught_folder, work, monkeypatch):
    content = evaluate(taught_folder, work, modes=FAST).read_bytes()
    assert content
    monkeypatch.setattr(module, "answer_in_modes", lambda *_, **__: pytest.fail("asked again"))
    assert evaluate(taught_folder, work, modes=FAST).read_bytes() == content


def test_a_clip_that_could_not_be_read_is_tried_again(taught_folder, work):
    kept = (work / "corpus" / "7.mp4").read_bytes()
    (work / "corpus" / "7.mp4").write_bytes(b"no media")
    file = evaluate(taught_folder, work, modes=SLOW)
    assert {record.id: record.error is None for record in read_records(file)} == {"clip-6": True, "clip-7": False}
    (work / "corpus" / "7.mp4").write_bytes(kept)
    evaluate(taught_folder, work, modes=SLOW)
    assert [record.error for record in read_records(file)] == [None, None]
    assert len(file.read_text(encoding="utf-8").splitlines()) == 3


# --- whose records ----------------------------------------------------------------------------------------------------

OTHERS = {
    "sampling.temperature: 0.0, now 1.0": {"sampling": Sampling(24, 1.0, seed=0)},
    "sampling.seed: 0, now 1": {"sampling": Sampling(24, 0.0, seed=1)},
    "sampling.max_new_tokens: 24, now 4": {"sampling": Sampling(4, 0.0, seed=0)},
    "exchange: None, now 'audio'": {"exchange": "audio"},
    "split: 'test', now 'train'": {"split": "train"},
}


@pytest.fixture
def finished(taught_folder, work, monkeypatch):
    """A finished evaluation of the test clips; afterwards no model can be loaded."""
    file = evaluate(taught_folder, work, modes=FAST)
    monkeypatch.setattr("mer_r1.model.omni.load", lambda *_, **__: pytest.fail("asked"))
    return file


@pytest.mark.parametrize("named", OTHERS)
def test_records_made_otherwise_are_refused_before_the_model_is_loaded(finished, taught_folder, work, named):
    content = finished.read_bytes()
    how = {"sampling": GREEDY, "split": "test", **OTHERS[named]}
    with pytest.raises(UserError) as caught:
        evaluate_model(str(taught_folder), work / "corpus" / "manifest.jsonl", work / "out", FAST, **how)
    assert named in str(caught.value)
    assert "choose another folder, or ask anew with --overwrite" in str(caught.value)
    assert finished.read_bytes() == content


def test_retrained_weights_are_refused_under_the_same_path_and_a_copy_is_not(taught_folder, work, monkeypatch):
    shutil.copytree(taught_folder, work / "model")
    file = evaluate(work / "model", work, modes=FAST)
    first = file.read_bytes()
    shutil.copytree(work / "model", work / "copy")
    assert evaluate(work / "copy", work, modes=FAST).read_bytes() == first
    weights = work / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # one bit of the last weight
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"\(weights: '\w+', now '\w+'\)"):
        evaluate(work / "model", work, modes=FAST)
    before = json.loads((work / "out" / "claim.json").read_text())
    assert keys(evaluate(work / "model", work, modes=SLOW, overwrite=True)) == [("clip-6", "slow"), ("clip-7", "slow")]
    after = json.loads((work / "out" / "claim.json").read_text())
    assert {name for name in after if after[name] != before[name]} == {"weights"}


def test_a_clip_that_has_changed_is_refused(finished, taught_folder, work):
    shutil.copy(work / "corpus" / "5.mp4", work / "corpus" / "7.mp4")
    with pytest.raises(UserError, match=r"1 of its clips .* the media of clip-7"):
        evaluate(taught_folder, work, modes=FAST)
    manifest = work / "corpus" / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace("This is sentence 6.", "Other words."))
    with pytest.raises(UserError, match=r"2 of its clips .* the subtitle or question of clip-6"):
        write_summary(work / "out", manifest)


def test_sampled_answers_are_the_same_after_a_kill_at_any_record(taught_folder, work):
    def evaluate(out):
        manifest, sampling = work / "corpus" / "manifest.jsonl", Sampling(12, 1.0, seed=3)
        return evaluate_model(str(taught_folder), manifest, work / out, BOTH, sampling, "all", batch_size=4)

    def texts(file):
        return {(record.id, record.mode): record.completion for record in read_records(file)}

    lines = evaluate("out").read_bytes().splitlines(keepends=True)
    expected = texts(work / "out" / RECORDS_FILE)
    assert len(set(expected.values())) > 8
    for kept in (1, 6, 11):
        (work / "out" / RECORDS_FILE).write_bytes(b"".join(lines[:kept]) + lines[kept][:20])
        assert texts(evaluate("out")) == expected


def test_a_thresholds_clips_are_never_test_clips(finished, taught_folder, work):
    told = ["--model", str(taught_folder), "--manifest", str(work / "corpus" / "manifest.jsonl")]
    for split in ("test", "all"):
        found = CliRunner().invoke(app, ["threshold", *told, "--out", str(work / "out"), "--split", split])
        assert str(found.exception) == f"--split {split} has test clips: a threshold is never chosen on them"
    found = CliRunner().invoke(app, ["threshold", *told, "--out", str(work / "out"), "--split", "train"])
    assert "split: 'test', now 'train'" in str(found.exception)


def test_only_the_split_that_is_asked_for(taught_folder, work):
    assert {name for name, _ in keys(evaluate(taught_folder, work, modes=SLOW))} == {"clip-6", "clip-7"}
    with pytest.raises(UserError, match="no rows with split=val"):
        evaluate(taught_folder, work, split="val")


def test_clips_pass_the_towers_once_over_modes_and_evaluations(taught_folder, work, monkeypatch):
    passes = []
    original = FeatureCache._store
    monkeypatch.setattr(
        FeatureCache,
        "_store",
        lambda self, paths, batch, *more: (passes.append(len(batch)), original(self, paths, batch, *more)),
    )
    evaluate(taught_folder, work)
    evaluate(taught_folder, work, "audio", FAST, exchange="audio")
    assert sum(passes) == 2


def test_an_exchange_of_a_sense_that_there_is_not(taught_folder, work):
    with pytest.raises(UserError, match="exchange must be audio or video, got 'smell'"):
        evaluate(taught_folder, work, exchange="smell")


def test_the_model_and_the_manifest_must_be_there(taught_folder, work):
    with pytest.raises(UserError, match="no model at"):
        evaluate(work / "none", work)
    with pytest.raises(UserError, match=r"none\.jsonl"):
        evaluate_model(str(taught_folder), work / "none.jsonl", work / "out", BOTH, GREEDY)


def test_the_commit_is_that_of_the_sources_or_unknown(monkeypatch):
    found = commit()
    assert found is None or len(found) == 40
    commit.cache_clear()
    monkeypatch.setenv("PATH", "")
    assert commit() is None, "without git it is unknown, and no error"
    commit.cache_clear()


def test_several_sampled_answers_are_draws_of_their_own(taught_folder, work):
    def evaluate(sampling=Sampling(24, 1.0, seed=3)):  # noqa: B008 - a frozen value
        manifest = work / "corpus" / "manifest.jsonl"
        return evaluate_model(
            str(taught_folder), manifest, work / "draws", FAST, sampling, "all", batch_size=3, num_answers=2
        )

    first = read_records(evaluate())
    ids = [record.id for record in first if record.draw == 0]
    assert [(record.id, record.draw) for record in first] == [(name, draw) for draw in (0, 1) for name in ids]
    texts = [{r.completion for r in first if r.id == name} for name in ids]
    assert max(map(len, texts)) == 2  # another draw is another answer
    file = work / "draws" / RECORDS_FILE
    kept = file.read_text().splitlines()[: len(ids) + 1]
    file.write_text("\n".join(kept) + "\n")  # killed in the second draw
    assert sorted((r.id, r.draw) for r in read_records(evaluate())) == sorted((r.id, r.draw) for r in first)
    with pytest.raises(UserError, match="temperature above 0"):
        evaluate(GREEDY)
