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
    with _MAKING:
        locks = [_LOCKS.setdefault(each, threading.RLock()) for each in (pipeline, *lockable(pipeline))]
    with ExitStack() as held:
        for lock in sorted(set(locks), key=id):  # in one order, so that no two threads wait for each other
            held.enter_context(lock)
        yield


def lockable(pipeline: DiffusionPipeline) -> list[Hashable]:
    """Components that have a state: of the others, no weak reference is to be had."""
    parts = pipeline.components.values()
    return [part for part in parts if isinstance(part, Hashable) and hasattr(type(part), "__weakref__")]
