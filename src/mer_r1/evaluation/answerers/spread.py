"""Answer clips in several processes: the records of one process, in the same order.

Each process makes the answering function itself, with a model of its own, and answers whole groups of clips. Groups are
cut the same way for any number of processes, so padding and sampling within a group are the same, and so are the
records. Of several GPUs every process sees one, which also serves vLLM.
"""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import starmap
from typing import Any

from mer_r1.data.clip import Clip
from mer_r1.data.workers import worker_pool
from mer_r1.emotions.thinking import ThinkingMode
from mer_r1.errors import UserError
from mer_r1.evaluation.records import Record

Answer = Callable[..., Iterator[Record]]
"""One record per mode and clip of a group; see `ClipModel.answer`. Further arguments are the caller's."""
Turn = tuple[Sequence[Clip], Sequence[ThinkingMode]]
Answers = Callable[..., Iterator[Iterable[Record]]]
"""The records of many groups, group by group: (turns, further arguments of `Answer`)."""

_AHEAD = 4
"""Groups per process that are handed out before the first of them is back."""
_answer: Answer | None = None
"""The answering function of a worker process."""


@contextmanager
def spread(make: Callable[[], Answer], processes: int = 1) -> Iterator[Answers]:
    """Answer in this process, or in several at once.

    Args:
        make: makes the answering function; for several processes it must be picklable.
        processes: number of processes.

    Raises:
        UserError: a launcher has started several copies of this command, or a process died.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("this command starts its processes itself: give --processes, without accelerate or torchrun")
    if processes == 1:
        answer = make()
        yield lambda turns, **options: starmap(partial(answer, **options), turns)
        return
    with worker_pool(processes, prepare=partial(_see_one_gpu, _gpus())) as pool:

        def answers(turns: Iterable[Turn], **options: Any) -> Iterator[Iterable[Record]]:
            waiting: deque[Any] = deque()
            for clips, modes in turns:
                waiting.append(pool.submit(_answered, make, clips, modes, options))
                if len(waiting) >= _AHEAD * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

        yield answers


def _gpus() -> list[str]:
    if chosen := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return chosen.split(",")
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def _see_one_gpu(names: Sequence[str]) -> None:
    place = multiprocessing.current_process()._identity[-1] - 1  # the processes of a pool are numbered in a row
    if names:
        os.environ["CUDA_VISIBLE_DEVICES"] = names[place % len(names)]


def _answered(
    make: Callable[[], Answer], clips: Sequence[Clip], modes: Sequence[ThinkingMode], options: dict[str, Any]
) -> list[Record]:
    global _answer
    _answer = _answer or make()
    return list(_answer(clips, modes, **options))
