"""Locks of pipelines, whatever Models wrap them: runs, commits and undos of one never mix, nor those of pipelines that share components."""

import threading
import weakref
from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager

from diffusers import DiffusionPipeline

_LOCKS: "weakref.WeakKeyDictionary[Hashable, threading.RLock]" = weakref.WeakKeyDictionary()
_MAKING = threading.Lock()


@contextmanager
def lock_of(pipeline: DiffusionPipeline) -> Iterator[None]:
    """Hold what a pipeline's runs, commits and undos hold: its own lock and those of its components, since modules and tokenizers are
    changed for as long as a run lasts. A thread that holds them may take them again.
    """
    parts = pipeline.components.values()
    stateful = [part for part in parts if isinstance(part, Hashable) and hasattr(type(part), "__weakref__")]
    with holding(pipeline, *stateful):
        yield


@contextmanager
def holding(*things: Hashable) -> Iterator[None]:
    """Hold the locks of pipelines or components alone. Of a tokenizer: it keeps how it was last asked to pad and cut, also for a run of
    another thread.
    """
    with _MAKING:
        locks = {_LOCKS.setdefault(each, threading.RLock()) for each in things}
    with ExitStack() as held:
        for lock in sorted(locks, key=id):  # in one order, so that no two threads wait for each other
            held.enter_context(lock)
        yield
