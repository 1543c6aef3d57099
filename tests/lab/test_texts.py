"""Made texts: the rows follow from the rules that are stated, and a task trains from them end to end."""

import json
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mer_r1.cli import app
from mer_r1.data.clip import Clip
from mer_r1.data.manifest import read_manifest
from mer_r1.emotions.set_task import SetTask, read_task
from mer_r1.lab.texts import MANIFEST, TASK_FILE, _dishes, allergens_of, reasoned, write_allergens, write_told_scenes
from mer_r1.rl.rewards import gold_earns_full_reward

ON_A_CPU = ["use_cpu=true", "bf16=false", "report_to=none", "disable_tqdm=true", "workers=0", "logging_steps=1"]
ON_A_CPU += ["save_strategy=no", "warmup_steps=0", "max_steps=1"]


@pytest.fixture(scope="module")
def dishes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("allergens")
    write_allergens(folder, 300)
    return folder


def test_the_allergens_are_those_of_the_ingredients_that_remain() -> None:
    assert allergens_of([["milk", "egg"], None, ["egg", "fish"]]) == ["milk", "egg", "fish"]
    assert allergens_of([None]) == allergens_of([]) == ["none"]
    assert reasoned({"pesto": ["nuts", "milk"], "tuna": None}) == "Pesto: nuts and milk. No tuna."
    assert reasoned({}) == "The rest is safe."


def named(clip: Clip) -> set[str]:
    """Ingredients with allergens that a text names."""
    text = clip.subtitle.lower()
    return {thing for thing in _dishes()["holds"] if thing.lower() in text}


def test_the_labels_follow_from_the_text(dishes: Path) -> None:
    clips = read_manifest(dishes / MANIFEST)
    assert Counter(clip.split for clip in clips) == {"train": 210, "val": 30, "test": 60}
    assert len({clip.subtitle for clip in clips}) > 295
    fates = Counter(clip.meta["fate"] for clip in clips)
    assert min(fates[fate] for fate in ("kept", "out", "swapped")) > 50
    holds = _dishes()["holds"]
    for clip in clips:
        every = {allergen for thing in named(clip) for allergen in holds[thing]}
        assert set(clip.labels) - {"none"} <= every, clip.id
        if clip.meta["fate"] == "kept":  # nothing is taken away: all of them count
            assert set(clip.labels) == every, clip.id
    # "miso" is in no other name, and so on: an ingredient that is taken away is one whose allergens may be missing.
    lacking = [c for c in clips if set(c.labels) - {"none"} != {a for t in named(c) for a in holds[t]}]
    assert len(lacking) > 60


def test_every_word_is_in_a_category_and_every_gold_answer_earns_full_reward(dishes: Path) -> None:
    taxonomy = read_task(dishes / TASK_FILE).taxonomy()
    assert {allergen for held in _dishes()["holds"].values() for allergen in held} < set(taxonomy.sectors("allergen"))
    for clip in read_manifest(dishes / MANIFEST):
        assert gold_earns_full_reward(clip.labels, taxonomy)
        assert all(map(taxonomy.knows, [*clip.meta["careful_labels"], *clip.meta["broad_labels"]]))
        assert clip.reasoning


def test_careful_answers_omit_and_broad_answers_add(dishes: Path) -> None:
    clips = read_manifest(dishes / MANIFEST)
    careful = [set(clip.meta["careful_labels"]) - {"none"} <= set(clip.labels) for clip in clips]
    added = [len(set(clip.meta["broad_labels"]) - set(clip.labels)) for clip in clips]
    assert all(careful)
    assert sum(clip.meta["careful_labels"] != list(clip.labels) for clip in clips) > 60
    assert sum(added) > 150


def test_the_same_seed_gives_the_same_rows(dishes: Path, tmp_path: Path) -> None:
    write_allergens(tmp_path / "again", 300)
    write_allergens(tmp_path / "other", 300, seed=1)
    first = (dishes / MANIFEST).read_bytes()
    assert (tmp_path / "again" / MANIFEST).read_bytes() == first != (tmp_path / "other" / MANIFEST).read_bytes()


def test_told_scenes_are_a_task_of_emotions(tmp_path: Path) -> None:
    write_told_scenes(tmp_path, 40)
    task = read_task(tmp_path / TASK_FILE)
    clips = read_manifest(tmp_path / MANIFEST)
    assert task.taxonomy() is SetTask().taxonomy()
    assert all(gold_earns_full_reward(clip.labels) for clip in clips)
    assert all("Says: '" in clip.subtitle for clip in clips)
    assert task.asked("Face: tears.") == "Face: tears. Which emotions does the person feel?"


def run(*words: object) -> str:
    found = CliRunner().invoke(app, [str(word) for word in words])
    assert found.exit_code == 0, f"{words}\n{found.output}\n{found.exception}"
    return found.output


def test_a_task_trains_and_is_scored_end_to_end(dishes: Path, taught_folder: Path, tmp_path: Path) -> None:
    manifest, task = dishes / MANIFEST, dishes / TASK_FILE
    run("check", manifest, "--task", task)
    assert "expected" not in run("sft", *ON_A_CPU, f"manifest={manifest}", f"task={task}", f"model={taught_folder}",
        f"output_dir={tmp_path / 'sft'}", "clips=:6", "replay=1", "per_device_train_batch_size=2")  # fmt: skip
    saved = json.loads((tmp_path / "sft" / "model" / "mer_r1.json").read_text())
    assert {name: saved[name] for name in ("question", "categories")} == json.loads(task.read_text())
    run("rl", *ON_A_CPU, f"manifest={manifest}", f"model={tmp_path / 'sft' / 'model'}", "calibration=reasoning",
        f"output_dir={tmp_path / 'rl'}", "clips=6:10", "per_device_train_batch_size=4", "num_generations=2",
        "max_completion_length=16")  # fmt: skip
    log = [json.loads(line) for line in (tmp_path / "rl" / "log.jsonl").read_text().splitlines()]
    assert "rewards/recall_reward/mean" in log[0]
    out = tmp_path / "eval"
    run("evaluate", "--manifest", manifest, "--model", tmp_path / "rl" / "model", "--out", out, "--split", "val",
        "--max-new-tokens", 8, "--json")  # fmt: skip
    # Scored again without the model: the folder knows its task.
    summary = json.loads(run("evaluate", "--manifest", manifest, "--out", out, "--split", "val", "--json"))
    assert summary["wheels"] == read_task(task).taxonomy().title
    assert summary["modes"]["slow"]["n"] == 30
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert {tuple(record["categories"]) for record in records} == {("allergen",)}


def test_emotion_wheels_do_not_fit_a_model_of_another_task(dishes: Path, taught_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "mer_r1.json").write_text((dishes / TASK_FILE).read_text())
    words = ["evaluate", "--manifest", dishes / MANIFEST, "--model", tmp_path / "model", "--out", tmp_path / "out"]
    found = CliRunner().invoke(app, [*map(str, words), "--wheels", str(tmp_path)])
    assert found.exit_code != 0
    assert "another question, with the categories of allergen" in str(found.exception)
