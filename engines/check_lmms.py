"""lmms-eval 0.7.3: our tasks through its own command line; the scores are those of `mer-r1 score`.

Run in the environment of `requirements/lmms.txt`.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from report import HERE, WORK, WORLD, check, start

from mer_r1.corpora.prepare import named

NAME = "lmms"
OUT = WORK / "lmms"
DATA = OUT / "data"
SETS = ("meld", "iemocap", "cmumosi")
TASKS = ",".join(f"mer_unibench_{name}" for name in SETS)


def main() -> None:
    """Run every check; the first that fails ends the script."""
    start(NAME)
    shutil.rmtree(OUT, ignore_errors=True)
    shutil.copytree(WORLD / "docs" / "data", DATA)
    plugin()
    with check(NAME, "`mer-r1 prepare` of three sets of MER-UniBench and of MME-Emotion") as found:
        for name in (*SETS, "mme-emotion"):
            mer_r1("prepare", name, "--root", str(DATA / named(name).folder), "--allow-pickle")
        found["manifests"] = len([*DATA.glob("*/*.jsonl")])
    for interface in ("chat", "simple"):
        scores(interface)
    mme_emotion()


def plugin() -> None:
    """Make `lmms_model.py` a package of its own with an entry point, as lmms-eval looks for models."""
    info = OUT / "plugin" / "mer_rote-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mer-rote\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lmms_eval.models]\nrote = lmms_model:MANIFEST\n")
    shutil.copy(HERE / "lmms_model.py", info.parent)


def scores(interface: str) -> None:
    """Three sets, and their scores by both commands."""
    with check(NAME, f"`lmms-eval --tasks {TASKS}`, {interface} interface") as found:
        lmms_eval(TASKS, OUT / interface, interface)
        (file,) = (OUT / interface).rglob("*results.json")
        theirs = json.loads(file.read_text())["results"]
        predictions = OUT / interface / "answers"
        run("-m", "mer_r1.integrations.lmms_eval", "answers", str(OUT / interface), "--out", str(predictions))
        where = ["--predictions", str(predictions), "--data", str(DATA)]
        told = mer_r1("score", "mer-unibench", *where, "--sentiment", "rules", "--json")
        ours = json.loads(told)
        (OUT / f"{interface}.json").write_text(told)
        for name in SETS:
            value = next(v for key, v in theirs[f"mer_unibench_{name}"].items() if key.split(",")[0] == "score")
            found[name] = f"{value:.4f}"
            expected = ours["sets"][name]["modes"]["given"]["official"]["main"]
            assert abs(value - expected) < 1e-6, (name, value, expected)


def mme_emotion() -> None:
    """The eight tasks of MME-Emotion, and `eval mme-emotion` on their answers."""
    with check(NAME, "`lmms-eval --tasks mme_emotion`, then `mer-r1 eval mme-emotion --judge none`") as found:
        lmms_eval("mme_emotion", OUT / "mme", "chat")
        answers = OUT / "mme" / "answers"
        run("-m", "mer_r1.integrations.lmms_eval", "answers", str(OUT / "mme"), "--out", str(answers))
        manifest = next(DATA.glob("*/mme-emotion.jsonl"))
        mer_r1("eval", "mme-emotion", "--predictions", str(answers), "--manifest", str(manifest), "--judge", "none",
               "--out", str(OUT / "mme" / "eval"))  # fmt: skip
        (file,) = (OUT / "mme").rglob("*results.json")
        results = json.loads(file.read_text())["results"]
        found["tasks"] = sum(name.startswith("mme_emotion_") for name in results)
        assert found["tasks"] == 8


def lmms_eval(tasks: str, out: Path, interface: str) -> None:
    """Its own command line. It exits with 0 even where the evaluation failed, so the results are looked for."""
    folder = run("-m", "mer_r1.integrations.lmms_eval", "tasks").strip()
    words = ["--include_path", folder, "--model", "rote", "--tasks", tasks, "--log_samples", "--output_path", str(out)]
    run("-m", "lmms_eval", *words, *(["--force_simple"] if interface == "simple" else []))
    assert [*out.rglob("*results.json")], f"lmms-eval has written no results: {out}"


def mer_r1(*words: str) -> str:
    """Run `mer-r1`."""
    return run("-m", "mer_r1.cli", *words)


def run(*words: str) -> str:
    """Run Python in this environment; returns what it printed."""
    paths = [str(OUT / "plugin"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "MER_R1_DATA": str(DATA), "COLUMNS": "200"}
    environment |= {"XDG_CACHE_HOME": str(OUT / "cache")}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)
    with (OUT / "log.txt").open("a") as file:
        file.write(f"$ {' '.join(words)}\n{done.stdout}{done.stderr}")
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: status {done.returncode}: {done.stderr[-1500:]}")
    return done.stdout


if __name__ == "__main__":
    main()
