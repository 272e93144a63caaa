"""The one base of everything that is measured: a frozen spec, parts, and a table of rows that a store keeps.

    class Brightness(Experiment):
        name = "brightness"

        def drawing(self, p):
            return Drawing(p, worlds, places)  # what a part draws, whose images are scored against the first world's

What does more than that has its own `check`, how many images a part takes, and `measure`, its rows.

A part is finished or not: who stops an experiment loses at most the part it is at. Parts may be divided among processes.
A study whose next question hangs on its last answer (a search, a bisection) gives its parts in `stages`.
"""

from abc import ABC
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import xarray as xr

from workbench import engine
from workbench.engine import Fold, Run, Work, prepare
from workbench.engine.prefix import Held
from workbench.experiments import results
from workbench.experiments.drawing import Drawing, named_apart, order_of, sources_of
from workbench.experiments.executors import Executor
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
Slice = tuple[Sequence[World], Sequence[World]]  # what a run draws, and what these may read
MOST = 6  # batches that the pictures of parts which are drawn together fill at most
GROUPS = 8  # of parts drawn together there are as many at least, so that processes may divide them
WASTE = 0.1  # the share of rows that batches may lack before a further part is drawn with them


class Experiment(ABC):
    """Something measured on a model, part by part.

    spec: what is asked. prompts: on what; left out where the parts bring their own. measures: of images, or None.
    """

    name: ClassVar[str]
    columns: ClassVar[tuple[str, ...]] = ("world", "metric", "prompt", "seed", "value")
    """What every row has."""
    coordinates: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Columns that belong to others, such as {"strengths": ("trial",)}: settings beside their axes."""
    raced: ClassVar[tuple[str, str] | None] = None
    """The kind of world whose places may race against each other, and that which their effects are taken from."""
    packages: ClassVar[tuple[str, ...]] = PACKAGES
    """Whose versions the numbers may hang on."""
    uncounted: str = "what its parts ask of the denoiser is not said beforehand"
    """Why what `measure` asks of the denoiser is more than `check` gives to `plan`; "" where it is all, as where parts only draw."""
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

    def metric_names(self, prompts: PromptSet | None = None) -> list[str]:
        """What is measured of the images of any of these prompts; the experiment's when left out."""
        return [] if self.measures is None else self.measures.names(self.prompts if prompts is None else prompts)

    def by_units(self) -> "Experiment":
        """The same with parts that only draw, each of all candidates, as a race needs them."""
        return self

    def raced_by(self, metric: str, direction: str | None) -> tuple[str, int, int]:
        """The metric that a race is decided by; 1 where effects are rises of it, -1 where falls; 1 where the largest are best, or -1."""
        return metric, 1, -1 if direction == "min" else 1

    def parts(self) -> Mapping[str, Part]:
        """Each part's name, and what `check` and `measure` are called with."""
        return {f"prompt{p:04d}": (p,) for p in range(len(self.prompts))}

    def stages(self, kept: Kept) -> Iterator[Mapping[str, Part]]:
        """Parts that wait for others: each stage is finished before the next is asked for. kept: a finished part's rows."""
        yield self.parts()

    def total(self) -> int:
        """How many images all takes; raises for what does not fit the model."""
        return sum(self.check(*part) for part in self.parts().values())

    def drawing(self, *part: Any) -> Drawing:
        """What a part draws, where scoring these images is all that it does: parts may then share batches."""
        raise NotImplementedError(f"{type(self).__name__} has neither a drawing nor its own check and measure")

    @property
    def only_draws(self) -> bool:
        """Whether scoring images is all that a part does."""
        return type(self).measure is Experiment.measure

    def check(self, *part: Any) -> int:
        """How many images a part takes; raises for what does not fit the model."""
        drawing = self.drawing(*part)
        return self.plan(drawing.worlds, read=drawing.read, seeds=drawing.seeds)

    def measure(self, *part_and_bar: Any) -> list[Row]:
        """Long-form rows of a part; the bar, given last, counts the images."""
        *part, bar = part_and_bar
        return self.score_all([self.drawing(*part)], bar)[0]

    def measure_all(self, group: Mapping[str, Part], names: Sequence[str], bar: Bar) -> list[list[Row]]:
        """The rows of some parts of a group that is measured together. The others' worlds are drawn with them, if they are kept too: rows
        hang, by rounding, on who shares a batch."""
        if self.only_draws:
            own = [name in names for name in group]
            return self.score_all([self.drawing(*part) for part in group.values()], bar, own)
        return [self.measure(*group[name], bar) for name in names]

    def together(self, parts: Mapping[str, Part]) -> list[dict[str, Part]]:
        """The parts in groups that are measured together, so that batches are full: neighbours, at most MOST batches of them."""
        names, groups = list(parts), []
        largest = max(1, len(parts) // GROUPS)
        while names:
            worlds, best, least, own = 0, 1, float("inf"), None
            for number, name in enumerate(names[:largest], 1) if self.only_draws and largest > 1 else ():
                drawing = self.drawing(*parts[name])
                seeds = tuple(self.seeds_of(drawing.seeds))
                worlds += len(drawing.worlds)
                batches = engine.batches_of(worlds, len(seeds), self.batch_size)
                if number > 1 and (batches > MOST or seeds != own):
                    break
                own, lacking = seeds, batches * self.batch_size / (worlds * len(seeds)) - 1
                if lacking < least:
                    best, least = number, lacking
                if lacking <= WASTE:
                    break
            groups.append({name: parts[name] for name in names[:best]})
            del names[:best]
        return groups

    def grouped(self) -> list[dict[str, Part]]:
        """All parts, in the groups that are measured together."""
        return self.together(self.parts())

    def complete(self, folder: str | Path | Store | None, executor: Executor | str | None = None) -> Shards:
        """Do all parts that the folder lacks. Without a folder they are kept in memory. executor: who does them; this process left out."""
        return complete(self, as_store(folder), executor)

    def table(self, folder: str | Path | Store | None = None, executor: Executor | str | None = None) -> pd.DataFrame:
        """All rows."""
        return self.complete(folder, executor).table()

    def dataset(self, folder: str | Path | Store | None = None, executor: Executor | str | None = None) -> xr.Dataset:
        """All rows as labelled arrays, one for each kind of world."""
        return results.dataset(self.complete(folder, executor))

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

        read, seeds: as of a `Drawing`. scored: whether `score` is what draws them, in runs of its own; else `run`, in one. reuse: False
        where something is recorded.
        """
        if self.counting is None:
            prepare(self.model, [*read, *worlds], self.run_settings)
        else:
            runs: Iterable[Slice] = [(worlds, read)]
            if scored:
                runs = self._worlds_of([Drawing(0, worlds, [{}] * len(worlds), read)])
            self._count(runs, self.seeds_of(seeds), self.counting, reuse=reuse)
        return len(worlds) * len(self.seeds_of(seeds))

    def seeds_of(self, seeds: Sequence[int] | None) -> Sequence[int]:
        """Those, or, left out, the spec's."""
        return self.spec.seeds if seeds is None else seeds

    @property
    def run_settings(self) -> engine.Settings:
        return self.model._settings(self.steps, self.guidance)

    def count(self, parts: Mapping[str, Part], work: Work):
        """Add what parts take of the denoiser."""
        if self.only_draws:
            for group in self.grouped():
                if parts.keys() & group.keys():
                    drawings = [self.drawing(*part) for part in group.values()]
                    self._count(self._worlds_of(named_apart(drawings)), self.seeds_of(drawings[0].seeds), work)
            return
        self.counting = work
        try:
            for part in parts.values():
                self.check(*part)
        finally:
            self.counting = None

    def _count(self, runs: Iterable[Slice], seeds: Sequence[int], work: Work, *, reuse: bool = True):
        """Add what runs take, which share latents."""
        held: Held = {}
        for worlds, sources in runs:
            more = dict(batch_size=self.batch_size, read=sources, held=held, reuse=reuse, at_most=self.at_most)
            engine.count_work(self.model, worlds, seeds, self.run_settings, work, **more)

    def _worlds_of(self, drawings: Sequence[Drawing]) -> Iterator[Slice]:
        for drawn, sources in self.slices(drawings):
            yield [world for _, world, _ in drawn], sources

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

    @property
    def staged(self) -> bool:
        """Whether its parts hang on what others find."""
        return type(self).stages is not Experiment.stages

    def run(
        self,
        worlds: Sequence[World],
        record: Sequence[str | Fold] = (),
        *,
        read: Sequence[World] = (),
        seeds: Sequence[int] | None = None,
        held: Held | None = None,
    ) -> Run:
        """Worlds from all seeds. read, seeds: as of a `Drawing`. held: latents that runs share; see `workbench.engine.run`."""
        self.model._warn_of_long(world.prompt for world in (*read, *worlds))
        return engine.run(
            self.model,
            worlds,
            self.seeds_of(seeds),
            self.run_settings,
            batch_size=self.batch_size,
            record=as_record(record),
            progress=False,
            read=read,
            held=held,
        )

    def slices(self, drawings: Sequence[Drawing]) -> Iterator[tuple[list[tuple[int, World, Row]], list[World]]]:
        """What is drawn in each run, (number of the drawing, world, place), and the worlds that these may read: no more images in
        memory than a batch for a seed."""
        scored = {}
        for number, each in enumerate(drawings):
            for i in order_of(each.worlds):
                scored[each.worlds[i].name] = (number, each.worlds[i], each.places[i])
        known = {world.name: world for each in drawings for world in (*each.read, *each.worlds)}
        reads = prepare(self.model, list(known.values()), self.run_settings).reads
        for names in engine.groups([world for _, world, _ in scored.values()], self.batch_size, reads):
            drawn = [scored.pop(name) for name in names if name in scored]
            if drawn:
                yield drawn, sources_of([world for _, world, _ in drawn], known)

    def score(
        self, p: int, worlds: Sequence[World], places: Sequence[Row], bar: Bar, *, read: Sequence[World] = ()
    ) -> list[Row]:
        """Every metric of every image, one row each: a world's place, with metric, prompt, seed and value; see `Drawing`."""
        return self.score_all([Drawing(p, worlds, places, read)], bar)[0]

    def score_all(self, drawings: Sequence[Drawing], bar: Bar, own: Sequence[bool] = (True,)) -> list[list[Row]]:
        """The same for several drawings of the same seeds, whose worlds share batches. own: of each, whether its rows are wanted."""
        rows: dict[int, list[Row]] = {n: [] for n, wanted in enumerate(own) if wanted}
        drawings, held = named_apart(drawings), {}
        first = {each.worlds[0].name for each in drawings}
        reference, seeds = None, drawings[0].seeds
        for drawn, sources in self.slices(drawings):
            images = self.run([world for _, world, _ in drawn], read=sources, seeds=seeds, held=held).images
            references = {n: images.sel(world=world.name) for n, world, _ in drawn if world.name in first}
            for n, world, place in drawn:
                reference = references.get(n, reference)  # drawings are drawn one behind the other
                if n in rows:
                    rows[n] += self.metric_rows(drawings[n].prompt, place, images.sel(world=world.name), reference)
            bar.update(sum(n in rows for n, _, _ in drawn) * images.sizes["seed"])
        return list(rows.values())

    def metric_rows(self, p: int, place: Row, images: xr.DataArray, reference: xr.DataArray) -> list[Row]:
        """Rows of one world's images (seed, y, x, colour) of a prompt."""
        values_by_metric = measured(self.measures, images, reference, self.prompts[p], self.prompts.labels)
        return self.value_rows(p, place, values_by_metric, images.seed.values.tolist())

    def value_rows(
        self,
        p: int,
        place: Row,
        values_by_metric: Mapping[str, Sequence[float]],
        seeds: Sequence[int] | None = None,
    ) -> list[Row]:
        """One row for each metric and seed."""
        return [
            {**place, "metric": metric, "prompt": p, "seed": seed, "value": float(value)}
            for metric, values in values_by_metric.items()
            for seed, value in zip(self.seeds_of(seeds), values, strict=True)
        ]
