"""NNsight: the one module that imports it.

`import nnsight` gives every object of the process, a string and a number too, a method `.save`. The engine calls `save(value)`, so the
method goes again; a person who imported NNsight before us writes `value.save()`, and keeps it.
"""

import sys

_THEIRS = "nnsight" in sys.modules

from nnsight import NNsight, save  # noqa: E402  what it mounts depends on who imports it first
from nnsight._c import unmount  # noqa: E402
from nnsight.intervention.source import Controller  # noqa: E402  the forward that it puts on modules

if not _THEIRS and unmount is not None and hasattr(object, "save"):  # the extension that mounts may not have been built
    unmount("save")

__all__ = ["Controller", "NNsight", "save"]
