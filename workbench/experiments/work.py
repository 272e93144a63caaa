"""Doing the parts of an experiment, whoever does them."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from workbench.experiments.executors import Executor, Unfinished, as_executor
from workbench.experiments.shards import Shards
from workbench.experiments.store import Memory, Store
from workbench.progress import Bar

if TYPE_CHECKING:
    from workbench.experiments.base import Experiment

Instead = Callable[["Experiment", Store, Executor], Any]
INSTEAD: ContextVar[Instead | None] = ContextVar("INSTEAD", default=None)  # what is done in place of an experiment


class Done(BaseException):
    """Raised in place of an experiment's first part, with what was done instead."""

    def __init__(self, outcome: Any):
        super().__init__(outcome)
        self.outcome = outcome


def is_one_of(experiment: Callable[..., Any], names: Iterable[str]) -> bool:
    """Whether a function is one of the workbench's own of these names, not another's that is called alike."""
    own = import_module("workbench")
    return experiment in [attrgetter(name)(own) for name in names]


def do_instead(instead: Instead, ask: Callable[[], Any]) -> Any:
    """What `instead` makes of the first experiment of a call, which checks its arguments and does nothing more."""
    token = INSTEAD.set(instead)
    try:
        ask()
    except Done as done:
        return done.outcome
    finally:
        INSTEAD.reset(token)
    raise RuntimeError(f"{ask} did no experiment")


@contextmanager
def working() -> Iterator[None]:
    """What is done inside is done, whatever is asked for in its place."""
    token = INSTEAD.set(None)
    try:
        yield
    finally:
        INSTEAD.reset(token)


def complete(experiment: "Experiment", store: Store, executor: Executor | str | None = None) -> Shards:
    """All parts of an experiment, those that are kept not computed again. Everything is checked before the first is."""
    executor = as_executor(executor)
    if (instead := INSTEAD.get()) is not None:
        with working():
            outcome = instead(experiment, store, executor)
        raise Done(outcome)
    executor._check(store)
    total = experiment.total()
    shards = Shards(experiment.identity(), store, experiment.packages)
    with Bar(total, experiment.name) as bar, _how_to_go_on(shards):
        with executor._at_work(experiment, shards) as finish:
            for parts in experiment.stages(shards.rows):
                finish(parts, bar)
        bar.skip(total - bar.done)  # what a race needed not
    return shards


@contextmanager
def _how_to_go_on(shards: Shards) -> Iterator[None]:
    """Say with every error and interrupt what is kept."""
    try:
        yield
    except Unfinished:
        raise
    except BaseException as error:
        if isinstance(shards.store, Memory):
            kept = "nothing is kept; give folder= to keep what is finished"
        else:
            kept = f"finished parts are kept in {shards.store} ({len(shards)} so far); the same call goes on"
        error.add_note(kept)
        raise
