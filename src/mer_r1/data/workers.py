"""Processes that work for this one: none is waited for after it died, and none outlives its parent."""

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for
from typing import Any, TypeVar

from mer_r1.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")


class WorkerDiedError(UserError):
    """A worker process ended in the middle of a job, for example for lack of memory."""


@contextmanager
def uncollected() -> Iterator[None]:
    """Pause the search for cycles while many objects are made that stay: libraries (perf/startup.py), clips."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def worker_pool(workers: int, method: str = "spawn", prepare: Callable[[], object] | None = None) -> Iterator[Any]:
    """A pool of processes; on any exception its workers are ended and what is not begun is dropped.

    Args:
        workers: number of processes.
        method: how they start. Spawned by default: a forked copy of a process with threads may hang.
        prepare: called first in each of them.

    Raises:
        WorkerDiedError: a worker process died.
    """
    context = multiprocessing.get_context(method)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(prepare,))
    try:
        yield pool
        pool.shutdown()
    except BaseException as error:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            told = "a worker process died (is there enough memory?); run the same command again to resume"
            raise WorkerDiedError(told) from error
        raise


def in_workers(
    function: Callable[[Job], Result], jobs: Iterable[Job], workers: int, prepare: Callable[[], object] | None = None
) -> Iterator[tuple[Job, Result]]:
    """Yield each job with its result as soon as it is done; see `worker_pool`."""
    pending: dict[Future[Result], Job] = {}
    left = iter(jobs)
    with worker_pool(workers, prepare=prepare) as pool:
        while True:
            while len(pending) < 8 * workers and (job := next(left, None)) is not None:
                pending[pool.submit(function, job)] = job
            if not pending:
                return
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                yield pending.pop(future), future.result()


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent() -> None:
    """Make this worker process end when its parent does, however that ends, and leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.excepthook = lambda *_: None  # of the thread that hands tensors over, when the parent has gone meanwhile
    if parent := multiprocessing.parent_process():
        threading.Thread(target=lambda: (wait_for([parent.sentinel]), os._exit(1)), daemon=True).start()


@contextmanager
def sigterm_exits() -> Iterator[None]:
    """Let SIGTERM raise SystemExit, so that the processes started here are ended; a second one kills at once.

    A library may turn that into an error of its own: it is SystemExit again in the end.
    """
    stopped: list[int] = []

    def stop(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        stopped.append(number)
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except Exception:
        if not stopped:
            raise
        raise SystemExit(128 + stopped[0]) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _begin(prepare: Callable[[], object] | None) -> None:
    end_with_parent()
    if prepare:
        prepare()
