"""A made-up run folder with plausible numbers, to develop and test the report without training anything.

`python tests/helpers/synthetic_run.py DIR` writes one and its report.
"""

import json
import sys
import wave
from pathlib import Path

import av
import numpy as np

from mer_r1.emotions.thinking import format_completion
from mer_r1.emotions.wheels import builtin
from mer_r1.evaluation.records import Record, append_record, rescore

FAMILIES = (
    ("happy", "joyful", "excited", "cheerful", "delighted"),
    ("sad", "lonely", "hopeless", "disappointed", "grieving"),
    ("angry", "annoyed", "furious", "bitter", "irritated"),
    ("afraid", "anxious", "nervous", "worried", "terrified"),
    ("surprised", "amazed", "shocked", "astonished", "startled"),
    ("disgusted", "revolted", "contemptuous", "repulsed", "disdainful"),
)
SUBTITLES = (
    "I did not think you would come back after all this time.",
    "Oh, wonderful. Another meeting.",
    "Please, leave the light on.",
    "We won, can you believe that we won?",
)
# Chance of naming each gold word, and of naming a wrong one, by stage and mode.
SKILLS = {
    ("sft", "slow"): (0.60, 0.16),
    ("sft", "fast"): (0.70, 0.22),
    ("rl", "slow"): (0.76, 0.14),
    ("rl", "fast"): (0.75, 0.20),
}


def write_run(folder: Path, clips: int = 300, media: int | None = None, seed: int = 0) -> Path:
    """Write a run folder: manifest and media (of the first `media` clips), two stages, two conditions, logs."""
    rng = np.random.default_rng(seed)
    (folder / "eval").mkdir(parents=True, exist_ok=True)
    golds = {f"test-{index:05d}": _gold(rng) for index in range(clips)}
    _write_manifest(folder / "scenes", golds, clips if media is None else media, rng)
    for stage in ("sft", "rl"):
        _write_records(folder / "eval" / f"{stage}.jsonl", golds, stage, rng)
        (folder / stage).mkdir(exist_ok=True)
        write_lines(folder / stage / "log.jsonl", _log(stage, rng))
    for channel, harm in (("audio", 0.16), ("video", 0.3)):
        _write_records(folder / "eval" / f"rl-{channel}-exchanged.jsonl", golds, "rl", rng, harm)
    write_lines(folder / "run.json", [run_json()])
    return folder


def run_json() -> dict:
    return {
        "title": "Demo: slow and fast thinking on built-in scenes",
        "stages": [
            {"name": "sft", "title": "SFT", "records": "eval/sft.jsonl", "logs": "sft/log.jsonl"},
            {"name": "rl", "title": "MER-R1", "records": "eval/rl.jsonl", "logs": "rl/log.jsonl"},
        ],
        "manifest": "scenes/manifest.jsonl",
        "conditions": {
            "Audio exchanged": "eval/rl-audio-exchanged.jsonl",
            "Video exchanged": "eval/rl-video-exchanged.jsonl",
        },
        "settings": {
            "sft": {"learning_rate": 0.002, "clips": "0:400", "epochs": 2},
            "rl": {"learning_rate": 2e-4, "method": "mer-r1", "alpha": 0.1, "num_generations": 8, "beta": 0.04},
        },
        "versions": {"mer-r1": "0.1.0", "torch": "2.15.0", "transformers": "5.23.0", "trl": "1.16.0"},
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "seconds": {"scenes": 96.0, "sft": 71.5, "rl": 402.0, "evaluate": 118.0},
    }


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_clip(path: Path, rng: np.random.Generator, seconds: float = 2.0, fps: int = 8) -> None:
    """A small silent video: a coarse face that smiles more and more."""
    ys, xs = np.mgrid[0:128, 0:128]
    tint = rng.uniform(0.5, 1.0, 3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width = stream.height = 128
        stream.pix_fmt = "yuv420p"
        for index in range(int(seconds * fps)):
            bend = (index / (seconds * fps) - 0.3) * 14
            head = (xs - 64) ** 2 / 38**2 + (ys - 64) ** 2 / 48**2 < 1
            eyes = (np.abs(np.abs(xs - 64) - 16) < 6) & (np.abs(ys - 52) < 4)
            mouth = (np.abs(ys - 86 + bend * ((xs - 64) / 20) ** 2 - bend / 2) < 3) & (np.abs(xs - 64) < 20)
            picture = np.full((128, 128, 3), 70.0) + ys[..., None] * 0.4
            picture[head] = 220 * tint
            picture[eyes | mouth] = 40
            frame = av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_sound(path: Path, rng: np.random.Generator, seconds: float = 2.0) -> None:
    times = np.arange(int(16000 * seconds)) / 16000
    pitch = rng.uniform(110, 240)
    tone = np.sin(2 * np.pi * pitch * times) * np.abs(np.sin(2 * np.pi * 2.3 * times)) * 0.3
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16000)
        sound.writeframes((tone * 32767).astype("<i2").tobytes())


def _gold(rng: np.random.Generator) -> list[str]:
    families = rng.choice(len(FAMILIES), size=rng.integers(1, 3), replace=False)
    return [
        str(word) for family in families for word in rng.choice(FAMILIES[family], rng.integers(1, 3), replace=False)
    ]


def _write_manifest(folder: Path, golds: dict[str, list[str]], media: int, rng: np.random.Generator) -> None:
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    rows = []
    for index, (clip_id, gold) in enumerate(golds.items()):
        video, audio = f"clips/{clip_id}.mp4", f"clips/{clip_id}.wav"
        if index < media:
            write_clip(folder / video, rng)
            write_sound(folder / audio, rng)
        meta = {"description": f"A face that looks {gold[0]} while the voice stays calm."}
        text = SUBTITLES[index % len(SUBTITLES)]
        row = {"id": clip_id, "video": video, "audio": audio, "subtitle": text, "labels": gold, "split": "test"}
        rows.append({**row, "meta": meta})
    write_lines(folder / "manifest.jsonl", rows)


def _write_records(
    path: Path, golds: dict[str, list[str]], stage: str, rng: np.random.Generator, harm: float = 0.0
) -> None:
    records = []
    for clip_id, gold in golds.items():
        for mode in ("slow", "fast"):
            keep, add = SKILLS[stage, mode]
            difficulty = np.random.default_rng(sum(map(ord, clip_id)) * 97 + int(clip_id[-3:])).normal(0, 0.2)
            keep = np.clip(keep - difficulty - harm, 0.02, 0.98)
            words = [str(rng.choice(_family(word))) for word in gold if rng.random() < keep]
            while rng.random() < add + harm / 2:
                words.append(str(rng.choice(FAMILIES[rng.integers(len(FAMILIES))])))
            records.append(_record(clip_id, mode, stage, gold, list(dict.fromkeys(words)), rng))
    with path.open("w", encoding="utf-8") as file:
        for record in rescore(records, builtin()):
            append_record(file, record)


def _family(word: str) -> tuple[str, ...]:
    return next(family for family in FAMILIES if word in family)


def _record(clip_id: str, mode: str, stage: str, gold: list[str], words: list[str], rng: np.random.Generator) -> Record:
    reasoning = (
        "The brows are drawn together and the corners of the mouth hang. The voice is low and slow, with long pauses, "
        f"and the words do not contradict it. This points to somebody who feels {words[0] if words else 'little'}."
    )
    text = (
        "<think> the face turns away and"
        if not words
        else format_completion(reasoning if mode == "slow" else "", words)
    )
    taxonomy = builtin()
    lift = {("sft", "slow"): 0.0, ("sft", "fast"): 0.05, ("rl", "slow"): 0.12, ("rl", "fast"): 0.09}[stage, mode]
    confidence: dict[str, dict[str, float]] = {}
    for wheel in taxonomy.wheels if words else ():
        right = taxonomy.categories(gold, wheel)
        confidence[wheel.name] = {
            sector: round(float(np.clip(rng.normal(0.5 + lift if sector in right else 0.06, 0.08), 0, 1)), 4)
            for sector in taxonomy.sectors(wheel)
        }
    return Record(
        id=clip_id,
        mode=mode,
        completion=text,
        gold=gold,
        confidence=confidence,
        seconds=round(float(rng.normal(0.11 if mode == "slow" else 0.03, 0.005)), 4),
        tokens=int(rng.normal(52 if mode == "slow" else 9, 3)),
        model=stage,
        versions={"mer-r1": "0.1.0"},
    )


def _log(stage: str, rng: np.random.Generator) -> list[dict]:
    rows = []
    for step in range(5, 145, 5 if stage == "sft" else 1):
        done = 1 - np.exp(-step / 50)

        def noisy(value: float, spread: float = 0.03) -> float:
            return float(value + rng.normal(0, spread))

        row = {
            "step": step,
            "epoch": step / 144,
            "learning_rate": 2e-4 * (1 - step / 145),
            "grad_norm": noisy(1.2, 0.2),
        }
        if stage == "sft":
            rows.append({**row, "loss": noisy(3 - 2.2 * done), "mean_token_accuracy": noisy(0.4 + 0.35 * done)})
            continue
        rows.append(
            {
                **row,
                "loss": noisy(0.01, 0.004),
                "reward": noisy(1.4 + 0.3 * done, 0.08),
                "rewards/recall_reward/mean": noisy(0.62 + 0.1 * done),
                "rewards/precision_reward/mean": noisy(0.8 + 0.05 * done),
                "rewards/format_reward/mean": noisy(0.97 + 0.02 * done, 0.01),
                "confidence/slow_correct": noisy(0.5 + 0.14 * done),
                "confidence/fast_correct": noisy(0.55 + 0.05 * done),
                "confidence/slow_incorrect": noisy(0.07 - 0.02 * done, 0.006),
                "confidence/fast_incorrect": noisy(0.08 - 0.01 * done, 0.006),
                "calibration/delta_correct": noisy(-0.2 + 0.3 * done, 0.1),
                "calibration/delta_incorrect": noisy(0.3 + 0.1 * done, 0.1),
                "spread/recall": noisy(0.22 - 0.06 * done),
                "spread/precision": noisy(0.14 - 0.03 * done),
                "groups_without_signal": noisy(0.1 + 0.2 * done),
                "completions/mean_length": noisy(48 + 8 * done, 2),
                "completions/clipped_ratio": 0.0,
                "entropy": noisy(0.9 - 0.4 * done),
                "kl": abs(noisy(0.04 * done, 0.005)),
                "clip_ratio/region_mean": abs(noisy(0.002, 0.002)),
                "seconds/sampling": noisy(0.9, 0.05),
                "seconds/scoring": noisy(0.05, 0.01),
                "seconds/training": noisy(0.8, 0.05),
                "frac_reward_zero_std": noisy(0.1 + 0.2 * done),
            }
        )
    return [*rows, {"step": 144, "train_runtime": 402.0, "train_loss": 0.4}]


if __name__ == "__main__":
    from mer_r1.evaluation.report import write_report

    target = Path(sys.argv[1])
    write_run(target, clips=int(sys.argv[2]) if len(sys.argv) > 2 else 512)
    sys.stdout.write(f"{write_report(target)}\n")
