"""What an experiment will take, before any of it is done: `workbench.plan`."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any

from workbench.arguments import checked, function
from workbench.engine import Fold, Settings, Work, count_work
from workbench.experiments.executors import Executor
from workbench.experiments.shards import Shards
from workbench.experiments.store import Memory, Store
from workbench.experiments.work import INSTEAD, Done, do_instead, is_one_of, working
from workbench.interventions import World
from workbench.memory import peak_bytes

if TYPE_CHECKING:
    from workbench.experiments.base import Experiment
    from workbench.models import Model

ROW_BYTES, SHARD_BYTES = 14, 7000  # of results on disk, about: a row, and what a part's file has besides
TRIALS = (2, 2, 4)  # numbers of steps of the batches that are timed; the first warms up
PLANNED = (
    "adaptive_strength",
    "attention_contribution",
    "attention_maps",
    "attribute",
    "causal_trace",
    "compare_localizers",
    "concept_attention",
    "edit.score_cases",
    "faithfulness",
    "head_relevance",
    "locogen",
    "probe",
    "recover",
    "screen",
    "steer_search",
    "steer_sweep",
)
UNKNOWN = {
    "locogen_search": "which windows it draws hangs on what whole blocks showed; plan wb.locogen with windows= of either",
}


@dataclass(frozen=True)
class Plan:
    """What is left to do of an experiment.

    experiment: its name. parts, images: how many are left; parts_kept: how many are in the folder. groups: of parts that are left, each
    done by one worker, since small parts share batches. batches, calls, rows: calls of the
    pipeline, calls of the denoiser, and rows (of one half) in all of them. largest: rows of the largest batch. disk: bytes of results.
    seconds: on this machine, by one timed batch, as if each row took its share of it; memory: bytes at the peak of that batch (on
    CUDA those of tensors, else of the process). None where nothing was timed. at_most: whether all of these are upper bounds, since
    what is drawn hangs on what is found. uncounted: why there are no batches, calls and rows, where there are none. of: the plans
    whose sum it is, of what does several experiments, one after the other.

    >>> found = wb.plan(wb.causal_trace, model, prompts, once, timed=False)
    >>> found.experiment, found.largest, found.parts_kept, found.at_most
    ('causal trace', 16, 0, False)
    """

    experiment: str
    parts: int
    parts_kept: int
    groups: int
    images: int
    batches: int | None
    calls: int | None
    rows: int | None
    largest: int | None
    disk: int
    seconds: float | None = None
    memory: int | None = None
    at_most: bool = False
    uncounted: str = ""
    of: tuple["Plan", ...] = ()

    @checked
    def seconds_on(self, workers: int) -> float | None:
        """Seconds with so many workers as fast as this one: groups are not divided, and experiments wait for one another.

        >>> wb.plan(wb.causal_trace, model, prompts, once, timed=False).seconds_on(2) is None
        True
        """
        if self.of:
            return _sum(each.seconds_on(workers) for each in self.of)
        return None if self.seconds is None else self.seconds * ceil(self.groups / workers) / max(1, self.groups)

    def __str__(self):
        if self.of:
            return "\n".join([self._line(), *(f"  {line}" for each in self.of for line in str(each).splitlines())])
        return self._line()

    def _line(self) -> str:
        said = f"{self.experiment}: {'at most ' * self.at_most}{self.images} images in {self.parts} parts"
        said += f" ({self.parts_kept} more are kept)" if self.parts_kept else ""
        if self.calls is not None:
            said += f", {self.batches} batches of at most {self.largest}, {self.calls} calls of the denoiser, {self.rows} rows in them"
        said += f"; {self.uncounted}" if self.uncounted else ""
        said += f"; {self.disk / 1e6:.2g} MB of results"
        if self.seconds is None or self.memory is None:
            return said
        return f"{said}; {self.seconds:.3g} s and {self.memory / 1e9:.2g} GB on this machine"


@checked(experiment=function)
def plan(experiment: Callable[..., Any], *arguments: Any, timed: bool = True, **keywords: Any) -> Plan:
    """What a call of an experiment would take: images, denoiser calls, disk, and by one timed batch time and memory on this machine.

    experiment: `wb.causal_trace`, `wb.locogen`, `wb.screen`, `wb.recover`, ...: whatever draws for more than a moment. arguments, keywords:
    its own, `folder=` among them, whose finished parts are taken off. Everything is checked as the experiment checks it, and what comes
    before any picture is done (the edits of `wb.edit.score_cases` are made). Counts are exact, or `at_most`: of a search the most that its
    trials may take, of a screening as if as many sites were patched as may be, of an attribution that is not timed as if memory held one
    image's graph. What does several experiments is the sum of their plans, `of`. timed: False draws nothing. Raises ValueError for any
    other function.

    >>> found = wb.plan(wb.causal_trace, model, prompts, once, timed=False)
    >>> found.images, found.parts  # of two prompts: clean, corrupted and 36 restored each
    (76, 2)
    >>> screening = wb.ScreenSpec(sites=("text_encoder.*.mlp",), verified=4, controls=2, seeds=(0,), draws=1)
    >>> found = wb.plan(wb.screen, model, prompts, screening, timed=False)
    >>> [(each.experiment, each.images, each.at_most) for each in found.of]  # of two prompts: 2 and 2 + 6 each
    [('attribution', 4, True), ('verification', 16, True)]
    """
    if not is_one_of(experiment, PLANNED):
        name = getattr(experiment, "__name__", str(experiment))
        why = UNKNOWN.get(name, "it is none of them")
        raise ValueError(
            f"plan({name}): only what {', '.join(f'wb.{each}' for each in PLANNED)} would do is known beforehand; {why}"
        )
    return do_instead(Planning(timed), partial(experiment, *arguments, **keywords))


@dataclass(frozen=True)
class Planning:
    """Plans experiments in place of doing them. timed: by a batch, too. held: names of the parts that plans hold already, by folder."""

    timed: bool
    held: dict[str, set[str]] = field(default_factory=dict)

    def __call__(self, experiment: "Experiment", store: Store, executor: Executor) -> Plan:
        held = set() if isinstance(store, Memory) else self.held.setdefault(str(store), set())
        found, names = plan_of(experiment, store, timed=self.timed, held=held)
        held |= names
        return found


def planning() -> Planning | None:
    """How plans are asked for, where they are."""
    asked = INSTEAD.get()
    return asked if isinstance(asked, Planning) else None


def answer_plans(name: str, asks: Iterable[Callable[[], Any]]):
    """Answer with the sum of the plans of several experiments, which are done one after the other, where a plan is asked for."""
    if (asked := planning()) is not None:
        raise Done(sum_of(name, [do_instead(asked, ask) for ask in asks]))


def answer_run(
    name: str,
    model: "Model",
    worlds: Sequence[World],
    seeds: Sequence[int],
    settings: Settings,
    record: Callable[[int], Sequence[Fold]],
    *,
    batch_size: int,
):
    """Answer with the plan of one run in which something is recorded, where one is asked for. record: by the number of steps."""
    if (asked := planning()) is None:
        return
    work = Work()
    if worlds:
        count_work(model, worlds, list(seeds), settings, work, batch_size=batch_size, reuse=False)
    images = len(worlds) * len(seeds)
    counts = dict(batches=work.batches, calls=work.calls, rows=work.rows, largest=work.largest)
    found = Plan(name, int(images > 0), 0, int(images > 0), images, **counts, disk=0)
    if asked.timed and images and settings.start is None:

        def trial(rows: int, steps: int) -> tuple[int, int]:
            few = replace(settings, num_inference_steps=steps)
            more = dict(
                num_inference_steps=steps, guidance_scale=few.guidance_scale, height=few.height, width=few.width
            )
            world = World("timed", worlds[0].prompt)
            model.run(world, seeds=range(rows), record=record(steps), batch_size=rows, progress=False, **more)
            return rows * len(model.calls(steps)), rows

        with working():
            found = replace(found, **timed_batch(trial, model, work, images))
    raise Done(found)


def sum_of(name: str, plans: Sequence[Plan]) -> Plan:
    """What several experiments take, one after the other; None where one of them does not say."""
    added = {each: _sum(getattr(plan, each) for plan in plans) for each in ("batches", "calls", "rows", "seconds")}
    largest = {each: _most(getattr(plan, each) for plan in plans if plan.images) for each in ("largest", "memory")}
    why = [f"{plan.experiment}: {plan.uncounted}" for plan in plans if plan.uncounted]
    whole = {
        each: sum(getattr(plan, each) for plan in plans) for each in ("parts", "parts_kept", "groups", "images", "disk")
    }
    bounded = any(plan.at_most for plan in plans)
    return Plan(name, **whole, **added, **largest, at_most=bounded, uncounted="; ".join(why), of=tuple(plans))


def _sum(values: Iterable[Any]) -> Any:
    """The sum, None where one is."""
    given = list(values)
    return None if None in given else sum(given)


def _most(values: Iterable[Any]) -> Any:
    """The largest, None where one is or there are none."""
    given = list(values)
    return None if None in given or not given else max(given)


def plan_of(
    experiment: "Experiment", store: Store, *, timed: bool = True, held: Iterable[str] = ()
) -> tuple[Plan, set[str]]:
    """What is left to do of an experiment, and the names of the parts that are. held: those that another plan has."""
    parts = experiment.parts()
    kept = set(Shards(experiment.identity(), store, experiment.packages).parts) if store.names() else set()
    left = {name: part for name, part in parts.items() if name not in kept and name not in held}
    images_of = {name: experiment.check(*part) for name, part in parts.items()}  # all are checked, as they would be
    images = sum(images_of[name] for name in left)
    uncounted = "" if experiment.only_draws or not left else experiment.uncounted
    work = None if uncounted else Work()
    if work is not None and left:
        work += experiment.beforehand(left, trying=timed)
        experiment.count(left, work)
    groups = sum(not left.keys().isdisjoint(group) for group in experiment.grouped()) if left else 0
    metrics = 1 if experiment.measures is None else len(experiment.measures.names(experiment.prompts))
    disk = images * metrics * ROW_BYTES + len(left) * SHARD_BYTES
    about = dict(at_most=experiment.at_most and images > 0, uncounted=uncounted)
    found = Plan(
        experiment.name, len(left), len(parts) - len(left), groups, images, None, None, None, None, disk, **about
    )
    if work is None:
        return found, set(left)
    counts = dict(batches=work.batches, calls=work.calls, rows=work.rows, largest=work.largest)
    found = replace(found, **counts)
    if timed and work.rows:
        found = replace(found, **timed_batch(experiment.trial, experiment.model, work, images))
    return found, set(left)


def timed_batch(
    trial: Callable[[int, int], tuple[int, int]], model: "Model", work: Work, images: int
) -> dict[str, Any]:
    """Seconds and memory, by one batch of as many rows as the largest, at two numbers of steps; see `Experiment.trial`."""
    taken, passed, drawn = [], [], 0
    for steps in TRIALS:
        began = time.perf_counter()
        rows, drawn = trial(work.largest, steps)
        taken.append(time.perf_counter() - began)
        passed.append(rows)
    row = max(0.0, (taken[2] - taken[1]) / (passed[2] - passed[1]))
    rest = max(0.0, taken[1] - passed[1] * row) / drawn
    return {"seconds": work.rows * row + images * rest, "memory": peak_bytes(model.pipeline.device)}
