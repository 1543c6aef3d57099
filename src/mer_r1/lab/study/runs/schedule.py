"""Run jobs in parallel, one process per job, resumable.

Jobs use one thread each, except those that need the whole machine (`StudyJob.alone`). A finished job leaves `done.json`
(command, commit, versions, seconds) in its folder; without it the job runs again, and training commands resume from
their last checkpoint. A running job holds a lock on `job.lock`. The lock belongs to the job's process: after
``kill -9`` of a study, its orphaned jobs finish, and a second study on the same folder runs other jobs meanwhile.
Ctrl-C and ``kill`` also terminate the running jobs.
"""

import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from mer_r1.data.jsonl import write_atomically
from mer_r1.data.workers import sigterm_exits
from mer_r1.errors import UserError
from mer_r1.lab.study.runs.jobs import StudyJob

logger = logging.getLogger(__name__)

DONE_FILE, LOCK_FILE, CONSOLE = "done.json", "job.lock", "console.log"
POLL_SECONDS = 0.5
Report = Callable[[str], object]


@dataclass
class _Running:
    job: StudyJob
    process: subprocess.Popen[bytes]
    began: float
    lock: IO[str]


def is_done(out: Path, job: StudyJob) -> bool:
    """Whether a job is finished."""
    return (out / job.name / DONE_FILE).is_file()


@sigterm_exits()  # the default SIGTERM would leave the jobs running
def run_jobs(jobs: Sequence[StudyJob], out: Path, cores: int, report: Report = lambda _: None) -> None:
    """Run the unfinished jobs, in the given order as far as their needs allow.

    Args:
        jobs: the jobs, with all jobs that they need.
        out: folder of the study.
        cores: number of parallel processes.
        report: callback called with one line when a job starts, ends or fails.

    Raises:
        UserError: if jobs failed, after all jobs that do not depend on them.
    """
    failed: dict[str, str] = {}
    running: list[_Running] = []
    try:
        while True:
            for ended in [entry for entry in running if entry.process.poll() is not None]:
                running.remove(ended)
                left = sum(not is_done(out, job) for job in jobs) - 1
                _conclude(ended, out, failed, report, left)
            busy = _start_ready(jobs, out, cores, running, failed, report)
            if not running and not busy:
                break
            time.sleep(POLL_SECONDS)
    finally:
        for entry in running:
            entry.process.terminate()
        for entry in running:
            entry.process.wait()
    if failed:
        name, reason = next(iter(failed.items()))
        raise UserError(f"{len(failed)} runs failed; the first, {name}: {reason} (see {out / name / CONSOLE})")


def _start_ready(
    jobs: Sequence[StudyJob], out: Path, cores: int, running: list[_Running], failed: dict[str, str], report: Report
) -> bool:
    # Fill the free cores. True if another study is running a job that is otherwise ready.
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
        report(f"start  {job.name}")
    return waiting


def _start(job: StudyJob, out: Path) -> _Running | None:
    import fcntl  # missing on Windows, where the rest of the package works

    folder = out / job.name
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / LOCK_FILE).open("w", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    if is_done(out, job):  # another study has just finished it
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


def _conclude(ended: _Running, out: Path, failed: dict[str, str], report: Report, left: int) -> None:
    job, seconds = ended.job, time.perf_counter() - ended.began
    ended.lock.close()
    folder = out / job.name
    if ended.process.returncode:
        failed[job.name] = _reason(folder / CONSOLE, ended.process.returncode)
        report(f"FAILED {job.name}: {failed[job.name]}")
        return
    command = shlex.join(["python", "-m", job.module, *job.arguments])
    entry = {**job.facts, "command": command, "seconds": round(seconds, 1), **provenance()}
    write_atomically(folder / DONE_FILE, json.dumps(entry, indent=2) + "\n")
    if job.facts.get("kind") in ("rl", "sft"):
        for checkpoint in folder.glob("checkpoint-*"):  # only now: an unfinished job resumes from them
            shutil.rmtree(checkpoint)
    report(f"done   {job.name}  {seconds:.0f} s  ({left} left)")


@lru_cache(maxsize=1)
def provenance() -> dict[str, Any]:
    """Commit, whether the sources differ from it, and the package versions."""
    from mer_r1.evaluation.records import commit, versions

    package = Path(__file__).resolve().parents[3]
    status = subprocess.run(
        ["git", "-C", str(package), "status", "--porcelain", "."], capture_output=True, text=True, check=False
    )
    return {"commit": commit(), "changed": bool(status.stdout.strip()), "versions": versions()}


def _reason(console: Path, status: int) -> str:
    lines = console.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.removeprefix("mer-r1: ").strip() for line in lines if line.startswith("mer-r1: ")]
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    return f"ended with status {status}: {(errors or [last])[-1]:.300}"
