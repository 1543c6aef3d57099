"""Validate the scenes' voices with independent tools, openSMILE and Praat.

Speakers of all splits say sentences with random prosody. The tools' features give one number per prosody parameter, and
their rank correlations with the intended values are printed: within speakers, and pooled over speakers without
normalisation (as for an unknown speaker). With --room the sentences are in a room with noise, as in a clip.

The tools have their own licences, so they are not dependencies. In a temporary environment:

    pip install opensmile praat-parselmouth espeakng-loader==0.2.4 scipy
    PYTHONPATH=src python perf/scene_voices.py --room
"""

import argparse
from dataclasses import asdict

import numpy as np
import opensmile
import parselmouth
from scipy import signal, stats

from mer_r1.lab.scenes.voice.speech import Prosody, mix, sample_voice, speak

SENTENCES = (  # with their numbers of syllables
    ("I really did not expect to see you here again.", 13),
    ("We are moving to another town in the summer.", 12),
    ("You said that you would call me yesterday.", 11),
    ("My brother is waiting for us down by the river.", 13),
)
MEASURED_BY = {
    "pitch": "median F0",
    "range": "spread of F0",
    "loudness": "RMS level",
    "tempo": "syllables / s",
    "tremor": "F0 unsteadiness",
    "breath": "noise, 1.5-5 kHz",
    "pauses": "silent stretches",
}
SECONDS = 7.0
FRAME = 0.01


def random_prosody(rng):
    return Prosody(
        pitch=rng.uniform(-8, 10),
        range=float(np.exp(rng.uniform(np.log(0.2), np.log(2.2)))),
        loudness=rng.uniform(-10, 10),
        tempo=float(np.exp(rng.uniform(np.log(0.65), np.log(1.5)))),
        tremor=rng.uniform(0, 1) * (rng.random() < 0.6),
        breath=rng.uniform(0, 1) * (rng.random() < 0.6),
        pauses=int(rng.integers(0, 4)),
    )


def unsteadiness(pitch):
    """Median distance (semitones) of F0 from the line or parabola through each stretch of voicing."""
    voiced = np.flatnonzero(pitch > 0)
    distances = []
    for stretch in np.split(voiced, np.flatnonzero(np.diff(voiced) > 1) + 1):
        if len(stretch) >= 12:
            times, contour = np.arange(len(stretch)), pitch[stretch]
            trend = np.polyval(np.polyfit(times, contour, 1 if len(stretch) < 20 else 2), times)
            distances.extend(np.abs(contour - trend))
    return float(np.median(distances)) if distances else np.nan


def noisiness(waveform):
    """Minus Praat's harmonics-to-noise ratio (dB) between 1.5 and 5 kHz, where breath is heard."""
    band = signal.sosfiltfilt(signal.butter(4, (1500, 5000), "bandpass", fs=16_000, output="sos"), waveform)
    ratio = parselmouth.Sound(band, 16_000).to_harmonicity_ac(minimum_pitch=60).values
    return -float(ratio[ratio > -100].mean())


def measure(smile, waveform, syllables):
    frames = smile.process_signal(waveform, 16_000)
    pitch = frames["F0semitoneFrom27.5Hz_sma3nz"].to_numpy()
    voiced = pitch > 0
    # Where a voice stands out from hum and traffic.
    heard = signal.sosfilt(signal.butter(4, 300, "highpass", fs=16_000, output="sos"), waveform)
    power = np.square(heard[: waveform.size // 160 * 160]).reshape(-1, 160).mean(axis=1)
    power = np.convolve(power, np.ones(3) / 3, mode="same")
    active = power > max(10 ** (-2.6) * np.quantile(power, 0.98), 4 * np.quantile(power, 0.05))
    words = np.flatnonzero(active)
    gaps = np.diff(words) * FRAME
    talking = (words[-1] - words[0]) * FRAME - gaps[gaps > 0.22].sum()
    return {
        "pitch": float(np.median(pitch[voiced])) if voiced.any() else np.nan,
        "range": float(np.subtract(*np.quantile(pitch[voiced], (0.9, 0.1)))) if voiced.any() else np.nan,
        "loudness": float(10 * np.log10(power[active].mean())),
        "tempo": syllables / talking,
        "tremor": unsteadiness(pitch),
        "breath": noisiness(waveform),
        "pauses": float(np.sum(gaps > 0.22)),
    }


def rank_correlation(rows, knob, measured):
    ranks = stats.spearmanr([r["meant"][knob] for r in rows], [r["heard"][measured] for r in rows], nan_policy="omit")
    return float(ranks.statistic)


def collect(args, smile):
    rng = np.random.default_rng(args.seed)
    rows = []
    for index in range(args.voices):
        split = ("train", "val", "test")[index % 3]
        voice = sample_voice(rng, split)
        for _ in range(args.utterances):
            prosody = random_prosody(rng)
            text, syllables = SENTENCES[int(rng.integers(len(SENTENCES)))]
            speech = speak(text, voice, prosody, rng, max_seconds=SECONDS)
            waveform = speech.waveform
            if args.room:
                waveform = mix(speech, rng, SECONDS, offset_seconds=0.2, noise_db=rng.uniform(-35, -22))
            rows.append(
                {"voice": index, "meant": asdict(prosody), "heard": measure(smile, waveform, syllables), "who": voice}
            )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--voices", type=int, default=15, help="number of speakers")
    parser.add_argument("--utterances", type=int, default=12, help="sentences per speaker")
    parser.add_argument("--seed", type=int, default=0, help="seed for speakers and prosody")
    parser.add_argument("--room", action="store_true", help="add a room and noise")
    args = parser.parse_args()
    smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.LowLevelDescriptors)
    rows = collect(args, smile)
    print(f"{len(rows)} utterances of {args.voices} voices, {'in a room with noise' if args.room else 'clean'}")
    print(f"{'parameter':10s} {'measured as':18s} within voice   lowest voice   pooled over voices")
    for knob, name in MEASURED_BY.items():
        each = [rank_correlation([r for r in rows if r["voice"] == v], knob, knob) for v in range(args.voices)]
        print(
            f"{knob:10s} {name:18s} {np.nanmean(each):12.2f} {np.nanmin(each):14.2f} "
            f"{rank_correlation(rows, knob, knob):20.2f}"
        )
    heard = np.array([r["heard"]["pitch"] for r in rows])
    meant = np.array([12 * np.log2(r["who"].pitch / 27.5) + r["meant"]["pitch"] for r in rows])
    print(f"no voicing found in {np.isnan(heard).sum()} utterances, left out of pitch, range and tremor")
    print(f"median pitch off by {np.nanmedian(np.abs(heard - meant)):.2f} semitones (median)")


if __name__ == "__main__":
    main()
