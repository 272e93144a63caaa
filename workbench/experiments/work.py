"""Doing the parts of an experiment, whoever does them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from workbench.experiments.executors import Executor, Unfinished, as_executor
from workbench.experiments.forecast import answer_plan
from workbench.experiments.shards import Shards
from workbench.experiments.store import Memory, Store
from workbench.progress import Bar

if TYPE_CHECKING:
    from workbench.experiments.base import Experiment


def complete(experiment: "Experiment", store: Store, executor: Executor | str | None = None) -> Shards:
    """All parts of an experiment, those that are kept not computed again. Everything is checked before the first is."""
    answer_plan(experiment, store)
    executor = as_executor(executor)
    executor.check(store)
    total = experiment.total()
    shards = Shards(experiment.identity(), store, experiment.packages)
    with Bar(total, experiment.name) as bar, _how_to_go_on(shards):
        with executor.at_work(experiment, shards) as finish:
            for parts in experiment.stages(shards.rows):
                finish(parts, bar)
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
