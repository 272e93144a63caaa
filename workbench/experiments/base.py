"""The one base of everything that is measured: a frozen spec, parts, and a table of rows that a store keeps.

    class Brightness(Experiment):
        name = "brightness"

        def check(self, p):
            return self.plan(self.worlds(p))                    # how many images a part takes

        def measure(self, p, bar):
            return self.score(p, self.worlds(p), places, bar)   # its rows

A part is finished or not: who stops an experiment loses at most the part it is at. Parts may be divided among processes.
A study whose next question hangs on its last answer (a search, a bisection) gives its parts in `stages`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import xarray as xr

from workbench import engine
from workbench.engine import Fold, Run, Work, prepare
from workbench.engine.prefix import Held
from workbench.experiments import results
from workbench.experiments.shards import PACKAGES, Row, Shards
from workbench.experiments.spec import Spec
from workbench.experiments.store import Store, as_store
from workbench.experiments.work import complete
from workbench.interventions import World
from workbench.metrics import Measures, measured
from workbench.models import Model, as_record
from workbench.progress import Bar
from workbench.prompts import PromptSet
from workbench.sites import Site

Part = tuple[Any, ...]
Kept = Callable[[str], pd.DataFrame | None]


class Experiment(ABC):
    """Something measured on a model, part by part.

    spec: what is asked. prompts: on what; left out where the parts bring their own. measures: of images, or None.
    """

    name: ClassVar[str]
    columns: ClassVar[tuple[str, ...]] = ("world", "metric", "prompt", "seed", "value")
    """What every row has."""
    coordinates: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Columns that belong to others, such as {"strengths": ("trial",)}: settings beside their axes."""
    packages: ClassVar[tuple[str, ...]] = PACKAGES
    """Whose versions the numbers may hang on."""
    uncounted: str = "what its parts ask of the denoiser is not said beforehand"
    """Why what `measure` asks of the denoiser is more than `check` gives to `plan`, or adds to `counting`; "" where it is all."""
    at_most: bool = False
    """Whether `parts` and what they take are the most that there may be, since what is found decides on the rest."""
    counting: Work | None = None

    def __init__(
        self,
        model: Model,
        spec: Spec,
        *,
        prompts: PromptSet | None = None,
        measures: Measures | None = None,
        batch_size: int = 16,
    ):
        self.model, self.spec, self.measures, self.batch_size = model, spec, measures, batch_size
        self.prompts = PromptSet("none", (), {}) if prompts is None else prompts
        self.steps = model.num_inference_steps if spec.num_inference_steps is None else spec.num_inference_steps
        self.guidance = model.guidance_scale if spec.guidance_scale is None else spec.guidance_scale
        if measures is not None:
            measures.check(self.prompts)

    def identity(self) -> dict[str, Any]:
        """All that the rows depend on, as plain values."""
        return {
            "experiment": self.name,
            "columns": list(self.columns),
            "coordinates": {column: list(axes) for column, axes in self.coordinates.items()},
            "site_facts": {site.name: results.site_facts(site) for site in self.sites()},
            **asdict(self.spec),
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "model": self.model.record,
            "scorer": None if self.measures is None else self.measures.record,
            "prompt_set": self.prompts.name,
            "prompts": [asdict(prompt) for prompt in self.prompts],
            "labels": {label: list(texts) for label, texts in self.prompts.labels.items()},
        }

    def sites(self) -> Sequence[Site]:
        """Those that rows name in their column `site`."""
        return ()

    def parts(self) -> Mapping[str, Part]:
        """Each part's name, and what `check` and `measure` are called with."""
        return {f"prompt{p:04d}": (p,) for p in range(len(self.prompts))}

    def stages(self, kept: Kept) -> Iterator[Mapping[str, Part]]:
        """Parts that wait for others: each stage is finished before the next is asked for. kept: a finished part's rows."""
        yield self.parts()

    def total(self) -> int:
        """How many images all takes; raises for what does not fit the model."""
        return sum(self.check(*part) for part in self.parts().values())

    @abstractmethod
    def check(self, *part: Any) -> int:
        """How many images a part takes; raises for what does not fit the model."""

    @abstractmethod
    def measure(self, *part_and_bar: Any) -> list[Row]:
        """Long-form rows of a part; the bar, given last, counts the images."""

    def complete(self, folder: str | Path | Store | None) -> Shards:
        """Do all parts that the folder lacks. Without a folder they are kept in memory."""
        return complete(self, as_store(folder))

    def table(self, folder: str | Path | Store | None = None) -> pd.DataFrame:
        """All rows."""
        return self.complete(folder).table()

    def dataset(self, folder: str | Path | Store | None = None) -> xr.Dataset:
        """All rows as labelled arrays, one for each kind of world."""
        return results.dataset(self.complete(folder))

    def plan(
        self,
        worlds: Sequence[World],
        *,
        read: Sequence[World] = (),
        scored: bool = True,
        reuse: bool = True,
        seeds: Sequence[int] | None = None,
    ) -> int:
        """Check the interventions of worlds against the model, and count their images.

        read: further worlds for them to read. scored: whether `score` is what draws them, in runs of its own; else `run`, in one. reuse:
        False where something is recorded. seeds: the spec's when left out.
        """
        settings, seeds = self.model._settings(self.steps, self.guidance), self.spec.seeds if seeds is None else seeds
        if self.counting is None:
            prepare(self.model, [*read, *worlds], settings)
        else:
            held: Held = {}
            runs = self.slices([worlds[i] for i in order_of(worlds)], read) if scored else [(worlds, read)]
            for drawn, sources in runs:
                more = dict(batch_size=self.batch_size, read=sources, held=held if scored else None)
                more |= dict(reuse=reuse, at_most=self.at_most)
                engine.count_work(self.model, drawn, seeds, settings, self.counting, **more)
        return len(worlds) * len(seeds)

    def beforehand(self, left: Mapping[str, Part], *, trying: bool) -> Work:
        """What is drawn once besides the parts that are left. trying: whether to find out first what would be found on the way."""
        return Work()

    def trial(self, rows: int, steps: int) -> tuple[int, int]:
        """Draw and score a batch of so many rows in so few steps, to be timed: rows in all calls of the denoiser, and images."""
        world = World("timed", self.sample)
        more = dict(num_inference_steps=steps, guidance_scale=self.guidance, batch_size=rows, progress=False)
        images = self.model.run(world, seeds=range(rows), **more).images.sel(world=world.name)
        if self.measures is not None and len(self.prompts):
            measured(self.measures, images, images, self.prompts[0], self.prompts.labels)
        return rows * len(self.model.calls(steps)), rows

    @property
    def sample(self) -> str:
        """A prompt like those that are drawn."""
        return self.prompts[0].prompt

    def work(self, *part: Any, into: Work | None) -> int:
        """How many images a part takes; adds to `into`, where it is given, what that takes of the denoiser."""
        self.counting = into
        try:
            return self.check(*part)
        finally:
            self.counting = None

    def run(
        self,
        worlds: Sequence[World],
        record: Sequence[str | Fold] = (),
        *,
        read: Sequence[World] = (),
        held: Held | None = None,
    ) -> Run:
        """Worlds from all seeds. read, held: further worlds for them to read, and latents that runs share; see `workbench.engine.run`."""
        self.model._warn_of_long(world.prompt for world in (*read, *worlds))
        return engine.run(
            self.model,
            worlds,
            self.spec.seeds,
            self.model._settings(self.steps, self.guidance),
            batch_size=self.batch_size,
            record=as_record(record),
            progress=False,
            read=read,
            held=held,
        )

    def slices(
        self, worlds: Sequence[World], read: Sequence[World]
    ) -> Iterator[tuple[Sequence[World], Sequence[World]]]:
        """What `score` draws in each of its runs, and the worlds that these may read: no more images in memory than a batch for a seed."""
        per = max(1, self.batch_size - 1 - len(read))
        for at in range(1, len(worlds), per):
            some = worlds[at : at + per]
            yield ([worlds[0], *some], read) if at == 1 else (some, [worlds[0], *read])

    def score(
        self, p: int, worlds: Sequence[World], places: Sequence[Row], bar: Bar, *, read: Sequence[World] = ()
    ) -> list[Row]:
        """Every metric of every image, one row each: a world's place, with metric, prompt, seed and value.

        The first world is the reference of the distances, and may be read by the others. read: further worlds for them to read, which
        are not scored.
        """
        order = order_of(worlds)
        worlds, places = [worlds[i] for i in order], [places[i] for i in order]
        rows, reference, places_left = [], None, iter(places)
        held: Held = {}
        for drawn, sources in self.slices(worlds, read):
            run = self.run(drawn, read=sources, held=held)
            reference = run.images.sel(world=worlds[0].name) if reference is None else reference
            scored = list(zip(drawn, places_left))
            for world, place in scored:
                rows += self.metric_rows(p, place, run.images.sel(world=world.name), reference)
            bar.update(len(scored) * len(self.spec.seeds))
        return rows

    def metric_rows(self, p: int, place: Row, images: xr.DataArray, reference: xr.DataArray) -> list[Row]:
        """Rows of one world's images (seed, y, x, colour) of a prompt."""
        values_by_metric = measured(self.measures, images, reference, self.prompts[p], self.prompts.labels)
        return self.value_rows(p, place, values_by_metric)

    def value_rows(self, p: int, place: Row, values_by_metric: Mapping[str, Sequence[float]]) -> list[Row]:
        """One row for each metric and seed."""
        return [
            {**place, "metric": metric, "prompt": p, "seed": seed, "value": float(value)}
            for metric, values in values_by_metric.items()
            for seed, value in zip(self.spec.seeds, values, strict=True)
        ]


def order_of(worlds: Sequence[World]) -> list[int]:
    """The order in which worlds are drawn: the first, then those together whose last interventions act in the same steps."""
    steps = [world.interventions[-1].steps if world.interventions else None for world in worlds]
    first = {each: number for number, each in reversed(list(enumerate(steps)))}
    return sorted(range(len(worlds)), key=lambda i: (i > 0, first[steps[i]]))
