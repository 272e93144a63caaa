"""Racing: an experiment whose units go only to candidates that may yet be among the best.

A unit is one part of the experiment with one seed; units come in random order, and in each all candidates that are left are drawn, beside
what they are compared with. Who is certainly beaten by as many as are looked for leaves (`anytime.beaten`): asked as often as one likes,
none of those that a whole run would find best is lost, with the probability that is stated.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.arguments import checked, function, instance_of
from workbench.experiments import results
from workbench.experiments.anytime import beaten, mean_intervals
from workbench.experiments.base import Experiment, Kept, Part
from workbench.experiments.drawing import Drawing
from workbench.experiments.executors import Executor
from workbench.experiments.shards import Row
from workbench.experiments.spec import RaceSpec
from workbench.experiments.store import Store
from workbench.experiments.work import do_instead, is_one_of
from workbench.inputs import count

PLACES = (*results.PLACES, "strength")  # what tells one candidate from another
STANDINGS = BEST, OPEN, LEFT, BESIDE = "best", "open", "left", "beside"
Place = tuple[Any, ...]


@dataclass(frozen=True)
class Race:
    """What a race found.

    data: scores as the experiment returns them, NaN where a candidate was no longer drawn. Averages of them have no ordinary intervals,
    since they stopped the race; `table` has such as hold whenever one stops. table: a row for each candidate, the best first, then by how
    long they stayed: where it stands; `standing`; `effect`, as the experiment's own `effects` have it, its mean over the `units` that were
    drawn, with `low` and `high`, which hold the mean over all units, each by itself at the race's level. standing: "best", one of those
    looked for; "left", beaten; "open", not beaten, though all units were drawn and others are first; "beside", a screening's control,
    which does not race. pictures: how many were drawn; pictures_of_all: how many all units of all candidates take.

    >>> found = wb.race(wb.causal_trace, model, prompts, once, race=wb.RaceSpec(best=1))
    >>> int((found.table.standing == "best").sum()), found.pictures <= found.pictures_of_all
    (1, True)
    """

    data: xr.Dataset
    table: pd.DataFrame
    pictures: int
    pictures_of_all: int

    @checked(number=count)
    def best(self, number: int = 1) -> tuple[str, ...]:
        """Names of the sites of the best candidates, by their means so far; ValueError for more than were looked for.

        That these are the best together is what has the race's probability, not their order: look for one to name one.

        >>> len(wb.race(wb.causal_trace, model, prompts, once, race=wb.RaceSpec(best=2)).best(2))
        2
        """
        first = self.table[self.table.standing == BEST]
        if number > len(first):
            raise ValueError(f"number={number}: the race looked for {len(first)}; ask for as many at most")
        return tuple(first.site[:number])

    @property
    def times_fewer(self) -> float:
        """How many times fewer pictures were drawn than all units of all candidates take."""
        return self.pictures_of_all / self.pictures


@checked(experiment=function, race=instance_of("workbench.experiments.spec:RaceSpec"))
def race(experiment: Callable[..., Any], *arguments: Any, race: RaceSpec | None = None, **keywords: Any) -> Race:
    """Name the best candidates of an experiment in fewer images: prompts, draws and seeds go only to those that may yet be among them.

    experiment: `wb.causal_trace`, whose sites race, `wb.locogen` (windows) or `wb.steer_sweep` (sites and strengths); arguments, keywords:
    its own, `folder=` among them, where the same call goes on. The design is the experiment's: all its prompts, draws and seeds are the
    units, and what is named is what it would have named with all of them, with the probability `race.level`. Nothing is assumed of the
    scores but their bounds, and of the units' order that it is random (`experiments.anytime`). Where candidates are nearly as good as each
    other, all units are drawn of these, and their means are exact. Raises ValueError for any other function and for a metric without
    bounds, KeyError for one that is not measured, all before anything is drawn.

    >>> found = wb.race(wb.locogen, model, prompts, wb.LocoGenSpec(widths=(8,), seeds=(0,)), race=wb.RaceSpec(best=1))
    >>> found.table.standing[0], found.times_fewer >= 1
    ('best', True)
    """
    if not is_one_of(experiment, RACED):
        name = getattr(experiment, "__name__", str(experiment))
        raise ValueError(
            f"race({name}): what races are the candidates of one experiment; give {', '.join(f'wb.{each}' for each in RACED)}"
        )
    return do_instead(partial(_raced, race or RaceSpec()), partial(experiment, *arguments, **keywords))


RACED = ("causal_trace", "locogen", "steer_sweep")


def _raced(race: RaceSpec, experiment: Experiment, store: Store, executor: Executor) -> Race:
    return Racing(experiment.by_units(), race).to_the_end(store, executor)


class Racing(Experiment):
    """An experiment as a race. A part is a unit, with the candidates that are left when it is drawn.

    always: places of candidates that do not race and are drawn in all units, and so are then the best, to the end; None where a race ends
    as soon as these are known.
    """

    at_most = True  # of what is planned

    def __init__(self, inner: Experiment, race: RaceSpec, always: Collection[Place] | None = None):
        batch = inner.batch_size
        super().__init__(inner.model, inner.spec, prompts=inner.prompts, measures=inner.measures, batch_size=batch)
        self.inner, self.race = inner, race
        assert inner.raced is not None  # of those that `race` takes
        self.kinds = inner.raced
        self.metric, self.sign, self.better = inner.raced_by(race.metric, race.direction)
        self.check_metric()
        self.spread = spread_of(self.metric, race.metric)
        self.to_all = always is not None
        self.always = [number for place, number in self.candidates.items() if place in (always or ())]
        self.racing = [number for number in self.candidates.values() if number not in self.always]
        if (few := len(self.racing) - race.best) < 0 or (few == 0 and not self.to_all):
            raise ValueError(
                f"best={race.best}: there are {len(self.racing)} candidates, which leaves nobody to be beaten; look for fewer, or name "
                "more sites"
            )
        self.check_everywhere()

    def check_metric(self):
        """Raise KeyError for a metric that is not measured of all prompts."""
        asked = f"metric={self.race.metric!r}"
        asked += "" if self.race.direction is None else f", direction={self.race.direction!r}"
        asked += "" if self.metric == self.race.metric else f", which is decided by {self.metric!r},"
        for p, prompt in enumerate(self.prompts):
            if self.metric not in (names := self.inner.metric_names(self.prompts[p : p + 1])):
                raise KeyError(
                    f"{asked} is not measured of {prompt.prompt!r}, and a race needs all prompts; there are {', '.join(names)}"
                )

    def check_everywhere(self):
        """Raise ValueError for candidates that some units lack: their means would be of other units."""
        for name, drawing in self.drawings.items():
            own = {self.place(place) for place in drawing.places}
            if lacking := [place for place in self.candidates if place not in own]:
                raise ValueError(
                    f"race: {len(lacking)} of {len(self.candidates)} candidates are not in {name}, "
                    f"{self.prompts[drawing.prompt].prompt!r}, such as {dict(zip(self.axes, lacking[0]))}: a race compares candidates on "
                    "the same prompts, so race tokens that all prompts have, or run the experiment whole"
                )

    @property
    def name(self) -> str:  # type: ignore[override]  # elsewhere a constant of the class
        return f"{self.inner.name} (race)"

    @property
    def columns(self) -> tuple[str, ...]:  # type: ignore[override]  # the same
        return self.inner.columns

    def identity(self) -> dict[str, Any]:
        return self.inner.identity() | {"experiment": self.name, "race": asdict(self.race)}

    def sites(self):
        return self.inner.sites()

    def metric_rows(self, p: int, place: Row, images: xr.DataArray, reference: xr.DataArray) -> list[Row]:
        return self.inner.metric_rows(p, place, images, reference)

    @cached_property
    def drawings(self) -> dict[str, Drawing]:
        """All that the experiment's parts draw, by their names."""
        return {name: self.inner.drawing(*part) for name, part in self.inner.parts().items()}

    @cached_property
    def candidates(self) -> dict[Place, int]:
        """Their numbers, by where they stand."""
        return {self.place(place): number for number, place in enumerate(self.places)}

    @cached_property
    def places(self) -> list[Row]:
        """Where each candidate stands, as the experiment says it."""
        first: dict[Place, Row] = {}
        for place in (place for each in self.drawings.values() for place in each.places if self.races(place)):
            first.setdefault(self.place(place), place)
        return list(first.values())

    @cached_property
    def axes(self) -> list[str]:
        places = [place for each in self.drawings.values() for place in each.places if self.races(place)]
        return [axis for axis in PLACES if any(place.get(axis) is not None for place in places)]

    def races(self, place: Mapping[str, Any]) -> bool:
        """Whether a world is a candidate, and nothing that candidates are compared with."""
        return place["world"] == self.kinds[0]

    def place(self, row: Mapping[str, Any]) -> Place:
        values = [row.get(axis) for axis in self.axes]
        return tuple(float(value) if isinstance(value, (int, float, np.number)) else value for value in values)

    @cached_property
    def units(self) -> list[tuple[str, int]]:
        """Parts of the experiment and seeds, in the order in which they are drawn."""
        every = [(name, seed) for name in self.drawings for seed in self.spec.seeds]
        order = np.random.default_rng(self.race.order).permutation(len(every))
        return [every[i] for i in order]

    def parts(self) -> dict[str, Part]:
        return self.stage(self.units, tuple(self.candidates.values()))

    def stage(self, units: Sequence[tuple[str, int]], left: tuple[int, ...]) -> dict[str, Part]:
        """Parts of some units, those of a seed beside each other, since they may share batches."""
        return {unit_name(*unit): (*unit, left) for unit in sorted(units, key=lambda unit: unit[1])}

    def grouped(self) -> list[dict[str, Part]]:
        every, looks = tuple(self.candidates.values()), range(0, len(self.units), self.race.units)
        stages = [self.stage(self.units[at : at + self.race.units], every) for at in looks]
        return [group for parts in stages for group in self.together(parts)]

    def total(self) -> int:
        for each in self.drawings.values():
            self.plan(each.worlds, read=each.read)
        return sum(len(each.worlds) for each in self.drawings.values()) * len(self.spec.seeds)

    def stages(self, kept: Kept) -> Iterator[Mapping[str, Part]]:
        left = tuple(self.candidates.values())
        for at in range(0, len(self.units), self.race.units):
            yield self.stage(self.units[at : at + self.race.units], left)
            left = self.left(self.effects(kept, self.units[: at + self.race.units]))
            if len(left) == self.race.best and not self.to_all:
                return

    def left(self, effects: np.ndarray) -> tuple[int, ...]:
        """Numbers of the candidates that may be among the best, and of those that do not race: effects (unit, candidate), of the first
        units."""
        effects = self.better * effects[:, self.racing]
        times = beaten(effects, len(self.units), self.race.best, self.spread, self.race.level)
        left = np.flatnonzero(times < self.race.best)
        # claims that cannot all be true, which come about with a probability of 1 - level at most
        if len(left) < self.race.best:
            left = np.lexsort((-np.nanmean(effects, 0), times))[: self.race.best]
        return (*(self.racing[i] for i in np.sort(left)), *self.always)

    def effects(self, kept: Kept, units: Sequence[tuple[str, int]]) -> np.ndarray:
        """By the race's metric: (unit, candidate), NaN where a candidate was not drawn."""
        effects = np.full((len(units), len(self.candidates)), np.nan)
        for number, unit in enumerate(units):
            if (table := kept(unit_name(*unit))) is None:
                continue
            table = table[table.metric == self.metric]
            (base,) = table.value[table.world == self.kinds[1]]
            if table.value.isna().any():
                raise ValueError(
                    f"race: {self.metric} of some picture of {unit_name(*unit)} is no number (a safety checker withholds pictures?), and a "
                    "race needs all; load the model with safety_checker=False, or race by another metric"
                )
            for row in table[table.world == self.kinds[0]].to_dict("records"):
                effects[number, self.candidates[self.place(row)]] = self.sign * (row["value"] - base)
        return effects

    def drawing(self, name: str, seed: int, left: tuple[int, ...]) -> Drawing:
        whole = self.drawings[name]
        kept = [
            i
            for i, place in enumerate(whole.places)
            if not self.races(place) or self.candidates[self.place(place)] in left
        ]
        worlds, places = [whole.worlds[i] for i in kept], [whole.places[i] for i in kept]
        return replace(whole, worlds=worlds, places=places, seeds=(seed,))

    def to_the_end(self, store: Store, executor: Executor | str | None = None) -> Race:
        """Race, or go on with it."""
        shards = self.complete(store, executor)
        effects = self.effects(shards.rows, self.units)
        units = (~np.isnan(effects)).sum(0)
        low, high = mean_intervals(effects, len(self.units), -self.spread, self.spread, self.race.level)
        table = pd.DataFrame([{axis: place.get(axis) for axis in self.axes} for place in self.places])
        table = table.assign(standing=LEFT, effect=np.nansum(effects, 0) / units, low=low, high=high, units=units)
        table.loc[list(self.left(effects)), "standing"] = OPEN
        table.loc[self.always, "standing"] = BESIDE
        order = np.lexsort((-self.better * table.effect, -units, table.standing.map(STANDINGS.index)))
        table = table.iloc[order].reset_index(drop=True)
        table.loc[: self.race.best - 1, "standing"] = BEST
        pictures = int((shards.table().metric == self.metric).sum())
        return Race(results.dataset(shards), table, pictures, self.total())


def unit_name(part: str, seed: int) -> str:
    return f"{part}-seed{seed}"


def spread_of(metric: str, asked: str) -> float:
    """The largest difference of two values of a metric; raises ValueError for one without bounds."""
    bounds = results.BOUNDS.get(metric.removeprefix("target_"))
    if bounds is None:
        raise ValueError(
            f"metric={asked!r} has no bounds that are known, so that nothing can be said before all is drawn; race by one of "
            f"{', '.join(results.BOUNDS)}, or run the experiment whole"
        )
    return bounds[1] - bounds[0]
