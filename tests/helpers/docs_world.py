"""A folder with everything that the commands of the documents name, in miniature: data, models, runs, answers."""

import json
import shutil
from pathlib import Path

import openpyxl
from layouts import NINE, SIX, write_set
from llm_server import Call
from synthetic_run import write_run
from test_architecture import ROOT
from tiny_corpus import write_corpus

CLIPS = 3
MODELS = ("runs/demo/sft/model", "runs/demo/rl/model", "runs/sft/model", "runs/rl/model")


def write_world(folder: Path, checkpoint: Path) -> Path:
    """Write it into a new folder; `checkpoint` serves as every model."""
    corpus = folder / "data"
    corpus.mkdir()
    write_corpus(corpus)
    _with_a_validation_split(corpus / "manifest.jsonl")
    shutil.copy(corpus / "0.mp4", folder / "clip.mp4")
    shutil.copy(corpus / "3.wav", folder / "speech.wav")
    _write_own_clips(folder, corpus)
    videos, sounds = [corpus / "0.mp4", corpus / "4.mp4"], [corpus / "3.wav"]
    for name in NINE:
        write_set(corpus, name, CLIPS, videos, sounds)
    write_set(corpus, "mercaptionplus", 5010)  # 5,000 of them for the cold start; empty media
    for parent in (folder, corpus):
        write_set(parent, "mme-emotion", 1, videos)
    write_run(folder / "runs" / "demo", clips=12, media=2)
    for model in MODELS:
        shutil.copytree(checkpoint, folder / model)
    write_wheels(folder / "emotion_wheel")
    (folder / "FOLDER").symlink_to(folder / "emotion_wheel")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    _write_answers(folder)
    return folder


def _write_own_clips(folder: Path, corpus: Path) -> None:
    """A folder of clips, a table with words, and a recording with its subtitles."""
    (folder / "clips").mkdir()
    for name in ("0.mp4", "4.mp4"):
        shutil.copy(corpus / name, folder / "clips" / name)
    (folder / "clips.csv").write_text("path,subtitle\nclips/0.mp4,Oh no.\n", encoding="utf-8")
    shutil.copy(corpus / "0.mp4", folder / "talk.mp4")
    cues = "1\n00:00:00,000 --> 00:00:01,000\nOh.\n\n2\n00:00:01,000 --> 00:00:01,800\nNo.\n"
    (folder / "talk.srt").write_text(cues, encoding="utf-8")


def _with_a_validation_split(manifest: Path) -> None:
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    for row in rows[:2]:
        row["split"] = "val"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_wheels(folder: Path) -> None:
    """Official tables in miniature: every word has a sector of its own on each of five wheels."""
    folder.mkdir()
    words = [*SIX, "joy", "lonely", "frustrated", "nervous", "surprised"]
    (folder / "format.csv").write_text(
        "name,format\n" + "".join(f"{word},{word}\n" for word in words), encoding="utf-8"
    )
    header = [f"{kind}_run{run}" for run in range(1, 9) for kind in ("word", "synonym")]
    sheets = {"synonym": [header, *([word, word, *[""] * 14] for word in words)]}
    placed = [word for word in words if word != "neutral"]
    for number in range(1, 6):
        sheets[f"wheel{number}"] = [["level1", "level2", "level3"], *([word, word, word] for word in placed)]
    for name, rows in sheets.items():
        book = openpyxl.Workbook()
        for row in rows:
            book.worksheets[0].append(row)
        book.save(folder / f"{name}.xlsx")


def _write_answers(folder: Path) -> None:
    pairs = {"gold.json": "[happy, surprised]", "predicted.json": "[happy]"}
    for name, words in pairs.items():
        (folder / name).write_text(json.dumps({"clip-1": words, "clip-2": words}), encoding="utf-8")
    rows = [{"id": f"clip-{index}", "completion": "He seems glad, and a little sad."} for index in range(CLIPS)]
    _write_lines(folder / "answers.jsonl", rows)
    (folder / "other").mkdir()
    _write_lines(folder / "other" / "meld.jsonl", [{**row, "id": f"test_dia0_utt{i}"} for i, row in enumerate(rows)])


def _write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def served(call: Call) -> str:
    """What a served reader or judge replies, recognised by the question."""
    if "<score>" in call.text or "score" in str(call.body.get("response_format", "")):
        return "<score>Step 1: 1/1, Step 2: 0/1</score>"
    if "<step>" in call.text:
        return "<step>Step 1: He smiles. Step 2: happy</step>"
    return "positive" if "positive" in call.text else "[happy, sad]"
