"""The geometry of the objectives' gradients: what must hold whatever the policy."""

import json
import math
from pathlib import Path

import pytest
from tiny_world import entry, media

from mer_r1.data.clip import Clip
from mer_r1.data.manifest import read_manifest
from mer_r1.emotions.thinking import question
from mer_r1.errors import UserError
from mer_r1.lab.study.runs import gradients, worker
from mer_r1.lab.study.runs.gradients import batch_geometry, chosen_clips, measure
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


def test_measured_at_points_of_a_run(taught, corpus, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(gradients, "NEW_TOKENS", 24)
    monkeypatch.setattr(gradients, "PROMPTS", 2)
    taught.save(tmp_path / "run" / "model")
    told = {"run": str(tmp_path / "run"), "manifest": str(corpus), "seed": 0, "clips": "2:", "batches": 1}
    (tmp_path / "out").mkdir()
    worker.main("gradients", json.dumps({**told, "models": ["model"], "out": str(tmp_path / "out")}))
    found = json.loads((tmp_path / "out" / "gradients.json").read_text(encoding="utf-8"))
    assert [(entry["model"], entry["step"]) for entry in found] == [("model", None)]
    assert {"cos_recall_precision", "cos_rd_recall", "length_rd"} <= found[0].keys()
    with pytest.raises(UserError, match="no checkpoint"):
        measure(models=["checkpoint"], **told)
    with pytest.raises(SystemExit, match="2"):
        worker.main("gradients", json.dumps({**told, "models": ["checkpoint"], "out": str(tmp_path / "out")}))


def test_slices_are_those_of_the_recipes(corpus):
    train = [row.id for row in read_manifest(corpus) if row.split == "train"]
    assert [row.id for row in chosen_clips(str(corpus), "train", ":")] == train
    assert [row.id for row in chosen_clips(str(corpus), "train", "2:4")] == train[2:4]
