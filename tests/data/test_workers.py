"""Worker processes: a dead one ends the run with a message, and none outlives the process that started it."""

import gc
import os
import signal
import subprocess
import sys
import time

import pytest

from mer_r1.data.workers import WorkerDiedError, in_workers, sigterm_exits, uncollected

PROGRAM = """
import sys, time
from test_workers import note_and_sleep
from mer_r1.data.workers import in_workers, sigterm_exits
if __name__ == "__main__":
    with sigterm_exits():
        list(in_workers(note_and_sleep, [sys.argv[1] + "/1", sys.argv[1] + "/2"], 2))
"""


GONE_READER = """
import os, sys
from multiprocessing import current_process
from multiprocessing.connection import Client
from multiprocessing.resource_sharer import DupFd
from mer_r1.data.workers import end_with_parent
if sys.argv[1] == "worker":
    end_with_parent()
shared = DupFd(os.open(os.devnull, os.O_RDONLY))
Client(shared._id[0], authkey=current_process().authkey).close()
shared.detach()  # served after that one
"""


def half(number: int) -> float:
    return number / 2


def die_at_3(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def note_and_sleep(path: str) -> None:
    with open(path + ".part", "w", encoding="utf-8") as file:
        file.write(str(os.getpid()))
    os.rename(path + ".part", path)
    time.sleep(600)


def lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition) -> None:
    deadline = time.monotonic() + 300
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


def test_every_job_comes_back_with_its_result():
    assert sorted(in_workers(half, range(1, 40), 2)) == [(number, number / 2) for number in range(1, 40)]


def test_a_dead_worker_ends_the_run_with_a_message():
    with pytest.raises(WorkerDiedError, match="a worker process died"):
        list(in_workers(die_at_3, range(8), 2))


def test_a_library_that_makes_an_error_of_its_own_of_the_end_does_not_change_it():
    before = signal.getsignal(signal.SIGTERM)

    def library():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until(lambda: False)
        except SystemExit:
            raise ValueError("the file is damaged") from None

    with pytest.raises(SystemExit) as caught, sigterm_exits():
        library()
    assert caught.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(ValueError, match="of ours"), sigterm_exits():
        raise ValueError("of ours")


@pytest.mark.parametrize("role", ["worker", "other"])
def test_a_worker_whose_reader_has_gone_prints_no_traceback(role):
    done = subprocess.run([sys.executable, "-c", GONE_READER, role], capture_output=True, text=True, check=True)
    assert ("Traceback" in done.stderr) == (role == "other")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -9)])
def test_no_worker_outlives_its_parent(tmp_path, number, status):
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, str(tmp_path / "program.py"), str(tmp_path)], env=environment)
    wait_until(lambda: (tmp_path / "1").is_file() and (tmp_path / "2").is_file())
    parent.send_signal(number)
    assert parent.wait() == status
    pids = [int((tmp_path / name).read_text(encoding="utf-8")) for name in ("1", "2")]
    wait_until(lambda: not any(map(lives, pids)))


def test_garbage_is_collected_again_after_imports():
    """Also after an import that fails, and not where it was not before."""
    assert gc.isenabled()
    with uncollected():
        assert not gc.isenabled()
        with uncollected():
            pass
        assert not gc.isenabled()
    with pytest.raises(ImportError), uncollected():
        raise ImportError
    assert gc.isenabled()
