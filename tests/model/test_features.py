"""The cache: each clip passes the towers once, stale or half-written entries are never read, errors name the clip."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from media_samples import tone, write_media
from safetensors.torch import load_file, save_file

from mer_r1.data.clip import Clip
from mer_r1.data.manifest import read_manifest
from mer_r1.data.media.read import read_media
from mer_r1.errors import UserError
from mer_r1.model import features
from mer_r1.model.features import FeatureCache
from mer_r1.model.omni import load
from mer_r1.model.prompts import encode_prompt, media_tensors
from mer_r1.model.tower_outputs import embed, encode_media


@pytest.fixture(scope="module")
def clips(corpus):
    return read_manifest(corpus)


@pytest.fixture
def editable(taught_folder):
    """A policy of this test's own, to change."""
    return load(taught_folder)


def raw_of(omni, clip):
    return media_tensors(omni, read_media(clip.video, clip.audio, omni.settings.limits()))


@pytest.fixture
def counted(monkeypatch):
    """How many clips each call of the towers got."""
    calls = []
    original = features.encode_media

    def spy(model, media):
        calls.append(len(media))
        return original(model, media)

    monkeypatch.setattr(features, "encode_media", spy)
    return calls


# --- once and the same ------------------------------------------------------------------------------------------------


def test_each_clip_passes_the_towers_once_however_often_it_is_used(omni, clips, tmp_path, counted):
    cache = FeatureCache(omni, tmp_path)
    assert cache.build(clips, workers=0, batch_size=3) == 8
    assert cache.build(clips, workers=0) == 0
    for clip in clips:
        cache.get(clip)
    again = FeatureCache(omni, tmp_path)
    assert again.build(clips) == 0
    again.get(clips[0])
    assert counted == [3, 3, 2]
    assert (cache.tower_passes, again.tower_passes) == (8, 0)


def test_what_is_read_back_is_what_the_towers_gave(omni, clips, tmp_path):
    cache = FeatureCache(omni, tmp_path)
    cache.build(clips, workers=0, batch_size=5)
    for clip in clips:
        kept, expected = cache.get(clip), encode_media(omni.model, [raw_of(omni, clip)])[0]
        assert kept.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(kept[name], value, atol=1e-5, rtol=0)


def test_clips_of_every_kind_have_what_they_have(omni, clips, tmp_path):
    cache = FeatureCache(omni, tmp_path)
    video, audio = {"video", "video_grid_thw", "video_second_per_grid"}, {"audio", "mel_frames"}
    expected = {0: video | audio, 1: video | {"notes"}, 2: audio, 3: video | audio}
    assert {index: set(cache.get(clips[index])) for index in expected} == expected
    assert cache.get(Clip("words", subtitle="Only words.")) == {}


def test_an_entry_that_is_asked_for_is_made(omni, clips, tmp_path):
    cache = FeatureCache(omni, tmp_path)
    assert not cache.path(clips[0]).exists()
    cache.get(clips[0])
    cache.get(clips[0])
    assert cache.tower_passes == 1
    assert [path.name for path in cache.folder.iterdir()] == [cache.path(clips[0]).name]


def test_worker_processes_give_the_same(omni, clips, tmp_path):
    told = []
    here, there = FeatureCache(omni, tmp_path / "here"), FeatureCache(omni, tmp_path / "there")
    here.build(clips[:4], workers=0)
    assert there.build(clips[:4], workers=2, batch_size=2, progress=told.append) == 4
    assert sum(told) == 4
    for clip in clips[:4]:
        ours, theirs = here.get(clip), there.get(clip)
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(theirs[name], ours[name], atol=1e-5, rtol=0)


def test_workers_hand_over_arrays_which_need_no_shared_memory(omni, clips):
    item = features._Decoded(omni, clips)[0]
    assert {"pixel_values_videos", "input_features"} <= item.keys()
    assert all(type(value) is np.ndarray for value in item.values())


def test_progress_counts_every_clip_once(omni, clips, tmp_path):
    cache, told = FeatureCache(omni, tmp_path), []
    cache.build(clips[:3], workers=0)
    cache.build([*clips, clips[0]], workers=0, batch_size=2, progress=told.append)
    assert told[0] == 4, "those present, and the one that is there twice"
    assert sum(told) == 9


def test_clips_with_the_same_content_share_an_entry(omni, clips, tmp_path):
    renamed = replace(clips[0], id="other", video=shutil.copy(clips[0].video, tmp_path / "renamed.mp4"), labels=None)
    cache = FeatureCache(omni, tmp_path / "cache")
    assert cache.build([clips[0], renamed], workers=0) == 1
    assert cache.path(renamed) == cache.path(clips[0])
    assert cache.path(replace(clips[0], audio=clips[3].audio)) != cache.path(clips[0]), "sound from elsewhere"


# --- never stale, never half ------------------------------------------------------------------------------------------


def test_another_tower_weight_is_another_entry(editable, clips, tmp_path):
    before = FeatureCache(editable, tmp_path).path(clips[0])
    language_model = editable.model.get_input_embeddings().weight
    with torch.no_grad():
        language_model[0, 0] += 1
    assert FeatureCache(editable, tmp_path).path(clips[0]) == before, "the language model does not matter"
    for tower in editable.towers():
        with torch.no_grad():
            list(tower.parameters())[-1].view(-1)[-1] += 1e-3
        after = FeatureCache(editable, tmp_path).path(clips[0])
        assert after != before
        before = after


def test_another_preprocessing_is_another_entry(editable, clips, tmp_path):
    def path(towers=True):
        return FeatureCache(editable, tmp_path, towers).path(clips[0])

    seen = {path(), path(towers=False)}
    editable.settings = replace(editable.settings, question="full")
    assert path() in seen, "the wording of the question does not matter"
    for changes in ({"num_frames": 2}, {"max_seconds": 1.0}, {"max_pixels": 1000}):
        editable.settings = replace(editable.settings, **changes)
        seen |= {path(), path(towers=False)}
    editable.processor.video_processor.size["longest_edge"] *= 4
    seen |= {path(), path(towers=False)}
    editable.processor.feature_extractor.hop_length = 160
    seen |= {path(), path(towers=False)}
    assert len(seen) == 2 * 6


def test_another_content_under_the_same_name_is_another_entry(omni, tmp_path):
    clip = Clip("a", audio=tmp_path / "a.wav")
    write_media(clip.audio, sound=tone(0.5), audio_codec="pcm_s16le")
    before = FeatureCache(omni, tmp_path).get(clip)
    write_media(clip.audio, sound=tone(0.5, hertz=300), audio_codec="pcm_s16le")
    after = FeatureCache(omni, tmp_path).get(clip)
    assert not torch.equal(before["audio"], after["audio"])


@pytest.mark.parametrize("moment", ["while writing", "before renaming"])
def test_a_half_written_entry_is_never_read(omni, clips, tmp_path, monkeypatch, moment):
    class Killed(BaseException):
        pass

    original = features.save_file

    def killed(tensors, path, **header):
        original(tensors, path, **header)
        if moment == "while writing":
            path.write_bytes(path.read_bytes()[:100])
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(features, "save_file", killed)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # a killed process cleans nothing up
        with pytest.raises(Killed):
            FeatureCache(omni, tmp_path).get(clips[0])
    cache = FeatureCache(omni, tmp_path)
    assert len(list(cache.folder.iterdir())) == 1, "what the kill left behind"
    assert not cache.path(clips[0]).exists()
    assert "video" in cache.get(clips[0])
    assert cache.tower_passes == 1


HARM = {
    "cut": lambda path, _: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path, _: path.write_bytes(b""),
    "no header": lambda path, _: path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:]),
    "flipped": lambda path, _: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "other tensors": lambda path, _: save_file({"x": torch.zeros(1)}, path),
    "no signature": lambda path, _: save_file(load_file(path), path),
    "another clip's": lambda path, other: shutil.copy(other, path),
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
@pytest.mark.parametrize("first", ["asked for", "built"])
def test_an_entry_that_is_not_as_it_was_written_is_computed_again(omni, clips, tmp_path, harm, first):
    cache = FeatureCache(omni, tmp_path)
    cache.build(clips[:2], workers=0)
    expected = {name: value.clone() for name, value in cache.get(clips[0]).items()}
    harm(cache.path(clips[0]), cache.path(clips[1]))
    again = FeatureCache(omni, tmp_path)
    if first == "built":
        again.build(clips[:2], workers=0)
    found = again.get(clips[0])
    assert again.tower_passes == 1, "the other entry is whole"
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0)
    again.get(clips[0])
    assert again.tower_passes == 1, "and then it is whole too"


def test_the_signature_is_of_names_types_shapes_values_and_place(tmp_path):
    path, tensors = tmp_path / "features-1" / "a.safetensors", {"x": torch.arange(6.0), "y": torch.tensor(2)}
    signed = features._signature(path, tensors)
    others = [
        {"z": tensors["x"], "y": tensors["y"]},
        {**tensors, "x": tensors["x"].view(torch.int32)},
        {**tensors, "x": tensors["x"].reshape(2, 3)},
        {**tensors, "x": tensors["x"].flip(0)},
        {"x": tensors["x"]},
    ]
    found = [features._signature(path, other) for other in others]
    found += [features._signature(path.with_name("b.safetensors"), tensors)]
    found += [features._signature(tmp_path / "features-2" / path.name, tensors)]
    assert len({signed, *found}) == 8
    assert features._signature(path, dict(reversed(tensors.items()))) == signed


# --- clips that cannot be read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, b"", b"no media at all"], ids=["missing", "empty", "garbage"])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_clip_is_named_and_costs_no_other(omni, clips, tmp_path, content, workers):
    broken = Clip("the-broken-one", video=tmp_path / "broken.mp4")
    if content is not None:
        broken.video.write_bytes(content)
    cache = FeatureCache(omni, tmp_path / "cache")
    with pytest.raises(UserError, match=r"clip the-broken-one: .*broken\.mp4") as caught:
        cache.build([clips[0], broken, clips[1]], workers=workers, batch_size=1)
    assert "\n" not in str(caught.value)
    # Files that are not there or empty are found before any clip is decoded, others when their turn comes.
    assert cache.build(clips[:2], workers=0) == (1 if content else 2)
    with pytest.raises(UserError, match="clip the-broken-one: "):
        cache.get(broken)


# --- for stages that train the towers ---------------------------------------------------------------------------------


def test_raw_inputs_can_be_kept_instead(omni, clips, tmp_path, counted):
    cache = FeatureCache(omni, tmp_path, towers=False)
    cache.build(clips, workers=0)
    assert counted == []
    assert cache.tower_passes == 0
    for clip in clips:
        kept, exact = cache.get(clip), raw_of(omni, clip)
        assert kept.keys() == exact.keys()
        for name, value in exact.items():
            # Half precision on disk: 11 bits, so a relative error of at most 2^-11.
            torch.testing.assert_close(kept[name].to(value.dtype), value, rtol=2**-11, atol=1e-4)


def test_gradients_reach_the_towers_from_raw_inputs(editable, clips, tmp_path):
    cache = FeatureCache(editable, tmp_path, towers=False)
    prompt = encode_prompt(editable, "What?", cache.get(clips[0]))
    embed(editable.model, prompt.input_ids[None], [prompt.media]).square().sum().backward()
    for tower in editable.towers():
        assert sum(float(value.grad.abs().sum()) for value in tower.parameters() if value.grad is not None) > 0
