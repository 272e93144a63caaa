"""The engine: worlds in, labelled results out. The only place that opens an NNsight trace."""

from workbench.engine.batch import Batch, Fold, Settings, Start
from workbench.engine.calls import Calls, calls_in
from workbench.engine.plan import batches_of, groups
from workbench.engine.result import Run
from workbench.engine.run import Work, count_work, prepare, run
from workbench.engine.text import encode, text_values
from workbench.engine.trace import aside, wrapped

__all__ = [
    "Batch",
    "Calls",
    "Fold",
    "Run",
    "Settings",
    "Start",
    "Work",
    "aside",
    "batches_of",
    "calls_in",
    "count_work",
    "encode",
    "groups",
    "prepare",
    "run",
    "text_values",
    "wrapped",
]
