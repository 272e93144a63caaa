"""Who does the parts of an experiment: this process, one of several shares, or Ray's workers (`workbench.experiments.workers`).

    wb.causal_trace(model, prompts, spec, folder="runs/trace", executor=wb.Share(2, 8))
    wb.causal_trace(model, prompts, spec, folder="runs/trace", executor="ray")

Whoever does them writes them into the experiment's store; what was finished is never computed again.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from workbench.arguments import fit
from workbench.experiments.store import Memory, Store
from workbench.inputs import count, shown
from workbench.progress import Bar

if TYPE_CHECKING:
    from workbench.experiments.base import Experiment, Part
    from workbench.experiments.shards import Shards

HOW = '"ray", the address of a Ray cluster ("auto", "ray://host:10001", "host:6379"), wb.Ray(...) or wb.Share(...)'

Finish = Callable[[Mapping[str, "Part"], Bar], None]
Group = Mapping[str, "Part"]  # parts that are measured together


class Executor(ABC):
    """Who does the parts of an experiment; give one as `executor=`.

    >>> isinstance(wb.Share(1, 4), wb.Executor), isinstance(wb.Ray(), wb.Executor)
    (True, True)
    """

    def _check(self, store: Store):
        """Raise, before anything is done, where it cannot work, or not with this store."""
        if not store.shared:
            raise ValueError(
                f"executor={self!r} needs a folder=, in which all who share the work leave their parts; name one that all of them see"
                + ("" if isinstance(store, Memory) else f", which {store} is not")
            )

    @abstractmethod
    def _at_work(self, experiment: "Experiment", shards: "Shards") -> AbstractContextManager[Finish]:
        """What is given the parts of a stage and the bar and gets all of them finished, for as long as the block lasts."""


class Here(Executor):
    """This process, beside any others that share the folder."""

    def _check(self, store: Store):
        pass

    def _at_work(self, experiment: "Experiment", shards: "Shards") -> AbstractContextManager[Finish]:
        return nullcontext(partial(_do_and_wait, experiment, shards))


@dataclass(frozen=True)
class Share(Executor):
    """One of several shares of the parts, for a job array: every `of`-th part, without waiting for the others.

    number: of this share, from 1. of: how many there are. An experiment returns what it always does where the parts of all shares are
    in the folder, and raises `wb.Unfinished` where they are not. Parts that wait for others (a search's trials, attacks behind the
    pictures before them) make stages: a share does its parts of the first stage that is not finished.

    >>> wb.Share(2, 8)
    Share(number=2, of=8)
    >>> try:
    ...     wb.causal_trace(model, prompts, cross, folder="runs/shared", executor=wb.Share(2, 2))
    ... except wb.Unfinished as rest:
    ...     print(rest.kept, "of", rest.parts)
    1 of 2
    >>> wb.causal_trace(model, prompts, cross, folder="runs/shared", executor=wb.Share(1, 2)).equals(trace)
    True
    """

    number: int
    of: int

    def __post_init__(self):
        fit(self, number=count, of=count)
        if self.number > self.of:
            raise ValueError(f"Share(number={self.number}, of={self.of}): shares are numbered from 1 to of=")

    @classmethod
    def named(cls, text: str, argument: str) -> "Share":
        """A share as commands are given it: 2/8. argument: whose name errors say.

        >>> wb.Share.named("2/8", "--shard")
        Share(number=2, of=8)
        """
        number, slash, of = text.partition("/")
        if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise ValueError(
                f"{argument}={text!r}: give the number of this share, from 1, and how many there are, such as 1/8 to 8/8"
            )
        return cls(int(number), int(of))

    def __str__(self):
        return f"{self.number}/{self.of}"

    def _at_work(self, experiment: "Experiment", shards: "Shards") -> AbstractContextManager[Finish]:
        return nullcontext(partial(self._do, experiment, shards))

    def _do(self, experiment: "Experiment", shards: "Shards", parts: Mapping[str, "Part"], bar: Bar):
        for number, group in enumerate(experiment.together(parts)):
            if number % self.of == self.number - 1:
                do_parts(experiment, shards, group, group, bar)
            else:
                bar.skip(sum(experiment.check(*part) for part in group.values()))
        kept = sum(name in shards for name in parts)
        if kept < len(parts):
            raise Unfinished(experiment.name, str(self), kept, len(parts), str(shards.store), experiment.staged)


class Unfinished(RuntimeError):
    """A share has done its parts, and others are not finished: there is nothing whole to return yet.

    experiment: its name. share: "2/8". kept: parts that are in the folder, of `parts` (of this stage, where `staged`). folder: their store.

    >>> print(wb.Unfinished("causal trace", "2/8", 30, 120, "runs/trace", False).done)
    causal trace: share 2/8 has done its parts; 30 of 120 parts are in runs/trace
    """

    def __init__(self, experiment: str, share: str, kept: int, parts: int, folder: str, staged: bool):
        super().__init__(experiment, share, kept, parts, folder, staged)  # what it is pickled by
        self.experiment, self.share, self.kept, self.parts = experiment, share, kept, parts
        self.folder, self.staged = folder, staged

    @property
    def done(self) -> str:
        """What is done, in a sentence without its end."""
        stage = " of this stage" if self.staged else ""
        return f"{self.experiment}: share {self.share} has done its parts; {self.kept} of {self.parts} parts{stage} are in {self.folder}"

    def told(self, whole: str) -> str:
        """What is done and what is to be done. whole: what has the whole at the end.

        >>> print(wb.Unfinished("causal trace", "2/8", 30, 120, "runs/trace", False).told("one draws it"))
        causal trace: share 2/8 has done its parts; 30 of 120 parts are in runs/trace; when all shares have done theirs, one draws it
        """
        if self.staged:
            return f"{self.done}; others wait for these: when all shares have done theirs, give each of them again, until all is there"
        return f"{self.done}; when all shares have done theirs, {whole}"

    def __str__(self):
        return self.told("the same call without executor= does what is left, if anything, and returns the whole")


def do_parts(experiment: "Experiment", shards: "Shards", group: Group, names: Collection[str], bar: Bar) -> list[str]:
    """Do those of a group that nobody has done or is doing: those of them that are there now."""
    computed: set[str] = set()

    def measured(own: list[str]) -> list[list[Mapping[str, Any]]]:
        computed.update(own)
        return experiment.measure_all(group, own, bar)

    there = list(shards.take_all([name for name in group if name in names], measured))
    bar.skip(sum(experiment.check(*group[name]) for name in there if name not in computed))
    return there


def waited_for(names: Mapping[str, Any]) -> str:
    """What is said of parts that are held."""
    return f"waiting for {', '.join(list(names)[:3])}, which another process is at, or was when it died"


def as_executor(value: "Executor | str | None", argument: str = "executor") -> Executor:
    """An executor, or the one that a text names; this process without one."""
    if value is None:
        return Here()
    if isinstance(value, Executor):
        return value
    if isinstance(value, str) and (value in ("ray", "auto") or ":" in value.strip().strip(":")):
        workers = import_module("workbench.experiments.workers")
        if value == "ray":
            return workers.OPEN.get()[-1] if workers.OPEN.get() else workers.Ray()
        return workers.Ray(value)
    raise ValueError(f"{argument}={shown(value)}: give {HOW}; left out, this process does the parts")


def _do_and_wait(experiment: "Experiment", shards: "Shards", parts: Mapping[str, "Part"], bar: Bar):
    """Do the parts that nobody has done or is doing, and wait for the others."""
    waiting, said = dict(parts), False
    groups = experiment.together(parts)
    while waiting:
        before = len(waiting)
        for group in groups:
            for name in do_parts(experiment, shards, group, waiting, bar):
                del waiting[name]
        if waiting and len(waiting) == before:
            if not said:
                bar.say(f"{experiment.name}: {waited_for(waiting)}")
                said = True
            time.sleep(shards.store.look)
