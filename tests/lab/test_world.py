"""The generative model of the scenes: labels, cues, texts, sentences, and what the oracle says about the channels."""

import re
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mer_r1.emotions.wheels import builtin
from mer_r1.errors import UserError
from mer_r1.lab.scenes.story.oracle import CHANNELS, Oracle, channel_scores
from mer_r1.lab.scenes.story.sentences import SPLITS, sample_sentence, split_of
from mer_r1.lab.scenes.story.texts import LONGEST, _lexicon, write_texts
from mer_r1.lab.scenes.story.world import STRENGTHS, Chances, Cue, GoldWord, Scene, sample_scene, world

SEEDS = st.integers(0, 2**31)


def scenes(count, seed=0, chances=None):
    return [sample_scene(np.random.default_rng([seed, index]), chances) for index in range(count)]


def small_cues(scene):
    return [*scene.signs, *([scene.modifier] if scene.modifier else [])]


def test_tables_name_only_what_exists():
    tables = world()
    for name, row in tables.emotions.items():
        assert {face for face, _ in row.ways} <= set(tables.faces), name
        assert {voice for _, voice in row.ways} <= set(tables.voices), name
        assert set(row.themes) <= set(tables.themes), name
        assert set(row.signs) <= set(tables.signs), name
        assert set(row.modifiers) <= set(tables.modifiers), name
        assert set(row.seconds) <= set(tables.emotions) - {name}, name
        assert 4 <= len(row.words) <= 10, name
    for row in tables.conflicts.values():
        known = {"face": tables.faces, "voice": tables.voices, "words": tables.themes}[row.channel]
        assert set(row.shows) <= set(known), row.name
    for patterns in (tables.faces, tables.voices):
        assert {near for row in patterns.values() for near in row} <= set(patterns)


def test_every_surface_word_is_on_three_wheels_and_belongs_to_one_emotion():
    taxonomy = builtin()
    words = [word for row in world().emotions.values() for word in row.words]
    assert len(words) == len(set(words))
    for word in words:
        placed = sum(taxonomy.sector(word, wheel) is not None for wheel in taxonomy.wheels)
        assert placed >= 3, word


def test_every_pattern_is_shared_by_emotions_of_several_kinds():
    """No face and no voice pattern gives the emotion away: each has at least four emotions on three Ekman sectors."""
    taxonomy = builtin()
    for place, patterns in enumerate((world().faces, world().voices)):
        for pattern in set(patterns) - {"plain"}:
            sharing = [row for row in world().emotions.values() if any(way[place] == pattern for way in row.ways)]
            assert len(sharing) >= 4, pattern
            sectors = {taxonomy.sector(row.words[0], "plutchik") for row in sharing}
            assert len(sectors) >= 3, pattern


@given(SEEDS)
@settings(max_examples=150, deadline=None)
def test_a_scene_is_well_formed(seed):
    scene = sample_scene(np.random.default_rng(seed))
    emotions = {scene.primary, scene.secondary}
    assert 1 <= len(scene.labels) <= 4
    assert len(set(scene.labels)) == len(scene.labels)
    assert {gold.emotion for gold in scene.gold} <= emotions
    assert scene.gold[0].emotion == scene.primary
    assert all(gold.word in world().emotions[gold.emotion].words for gold in scene.gold)
    assert len(scene.signs) <= 2
    assert {cue.strength for cue in (scene.face, scene.voice, *small_cues(scene))} <= set(STRENGTHS)
    if scene.conflict:
        assert world().conflicts[scene.conflict].valence == world().emotions[scene.primary].valence


def test_shares_follow_the_chances():
    """2,500 draws of a share p have a standard error of at most 0.01; the bounds are four of them."""
    drawn = scenes(2500)
    chances = Chances()
    hiding = sum(world().emotions[name].valence != 0 for name in world().emotions) / len(world().emotions)
    assert np.mean([scene.secondary is not None for scene in drawn]) == pytest.approx(chances.second, abs=0.04)
    conflicts = np.mean([scene.conflict is not None for scene in drawn])
    assert conflicts == pytest.approx(chances.conflict * hiding, abs=0.04)
    assert 0.2 <= chances.conflict * hiding <= 0.25
    evident = np.mean([scene.face.strength == "evident" for scene in drawn])
    assert evident == pytest.approx(chances.strengths[2], abs=0.04)


def test_an_acted_channel_is_never_credited_to_the_emotion():
    for scene in scenes(800):
        channel = world().conflicts[scene.conflict].channel if scene.conflict else None
        if channel == "face":
            assert scene.face.of is None
        elif channel == "voice":
            assert scene.voice.of is None
        elif channel == "words":
            assert scene.theme_of is None


def test_texts_are_short_and_careful_labels_are_gold():
    for index, scene in enumerate(scenes(600)):
        texts = write_texts(scene, bool(index % 2), np.random.default_rng(index))
        assert len(texts.reasoning.split()) <= LONGEST
        assert texts.careful_labels
        assert set(texts.careful_labels) <= set(scene.labels)
        assert texts.broad_labels
        assert all(word in texts.reasoning for word in texts.careful_labels)
        assert "{" not in texts.reasoning + texts.description + texts.remark
        assert any(word in texts.remark for word in scene.labels)


def test_broad_labels_recall_more_and_careful_labels_are_right_more_often():
    broad, careful, gold, right = 0, 0, 0, 0
    for index, scene in enumerate(scenes(600)):
        texts = write_texts(scene, False, np.random.default_rng(index))
        own = set(scene.labels)
        broad += len(own & set(texts.broad_labels))
        careful += len(own & set(texts.careful_labels))
        gold += len(own)
        right += set(texts.broad_labels) <= own
    assert broad / gold > careful / gold + 0.03
    assert right < 600 * 0.75  # many broad answers hold a wrong word; careful ones never do


def _said(text, kind, name):
    """Whether a text holds any phrase for this cue, whatever its word of degree."""
    for phrase in _lexicon()[kind][name]:
        pattern = re.escape(phrase).replace(re.escape("{d}"), r"(?:\w+ )?")
        if re.search(rf"\b{pattern}\b", text):
            return True
    return False


def test_reasoning_names_evident_cues_and_never_faint_ones():
    evident = missing = 0
    for index, scene in enumerate(scenes(800)):
        text = write_texts(scene, True, np.random.default_rng(index)).reasoning
        kinds = [("face", scene.face), ("voice", scene.voice), *(("signs", cue) for cue in scene.signs)]
        if scene.modifier:
            kinds.append(("modifiers", scene.modifier))
        for kind, cue in kinds:
            if cue.strength == "faint":
                assert not _said(text, kind, cue.name), (cue, text)
            if cue.strength == "evident":
                evident += 1
                missing += not _said(text, kind, cue.name)
    assert missing / evident < 0.13  # only what the limit of 35 words cuts


def test_a_conflict_between_visible_cues_is_named():
    scene = Scene(
        primary="sadness",
        secondary=None,
        conflict="smile",
        face=Cue("open_smile", "evident", None),
        voice=Cue("weak", "evident", "sadness"),
        theme="loss",
        theme_of="sadness",
        signs=(),
        modifier=None,
        gold=(GoldWord("sad", "sadness"),),
    )
    for seed in range(20):
        text = write_texts(scene, True, np.random.default_rng(seed)).reasoning
        assert "smile does not reach the voice" in text or "smile hides something" in text


def test_all_texts_together_use_few_words():
    words = set()
    for index, scene in enumerate(scenes(2000)):
        rng = np.random.default_rng(index)
        texts = write_texts(scene, bool(index % 2), rng)
        said = sample_sentence(scene.theme, "train", rng)
        for text in (texts.reasoning, texts.description, texts.remark, said, *texts.broad_labels, *scene.labels):
            words |= set(re.findall(r"[a-z']+", text.lower()))
    assert 600 < len(words) <= 900


def test_sentences_of_the_splits_are_disjoint_many_and_short():
    rng = np.random.default_rng(0)
    said = {split: set() for split in SPLITS}
    for split in SPLITS:
        for theme in world().themes:
            said[split] |= {sample_sentence(theme, split, rng) for _ in range(150)}
        assert all(split_of(sentence) == split for sentence in said[split])
        assert all(4 <= len(sentence.split()) <= 9 for sentence in said[split])
    assert len(said["train"]) > 1000
    cores = {split: {sentence.lower().split(", ")[-1] for sentence in said[split]} for split in SPLITS}
    assert not said["train"] & said["val"] | said["train"] & said["test"] | said["val"] & said["test"]
    assert len(cores["train"]) > 1000


def test_an_opener_does_not_move_a_sentence_to_another_split():
    assert split_of("Well, I bought coffee today.") == split_of("I bought coffee today.")


def test_every_split_has_sentences_for_every_theme():
    rng = np.random.default_rng(0)
    for theme in world().themes:
        for split in SPLITS:
            assert len({sample_sentence(theme, split, rng) for _ in range(60)}) >= 8, (theme, split)


def test_unknown_theme_is_an_error():
    with pytest.raises(UserError, match="unknown theme 'weather'"):
        sample_sentence("weather", "train", np.random.default_rng(0))


@pytest.fixture(scope="module")
def oracle():
    return Oracle()


def test_likelihoods_of_everything_that_can_be_seen_sum_to_one(oracle):
    """For every state: over all pairs of patterns, all themes, all sets of signs, all modifiers."""
    tables = world()
    channels = frozenset(CHANNELS)
    patterns = sum(
        oracle._pattern_likelihood(_seen(face, voice), channels) for face in tables.faces for voice in tables.voices
    )
    assert patterns == pytest.approx(np.ones(len(oracle.states)))
    for second in (False, True):
        themes = sum(oracle._theme_likelihood(theme, second) for theme in tables.themes)
        modifiers = sum(oracle._modifier_likelihood(name, second) for name in (None, *tables.modifiers))
        sets = [found for size in (0, 1, 2) for found in combinations(tables.signs, size)]
        signs = sum(oracle._sign_likelihood(found, second) for found in sets)
        for total in (themes, modifiers, signs):
            assert total == pytest.approx(np.ones(len(oracle.states)))


def _seen(face, voice):
    return Scene(
        primary="joy",
        secondary=None,
        conflict=None,
        face=Cue(face, "evident", None),
        voice=Cue(voice, "evident", None),
        theme="talk",
        theme_of=None,
        signs=(),
        modifier=None,
        gold=(GoldWord("happy", "joy"),),
    )


def test_the_oracle_is_calibrated(oracle):
    """Its belief in its first choice equals how often that is right: 600 scenes, standard error below 0.02."""
    names = np.array([state.primary for state in oracle.states])
    believed, right = [], []
    for scene in scenes(600):
        posterior = oracle.posterior(scene)
        belief = {name: posterior[names == name].sum() for name in world().emotions}
        first = max(belief, key=belief.get)
        believed.append(belief[first])
        right.append(first == scene.primary)
    assert np.mean(believed) == pytest.approx(np.mean(right), abs=0.06)


def test_posterior_without_channels_is_the_prior_of_the_states(oracle):
    posterior = oracle.posterior(scenes(1)[0], ())
    assert posterior == pytest.approx(np.array([state.prior for state in oracle.states]))


def test_every_channel_is_needed():
    """F1 of the oracle: all channels beat any two, any two beat their parts (200 scenes, the same for all)."""
    table = {name: row["f1"] for name, row in channel_scores(200).items()}
    assert table["face+voice+words"] > max(table["face+voice"], table["face+words"], table["voice+words"]) + 0.02
    for one in CHANNELS:
        pairs = [name for name in table if name.count("+") == 1 and one in name]
        assert all(table[pair] > table[one] + 0.05 for pair in pairs)
        assert table[one] > table["none"]
