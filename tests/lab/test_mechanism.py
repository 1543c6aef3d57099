"""The mechanism's study: world, formulas and policy by hand, training in a small version, tables and page."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_architecture import ROOT
from torch import tensor
from typer.testing import CliRunner

from mer_r1 import cli
from mer_r1.data.jsonl import read_object
from mer_r1.errors import UserError
from mer_r1.lab.study.mechanism import formulas, policy, report, train
from mer_r1.lab.study.mechanism.formulas import FORMULAS, TERMS, Context, Formula, advantages
from mer_r1.lab.study.mechanism.policy import EMPTY, STOP, Clips, Rollouts, scores
from mer_r1.lab.study.mechanism.train import Setup
from mer_r1.rl.advantages import group_normalise, normalise_then_sum

SMALL = Setup(seeds=6, steps=60, base_clips=400, base_steps=120, cold_clips=400, cold_steps=250, test_clips=60, draws=4)
TINY = Setup(seeds=2, steps=2, base_clips=20, base_steps=2, cold_clips=20, cold_steps=2, test_clips=5, draws=2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_clip(*gold: int) -> Clips:
    """A clip of one seed with these correct categories; the annotators' word is the first of each category."""
    mask = torch.zeros(1, 1, policy.CATEGORIES, dtype=torch.bool)
    mask[..., list(gold)] = True
    words = torch.stack([mask, torch.zeros_like(mask)], -1).flatten(-2)
    return Clips(torch.zeros(1, 1, policy.FEATURES), mask, words, tensor([[gold[0]]]))


def written(*answers: list[int], reasoning: int = 0) -> Rollouts:
    words = [[*answer, *[STOP] * (policy.LENGTH - len(answer))] for answer in answers]
    return Rollouts(torch.full((1, 1, len(answers)), reasoning), tensor([[words]]))


def logits_of(word: int, at: float) -> torch.Tensor:
    """Logits (1, 1, 1, L, V): one word has the logit `at`, all others 0."""
    logits = torch.zeros(1, 1, 1, policy.LENGTH, policy.TOKENS)
    logits[..., word] = at
    return logits


def context(slow: torch.Tensor, fast: torch.Tensor, rollouts: Rollouts, clips: Clips) -> Context:
    return Context(slow, fast, fast[:, :, 0, 0], rollouts, clips, seeded())


# --- world and policy -------------------------------------------------------------------------------------------------


def test_scores_by_hand() -> None:
    # Words 2 and 3 are both of category 1. Gold is {0, 1}.
    found = scores(written([2, 3], [0, 2, 4], [8], []), one_clip(0, 1))
    expected = [[1 / 2, 1, 0, 0], [1, 2 / 3, 0, 0], [2 / 3, 4 / 5, 0, 0]]
    for values, wanted in zip(found, expected, strict=True):
        assert values.flatten().tolist() == pytest.approx(wanted)


def test_a_rollout_is_written_up_to_its_first_stop() -> None:
    rollouts = written([2, 3], [], [1, 2, 3, 4])
    assert rollouts.is_word.sum(-1).flatten().tolist() == [2, 0, 4]
    assert rollouts.written.sum(-1).flatten().tolist() == [3, 1, 4]


def test_clips_have_one_to_three_categories_and_one_word_for_each() -> None:
    clips = policy.make_clips(3, 400, seeded())
    count = clips.gold.sum(-1)
    assert set(count.flatten().tolist()) == {1, 2, 3}
    assert (clips.gold_words.sum(-1) == count).all()
    assert clips.gold.gather(-1, clips.main[..., None]).all()
    # 1 + .55 + .2, less the cases in which the third is one that is already there
    assert count.float().mean() == pytest.approx(1 + 0.55 + 0.2 * (1 - 1.55 / 8), abs=0.03)


def test_an_answer_is_sampled_from_the_logits_that_score_it() -> None:
    """At every position, the word frequencies are those of the teacher-forced distribution."""
    weights = {name: 8 * value for name, value in policy.initial_weights(1, seeded()).items()}
    clips = policy.make_clips(1, 1, seeded(1))
    rollouts = policy.roll_out(weights, clips, 20_000, 0.5, seeded(2))
    likely = policy.answer_logits(weights, policy.see(weights, clips), rollouts, 0.5).softmax(-1)
    for place in range(policy.LENGTH):
        chosen = rollouts.written[0, 0, :, place]
        wanted = likely[0, 0, chosen, place].mean(0)
        found = torch.nn.functional.one_hot(rollouts.words[0, 0, chosen, place], policy.TOKENS).float().mean(0)
        assert (found - wanted).abs().max() < 0.02, place


def test_without_sight_a_slow_answer_depends_on_the_reasoning_only_and_a_fast_one_on_the_clip() -> None:
    weights = policy.initial_weights(1, seeded())
    seen = policy.see(weights, policy.make_clips(1, 2, seeded()))
    same = Rollouts(torch.zeros(1, 2, 1, dtype=torch.long), torch.full((1, 2, 1, policy.LENGTH), 3))
    blind = policy.answer_logits(weights, seen, same, 0.0)
    assert torch.equal(blind[0, 0], blind[0, 1])
    assert not torch.equal(*policy.answer_logits(weights, seen, same, 0.3)[0])
    other = replace(same, reasoning=same.reasoning + 1)
    assert not torch.equal(policy.answer_logits(weights, seen, other, 0.0), blind)


def test_taught_answers_hold_distinct_correct_categories() -> None:
    clips = policy.make_clips(2, 300, seeded())
    recall, precision, _ = scores(Rollouts(clips.main[..., None], train.label_words(clips, 1.0, 0.0, seeded())), clips)
    assert recall.min() == precision.min() == 1
    broad = train.label_words(clips, 0.9, 0.25, seeded())
    careful = train.label_words(clips, 0.6, 0.0, seeded())
    assert (careful != STOP).any(-1).all()
    assert (broad != STOP).sum() > 1.2 * (careful != STOP).sum()


# --- terms ------------------------------------------------------------------------------------------------------------


def test_difference_by_hand() -> None:
    # Word 0 has e^2 / (e^2 + 16) when slow and 1 / 17 when fast; category 0 has one more word of the rest.
    slow, fast = logits_of(0, 2.0), logits_of(0, 0.0)
    total = tensor(2.0).exp() + 16
    gold_gap = ((tensor(2.0).exp() + 1) / total / (2 / 17)).log()
    other_gap = (17 / total).log()
    plus, minus = TERMS["difference"](context(slow, fast, written([0]), one_clip(0)))
    assert plus.item() == pytest.approx(gold_gap.item(), abs=1e-5)
    assert minus.item() == pytest.approx(-other_gap.item(), abs=1e-5)
    plus, minus = TERMS["word"](context(slow, fast, written([0]), one_clip(0)))
    assert plus.item() == pytest.approx((tensor(2.0).exp() / total * 17).log().item(), abs=1e-5)
    empty = TERMS["difference"](context(slow, fast, written([]), one_clip(0)))
    assert all(term.isnan().all() for term in empty)


def test_conditional_confidence_ignores_how_likely_a_stop_is() -> None:
    slow, fast = logits_of(STOP, 3.0), logits_of(STOP, -1.0)
    clips, rollouts = one_clip(0), written([0, 1])
    for term in TERMS["conditional"](context(slow, fast, rollouts, clips)):
        assert term.item() == pytest.approx(0, abs=1e-6)
    plus, minus = TERMS["difference"](context(slow, fast, rollouts, clips))
    assert plus.item() < -0.5
    assert minus.item() == pytest.approx(-plus.item(), abs=1e-5)


def test_the_first_mention_of_a_category_counts_once() -> None:
    found = formulas._first_mentions(written([0, 1, 2, 0], [5, 4], []))
    assert found[0, 0].tolist() == [[True, False, True, False], [True, False, False, False], [False] * 4]


def test_answer_level_terms_by_hand() -> None:
    # All words alike: every category has 1/8 at each of two anchors, so U = 1 - (7/8)^2 for all eight.
    flat = logits_of(0, 0.0)
    recall_side, precision_side = TERMS["answer"](context(flat, flat, written([0, 2]), one_clip(0, 1)))
    assert recall_side.item() == pytest.approx(1 - (7 / 8) ** 2, abs=1e-6)
    assert precision_side.item() == pytest.approx(2 / 8, abs=1e-6)


def test_an_empty_answer_has_the_least_term_of_its_group() -> None:
    slow = torch.cat([logits_of(0, 1.0), logits_of(0, 3.0), logits_of(0, 9.0)], 2)
    of = context(slow, torch.zeros_like(slow), written([0], [0], []), one_clip(0))
    for name in ("answer", "conditional"):
        for term in TERMS[name](of):
            assert term[0, 0, 2] == term.min() == term[0, 0, 0] < term[0, 0, 1]


def test_reasoning_and_hinge_by_hand() -> None:
    # Category 0 has (e^2 + 1) / (e^2 + 15) of the words when slow, 2 / 16 when fast and in the cold start.
    slow, fast = logits_of(0, 2.0), logits_of(0, 0.0)
    gap = ((tensor(2.0).exp() + 1) / (tensor(2.0).exp() + 15) * 8).log()
    (term,) = TERMS["reasoning"](context(slow, fast, written([0]), one_clip(0)))
    assert term.item() == pytest.approx(gap.item(), abs=1e-5)
    kept, suppressed = TERMS["hinge"](context(slow, fast, written([0]), one_clip(0)))
    assert kept.item() == suppressed.item() == 0  # more than kept
    kept, suppressed = TERMS["hinge"](context(fast, slow, written([0]), one_clip(0)))
    assert kept.item() == pytest.approx(-gap.item(), abs=1e-5)
    assert suppressed.item() == pytest.approx(((14 / (tensor(2.0).exp() + 15)) / (14 / 16)).log().item(), abs=1e-5)


# --- advantages -------------------------------------------------------------------------------------------------------


def rewards(seed: int = 0, seeds: int = 3, clips: int = 5, group: int = 4) -> list[torch.Tensor]:
    return [torch.rand(seeds, clips, group, generator=seeded(seed + i)) for i in range(3)]


def test_ad_is_that_of_the_project_at_unit_scale() -> None:
    given = rewards()
    words, reasoning = advantages(FORMULAS["ad"], given)
    assert torch.equal(words, reasoning)
    columns = torch.stack([given[0].reshape(-1), given[1].reshape(-1)], 1)
    plain = normalise_then_sum(columns, torch.ones(2), 4).view(3, 5, 4)
    ratio = words / plain
    assert torch.allclose(ratio, ratio[:, :1, :1].expand_as(ratio), rtol=1e-4)  # one scale per seed
    assert torch.allclose(words.square().mean((1, 2)), torch.ones(3))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0.05, 0.9))
def test_terms_have_their_share_of_the_variance(seed: int, share: float) -> None:
    """The full advantage is plain + weight * term, and the two parts have the wanted ratio of variances."""
    given = rewards(seed)
    term = torch.randn(3, 5, 4, generator=seeded(seed + 9))
    formula = Formula("x", terms="noise", share=share, where="reasoning")
    plain, full = advantages(formula, given, [term])
    direction = group_normalise(term.reshape(-1), 4).view(3, 5, 4)
    for one in range(3):
        # Solve full = a * plain + b * direction, and compare the parts.
        columns = torch.stack([plain[one].flatten(), direction[one].flatten()], 1)
        a, b = torch.linalg.lstsq(columns, full[one].flatten()[:, None]).solution.flatten()
        parts = [(x * column).square().mean() for x, column in zip((a, b), columns.T, strict=True)]
        assert (parts[1] / sum(parts)).item() == pytest.approx(share, abs=1e-3)


def test_alpha_is_the_weight_of_each_normalised_term() -> None:
    given = rewards()
    terms = [torch.randn(3, 5, 4, generator=seeded(i)) for i in (20, 21)]
    words, _ = advantages(FORMULAS["landed"], given, terms)
    parts = [group_normalise(values.reshape(-1), 4) for values in (*given[:2], *terms)]
    wanted = (parts[0] + parts[1] + 0.1 * (parts[2] + parts[3])).view(3, 5, 4)
    wanted = wanted / wanted.square().mean((1, 2), keepdim=True).sqrt()
    assert torch.allclose(words, wanted, atol=1e-5)


def test_spaces_and_sides() -> None:
    given = rewards()
    terms = [torch.randn(3, 5, 4, generator=seeded(i)) for i in (30, 31)]
    found = {
        space: advantages(Formula("x", terms="noise", space=space, alpha=1.0), given, terms)[0]
        for space in ("advantage", "reward", "mixed")
    }
    recall, precision = (given[i] + terms[i] for i in range(2))
    assert torch.allclose(found["reward"], advantages(FORMULAS["ad"], [recall, precision, given[2]])[0], atol=1e-5)
    assert not torch.allclose(found["mixed"], found["reward"], atol=0.1)
    assert not torch.allclose(found["mixed"], found["advantage"], atol=0.1)
    one_side = Formula("x", terms="noise", sides="recall", alpha=1.0)
    assert torch.equal(advantages(one_side, given, terms)[0], advantages(one_side, given, [terms[0]])[0])


def test_a_term_without_spread_changes_nothing() -> None:
    given = rewards()
    for space in ("advantage", "reward", "mixed"):
        formula = Formula("x", terms="hinge", space=space)
        found, _ = advantages(formula, given, [torch.zeros(3, 5, 4)] * 2)
        assert torch.allclose(found, advantages(FORMULAS["ad"], given)[0], atol=1e-6)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def studies() -> dict[float, dict]:
    """Of sight 0 and 1: cold start, policies of two formulas, and the scores of all three."""
    return {sight: small_study(sight) for sight in (0.0, 1.0)}


def small_study(sight: float) -> dict:
    start = train.cold_start(SMALL, sight)
    before = {name: value.clone() for name, value in start.items()}
    test = policy.make_clips(SMALL.seeds, SMALL.test_clips, seeded(99))
    scored = {"cold": train.evaluate(start, test, SMALL, sight)}
    weights = {}
    for name in ("ad", "noise-0.5"):
        weights[name] = train.reinforce(FORMULAS[name], start, SMALL, sight)[1]
        scored[name] = train.evaluate(weights[name], test, SMALL, sight)
    assert all(torch.equal(before[name], start[name]) for name in before)  # every formula has the same start
    return {"sight": sight, "start": start, "weights": weights, "scored": scored}


@pytest.fixture(params=[0.0, 1.0], ids=["sight 0", "sight 1"])
def trained(request: pytest.FixtureRequest, studies: dict[float, dict]) -> dict:
    return studies[request.param]


def test_rl_raises_f1_in_every_seed(trained: dict) -> None:
    cold, after = trained["scored"]["cold"], trained["scored"]["ad"]
    assert after["slow"]["f1"] > cold["slow"]["f1"] + 0.04
    assert min(b - a for a, b in zip(cold["f1"], after["f1"], strict=True)) > 0.02


@pytest.mark.parametrize("name", ["cold", "ad"])
def test_the_reasoning_explains_more_of_f1_the_less_the_answer_sees(name: str, studies: dict[float, dict]) -> None:
    without, full = (studies[sight]["scored"][name]["explained"] for sight in (0.0, 1.0))
    assert without > 1.4 * full
    assert full > 0


def test_fast_answers_are_broader_after_the_cold_start(trained: dict) -> None:
    cold = trained["scored"]["cold"]
    assert cold["fast"]["words"] > cold["slow"]["words"] + 0.2
    assert cold["fast"]["recall"] > cold["slow"]["recall"]


def test_the_noise_control_trains_differently_and_every_run_repeats(trained: dict) -> None:
    scored = trained["scored"]
    assert scored["noise-0.5"]["f1"] != scored["ad"]["f1"]
    again = train.reinforce(FORMULAS["ad"], trained["start"], SMALL, trained["sight"])[1]
    assert all(torch.equal(again[name], value) for name, value in trained["weights"]["ad"].items())


def test_seeds_are_independent(trained: dict) -> None:
    """What one seed's weights are does not change how another seed trains."""
    start = {name: value.clone() for name, value in trained["start"].items()}
    start["see"][0] += 1
    setup = replace(SMALL, steps=3)
    one, other = (train.reinforce(FORMULAS["answer-0.5"], given, setup, 0.0)[1] for given in (trained["start"], start))
    assert not torch.equal(one["see"][0], other["see"][0])
    assert all(torch.allclose(one[name][1:], other[name][1:], atol=1e-6) for name in one)


def test_explained_share_of_made_policies() -> None:
    """1 where the reasoning dictates the word, 0 where nothing but the clip counts."""
    weights = {name: torch.zeros_like(value) for name, value in policy.initial_weights(2, seeded()).items()}
    clips = policy.make_clips(2, 30, seeded())
    assert train.explained_share(weights, clips, 0.0).max() < 0.1
    for token in range(policy.REASONINGS):
        weights["reasoning_to_word"][:, token, token] = 50.0
    weights["position"][:, 1:, STOP] = 200.0
    assert train.explained_share(weights, clips, 0.0).min() > 0.99


def test_sizes_that_make_no_study_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 seeds, 1 step and 2 rollouts; got 1, 300 and 8"):
        Setup(seeds=1)


def test_every_formula_trains_and_differs_from_ad() -> None:
    start = train.cold_start(TINY, 0.3)
    found = {
        name: train.reinforce(formula, start, replace(TINY, steps=1), 0.3)[1] for name, formula in FORMULAS.items()
    }
    assert all(value.isfinite().all() for weights in found.values() for value in weights.values())
    same = [name for name in FORMULAS if name != "ad" and torch.equal(found[name]["position"], found["ad"]["position"])]
    # These act on the reasoning token alone, whose gradient is not in the positions' weights.
    assert set(same) <= {"reasoning-0.15", "reasoning-0.5"}
    assert not torch.equal(found["reasoning-0.5"]["reason"], found["ad"]["reason"])


# --- report -----------------------------------------------------------------------------------------------------------


def test_command_json_tables_picture_and_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {name: value for name, value in vars(TINY).items() if name not in ("seeds", "steps", "test_clips")}
    monkeypatch.setattr(train, "Setup", partial(Setup, **sizes))
    docs, out = tmp_path / "docs", tmp_path / "out"
    docs.mkdir()
    (docs / "mechanism.md").write_text("# M\n\n<!-- mechanism:differences -->\nold\n<!-- end -->\n", encoding="utf-8")
    words = ["study", "mechanism", "--seeds", "2", "--steps", "1", "--quick", "--out", str(out), "--docs", str(docs)]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    data = read_object(out / "mechanism.json")
    assert data["setup"] == {**vars(TINY), "steps": 1, "test_clips": 100}
    assert set(data["results"]) == {"0.0", "0.3", "1.0"}
    for found in data["results"].values():
        assert set(found) == {"cold", *FORMULAS}
        assert all(len(of["f1"]) == len(of["early_f1"]) == 2 for of in found.values())
    pictures = [docs / "study" / "mechanism" / f"{name}.png" for name in ("mechanism", "mechanism_early")]
    assert all(picture.stat().st_size > 10_000 for picture in pictures)
    assert pictures[0].read_bytes() != pictures[1].read_bytes()
    page = (docs / "mechanism.md").read_text(encoding="utf-8")
    assert "old" not in page
    assert "| D1: answer, 15% |" in page
    assert report.fill_page(page, data) == page
    # A finished study is only read, and one of another size is refused.
    seconds = data["seconds"]
    assert CliRunner().invoke(cli.app, words).exit_code == 0
    assert read_object(out / "mechanism.json")["seconds"] == seconds
    with pytest.raises(UserError, match=r"was made with other settings \(steps: 1, now 2; test_clips: "):
        report.run_study(TINY, out, "", lambda _: None)
    with pytest.raises(UserError, match="no such page"):
        report.publish(out, tmp_path)


def test_differences_are_paired_by_seed_and_marked_when_decided() -> None:
    ad = {"f1": [0.1, 0.5, 0.3], "early_f1": [0.0, 0.0, 0.0]}
    better = {"f1": [0.21, 0.6, 0.39], "early_f1": [0.1, -0.1, 0.0]}
    found = {name: better if name == "landed" else ad for name in FORMULAS}
    data = {"results": {str(sight): found for sight in report.SIGHTS}}
    number = report.difference(data, "landed", 0.0)
    assert number["mean"] == pytest.approx(0.1)
    # sd 0.01, t with 2 degrees of freedom 4.302653
    assert number["high"] == pytest.approx(0.1 + 4.302653 * 0.01 / 3**0.5, abs=1e-6)
    assert report.difference(data, "landed", 0.0, "early_f1")["mean"] == 0
    rows = {row[0]: row[1:] for row in report.difference_rows(data)[1]}
    assert rows["MER-R1, alpha 0.1"] == ["**+0.1000 [+0.0752, +0.1248]**"] * 3
    assert rows["RD"] == ["+0.0000 [+0.0000, +0.0000]"] * 3
    assert "AD" not in rows


def test_the_committed_page_holds_the_committed_results() -> None:
    text = (ROOT / "docs" / "mechanism.md").read_text(encoding="utf-8")
    data = read_object(ROOT / "docs" / "study" / "mechanism" / "mechanism.json")
    assert report.fill_page(text, data) == text
    assert {f"<!-- mechanism:{name} -->" in text for name in report.blocks(data)} == {True}
    assert data["setup"] == vars(Setup())
    assert all(set(found) == {"cold", *FORMULAS} for found in data["results"].values())


def test_the_committed_intervals_are_within_three_thousandths_where_the_page_says_so() -> None:
    data = read_object(ROOT / "docs" / "study" / "mechanism" / "mechanism.json")
    found = {(name, sight): report.difference(data, name, sight) for name in FORMULAS for sight in report.SIGHTS}
    wide = {place for place, number in found.items() if number["high"] - number["mean"] > 0.003}
    assert wide == {("recall-side-0.5", 0.3), ("recall-side-0.5", 1.0)}


def test_the_numbers_of_the_reading_are_in_the_tables() -> None:
    text = (ROOT / "docs" / "mechanism.md").read_text(encoding="utf-8")
    reading = text[text.index("## Reading") : text.index("## Early in training")]
    quoted = re.findall(r"[+-]0\.\d{4}", reading)
    assert len(quoted) > 10
    made = report.blocks(read_object(ROOT / "docs" / "study" / "mechanism" / "mechanism.json"))
    tables = made["differences"] + made["early"]
    assert [number for number in quoted if f"{number} [" not in tables] == []


def test_fast_answers_follow_an_empty_reasoning() -> None:
    weights = policy.initial_weights(2, seeded())
    clips = policy.make_clips(2, 3, seeded())
    assert (policy.roll_out(weights, clips, 4, None, seeded()).reasoning == EMPTY).all()
    assert (policy.roll_out(weights, clips, 4, 1.0, seeded()).reasoning < EMPTY).all()
