"""Doing the parts of an experiment: here, and beside any other process that shares the folder."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

from workbench.experiments.shards import Row, Shards
from workbench.experiments.store import Memory, Store
from workbench.progress import Bar

if TYPE_CHECKING:
    from workbench.experiments.base import Experiment

LOOK = 0.5  # seconds between two looks at parts that others are at
Instead = Callable[["Experiment", Store], Any]
INSTEAD: ContextVar[Instead | None] = ContextVar("INSTEAD", default=None)  # what is done in place of an experiment


class Done(BaseException):
    """Raised in place of an experiment's first part, with what was done instead."""

    def __init__(self, outcome: Any):
        super().__init__(outcome)
        self.outcome = outcome


def do_instead(instead: Instead, function: Callable, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
    """What `instead` makes of the first experiment of a function's call, which checks its arguments and does nothing more."""

    def once(experiment: "Experiment", store: Store) -> Any:
        inner = INSTEAD.set(None)
        try:
            return instead(experiment, store)
        finally:
            INSTEAD.reset(inner)

    token = INSTEAD.set(once)
    try:
        function(*arguments, **keywords)
    except Done as done:
        return done.outcome
    finally:
        INSTEAD.reset(token)
    raise RuntimeError(f"{function.__name__} did no experiment")


def complete(experiment: "Experiment", store: Store) -> Shards:
    """All parts of an experiment, those that are kept not computed again. Everything is checked before the first is."""
    if (instead := INSTEAD.get()) is not None:
        raise Done(instead(experiment, store))
    total = experiment.total()
    shards = Shards(experiment.identity(), store, experiment.packages)
    with Bar(total, experiment.name) as bar, _how_to_go_on(shards):
        for parts in experiment.stages(shards.rows):
            _divide(experiment, shards, parts, bar)
        bar.skip(total - bar.done)  # what a race needed not
    return shards


def _divide(experiment: "Experiment", shards: Shards, parts: Mapping[str, tuple[Any, ...]], bar: Bar):
    """Do the parts that nobody has done or is doing, and wait for the others."""
    computed: set[str] = set()
    waiting, said = dict(parts), False
    groups = [{name: parts[name] for name in names} for names in experiment.together(parts)]
    while waiting:
        before = len(waiting)
        for group in groups:
            left = [name for name in group if name in waiting]
            for name in shards.take_all(left, partial(_measured, experiment, group, bar, computed)):
                part = waiting.pop(name)
                if name not in computed:  # it was there
                    bar.skip(experiment.check(*part))
        if waiting and len(waiting) == before:
            if not said:
                some = ", ".join(list(waiting)[:3])
                bar.say(f"{experiment.name}: waiting for {some}, which another process is at, or was when it died")
                said = True
            time.sleep(LOOK)


def _measured(
    experiment: "Experiment", group: Mapping[str, tuple[Any, ...]], bar: Bar, computed: set[str], names: list[str]
) -> list[list[Row]]:
    computed.update(names)
    return experiment.measure_all(group, names, bar)


@contextmanager
def _how_to_go_on(shards: Shards) -> Iterator[None]:
    """Say with every error and interrupt what is kept."""
    try:
        yield
    except BaseException as error:
        if isinstance(shards.store, Memory):
            kept = "nothing is kept; give folder= to keep what is finished"
        else:
            kept = f"finished parts are kept in {shards.store} ({len(shards)} so far); the same call goes on"
        error.add_note(kept)
        raise
