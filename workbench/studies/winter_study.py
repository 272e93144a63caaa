"""What the winter benchmark compares: the layers and strengths chosen on tuning prompts, and every method by name.

One rule chooses: most of the concept among what costs no more fidelity than telling the model does.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import pandas as pd
import xarray as xr

from workbench.experiments.results import measured_by
from workbench.interventions import Intervention, World
from workbench.steering.adaptive import AdaptiveSpec, adaptive_strength
from workbench.steering.experiment import UNSTEERED, Variant
from workbench.steering.search import Search, SearchSpec, steer_search
from workbench.steering.sweep import ALL, Sweep, SweepSpec, steer_sweep
from workbench.studies.winter_setting import SITES, TEXT, UNET, WinterSetting, keyword_class

PUBLISHED = {0: 0.8, 6: 0.5, 7: 1.0, 8: 2.0}  # layers of the 23 of SD 2.1-base's text encoder, and their strengths
PUBLISHED_DEPTH = 23
FRONTIER = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # times the searched strengths


class Winter(WinterSetting):
    """The benchmark's parts, each computed when it is asked for and kept."""

    @cached_property
    def sweeps(self) -> dict[str, Sweep]:
        """Every layer at every strength."""
        spec = {
            where: SweepSpec(keep_norm=where == UNET, strengths=self.options.strengths, **self.run) for where in SITES
        }
        return {
            where: steer_sweep(
                self.model,
                self.tune,
                self.directions["winter", where],
                self.concepts["winter"],
                spec[where],
                folder=self.options.runs / f"sweep {where}",
                **self.common,
            )
            for where in SITES
        }

    @cached_property
    def told_so(self) -> xr.Dataset:
        variants = {"told": Variant({"variant": "told winter"}, self.told(["winter"], self.tune))}
        return self.measure("told", self.tune, self.concepts["winter"], variants, self.tuning)

    @cached_property
    def budget(self) -> float:
        """How much similarity to the original prompt telling the model costs, on the tuning prompts."""
        scores = measured_by(self.told_so, "similarity")
        return float((scores.unsteered - scores.steered.isel(variant=0)).mean())

    @cached_property
    def enough(self) -> float:
        """How much more similar to winter than to summer telling makes them. Neutral prompts begin above 0: that is no measure."""
        return float(_lead(self.told_so.steered).mean())

    def chosen(self, table: pd.DataFrame, budget: float | None = None) -> pd.Series:
        """The rule: most similar to the concept, within the budget. The table's first row is the unsteered images'."""
        budget = self.budget if budget is None else budget
        kept = table[1:][table[1:].similarity >= table.similarity.iloc[0] - budget]
        if kept.empty:
            raise ValueError(
                f"every strength of {sorted(table.strength.dropna().unique())} costs more similarity than telling does "
                f"({budget:.3f}); give --strengths smaller ones"
            )
        return kept.loc[kept.concept_similarity.idxmax()]

    @cached_property
    def searches(self) -> dict[str, Search]:
        """Sets of layers with a strength for each."""
        spec = {where: SearchSpec(keep_norm=where == UNET, trials=self.options.trials, **self.run) for where in SITES}
        return {
            where: steer_search(
                self.model,
                self.tune,
                self.directions["winter", where],
                self.concepts["winter"],
                spec[where],
                folder=self.options.runs / f"search {where}",
                **self.common,
            )
            for where in SITES
        }

    @cached_property
    def searched(self) -> dict[str, dict[str, float]]:
        """Strength of each layer that the search chose, by the rule."""
        return {
            where: found.best(float(found.table.similarity.iloc[0]) - self.budget)
            for where, found in self.searches.items()
        }

    def strengthened(
        self, where: str, factor: float, strengths: Mapping[str, float] | None = None
    ) -> tuple[Intervention, ...]:
        """Steering by the searched layers, times a factor."""
        by_site = {site: factor * strength for site, strength in (strengths or self.searched[where]).items()}
        return self.directions["winter", where].steer(by_site, unit=True, keep_norm=where == UNET)

    @cached_property
    def ladder(self) -> tuple[float, ...]:
        return tuple(float(factor) for factor in np.linspace(0.125, 2, 16))

    @cached_property
    def fixed(self) -> dict[str, float]:
        """The least strength that brings as much of winter as telling does, or the largest within the budget: for all tuning prompts
        together, and for those of each class."""
        variants = {
            str(factor): Variant({"factor": factor}, [self.strengthened(TEXT, factor)] * len(self.tune))
            for factor in self.ladder
        }
        data = self.measure("ladder", self.tune, self.concepts["winter"], variants, self.tuning).mean("seed")
        steered, before = data.steered, data.unsteered
        lead = _lead(steered)
        drop = before.sel(metric="similarity") - steered.sel(metric="similarity")
        kinds = np.array([keyword_class(prompt.prompt) for prompt in self.tune])
        found = {}
        for kind in ("all", *dict.fromkeys(kinds)):
            mine = {"prompt": np.flatnonzero((kinds == kind) | (kind == "all"))}
            enough, affordable = (
                (lead.isel(mine).mean("prompt") >= self.enough).values,
                (drop.isel(mine).mean("prompt") <= self.budget).values,
            )
            both = np.flatnonzero(enough & affordable)
            found[str(kind)] = self.ladder[both[0]] if len(both) else self.ladder[np.flatnonzero(affordable)[-1]]
        return found

    @cached_property
    def adaptive(self) -> pd.DataFrame:
        """The strength of each held-out prompt, found on two other seeds."""
        spec = AdaptiveSpec(
            seeds=(0, 1),
            num_inference_steps=self.options.num_inference_steps,
            strongest=self.ladder[-1],
            rounds=4,
            budget=self.budget,
            margin=self.enough,
        )
        return adaptive_strength(
            self.model,
            self.held_out,
            self.directions["winter", TEXT],
            self.concepts["winter"],
            spec,
            strengths=self.searched[TEXT],
            folder=self.options.runs / "adaptive",
            **self.common,
        )

    @cached_property
    def tables(self) -> dict[str, pd.DataFrame]:
        """Every cell of the sweeps."""
        found = {}
        for where, sweep in self.sweeps.items():
            more = sweep.table("concept", "probability")
            names = [name for name in more if name.startswith(("concept", "probability"))]
            found[where] = sweep.table().join(more[names])
        return found

    @cached_property
    def tuned(self) -> dict[tuple[str, str], pd.DataFrame]:
        """What the tuning prompts gave, by place and kind of method; the unsteered images first."""
        found = {}
        for where in SITES:
            table = self.tables[where]
            found[where, "one layer"] = table[table.site != ALL]
            found[where, "all layers"] = table[table.site.isin([UNSTEERED, ALL])]
            found[where, "searched"] = self.searches[where].table
        return found

    @property
    def favourite(self) -> str:
        """How the method begins that the rule prefers among all, on the tuning prompts: it is submitted."""
        return ", ".join(max(self.tuned.items(), key=lambda item: self.chosen(item[1]).concept_similarity)[0])

    @cached_property
    def methods(self) -> dict[str, Variant]:
        """Everything that is compared, by name."""
        text, unet = (self.directions["winter", where] for where in SITES)
        depth, source = (
            len(text.sites),
            0.5 * text,
        )  # the source divides the sum of differences by the number of all prompts
        four: dict[str, float] = {}
        for layer, strength in PUBLISHED.items():
            site = text.sites[layer * depth // PUBLISHED_DEPTH]
            four[site] = four.get(site, 0) + strength
        best = {which: self.chosen(table) for which, table in self.tuned.items()}
        single, every = ({where: best[where, which] for where in SITES} for which in ("one layer", "all layers"))
        fixed, kinds = self.fixed, [keyword_class(prompt.prompt) for prompt in self.held_out]
        alike = {
            f"source's form, one layer ({single[TEXT].site.split('.')[1]})": source.steer({single[TEXT].site: 1.0}),
            f"source's form, its layers ({', '.join(site.split('.')[1] for site in four)})": source.steer(four),
            "source's form, all layers": source.steer(1.0),
            f"text encoder, one layer ({_at(single[TEXT])})": self.strengthened(
                TEXT, 1.0, {single[TEXT].site: single[TEXT].strength}
            ),
            f"text encoder, all layers (at {every[TEXT].strength:g})": self.strengthened(
                TEXT, 1.0, {"*": every[TEXT].strength}
            ),
            "text encoder, searched": self.strengthened(TEXT, 1.0),
            f"fixed strength (x {fixed['all']:g})": self.strengthened(TEXT, fixed["all"]),
            f"UNet, one layer ({_at(single[UNET])})": self.strengthened(
                UNET, 1.0, {single[UNET].site: single[UNET].strength}
            ),
            f"UNet, all layers (at {every[UNET].strength:g})": self.strengthened(
                UNET, 1.0, {"*": every[UNET].strength}
            ),
            "UNet, searched": self.strengthened(UNET, 1.0),
            "UNet, summer removed": (-unet).remove(2.0),
        }
        found = {"told": Variant({"variant": "told winter"}, self.told(["winter"], self.held_out))}
        for i, (variant, interventions) in enumerate(alike.items()):
            found[f"m{i:02d}"] = Variant({"variant": variant}, [interventions] * len(kinds))
        by_kind = [self.strengthened(TEXT, fixed[kind]) for kind in kinds]
        found["keywords"] = Variant({"variant": "three keyword classes"}, by_kind)
        by_prompt = [self.strengthened(TEXT, factor) for factor in self.adaptive.strength]
        found["adaptive"] = Variant({"variant": "adaptive"}, by_prompt)
        return found

    @cached_property
    def report(self) -> xr.Dataset:
        return self.measure("report", self.held_out, self.concepts["winter"], self.methods, self.reporting)

    @cached_property
    def frontier(self) -> xr.Dataset:
        """Both families on the held-out prompts, from weak to strong: the searched layers, and all layers alike."""
        variants = {}
        for where in SITES:
            for layers, strengths in (
                ("searched", self.searched[where]),
                ("all", {"*": 1.0}),
            ):
                for factor in FRONTIER:
                    place = {"variant": f"{where}, {layers} layers", "factor": factor}
                    steered = self.strengthened(where, factor, strengths)
                    variants[f"{where} {layers} {factor}"] = Variant(place, [steered] * len(self.held_out))
        return self.measure("frontier", self.held_out, self.concepts["winter"], variants, self.reporting)

    def strip(
        self, where: str, strengths: Mapping[str, float], shown: Sequence[int] = (0, 1, 5, 22, 23)
    ) -> xr.DataArray:
        """Images of some prompts from weak to strong, by strengths of layers: (world, strength, y, x, colour)."""
        factors, rows = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0), {}
        for i in shown[: len(self.held_out)]:
            prompt = self.held_out[i % len(self.held_out)].prompt
            worlds = [
                World(f"{factor:g}", prompt, self.strengthened(where, factor, strengths) if factor else ())
                for factor in factors
            ]
            run = self.model.run(
                worlds,
                seeds=self.options.seeds[:1],
                num_inference_steps=self.options.num_inference_steps,
                progress=False,
            )
            rows[prompt] = run.images.isel(seed=0).rename(world="strength")
        return xr.concat(rows.values(), pd.Index(rows, name="world"))

    def other(self, names: Sequence[str]) -> tuple[float, dict[str, xr.Dataset]]:
        """Other concepts, alone and together, by all layers of the text encoder at one strength, chosen by the same rule but for what is
        most: the grader's probability, for telling "at night" lowers the similarity to the bare word on the tuning prompts."""
        joined = "+".join(names)
        steered = sum((self.directions[name, TEXT] for name in names[1:]), start=self.directions[names[0], TEXT])
        strengths = [strength for strength in self.ladder if strength <= 1]
        tuned = {str(s): Variant({"variant": f"{s:g}"}, [steered.steer(s)] * len(self.tune)) for s in strengths}
        tuned["told"] = Variant({"variant": "told"}, self.told(names, self.tune))
        found = [
            self.measure(f"{joined} tune {name}", self.tune, self.concepts[name], tuned, self.tuning).mean(
                ("prompt", "seed")
            )
            for name in names
        ]
        lost = found[0].steered.sel(metric="similarity")
        gained = sum(each.steered.sel(metric="concept_probability") for each in found)
        kept = [f"{s:g}" for s in strengths if lost.sel(variant=f"{s:g}") >= lost.sel(variant="told")] or [
            f"{strengths[0]:g}"
        ]
        best = float(max(kept, key=lambda each: float(gained.sel(variant=each))))
        alike = [steered.steer(best)] * len(self.held_out)
        held = {
            "steered": Variant({"variant": f"steered (x {best:g})"}, alike),
            "told": Variant({"variant": "told"}, self.told(names, self.held_out)),
        }
        return best, {
            name: self.measure(f"{joined} report {name}", self.held_out, self.concepts[name], held, self.reporting)
            for name in names
        }


def _at(row: pd.Series) -> str:
    """A layer and its strength, of a sweep's row: "3 at 0.5"."""
    place = row.site.removeprefix("text_encoder.").removeprefix("unet.").rsplit(".", 1)[0]
    return f"{place} at {row.strength:g}"


def _lead(scores: xr.DataArray) -> xr.DataArray:
    """Similarity to winter less that to summer."""
    return scores.sel(metric="concept_similarity", drop=True) - scores.sel(metric="opposite_similarity", drop=True)
