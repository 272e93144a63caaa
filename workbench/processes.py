"""Jobs, shared out among processes that each keep what they have loaded."""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

Job = TypeVar("Job")
Made = TypeVar("Made")
Worker = Callable[[Job], Made]

_workers: list[Worker] = []  # a process's own


def worked(
    make: Callable[..., Worker], about: tuple, jobs: Sequence[Job], *, processes: int, minutes: float | None
) -> Iterator[Made | None]:
    """What a worker makes of each job, as they are finished; None for those that were not begun.

    make: of `about`, a worker, once for each process, where it has one thread; for a single one here. minutes: no job is begun later.
    """
    end = None if minutes is None else time.monotonic() + 60 * minutes  # a clock that all processes share
    if processes == 1:
        worker = make(*about)
        yield from (worker(job) if _in_time(end) else None for job in jobs)
    else:
        with multiprocessing.get_context("spawn").Pool(processes, _start, (make, about)) as pool:
            yield from pool.imap_unordered(_work, [(job, end) for job in jobs])


def job_name(*words: str) -> str:
    """Words as the name of a finished job's file."""
    return "".join(letter if letter.isalnum() or letter == "." else "-" for letter in " ".join(words))


def _start(make: Callable[..., Worker], about: tuple):
    torch.set_num_threads(1)
    _workers.append(make(*about))


def _work(asked: tuple[Any, float | None]) -> Any:
    job, end = asked
    return _workers[0](job) if _in_time(end) else None


def _in_time(end: float | None) -> bool:
    return end is None or time.monotonic() <= end
