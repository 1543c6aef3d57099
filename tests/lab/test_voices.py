"""The scenes' voices: deterministic audio, and every prosody parameter changes what it names."""

import json
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("espeakng_loader", reason="espeakng-loader, the speech synthesiser, is not installed")

from mer_r1.errors import UserError
from mer_r1.lab.scenes.voice import acoustics
from mer_r1.lab.scenes.voice.acoustics import NOISES
from mer_r1.lab.scenes.voice.lip_sync import MOUTH_FPS, mouth_curve
from mer_r1.lab.scenes.voice.speech import VARIANTS, Prosody, Speech, Voice, mix, sample_voice, speak

TEXT = "We are moving to another town in the summer."
VOICES = (
    Voice("en-US", "m3", 112.0, 170.0, "low"),
    Voice("en", "f3", 205.0, 165.0, "high"),
    Voice("en-GB-scotland", "m1", 125.0, 160.0, "low"),
    Voice("en-029", "klatt4", 104.0, 175.0, "low"),
)


def said(
    voice: Voice = VOICES[0], text: str = TEXT, seed: int = 0, max_seconds: float = 9.0, **prosody: float
) -> Speech:
    return speak(text, voice, Prosody(**prosody), np.random.default_rng(seed), max_seconds)


def pitches(speech: Speech) -> np.ndarray:
    """F0 (Hz) of the voiced 40 ms frames by autocorrelation: the highest peak between 60 and 450 Hz, if above 0.6."""
    found = []
    for start in range(int(speech.speaking[0] * 16000), speech.waveform.size - 640, 160):
        frame = speech.waveform[start : start + 640].astype(float)
        frame = acoustics.low_pass(frame - frame.mean(), 900.0) * np.hanning(640)
        if np.sqrt(np.mean(frame**2)) < 0.2 * np.sqrt(np.mean(speech.waveform.astype(float) ** 2)):
            continue
        window = np.correlate(np.hanning(640), np.hanning(640), "full")[639:]
        correlation = np.correlate(frame, frame, "full")[639:] / np.maximum(window, 1e-3)
        lags = np.arange(16000 // 450, 16000 // 60)
        best = lags[np.argmax(correlation[lags] * (1 - 1e-4 * lags))]
        if correlation[best] > 0.6 * correlation[0]:
            found.append(16000 / best)
    return np.array(found)


def noisy_share(speech: Speech) -> float:
    """Energy above 2 kHz over all energy, in the quietly voiced stretches as in the loud ones."""
    part = speech.waveform[int(speech.speaking[0] * 16000) :].astype(float)
    return float(np.sum(acoustics.band_pass(part, 2000.0, None) ** 2) / np.sum(part**2))


def test_same_request_same_samples_in_any_order():
    cases = [(voice, {"tremor": 0.4, "breath": 0.5, "pauses": 1, "pitch": float(i)}) for i, voice in enumerate(VOICES)]
    first = [said(voice, **prosody) for voice, prosody in cases]
    said(VOICES[1], "Quite another sentence, spoken in between?")
    again = [said(voice, **prosody) for voice, prosody in reversed(cases)][::-1]
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.waveform, two.waveform)
        np.testing.assert_array_equal(one.mouth, two.mouth)


def test_same_request_same_samples_in_a_fresh_process():
    prosody = {"tremor": 0.3, "breath": 0.4, "pauses": 1}
    said(VOICES[1])
    here = [said(voice, **prosody).waveform for voice in VOICES]
    program = (
        "import json, sys, zlib, numpy as np\n"
        "from mer_r1.lab.scenes.voice.speech import Prosody, Voice, speak\n"
        "text, prosody, voices = json.load(sys.stdin)\n"
        "for voice in voices[::-1]:\n"
        "    speech = speak(text, Voice(**voice), Prosody(**prosody), np.random.default_rng(0), 9.0)\n"
        "    print(speech.waveform.size, zlib.crc32(speech.waveform.tobytes()))\n"
    )
    request = json.dumps([TEXT, prosody, [asdict(voice) for voice in VOICES]])
    answer = subprocess.run(
        [sys.executable, "-c", program],
        input=request,
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(path for path in sys.path if path)},
    )
    import zlib

    there = [tuple(map(int, line.split())) for line in answer.stdout.splitlines()][::-1]
    assert there == [(waveform.size, zlib.crc32(waveform.tobytes())) for waveform in here]


@pytest.mark.parametrize("semitones", [-6.0, 6.0])
def test_pitch_moves_the_median_by_the_semitones(semitones):
    moved = [
        12 * np.log2(np.median(pitches(said(voice, pitch=semitones))) / np.median(pitches(said(voice))))
        for voice in VOICES
    ]
    np.testing.assert_allclose(np.mean(moved), semitones, atol=1.0)


def test_neutral_pitch_is_the_speakers():
    off = [12 * np.log2(np.median(pitches(said(voice))) / voice.pitch) for voice in VOICES]
    assert np.max(np.abs(off)) < 1.5


def test_range_moves_the_spread_of_pitch():
    def spread(factor: float) -> float:
        each = [12 * np.log2(pitches(said(voice, range=factor))) for voice in VOICES]
        return float(np.mean([np.subtract(*np.quantile(curve, (0.9, 0.1))) for curve in each]))

    flat, neutral, lively = spread(0.3), spread(1.0), spread(2.0)
    assert flat < 0.6 * neutral
    assert lively > 1.5 * neutral


@pytest.mark.parametrize("loudness", [-10.0, 0.0, 10.0])
def test_loudness_moves_the_level_without_clipping(loudness):
    for voice in VOICES:
        speech = said(voice, loudness=loudness)
        level = acoustics.speech_level_db(speech.waveform)
        assert level == pytest.approx(acoustics.REFERENCE_DB + loudness, abs=1.0)  # the soft limit takes a little
        assert np.abs(speech.waveform).max() < 1.0


def test_tempo_moves_the_duration():
    def seconds(tempo: float) -> float:
        spans = [said(voice, tempo=tempo).speaking for voice in VOICES]
        return float(np.mean([end - start for start, end in spans]))

    slow, neutral, fast = seconds(0.7), seconds(1.0), seconds(1.4)
    assert slow > 1.25 * neutral
    assert fast < 0.85 * neutral


def test_tremor_makes_the_level_and_pitch_wobble():
    tone = np.sin(2 * np.pi * 200 * np.arange(32000) / 16000)
    steady = acoustics.wobble(tone, 0.0, 16000, np.random.default_rng(0))
    shaky = acoustics.wobble(tone, 1.0, 16000, np.random.default_rng(0))
    assert shaky.size == tone.size

    def swing(waveform: np.ndarray) -> tuple[float, float]:
        crossings = np.flatnonzero((waveform[:-1] < 0) & (waveform[1:] >= 0))
        semitones = 12 * np.log2(16000 / np.convolve(np.diff(crossings), np.ones(4) / 4, "valid") / 200)
        peaks = np.abs(waveform[: 32000 // 400 * 400]).reshape(-1, 400).max(axis=1)
        return float(np.std(semitones)), float(20 * np.log10(peaks.max() / peaks.min()))

    assert swing(steady)[0] < 0.4
    assert swing(shaky)[0] > 0.8
    assert swing(shaky)[1] > swing(steady)[1] + 4.0


def test_breath_adds_noise_and_an_in_breath():
    clear = np.mean([noisy_share(said(voice)) for voice in VOICES])
    breathy = np.mean([noisy_share(said(voice, breath=1.0)) for voice in VOICES])
    assert breathy > 1.5 * clear
    speech = said(breath=0.8)
    assert said().speaking[0] == 0.0
    assert 0.3 < speech.speaking[0] < 0.6
    before = speech.waveform[: int(speech.speaking[0] * 16000)]
    assert -50 < acoustics.speech_level_db(before) < acoustics.REFERENCE_DB


@pytest.mark.parametrize("pauses", [1, 3])
def test_pauses_are_silent_stretches(pauses):
    for voice in VOICES:
        speech = said(voice, pauses=pauses)
        frames = speech.waveform[: speech.waveform.size // 160 * 160].reshape(-1, 160)
        heard = np.flatnonzero(np.abs(frames).max(axis=1) > 0.002)
        long_gaps = np.sum(np.diff(heard) > 20)  # over 0.2 s; the sentence has no comma of its own
        assert long_gaps == pauses


def test_more_pauses_than_gaps_between_words():
    assert said(text="Yes please.", pauses=3).waveform.size > 0


def test_splits_share_no_voice():
    table = {split: {name for names in groups.values() for name in names} for split, groups in VARIANTS.items()}
    assert not table["train"] & table["val"]
    assert not table["train"] & table["test"]
    assert not table["val"] & table["test"]
    for split, names in table.items():
        rng = np.random.default_rng(1)
        drawn = [sample_voice(rng, split) for _ in range(200)]
        assert {voice.variant for voice in drawn} <= names
        assert {voice.group for voice in drawn} == {"low", "high"}


def test_every_variant_and_accent_speaks():
    from mer_r1.lab.scenes.voice.speech import ACCENTS

    for names in (group for groups in VARIANTS.values() for group in groups.values()):
        for index, variant in enumerate(names):
            voice = Voice(ACCENTS[index % len(ACCENTS)], variant, 130.0, 170.0, "low")
            assert 0.3 < said(voice, "Good morning.").speaking[1] < 2.0


def test_unknown_split_and_bad_prosody_are_user_errors():
    with pytest.raises(UserError, match="split 'dev'"):
        sample_voice(np.random.default_rng(0), "dev")
    with pytest.raises(UserError, match="prosody tempo=3"):
        Prosody(tempo=3.0)
    with pytest.raises(UserError, match="prosody pitch=nan"):
        Prosody(pitch=float("nan"))


def test_mouth_moves_while_speaking_and_rests_in_silence():
    speech = said(breath=0.9, pauses=1)
    start, end = speech.speaking
    times = (np.arange(len(speech.mouth)) + 0.5) / MOUTH_FPS
    assert len(speech.mouth) == int(np.ceil(speech.waveform.size / 16000 * MOUTH_FPS))
    assert speech.mouth.min() >= 0.0
    assert speech.mouth.max() <= 1.0
    assert not speech.mouth[times < start - 0.1].any()
    inside = speech.mouth[(times > start) & (times < end)]
    assert (inside[:, 0] > 0.1).mean() > 0.6
    assert inside[:, 0].max() > 0.5
    assert speech.mouth[(times > end + 0.1)].sum() == 0.0


def test_mouth_shapes_follow_the_phonemes():
    curve = mouth_curve([(0.2, 0.4, "m"), (0.4, 0.7, "'A:"), (0.7, 1.0, "u:"), (1.0, 1.3, "i:")], 1.6)
    at = {
        name: curve[round(middle * MOUTH_FPS)] for name, middle in (("m", 0.3), ("A", 0.55), ("u", 0.85), ("i", 1.15))
    }
    assert at["m"][3] > 0.9
    assert at["A"][0] > 0.8
    assert at["u"][2] > 0.8
    assert at["i"][1] > 0.8
    assert not curve[:3].any()
    assert not curve[-5:].any()


def test_too_long_is_cut_and_said_so():
    whole, cut = said(tempo=0.7), said(tempo=0.7, max_seconds=1.5)
    assert not whole.truncated
    assert cut.truncated
    assert cut.waveform.size == 24000
    assert cut.speaking[1] == pytest.approx(1.5)
    assert len(cut.mouth) == 75


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "\x00", "...", "!?", "& <>"])
def test_nothing_to_speak_is_a_user_error(text):
    with pytest.raises(UserError, match="expected words"):
        said(text=text)


@pytest.mark.parametrize(
    "text",
    [
        '<b>Never</b> & "always" 5 > 3',
        "</speak><break time='9000ms'/>hello",
        "naïve café, mañana 東京 привет",
        "well \ud800 then",
        "one\x00two\x1bthree",
        "I 🙂 you",
        "[[h@l'oU]] {x} \\n %s",
        "no" * 200,
    ],
)
def test_odd_text_is_spoken(text):
    speech = said(text=text, max_seconds=20.0)
    assert speech.waveform.size > 1600
    assert np.isfinite(speech.waveform).all()
    assert not np.allclose(speech.waveform, 0)


def test_markup_in_the_text_is_no_command():
    """A break element in the text itself would add nine seconds."""
    assert said(text="hello <break time='9000ms'/> there", max_seconds=30.0).waveform.size < 8 * 16000


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_spoken_or_refused(text):
    try:
        speech = said(text=text, max_seconds=2.0)
    except UserError:
        return
    assert np.abs(speech.waveform).max() <= 1.0


@pytest.mark.parametrize("noise", NOISES)
def test_mix_has_the_noise_level_asked_for(noise):
    silent = Speech(np.zeros(0, np.float32), np.zeros((0, 4), np.float32), (0.0, 0.0), False)
    track = mix(silent, np.random.default_rng(0), 3.0, noise=noise, noise_db=-10.0)
    assert track.shape == (48000,)
    assert track.dtype == np.float32
    level = 10 * np.log10(np.mean(track.astype(float) ** 2))
    assert level == pytest.approx(acoustics.REFERENCE_DB - 10.0, abs=0.1)


def test_mix_places_the_speech():
    speech = said()
    track = mix(speech, np.random.default_rng(0), 4.0, offset_seconds=0.5, reverb=False)
    np.testing.assert_array_equal(track[8000 : 8000 + speech.waveform.size], speech.waveform)
    assert not track[:8000].any()


def test_mix_adds_another_voice_and_is_deterministic():
    speech, other = said(), said(VOICES[1], "Shall we go now?").waveform
    one, two = (mix(speech, np.random.default_rng(7), 4.0, noise_db=-20.0, other_voice=other) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    quiet = mix(speech, np.random.default_rng(7), 4.0, reverb=False)
    loud = mix(speech, np.random.default_rng(7), 4.0, reverb=False, other_voice=other, other_db=-6.0)
    added = acoustics.speech_level_db(loud - quiet)
    assert added == pytest.approx(acoustics.REFERENCE_DB - 6.0, abs=1.0)
    assert np.abs(one).max() <= 1.0


def test_mix_refuses_an_unknown_noise():
    with pytest.raises(UserError, match="noise 'rain'"):
        mix(said(), np.random.default_rng(0), 2.0, noise="rain", noise_db=-20.0)


def test_soft_limit_keeps_quiet_samples_and_bounds_loud_ones():
    quiet = np.linspace(-0.7, 0.7, 11)
    np.testing.assert_array_equal(acoustics.soft_limit(quiet), quiet)
    loud = acoustics.soft_limit(np.array([-9.0, 0.8, 5.0]))
    assert np.abs(loud).max() <= 1.0
    assert loud[1] == pytest.approx(0.7 + 0.3 * np.tanh(1 / 3))
