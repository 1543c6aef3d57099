"""Running jobs side by side, each a process of its own, so that being killed costs little.

Each has one thread, but for those that take the whole machine (`Job.alone`). A finished job leaves `done.json`
(command, commit, versions, seconds) in its folder; without it the job is run again, and the training commands go on
from their last checkpoint. While a job runs, its process holds a lock on `job.lock`. The lock outlives whoever started
the process: after ``kill -9`` of a study its orphans finish in peace, and a second study on the same folder takes other
jobs meanwhile. Ctrl-C and ``kill`` end the jobs that run too.
"""

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from mer_r1.errors import UserError
from mer_r1.lab.study.runs.jobs import Job

logger = logging.getLogger(__name__)

DONE_FILE, LOCK_FILE, CONSOLE = "done.json", "job.lock", "console.log"
POLL_SECONDS = 0.5
Told = Callable[[str], object]


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    began: float
    lock: IO[str]


def is_done(out: Path, job: Job) -> bool:
    """Whether a job has been finished, by whatever study."""
    return (out / job.name / DONE_FILE).is_file()


def run_jobs(jobs: Sequence[Job], out: Path, cores: int, told: Told = lambda _: None) -> None:
    """Run what is not done yet, in the order given as far as needs allow.

    Args:
        jobs: every job with the jobs it needs.
        out: folder of the study.
        cores: processes at once.
        told: called with one line for each job that starts, ends or fails.

    Raises:
        UserError: if jobs failed (after everything that does not need them was run).
    """
    failed: dict[str, str] = {}
    running: list[_Running] = []
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        while True:
            for ended in [entry for entry in running if entry.process.poll() is not None]:
                running.remove(ended)
                left = sum(not is_done(out, job) for job in jobs) - 1
                _conclude(ended, out, failed, told, left)
            busy = _start_ready(jobs, out, cores, running, failed, told)
            if not running and not busy:
                break
            time.sleep(POLL_SECONDS)
    finally:
        for entry in running:
            entry.process.terminate()
        for entry in running:
            entry.process.wait()
        signal.signal(signal.SIGTERM, before)
    if failed:
        name, reason = next(iter(failed.items()))
        raise UserError(f"{len(failed)} runs failed; the first, {name}: {reason} ({out / name / CONSOLE} has the rest)")


def _stop(number: int, _: object) -> None:
    raise SystemExit(128 + number)  # as a shell says it; left to itself, SIGTERM would leave the jobs running


def _start_ready(
    jobs: Sequence[Job], out: Path, cores: int, running: list[_Running], failed: dict[str, str], told: Told
) -> bool:
    # Fills the free cores. True if a job could run but for another study that is at it: worth waiting for.
    waiting = False
    names = {entry.job.name for entry in running}
    for job in jobs:
        if len(running) >= cores or any(entry.job.alone for entry in running):
            break
        if job.name in names or job.name in failed or is_done(out, job):
            continue
        if not all((out / need / DONE_FILE).is_file() for need in job.needs) or (job.alone and running):
            continue
        if (entry := _start(job, out)) is None:
            waiting = True
            continue
        running.append(entry)
        names.add(job.name)
        told(f"start  {job.name}")
    return waiting


def _start(job: Job, out: Path) -> _Running | None:
    import fcntl  # no such module on Windows, where the rest of the package runs

    folder = out / job.name
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / LOCK_FILE).open("w", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    if is_done(out, job):  # by another study, just now
        lock.close()
        return None
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    environment |= {"TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}
    if not job.alone:
        environment["OMP_NUM_THREADS"] = "1"
    with (folder / CONSOLE).open("ab") as console:
        process = subprocess.Popen(
            [sys.executable, "-m", job.module, *job.arguments],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=(lock.fileno(),),
        )
    return _Running(job, process, time.perf_counter(), lock)


def _conclude(ended: _Running, out: Path, failed: dict[str, str], told: Told, left: int) -> None:
    job, seconds = ended.job, time.perf_counter() - ended.began
    ended.lock.close()
    folder = out / job.name
    if ended.process.returncode:
        failed[job.name] = _reason(folder / CONSOLE, ended.process.returncode)
        told(f"FAILED {job.name}: {failed[job.name]}")
        return
    command = shlex.join(["python", "-m", job.module, *job.arguments])
    entry = {**job.facts, "command": command, "seconds": round(seconds, 1), **provenance()}
    unfinished = folder / f"{DONE_FILE}.partial"
    unfinished.write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(folder / DONE_FILE)
    if job.facts.get("kind") in ("rl", "sft"):
        _prune(folder)  # not before: what is run again goes on from whole checkpoints
    told(f"done   {job.name}  {seconds:.0f} s  ({left} left)")


@lru_cache(maxsize=1)
def provenance() -> dict[str, Any]:
    """Commit, whether the sources differ from it, and the versions of what decides a result."""
    from mer_r1.evaluation.records import commit, versions

    package = Path(__file__).resolve().parents[3]
    status = subprocess.run(
        ["git", "-C", str(package), "status", "--porcelain", "."], capture_output=True, text=True, check=False
    )
    return {"commit": commit(), "changed": bool(status.stdout.strip()), "versions": versions()}


def _reason(console: Path, status: int) -> str:
    lines = console.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line.removeprefix("mer-r1: ").strip() for line in lines if line.startswith("mer-r1: ")]
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no word")
    return f"ended with status {status}: {(said or [last])[-1]:.300}"


def _prune(folder: Path) -> None:
    # The first checkpoint is kept, for the gradients along the way; what only resuming needs goes.
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for later in checkpoints[1:]:
        for file in sorted(later.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        later.rmdir()
    for first in checkpoints[:1]:
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            (first / name).unlink(missing_ok=True)
