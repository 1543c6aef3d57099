"""The geometry of the objectives' gradients: what must hold whatever the policy."""

import json
import math
import shutil
from pathlib import Path

import pytest
from tiny_world import entry, media

from mer_r1.data.clip import Clip
from mer_r1.data.manifest import read_manifest
from mer_r1.emotions.thinking import question
from mer_r1.lab.study.runs import gradients, worker
from mer_r1.lab.study.runs.gradients import batch_geometry
from mer_r1.model.prompts import encode_prompt


def clip(index: int, *labels: str) -> Clip:
    return Clip(str(index), None, None, "Hello.", labels, None, "train", {})


def test_geometry_of_a_batch(taught, monkeypatch):
    monkeypatch.setattr(gradients, "NEW_TOKENS", 24)
    clips = [clip(0, "happy"), clip(1, "sad", "angry"), clip(2, "bored", "proud")]
    prompts = [
        encode_prompt(taught, question(c.subtitle, "short"), entry(taught, media(2.0, i))) for i, c in enumerate(clips)
    ]
    found = batch_geometry(taught, clips, prompts, seed=0)
    recall, precision, both = (found[f"length_{name}"] for name in ("recall", "precision", "ad"))
    cosine = found["cos_recall_precision"]
    # Linear in the advantages: the gradient of AD is the sum of the two.
    assert both**2 == pytest.approx(recall**2 + precision**2 + 2 * recall * precision * cosine, rel=1e-4)
    assert found["cos_ad_recall"] == pytest.approx((recall + precision * cosine) / both, rel=1e-4)
    assert all(-1 <= found[key] <= 1 for key in found if key.startswith("cos_"))
    rho = found["rho"]
    assert found["predicted_recall_precision"] == rho
    assert found["predicted_ad_recall"] == found["predicted_ad_precision"] == pytest.approx(math.sqrt((1 + rho) / 2))
    assert batch_geometry(taught, clips, prompts, seed=0) == found
    assert all(weight.grad is None for weight in taught.model.parameters())


def test_measured_of_a_policy(taught_folder: Path, corpus: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(gradients, "NEW_TOKENS", 24)
    monkeypatch.setattr(gradients, "PROMPTS", 2)
    told = {"model": str(taught_folder), "manifest": str(corpus), "seed": 0, "clips": "2:", "batches": 1}
    worker.main("gradients", json.dumps({**told, "out": str(tmp_path)}))
    found = json.loads((tmp_path / "gradients.json").read_text(encoding="utf-8"))
    assert {"cos_recall_precision", "cos_rd_recall", "length_rd"} <= found.keys()
    with pytest.raises(SystemExit, match="2"):
        worker.main("gradients", json.dumps({**told, "clips": "900:", "out": str(tmp_path)}))


def test_features_are_those_of_the_stages_clips(taught_folder: Path, corpus: Path, tmp_path: Path):
    shutil.copytree(corpus.parent, tmp_path / "corpus", ignore=shutil.ignore_patterns("features"))
    manifest = tmp_path / "corpus" / corpus.name
    told = {"model": str(taught_folder), "manifest": str(manifest), "parts": [["train", ":1"], ["train", "1:2"]]}
    worker.main("features", json.dumps(told))
    ids = [row.id for row in read_manifest(manifest) if row.split == "train"][:2]
    made = list((tmp_path / "corpus" / "features").rglob("*.safetensors"))
    assert len(made) == len(ids) == 2
