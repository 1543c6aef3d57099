"""A diagnosis from a policy's rollouts: scripted policies whose numbers are known, the tiny one, and the command."""

import json
import math
from dataclasses import asdict

import pytest
import torch
from tiny_world import entry, media

from mer_r1.data.clip import Clip
from mer_r1.data.manifest import read_manifest, write_manifest
from mer_r1.emotions.wheels import builtin
from mer_r1.errors import UserError
from mer_r1.evaluation.diagnosis import survey
from mer_r1.evaluation.diagnosis.measure import diagnose
from mer_r1.evaluation.diagnosis.survey import conditional
from mer_r1.model.generation import Sampling
from mer_r1.model.omni import Settings
from mer_r1.rl.anchors import answer_tokens, at_first_word, category_tokens
from mer_r1.rl.method import Method
from mer_r1.rl.rollout import Rollouts, anchor_rows, rollout

GOLD = [("happy",), ("sad",), ("angry",), ("afraid",), ("proud", "happy"), ("bored",)]
GROUP, ANSWERS = 4, 3
WRONG = "nothing"  # on no wheel: neither recall nor precision


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return [Clip(str(i), subtitle=f"This is sentence {i}.", labels=labels) for i, labels in enumerate(GOLD)]


@pytest.fixture(scope="module")
def tensors(taught, clips):
    made = {clip.id: entry(taught, media(2.0, index)) for index, clip in enumerate(clips)}
    return lambda clip: made[clip.id]


class Scripted:
    """In place of `rollout`: a policy whose reasonings name their clip and number, and that answers by a rule.

    The rule gets the clip, the clip and number that the reasoning names, and which of the answers is drawn.
    """

    def __init__(self, tensors, clips, answer):
        self.clip_of = {id(tensors(clip)): index for index, clip in enumerate(clips)}
        self.answer, self.contexts = answer, []

    def __call__(self, omni, prompts, count, sampling, tokens=None, fast=False, prefilled=""):
        texts = []
        for prompt in prompts:
            clip = self.clip_of[id(prompt.media)]
            written = omni.tokenizer.decode(prompt.input_ids).rpartition("<think> clip ")[2].split()
            named = (int(written[0]), int(written[2])) if written[1:2] == ["way"] else None
            self.contexts += [(clip, named)] if named else []
            for index in range(count):
                if tokens is not None:
                    start = f"<think> clip {clip} way {index} </think><answer>"
                    texts.append(f"{start} {self.answer(clip, (clip, index), 0)} </answer>")
                else:
                    texts.append(f" {self.answer(clip, named or (clip, 0), index)} </answer>")
        ids = [omni.tokenizer(text)["input_ids"] + [omni.tokenizer.eos_token_id] for text in texts]
        found = Rollouts(ids, [[0.0] * len(row) for row in ids], torch.empty(0, dtype=torch.long))
        if tokens is not None:
            found.answers = [answer_tokens(row, omni.tokenizer) for row in ids]
            found.anchor_rollout = anchor_rows(found.answers)
            generator = torch.Generator().manual_seed(sampling.seed)
            shape = (len(found.anchor_rollout), tokens.num_categories)
            found.slow, found.fast = (torch.rand(shape, generator=generator) for _ in range(2))
        return found


def scripted(monkeypatch, taught, clips, tensors, answer, **how):
    policy = Scripted(tensors, clips, answer)
    monkeypatch.setattr(survey, "rollout", policy)
    return policy, diagnose(
        taught, clips, num_generations=GROUP, num_answers=ANSWERS, tensors=tensors, sampling=Sampling(48), **how
    )


# --- policies whose numbers are known ---------------------------------------------------------------------------------


def test_a_policy_that_ignores_its_reasoning(monkeypatch, taught, clips, tensors):
    """Right in two of three answers, whatever was reasoned."""
    rule = lambda clip, reasoning, index: GOLD[clip][0] if index != 1 else WRONG  # noqa: E731
    _, found = scripted(monkeypatch, taught, clips, tensors, rule)
    assert found.exchange["difference"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 6}
    assert 0.5 < found.exchange["own"]["mean"] <= 2 / 3
    assert found.explained["f1"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 6}
    assert found.ceiling["mean"] == 0.0
    assert found.terms["recall"]["reasoning"] == (None, None, 0)
    assert not found.can_act
    assert "the answer does not read its reasoning" in found.verdict


def test_a_policy_that_only_reads_its_reasoning(monkeypatch, taught, clips, tensors):
    """Right after its own even reasonings; after the others and after another clip's, always wrong."""
    single = [clip for clip in clips if len(clip.labels) == 1]

    def rule(clip, named, index):
        return single[clip].labels[0] if named[0] == clip and named[1] % 2 == 0 else WRONG

    policy, found = scripted(monkeypatch, taught, single, tensors, rule)
    assert found.exchange["own"]["mean"] == 0.5
    assert found.exchange["other"]["mean"] == 0.0
    assert found.explained["f1"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 5}
    assert found.ceiling["mean"] == 1.0
    assert found.reasoned == 1.0
    assert found.answers["f1"]["slow"]["mean"] == 0.5
    assert found.answers["f1"]["fast"]["mean"] == 1.0  # the rule lets them name way 0
    # Every reasoning met its own clip once and one other clip once, the same other clip for all of a clip's reasonings.
    assert sorted(named for clip, named in policy.contexts if clip == named[0]) == [
        (clip, way) for clip in range(5) for way in range(GROUP)
    ]
    other = [(clip, named) for clip, named in policy.contexts if clip != named[0]]
    assert len(other) == 5 * GROUP
    assert len({(clip, named[0]) for clip, named in other}) == 5


def test_forms_words_and_confidences_are_counted(monkeypatch, taught, clips, tensors):
    rule = lambda clip, named, index: ("happy, happy", "what a day, sad", "sad", "")[named[1]]  # noqa: E731
    _, found = scripted(monkeypatch, taught, clips, tensors, rule, batch_size=4)
    slow = {name: entry["slow"]["mean"] for name, entry in found.answers.items()}
    assert slow["repeated"] == slow["unplaced"] == 0.25
    assert slow["words"] == (2 + 2 + 1 + 0) / 4
    assert slow["well_formed"] == 1.0
    assert found.reasoned == 0.75  # an empty answer begins nowhere
    # Random confidences of 5 to 8 categories a wheel: level with each other, and below in half of the categories.
    assert abs(found.confidence["correct"]["difference"]["mean"]) < 0.1
    assert 0.2 < found.below["mean"] < 0.8


def test_confidence_is_read_at_the_first_word_that_a_wheel_places(taught):
    values = torch.tensor([[0.1], [0.2], [0.3], [0.4]])
    texts = ["<answer> what a day, sad", "<answer> nothing of that kind", "", "<answer> happy"]
    answers = [answer_tokens(taught.tokenizer(text)["input_ids"], taught.tokenizer) for text in texts]
    sampled = Rollouts([], [], anchor_rows(answers), answers=answers)
    assert sampled.anchor_rollout.tolist() == [0, 0, 1, 3]
    found = at_first_word(values, builtin(), category_tokens(builtin(), taught.tokenizer), sampled)
    assert found[[0, 3]].tolist() == values[[1, 3]].tolist()
    assert found[1:3].isnan().all()


def test_confidences_are_conditional_within_a_wheel():
    found = conditional(torch.tensor([[0.1, 0.3, 0.2], [0.0, 0.0, 0.5]]), torch.tensor([0, 0, 1]))
    assert found[0].tolist() == pytest.approx([0.25, 0.75, 1.0])
    assert found[1].isnan().tolist() == [True, True, False]


# --- the tiny policy --------------------------------------------------------------------------------------------------


def small(taught, clips, tensors, method=None, seed=0, **how):
    return diagnose(
        taught, clips, method, num_generations=GROUP, num_answers=2, sampling=Sampling(24, seed=seed), tensors=tensors,
        **how,
    )  # fmt: skip


def test_a_diagnosis_of_the_tiny_policy(taught, clips, tensors):
    told = []
    state = torch.get_rng_state()
    found = small(
        taught, [*clips, Clip("bare"), Clip("odd", labels=("xyzzy",))], tensors, progress=lambda *n: told.append(n)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert (found.settings["clips"], found.left_out) == (6, 2)
    assert found.settings["method"] == asdict(Method())
    assert all(0 <= share["mean"] <= 1 for share in found.explained.values())
    for entry_ in found.answers.values():
        assert entry_["difference"]["mean"] == pytest.approx(entry_["slow"]["mean"] - entry_["fast"]["mean"])
    assert {name for name, entry_ in found.answers.items() if entry_["slow"]["mean"] > 1} <= {"words"}
    assert set(found.terms) == {"recall", "precision"}
    assert len(found.checks) == 8
    assert 0 < found.reasoned <= 1
    assert sum(done for done, _ in told) <= told[0][1] == 6 * GROUP * (2 + 2 * 2)
    json.dumps(found.to_dict(), allow_nan=False)
    again = small(taught, clips, tensors)
    assert {**again.to_dict(), "left_out": 2, "seconds": 0} == {**found.to_dict(), "seconds": 0}
    assert small(taught, clips, tensors, seed=1).answers != found.answers


def test_a_side_that_is_not_used_is_not_judged(taught, clips, tensors):
    both, one = (small(taught, clips, tensors, Method(sides=sides)) for sides in ("both", "recall"))
    assert set(one.terms) == {"recall"}
    assert len(one.checks) == 5
    assert one.terms["recall"] == both.terms["recall"]


def test_the_weight_of_the_terms_decides_about_the_cosine(taught, clips, tensors):
    none, light, heavy = (small(taught, clips, tensors, Method(alpha=alpha)) for alpha in (0.0, 0.1, 5.0))
    assert none.cosine["mean"] == pytest.approx(1.0)
    assert none.weight["mean"] == pytest.approx(0.0, abs=1e-9)
    assert none.cosine["mean"] > light.cosine["mean"] > heavy.cosine["mean"]
    assert light.weight["mean"] < heavy.weight["mean"]
    assert heavy.terms == light.terms


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"method": Method(method="ad")}, "method=ad has no calibration to judge: expected method=mer-r1"),
        ({"num_generations": 1}, "num_generations: expected at least 2"),
        ({"num_answers": 1}, "num_answers: expected at least 2"),
        ({"sampling": Sampling(24, 0.0)}, "temperature: expected a positive number"),
    ],
)
def test_what_cannot_be_measured_is_refused(taught, clips, how, words):
    with pytest.raises(UserError, match=words):
        diagnose(taught, clips, **how)


def test_clips_models_and_policies_that_show_nothing_are_refused(monkeypatch, omni, taught, clips, tensors):
    with pytest.raises(UserError, match="no gold labels: none of the 2 clips has a label that a wheel can place"):
        diagnose(taught, [Clip("a"), Clip("b", labels=("xyzzy",))])
    with pytest.raises(UserError, match="too few clips: 4 with gold labels, expected at least 5, better 100"):
        diagnose(taught, clips[:4])
    with pytest.raises(UserError, match="0 of 24 slow rollouts have a reasoning and then an answer, too few"):
        small(omni, clips, tensors)  # untrained
    monkeypatch.setattr(taught, "settings", Settings(**{**vars(taught.settings), "form": "twice"}))
    with pytest.raises(UserError, match="the form 'twice', which has no fast thinking to compare with"):
        diagnose(taught, clips)


def test_longer_and_hotter_sampling_reaches_the_policy(monkeypatch, taught, clips, tensors):
    seen = []

    def noted(omni, prompts, count, sampling, **how):
        seen.append(sampling)
        return rollout(omni, prompts, count, sampling, **how)

    monkeypatch.setattr(survey, "rollout", noted)
    wanted = Sampling(100, 0.7, 0.9, seed=3)
    diagnose(taught, clips, num_generations=2, num_answers=2, sampling=wanted, tensors=tensors)
    assert {(s.temperature, s.top_p) for s in seen} == {(0.7, 0.9)}
    assert {s.max_new_tokens for s in seen} == {100, survey.ANSWER_TOKENS}
    assert len({s.seed for s in seen}) == len(seen) >= 4


# --- the command ------------------------------------------------------------------------------------------------------

FEW = ("--num-generations", 4, "--num-answers", 2, "--max-new-tokens", 24)


def test_the_command_prints_and_writes_a_diagnosis(run, taught_folder, corpus, tmp_path):
    called = ("diagnose", "--model", taught_folder, "--manifest", corpus, *FEW)
    status, out, _ = run(*called, "--out", tmp_path / "new" / "found.json", "alpha=0.5", "anchors=first")
    assert status == 0
    assert "8 clips, 4 slow rollouts and fast answers each, 2 answers per reasoning" in out
    assert "The calibration can" in out
    found = json.loads((tmp_path / "new" / "found.json").read_text(encoding="utf-8"))
    assert found["settings"]["method"] == asdict(Method(alpha=0.5, anchors="first"))
    status, out, _ = run(*called, "--json", "--num-clips", 6, "--split", "all")
    assert status == 0
    found = json.loads(out)
    assert found["settings"]["clips"] == 6
    assert len(found["checks"]) == 8
    assert math.isfinite(found["weight"]["mean"])


def test_a_recipe_chooses_the_method(run, taught_folder, corpus, tmp_path):
    (tmp_path / "own.yaml").write_text("rl:\n  alpha: 0.7\n  sides: recall\n  output_dir: runs/rl\n", encoding="utf-8")
    called = ("diagnose", "--model", taught_folder, "--manifest", corpus, *FEW, "--config", tmp_path / "own.yaml")
    status, out, _ = run(*called, "--json", "sides=precision")
    assert status == 0
    chosen = json.loads(out)["settings"]["method"]
    assert (chosen["alpha"], chosen["sides"]) == (0.7, "precision")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["learning_rate=1"], "cannot use 'learning_rate=1': choices of the method are key=value with method,"),
        (["alpha"], "cannot use 'alpha': choices of the method are key=value"),
        (["anchors=last"], "anchors must be one of mentions, all, first; got 'last'"),
        (["method=rd"], "method=rd has no calibration to judge"),
        (["--num-clips", "3"], "too few clips: 3 with gold labels, expected at least 5"),
        (["--split", "test"], "too few clips: 2 with gold labels, expected at least 5"),
        (["--num-generations", "1"], "num_generations: expected at least 2"),
    ],
)
def test_a_wrong_call_is_one_line(run, taught_folder, corpus, words, message):
    status, out, error = run("diagnose", "--model", taught_folder, "--manifest", corpus, *FEW, *words)
    assert (status, out) == (2, "")
    assert message in error
    assert error.count("\n") == 1


def test_a_manifest_without_labels_is_one_line(run, taught_folder, tmp_path):
    write_manifest(tmp_path / "bare.jsonl", [Clip(f"clip-{i}", video=tmp_path / f"{i}.mp4") for i in range(9)])
    assert len(read_manifest(tmp_path / "bare.jsonl")) == 9
    status, _, error = run("diagnose", "--model", taught_folder, "--manifest", tmp_path / "bare.jsonl")
    assert (status, error.count("\n")) == (2, 1)
    assert "no gold labels: none of the 9 clips has a label that a wheel can place" in error
