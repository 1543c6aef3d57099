"""What the checks of `make engines` found: one line each, and the table of all of them for docs/engines.md.

    with check("swift", "advantages in swift's loss") as found:
        found["largest difference"] = ...

writes a line with the figures and the seconds when the block ends; after an error it says so, and the script fails.
`python engines/report.py` prints the table.
"""

import json
import re
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
WORK, ENVIRONMENTS = HERE / ".work", HERE / ".envs"
RESULTS = WORK / "results"
WORLD = WORK / "world"
"""What `world.py` made: clips, tiny models, rows."""
NAMES = {
    "vllm": "vLLM (CPU build)",
    "sharded": "FSDP2, ZeRO-3",
    "swift": "ms-swift",
    "verl": "verl",
    "lmms": "lmms-eval",
}


def start(engine: str) -> None:
    """Forget what was found before; called once at the beginning of an engine's script."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{engine}.jsonl").write_text("")


@contextmanager
def check(engine: str, what: str) -> Iterator[dict[str, Any]]:
    """One line of the table; the block fills in the figures."""
    print(f"== {NAMES[engine]}: {what}", flush=True)
    found: dict[str, Any] = {}
    began, problem = time.perf_counter(), None
    try:
        yield found
    except BaseException as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise
    finally:
        line = {"what": what, "found": found, "seconds": round(time.perf_counter() - began, 1), "problem": problem}
        with (RESULTS / f"{engine}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"   {problem or figures(found)} ({line['seconds']} s)", flush=True)


def documented(page: str, command: str) -> list[str]:
    """The words after a command, as a page of docs/ has it."""
    text = (HERE.parent / "docs" / page).read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = re.findall(rf"^{re.escape(command)} (.*)$", text, flags=re.MULTILINE)
    return shlex.split(line)


def figures(found: dict[str, Any]) -> str:
    """The figures of a line as text."""
    shown = {name: f"{value:.2g}" if isinstance(value, float) else str(value) for name, value in found.items()}
    return "; ".join(f"{name} {value}" for name, value in shown.items())


def gaps(lines: list[dict[str, Any]]) -> str:
    """The gap between the sampling engine and the policy in each line of a log of RL."""
    return ", ".join(f"{line['sampling/sampling_logp_difference/mean']:.1g}" for line in lines)


def table() -> str:
    """All lines as a Markdown table, in the order of the engines."""
    lines = ["| engine | what ran | figures | seconds |", "|---|---|---|---:|"]
    for engine, name in NAMES.items():
        file = RESULTS / f"{engine}.jsonl"
        rows = [json.loads(row) for row in file.read_text().splitlines()] if file.exists() else []
        for row in rows:
            told = f"**failed**: {row['problem']}" if row["problem"] else figures(row["found"])
            lines.append(f"| {name} | {row['what']} | {told} | {row['seconds']:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
