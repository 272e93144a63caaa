"""What an experiment will take, before any of it is done: `workbench.plan`."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any

from workbench.arguments import checked, function
from workbench.engine import Work
from workbench.experiments.shards import Shards
from workbench.experiments.store import Store
from workbench.experiments.work import do_instead
from workbench.interventions import World
from workbench.memory import peak_bytes
from workbench.metrics import measured

if TYPE_CHECKING:
    from workbench.experiments.base import Experiment

ROW_BYTES, SHARD_BYTES = 14, 7000  # of results on disk, about: a row, and what a part's file has besides


@dataclass(frozen=True)
class Plan:
    """What is left to do of an experiment.

    experiment: its name. parts, images: how many are left; parts_kept: how many are in the folder. batches, calls, rows: calls of the
    pipeline, calls of the denoiser, and rows (of one half) in all of them; None where the experiment does not say beforehand. largest:
    rows of the largest batch. disk: bytes of results. seconds: on this machine, by one timed batch, as if each row took its share of it;
    memory: bytes at the peak of that batch (on CUDA those of tensors, else of the process). None where nothing was timed.

    >>> found = wb.plan(wb.causal_trace, model, prompts, once, timed=False)
    >>> found.experiment, found.largest, found.parts_kept
    ('causal trace', 16, 0)
    """

    experiment: str
    parts: int
    parts_kept: int
    images: int
    batches: int | None
    calls: int | None
    rows: int | None
    largest: int | None
    disk: int
    seconds: float | None = None
    memory: int | None = None

    @checked
    def seconds_on(self, workers: int) -> float | None:
        """Seconds with so many workers as fast as this one: parts are not divided.

        >>> wb.plan(wb.causal_trace, model, prompts, once, timed=False).seconds_on(2) is None
        True
        """
        return None if self.seconds is None else self.seconds * ceil(self.parts / workers) / max(1, self.parts)

    def __str__(self):
        said = f"{self.experiment}: {self.images} images in {self.parts} parts"
        said += f" ({self.parts_kept} more are kept)" if self.parts_kept else ""
        if self.calls is not None:
            said += f", {self.batches} batches of at most {self.largest}, {self.calls} calls of the denoiser, {self.rows} rows in them"
        said += f"; {self.disk / 1e6:.2g} MB of results"
        if self.seconds is None or self.memory is None:
            return said
        return f"{said}; {self.seconds:.3g} s and {self.memory / 1e9:.2g} GB on this machine"


@checked(experiment=function)
def plan(experiment: Callable[..., Any], *arguments: Any, timed: bool = True, **keywords: Any) -> Plan:
    """What a call of an experiment would take: images, denoiser calls, disk, and by one timed batch time and memory on this machine.

    experiment: `wb.causal_trace`, `wb.locogen` or `wb.steer_sweep`, which do one experiment and know beforehand what it draws;
    arguments, keywords: its own, `folder=` among them, whose finished parts are taken off. Everything is checked as the experiment
    checks it. timed: False draws nothing. Raises ValueError for any other function.

    >>> found = wb.plan(wb.causal_trace, model, prompts, once, timed=False)
    >>> found.images, found.parts  # of two prompts: clean, corrupted and 36 restored each
    (76, 2)
    """
    name = getattr(experiment, "__name__", str(experiment))
    if name not in PLANNED:
        raise ValueError(
            f"plan({name}): only what {', '.join(f'wb.{each}' for each in PLANNED)} would do is known beforehand; others do several "
            "experiments, or let one picture decide on the next"
        )
    return do_instead(lambda asked, store, _: plan_of(asked, store, timed=timed), experiment, arguments, keywords)


PLANNED = ("causal_trace", "locogen", "steer_sweep")


def plan_of(experiment: "Experiment", store: Store, *, timed: bool = True) -> Plan:
    """What is left to do of an experiment whose parts are known beforehand."""
    if experiment.staged:
        raise ValueError(
            f"plan: {experiment.name} asks what its last answers lead to, so that its parts are not known beforehand"
        )
    experiment.total()  # checks everything
    parts = experiment.parts()
    kept = Shards(experiment.identity(), store, experiment.packages).parts if store.names() else []
    left = {name: part for name, part in parts.items() if name not in kept}
    again = experiment.again(left)
    work = Work() if experiment.counted else None
    if work is not None:
        experiment.count(left | dict(again), work)
    images = sum(experiment.check(*part) for part in left.values())
    metrics = 1 if experiment.measures is None else len(experiment.measures.names(experiment.prompts))
    disk = images * metrics * ROW_BYTES + len(left) * SHARD_BYTES
    found = Plan(experiment.name, len(left), len(parts) - len(left), images, None, None, None, None, disk)
    if work is not None:
        counts = dict(batches=work.batches, calls=work.calls, rows=work.rows, largest=work.largest)
        found = replace(found, **counts)
    if not timed or work is None or not work.rows:
        return found
    return replace(found, **timed_batch(experiment, work, images))


def timed_batch(experiment: "Experiment", work: Work, images: int) -> dict[str, Any]:
    """Seconds and memory, by one batch of as many rows as the largest, at two numbers of steps."""
    model, rows = experiment.model, work.largest
    world = World("timed", experiment.prompts[0].prompt)
    taken, calls = [], []
    for steps in (2, 2, 4):  # the first warms up
        calls.append(len(model.calls(steps)))
        began = time.perf_counter()
        more = dict(num_inference_steps=steps, guidance_scale=experiment.guidance, batch_size=rows, progress=False)
        run = model.run(world, seeds=range(rows), **more)
        taken.append(time.perf_counter() - began)
    call = max(0.0, (taken[2] - taken[1]) / (calls[2] - calls[1]))
    rest = max(0.0, taken[1] - calls[1] * call) / rows
    began = time.perf_counter()
    if experiment.measures is not None:
        pictures = run.images.sel(world="timed")
        measured(experiment.measures, pictures, pictures, experiment.prompts[0], experiment.prompts.labels)
    scoring = (time.perf_counter() - began) / rows
    seconds = work.rows * call / rows + images * (rest + scoring)
    return {"seconds": seconds, "memory": peak_bytes(model.pipeline.device)}
