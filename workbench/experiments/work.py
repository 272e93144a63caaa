"""Doing the parts of an experiment: here, and beside any other process that shares the folder."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from workbench.experiments.forecast import answer_plan
from workbench.experiments.shards import Shards
from workbench.experiments.store import Memory, Store
from workbench.progress import Bar

if TYPE_CHECKING:
    from workbench.experiments.base import Experiment


def complete(experiment: "Experiment", store: Store) -> Shards:
    """All parts of an experiment, those that are kept not computed again. Everything is checked before the first is."""
    answer_plan(experiment, store)
    total = experiment.total()
    shards = Shards(experiment.identity(), store, experiment.packages)
    with Bar(total, experiment.name) as bar, _how_to_go_on(shards):
        for parts in experiment.stages(shards.rows):
            _divide(experiment, shards, parts, bar)
    return shards


def _divide(experiment: "Experiment", shards: Shards, parts: Mapping[str, tuple[Any, ...]], bar: Bar):
    """Do the parts that nobody has done or is doing, and wait for the others."""
    waiting, said = dict(parts), False
    while waiting:
        before = len(waiting)
        for name, part in list(waiting.items()):
            counted = bar.done
            if shards.take(name, partial(experiment.measure, *part, bar)) is None:
                continue
            if bar.done == counted:  # it was there
                bar.skip(experiment.check(*part))
            del waiting[name]
        if waiting and len(waiting) == before:
            if not said:
                some = ", ".join(list(waiting)[:3])
                bar.say(f"{experiment.name}: waiting for {some}, which another process is at, or was when it died")
                said = True
            time.sleep(shards.store.look)


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
