"""Pretraining of the tiny towers: patches as the processor makes them, mirrored targets, and that they learn."""

import importlib.util

import numpy as np
import pytest
import torch
from tiny_world import SMALL, tiny_omni

from mer_r1.data.media.read import Media
from mer_r1.lab.tiny.pretrain import _bags, _patches, train_audio_tower, train_vision_tower
from mer_r1.model.prompts import media_tensors

needs_scenes = pytest.mark.skipif(
    importlib.util.find_spec("anny") is None or importlib.util.find_spec("numba") is None,
    reason="the extra `scenes` (anny, numba) is not installed",
)


@pytest.fixture(scope="module")
def omni():
    return tiny_omni()


def test_patches_are_those_of_the_video_processor(omni):
    side = SMALL.frame_size
    picture = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    twice = np.stack([picture.transpose(2, 0, 1)] * 2)
    clip = Media(frames=twice, frame_seconds=np.array([0.0, 1.0]), fps=1.0, seconds=2.0)
    ours = _patches(omni, torch.from_numpy(picture[None]).float(), omni.model.config.vision_config)
    torch.testing.assert_close(ours, media_tensors(omni, clip)["pixel_values_videos"], atol=1e-5, rtol=0)


@needs_scenes
def test_a_mirror_swaps_sides_and_turns_angles_and_twice_is_once():
    from mer_r1.lab.tiny.stills import TARGETS, mirrored

    columns, signs = mirrored()
    left, right = TARGETS.index("mouthSmileLeft"), TARGETS.index("mouthSmileRight")
    assert columns[left] == right
    assert columns[right] == left
    assert {TARGETS[i] for i in np.flatnonzero(signs < 0)} == {"yaw", "roll", "gaze_x"}
    values = np.random.default_rng(0).normal(size=len(TARGETS))
    once = values[columns] * signs
    np.testing.assert_allclose(once[columns] * signs, values)


@needs_scenes
def test_a_mirrored_picture_shows_the_mirrored_smile():
    from mer_r1.lab.tiny.stills import PATTERNS, TARGETS, draw_stills

    images, targets, patterns = draw_stills(8, seed=0, size=56, workers=1)
    np.testing.assert_array_equal(images, draw_stills(8, seed=0, size=56, workers=1).images)
    assert patterns.shape == (8,)
    assert set(patterns) <= set(range(len(PATTERNS)))
    assert images.shape == (8, 56, 56, 3)
    assert targets.shape == (8, len(TARGETS))
    assert np.abs(targets).max() <= 2.0


@needs_scenes
def test_the_vision_tower_learns(omni):
    first = train_vision_tower(omni, 64, 2, 1e-3, seed=0, workers=1)
    later = train_vision_tower(omni, 64, 120, 3e-3, seed=0, workers=1)
    assert later < 0.85 * first


@needs_scenes
def test_the_audio_tower_learns():
    omni = tiny_omni()
    first = train_audio_tower(omni, 48, 2, 1e-3, seed=0, workers=1)
    later = train_audio_tower(omni, 48, 120, 5e-3, seed=0, workers=1)
    assert later < 0.85 * first


@needs_scenes
def test_audio_clips_are_the_same_for_a_seed_and_hardly_share_a_speaker():
    from mer_r1.lab.tiny.sounds import MANNERS, draw_sounds

    sounds = list(draw_sounds(3, seed=0, workers=1))
    for one, other in zip(sounds, draw_sounds(3, seed=0, workers=2), strict=True):
        np.testing.assert_array_equal(one.waveform, other.waveform)
        assert one[1:] == other[1:]
    assert all(2.0 <= len(one.waveform) / 16_000 <= 4.0 and 0 <= one.manner < len(MANNERS) for one in sounds)
    assert not np.array_equal(sounds[0].waveform, next(draw_sounds(1, seed=1, workers=1)).waveform)


@needs_scenes
def test_the_sound_of_a_clip_is_that_of_its_recording():
    from mer_r1.lab.scenes.clip import record, script, sound

    drawn = script(3, "train", 0)
    np.testing.assert_array_equal(sound(drawn), record(drawn).waveform)


def test_words_in_all_or_none_of_the_texts_are_no_targets():
    texts = ["a loud voice", "a soft voice", "a soft tone", "a tone"]  # loud, soft, tone, voice
    assert _bags(texts).tolist() == [[1, 0, 0, 1], [0, 1, 0, 1], [0, 1, 1, 0], [0, 0, 1, 0]]
