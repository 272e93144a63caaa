"""One reentrant lock per pipeline, whatever Models wrap it: runs, commits and undos of one pipeline never mix."""

import threading
import weakref

from diffusers import DiffusionPipeline

_LOCKS: "weakref.WeakKeyDictionary[DiffusionPipeline, threading.RLock]" = weakref.WeakKeyDictionary()
_MAKING = threading.Lock()


def lock_of(pipeline: DiffusionPipeline) -> threading.RLock:
    """The lock that a pipeline's runs, commits and undos hold; a thread that holds it may take it again."""
    with _MAKING:
        return _LOCKS.setdefault(pipeline, threading.RLock())
